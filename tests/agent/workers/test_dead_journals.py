"""The journals of dead mounts: whatever is found of them, the manager gets what is whole, once and in order."""

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from agent.workers.dead_journals import RECORDS_LOST, RECORDS_MAX, RECORDS_MAX_BYTES, DeadJournals, in_parts
from cluster.config import AgentConfig, ManagerConfig, MountConfig, ServerConfig
from cluster.counters import counters
from cluster.errors import GodwitError, Refused, Unavailable
from cluster.journal import COPIES, HEADER, Journal, journal_owner, records_in
from cluster.messages import ApplyRecords, Create, LostRecord, Record, RecordsApplied, SetXattr, Unlink
from cluster.rpc.session import ManagerSession
from tests.agent.network import Network, put_object

pytestmark = pytest.mark.deadline(60)

ROOT = Path(__file__).resolve().parents[3]
OWNER = journal_owner("test", "s1")
RECORDS = [Record(Unlink(1, b"name %d" % number, 5)) for number in range(1, 6)]
WHOLE = list(enumerate(RECORDS, 1))


class FakeManager:
    """What the agent's session is to this worker: it applies each record once and in order, as docs/held-directories.md says."""

    def __init__(self) -> None:
        self.asked: list[ApplyRecords] = []
        self.applied: dict[int, list[Record]] = {}
        self.skipped: dict[int, int] = {}  # by session: up to where its mount had sent
        self.refuse: Callable[[ApplyRecords], GodwitError | None] = lambda _request: None
        self.lost: list[LostRecord] = []
        self.going = trio.Event()  # answers nothing before
        self.going.set()

    async def call(self, request: Any, *, timeout_s: float) -> RecordsApplied:
        assert timeout_s > 0
        assert isinstance(request, ApplyRecords)
        self.asked.append(request)
        await self.going.wait()
        refusal = self.refuse(request)
        if refusal is not None:
            raise refusal
        applied = self.applied.setdefault(request.session, [])
        last = self.skipped.get(request.session, 0) + len(applied)
        applied += [record for sequence, record in enumerate(request.records, request.first) if sequence > last]
        return RecordsApplied(max(last, request.first + len(request.records) - 1), lost=self.lost)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run"


def worker(manager: FakeManager, folder: Path) -> DeadJournals:
    config = ServerConfig(
        cluster="test",
        server="s1",
        managers=["127.0.0.1:1"],
        manager=ManagerConfig(listen="127.0.0.1:1", database="sqlite://"),
        agent=AgentConfig(listen="127.0.0.1:2", volumes=[]),
        mount=MountConfig(mountpoint="/mnt/nowhere"),
        state=str(folder.parent),
    )
    return DeadJournals(config, cast(ManagerSession, manager), folder)


def journal(folder: Path, session: int, records: Iterable[tuple[int, Record]] = WHOLE) -> Journal:
    """That of a mount that lives, as long as it is not closed."""
    made = Journal(OWNER, session, str(folder.parent), folder)
    for sequence, record in records:
        made.append(sequence, record)
    return made


def die(folder: Path, session: int, records: Iterable[tuple[int, Record]] = WHOLE) -> Path:
    made = journal(folder, session, records)
    made.close(empty=False)
    return made.path


async def test_all_is_sent_and_the_file_goes_after_the_answer(folder: Path) -> None:
    manager = FakeManager()
    path = die(folder, 12)
    assert await worker(manager, folder).send() == 1
    assert manager.asked == [ApplyRecords(12, 1, RECORDS, durable=True, more=False, final=True)]
    assert not path.exists()
    assert await worker(manager, folder).send() == 0


async def test_an_empty_one_says_that_nothing_follows(folder: Path) -> None:
    manager = FakeManager()
    die(folder, 12, [])
    assert await worker(manager, folder).send() == 1
    assert manager.asked == [ApplyRecords(12, 1, [], durable=True, final=True)]
    assert list(folder.iterdir()) == []


