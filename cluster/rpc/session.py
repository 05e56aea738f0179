"""A process's session with the manager, over whichever connection and manager there is at the moment.

The session finds the candidate that holds the office, keeps a connection to it, repeats under their ids the requests
whose replies were lost, and gives up at each request's deadline with `Unavailable`. All requests to a manager may be
repeated (see `cluster.messages`), so a caller never learns of a change of manager, except by the time it takes.
"""

import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

import trio

from cluster.errors import Fenced, GodwitError, NotManager, Refused, Unavailable
from cluster.leases import ManagerClock
from cluster.messages import (
    PROTOCOL,
    Applied,
    Apply,
    Commit,
    Heartbeat,
    HeldLocks,
    Hello,
    MountCounts,
    Node,
    OpenInode,
    Operation,
    Recall,
    Request,
    WatchRecalls,
    Welcome,
)
from cluster.rpc.connection import Channel
from cluster.rpc.search import Search

log = logging.getLogger(__name__)

R = TypeVar("R")

# A manager that was cut off is noticed within the sum of both, which is less than an election takes.
HEARTBEAT_S = 1.0
HEARTBEAT_TIMEOUT_S = 2.0
INTRODUCTION_TIMEOUT_S = 4.0
RETRY_S = 0.1
REFUSED_RETRY_S = 2.0


