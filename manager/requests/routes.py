"""The table of routes: for each request its handler, how it is answered, and who may ask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Any, Protocol

from cluster.messages import (
    AcceptContent,
    AddServer,
    Apply,
    AskCatalog,
    AskConflict,
    AskHearing,
    AskLeases,
    AskOffice,
    AwaitCopies,
    AwaitLocks,
    BeginCommit,
    ChangeMigration,
    ClaimTasks,
    Close,
    DrainServer,
    ExtendClaims,
    FindStrays,
    ForgetForsaken,
    GetAttr,
    GetParent,
    GetPolicy,
    GetServer,
    GetSpace,
    GetStatus,
    GetWhere,
    GetXattr,
    GiveBack,
    Heartbeat,
    Hello,
    Join,
    KeepForsaken,
    ListBelowPolicy,
    ListForsaken,
    ListHeld,
    ListLeases,
    ListLocks,
    ListMigrations,
    ListMoves,
    ListPolicies,
    ListReplicas,
    ListTasks,
    ListUnsettled,
    ListVolumes,
    ListXattr,
    Locate,
    Lookup,
    LoseServer,
    LoseVolume,
    ManagerRequest,
    NameForsaken,
    Open,
    Ping,
    PlanMigration,
    ReadDir,
    ReadLink,
    RecallDone,
    RegisterVolumes,
    RemoveServer,
    RemoveVolume,
    ReportDamage,
    ReportTasks,
    Restamp,
    RetryTasks,
    SetLock,
    SetPolicy,
    StartMigration,
    StepDown,
    Sync,
    TakeInodes,
    Unlock,
    WatchRecalls,
)
from manager.requests import (
    agents,
    checking,
    conflicts,
    damage,
    dry_run,
    hello,
    join,
    leases,
    locks,
    lost_servers,
    lost_volumes,
    migrations,
    mutations,
    opens,
    reads,
    servers,
    shortfalls,
    status,
)
from manager.term import Term


class Dispatch(Enum):
    """How a request is answered, and so what its handler is given."""

    CANDIDATE = auto()
    """(candidate, request) → reply: at once, by any candidate, in office or not."""
    ENTRY = auto()
    """async (term, request) → reply: before there is a session."""
    AT_ONCE = auto()
    """(term, session, request) → reply: without waiting for anything, in the order in which it was asked."""
    READ = auto()
    """(connection, term, request) → reply: from what is committed; at once where the database can be read without waiting."""
    AWAITED = auto()
    """async (term, session, request) → reply: in transactions of the handler's own."""
    STREAM = auto()
    """async (term, session, check, send) → last reply: sends others before."""


class Who(StrEnum):
    """Who asks. For one with a session, the value is the session's role."""

    MOUNT = "mount"
    AGENT = "agent"
    ADMIN = "cli"
    """A command that somebody types."""
    CANDIDATE = "candidate"
    """The candidate of another server. It has no session: what it is, only a certificate could say."""
    NEWCOMER = "newcomer"
    """A machine with a join token, which is no server yet."""


MOUNT, AGENT, ADMIN, CANDIDATE, NEWCOMER = (frozenset({who}) for who in Who)
ALL = MOUNT | AGENT | ADMIN  # that can have a session


@dataclass(frozen=True)
class Route:
    """A row of the table."""

    handler: Callable[..., Any]  # what it is given depends on `dispatch`
    dispatch: Dispatch  # how it is answered
    who: frozenset[Who]  # may ask; enforced as far as a session says what it is
    first: Callable[..., Any] | None = None  # tried before, in the event loop; returns None if it would have to wait
    grants: bool = False  # the answer may bring a grant to cache
    lists: bool = False  # the answer has as many rows as fit
    unasked: bool = False  # a mount asks it by itself, also when nobody uses it


class Candidate(Protocol):
    """Who may be in office: `term` is None when not."""

    term: Term | None

    def describe_manager(self) -> str:
        """Who holds the office, as far as this candidate knows."""

    def answer(self, request: Any) -> Any:
        """The reply to what every candidate is asked, or, while it has no term, to `Join`."""


def _ask_candidate(candidate: Candidate, request: Any) -> Any:
    return candidate.answer(request)


