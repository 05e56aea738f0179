"""What the catalog does not know is set aside, kept, and listed; and not touched at all if it is much."""

import errno
import os
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from agent.checking.strays import SHARE_MIN, are_too_many, object_number, object_numbers
from agent.objects.quarantine import names_in, purge_unknown, quarantine_objects, to_purge, why_kept
from agent.objects.set_aside import parts_of
from cluster.clock import file_time_ns
from cluster.errors import Refused
from cluster.messages import Done, ListUnknown, SweepVolumes, UnknownObject
from tests.agent.network import TIMEOUT_S, Network, make_volume, put_object

pytestmark = pytest.mark.deadline(60)

DAY_NS = 86_400 * 10**9
NOW_NS = 1_000 * DAY_NS


@given(st.text(max_size=30))
def test_only_names_of_ours_mean_anything(name: str) -> None:
    parts = parts_of(name)
    if parts is not None:
        assert parts.ino >= 0
        assert parts.when_ns >= 0
        assert name.count(".") == 1


@given(
    days=st.lists(st.integers(min_value=-5, max_value=100), max_size=20),
    keep_days=st.integers(min_value=0, max_value=50),
    first_ino=st.integers(min_value=0, max_value=25),
)
def test_what_may_be_older_than_the_generation_is_never_purged(days: list[int], keep_days: int, first_ino: int) -> None:
    names = {f"{ino}.{NOW_NS - age * DAY_NS}": (ino, age) for ino, age in enumerate(days, 1)}
    keep_s = keep_days * 86_400
    gone = set(to_purge([*names, "notes", "7.x", "9" * 40 + ".1"], NOW_NS, keep_s, first_ino))
    assert gone == {name for name, (ino, age) in names.items() if 0 < first_ino <= ino and age >= keep_days}
    for name, (ino, age) in names.items():
        _why, until_ns = why_kept(ino, NOW_NS - age * DAY_NS, keep_s, first_ino)
        assert (name in gone) == (until_ns != 0 and until_ns <= NOW_NS)


@given(unknown=st.integers(min_value=0, max_value=10**6), others=st.integers(min_value=0, max_value=10**6))
def test_more_than_a_hundredth_and_than_32_is_too_many(unknown: int, others: int) -> None:
    objects = unknown + others
    assert are_too_many(unknown, objects) == (unknown > 32 and unknown > objects // 100)


@pytest.mark.parametrize(
    ("directory", "name", "ino"),
    [
        ("0", "7", 7),
        ("1", "4096", 4096),
        (str((2**63 - 1) // 4096), str(2**63 - 1), 2**63 - 1),
        (str(2**63 // 4096), str(2**63), 0),
        ("0", "07", 0),
        ("0", "0", 0),
        ("1", "7", 0),
        ("0", "٧", 0),
        ("0", "9" * 5000, 0),
    ],
)
def test_which_names_are_objects(directory: str, name: str, ino: int) -> None:
    assert object_number(directory, name) == ino


def test_what_is_no_object_stops_no_listing(tmp_path: Path) -> None:
    for name in ("0/7", "0/notes", "1/4097"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "notes").touch()
    (tmp_path / "away").symlink_to(tmp_path / "0")
    assert sorted(object_numbers(str(tmp_path))) == [7, 4097]


def test_setting_aside_and_purging(tmp_path: Path) -> None:
    volume = make_volume(tmp_path / "v")
    for content in (b"1", b"2"):
        descriptor = volume.layout.create_object(2000)
        os.write(descriptor, content)
        os.close(descriptor)
        assert quarantine_objects(volume, [2000, 2001]) == [True, False]
    assert [(volume.layout.unknown / name).read_bytes() for name in names_in(volume)] == [b"1", b"2"]
    old = f"3000.{file_time_ns() - 10 * DAY_NS}"
    older_than_the_catalog = f"900.{file_time_ns() - 10 * DAY_NS}"
    for name in (old, older_than_the_catalog, "notes"):
        (volume.layout.unknown / name).touch()
    assert purge_unknown(volume, 86_400, 0, file_time_ns()) == 0
    assert purge_unknown(volume, 86_400, 1024, file_time_ns()) == 1
    assert not (volume.layout.unknown / old).exists()
    assert (volume.layout.unknown / older_than_the_catalog).exists()
    assert (volume.layout.unknown / "notes").exists()
    volume.close()


async def unknown_of(net: Network, server: str) -> list[UnknownObject]:
    channel = await net.channel(server)
    found: list[UnknownObject] = []
    async with channel.open_stream(ListUnknown()) as replies:
        async for answer in replies:
            if isinstance(answer.reply, Done):
                break
            found += answer.reply.objects
    channel.close()
    return found


async def test_many_unknown_objects_are_left_until_somebody_says_that_it_is_right(
    net: Network, caplog: pytest.LogCaptureFixture
) -> None:
    running = await net.start("s1")
    await net.file("s1", 5000, b"content")
    layout, config = running.layout, running.config
    await running.stop()
    many = set(range(100, 100 + SHARE_MIN + 1))
    for ino in many:
        put_object(layout, ino)
    net.manager.strays = many
    await net.start_with(config)

    def problems() -> list[str]:
        return net.manager.registrations[-1].problems

    await net.manager.wait_for(problems, "the alarm")
    (problem,) = problems()
    assert "33 of 34 objects are unknown to the catalog, so none was touched" in problem
    assert problem.endswith("godwit volumes sweep s1")
    assert caplog.text.count("objects are unknown to the catalog") == 1
    assert not layout.unknown.exists()
    assert all(os.path.exists(layout.object_path(ino)) for ino in many)

    channel = await net.channel("s1")
    with pytest.raises(Refused, match="this is s1, not s2") as refusal:
        await channel.call(SweepVolumes("s2"), timeout_s=TIMEOUT_S)
    assert refusal.value.errno == errno.EINVAL
    assert (await channel.call(SweepVolumes("s1"), timeout_s=TIMEOUT_S)).count == len(many)
    assert {item.ino for item in await unknown_of(net, "s1")} == many
    assert os.path.exists(layout.object_path(5000))
    await net.manager.wait_for(lambda: not problems(), "the alarm is over")

    # The consent was for one sweep.
    for ino in many:
        put_object(layout, ino)
    net.manager.settled_ns += 1
    await net.manager.wait_for(problems, "the next alarm")
    assert all(os.path.exists(layout.object_path(ino)) for ino in many)


async def test_what_was_set_aside_is_listed_with_what_it_was(net: Network) -> None:
    running = await net.start("s1", trash_keep_s=1000.0)
    await net.file("s1", 2000, b"content")
    net.manager.first_ino = 1024
    before_ns = file_time_ns()
    net.manager.strays = {2000}
    channel = await net.channel("s1")
    await net.manager.wait_for(lambda: len(net.manager.registrations) > 3, "the generation is known")
    assert (await channel.call(SweepVolumes("s1"), timeout_s=TIMEOUT_S)).count == 1
    (item,) = await unknown_of(net, "s1")
    assert (item.ino, item.size, item.version, item.volume_path) == (2000, 7, 1, str(running.layout.root))
    assert item.until_ns == item.when_ns + 1000 * 10**9
    assert before_ns <= item.when_ns <= file_time_ns()
    assert (running.layout.unknown / item.name).read_bytes() == b"content"
    net.manager.first_ino = 2001
    with trio.fail_after(TIMEOUT_S):
        while (await unknown_of(net, "s1"))[0].until_ns:
            await trio.sleep(0.05)
    assert (await unknown_of(net, "s1"))[0].why == "older than the catalog's generation"
