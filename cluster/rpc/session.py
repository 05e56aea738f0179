"""A process's session with the manager, over whichever connection and manager there is at the moment.

The session finds the candidate that holds the office, keeps a connection to it, repeats under their ids the requests
whose replies were lost, and gives up at each request's deadline with `Unavailable`. All requests to a manager may be
repeated (see `cluster.messages`), so a caller never learns of a change of manager, except by the time it takes.
"""

import errno
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import trio

from cluster.catalog_point import CatalogMemory
from cluster.clock import thread_s
from cluster.counters import Counters, counter, gauge, histogram
from cluster.errors import CatalogFault, Fenced, GodwitError, NotManager, ProtocolError, Refused, Unavailable
from cluster.faults import faults
from cluster.leases import ManagerClock
from cluster.messages import (
    PROTOCOL,
    Applied,
    Apply,
    Certified,
    Commit,
    Done,
    Heartbeat,
    HeldLocks,
    Hello,
    MountCounts,
    Node,
    OpenInode,
    Operation,
    Recall,
    RenewCertificate,
    Request,
    ShowCertificate,
    TakeInodes,
    WatchRecalls,
    Welcome,
)
from cluster.rpc.candidates import Candidates, known_candidates
from cluster.rpc.connection import Channel, ask_once
from cluster.rpc.following import follow
from cluster.rpc.renewal import CERTIFY_S
from cluster.rpc.revocation import heed
from cluster.rpc.search import ANSWER_S, Search
from cluster.rpc.waiters import check_wanted, while_wanted
from cluster.service import SERVICE
from cluster.trust.credentials import Credentials

log = logging.getLogger(__name__)

CALL_S = histogram(
    "godwit_manager_call_seconds", "How long the process waited for answers of managers, with all attempts.", "request"
)
CONNECTED = gauge("godwit_manager_connected", "Whether the process is connected to the manager in office: 1 or 0.")
MANAGER_REQUESTS = counter("godwit_manager_requests_total", "Requests that the process has sent to managers.")

R = TypeVar("R")

# A manager that was cut off is noticed within the sum of both, which is less than an election takes.
HEARTBEAT_S = 1.0
HEARTBEAT_TIMEOUT_S = 2.0
INTRODUCTION_TIMEOUT_S = 4.0
RETRY_S = 0.1
TROUBLE_S = 2.0  # without a manager, but with a catalog that nobody can write: longer, and callers are told so
REFUSED_RETRY_S = 2.0


