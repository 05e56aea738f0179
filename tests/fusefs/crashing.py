"""A mount's own rules, records, journal and `fsync`, a real manager on SQLite, and machines that lose power: in one process.

What is in the place of other things: connections (requests go straight to the manager), the kernel, and the disk with the home's
objects. `run` performs one sequence (`tests.fusefs.sequences`), lets somebody die, and returns what another mount sees then.
"""

import itertools
import os
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import trio

from agent.workers.dead_journals import DeadJournals
from cluster.counters import Counters
from cluster.errors import NotManager, Refused
from cluster.journal import COPIES, Journal, journal_owner, records_in
from cluster.leases import margin_s
from cluster.messages import (
    ROOT_INO,
    Applied,
    Apply,
    ApplyRecords,
    Commit,
    Content,
    Create,
    Link,
    NamesPolicy,
    Node,
    Open,
    OpenInode,
    Operation,
    ReadDir,
    RecordsApplied,
    Rename,
    Request,
    Rmdir,
    SetPolicy,
    Sync,
    Unlink,
)
from cluster.rpc.session import ManagerSession
from fusefs.caching.alone import Alone
from fusefs.caching.cache import Caching
from fusefs.caching.changes import Changes
from fusefs.caching.held import NO_NAMES, HeldDirectories, Names
from fusefs.caching.recalls import Recalls
from fusefs.caching.records import COPY_S, Records
from fusefs.content.objects import Object
from fusefs.content.open_files import OpenFiles
from fusefs.content.open_inode import OpenInode as OpenState
from fusefs.content.opening import Opener
from fusefs.content.syncing import Syncer
from fusefs.names.directories import Directories
from fusefs.names.open_directories import Opens as OpenDirectories
from tests.fusefs.delegating import delegations
from tests.fusefs.sequences import FIRST, Change, Kind, Sequence, State, Then, after, files_of, states_of
from tests.fusefs.test_recalls import Kernel, Opens
from tests.manager.office import NOW, Office, Peer, config, in_office
from tests.support.clocks import skip

TIMEOUT_S = 10.0
ACCESS_S = 5.0  # longer than it takes until what is unsent is copied to the disk
REQUESTS_MAX = 1000  # of one mount, to send records or make them durable
COPIED_S = 10.0  # by which a thread has copied what is unsent, in real time
OWNER = journal_owner("test", "s1")  # as `config` names both
_sessions = itertools.count(500_000)


class Dies(Enum):
    """Who dies at the end of a sequence."""

    PROCESS = "the mount's process"
    PROCESS_AND_AGENT = "the mount's process, and its agent, for longer than a lease lasts"
    MACHINE = "the mount's machine"
    BOTH = "the machine of mount and manager"

    @property
    def loses_power(self) -> bool:
        return self in (Dies.MACHINE, Dies.BOTH)


class Death(NamedTuple):
    """A manager that dies while the mount lives: at which of its requests; 0: after the last one."""

    request: int  # of those that send records, or make them durable
    answers: bool  # the request was applied, and its answer is lost; else the manager has not seen it
    loses_power: bool  # its machine dies, not only its process


class HomeDisk:
    """The disk with the objects of files: how often each was written, and how much of that is durable."""

    def __init__(self) -> None:
        self.written: dict[int, int] = {}
        self.durable: dict[int, int] = {}

    def lose_power(self) -> None:
        """Nothing is left but what had to be."""
        self.written = dict(self.durable)


class HomeObject:
    """As `fusefs.content.objects.Object`: one file's object."""

    is_remote = False

    def __init__(self, disk: HomeDisk, ino: int) -> None:
        self._disk, self._ino = disk, ino

    async def sync(self, *, data_only: bool) -> None:
        await trio.lowlevel.checkpoint()
        self._disk.durable[self._ino] = self._disk.written[self._ino]

    def close(self) -> None:
        return


class AtHome:
    """As `Access` and `Homes`: all homes are here, and stay."""

    def __init__(self, disk: HomeDisk) -> None:
        self._disk = disk

    async def at_home(self, state: OpenState, act: Callable[[Object], Awaitable[Any]]) -> Any:
        assert state.home is not None
        return await act(state.home)

    async def reading(self, _state: OpenState, act: Callable[[], Awaitable[Any]]) -> Any:
        return await act()

    async def is_here(self, _state: OpenState) -> bool:
        return True

    async def reach_in_force(self, state: OpenState) -> HomeObject:
        return HomeObject(self._disk, state.ino)


