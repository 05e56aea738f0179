"""Requests to handlers, and the rules that hold for all of them.

Only the holder of the office answers, but for what every candidate is asked. A connection begins with `Hello`; its session must
still be live and must not have introduced itself again over another connection since.
"""

import logging
from functools import partial
from typing import Any

from cluster.clock import monotonic_s, thread_s
from cluster.counters import counters, histogram
from cluster.errors import GodwitError, NotManager, ProtocolError
from cluster.messages import Apply, Greeting, Hello, Join, Welcome
from cluster.rpc.serving import Handler, SendReply
from cluster.trust.identity import Peer, Role
from cluster.trust.refusals import check_name, refusal
from manager.catalog.faults import answering
from manager.memory.sessions import Session
from manager.requests import held, leases
from manager.requests.hello import check_greeting, check_hello
from manager.requests.reads import LISTING_BYTES
from manager.requests.routes import ROUTES, Candidate, Dispatch, Route, Who
from manager.term import Term

log = logging.getLogger(__name__)

INO_MAX = 2**63 - 1

REQUEST_S = histogram(
    "godwit_manager_request_seconds",
    "How long the manager took for requests; some wait on purpose, such as ClaimTasks, AwaitCopies and AwaitLocks.",
    "request",
)

_seconds = counters.histograms(REQUEST_S)


