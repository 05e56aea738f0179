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
    ApplyRecords,
    AskAuthority,
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
    FinishImport,
    ForgetForsaken,
    GetAttr,
    GetAuthorities,
    GetBackup,
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
    Hold,
    ImportNames,
    Join,
    KeepForsaken,
    ListBelowPolicy,
    ListCertificates,
    ListEvents,
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
    ReadBackup,
    ReadDir,
    ReadLink,
    RecallDone,
    RegisterVolumes,
    RemoveServer,
    RemoveVolume,
    RenewCertificate,
    ReportDamage,
    ReportTasks,
    Restamp,
    RetryTasks,
    RevokeServer,
    RotateAuthority,
    SetLock,
    SetPolicy,
    ShowCertificate,
    StartMigration,
    StepDown,
    Sync,
    TakeInodes,
    Unlock,
    WatchRecalls,
)
from cluster.trust.identity import Identity
from manager.requests import (
    agents,
    backups,
    certificates,
    checking,
    conflicts,
    damage,
    dry_run,
    events,
    held,
    hello,
    imports,
    join,
    leases,
    locks,
    lost_servers,
    lost_volumes,
    migrations,
    mutations,
    opens,
    reads,
    records,
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
    PROVEN = auto()
    """async (term, identity, request) → reply: before there is a session, for who the connection has proved to be."""
    AT_ONCE = auto()
    """(term, session, request) → reply: without waiting for anything, in the order in which it was asked."""
    READ = auto()
    """(connection, term, request) → reply: from what is committed; at once where the database can be read without waiting."""
    AWAITED = auto()
    """async (term, session, request) → reply: in transactions of the handler's own."""
    STREAM = auto()
    """async (term, session, check, send) → last reply: sends others before."""


class Who(StrEnum):
    """Who asks, as the certificate of the connection says: its role."""

    MOUNT = "mount"
    AGENT = "agent"
    ADMIN = "admin"
    """A command that somebody types."""
    CANDIDATE = "manager"
    """The candidate of another server. It has no session."""
    NEWCOMER = "newcomer"
    """A machine without a certificate. It may have a join token."""

    @classmethod
    def of(cls, identity: Identity | None) -> Who:
        """Who somebody is that has proved this identity."""
        return cls.NEWCOMER if identity is None else cls(identity.role.value)


MOUNT, AGENT, ADMIN, CANDIDATE, NEWCOMER = (frozenset({who}) for who in Who)
ALL = MOUNT | AGENT | ADMIN  # that can have a session


@dataclass(frozen=True)
class Route:
    """A row of the table."""

    handler: Callable[..., Any]  # what it is given depends on `dispatch`
    dispatch: Dispatch  # how it is answered
    who: frozenset[Who]  # may ask; everybody else is refused
    first: Callable[..., Any] | None = None  # tried before, in the event loop; returns None if it would have to wait
    reads: tuple[str, ...] = ()  # fields with inodes of which the answer tells: who is alone with one is asked back first
    grants: bool = False  # the answer may bring a grant to cache, and nodes: whoever is alone with one is asked back, too
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
    AskAuthority: Route(_ask_candidate, Dispatch.CANDIDATE, ALL | CANDIDATE | NEWCOMER),
    Hello: Route(hello.introduce, Dispatch.ENTRY, ALL),
    RenewCertificate: Route(certificates.renew_certificate, Dispatch.PROVEN, ALL | CANDIDATE),
    ShowCertificate: Route(certificates.show_certificate, Dispatch.PROVEN, ALL | CANDIDATE),
    Join: Route(join.join, Dispatch.ENTRY, NEWCOMER),
    RecallDone: Route(leases.recall_done, Dispatch.AT_ONCE, MOUNT, unasked=True),
    GiveBack: Route(leases.give_back, Dispatch.AT_ONCE, MOUNT),
    SetLock: Route(locks.set_lock, Dispatch.AT_ONCE, MOUNT),
    Unlock: Route(locks.unlock, Dispatch.AT_ONCE, MOUNT),
    Lookup: Route(reads.lookup, Dispatch.READ, MOUNT | ADMIN, grants=True, reads=("parent",)),
    GetAttr: Route(reads.get_attr, Dispatch.READ, MOUNT | AGENT, grants=True, reads=("ino",)),
    BeginCommit: Route(reads.begin_commit, Dispatch.READ, AGENT),
    GetParent: Route(reads.get_parent, Dispatch.READ, MOUNT, reads=("ino",)),
    ReadDir: Route(reads.read_dir, Dispatch.READ, MOUNT | ADMIN, grants=True, lists=True, reads=("ino",)),
    ReadLink: Route(reads.read_link, Dispatch.READ, MOUNT | ADMIN, reads=("ino",)),
    GetXattr: Route(reads.get_xattr_value, Dispatch.READ, MOUNT, reads=("ino",)),
    ListXattr: Route(reads.list_xattr_names, Dispatch.READ, MOUNT, reads=("ino",)),
    GetSpace: Route(reads.get_space, Dispatch.READ, MOUNT),
    ListVolumes: Route(reads.list_volumes, Dispatch.READ, ALL),
    Locate: Route(reads.locate, Dispatch.READ, MOUNT | AGENT, reads=("ino",)),
    Heartbeat: Route(status.heartbeat, Dispatch.AWAITED, ALL, unasked=True),
    Sync: Route(mutations.sync, Dispatch.AWAITED, MOUNT),
    Apply: Route(opens.apply, Dispatch.AWAITED, MOUNT | AGENT, first=opens.apply_at_once),
    ApplyRecords: Route(records.apply_mount_records, Dispatch.AWAITED, MOUNT | AGENT, unasked=True),
    Hold: Route(held.hold, Dispatch.AWAITED, MOUNT, unasked=True),
    TakeInodes: Route(opens.take_inodes, Dispatch.AWAITED, MOUNT | ADMIN),
    Open: Route(opens.open_inode, Dispatch.AWAITED, MOUNT, reads=("ino",)),
    Close: Route(opens.close, Dispatch.AWAITED, MOUNT),
    AwaitCopies: Route(opens.await_copies, Dispatch.AWAITED, MOUNT, reads=("ino",)),
    AskLeases: Route(leases.ask_leases, Dispatch.AWAITED, MOUNT | AGENT, unasked=True, reads=("inodes",)),
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
    GetBackup: Route(backups.get_backup, Dispatch.AWAITED, AGENT),
    ReadBackup: Route(backups.read_backup, Dispatch.AWAITED, AGENT),
    ReportDamage: Route(damage.report_damage, Dispatch.AWAITED, AGENT),
    Restamp: Route(damage.restamp, Dispatch.AWAITED, AGENT),
    AcceptContent: Route(damage.accept_content, Dispatch.AWAITED, ADMIN, reads=("ino",)),
    ListBelowPolicy: Route(shortfalls.list_below_policy, Dispatch.AWAITED, ADMIN),
    ListEvents: Route(events.list_events, Dispatch.AWAITED, ADMIN, lists=True),
    GetStatus: Route(status.get_status, Dispatch.AWAITED, ADMIN, lists=True),
    ListTasks: Route(status.list_tasks, Dispatch.AWAITED, ADMIN, lists=True),
    RetryTasks: Route(status.retry, Dispatch.AWAITED, ADMIN),
    GetPolicy: Route(status.get_policy, Dispatch.AWAITED, ADMIN, reads=("ino",)),
    SetPolicy: Route(status.set_policy, Dispatch.AWAITED, ADMIN, reads=("ino",)),
    ListPolicies: Route(status.list_policies, Dispatch.AWAITED, ADMIN, lists=True),
    GetWhere: Route(status.get_where, Dispatch.AWAITED, ADMIN, lists=True, reads=("ino",)),
    StartMigration: Route(migrations.start_migration, Dispatch.AWAITED, ADMIN, reads=("inodes",)),
    DrainServer: Route(migrations.drain_server, Dispatch.AWAITED, ADMIN),
    PlanMigration: Route(dry_run.plan_migration, Dispatch.AWAITED, ADMIN, reads=("inodes",)),
    ListMigrations: Route(migrations.list_migrations, Dispatch.AWAITED, ADMIN, lists=True),
    ChangeMigration: Route(migrations.change_migration, Dispatch.AWAITED, ADMIN),
    ListMoves: Route(migrations.list_moves, Dispatch.AWAITED, ADMIN, lists=True),
    ImportNames: Route(imports.import_names, Dispatch.AWAITED, ADMIN),
    FinishImport: Route(imports.finish_import, Dispatch.AWAITED, ADMIN),
    StepDown: Route(status.step_down, Dispatch.AWAITED, ADMIN),
    GetServer: Route(servers.get_server, Dispatch.AWAITED, ADMIN),
    RemoveServer: Route(servers.remove_server, Dispatch.AWAITED, ADMIN),
    RevokeServer: Route(servers.revoke_server, Dispatch.AWAITED, ADMIN),
    LoseServer: Route(lost_servers.lose_server, Dispatch.AWAITED, ADMIN),
    LoseVolume: Route(lost_volumes.lose_volume, Dispatch.AWAITED, ADMIN),
    RemoveVolume: Route(lost_volumes.remove_volume, Dispatch.AWAITED, ADMIN),
    AddServer: Route(servers.add_server, Dispatch.AWAITED, ADMIN),
    RotateAuthority: Route(certificates.rotate_authority, Dispatch.AWAITED, ADMIN),
    GetAuthorities: Route(certificates.get_authorities, Dispatch.AWAITED, ADMIN),
    ListCertificates: Route(certificates.list_certificates, Dispatch.AWAITED, ADMIN, lists=True),
    WatchRecalls: Route(leases.watch_recalls, Dispatch.STREAM, MOUNT, unasked=True),
}