async def test_what_a_living_mount_writes_is_its_own(folder: Path) -> None:
    manager = FakeManager()
    alive = journal(folder, 12)
    other = die(folder, 13)
    other.rename(folder / "test:s10:13")
    dead = worker(manager, folder)
    assert await dead.send() == 0
    alive.close(empty=False)
    assert await dead.send() == 1
    assert [request.session for request in manager.asked] == [12]
    assert (folder / "test:s10:13").exists()


async def test_the_copy_on_the_disk_is_sent_first_and_goes_too(folder: Path) -> None:
    manager = FakeManager()
    manager.skipped = {12: 2}
    made = journal(folder, 12, [])
    made.keep_copy(WHOLE[2:4])
    # What the manager has got in between is in neither.
    later = [(sequence, RECORDS[0]) for sequence in (7, 8)]
    for sequence, record in later:
        made.append(sequence, record)
    made.close(empty=False)
    assert await worker(manager, folder).send() == 1
    assert [(request.first, len(request.records), request.more, request.final) for request in manager.asked] == [
        (3, 2, True, False),
        (7, 2, False, True),
    ]
    assert list(folder.iterdir()) == list((folder.parent / COPIES).iterdir()) == []


async def test_many_are_sent_in_parts(folder: Path) -> None:
    manager = FakeManager()
    many = [Record(Unlink(1, b"%d" % number, 5)) for number in range(2 * RECORDS_MAX + 1)]
    die(folder, 12, enumerate(many, 1))
    assert await worker(manager, folder).send() == 1
    assert manager.applied[12] == many
    assert [len(request.records) for request in manager.asked] == [RECORDS_MAX, RECORDS_MAX, 1]
    assert [(request.more, request.durable, request.final) for request in manager.asked] == [
        (True, False, False),
        (True, False, False),
        (False, True, True),
    ]


