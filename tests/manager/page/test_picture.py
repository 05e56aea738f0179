"""What the page shows of a network, and that it goes on while the catalog does not answer."""

import json
from pathlib import Path
from typing import Any

import msgspec
import trio
import trio.testing
from sqlalchemy import text

from cluster.config import ServerConfig
from cluster.events import EventKind
from cluster.faults import faults
from cluster.messages import Close, Closing
from manager.candidate import Candidate
from manager.catalog.engines import make_engines
from manager.catalog.events import note
from manager.catalog.schema import office as office_row
from manager.catalog.store import Transaction
from manager.page.picture import PATIENCE_S, Viewer
from tests.manager.databases import make_catalog
from tests.manager.migrating import make_clean, start
from tests.manager.office import GIB, Office, small_network
from tests.manager.page.browsing import page_config
from tests.support.clocks import skip
from tests.support.trust import credentials

HOSTILE = b"<img src=x onerror=alert(1)>\xff\x1b[2J\xe2\x80\xae.txt"
SHOWN = "<img src=x onerror=alert(1)>\\xff\\x1b[2J\\u202e.txt"


async def told(viewer: Viewer) -> Any:
    return json.loads(await viewer.tell(password=False))


async def seen(office: Office, settings: ServerConfig) -> Any:
    """The network as it is shown now."""
    viewer = Viewer(office, settings)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(viewer.look_loop)
        picture = await told(viewer)
        nursery.cancel_scope.cancel()
    assert (picture["cluster"], picture["server"], picture["why"], picture["elsewhere"]) == ("test", "s1", "", None)
    return picture["network"]


async def test_servers_space_queues_and_what_is_at_risk(url: str) -> None:
    settings = page_config(url)
    async with small_network(url) as (office, mount):
        at_rest = await seen(office, settings)
        assert at_rest["findings"] == at_rest["migrations"] == at_rest["at_risk"] == []
        assert (at_rest["free_bytes"], at_rest["total_bytes"]) == (150 * GIB, 300 * GIB)  # each file is there twice
        assert [(one["name"], one["is_manager"], one["state"]) for one in at_rest["servers"]] == [
            ("s1", True, "up"),
            ("s2", False, "up"),
            ("s3", False, "up"),
        ]
        (volume,) = at_rest["servers"][2]["volumes"]
        assert (volume["path"], volume["bad"], volume["free_bytes"]) == ("/u3", "", 100 * GIB)

        made = await mount.make(HOSTILE)
        await mount.commit(made.ino, 1)
        await mount.ask(Close([Closing(made.ino, 1)]))
        found = await seen(office, settings)
        assert (found["below_policy"], found["waiting_tasks"], found["inodes"]) == (1, 1, at_rest["inodes"] + 1)
        (file,) = found["at_risk"]
        assert file["path"] == f"/{SHOWN}"
        assert "a copy is waiting in the queue of s" in file["reason"]
        (finding,) = found["findings"]
        assert finding["look"] == "godwit files --below-policy"
        (busy,) = (one for one in found["servers"] if one["waiting_tasks"])
        assert busy["oldest_task_s"] >= 0


async def test_migrations_and_events(url: str) -> None:
    settings = page_config(url)
    async with small_network(url) as (office, mount):
        node = await make_clean(mount, b"moved", size=1000)
        await start(mount, node.ino)

        def tell(tx: Transaction) -> None:
            note(tx.connection, EventKind.SERVER_PROBLEM, server="s2", problem="\x1b]0;owned\x07 is odd")

        await office.store.write(tell)
        found = await seen(office, settings)
        (migration,) = found["migrations"]
        assert (migration["source"], migration["target"], migration["state"]) == ("s1", "s3", "planning")
        assert migration["paths"] == [f"/{node.ino}"]
        newest, before = found["events"][:2]
        assert (newest["severity"], newest["text"]) == ("warning", r"s2: \x1b]0;owned\x07 is odd")
        assert before["text"] == "migration 1 begins: from s1 to s3"


async def test_other_candidates_are_named(sqlite_url: str, tmp_path: Path) -> None:
    settings = msgspec.structs.replace(page_config(sqlite_url), state=str(tmp_path / "state"))
    port = settings.page.listen.rpartition(":")[2]
    make_catalog(sqlite_url)
    writer, reader = make_engines(sqlite_url)
    candidate = Candidate(settings, credentials("s1", "manager"), writer, reader)
    picture = await told(Viewer(candidate, settings))
    assert picture["network"] is None
    assert picture["elsewhere"] == {
        "why": "s1 is not the manager; nobody is at the moment",
        "manager": None,
        "candidates": [],
    }
    with writer.begin() as connection:
        row = {"term": 3, "server": "s2", "address": "[fd00::2]:7400"}
        connection.execute(office_row.update().values(**row))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(candidate.run)
        with trio.fail_after(10):
            while (await told(Viewer(candidate, settings)))["elsewhere"]["manager"] is None:
                await trio.sleep(0.01)
        picture = await told(Viewer(candidate, settings))
        assert picture["elsewhere"]["manager"] == {"server": "s2", "url": f"https://[fd00::2]:{port}/"}
        nursery.cancel_scope.cancel()
    writer.dispose()
    reader.dispose()


async def test_a_catalog_that_hangs_holds_up_no_answer(sqlite_url: str) -> None:
    settings = page_config(sqlite_url)
    async with small_network(sqlite_url) as (office, _):
        viewer = Viewer(office, settings)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(viewer.look_loop)
            assert (await told(viewer))["network"]["term"] == 1
            nursery.cancel_scope.cancel()
        # From here on nobody looks, as while a look takes for ever.
        await skip(60)
        pictures: list[Any] = []

        async def look() -> None:
            pictures.append(await told(viewer))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await trio.testing.wait_all_tasks_blocked()
            assert pictures == []
            await skip(PATIENCE_S)
        (picture,) = pictures
        assert picture["network"]["term"] == 1
        assert picture["age_s"] >= 60


async def test_an_error_of_ours_is_said_and_the_next_look_comes(sqlite_url: str) -> None:
    settings = page_config(sqlite_url)
    async with small_network(sqlite_url) as (office, _):
        viewer = Viewer(office, settings)

        def drop(tx: Transaction) -> None:
            tx.execute(text("DROP TABLE shortfalls"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(viewer.look_loop)
            assert (await told(viewer))["why"] == ""
            await office.store.write(drop)
            await skip(60)
            picture = await told(viewer)
            assert picture["why"] == "unexpected error, see the manager's log"
            assert faults.unexpected_errors == 1
            assert picture["network"]["term"] == 1
            nursery.cancel_scope.cancel()