class CatalogDisk:
    """SQLite's files as a power failure leaves them: as they were when the last sync that has ended began.

    SQLite itself syncs what it folds into the database; nothing is folded in here after the first sync of a process.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.durable: tuple[bytes, bytes] | None = None  # the database, and its log
        self._sync = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self._fdatasync)

    def _fdatasync(self, descriptor: int) -> None:
        log = os.readlink(f"/proc/self/fd/{descriptor}")
        found = Path(log.removesuffix("-wal")).read_bytes(), Path(log).read_bytes()
        self._sync(descriptor)
        self.durable = found

    def restore(self, database: Path) -> None:
        assert self.durable is not None
        database.write_bytes(self.durable[0])
        database.with_name(f"{database.name}-wal").write_bytes(self.durable[1])


class Network:
    """A manager in office, and the next one; the agent of s1, and a mount of s2 that looks."""

    def __init__(self, folder: Path, nursery: trio.Nursery, disk: CatalogDisk | None = None) -> None:
        self.folder = folder
        self.disk = disk
        self._nursery = nursery
        self._database = folder / "catalog.db"
        self._made = itertools.count(1)
        self._stop, self._stopped = trio.Event(), trio.Event()
        self.office: Office
        self.agent: Peer
        self.reader: Peer

    async def start(self) -> None:
        self._stop, self._stopped = trio.Event(), trio.Event()
        self.office = await self._nursery.start(self._serve, self._stop, self._stopped)
        self.agent = await self.office.peer("s1", "agent")
        await self.agent.volume("u1")
        self.reader = await self.office.peer("s2")
        await self.office.admin.ask(SetPolicy(ROOT_INO, 2, 1, names=NamesPolicy.HELD))

    async def _serve(self, stop: trio.Event, stopped: trio.Event, task_status: trio.TaskStatus[Office]) -> None:
        async with in_office(f"sqlite:///{self._database}", access_s=ACCESS_S) as office:
            task_status.started(office)
            await stop.wait()
        stopped.set()

    async def stop(self) -> None:
        self._stop.set()
        await self._stopped.wait()

    async def manager_dies(self, *, loses_power: bool) -> None:
        """The next one takes the office, on what is left of the catalog."""
        await self.stop()
        if loses_power:
            assert self.disk is not None
            old, self._database = self._database, self.folder / f"catalog-{next(self._made)}.db"
            self.disk.restore(self._database)
            for path in old.parent.glob(f"{old.name}*"):
                path.unlink()
        await self.start()

    async def end_grace(self) -> None:
        """As the manager does when all mounts that its predecessor knew have introduced themselves."""
        term = self.office.term
        assert term is not None
        if self.office.state.in_grace:
            assert not term.awaited
            await term.end_grace()

    def sweep(self) -> None:
        """As the manager does every second: without it each of thousands of dead mounts would leave its leases."""
        assert self.office.term is not None
        self.office.term.expire_leases(trio.current_time())

    async def look(self, top: int) -> dict[str, Node]:
        """All that there is below a directory, as another mount sees it."""
        found: dict[str, Node] = {}
        await self._look_into(top, "", found)
        for path, node in found.items():
            assert (await self.reader.attr(node.ino)).nlink == node.nlink > 0, f"{path} names nothing"
        return found

    async def _look_into(self, directory: int, before: str, found: dict[str, Node]) -> None:
        for entry in (await self.reader.ask(ReadDir(directory, 0, 100))).entries:
            path = before + entry.name.decode()
            found[path] = entry.node
            if stat.S_ISDIR(entry.node.mode):
                await self._look_into(entry.node.ino, f"{path}/", found)


@asynccontextmanager
async def running(folder: Path, disk: CatalogDisk | None = None) -> AsyncIterator[Network]:
    """A network with its catalog in *folder*."""
    folder.mkdir(exist_ok=True)
    async with trio.open_nursery() as nursery:
        network = Network(folder, nursery, disk)
        await network.start()
        yield network
        await network.stop()


class Session:
    """What a mount's session is to it: who has no answer asks the next manager (`cluster.rpc.session`)."""

    def __init__(self, network: Network, welcomed: Callable[[Office], Awaitable[None]]) -> None:
        self.session = next(_sessions)
        self.peer = Peer(network.office, "s1", "mount", self.session)
        self.changes = 0
        self.requests = 0  # with records, or to make them durable, since `death` was set
        self.death: Death | None = None
        self.is_volatile = False  # the manager has changed a name itself, which nobody has made durable since
        self.lost_power_while_volatile = False
        self._network, self._welcomed = network, welcomed
        self._before: Callable[[Request[Any], float], Awaitable[None]] | None = None
        self._there = trio.Event()

    def sends_before(self, before: Callable[[Request[Any], float], Awaitable[None]]) -> None:
        self._before = before

    def changed(self) -> None:
        self.changes += 1

    async def connect(self) -> None:
        self.peer.connection = self.peer.connected(self._network.office)
        await self._welcomed(self._network.office)
        self._there.set()

    def disconnect(self) -> None:
        """Nobody answers any more."""
        self._there = trio.Event()

    async def lose_manager(self) -> None:
        death, self.death = self.death, None
        assert death is not None
        self.lost_power_while_volatile = death.loses_power and self.is_volatile
        self.disconnect()
        await self._network.manager_dies(loses_power=death.loses_power)
        await self.connect()

    async def call(self, request: Any, *, timeout_s: float) -> Any:
        if self._before is not None:
            await self._before(request, timeout_s)
        while True:
            await self._there.wait()
            number = 0
            if isinstance(request, (ApplyRecords, Sync)):
                number = self.requests = self.requests + 1
                assert number < REQUESTS_MAX, "it is sent for ever"
            if number and self._dies(number, answers=False):
                await self.lose_manager()
                continue
            try:
                reply = await self.peer.ask(request)
            except NotManager:
                await trio.lowlevel.checkpoint()
                continue
            if not (number and self._dies(number, answers=True)):
                self._note(request)
                return reply
            await self.lose_manager()

    def _note(self, request: Any) -> None:
        if isinstance(request, Apply):
            self.is_volatile |= not all(isinstance(operation, Commit) for operation in request.operations)
        elif isinstance(request, (ApplyRecords, Sync)):
            self.is_volatile = False

    def _dies(self, number: int, *, answers: bool) -> bool:
        return self.death is not None and (self.death.request, self.death.answers) == (number, answers)

    async def apply_for_tokens(self, operations: list[Operation], *, timeout_s: float) -> Applied:
        number = next(self.peer.ids)
        applied: Applied = await self.call(Apply(number, number, operations), timeout_s=timeout_s)
        if not all(isinstance(operation, Commit) for operation in operations):
            self.changed()
        return applied


