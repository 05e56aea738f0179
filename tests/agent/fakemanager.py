"""A manager in memory, for the agent's tests: the requests that agents send, with the contract's rules for them.

No database, no policies: tests put tasks into the queue themselves and look at the reports.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any

import msgspec
import trio

from cluster.catalog_point import CatalogPoint
from cluster.decoding import Decode, from_msgpack
from cluster.errors import Fenced, NotManager, Refused, refused
from cluster.leases import LeaseKeys
from cluster.messages import (
    MANAGER_UNION,
    Applied,
    Apply,
    ApplyRecords,
    AskLeases,
    BackupInfo,
    BackupPart,
    Beat,
    BeginCommit,
    Begun,
    ClaimTasks,
    Commit,
    Content,
    Create,
    Damage,
    Described,
    Done,
    ExtendClaims,
    FindStrays,
    ForgetForsaken,
    ForsakenObject,
    ForsakenObjects,
    GetAttr,
    GetBackup,
    Heartbeat,
    HeldObject,
    HeldObjects,
    Hello,
    InodeRange,
    Inodes,
    KeepForsaken,
    LeaseTokens,
    ListForsaken,
    ListHeld,
    ListReplicas,
    ListUnsettled,
    ListVolumes,
    Locate,
    ManagerRequest,
    NameForsaken,
    NewName,
    Node,
    Opened,
    Operation,
    Ping,
    Pong,
    ReadBackup,
    RecordsApplied,
    Registered,
    RegisterVolumes,
    Replica,
    ReplicaState,
    ReplicaStates,
    ReportDamage,
    ReportTasks,
    Restamp,
    SetAttr,
    Stamp,
    Task,
    TaskReport,
    Tasks,
    Volume,
    Volumes,
    Welcome,
)
from cluster.rpc.serving import Handler, SendReply, listen
from tests.agent.tokens import SECRET, token_for
from tests.support.trust import credentials


def regular_file(ino: int, home_volume: int, **changes: Any) -> Node:
    """A new file's node: dirty, never committed."""
    node = Node(ino, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, dirty=True, home_volume=home_volume, home_epoch=1)
    return msgspec.structs.replace(node, **changes)


CONFLICTS = 10_000  # what is abandoned of an inode becomes the one with so much a higher number