class ManagerSession:
    """Start `run` in a nursery; calls made before a connection is there wait for it, within their deadlines.

    `requests` counts what was sent; `changes` the changes of names and attributes that were answered.
    """

    def __init__(
        self,
        *,
        managers: Sequence[str],
        cluster: str,
        server: str,
        role: str,
        opens: Callable[[], list[OpenInode]] = list,
        tokens: Callable[[], list[bytes]] = list,
        caching: Callable[[], list[int]] = list,
        locks: Callable[[], list[HeldLocks]] = list,
        counts: Callable[[], MountCounts | None] = lambda: None,
        on_welcome: Callable[[Welcome], None] = lambda _welcome: None,
        on_recall: Callable[[Recall], None] | None = None,
    ) -> None:
        self.session = secrets.randbits(63)
        self.term = 0
        self.last_contact_s = -1e9
        self.clock = ManagerClock()
        self._configured = list(managers)
        self._managers = list(managers)
        self._cluster = cluster
        self._server = server
        self._role = role
        self._opens = opens
        self._tokens = tokens
        self._caching = caching
        self._locks = locks
        self._counts = counts
        self._on_welcome = on_welcome
        self._on_recall = on_recall
        self._channel: Channel | None = None
        self._connected = trio.Event()
        self._last_refusal = "none of them answered"
        self._logged_refusal = ""
        self._request_ids = itertools.count(1)
        self._outstanding: set[int] = set()
        self._fenced: Fenced | None = None
        self.requests = 0
        self.changes = 0

    async def run(self) -> None:
        """Keeps the session connected until cancelled. Raises `Fenced` when a newer session has replaced this one."""
        async with trio.open_nursery() as nursery:
            while self._fenced is None:
                await self._keep_connected(nursery)
            nursery.cancel_scope.cancel()
        raise self._fenced

    async def _keep_connected(self, nursery: trio.Nursery) -> None:
        channel = await self._find_manager(nursery)
        if channel is None:
            await trio.sleep(REFUSED_RETRY_S if self._logged_refusal else RETRY_S)
            return
        self._channel = channel
        self._connected.set()
        if self._on_recall is not None:
            nursery.start_soon(self._watch_recalls, channel, self._on_recall)
        await self._heartbeats(channel)
        self._connected = trio.Event()
        self._channel = None
        channel.close()

    async def _find_manager(self, nursery: trio.Nursery) -> Channel | None:
        address, channel = await Search(self._cluster, nursery, self._note_answer).run(self._managers)
        try:
            welcome = await self._introduce(channel)
        except Fenced as error:
            self._fenced = error
            self._connected.set()
        except GodwitError as error:
            self._note_refusal(error)
        else:
            self._learn_managers(address, welcome.managers)
            self._on_welcome(welcome)
            return channel
        channel.close()
        return None

    @property
    def candidates(self) -> list[str]:
        """Where managers are looked for."""
        return list(self._managers)

    def _note_answer(self, why: str) -> None:
        self._last_refusal = why

    def _note_refusal(self, error: GodwitError) -> None:
        """A manager that does not want this process says so once in its log; the process waits until it is wanted again."""
        self._last_refusal = str(error)
        if isinstance(error, Refused) and self._logged_refusal != str(error):
            self._logged_refusal = str(error)
            log.error("the manager refuses this %s: %s", self._role, error)

    def _learn_managers(self, current: str, named: Sequence[str]) -> None:
        """The candidates to ask from now on: the present manager, those that the configuration has, and those of all members."""
        self._managers = list(dict.fromkeys([current, *self._configured, *named]))

    async def _introduce(self, channel: Channel) -> Welcome:
        before = trio.current_time()
        held = self._opens(), self._tokens(), self._caching(), self._locks()
        hello = Hello(PROTOCOL, self._cluster, self._server, self._role, self.session, *held)
        welcome = await channel.call(hello, timeout_s=INTRODUCTION_TIMEOUT_S)
        self.last_contact_s = before
        self.clock.heard(welcome.term, welcome.now_s, before)
        if welcome.term != self.term:
            log.info("the manager is %s, term %d", welcome.manager, welcome.term)
        self.term = welcome.term
        self._logged_refusal = ""
        return welcome

    async def _watch_recalls(self, channel: Channel, obey: Callable[[Recall], None]) -> None:
        """Hands over each recall, in the order in which the manager sent recalls and answers, until the channel breaks."""
        try:
            async with channel.open_stream(WatchRecalls()) as recalls:
                async for answer in recalls:
                    obey(answer.reply)
        except GodwitError as error:
            log.debug("no more recalls over %s: %s", channel.peer, error)
            channel.close()

    async def _heartbeats(self, channel: Channel) -> None:
        while not channel.broken.is_set():
            with trio.move_on_after(HEARTBEAT_S):
                await channel.broken.wait()
                return
            before = trio.current_time()
            try:
                beat = await channel.call(Heartbeat(self._counts()), timeout_s=HEARTBEAT_TIMEOUT_S)
            except GodwitError as error:
                self._last_refusal = str(error)
                log.warning("lost the manager at %s: %s", channel.peer, error)
                return
            self.last_contact_s = before
            self.clock.heard(beat.term, beat.now_s, before)

    async def call(self, request: Request[R], *, timeout_s: float) -> R:
        """The manager's reply; raises the error that it answers, or `Unavailable` after *timeout_s*."""
        deadline = trio.current_time() + timeout_s
        while True:
            if self._fenced is not None:
                raise self._fenced
            left = deadline - trio.current_time()
            channel = self._channel
            if left <= 0:
                candidates = ", ".join(self._managers)
                raise Unavailable(f"no manager within {timeout_s:g} s at {candidates}: {self._last_refusal}")
            if channel is None or channel.broken.is_set():
                with trio.move_on_after(left):
                    await self._connected.wait()
                    if self._channel is channel:
                        await trio.sleep(0)
                continue
            self.requests += 1
            try:
                return await channel.call(request, timeout_s=left)
            except NotManager as error:
                self._last_refusal = str(error)
                channel.close()
            except Unavailable as error:
                if not channel.broken.is_set():
                    raise
                self._last_refusal = str(error)

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
            self.changes += 1
        return applied

    async def apply_one(self, operation: Operation, *, timeout_s: float) -> Node:
        """Applies one operation that makes or changes an inode, and returns that inode's node."""
        (node,) = await self.apply([operation], timeout_s=timeout_s)
        assert node is not None, operation
        return node

    def applier(self, timeout_s: float) -> Callable[[Operation], Awaitable[Node]]:
        """`apply_one` with its deadline filled in."""
        return partial(self.apply_one, timeout_s=timeout_s)