class Mount:
    """A mount of s1 with the files of one sequence. Its tasks run in *nursery*."""

    def __init__(self, network: Network, nursery: trio.Nursery) -> None:
        self.network, self.nursery = network, nursery
        self.disk = HomeDisk()
        self.run, self.state = network.folder / "run", network.folder / "state"
        self.state.mkdir(exist_ok=True)
        self.session = Session(network, self._introduce)
        session = cast(ManagerSession, self.session)
        self.caching = Caching()
        alone = Alone(self.caching)
        self.journal = Journal(OWNER, self.session.session, str(self.state), self.run)
        self.records = Records(session, self.journal, self._applied, TIMEOUT_S, Counters())
        self.session.sends_before(self.records.before)
        self.held = HeldDirectories(session, self.caching, alone, self.records, TIMEOUT_S)
        recalls = Recalls(session, self.held, self.caching, Kernel(), Opens(), nursery, TIMEOUT_S)
        self.obey = recalls.obey
        self.changes = Changes(session, self.held, self.caching, recalls, TIMEOUT_S)
        nothing: Any = None
        home: Any = AtHome(self.disk)
        self._open_files = OpenFiles(lambda _ino: None, delegations(self.caching))
        opens = OpenDirectories(self._open_files, self._let_go)
        self._directories = Directories(session, self.held, cast(Opener, self), opens, self.caching, nothing, TIMEOUT_S)
        self._handles: dict[int, int] = {}  # of directories, by inode
        self._syncer = Syncer(session, self.held, cast(Any, self), home, home, nothing, TIMEOUT_S)
        self.files: dict[int, OpenState] = {}  # that are open
        self.inodes: dict[int, int] = {}  # by those of `State`
        self.top = 0
        self._due: list[OpenState] = []
        self._sequences, self._times = itertools.count(1), itertools.count(NOW)

    async def open(self, ino: int, flags: int) -> int:
        """As `Opener`, for directories: the manager need not know of it."""
        await trio.lowlevel.checkpoint()
        return self._open_files.open_registered(Node(ino, stat.S_IFDIR, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0))

    async def _let_go(self, _inodes: Iterable[int]) -> None:
        raise AssertionError("no directory is removed that is open")

    def commit_soon(self, state: OpenState) -> None:
        """As `Settler`: after the `fsync`."""
        self._due.append(state)

    def _applied(self, reply: RecordsApplied, asked_s: float) -> None:
        self.held.applied(reply, asked_s)

    async def _introduce(self, office: Office) -> None:
        unsent = self.records.present()
        opens = [
            OpenInode(state.ino, state.is_registered_to_write)
            for state in self.files.values()
            if not self.records.is_unknown(state.ino)
        ]
        welcome = await self.session.peer.hello(opens, self.caching.leased(), unsent=unsent)
        self.caching.welcomed(welcome.term)
        self.records.welcomed()
        self.nursery.start_soon(self._watch)
        session = office.state.sessions.get(self.session.session)
        assert session is not None
        while not session.watches:
            await trio.lowlevel.checkpoint()

    async def _watch(self) -> None:
        async def obey(recall: Any) -> None:
            await trio.lowlevel.checkpoint()
            self.obey(recall)

        try:
            await self.session.peer.watch(obey)
        except NotManager:
            return

    # ------------------------------------------------------------------------------------------------------ before it

    async def begin(self) -> None:
        """Makes `FIRST`, durably, and is alone in its directories. One file is open for writing, the other one for reading."""
        await self.session.connect()
        await self.network.end_grace()
        self.nursery.start_soon(self.records.run)
        self.nursery.start_soon(self.records.copy_loop)
        numbers = [await self.session.peer.new_ino() for _ in range(FIRST.newest + 1)]
        self.top, made = numbers[0], numbers[1:]
        self.inodes = dict(zip(range(1, FIRST.newest + 1), made, strict=True))
        operations: list[Operation] = [self._create(ROOT_INO, b"%d" % self.top, self.top, stat.S_IFDIR | 0o755)]
        for path, ino in FIRST.names.items():
            folder, _, name = path.rpartition("/")
            kind = stat.S_IFDIR if ino in FIRST.directories else stat.S_IFREG
            parent = self.inodes[FIRST.names[folder]] if folder else self.top
            operations.append(self._create(parent, name.encode(), self.inodes[ino], kind | 0o755))
        files = [self.inodes[ino] for ino in sorted(set(FIRST.names.values()) - FIRST.directories)]
        operations += [Commit(ino, 1, 1, Content(1, 8, NOW, NOW), final=True) for ino in files]
        await self.session.apply_for_tokens(operations, timeout_s=TIMEOUT_S)
        for ino, write in zip(files, (True, False), strict=True):
            self.disk.written[ino] = self.disk.durable[ino] = 1
            await self._open(ino, write=write)
        await self.sync_directory(self.inodes[FIRST.names["A"]])
        for ino in sorted(FIRST.directories):
            directory = (self.inodes[ino],)
            await self.held.prepare(directory)
            assert await self.held.prepare(directory), "it is let alone in a directory of its own"

    def _create(self, parent: int, name: bytes, ino: int, mode: int) -> Create:
        return Create(parent, name, ino, mode, 0, 0, 0, next(self._times), int(stat.S_ISREG(mode)))

    async def _open(self, ino: int, *, write: bool) -> OpenState:
        opened = await self.session.call(Open(ino, write, next(self._sequences)), timeout_s=TIMEOUT_S)
        state = self.files.setdefault(ino, OpenState(opened.node))
        state.registered(opened, to_write=write)
        state.reached(cast(Object, HomeObject(self.disk, ino)))
        return state

    def copied(self) -> int:
        """How many records are on the disk."""
        path = self.state / COPIES / self.journal.path.name
        return len(records_in(path.read_bytes())[0]) if path.exists() else 0

    # ----------------------------------------------------------------------------------------------------- a sequence

    async def perform(self, sequence: Sequence, start: int = 0) -> None:
        """Performs the steps from *start* on."""
        state, files = states_of(sequence)[start], files_of(sequence)
        for number, step in enumerate(sequence[start:], start):
            file = files[number]
            await self._change(state, step.change)
            state = after(state, step.change)
            match step.then:
                case Then.SENT:
                    await self.records.flush()
                case Then.DIRECTORY:
                    await self.sync_directory(self.inodes[state.names[(step.change.to or step.change.path).rpartition("/")[0]]])
                case Then.FILE:
                    await self.sync_file(file)
                case Then.FIRST_FILE:
                    await self.sync_file(next(ino for ino in files[:number] if ino))

    async def _change(self, state: State, change: Change) -> None:
        path, to = (self._place(state, name) for name in (change.path, change.to))
        now = next(self._times)
        ino = self.inodes.get(state.names.get(change.path, 0), 0)
        match change.kind:
            case Kind.CREATE | Kind.MKDIR:
                await self._make(state, *path, is_directory=change.kind is Kind.MKDIR)
            case Kind.LINK:
                await self._apply(Link(ino, *to, now), {to: ino})
            case Kind.RENAME:
                is_same = state.names[change.path] == state.names.get(change.to)
                await self._apply(Rename(*path, *to, 0, now), NO_NAMES if is_same else {path: 0, to: ino}, path[0], to[0])
            case Kind.UNLINK:
                await self._apply(Unlink(*path, now), {path: 0})
            case Kind.RMDIR:
                await self._apply(Rmdir(*path, now), {path: 0})
            case Kind.WRITE:
                await self._write(ino)

    @contextmanager
    def excusing(self) -> Iterator[None]:
        """Inside, a step may be refused that another one made possible which a manager has lost with its machine."""
        try:
            yield
        except Refused:
            if not self.session.lost_power_while_volatile:
                raise

    def _place(self, state: State, path: str) -> tuple[int, bytes]:
        folder, _, name = path.rpartition("/")
        return self.inodes.get(state.names.get(folder, 0), 0), name.encode()

    async def _apply(self, operation: Operation, names: Names, *locked: int) -> None:
        await self.changes.apply(operation, *(locked or {parent for parent, _ in names}), names=names)

    async def _make(self, state: State, parent: int, name: bytes, *, is_directory: bool) -> None:
        ino = self.inodes[state.newest + 1] = await self.session.peer.new_ino()
        kind = stat.S_IFDIR | 0o755 if is_directory else stat.S_IFREG | 0o644
        made = await self.changes.make(self._create(parent, name, ino, kind))
        if not is_directory:
            self.disk.written[ino] = self.disk.durable[ino] = 0
            self.files[ino] = OpenState(made.made)
            self.files[ino].created(cast(Object, HomeObject(self.disk, ino)))
            self.files[ino].policy_known(1)

    async def _write(self, ino: int) -> None:
        state = self.files[ino]
        if not state.is_registered_to_write:
            await self._open(ino, write=True)
        state.write_begins()
        self.disk.written[ino] += 1

    async def sync_directory(self, ino: int) -> None:
        """`fsync` of a directory."""
        if ino not in self._handles:
            self._handles[ino] = await self._directories.opendir(ino)
        await self._directories.sync(self._handles[ino])

    async def sync_file(self, file: int) -> None:
        await self._syncer.sync(self.files[self.inodes[file]], data_only=False)
        for state in self._due:
            await self._commit(state)
        self._due.clear()

    async def _commit(self, state: OpenState) -> None:
        """As a home does after an `fsync`."""
        if not state.has_changed():
            return
        state.commit_begins()
        asked_s, version = trio.current_time(), state.node.version + 1
        content = Content(self.disk.written[state.ino], 8, NOW + version, NOW + version)
        commit = Commit(state.ino, state.node.home_epoch, version, content, final=False)
        try:
            (node,) = (await self.session.apply_for_tokens([commit], timeout_s=TIMEOUT_S)).nodes
        except Refused:
            state.commit_failed()  # it has gone
            return
        assert node is not None
        state.committed(node, final=False)
        self.held.committed(node, asked_s)


