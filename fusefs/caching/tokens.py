"""The lease tokens that this mount holds: asking for them, renewing them in time, letting them lapse.

A token is good until its deadline, which counts from before it was asked for. What needs a token and has none that is
good waits for a new one, for as long as an application may wait, and then fails: a mount that is cut off neither reads nor
writes beyond its deadlines.

Each token has a timer of `renew_s`, much shorter than the access time. When it fires, `cluster.leases.decide` says whether the
token is renewed or left to lapse. All that fire in one tick are renewed by one request.
"""

import errno
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import trio

from cluster.errors import GodwitError, Unavailable, refused
from cluster.leases import WRITE, Decision, LeaseToken, decide, read_token
from cluster.messages import AskLeases, Node
from cluster.rpc.session import ManagerSession
from fusefs.caching.cache import Caching

log = logging.getLogger(__name__)

TICKS = 8  # within `renew_s`: how finely the timers are looked at
RENEW_TOGETHER = 1000  # in one request: the manager looks each of them up
PASSES_MAX = 1000  # beyond it, the passes that were got first are forgotten
HELD_MAX = 100_000  # beyond it, the tokens that were got first are forgotten, unless they are in use


@dataclass(eq=False)
class Held:
    """A token that this mount holds."""

    token: LeaseToken  # what it says
    sealed: bytes  # as the manager has signed it, for agents
    deadline_s: float  # counts from before it was asked for
    fires_s: float  # when its timer says whether it is renewed
    used: bool = True  # since it was got, or renewed last


@dataclass(frozen=True, eq=False)
class Pass:
    """A token to read replicas on one volume, besides the lease: its agent takes none that is sealed for the home's."""

    sealed: bytes
    deadline_s: float  # as of `Held`


@dataclass(frozen=True)
class Use:
    """What the mount does with an inode at the moment."""

    is_open: bool  # by a program
    is_dirty: bool  # registered to be written: something may be to be committed yet


