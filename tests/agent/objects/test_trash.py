"""The rules of the trash."""

import os
from pathlib import Path

import trio
from hypothesis import given
from hypothesis import strategies as st

from agent.objects.quarantine import Generation
from agent.objects.set_aside import parts_of
from agent.objects.trash import TrashPurger, discard_objects, purge_expired, purge_for_room, room_wanted, to_purge
from agent.volumes.aging import KEPT_EVERY_S, TrashClock
from agent.volumes.health import examine
from agent.volumes.volume import LocalVolume, VolumeTable
from cluster.clock import file_time_ns, thread_s
from tests.agent.network import make_volume

GIB = 1024**3
DAY_NS = 86_400 * 10**9


def volume_at(path: Path) -> LocalVolume:
    volume = make_volume(path)
    volume.number = 1
    return volume


def test_room_is_kept_beside_the_trash_for_writes_that_nobody_sees() -> None:
    assert room_wanted(200 * 2**20) == 150 * 2**20
    assert room_wanted(10_000 * GIB) == 4 * GIB


@given(st.text(max_size=30))
def test_only_names_of_ours_have_a_time(name: str) -> None:
    known = parts_of(name)
    if known is not None:
        ino, _, _ = name.partition(".")
        assert int(ino) >= 0
        assert known.when_ns >= 0


@given(ages=st.lists(st.integers(min_value=-100, max_value=1000), max_size=20), keep_s=st.integers(min_value=0, max_value=500))
def test_what_is_due_goes_oldest_first_and_what_is_foreign_stays(ages: list[int], keep_s: int) -> None:
    now_s = 10_000
    names = {f"{number}.{(now_s - age) * 10**9}": age for number, age in enumerate(ages)}
    gone = to_purge([*names, "notes.txt", "5", ".", "7.x"], now_s * 10**9, keep_s)
    assert set(gone) == {name for name, age in names.items() if age >= keep_s}
    assert [names[name] for name in gone] == sorted((names[name] for name in gone), reverse=True)


def test_discarding_the_same_number_again_and_again_loses_nothing(tmp_path: Path) -> None:
    volume = volume_at(tmp_path / "v")
    for content in (b"1", b"2", b"3"):
        descriptor = volume.layout.create_object(7)
        os.write(descriptor, content)
        os.close(descriptor)
        assert discard_objects(volume, [7, 8]) == [True, False]
    assert sorted(path.read_bytes() for path in volume.layout.trash.iterdir()) == [b"1", b"2", b"3"]
    volume.close()


def test_what_is_in_the_trash_counts_as_free(tmp_path: Path) -> None:
    volume = volume_at(tmp_path / "v")
    descriptor = volume.layout.create_object(7)
    os.write(descriptor, bytes(1 << 20))
    os.fsync(descriptor)
    os.close(descriptor)
    discard_objects(volume, [7])
    assert volume.trash.bytes >= 1 << 20
    volume.trash.add(2**50)
    assert examine(volume, volume.opened_as).state.free_bytes > 2**50
    volume.trash.add(-(2**50))
    purge_for_room(volume)
    assert volume.trash.bytes == 0
    volume.close()


def test_room_that_somebody_else_has_made_meanwhile_is_room(tmp_path: Path) -> None:
    """Two writes meet a full disk: the one that asks second finds the trash empty already."""
    volume = volume_at(tmp_path / "v")
    purger = TrashPurger(VolumeTable(), 0.0, Generation())
    (volume.layout.trash / f"7.{file_time_ns()}").touch()
    began_s = thread_s()
    assert trio.run(purger.make_room, volume, began_s)
    assert trio.run(purger.make_room, volume, began_s)
    assert not trio.run(purger.make_room, volume, thread_s())
    volume.close()


def test_purging(tmp_path: Path) -> None:
    volume = volume_at(tmp_path / "v")
    now_ns = file_time_ns()
    old, new, foreign = (volume.layout.trash / name for name in (f"7.{now_ns - 100 * 10**9}", f"8.{now_ns}", "notes"))
    for path in (old, new, foreign):
        path.touch()
    assert purge_expired(volume, 50, now_ns) == 1
    assert new.exists()
    purge_for_room(volume, 0)
    assert new.exists()
    purge_for_room(volume, 2**60)
    assert sorted(volume.layout.trash.iterdir()) == [foreign]
    volume.close()


def test_a_clock_that_jumps_makes_nothing_older(tmp_path: Path) -> None:
    path = tmp_path / "trash.clock"
    start_ns = 1000 * DAY_NS
    clock = TrashClock(path)
    assert clock.now_ns(start_ns, 0) == start_ns
    # Somebody sets the clock ten years ahead, for an hour.
    for minute in range(1, 61):
        assert clock.now_ns(start_ns + 3650 * DAY_NS, minute * 60) == start_ns + minute * 60 * 10**9
    # The agent starts anew while it is wrong: what it knew is in the volume.
    clock = TrashClock(path)
    known_ns = clock.now_ns(start_ns + 3650 * DAY_NS, 5)
    assert start_ns + (3600 - KEPT_EVERY_S) * 10**9 <= known_ns <= start_ns + 3600 * 10**9
    # Set back, it goes with the wall clock, and on from there.
    assert clock.now_ns(start_ns, 10) == start_ns
    assert clock.now_ns(start_ns + DAY_NS, 70) == start_ns + 60 * 10**9


def test_a_clock_that_cannot_be_read_begins_with_the_wall_clock(tmp_path: Path) -> None:
    (tmp_path / "trash.clock").write_bytes(b"\xff")
    assert TrashClock(tmp_path / "trash.clock").now_ns(DAY_NS, 7) == DAY_NS
