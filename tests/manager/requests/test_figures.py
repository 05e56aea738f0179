"""What a scraper is told of the network, as the catalog has it."""

import trio
from sqlalchemy import update

from cluster.clock import file_time_ns
from cluster.counters import Numbers, Sample
from cluster.messages import Close, Closing
from manager.catalog.schema import tasks
from manager.catalog.store import Transaction
from manager.requests.figures import PATIENCE_S, Figures, take_figures
from tests.manager.office import GIB, Office, Peer, small_network


def by_key(samples: list[Sample]) -> Numbers:
    return {metric.key(*values): number for metric, values, number, _ in samples}


async def figures_of(office: Office) -> Numbers:
    assert office.term is not None
    return by_key((await take_figures(office.term)).samples())


async def written(mount: Peer, name: bytes) -> int:
    """A file of which copies are to be made."""
    made = await mount.make(name)
    await mount.commit(made.ino, 1)
    await mount.ask(Close([Closing(made.ino, 1)]))
    return made.ino


async def test_queues_by_server_with_the_age_of_the_oldest(url: str) -> None:
    async with small_network(url) as (office, mount):
        at_rest = await figures_of(office)
        assert at_rest["godwit_files_below_policy"] == 0
        assert sum(number for key, number in at_rest.items() if key.startswith(("godwit_tasks", "godwit_oldest"))) == 0
        inodes = {await written(mount, b"one"), await written(mount, b"two")}

        def older(tx: Transaction) -> None:
            tx.execute(update(tasks).where(tasks.c.ino == min(inodes)).values(queued_ns=file_time_ns() - 90 * 10**9))

        await office.store.write(older)
        found = await figures_of(office)
        assert found["godwit_files_below_policy"] == 2
        assert found["godwit_inodes"] == at_rest["godwit_inodes"] + 2
        waiting = {key: number for key, number in found.items() if key.startswith("godwit_tasks") and number}
        assert sum(waiting.values()) == 2
        assert all('state="waiting"' in key for key in waiting)
        ages = [number for key, number in found.items() if key.startswith("godwit_oldest") and number > 80]
        assert len(ages) == 1
        assert 90 <= ages[0] < 100


async def test_servers_and_volumes(url: str) -> None:
    async with small_network(url) as (office, _):
        found = await figures_of(office)
        states = {key: number for key, number in found.items() if key.startswith("godwit_server_state")}
        assert sum(states.values()) == 3
        assert states['godwit_server_state{server="s2",state="up"}'] == 1
        assert states['godwit_server_state{server="s2",state="down"}'] == 0
        assert found['godwit_volume_size_bytes{server="s3",volume="/u3"}'] == 200 * GIB
        assert found['godwit_volume_free_bytes{server="s3",volume="/u3"}'] == 100 * GIB
        assert found['godwit_volume_condition{server="s3",volume="/u3",condition="good"}'] == 1
        assert found["godwit_mounts"] == 1
        assert found["godwit_authority_end_timestamp_seconds"] > file_time_ns() / 1e9


async def test_many_who_ask_are_told_the_same(url: str) -> None:
    async with small_network(url) as (office, _), trio.open_nursery() as nursery:
        assert office.term is not None
        figures = Figures()
        told: list[Numbers] = []

        async def ask() -> None:
            told.append(by_key(await figures.fresh()))

        nursery.start_soon(figures.take_loop, office.term)
        async with trio.open_nursery() as asking:
            for _ in range(5):
                asking.start_soon(ask)
        assert len(told) == 5
        assert all(numbers == told[0] and numbers["godwit_mounts"] == 1 for numbers in told)
        nursery.cancel_scope.cancel()


async def test_a_catalog_that_does_not_answer_holds_up_nobody_for_long(autojump_clock: trio.testing.MockClock) -> None:
    figures = Figures()  # which nobody takes
    assert await figures.fresh() == []
    assert trio.current_time() == PATIENCE_S
