"""The rules of the trash."""

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from agent.trash import deleted_ns, discard_objects, purge, space_is_short, to_purge
from agent.volumes import LocalVolume, open_volume
from cluster.clock import file_time_ns

GIB = 1024**3


def volume_at(path: Path) -> LocalVolume:
    volume = open_volume(path, "test", "s1")
    volume.number = 1
    return volume


def test_space_is_short_below_a_twentieth_or_a_gigabyte() -> None:
    assert space_is_short(10 * GIB, GIB // 2 - 1)
    assert not space_is_short(10 * GIB, GIB // 2)
    assert space_is_short(10_000 * GIB, GIB - 1)
    assert not space_is_short(10_000 * GIB, GIB)


@given(st.text(max_size=30))
def test_only_names_of_ours_have_a_time(name: str) -> None:
    when = deleted_ns(name)
    if when is not None:
        ino, _, _ = name.partition(".")
        assert int(ino) >= 0
        assert when >= 0


@given(
    ages=st.lists(st.integers(min_value=-100, max_value=1000), max_size=20),
    keep_s=st.integers(min_value=0, max_value=500),
    short=st.booleans(),
)
def test_what_is_due_goes_and_what_is_foreign_stays(ages: list[int], keep_s: int, short: bool) -> None:
    now_s = 10_000
    names = {f"{number}.{(now_s - age) * 10**9}": age for number, age in enumerate(ages)}
    gone = set(to_purge([*names, "notes.txt", "5", ".", "7.x"], now_s * 10**9, keep_s, short=short))
    assert gone == {name for name, age in names.items() if short or age >= keep_s}


def test_discarding_the_same_number_again_and_again_loses_nothing(tmp_path: Path) -> None:
    volume = volume_at(tmp_path / "v")
    for content in (b"1", b"2", b"3"):
        descriptor = volume.layout.create_object(7)
        os.write(descriptor, content)
        os.close(descriptor)
        assert discard_objects(volume, [7, 8]) == [True, False]
    assert sorted(path.read_bytes() for path in volume.layout.trash.iterdir()) == [b"1", b"2", b"3"]
    volume.close()


def test_purging(tmp_path: Path) -> None:
    volume = volume_at(tmp_path / "v")
    old = volume.layout.trash / f"7.{file_time_ns() - 100 * 10**9}"
    new = volume.layout.trash / f"8.{file_time_ns()}"
    foreign = volume.layout.trash / "notes"
    for path in (old, new, foreign):
        path.touch()
    if not space_is_short(*volume.space()):
        assert purge(volume, keep_s=50) == 1
        assert new.exists()
    purge(volume, keep_s=50, everything=True)
    assert sorted(volume.layout.trash.iterdir()) == [foreign]
    volume.close()