ROUTES: dict[type[ManagerRequest[Any]], Route] = {
    Ping: Route(_ask_candidate, Dispatch.CANDIDATE, ALL | CANDIDATE),
    AskHearing: Route(_ask_candidate, Dispatch.CANDIDATE, CANDIDATE),
    AskCatalog: Route(_ask_candidate, Dispatch.CANDIDATE, CANDIDATE),
    AskOffice: Route(_ask_candidate, Dispatch.CANDIDATE, ADMIN),
    Hello: Route(hello.introduce, Dispatch.ENTRY, ALL),
    Join: Route(join.join, Dispatch.ENTRY, NEWCOMER),
    RecallDone: Route(leases.recall_done, Dispatch.AT_ONCE, MOUNT, unasked=True),
    GiveBack: Route(leases.give_back, Dispatch.AT_ONCE, MOUNT),
    SetLock: Route(locks.set_lock, Dispatch.AT_ONCE, MOUNT),
    Unlock: Route(locks.unlock, Dispatch.AT_ONCE, MOUNT),
    Lookup: Route(reads.lookup, Dispatch.READ, MOUNT | ADMIN, grants=True),
    GetAttr: Route(reads.get_attr, Dispatch.READ, MOUNT | AGENT, grants=True),
    BeginCommit: Route(reads.begin_commit, Dispatch.READ, AGENT),
    GetParent: Route(reads.get_parent, Dispatch.READ, MOUNT),
    ReadDir: Route(reads.read_dir, Dispatch.READ, MOUNT, grants=True, lists=True),
    ReadLink: Route(reads.read_link, Dispatch.READ, MOUNT | ADMIN),
    GetXattr: Route(reads.get_xattr_value, Dispatch.READ, MOUNT),
    ListXattr: Route(reads.list_xattr_names, Dispatch.READ, MOUNT),
    GetSpace: Route(reads.get_space, Dispatch.READ, MOUNT),
    ListVolumes: Route(reads.list_volumes, Dispatch.READ, ALL),
    Locate: Route(reads.locate, Dispatch.READ, MOUNT | AGENT),
    Heartbeat: Route(status.heartbeat, Dispatch.AWAITED, ALL, unasked=True),
    Sync: Route(mutations.sync, Dispatch.AWAITED, MOUNT),
    Apply: Route(opens.apply, Dispatch.AWAITED, ALL, first=opens.apply_at_once),
    TakeInodes: Route(opens.take_inodes, Dispatch.AWAITED, MOUNT),
    Open: Route(opens.open_inode, Dispatch.AWAITED, MOUNT),
    Close: Route(opens.close, Dispatch.AWAITED, MOUNT),
    AwaitCopies: Route(opens.await_copies, Dispatch.AWAITED, MOUNT),
    AskLeases: Route(leases.ask_leases, Dispatch.AWAITED, MOUNT | AGENT, unasked=True),
    ListLeases: Route(leases.list_leases, Dispatch.AWAITED, ADMIN, lists=True),
    AwaitLocks: Route(locks.await_locks, Dispatch.AWAITED, MOUNT, unasked=True),
    AskConflict: Route(locks.ask_conflict, Dispatch.AWAITED, MOUNT),
    ListLocks: Route(locks.list_locks, Dispatch.AWAITED, ADMIN, lists=True),
    RegisterVolumes: Route(agents.register_volumes, Dispatch.AWAITED, AGENT),
    ClaimTasks: Route(agents.claim, Dispatch.AWAITED, AGENT),
    ReportTasks: Route(agents.report, Dispatch.AWAITED, AGENT),
    ExtendClaims: Route(agents.extend_claims, Dispatch.AWAITED, AGENT),
    ListUnsettled: Route(agents.list_unsettled, Dispatch.AWAITED, AGENT),
    FindStrays: Route(agents.find_strays, Dispatch.AWAITED, AGENT),
    ListForsaken: Route(conflicts.list_abandoned, Dispatch.AWAITED, AGENT),
    KeepForsaken: Route(conflicts.keep_abandoned, Dispatch.AWAITED, AGENT),
    NameForsaken: Route(conflicts.name_abandoned, Dispatch.AWAITED, AGENT),
    ForgetForsaken: Route(conflicts.forget_abandoned, Dispatch.AWAITED, AGENT),
    ListReplicas: Route(checking.list_replicas, Dispatch.AWAITED, AGENT),
    ListHeld: Route(damage.list_held, Dispatch.AWAITED, AGENT),
    ReportDamage: Route(damage.report_damage, Dispatch.AWAITED, AGENT),
    Restamp: Route(damage.restamp, Dispatch.AWAITED, AGENT),
    AcceptContent: Route(damage.accept_content, Dispatch.AWAITED, ADMIN),
    ListBelowPolicy: Route(shortfalls.list_below_policy, Dispatch.AWAITED, ADMIN),
    GetStatus: Route(status.get_status, Dispatch.AWAITED, ADMIN, lists=True),
    ListTasks: Route(status.list_tasks, Dispatch.AWAITED, ADMIN, lists=True),
    RetryTasks: Route(status.retry, Dispatch.AWAITED, ADMIN),
    GetPolicy: Route(status.get_policy, Dispatch.AWAITED, ADMIN),
    SetPolicy: Route(status.set_policy, Dispatch.AWAITED, ADMIN),
    ListPolicies: Route(status.list_policies, Dispatch.AWAITED, ADMIN, lists=True),
    GetWhere: Route(status.get_where, Dispatch.AWAITED, ADMIN, lists=True),
    StartMigration: Route(migrations.start_migration, Dispatch.AWAITED, ADMIN),
    DrainServer: Route(migrations.drain_server, Dispatch.AWAITED, ADMIN),
    PlanMigration: Route(dry_run.plan_migration, Dispatch.AWAITED, ADMIN),
    ListMigrations: Route(migrations.list_migrations, Dispatch.AWAITED, ADMIN, lists=True),
    ChangeMigration: Route(migrations.change_migration, Dispatch.AWAITED, ADMIN),
    ListMoves: Route(migrations.list_moves, Dispatch.AWAITED, ADMIN, lists=True),
    StepDown: Route(status.step_down, Dispatch.AWAITED, ADMIN),
    GetServer: Route(servers.get_server, Dispatch.AWAITED, ADMIN),
    RemoveServer: Route(servers.remove_server, Dispatch.AWAITED, ADMIN),
    LoseServer: Route(lost_servers.lose_server, Dispatch.AWAITED, ADMIN),
    LoseVolume: Route(lost_volumes.lose_volume, Dispatch.AWAITED, ADMIN),
    RemoveVolume: Route(lost_volumes.remove_volume, Dispatch.AWAITED, ADMIN),
    AddServer: Route(servers.add_server, Dispatch.AWAITED, ADMIN),
    WatchRecalls: Route(leases.watch_recalls, Dispatch.STREAM, MOUNT, unasked=True),
}
