"""Requests to handlers: one table, and the rules that hold for all of them.

Only the holder of the office answers, but for what every candidate is asked. A connection begins with `Hello`; its session must
still be live and must not have introduced itself again over another connection since.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

from cluster.clock import monotonic_s
from cluster.errors import GodwitError, NotManager, ProtocolError
from cluster.messages import (
    AddServer,
    Applied,
    Apply,
    AskConflict,
    AskHearing,
    AskLeases,
    AskOffice,
    AwaitCopies,
    AwaitLocks,
    Beat,
    ChangeMigration,
    ClaimTasks,
    Close,
    Done,
    DrainServer,
    ExtendClaims,
    FindStrays,
    ForgetForsaken,
    GetPolicy,
    GetServer,
    GetStatus,
    GetWhere,
    GiveBack,
    Heartbeat,
    Hello,
    Join,
    KeepForsaken,
    ListForsaken,
    ListLeases,
    ListLocks,
    ListMigrations,
    ListMoves,
    ListPolicies,
    ListTasks,
    ListUnsettled,
    LoseServer,
    NameForsaken,
    Open,
    Ping,
    PlanMigration,
    RecallDone,
    RegisterVolumes,
    RemoveServer,
    ReportTasks,
    RetryTasks,
    SetLock,
    SetPolicy,
    StartMigration,
    StepDown,
    Sync,
    TakeInodes,
    Unlock,
    WatchRecalls,
    Welcome,
)
from cluster.rpc.connection import SendReply
from manager.memory.granting import GRANTING
from manager.memory.sessions import AGENT, MOUNT, Session
from manager.requests import agents, conflicts, servers
from manager.requests import dry_run as foresight
from manager.requests import join as joining
from manager.requests import leases as leasing
from manager.requests import locks as locking
from manager.requests import lost_servers as losing
from manager.requests import migrations as orders
from manager.requests import opens as opening
from manager.requests import status as admin
from manager.requests.hello import check_hello, introduce
from manager.requests.reads import QUESTIONS
from manager.term import Term


async def _heartbeat(term: Term, session: Session, request: Heartbeat) -> Beat:
    session.counts = request.counts
    return Beat(term.number, monotonic_s())


async def _sync(term: Term, _session: Session, _request: Sync) -> Done:
    await term.store.sync()
    return Done()


HANDLERS: dict[type, Callable[[Term, Session, Any], Awaitable[Any]]] = {
    Heartbeat: _heartbeat,
    Sync: _sync,
    Apply: opening.apply,
    TakeInodes: opening.take_inodes,
    Open: opening.open_inode,
    Close: opening.close,
    AwaitCopies: opening.await_copies,
    AskLeases: leasing.ask_leases,
    ListLeases: leasing.list_leases,
    AwaitLocks: locking.await_locks,
    AskConflict: locking.ask_conflict,
    ListLocks: locking.list_locks,
    RegisterVolumes: agents.register_volumes,
    ClaimTasks: agents.claim,
    ReportTasks: agents.report,
    ExtendClaims: agents.extend_claims,
    ListUnsettled: agents.list_unsettled,
    FindStrays: agents.find_strays,
    ListForsaken: conflicts.list_forsaken,
    KeepForsaken: conflicts.keep_forsaken,
    NameForsaken: conflicts.name_forsaken,
    ForgetForsaken: conflicts.forget_forsaken,
    GetStatus: admin.get_status,
    ListTasks: admin.list_tasks,
    RetryTasks: admin.retry,
    GetPolicy: admin.get_policy,
    SetPolicy: admin.set_policy,
    ListPolicies: admin.list_policies,
    GetWhere: admin.get_where,
    StartMigration: orders.start_migration,
    DrainServer: orders.drain_server,
    PlanMigration: foresight.plan_migration,
    ListMigrations: orders.list_migrations,
    ChangeMigration: orders.change_migration,
    ListMoves: orders.list_moves,
    StepDown: admin.step_down,
    GetServer: servers.get_server,
    RemoveServer: servers.remove_server,
    LoseServer: losing.lose_server,
    AddServer: servers.add_server,
}
# Answered without waiting for anything at all: mounts that are asked for something depend on it, and locks are set and ended in
# the order in which that was asked.
IMMEDIATE: dict[type, Callable[[Term, Session, Any], Any]] = {
    RecallDone: leasing.recall_done,
    GiveBack: leasing.give_back,
    SetLock: locking.set_lock,
    Unlock: locking.unlock,
}
# What mounts ask by themselves although nobody uses them.
BY_THEMSELVES = frozenset({Heartbeat, WatchRecalls, RecallDone, AskLeases, AwaitLocks})
FOR_CANDIDATES = frozenset({Ping, AskHearing, AskOffice})
FOR_AGENTS = frozenset(
    {
        RegisterVolumes,
        ClaimTasks,
        ReportTasks,
        ExtendClaims,
        ListUnsettled,
        FindStrays,
        ListForsaken,
        KeepForsaken,
        NameForsaken,
        ForgetForsaken,
    }
)
INO_MAX = 2**63 - 1


class Candidate(Protocol):
    """Who may be in office: `term` is None when not."""

    term: Term | None

    def describe_manager(self) -> str:
        """Who holds the office, as far as this candidate knows."""

    def answer(self, request: Any) -> Any:
        """The reply to one of `FOR_CANDIDATES`, or, while it has no term, to `Join`."""


class Connection:
    """One connection of a peer: `cluster.rpc.connection.Handler`."""

    def __init__(self, candidate: Candidate, cluster: str) -> None:
        self._candidate = candidate
        self._cluster = cluster
        self._term: Term | None = None
        self._session: Session | None = None
        self._introduction = 0

    def at_once(self, request: Any) -> Any:
        """The reply to a request that can be answered without waiting, else None."""
        try:
            reply = self._answer_at_once(request)
        except GodwitError:
            self._count(request)
            raise
        if reply is not None:
            self._count(request)
        return reply

    def _answer_at_once(self, request: Any) -> Any:
        kind = type(request)
        immediate = IMMEDIATE.get(kind)
        if immediate is not None:
            term = self._term_in_office()
            return immediate(term, self._check_session(term, request), request)
        if kind is Apply:
            return self._apply_at_once(request)
        question = QUESTIONS.get(kind)
        if question is None:
            return self._candidate.answer(request) if kind in FOR_CANDIDATES else None
        term = self._term_in_office()
        connection = term.store.read_connection
        if connection is None:
            return None
        session = self._check_session(term, request)
        if kind not in GRANTING:
            return question(connection, term, request)
        return leasing.answer_at_once(term, session, request, question, connection)

    def _apply_at_once(self, request: Apply) -> Applied | None:
        term = self._term_in_office()
        reply = opening.apply_at_once(term, self._check_session(term, request), request)
        self._term_in_office()
        return reply

    async def handle(self, request: Any, _body: bytes, send: SendReply) -> Any:
        """The reply. Raises `NotManager` whenever somebody else may be the manager by now."""
        kind = type(request)
        if kind is Join and self._candidate.term is None:
            return self._candidate.answer(request)
        term = self._term_in_office()
        if kind is Hello:
            reply: Any = await self._introduce(term, request)
        elif kind is Join:
            reply = await joining.join(term, request)
        else:
            session = self._check_session(term, request)
            self._count(request)
            reply = await self._handle(term, session, request, send)
        self._term_in_office()
        return reply

    async def _handle(self, term: Term, session: Session, request: Any, send: SendReply) -> Any:
        kind = type(request)
        immediate = IMMEDIATE.get(kind)
        if immediate is not None:
            return immediate(term, session, request)
        if kind is WatchRecalls:
            return await leasing.watch_recalls(term, session, partial(self._check_introduced, term), send)
        question = QUESTIONS.get(kind)
        if question is None:
            return await HANDLERS[kind](term, session, request)
        if kind in GRANTING:
            return await leasing.answer(term, session, request, question)
        return await term.store.read(lambda connection: question(connection, term, request))

    def _term_in_office(self) -> Term:
        term = self._candidate.term
        if term is None or not term.in_office:
            raise NotManager(self._candidate.describe_manager())
        return term

    async def _introduce(self, term: Term, hello: Hello) -> Welcome:
        check_hello(hello, self._cluster)
        session, welcome = await introduce(term, hello)
        self._term, self._session, self._introduction = term, session, session.connection
        return welcome

    def _check_session(self, term: Term, request: Any) -> Session:
        session = self._session
        if session is None:
            raise ProtocolError(f"{type(request).__name__} before Hello")
        self._check_introduced(term)
        if type(request) in FOR_AGENTS and session.role != AGENT:
            raise ProtocolError(f"a {session.role} asked what only agents ask")
        ino = getattr(request, "ino", 0)
        if not 0 <= ino <= INO_MAX:
            raise ProtocolError(f"inode number out of range: {ino}")
        session.heard_s = monotonic_s()
        return session

    def _count(self, request: Any) -> None:
        """Notes a request, once, of which the session has been checked."""
        if self._term is None or self._session is None or self._session.role != MOUNT:
            return
        self._term.state.leases.counts.requests += 1
        if type(request) not in BY_THEMSELVES:
            self._term.courtesy.asked(self._session.heard_s)

    def _check_introduced(self, term: Term) -> None:
        """`NotManager` when the connection does not stand for a live session of the term in office any more."""
        session = self._session
        is_live = session is not None and session.connection == self._introduction and term.state.sessions.is_live(session)
        if self._term is not term or not is_live:
            raise NotManager("the session of this connection has ended: introduce yourself again")

    def closed(self) -> None:
        """The connection has ended; the session lives on until its timeout."""
        self._session = None
