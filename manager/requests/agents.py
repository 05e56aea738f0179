"""What agents ask: volumes, queues, and what they find on their disks."""

import errno
from functools import partial

import msgspec
import trio
from sqlalchemy import Connection, bindparam, literal_column, select, union_all

from cluster.clock import file_time_ns, monotonic_s
from cluster.counters import SLOW_S, counters, histogram
from cluster.errors import ProtocolError, refused
from cluster.events import EventKind
from cluster.messages import (
    ROOT_INO,
    ClaimTasks,
    Done,
    ExtendClaims,
    FindStrays,
    Inodes,
    ListUnsettled,
    Registered,
    RegisterVolumes,
    ReportTasks,
    Task,
    TaskOperation,
    TaskReport,
    Tasks,
    VolumeState,
)
from cluster.rpc.wire import parse_address
from manager.catalog.events import Again, note
from manager.catalog.schema import abandoned, inodes, ranges, replicas, tasks
from manager.catalog.store import Transaction
from manager.changes.claims import Claimed, claim_tasks, waiting_since
from manager.changes.namespace import queue_scan
from manager.changes.tasks import SOURCE_DOWN_BACKOFF_S, Ended, report_tasks
from manager.memory.members import identify, store_volumes
from manager.memory.sessions import Session
from manager.memory.state import QUEUE
from manager.rules.limits import TEXT_MAX, check_count, check_number, clean_text
from manager.term import Term

LAG_S = histogram(
    "godwit_copy_lag_seconds", "How old a change of a file was when a copy of it was made somewhere else.", bounds=SLOW_S
)

_lags = counters.histogram(LAG_S)

VOLUMES_MAX = 256  # of one server
CLAIMS_MAX = 256  # in one request, and one transaction, which others wait for
REPORTS_TOGETHER = 256  # in one transaction, likewise
WAIT_MAX_S = 60.0  # for tasks, in one request
REPORTS_MAX = 1000  # in one request
UNSETTLED_MAX = 1000  # in one answer
STRAYS_MAX = 5000  # objects in one question
UUID_MAX = 64  # characters, as in `volumes`
DEVICE_MAX = 255  # characters of a device or an address, as in `volumes`
RELEASE_MAX = 32  # characters, as in `servers`
PROBLEMS_MAX = 256  # in one report
PROBLEM_MAX = 300  # characters of one
_AGAIN = Again(60.0)  # a sweep takes many questions
_PAGE = 500  # rows or numbers in one statement

# The partial index of dirty files; the literal lets the planner see that it fits.
_UNSETTLED = (
    select(inodes.c.ino)
    .where(inodes.c.dirty == literal_column("1"), inodes.c.home_volume == bindparam("volume"), inodes.c.ino > bindparam("after"))
    .order_by(inodes.c.ino)
    .limit(_PAGE)
)
# Objects that belong there: replicas, copies under way, and what is abandoned or becomes a conflict file.
_KNOWN = union_all(
    select(replicas.c.ino).where(replicas.c.ino.in_(bindparam("page", expanding=True)), replicas.c.volume == bindparam("volume")),
    select(tasks.c.ino).where(
        tasks.c.ino.in_(bindparam("page", expanding=True)),
        tasks.c.volume == bindparam("volume"),
        tasks.c.operation == TaskOperation.COPY,
    ),
    select(abandoned.c.ino).where(
        abandoned.c.ino.in_(bindparam("page", expanding=True)), abandoned.c.volume == bindparam("volume")
    ),
    select(abandoned.c.conflict).where(abandoned.c.volume == bindparam("volume")),
)
_MADE = select(inodes.c.ino).where(inodes.c.ino.in_(bindparam("page", expanding=True)))
_RANGES = select(ranges.c.first, ranges.c.count, ranges.c.server, ranges.c.session)


async def register_volumes(term: Term, session: Session, request: RegisterVolumes) -> Registered:
    """Takes a report; only what has changed is written. A new volume makes all directories be looked at again."""
    _check_volumes(request)
    members, server = term.state.members, session.server
    # Also if nothing of it is new: the report is the server's sign of life.
    members.heard(server, monotonic_s())
    members.reported(server, [clean_text(problem, PROBLEM_MAX) for problem in request.problems])
    identified = members.is_identified(server, request.manager, request.release)
    if members.reported_disks(server, request.volumes, monotonic_s()):
        term.state.ring(server)  # there may be work for what has come back
    # In memory if nothing is worth a transaction: most reports differ only in what is free.
    numbers = members.refresh(server, request.address, request.volumes)
    if numbers is None or not identified:

        def work(tx: Transaction) -> list[int]:
            stored, new = store_volumes(tx, server, request.address, request.volumes)
            # Files that had no place for all their copies may have one now.
            if new:
                queue_scan(tx, term.state, ROOT_INO)
            tx.after(lambda: members.learn(stored))
            if not identified:
                identify(tx, server, request.manager, request.release)
                tx.after(lambda: members.identified(server, request.manager, request.release))
            return [volume.volume for volume in stored]

        # Durable: a volume's number must never be given to another one.
        numbers = await term.store.write(work, durable=True)
    member = members.member(server)
    return Registered(numbers, member.changed_ns if member is not None else 0, term.first_ino)