class Leases:
    """All tokens of the mount. *use_of* says what an inode is used for when its timer fires.

    *check* raises for an inode whose content may not be read or written here, although there is a token (`fusefs.locks`).
    """

    def __init__(
        self,
        session: ManagerSession,
        caching: Caching,
        renew_s: float,
        timeout_s: float,
        use_of: Callable[[int], Use],
        check: Callable[[int], None],
    ) -> None:
        self._session = session
        self._caching = caching
        self._renew_s = renew_s
        self._timeout_s = timeout_s
        self._use_of = use_of
        self.check_content = check
        self._held: OrderedDict[int, Held] = OrderedDict()  # in order of their timers, which all run equally long
        self._short: set[int] = set()  # inodes whose token, which was long in coming, runs out before its timer fires
        self._given_up: list[int] = []  # inodes whose token went without another one, since `ended` was asked last
        self._outdated: set[int] = set()  # inodes of which a token named another version than the one before, see `outdated`
        self._asking: dict[int, trio.Event] = {}  # inodes that somebody asks for; set when there is an answer
        self._passes: OrderedDict[tuple[int, int], Pass] = OrderedDict()  # by inode and volume, in the order in which they came

    # ----------------------------------------------------------------------------------------------------- holding

    def granted(self, sealed: bytes, asked_s: float, *, used: bool = True) -> None:
        """Takes a token that was asked for at *asked_s*; *used*: for an access, not to renew one."""
        token = read_token(sealed)
        known = self._held.get(token.ino)
        if known is not None and known.token.serial > token.serial:
            return  # answers may overtake one another
        if known is not None and known.token.version != token.version:
            self._outdated.add(token.ino)
        # A renewal is no use: but what was used since the last one counts until the timer looks at it.
        used = used or (known is not None and known.used)
        self._held.pop(token.ino, None)
        fires_s, deadline_s = trio.current_time() + self._renew_s, asked_s + token.access_s
        self._held[token.ino] = Held(token, sealed, deadline_s, fires_s, used)
        if deadline_s < fires_s:
            self._short.add(token.ino)
        if len(self._held) > HELD_MAX:
            self._forget_one()

    def made_here(self, node: Node, until_s: float) -> None:
        """This mount has made a file in a directory with which it is alone: it may use it until then, at its home here.

        Agents and other servers know the file only when the manager does, whose token takes the place of this one.
        """
        now = trio.current_time()
        token = LeaseToken(0, node.ino, WRITE, "", node.home_volume, "", node.version, node.home_epoch, 0, until_s - now, now)
        self._held[node.ino] = Held(token, b"", until_s, now + self._renew_s)
        if until_s < now + self._renew_s:
            self._short.add(node.ino)

    def _forget_one(self) -> None:
        for ino in self._held:
            use = self._use_of(ino)
            if not use.is_open and not use.is_dirty:
                del self._held[ino]
                return

    def good(self, ino: int) -> Held | None:
        """The token if there is a good one. It counts as used by the question."""
        held = self._held.get(ino)
        if held is None or trio.current_time() >= held.deadline_s:
            return None
        held.used = True
        return held

    def deadline_s(self, ino: int) -> float:
        """Until when there is a good token, on trio's clock; 0 if there is none. The question is no use of it."""
        held = self._held.get(ino)
        return 0.0 if held is None else held.deadline_s

    async def hold(self, ino: int) -> Held:
        """A good token; asks for one if there is none. Raises `Refused` (ESTALE) or `Unavailable`."""
        held = self.good(ino)
        return await self._get(ino) if held is None else held

    async def hold_for_content(self, ino: int) -> Held:
        """As `hold`, to read or write."""
        held = await self.hold(ino)
        self.check_content(ino)
        return held

    async def _get(self, ino: int) -> Held:
        deadline_s = trio.current_time() + self._timeout_s
        while True:
            await self._ask_once(ino)
            # The answer may have taken as long as the token is good for.
            if (held := self.good(ino)) is not None:
                return held
            if trio.current_time() >= deadline_s:
                raise Unavailable(f"no lease for inode {ino} within {self._timeout_s:g} s")

    async def replace(self, refused_one: Held) -> Held:
        """Another token in the place of one that an agent did not take, or that is older than what is known."""
        ino = refused_one.token.ino
        if self._held.get(ino) is refused_one:
            self._give_up(ino)
        return await self.hold(ino)

    async def hold_pass(self, ino: int, volume: int) -> Pass:
        """A pass to read the inode's replica on *volume*, at a time at which there is a good lease. Raises as `hold`."""
        found = self._passes.get((ino, volume))
        if found is None or trio.current_time() >= found.deadline_s:
            found = await self._ask_pass(ino, volume)
        # After the wait above: with a pass alone, a mount that others take for cut off would go on reading.
        await self.hold(ino)
        return found

    def forget_pass(self, ino: int, volume: int, refused_one: Pass) -> None:
        """An agent did not take it: another one is asked for."""
        if self._passes.get((ino, volume)) is refused_one:
            del self._passes[ino, volume]

    async def _ask_pass(self, ino: int, volume: int) -> Pass:
        asked_s = trio.current_time()
        # One inode, one token.
        (sealed,) = (await self._session.call(AskLeases([ino], volume), timeout_s=self._timeout_s)).tokens
        if not sealed:
            raise refused(errno.ESTALE, f"inode {ino}")
        got = Pass(sealed, asked_s + read_token(sealed).access_s)
        self._passes.pop((ino, volume), None)
        self._passes[ino, volume] = got
        if len(self._passes) > PASSES_MAX:
            self._passes.popitem(last=False)
        return got

    async def _ask_once(self, ino: int) -> None:
        """Asks for a token, or waits for the answer to somebody else's question for the same one."""
        if (asking := self._asking.get(ino)) is not None:
            await asking.wait()
            return
        answered = self._asking[ino] = trio.Event()
        try:
            await self._ask([ino])
        finally:
            del self._asking[ino]
            answered.set()
        # The manager gives no token for what is not there any more.
        if ino not in self._held:
            raise refused(errno.ESTALE, f"inode {ino}")

    async def _ask(self, inodes: list[int], *, used: bool = True) -> None:
        asked_s = trio.current_time()
        reply = await self._session.call(AskLeases(inodes), timeout_s=self._timeout_s)
        self._caching.renewed(reply.grant, asked_s)
        for ino, sealed in zip(inodes, reply.tokens, strict=True):
            if sealed:
                self.granted(sealed, asked_s, used=used)
            else:
                self._held.pop(ino, None)

    def _give_up(self, ino: int) -> None:
        del self._held[ino]
        self._given_up.append(ino)

    def ended(self) -> list[int]:
        """The inodes whose tokens have run out, or were not good, since this was asked last: others may change them unseen."""
        now = trio.current_time()
        short = [(ino, self._held[ino]) for ino in self._short if ino in self._held]
        for ino, held in self._first(now) + short:
            # The same one may be in both.
            if held.deadline_s <= now and self._held.get(ino) is held:
                self._give_up(ino)
        self._short = {ino for ino, held in short if held.deadline_s > now}
        ended, self._given_up = self._given_up, []
        return ended

    def outdated(self) -> list[int]:
        """The inodes that are open here to read, and of which others have finished a version since this was asked last."""
        outdated, self._outdated = self._outdated, set()
        uses = {ino: self._use_of(ino) for ino in outdated}
        return [ino for ino, use in uses.items() if use.is_open and not use.is_dirty]

    def presented(self) -> list[bytes]:
        """The good tokens of what is open, for a new manager."""
        now = trio.current_time()
        live = ((ino, held.sealed) for ino, held in self._held.items() if held.deadline_s > now and held.sealed)
        return [sealed for ino, sealed in live if self._use_of(ino).is_open]

    # ---------------------------------------------------------------------------------------------------- renewing

    async def renew_loop(self) -> None:
        """Runs the timers until cancelled."""
        while True:
            await trio.sleep(self._renew_s / TICKS)
            due = self._fired(trio.current_time())
            for start in range(0, len(due), RENEW_TOGETHER):
                await self._renew(due[start : start + RENEW_TOGETHER])

    def _fired(self, now: float) -> list[int]:
        """The tokens to be renewed now; those that are to lapse are forgotten."""
        renew = []
        for ino, held in self._first(now):
            use = self._use_of(ino)
            if held.deadline_s <= now:
                decision = Decision.LAPSE  # too late to renew: who needs it asks anew
            else:
                decision = decide(is_open=use.is_open, is_dirty=use.is_dirty, used=held.used)
            if decision is Decision.LAPSE:
                self._give_up(ino)
            else:
                held.used = False
                renew.append(ino)
        return renew

    def _first(self, now: float) -> list[tuple[int, Held]]:
        fired = []
        for ino, held in self._held.items():
            if held.fires_s > now:
                break
            fired.append((ino, held))
        return fired

    async def _renew(self, inodes: list[int]) -> None:
        try:
            await self._ask(inodes, used=False)
        except GodwitError as error:
            log.info("%d leases are not renewed yet: %s", len(inodes), error)