class Seen(NamedTuple):
    """What is left of a sequence."""

    names: dict[str, Node]
    written: dict[int, int]  # by inode: how often what is on the disk was written
    inodes: dict[int, int]  # of the catalog, by those of `State`
    recorded: int  # changes that the mount has made by itself
    lost: int  # records that the manager could not apply
    is_excused: bool  # a change that the manager had made itself was not durable when its machine died (docs/catalog.md)


class Agent:
    """The session of s1's agent."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def call(self, request: Request[Any], *, timeout_s: float) -> Any:
        return await self._network.agent.ask(request)


async def send_dead_journals(network: Network, mount: Mount) -> None:
    """What the agent of s1 does every second."""
    dead = DeadJournals(config("sqlite://", state=str(mount.state)), cast(ManagerSession, Agent(network)), mount.run)
    await dead.send()
    assert dead.problems == []


async def run(network: Network, sequence: Sequence, dies: Dies) -> Seen:
    """Performs a sequence, and lets *dies* die right after its last answer."""
    async with trio.open_nursery() as nursery:
        mount = Mount(network, nursery)
        await mount.begin()
        await mount.perform(sequence)
        nursery.cancel_scope.cancel()
    await bury(network, mount, dies)
    return await what_is_left(network, mount)


async def bury(network: Network, mount: Mount, dies: Dies) -> None:
    """The mount has ended in the middle; what goes with it goes, and its server goes on with what is left."""
    mount.journal.close(empty=False)  # as when its process ends: the lock goes, and the file stays
    if dies.loses_power:
        mount.journal.path.unlink()  # with `/run`
        mount.disk.lose_power()
    if dies is Dies.BOTH:
        await network.manager_dies(loses_power=True)
    if dies is Dies.PROCESS_AND_AGENT:
        await skip(ACCESS_S + margin_s(ACCESS_S))
    await send_dead_journals(network, mount)
    if dies.loses_power:
        await network.office.peer("s1")  # the mount of the machine that is back: it has nothing to tell
        await skip(ACCESS_S + margin_s(ACCESS_S))  # and what the dead one held ends by itself
        network.sweep()


async def run_with_managers(network: Network, sequence: Sequence, death: Death) -> Seen | None:
    """Performs a sequence while the manager dies; None if the mount asks it less often than that."""
    async with trio.open_nursery() as nursery:
        mount = Mount(network, nursery)
        await mount.begin()
        mount.session.requests, mount.session.death = 0, death
        with mount.excusing():
            await mount.perform(sequence)
        if death.request == 0:
            await mount.session.lose_manager()
        await mount.records.flush()
        happened = mount.session.death is None
        seen = await what_is_left(network, mount) if happened else None
        nursery.cancel_scope.cancel()
    mount.journal.close(empty=False)
    await send_dead_journals(network, mount)
    return seen


async def run_cut_off(network: Network, sequence: Sequence, steps: int) -> Seen:
    """Performs some *steps*, and finds no manager until they are copied to the disk. With a manager again, performs the rest;
    then its machine dies.
    """
    async with trio.open_nursery() as nursery:
        mount = Mount(network, nursery)
        await mount.begin()
        await mount.perform(sequence[:steps])
        if unsent := len(mount.records):
            mount.session.disconnect()
            await skip(2 * COPY_S)
            late_s = time.monotonic() + COPIED_S
            while mount.copied() < unsent:
                assert time.monotonic() < late_s, "nothing was copied"
                await trio.lowlevel.checkpoint()
        if steps < len(sequence):
            await mount.session.connect()
            await mount.records.flush()
            await mount.perform(sequence, steps)
        nursery.cancel_scope.cancel()
    await bury(network, mount, Dies.MACHINE)
    return await what_is_left(network, mount)


async def what_is_left(network: Network, mount: Mount) -> Seen:
    lost = mount.records.lost + int(network.office.state.holds.lost.value)
    excused = mount.session.lost_power_while_volatile
    return Seen(await network.look(mount.top), mount.disk.written, mount.inodes, mount.records.recorded, lost, excused)