class ManagerSession:
    """Start `run` in a nursery; calls made before a connection is there wait for it, within their deadlines.

    `requests` counts what was sent; `changes` the changes of names and attributes that were answered. With *memory* no manager is
    worked with whose catalog is another than the remembered one, or older.
    """

    def __init__(
        self,
        *,
        managers: Sequence[str],
        credentials: Credentials,
        state: str | None = None,
        opens: Callable[[], list[OpenInode]] = list,
        tokens: Callable[[], list[bytes]] = list,
        caching: Callable[[], list[int]] = list,
        locks: Callable[[], list[HeldLocks]] = list,
        counts: Callable[[], MountCounts | None] = lambda: None,
        counters: Counters | None = None,
        on_welcome: Callable[[Welcome], None] = lambda _welcome: None,
        memory: CatalogMemory | None = None,
        on_recall: Callable[[Recall], None] | None = None,
        unsent: Callable[[], bool] = lambda: False,
        before: Callable[[Request[Any], float], Awaitable[None]] | None = None,
        refused_retry_s: float = REFUSED_RETRY_S,
    ) -> None:
        self.session = secrets.randbits(63)  # its number
        self.term = 0  # the newest that was heard of
        self.last_contact_s = -1e9  # when the manager last answered
        self.clock = ManagerClock()  # bounds of the manager's clock
        self._configured = list(managers)  # candidates of the configuration
        self._managers = list(managers) if state is None else known_candidates(state, managers)  # all that are known
        self._candidates = None if state is None else Candidates(state, credentials.role)  # where they are kept
        self._keeping = trio.CapacityLimiter(1)  # they are written one after the other
        self.credentials = credentials  # who this process is, and whom it believes
        self._cluster = credentials.identity.cluster
        self._server = credentials.identity.server
        self._role = credentials.role
        self._opens = opens
        self._tokens = tokens
        self._caching = caching
        self._locks = locks
        self._counts = counts
        self._counters = counters
        self._seconds = (Counters() if counters is None else counters).histograms(CALL_S)
        if counters is not None:
            counters.follow(MANAGER_REQUESTS, lambda: self.requests)
            counters.follow(CONNECTED, lambda: float(self._channel is not None and not self._channel.broken.is_set()))
        self._on_welcome = on_welcome
        self._memory = memory
        self._on_recall = on_recall
        self._unsent = unsent  # whether there are records to send: the manager waits for them
        self._before = before  # awaited before a request is sent, with its timeout: sends what must come first
        self._refused_retry_s = refused_retry_s  # until a manager that has refused this process is asked again
        self._channel: Channel | None = None  # to the manager; None while none is found
        self._connected = trio.Event()  # set while there is a channel
        self._manager = ""  # the name of the last one
        self._last_refusal = "none of them answered"  # why there is none
        self._logged_refusal = ""  # what of that was logged
        self._request_ids = itertools.count(1)  # of changes: the manager applies each once
        self._outstanding: set[int] = set()  # ids of changes that are not acknowledged
        self._fenced: Fenced | None = None  # this process was replaced by a newer one
        self._trouble: CatalogFault | None = None  # why the catalog takes no changes at present
        self._troubled_s = self._trouble_heard_s = 0.0
        self._trouble_came = trio.Event()
        self.requests = 0  # sent so far, for counts
        self.changes = 0  # made so far, for counts

    async def run(self) -> None:
        """Keeps the session connected until cancelled. Raises `Fenced` when a newer session has replaced this one."""
        async with trio.open_nursery() as nursery:
            while self._fenced is None:
                await self._keep_connected(nursery)
            nursery.cancel_scope.cancel()
        raise self._fenced

    async def introduced(self) -> None:
        """Returns when a manager has taken this process in."""
        await self._connected.wait()

    async def _keep_connected(self, nursery: trio.Nursery) -> None:
        SERVICE.status(f"waits for a manager: {self._last_refusal}")
        channel = await self._find_manager(nursery)
        if channel is None:
            SERVICE.status(f"waits for a manager: {self._last_refusal}")
            await trio.sleep(self._refused_retry_s if self._logged_refusal else RETRY_S)
            return
        self._channel = channel
        self._connected.set()
        SERVICE.status(f"the manager is {self._manager}, term {self.term}")
        if self._on_recall is not None:
            nursery.start_soon(self._watch_recalls, channel, self._on_recall)
        await self._heartbeats(channel)
        self._connected = trio.Event()
        self._channel = None
        channel.close()

    async def _find_manager(self, nursery: trio.Nursery) -> Channel | None:
        address, channel = await Search(self.credentials, nursery, self._note_answer, self._note_trouble).run(self._managers)
        self._trouble, self._trouble_came = None, trio.Event()
        try:
            welcome = await self._introduce(channel)
            await heed(self.credentials, welcome.revoked)
            await follow(self.credentials, welcome.authorities)
            self._managers = list(dict.fromkeys([address, *self._configured, *welcome.managers]))
            if self._candidates is not None:
                nursery.start_soon(self._keep_managers, self._candidates, list(self._managers))
            self._on_welcome(welcome)
            return channel
        except Fenced as error:
            self._fenced = error
            self._connected.set()
        except GodwitError as error:
            self._note_refusal(error)
        except Exception as error:  # a welcome that makes no sense to us
            faults.unexpected(log, f"with the welcome of {address}", error)
        channel.close()
        return None

    async def certify(self, request: RenewCertificate) -> Certified:
        """As `cluster.rpc.renewal` asks: a certificate for this very process."""
        return await self.call(request, timeout_s=CERTIFY_S)

    async def show(self, request: ShowCertificate) -> Done:
        """As `cluster.rpc.renewal` shows: over a connection that is made with the certificate of now."""
        return await ask_once(self.manager, request, self.credentials, timeout_s=CERTIFY_S)

    @property
    def manager(self) -> str:
        """Where the manager was found last, also while the connection to it is made anew."""
        return self._managers[0]

    @property
    def candidates(self) -> list[str]:
        """Where managers are looked for."""
        return list(self._managers)

    def _note_answer(self, why: str) -> None:
        self._last_refusal = why

    def _note_trouble(self, fault: CatalogFault) -> None:
        """Nobody can be in office, as long as the disk of the catalog is as it is."""
        if self._trouble is None:
            self._troubled_s = trio.current_time()
        self._trouble, self._trouble_heard_s = fault, trio.current_time()
        if trio.current_time() >= self._troubled_s + TROUBLE_S:
            self._trouble_came.set()

    def _check_trouble(self, request: Request[Any]) -> None:
        """Raises `CatalogFault` if waiting is no use: with the reason for a change; what only reads fails with EIO."""
        if self._trouble is not None and trio.current_time() >= self._trouble_heard_s + ANSWER_S:
            self._trouble, self._trouble_came = None, trio.Event()
        if self._trouble is not None and self._trouble_came.is_set():
            changes = isinstance(request, (Apply, TakeInodes))
            raise CatalogFault(str(self._trouble), self._trouble.errno if changes else errno.EIO)

    async def _wait_for_manager(self) -> None:
        """Returns when there is a connection, or no hope for one."""
        async with trio.open_nursery() as nursery:

            async def wait(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait, self._trouble_came)
            nursery.start_soon(wait, self._connected)

    def _note_refusal(self, error: GodwitError) -> None:
        """A manager that does not want this process says so once in its log; the process waits until it is wanted again."""
        self._last_refusal = str(error)
        if isinstance(error, Refused) and self._logged_refusal != str(error):
            self._logged_refusal = str(error)
            log.error("the manager refuses this %s: %s", self._role, error)

    async def _keep_managers(self, candidates: Candidates, addresses: list[str]) -> None:
        """Keeps them for the next start, in a thread: nothing else waits for the disk with the server's state."""
        await trio.to_thread.run_sync(candidates.learn, addresses, abandon_on_cancel=True, limiter=self._keeping)

    async def _introduce(self, channel: Channel) -> Welcome:
        before = trio.current_time()
        # In the step in which it is asked whether there are records: what is recorded later would be cached and not presented.
        unsent = self._unsent()
        held = self._opens(), self._tokens(), self._caching(), self._locks()
        point = self._memory.point if self._memory is not None else None
        hello = Hello(PROTOCOL, self._cluster, self._server, self._role, self.session, *held, point, unsent)
        welcome = await channel.call(hello, timeout_s=INTRODUCTION_TIMEOUT_S)
        await self._check_catalog(welcome)
        self.last_contact_s = before
        self.clock.heard(welcome.term, welcome.now_s, before)
        if welcome.term != self.term:
            log.info("the manager is %s, term %d", welcome.manager, welcome.term)
        self.term = welcome.term
        self._manager = welcome.manager
        self._logged_refusal = ""
        return welcome

    async def _check_catalog(self, welcome: Welcome) -> None:
        """Raises `Refused` for a manager whose catalog is another than what this server has worked with, or older."""
        if self._memory is None or welcome.point is None:
            return
        self._memory.check(welcome.point, f"{self._server}'s {self._role}")
        await trio.to_thread.run_sync(self._memory.save, welcome.point)

    async def _watch_recalls(self, channel: Channel, obey: Callable[[Recall], None]) -> None:
        """Hands over each recall, in the order in which the manager sent recalls and answers, until the channel breaks."""
        try:
            async with channel.open_stream(WatchRecalls()) as recalls:
                async for answer in recalls:
                    if not isinstance(answer.reply, Recall):
                        raise ProtocolError(f"{type(answer.reply).__name__} where a recall was expected")
                    obey(answer.reply)
        except GodwitError as error:
            log.debug("no more recalls over %s: %s", channel.peer, error)
            channel.close()
        except Exception as error:  # what cannot be obeyed must not be taken for obeyed: the leases go with the connection
            faults.unexpected(log, f"with a recall of {channel.peer}", error)
            channel.close()

    async def _heartbeats(self, channel: Channel) -> None:
        while not channel.broken.is_set():
            with trio.move_on_after(HEARTBEAT_S):
                await channel.broken.wait()
                return
            if channel.is_stale:
                # What is asked now is asked again over the next connection.
                log.info("connects to %s anew, with the certificates of now", channel.peer)
                return
            before = trio.current_time()
            try:
                metrics = {} if self._counters is None else self._counters.numbers()
                beat = await channel.call(Heartbeat(self._counts(), metrics), timeout_s=HEARTBEAT_TIMEOUT_S)
            except GodwitError as error:
                self._last_refusal = str(error)
                log.warning("lost the manager at %s: %s", channel.peer, error)
                return
            self.last_contact_s = before
            self.clock.heard(beat.term, beat.now_s, before)
            if beat.revoked is not None:
                await heed(self.credentials, beat.revoked)
            await follow(self.credentials, beat.authorities)

    async def call(self, request: Request[R], *, timeout_s: float) -> R:
        """The manager's reply; raises the error that it answers, or `Unavailable` after *timeout_s*; or `Refused` with EINTR when
        nobody wants the answer any more (`cluster.rpc.waiters`), unless it is a change that was sent."""
        began_s = thread_s()
        try:
            return await self._call(request, timeout_s)
        finally:
            self._seconds[type(request).__name__].observe(thread_s() - began_s)

    async def _call(self, request: Request[R], timeout_s: float) -> R:
        deadline = trio.current_time() + timeout_s
        if self._before is not None:
            await self._before(request, timeout_s)
        sent = False
        while True:
            if self._fenced is not None:
                raise self._fenced
            if not (sent and isinstance(request, Apply)):
                check_wanted()
            left = deadline - trio.current_time()
            channel = self._channel
            if left <= 0:
                candidates = ", ".join(self._managers)
                raise Unavailable(f"no manager within {timeout_s:.3g} s at {candidates}: {self._last_refusal}")
            if channel is None or channel.broken.is_set():
                self._check_trouble(request)
                await self._wait_for_connection(channel, left)
                continue
            self.requests += 1
            sent = True
            try:
                return await channel.call(request, timeout_s=left)
            except NotManager as error:
                self._last_refusal = str(error)
                channel.close()
            except (Unavailable, ProtocolError) as error:
                if not channel.broken.is_set():
                    raise
                self._last_refusal = str(error)

    async def _wait_for_connection(self, but: Channel | None, timeout_s: float) -> None:
        with while_wanted(), trio.move_on_after(timeout_s):
            await self._wait_for_manager()
            if self._channel is but:
                await trio.sleep(0)

    async def apply(self, operations: Sequence[Operation], *, timeout_s: float) -> list[Node | None]:
        """Applies operations in order in one transaction, exactly once however often the request must be sent."""
        return (await self.apply_for_tokens(operations, timeout_s=timeout_s)).nodes

    async def apply_for_tokens(self, operations: Sequence[Operation], *, timeout_s: float) -> Applied:
        """As `apply`, with the lease tokens for what was created."""
        request_id = next(self._request_ids)
        self._outstanding.add(request_id)
        try:
            request = Apply(request_id, min(self._outstanding), list(operations))
            applied = await self.call(request, timeout_s=timeout_s)
        finally:
            self._outstanding.discard(request_id)
        if not all(isinstance(operation, Commit) for operation in operations):
            self.changed()
        return applied

    def changed(self) -> None:
        """A change was made: by the manager, or by this process, of which the manager is told later."""
        self.changes += 1

    async def apply_one(self, operation: Operation, *, timeout_s: float) -> Node:
        """Applies one operation that makes or changes an inode, and returns that inode's node."""
        (node,) = await self.apply([operation], timeout_s=timeout_s)
        assert node is not None, operation
        return node

    def applier(self, timeout_s: float) -> Callable[[Operation], Awaitable[Node]]:
        """`apply_one` with its deadline filled in."""
        return partial(self.apply_one, timeout_s=timeout_s)