def _check_volumes(request: RegisterVolumes) -> None:
    check_count(len(request.volumes), VOLUMES_MAX, "volumes")
    check_count(len(request.problems), PROBLEMS_MAX, "problems")
    try:
        for address in (request.address, request.manager or request.address):
            parse_address(address)
    except ValueError as error:
        raise ProtocolError(str(error)) from error
    if len(request.manager) > DEVICE_MAX or len(request.release) > RELEASE_MAX or "\0" in request.manager + request.release:
        raise ProtocolError("malformed report of a server")
    if len({volume.uuid for volume in request.volumes}) != len(request.volumes) or len(request.address) > DEVICE_MAX:
        raise ProtocolError("malformed report of volumes")
    for volume in request.volumes:
        if not _is_valid(volume):
            raise ProtocolError(f"malformed report of volume {clean_text(volume.path)!r}")


def _is_valid(volume: VolumeState) -> bool:
    texts = ((volume.uuid, UUID_MAX), (volume.path, TEXT_MAX), (volume.device, DEVICE_MAX))
    return (
        all(0 < len(text) <= limit and "\0" not in text for text, limit in texts)
        and 0 <= volume.free_bytes < 2**62
        and 0 <= volume.total_bytes < 2**62
        and len(volume.condition) <= UUID_MAX
    )


async def claim(term: Term, session: Session, request: ClaimTasks) -> Tasks:
    """Claims waiting tasks of the sender's server. Waits for the first and those that follow it, and while mounts are busy."""
    limit = max(1, min(request.limit, CLAIMS_MAX))
    server, members = session.server, term.state.members

    def oldest(connection: Connection) -> int | None:
        return waiting_since(connection, server, members.missing(server))

    with trio.move_on_after(max(0.0, min(request.wait_s, WAIT_MAX_S))):
        while True:
            # Listening before looking: a task that is queued in between rings.
            with term.state.bells.listening((QUEUE, server)) as bell:
                oldest_ns = await term.store.read(oldest) if members.works(server) else None
                if oldest_ns is not None:
                    if not term.throttle.is_due(oldest_ns, monotonic_s()):
                        await term.throttle.give_way()
                        continue
                    # It may find nothing: another request took them, or all must wait for their sources.
                    claimed = await _claim(term, session, limit)
                    if claimed:
                        return Tasks(claimed)
                    continue
                await bell.wait()
                if monotonic_s() - session.claimed_s < term.state.bounds.at_rest_s:
                    # Tasks tend to come in bunches: one transaction claims them.
                    await trio.sleep(term.state.bounds.gather_s)
    if request.wait_s <= 0 and members.works(server):
        return Tasks(await _claim(term, session, limit))
    return Tasks([])


async def _claim(term: Term, session: Session, limit: int) -> list[Task]:
    def work(tx: Transaction) -> Claimed:
        claimed = claim_tasks(tx, term.state, session.server, limit)
        tx.after(lambda: _begin_claims(term, session, claimed))
        return claimed

    # A claim that was made is handed out even if the waiting time is over meanwhile.
    (claimed,) = await term.store.write_parts([work], durable=True)
    # The pass is made after the commit: it is of this term, and no part of what is stored.
    return [_with_pass(term, session, task) if task.operation == TaskOperation.COPY else task for task in claimed.tasks]


def _with_pass(term: Term, session: Session, task: Task) -> Task:
    source = term.state.members.get(task.sources[0].volume) if task.sources else None
    if source is None:
        return task
    leases, now = term.state.leases, monotonic_s()
    token = leases.pass_for(session.server, task.ino, task.version, task.home_epoch, now, checked_by=source.server)
    return msgspec.structs.replace(task, token=token)


def _begin_claims(term: Term, session: Session, claimed: Claimed) -> None:
    now = session.claimed_s = monotonic_s()
    for task in claimed.tasks:
        term.claims.begin(task.task, task.claim, session.server, task.version, now)
    for number in claimed.postponed:
        term.claims.defer(number, now + SOURCE_DOWN_BACKOFF_S)