class FakeManager:
    """State is public: tests set it up and look at it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.nodes: dict[int, Node] = {}
        self.unsettled: set[int] = set()
        self.orderly: set[int] = set()  # inodes whose last writer has closed them
        self.written: set[int] = set()  # inodes that somebody has open for writing
        self.strays: set[int] = set()
        self.abandoned: dict[int, ForsakenObject] = {}
        self.named: dict[int, tuple[int, Content]] = {}
        self.hold_abandoned: type | None = None
        self.volumes: dict[str, Volume] = {}
        self.tasks: dict[str, list[Task]] = {}
        self.claims: dict[int, Task] = {}
        self.extended: list[int] = []
        self.reports: list[TaskReport] = []
        self.commits: list[Commit] = []
        self.journals: list[ApplyRecords] = []  # what was sent of dead mounts
        self.hold_journals = False
        self.stray_questions: list[int] = []
        self.hold_reports = False
        self.hold_stray_answers = False
        self.fence = ""
        self.checksums: dict[int, bytes] = {}  # of contents of homes, as far as the catalog knows them
        self.located: dict[int, list[Replica]] = {}  # what `Locate` answers
        self.damage: dict[int, str] = {}  # what was reported
        self.taking_over = False  # what is answered to such reports
        self.term = 1
        self.session_timeout_s = 0.0
        self.access_s = 60.0  # of the tokens that are asked for
        self.addresses: dict[str, str] = {}
        self.down: set[str] = set()
        self.left: set[str] = set()
        self.hellos = 0
        self.candidates: list[str] = []
        self.registrations: list[RegisterVolumes] = []
        self.settled_ns = 1
        self.first_ino = 1
        self.backup: tuple[str, int, bytes] = ("", 0, b"")  # the newest one: name, size, digest
        self.backup_content = b""
        self.point = CatalogPoint("fake", 1, 1)
        self.replicas: dict[int, dict[int, ReplicaState]] = {}
        self.listed: list[ListReplicas] = []
        self.hold_listing: Callable[[ListReplicas], bool] = lambda _request: False
        self.held_answers: list[ListHeld] = []
        self.hold_held = False
        self.on_list: Callable[[ListReplicas], None] = lambda _request: None
        self._changed = trio.Event()
        self._claim_numbers = itertools.count(1)
        self._task_numbers = itertools.count(1)
        self._replies: dict[tuple[int, int], Applied] = {}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        decoder: Decode[Any] = from_msgpack(MANAGER_UNION)
        await listen(
            self.address, decoder, lambda _peer: _Connection(self), credentials("s1", "manager"), task_status=task_status
        )

    def pass_for(self, ino: int, volume: int, holder: str) -> bytes:
        """A token of *holder* for the agent that has the volume."""
        (server,) = (known.server for known in self.volumes.values() if known.volume == volume)
        return token_for(ino, term=self.term, access_s=self.access_s, server=server, holder=holder)

    def notify(self) -> None:
        """Wakes who waits for something to change."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait_for(self, condition: Callable[[], Any], what: str = "", timeout_s: float = 20) -> None:
        """Returns when *condition* holds; fails the test after *timeout_s*."""
        with trio.move_on_after(timeout_s):
            while not condition():
                with trio.move_on_after(0.02):
                    await self._changed.wait()
            return
        raise AssertionError(f"did not come true within {timeout_s} s: {what or condition}")

    def put(self, server: str, operation: str, ino: int, volume: int, version: int = 0, **fields: Any) -> int:
        """Puts a task into a server's queue and returns its number."""
        number = next(self._task_numbers)
        self.tasks.setdefault(server, []).append(Task(number, 0, operation, ino, volume, version, home_epoch=1, **fields))
        self.notify()
        return number

    async def report_of(self, task: int, timeout_s: float = 20) -> TaskReport:
        """The report of a task's last attempt, when it has come."""
        await self.wait_for(lambda: any(report.task == task for report in self.reports), f"report of task {task}", timeout_s)
        return next(report for report in reversed(self.reports) if report.task == task)

    def volume_of(self, server: str, index: int = 0) -> int:
        """The number of a server's volume."""
        return [volume.volume for volume in self.volumes.values() if volume.server == server][index]

    # ------------------------------------------------------------------------------------------------ requests

    def register(self, server: str, request: RegisterVolumes) -> Registered:
        numbers = []
        for state in request.volumes:
            known = self.volumes.get(state.uuid)
            number = known.volume if known else len(self.volumes) + 1
            self.volumes[state.uuid] = Volume(
                number, server, state.path, request.address, state.total_bytes, state.free_bytes, state.device, True, state.uuid
            )
            numbers.append(number)
        self.registrations.append(request)
        self.notify()
        return Registered(numbers, self.settled_ns, self.first_ino)

    def as_listed(self, volume: Volume) -> Volume:
        address = self.addresses.get(volume.server, volume.address)
        return msgspec.structs.replace(volume, up=volume.server not in self.down, address=address)

    async def claim(self, server: str, request: ClaimTasks) -> Tasks:
        with trio.move_on_after(request.wait_s):
            while not self.tasks.get(server):
                await self._changed.wait()
        queue = self.tasks.get(server, [])
        taken, self.tasks[server] = queue[: request.limit], queue[request.limit :]
        taken = [msgspec.structs.replace(task, claim=next(self._claim_numbers)) for task in taken]
        self.claims |= {task.task: task for task in taken}
        return Tasks(taken)

    def return_claims(self, server: str) -> None:
        """What happens at the `Hello` of a new session: the old one's claims wait again."""
        returned = [task for task in self.claims.values() if self._server_of(task.volume) == server]
        for task in returned:
            del self.claims[task.task]
        self.tasks[server] = returned + self.tasks.get(server, [])

    def _server_of(self, number: int) -> str:
        return next((volume.server for volume in self.volumes.values() if volume.volume == number), "")

    async def report(self, request: ReportTasks) -> Done:
        while self.hold_reports:
            await self._changed.wait()
        for report in request.reports:
            task = self.claims.get(report.task)
            if task is not None and task.claim == report.claim:
                del self.claims[report.task]
                self.reports.append(report)
        self.notify()
        return Done()

    async def find_strays(self, request: FindStrays) -> Inodes:
        self.stray_questions += request.inodes
        self.notify()
        while self.hold_stray_answers:
            await self._changed.wait()
        return Inodes([ino for ino in request.inodes if ino in self.strays])

    async def list_replicas(self, request: ListReplicas) -> ReplicaStates:
        self.listed.append(request)
        self.on_list(request)
        while self.hold_listing(request):
            await self._changed.wait()
        found = sorted(ino for ino in self.replicas.get(request.volume, {}) if ino > request.after)[: request.limit]
        return ReplicaStates([self.replicas[request.volume][ino] for ino in found])

    def note_damage(self, request: ReportDamage) -> Damage:
        row = self.replicas[request.volume][request.ino]
        # As the real one: what was reported is of another content than the catalog means by now.
        if (row.version, row.stamp) != (request.version, request.stamp):
            return Damage(pending=False)
        changes = {"fault": request.fault, "task": "" if row.is_home else "copy", "is_home": row.is_home and not row.others}
        self.replicas[request.volume][request.ino] = msgspec.structs.replace(row, **changes)
        return Damage(pending=False)

    def _restamp_row(self, request: Restamp) -> Done:
        row = self.replicas[request.volume][request.ino]
        if (row.version, row.stamp) != (request.version, request.stamp):
            return Done()
        self.replicas[request.volume][request.ino] = msgspec.structs.replace(row, stamp=request.found, fault="")
        return Done()

    async def list_held(self, request: ListHeld) -> HeldObjects:
        """Of the files that have a row in `replicas` what that says, and the homes' objects of others that are clean."""
        answer = self._all_held(request)
        # Held up when it is known, so that it is out of date when it is sent.
        while self.hold_held:
            await self._changed.wait()
        self.held_answers.append(request)
        self.notify()
        return answer

    def _all_held(self, request: ListHeld) -> HeldObjects:
        nodes = [node for ino, node in sorted(self.nodes.items()) if ino > request.after][: request.limit]
        held = [self._held(node, request.volume) for node in nodes if node.version]
        return HeldObjects([item for item in held if item is not None], nodes[-1].ino if len(nodes) == request.limit else 0)

    def _held(self, node: Node, volume: int) -> HeldObject | None:
        ino = node.ino
        row = self.replicas.get(volume, {}).get(ino)
        if row is not None:
            is_committed = row.version == row.wanted and row.stamp is not None and not (row.dirty and row.is_home)
            return HeldObject(ino, row.version, row.stamp, row.checksum, row.fault) if row.stamp and is_committed else None
        if node.home_volume != volume or node.dirty:
            return None
        return HeldObject(ino, node.version, self.stamp(ino), self.checksums.get(ino, b""), self.damage.get(ino, ""))

    def report_damage(self, request: ReportDamage) -> Damage:
        if request.ino in self.replicas.get(request.volume, {}):
            return self.note_damage(request)
        self.damage[request.ino] = request.fault
        self.notify()
        return Damage(self.taking_over)

    def restamp(self, request: Restamp) -> Done:
        if request.ino in self.replicas.get(request.volume, {}):
            return self._restamp_row(request)
        found = request.found
        self.nodes[request.ino] = msgspec.structs.replace(
            self.node(request.ino), size=found.size, mtime_ns=found.mtime_ns, object_ctime_ns=found.ctime_ns
        )
        self.damage.pop(request.ino, None)
        self.notify()
        return Done()

    async def resolve_abandoned(self, request: KeepForsaken | NameForsaken | ForgetForsaken) -> Any:
        """One inode each; what a test holds up is neither done nor answered."""
        while self.hold_abandoned is type(request):
            await self._changed.wait()
        item = self.abandoned.get(request.ino)
        if item is None or item.volume != request.volume:
            raise refused(2, f"inode {request.ino}")
        if isinstance(request, KeepForsaken):
            self.abandoned[request.ino] = msgspec.structs.replace(item, conflict=request.ino + CONFLICTS)
            return InodeRange(request.ino + CONFLICTS, 1)
        del self.abandoned[request.ino]
        self.notify()
        if isinstance(request, ForgetForsaken):
            return Done()
        self.named[request.ino] = (item.conflict, request.content)
        return NewName(b"/kept")

    def apply(self, session: int, request: Apply) -> Applied:
        key = (session, request.request_id)
        if key not in self._replies:
            self._replies[key] = Applied([self._apply_one(operation) for operation in request.operations])
            self.notify()
        return self._replies[key]

    async def apply_records(self, request: ApplyRecords) -> RecordsApplied:
        """What a journal made is no stray any more."""
        self.journals.append(request)
        self.notify()
        while self.hold_journals:
            await self._changed.wait()
        made = {record.operation.ino for record in request.records if isinstance(record.operation, Create)}
        self.strays -= made
        return RecordsApplied(request.first + len(request.records) - 1)

    def _apply_one(self, operation: Operation) -> Node:
        if isinstance(operation, Commit):
            return self._commit(operation)
        assert isinstance(operation, SetAttr)
        node = self.node(operation.ino)
        changes = {name: value for name in ("atime_ns", "mtime_ns") if (value := getattr(operation, name)) is not None}
        node = self.nodes[node.ino] = msgspec.structs.replace(node, ctime_ns=operation.now_ns, **changes)
        return node

    def _commit(self, commit: Commit) -> Node:
        node = self.node(commit.ino)
        if commit.home_epoch != node.home_epoch:
            raise Fenced(f"home epoch is {node.home_epoch}")
        if commit.content is not None:
            if commit.version <= node.version:
                raise refused(116, "version")
            content = commit.content
            node = msgspec.structs.replace(
                node,
                version=commit.version,
                size=content.size,
                blocks=content.blocks,
                mtime_ns=content.mtime_ns,
                object_ctime_ns=content.ctime_ns,
            )
        if commit.final:
            node = msgspec.structs.replace(node, dirty=False)
            self.unsettled.discard(commit.ino)
        self.commits.append(commit)
        self.nodes[commit.ino] = node
        return node

    def node(self, ino: int) -> Node:
        if ino not in self.nodes:
            raise refused(2, f"inode {ino}")
        return self.nodes[ino]

    def stamp(self, ino: int) -> Stamp:
        """The stamp of a committed file's home object."""
        node = self.nodes[ino]
        return Stamp(node.size, node.mtime_ns, node.object_ctime_ns)