def test_large_ones_are_few_in_a_message() -> None:
    large = [(number, Record(SetXattr(1, b"user.x", b"x" * 60_000, 0, 5))) for number in range(1, 100)]
    parts = list(in_parts(large))
    assert [record for part in parts for record in part] == large
    assert {len(part) for part in parts[:-1]} == {RECORDS_MAX_BYTES // 60_060}


async def test_cut_at_any_byte_what_is_whole_is_sent_and_the_rest_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = die(folder, 12)
    content = path.read_bytes()
    counts = set()
    for end in range(len(content) + 1):
        caplog.clear()
        manager = FakeManager()
        path.write_bytes(content[:end])
        dead = worker(manager, folder)
        told = await dead.send()
        if 0 < end < len(HEADER):
            # Not one byte of a record can be there.
            assert (told, len(dead.alarms), path.read_bytes()) == (0, 1, content[:end])
            continue
        sent = manager.applied[12]
        assert (told, sent, path.exists()) == (1, RECORDS[: len(sent)], False)
        assert manager.asked[-1].final
        rest = records_in(content[:end])[1] if end else 0
        assert (f"{rest} bytes at the end" in caplog.text) == (rest > 0)
        counts.add(len(sent))
    assert counts == set(range(len(RECORDS) + 1))


async def test_an_altered_byte_hides_only_what_comes_after_it(folder: Path) -> None:
    path = die(folder, 12)
    content = path.read_bytes()
    for at in range(len(HEADER), len(content)):
        manager = FakeManager()
        altered = bytearray(content)
        altered[at] ^= 0xFF
        path.write_bytes(altered)
        assert await worker(manager, folder).send() == 1
        sent = manager.applied[12]
        assert sent == RECORDS[: len(sent)]
        assert len(sent) < len(RECORDS)


async def test_one_of_another_version_is_left_and_holds_up_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    manager = FakeManager()
    path = die(folder, 11)
    strange = path.read_bytes().replace(HEADER, b"godwit journal 2\n")
    path.write_bytes(strange)
    die(folder, 12)
    dead = worker(manager, folder)
    assert [await dead.send(), await dead.send()] == [1, 0]
    assert [request.session for request in manager.asked] == [12]
    assert path.read_bytes() == strange
    assert list(dead.alarms) == [11]
    assert caplog.text.count("cannot be read") == 1, "it is said once"
    assert str(path) in caplog.text
    path.unlink()
    await dead.send()
    assert dead.alarms == {}


@pytest.mark.parametrize("error", [Refused("no such session"), GodwitError("unexpected")])
async def test_one_that_the_manager_refuses_is_kept_for_people(
    folder: Path, caplog: pytest.LogCaptureFixture, error: GodwitError
) -> None:
    manager = FakeManager()
    manager.refuse = lambda request: error if request.session == 11 and request.records else None
    path = die(folder, 11)
    die(folder, 12)
    dead = worker(manager, folder)
    # It was asked: parts of it may have been applied.
    assert [await dead.send(), await dead.send()] == [2, 0]
    assert [request.session for request in manager.asked] == [11, 12]
    assert path.exists()
    assert "5 changes" in dead.alarms[11]
    assert str(error) in dead.alarms[11]
    assert caplog.text.count(str(error)) == 1
    manager.refuse = lambda _request: None
    assert await worker(manager, folder).send() == 1, "the next agent asks again"
    assert manager.applied[11] == RECORDS
    assert not path.exists()


async def test_an_empty_one_that_is_refused_is_no_loss(folder: Path) -> None:
    manager = FakeManager()
    manager.refuse = lambda _request: Refused("no such session")
    path = die(folder, 11, [])
    dead = worker(manager, folder)
    assert await dead.send() == 1
    assert not path.exists()
    assert dead.alarms == {}


async def test_a_catalog_that_stays_behind_is_not_believed(folder: Path) -> None:
    class Forgetful(FakeManager):
        async def call(self, request: Any, *, timeout_s: float) -> RecordsApplied:
            await super().call(request, timeout_s=timeout_s)
            return RecordsApplied(3)

    path = die(folder, 12)
    dead = worker(Forgetful(), folder)
    await dead.send()
    assert path.exists()
    assert "number 3 of 5" in dead.alarms[12]


async def test_without_a_manager_it_is_kept_and_sent_later_from_its_beginning(folder: Path) -> None:
    manager = FakeManager()
    many = [Record(Unlink(1, b"%d" % number, 5)) for number in range(RECORDS_MAX + 10)]
    path = die(folder, 12, enumerate(many, 1))
    manager.refuse = lambda request: Unavailable("no manager") if request.first > 1 else None
    dead = worker(manager, folder)
    for _ in range(2):
        with pytest.raises(Unavailable):
            await dead.send()
        assert path.exists()
    assert dead.alarms == {}
    manager.refuse = lambda _request: None
    assert await dead.send() == 1
    assert manager.applied[12] == many, "each once"
    assert not path.exists()


async def test_two_agents_take_turns(folder: Path) -> None:
    """An agent that is told to stop may still be sending while the next one starts."""
    manager = FakeManager()
    path = die(folder, 12)
    manager.going = trio.Event()
    first, second = worker(manager, folder), worker(manager, folder)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.send)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert len(manager.asked) == 1
        assert await second.send() == 0
        nursery.cancel_scope.cancel()
    assert path.exists(), "the answer has not come"
    manager.going.set()
    assert await second.send() == 1
    assert len(manager.asked) == 2
    assert manager.applied[12] == RECORDS
    assert not path.exists()


async def test_whoever_asks_meanwhile_waits_until_it_is_sent(folder: Path) -> None:
    manager = FakeManager()
    die(folder, 12)
    manager.going = trio.Event()
    dead = worker(manager, folder)
    order: list[str] = []

    async def ask() -> None:
        await dead.send()
        order.append("asked")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dead.send)
        await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked(0.05)
        order.append("answered")
        manager.going.set()
    assert order == ["answered", "asked"]
    assert len(manager.asked) == 1