async def report(term: Term, session: Session, request: ReportTasks) -> Done:
    """Ends attempts."""
    check_count(len(request.reports), REPORTS_MAX, "reports")
    for item in request.reports:
        check_number(item.task, "task")
        check_number(item.version, "version")

    def tried(item: TaskReport) -> int:
        # What was tried is only in memory: the row may ask for a newer version by now.
        claim = term.claims.get(item.task)
        return claim.version if claim is not None and claim.number == item.claim else 0

    def work(tx: Transaction, reports: list[TaskReport]) -> None:
        for ended in report_tasks(tx, term.state, session.server, reports, tried, term.config.manager.max_attempts):
            # Only for reports that were heeded: a claim that is in force now must keep its deadline.
            tx.after(partial(_end_claim, term, ended))

    starts = range(0, len(request.reports), REPORTS_TOGETHER)
    await term.store.write_parts(partial(work, reports=request.reports[start : start + REPORTS_TOGETHER]) for start in starts)
    return Done()


def _end_claim(term: Term, ended: Ended) -> None:
    term.claims.end(ended.task)
    if ended.delay_s is not None:
        term.claims.defer(ended.task, monotonic_s() + ended.delay_s)
    if ended.copy_wanted_ns:
        # Another manager's clock may have queued it.
        _lags.observe(max(0.0, (file_time_ns() - ended.copy_wanted_ns) / 1e9))


async def extend_claims(term: Term, session: Session, request: ExtendClaims) -> Done:
    """The claims of these tasks run anew."""
    check_count(len(request.tasks), REPORTS_MAX, "tasks")
    term.claims.extend(request.tasks, session.server, monotonic_s())
    return Done()


async def list_unsettled(term: Term, session: Session, request: ListUnsettled) -> Inodes:
    """Dirty inodes without a writer. None during the grace time: a mount that has not presented itself may be writing them."""
    state = term.state
    limit = max(1, min(request.limit, UNSETTLED_MAX))
    found: list[int] = []
    if state.in_grace:
        return Inodes(found)
    for volume in state.members.of_server(session.server):
        after = 0
        while len(found) < limit:
            page = await term.store.read(partial(_unsettled, volume=volume, after=after))
            # A writer commits what it wrote; only what nobody commits is left to the agent.
            found += [ino for ino in page if not state.is_written(ino) and ino not in state.reaping]
            if len(page) < _PAGE:
                break
            after = page[-1]
    return Inodes(found[:limit])


def _unsettled(connection: Connection, volume: int, after: int) -> list[int]:
    return list(connection.execute(_UNSETTLED, {"volume": volume, "after": after}).scalars())


async def find_strays(term: Term, session: Session, request: FindStrays) -> Inodes:
    """Objects that nobody knows. None during the grace time, and none that a mount may have made just now.

    An inode that exists was not made just now: its home has a row since then. What a mount of another server has made here may be
    in its journal, which is sent when that server is there again. The journals of its own server the agent has sent itself.
    """
    check_count(len(request.inodes), STRAYS_MAX, "inodes")
    check_number(request.set_aside, "objects")
    check_count(request.set_aside, STRAYS_MAX, "objects")
    volume = term.state.members.get(request.volume)
    if volume is None or volume.server != session.server:
        raise refused(errno.ENOENT, f"volume {request.volume} of {session.server}")
    if request.set_aside:
        await term.store.write(partial(_note_set_aside, server=session.server, request=request))
    if term.state.in_grace or not request.inodes:
        return Inodes([])

    # Copied before the thread begins, which must not walk what the event loop changes.
    live = term.state.sessions.numbers()
    members = term.state.members.servers()
    others = {name for name, member in members.items() if member.meaning.belongs and name != session.server}

    def ask(connection: Connection) -> list[int]:
        made: set[int] = set()
        known: set[int] = set()
        for start in range(0, len(request.inodes), _PAGE):
            page = request.inodes[start : start + _PAGE]
            # In this order: one that is made in between is known, since its row comes with it.
            made |= set(connection.execute(_MADE, {"page": page}).scalars())
            known |= set(connection.execute(_KNOWN, {"page": page, "volume": request.volume}).scalars())
        rows = connection.execute(_RANGES)
        kept = [range(row.first, row.first + row.count) for row in rows if row.session in live or row.server in others]
        known |= {ino for ino in request.inodes if ino not in made and any(ino in numbers for numbers in kept)}
        return [ino for ino in request.inodes if ino not in known]

    return Inodes(await term.store.read_slowly(ask))


def _note_set_aside(tx: Transaction, *, server: str, request: FindStrays) -> None:
    kind, volume = EventKind.OBJECTS_SET_ASIDE, request.volume
    note(tx.connection, kind, server=server, volume=volume, count=request.set_aside, again=_AGAIN)
