"""The journal of a mount: what is found of it after its process, or its machine, has died at any moment."""

import os
from pathlib import Path

import pytest

from cluster.errors import Malformed
from cluster.journal import BYTES_MAX, COPIES, FULL_BYTES, HEADER, DeadJournal, Journal, dead_journals, journal_owner, records_in
from cluster.messages import Expected, Record, Unlink

OWNER = journal_owner("lab", "s1")
RECORDS = [Record(Unlink(1, b"name %d" % number, 5), [Expected(7, number)]) for number in range(5)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def journal(tmp_path: Path, folder: Path) -> Journal:
    made = Journal(OWNER, 12, str(tmp_path), folder)
    for number, record in enumerate(RECORDS, 1):
        made.append(number, record)
    return made


def _dead(tmp_path: Path, folder: Path) -> list[DeadJournal]:
    return list(dead_journals(OWNER, str(tmp_path), folder))


def test_the_journal_of_a_living_mount_is_nobody_s_else(tmp_path: Path, folder: Path, journal: Journal) -> None:
    assert _dead(tmp_path, folder) == []
    journal.close(empty=False)
    (dead,) = _dead(tmp_path, folder)
    assert (dead.session, dead.read()) == (12, (list(enumerate(RECORDS, 1)), 0))
    assert _dead(tmp_path, folder) == []  # who has found it has it alone
    dead.close()
    (again,) = _dead(tmp_path, folder)
    again.remove()
    again.close()
    assert _dead(tmp_path, folder) == []


def test_one_that_was_sent_is_empty(tmp_path: Path, folder: Path, journal: Journal) -> None:
    journal.all_sent()
    journal.append(6, RECORDS[0])
    journal.close(empty=False)
    (dead,) = _dead(tmp_path, folder)
    assert dead.read() == ([(6, RECORDS[0])], 0)
    dead.close()


def test_it_is_full_long_before_it_could_not_be_read_any_more(journal: Journal) -> None:
    big = Record(Unlink(1, b"n" * 255, 5), [Expected(7, 1)])
    number = len(RECORDS)
    while not journal.is_full:
        number += 1
        journal.append(number, big)
    assert FULL_BYTES <= journal.path.stat().st_size < BYTES_MAX / 2
    journal.all_sent()
    assert not journal.is_full


def test_an_orderly_end_leaves_nothing(tmp_path: Path, folder: Path, journal: Journal) -> None:
    journal.keep_copy(list(enumerate(RECORDS, 1)))
    journal.close(empty=True)
    assert list(folder.iterdir()) == list((tmp_path / COPIES).iterdir()) == []


def test_what_is_sent_after_the_end_touches_no_other_file(tmp_path: Path, folder: Path, journal: Journal) -> None:
    journal.close(empty=False)
    with open(tmp_path / "other", "wb") as other:  # gets the number that the journal had
        other.write(b"x" * 1000)
        other.flush()
        journal.all_sent()
        with pytest.raises(OSError, match="Bad file descriptor"):
            journal.append(6, RECORDS[0])
    assert (tmp_path / "other").stat().st_size == 1000
    (dead,) = _dead(tmp_path, folder)
    assert len(dead.read()[0]) == len(RECORDS)
    dead.close()


def test_cut_anywhere_it_is_a_prefix(journal: Journal) -> None:
    content = journal.path.read_bytes()
    whole = list(enumerate(RECORDS, 1))
    seen = set()
    for end in range(len(HEADER), len(content) + 1):
        records, rest = records_in(content[:end])
        assert records == whole[: len(records)]
        assert (rest == 0) == (records_in(content[: end - rest])[0] == records and end - rest == end)
        seen.add(len(records))
    assert seen == set(range(len(whole) + 1))


def test_an_altered_byte_hides_what_comes_after_it(journal: Journal) -> None:
    content = journal.path.read_bytes()
    whole = list(enumerate(RECORDS, 1))
    for at in range(len(HEADER), len(content)):
        altered = bytearray(content)
        altered[at] ^= 0x41
        records, rest = records_in(bytes(altered))
        assert len(records) < len(whole)
        assert records == whole[: len(records)]
        assert rest > 0


@pytest.mark.parametrize("content", [b"", b"godwit journal 2\n", os.urandom(40)], ids=["empty", "another version", "noise"])
def test_another_file_is_no_journal(content: bytes) -> None:
    with pytest.raises(Malformed):
        records_in(content)


def test_after_a_reboot_the_copy_is_found(tmp_path: Path, folder: Path, journal: Journal) -> None:
    journal.keep_copy(list(enumerate(RECORDS, 1))[2:])
    journal.path.unlink()  # as `/run` loses it
    (dead,) = _dead(tmp_path, folder)
    assert dead.read() == (list(enumerate(RECORDS, 1))[2:], 0)
    dead.remove()
    assert _dead(tmp_path, folder) == []


def test_copy_and_journal_are_read_as_one(tmp_path: Path, folder: Path, journal: Journal) -> None:
    journal.keep_copy(list(enumerate(RECORDS, 1))[:3])
    journal.close(empty=False)
    (dead,) = _dead(tmp_path, folder)
    assert dead.read() == (list(enumerate(RECORDS, 1)), 0)
    dead.close()


def test_one_that_was_killed_at_once_has_nothing(tmp_path: Path, folder: Path) -> None:
    folder.mkdir()
    (folder / f"{OWNER}:99").touch()
    (folder / "lab:s10:3").touch()
    (dead,) = _dead(tmp_path, folder)
    assert (dead.session, dead.read()) == (99, ([], 0))
    dead.close()


def test_only_a_file_is_read(tmp_path: Path, folder: Path) -> None:
    for place in (folder, tmp_path / COPIES):
        place.mkdir()
    os.mkfifo(folder / f"{OWNER}:1")
    os.mkfifo(tmp_path / COPIES / f"{OWNER}:2")
    (tmp_path / COPIES / f"{OWNER}:3").symlink_to("/etc/passwd")
    (tmp_path / COPIES / f"{OWNER}:4").mkdir()
    found = _dead(tmp_path, folder)
    assert [dead.session for dead in found] == [1, 2, 3, 4]
    for dead in found:
        with pytest.raises(OSError, match=r"not a file|symbolic links"):
            dead.read()
        assert f"{OWNER}:{dead.session}" in dead.where
        dead.close()