async def test_each_lost_change_is_a_line_in_the_log(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    manager = FakeManager()
    manager.lost = [
        LostRecord(2, errno.ENOENT, "the name is another's", b""),
        LostRecord(4, errno.EEXIST, "two\nlines", b"name 4 (s1)"),
        LostRecord(99, errno.EIO, "not ours"),
    ]
    path = die(folder, 12)
    before = counters.cell(RECORDS_LOST).value
    sender = worker(manager, folder)
    assert sender.problems == []
    with caplog.at_level(logging.ERROR):
        await sender.send()
    (problem,) = sender.problems
    assert problem.startswith("3 changes of mounts that had died were lost")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert all("\n" not in line for line in lines)
    assert "name 2" in lines[0]
    assert "the name is another's" in lines[0]
    assert "kept as b'name 4 (s1)'" in lines[1]
    assert counters.cell(RECORDS_LOST).value == before + 3
    assert not path.exists()


async def test_nothing_that_lies_there_ends_or_stops_the_agent(folder: Path) -> None:
    manager = FakeManager()
    die(folder, 12)
    copies = folder.parent / COPIES
    for place in (folder, copies):
        place.mkdir(exist_ok=True)
        (place / f"{OWNER}:13").mkdir()
        os.mkfifo(place / f"{OWNER}:14")
        (place / f"{OWNER}:15").symlink_to("/etc/passwd")
        (place / f"{OWNER}:16").write_bytes(os.urandom(100))
        (place / f"{OWNER}:17").write_bytes(HEADER + b"\xff" * 1000)
        (place / f"{OWNER}:9999999999999999999").write_bytes(HEADER)
        (place / "\udcff:x").touch()
    dead = worker(manager, folder)
    for _ in range(2):
        with trio.fail_after(10):
            await dead.send()
    assert manager.applied[12] == RECORDS
    assert manager.applied[17] == []
    assert Path("/etc/passwd").exists()
    assert {14, 16} <= set(dead.alarms)


SCRIPT = """
import sys, time
from pathlib import Path
from cluster.journal import Journal
from cluster.messages import Record, Unlink
journal = Journal(sys.argv[1], 12, sys.argv[2], Path(sys.argv[3]))
for number in range(1, 6):
    journal.append(number, Record(Unlink(1, b"name %d" % number, 5)))
print("written", flush=True)
time.sleep(60)
"""


async def test_the_journal_of_a_killed_process_is_whole_and_free(folder: Path) -> None:
    manager = FakeManager()
    dead = worker(manager, folder)
    command = [sys.executable, "-c", SCRIPT, OWNER, str(folder.parent), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        assert await dead.send() == 0
        process.kill()
    assert await dead.send() == 1
    assert manager.applied[12] == RECORDS


@pytest.mark.skipif(os.geteuid() != 0, reason="journals are below /run")
async def test_what_a_journal_made_is_no_stray_and_settled_after_it(net: Network) -> None:
    # Not s1: agents of other tests look for its journals in the same place.
    server = f"j{os.getpid()}"
    config = net.config(server)
    running = await net.start_with(config)
    layout = running.layout
    for ino in (7, 8):
        put_object(layout, ino)
    await net.file(server, 9, b"dirty", dirty=True)
    await running.stop()
    made = Journal(journal_owner("test", server), 77, config.state)
    try:
        made.append(1, Record(Create(1, b"new", 7, 0o100644, 0, 0, 0, 5, net.manager.volume_of(server))))
    finally:
        made.close(empty=False)
    try:
        net.manager.strays = {7, 8}
        net.manager.stray_questions = []
        net.manager.hold_journals = True
        net.manager.unsettled.add(9)
        await net.start_with(config)
        await net.manager.wait_for(lambda: net.manager.journals, "the journal is sent")
        await net.manager.wait_for(lambda: 7 in net.manager.stray_questions, "it looks for strays")
        reports = len(net.manager.registrations)
        await net.manager.wait_for(lambda: len(net.manager.registrations) >= reports + 5, "time enough for doing it wrongly")
        assert not layout.unknown.exists() or os.listdir(layout.unknown) == []
        assert 9 in net.manager.unsettled
        net.manager.hold_journals = False
        net.manager.notify()
        await net.manager.wait_for(lambda: layout.unknown.exists() and os.listdir(layout.unknown), "the other one is set aside")
        await net.manager.wait_for(lambda: 9 not in net.manager.unsettled, "settled")
        assert [name.partition(".")[0] for name in os.listdir(layout.unknown)] == ["8"]
        assert os.path.exists(layout.object_path(7))
        assert not made.path.exists()
        assert len(net.manager.journals) == 1
    finally:
        made.path.unlink(missing_ok=True)