class _Connection(Handler):
    def __init__(self, manager: FakeManager) -> None:
        self._manager = manager
        self._server = ""
        self._session = 0

    def closed(self) -> None:
        return

    def at_once(self, request: ManagerRequest[Any]) -> None:
        del request

    async def handle(self, request: ManagerRequest[Any], body: bytes, send: SendReply) -> Any:
        del body, send
        manager = self._manager
        if self._server in manager.left and not isinstance(request, Hello | Ping):
            raise NotManager("the session of this connection has ended: introduce yourself again")
        match request:
            case Hello():
                manager.hellos += 1
                if request.server in manager.left:
                    raise Refused(f"{request.server} has left the network", 1)
                if request.server == manager.fence:
                    raise Fenced("a newer session has replaced this one")
                self._server, self._session = request.server, request.session
                manager.return_claims(request.server)
                welcome = Welcome(manager.term, "fake", manager.session_timeout_s, [], time.monotonic())
                key = LeaseKeys(SECRET).key_of(request.server)
                return msgspec.structs.replace(welcome, managers=manager.candidates, point=manager.point, lease_key=key)
            case Ping():
                return Pong("fake", manager.term, True, manager.address)
            case GetBackup():
                return BackupInfo(*manager.backup)
            case ReadBackup():
                return BackupPart(manager.backup_content[request.offset : request.offset + request.length])
            case Heartbeat():
                return Beat(manager.term, time.monotonic())
            case AskLeases():
                return LeaseTokens([manager.pass_for(ino, request.volume, self._server) for ino in request.inodes])
            case RegisterVolumes():
                return manager.register(self._server, request)
            case ListVolumes():
                return Volumes([manager.as_listed(volume) for volume in manager.volumes.values()])
            case ClaimTasks():
                return await manager.claim(self._server, request)
            case ExtendClaims():
                manager.extended += request.tasks
                manager.notify()
                return Done()
            case ReportTasks():
                return await manager.report(request)
            case Apply():
                return manager.apply(self._session, request)
            case ApplyRecords():
                return await manager.apply_records(request)
            case GetAttr():
                return Described(manager.node(request.ino))
            case BeginCommit():
                written, orderly = request.ino in manager.written, request.ino in manager.orderly
                return Begun(manager.node(request.ino), 0, written=written, orderly=orderly)
            case ListUnsettled():
                return Inodes(sorted(manager.unsettled)[: request.limit])
            case ListForsaken():
                return ForsakenObjects(list(manager.abandoned.values()))
            case KeepForsaken() | NameForsaken() | ForgetForsaken():
                return await manager.resolve_abandoned(request)
            case ListReplicas():
                return await manager.list_replicas(request)
            case ListHeld():
                return await manager.list_held(request)
            case ReportDamage():
                return manager.report_damage(request)
            case Restamp():
                return manager.restamp(request)
            case Locate():
                return Opened(manager.node(request.ino), manager.located.get(request.ino, []), False, 2, 0)
            case FindStrays():
                return await manager.find_strays(request)
            case _:
                raise Refused(f"the fake manager does not know {type(request).__name__}")