class Connection(Handler):
    """One connection of a peer."""

    def __init__(self, candidate: Candidate, cluster: str, peer: Peer) -> None:
        self._candidate = candidate  # knows the term in office, if there is one
        self._cluster = cluster  # name that a peer must give
        self._peer = peer  # who it has proved to be
        self._who = Who.of(peer.identity)
        self._term: Term | None = None  # in which the peer introduced itself; None before
        self._session: Session | None = None  # since `Hello`; None before and after the end
        self._introduction = 0  # value of the session's `connection` at that time: another means that it came anew elsewhere

    def greeted(self, greeting: Greeting) -> None:
        check_greeting(greeting, self._cluster)
        check_name(self._peer, greeting.server, greeting.role)

    @property
    def is_guest(self) -> bool:
        return self._who in (Who.ADMIN, Who.NEWCOMER)

    def reply_bytes(self, request: Any) -> int:
        return LISTING_BYTES if ROUTES[type(request)].lists else 0

    def at_once(self, request: Any) -> Any:
        """The reply to a request that can be answered without waiting, else None."""
        began_s = thread_s()
        route = self._route(request)
        try:
            with answering():
                reply = self._answer_at_once(route, request)
        except GodwitError:
            self._count(route, request)
            _measure(request, began_s)
            raise
        if reply is not None:
            self._count(route, request)
            _measure(request, began_s)
        return reply

    def _route(self, request: Any) -> Route:
        """How the request is answered; raises `Refused` with EPERM if that is nothing for who asks."""
        route = ROUTES[type(request)]
        if self._who not in route.who:
            raise refusal(log, self._peer, request, route.who)
        return route

    def _answer_at_once(self, route: Route, request: Any) -> Any:
        dispatch = route.dispatch
        if dispatch is Dispatch.CANDIDATE:
            if self._who is Who.CANDIDATE and self._candidate.term is not None:
                # It has no session that could tell.
                self._candidate.term.met_candidate(self._peer)
            return route.handler(self._candidate, request)
        if dispatch is Dispatch.AT_ONCE:
            term = self._term_in_office()
            return route.handler(term, self._check_session(term, request), request)
        if dispatch is Dispatch.READ:
            return self._read_at_once(route, request)
        if route.first is None:
            return None
        term = self._term_in_office()
        reply = route.first(term, self._check_session(term, request), request)
        self._term_in_office()
        return reply

    def _read_at_once(self, route: Route, request: Any) -> Any:
        term = self._term_in_office()
        connection = term.store.read_connection
        if connection is None:
            return None
        session = self._check_session(term, request)
        if term.state.may_hide and held.is_hidden(term, session, held.inodes_read(route.reads, request)):
            return None
        if not route.grants:
            return route.handler(connection, term, request)
        return leases.answer_at_once(term, session, request, route.handler, connection)

    async def handle(self, request: Any, _body: bytes, send: SendReply) -> Any:
        """The reply. Raises `NotManager` whenever somebody else may be the manager by now."""
        began_s = thread_s()
        route = self._route(request)
        try:
            return await self._handle_as(route, request, send)
        finally:
            # A stream lasts as long as its connection.
            if route.dispatch is not Dispatch.STREAM:
                _measure(request, began_s)

    async def _handle_as(self, route: Route, request: Any, send: SendReply) -> Any:
        # Any candidate says where the manager is; the manager itself lets in.
        if type(request) is Join and self._candidate.term is None:
            return self._candidate.answer(request)
        term = self._term_in_office()
        if type(request) is Hello:
            reply: Any = await self._introduce(route, term, request)
        elif route.dispatch is Dispatch.ENTRY:
            reply = await route.handler(term, request)
        elif route.dispatch is Dispatch.PROVEN:
            reply = await route.handler(term, self._peer, request)
        else:
            session = self._check_session(term, request)
            self._count(route, request)
            if route.reads and term.state.may_hide:
                await held.reveal(term, session, held.inodes_read(route.reads, request))
                # It may have been replaced meanwhile.
                self._check_introduced(term)
            with answering():
                reply = await self._handle(route, term, session, request, send)
        self._term_in_office()
        return reply

    async def _handle(self, route: Route, term: Term, session: Session, request: Any, send: SendReply) -> Any:
        if route.dispatch is Dispatch.AT_ONCE:
            return route.handler(term, session, request)
        if route.dispatch is Dispatch.STREAM:
            return await route.handler(term, session, partial(self._check_introduced, term), send)
        if route.dispatch is Dispatch.AWAITED:
            return await route.handler(term, session, request)
        if route.grants:
            return await leases.answer(term, session, request, route.handler)
        return await term.store.read(lambda connection: route.handler(connection, term, request))

    def _term_in_office(self) -> Term:
        term = self._candidate.term
        if term is None or not term.in_office:
            raise NotManager(self._candidate.describe_manager())
        return term

    async def _introduce(self, route: Route, term: Term, hello: Hello) -> Welcome:
        check_hello(hello, self._cluster)
        check_name(self._peer, hello.server, hello.role)
        session: Session
        welcome: Welcome
        session, welcome = await route.handler(term, hello)
        session.peer = self._peer
        self._term, self._session, self._introduction = term, session, session.connection
        return welcome

    def _check_session(self, term: Term, request: Any) -> Session:
        session = self._session
        if session is None:
            raise ProtocolError(f"{type(request).__name__} before Hello")
        self._check_introduced(term)
        ino = getattr(request, "ino", 0)
        if not 0 <= ino <= INO_MAX:
            raise ProtocolError(f"inode number out of range: {ino}")
        # Any request shows that the process is alive: it needs no other sign while it has something to ask.
        session.heard_s = monotonic_s()
        return session

    def _count(self, route: Route, request: Any) -> None:
        """Notes a request, once, of which the session has been checked."""
        if self._term is None or self._session is None or self._session.role != Role.MOUNT:
            return
        self._term.state.leases.counts.requests.value += 1
        # What mounts send by themselves says nothing about how much programs ask.
        if not route.unasked:
            # Commits of many files come in one request.
            self._term.throttle.asked(self._session.heard_s, len(request.operations) if type(request) is Apply else 1)

    def _check_introduced(self, term: Term) -> None:
        """Raises `NotManager` if the connection's session is not live any more, or not of the term in office."""
        session = self._session
        is_live = session is not None and session.connection == self._introduction and term.state.sessions.is_live(session)
        if self._term is not term or not is_live:
            raise NotManager("the session of this connection has ended: introduce yourself again")

    def closed(self) -> None:
        """The connection has ended; the session lives on until its timeout."""
        self._session = None


def _measure(request: Any, began_s: float) -> None:
    _seconds[type(request).__name__].observe(thread_s() - began_s)
