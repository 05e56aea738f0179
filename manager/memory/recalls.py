"""Recalls under way: who was asked to stop caching what, and who waits for it.

Whoever needs something back (`Recalls.take_back`) waits until each holder has answered, or its lease to cache has ended by the
manager's clock, or it is known to be dead. What is wanted of one session at the same time travels together. A session that loses
its connection is told again, over the next one, what it has not answered.

Nothing here waits while anything else is held up. Everything runs in the event loop.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import trio

from cluster.clock import monotonic_s, thread_s
from cluster.counters import histogram
from cluster.messages import Recall
from manager.memory.holds import Holds
from manager.memory.leases import Lease, Leases
from manager.memory.mutations import Held
from manager.memory.sessions import Session, Sessions

WAIT_S = histogram("godwit_recall_wait_seconds", "How long it took until mounts had given back what was needed from them.")

UNANSWERED_MAX = 10_000  # recalls of one session that are told again; older ones have long been waited out


@dataclass(eq=False)
class _Asked:
    """One inode that is wanted back from one session."""

    until_s: float  # when it has ended without an answer
    alone_until_s: float  # when others may look at it
    serial: int  # an answer to a recall with a smaller one may have been on its way before this was asked
    home_epoch: int  # of the home that the holder must look for; 0 if it need not
    to_look: bool  # its holder may go on caching it
    over: trio.Event = field(default_factory=trio.Event)
    shown: trio.Event = field(default_factory=trio.Event)  # others may look at it, which is no later than `over`

    def ends(self) -> None:
        self.over.set()
        self.shown.set()


@dataclass(eq=False)
class Line:
    """The recalls of one session."""

    wanted: dict[int, bool] = field(default_factory=dict)  # inodes that go into the next messages, and whether only to look
    sent: dict[int, Recall] = field(default_factory=dict)  # not answered yet, by number
    watcher: int = 0  # counts its streams: only the newest is fed
    presumed: set[int] = field(default_factory=set)  # it may have these open without having said so, since it did not answer
    bell: trio.Event = field(default_factory=trio.Event)  # a new one after each ring

    def ring(self) -> None:
        """Wakes the streams of the session."""
        self.bell.set()
        self.bell = trio.Event()


class Recalls:
    """All recalls of one term."""

    def __init__(self, leases: Leases, sessions: Sessions, holds: Holds) -> None:
        self._leases = leases
        self._holds = holds  # hears which directories are called back
        self._sessions = sessions
        self._waits = leases.counters.histogram(WAIT_S)
        self._asked: dict[Held, _Asked] = {}  # not over yet: whoever wants the same waits for the same event
        self._lines: dict[int, Line] = {}  # by the session's number

    def __len__(self) -> int:
        return len(self._asked)

    # ------------------------------------------------------------------------------------------------------- asking

    async def take_back(self, held: Iterable[Held], *, home_epoch: int = 0) -> None:
        """Returns when none of these is cached any more. Cancellation ends the waiting, not the recall.

        With *home_epoch*, the holders' tokens may name an earlier home: they must have been told, or their tokens have ended.
        """
        began_s = thread_s()
        all_asked = [(key, self._ask(key, home_epoch)) for key in held]
        for key, asked in all_asked:
            with trio.move_on_at(asked.until_s):
                # Nobody is granted to cache it anew meanwhile: the caller has claimed it, or is registered as its writer.
                await asked.over.wait()
            if not asked.over.is_set():
                self._wait_out(key)
        if all_asked:
            self._waits.observe(thread_s() - began_s)

    async def take_back_alone(self, held: Iterable[Held]) -> None:
        """Returns when nobody is alone with these any more, who may go on caching them."""
        for key, asked in [(key, self._ask(key, 0, to_look=True)) for key in held]:
            with trio.move_on_at(asked.alone_until_s):
                await asked.shown.wait()
            await self._leases.recorded(key.session)

    def ask_back(self, held: Iterable[Held]) -> None:
        """Begins to take these back; nobody waits for it."""
        for key in held:
            self._ask(key, 0)

    def _ask(self, key: Held, home_epoch: int, *, to_look: bool = False) -> _Asked:
        lease = self._leases.get(*key)
        alone_until_s = 0.0 if lease is None else lease.alone_until_s
        until_s = alone_until_s if to_look or lease is None else lease.ends_s if home_epoch else lease.cached_until_s
        asked = self._asked.get(key)
        # Who has been asked for less is asked once more.
        if asked is not None and asked.home_epoch >= home_epoch and (to_look or not asked.to_look):
            return asked
        if asked is None:
            now = monotonic_s()
            asked = _Asked(until_s, alone_until_s, self._leases.next_serial(), home_epoch, to_look)
            if until_s <= now:
                asked.ends()
                return asked
            self._asked[key] = asked
            self._leases.counts.recalled.value += 1
            if lease is not None and lease.is_directory:
                self._note_recall(lease, now)
        asked.until_s, asked.serial = until_s, self._leases.next_serial()
        asked.home_epoch, asked.to_look = home_epoch, to_look
        line = self.line(key.session)
        line.wanted[key.ino] = to_look
        line.ring()
        return asked

    def _note_recall(self, directory: Lease, now: float) -> None:
        if directory.alone_until_s > now:
            self._holds.called_back(directory.ino, directory.alone_since_s, now)
        else:
            self._holds.looked_at(directory.ino, now)

    def is_asked(self, ino: int, session: int) -> bool:
        """Whether the session has been asked for the inode and has not answered: it must not be granted more time with it."""
        return bool(self._asked) and Held(ino, session) in self._asked

    def line(self, session: int) -> Line:
        """Where what the session is told waits for it."""
        return self._lines.setdefault(session, Line())

    def next_for(self, line: Line) -> Recall | None:
        """All that is wanted of the session by now, as one message; what others only want to look at as another one."""
        if not line.wanted:
            return None
        serial = self._leases.next_serial()
        to_look = all(line.wanted.values())
        recall = Recall(serial, serial, [ino for ino, only in line.wanted.items() if only == to_look], to_look)
        for ino in recall.inodes:
            del line.wanted[ino]
        line.sent[recall.number] = recall
        while len(line.sent) > UNANSWERED_MAX:
            del line.sent[next(iter(line.sent))]
        return recall

    # ---------------------------------------------------------------------------------------------------- answering

    def answered(self, session: Session, numbers: Iterable[int], opens: Iterable[int], sequence: int) -> list[int]:
        """The session caches nothing any more of what these recalls named; the inodes that nobody has open now."""
        line = self._lines.get(session.number)
        if line is None:
            return []
        open_now = set(opens)
        for ino in open_now:
            self._sessions.open(session, ino, write=False, sequence=sequence)
        unused = []
        for recall in [line.sent.pop(number) for number in numbers if number in line.sent]:
            for ino in recall.inodes:
                if recall.to_look:
                    self._shown(Held(ino, session.number))
                    continue
                if ino in line.presumed:
                    line.presumed.discard(ino)
                    # Registered with sequence 0; whatever it has opened since then has a larger one.
                    if ino not in open_now and self._sessions.close(session, ino, 1, still_open=False) is not None:
                        unused.append(ino)
                self._over(Held(ino, session.number), recall.serial)
        return unused

    def given_back(self, session: Session, inodes: Iterable[int], serial: int) -> None:
        """The session caches nothing any more of these, unasked."""
        for ino in inodes:
            key = Held(ino, session.number)
            is_open = self._sessions.has_open(session.number, ino)
            if not self._leases.stops_caching(ino, session.number, up_to=serial, is_open=is_open):
                continue
            self._leases.counts.given_back.value += 1
            asked = self._asked.get(key)
            if asked is not None and not asked.home_epoch:
                self._settle(key)

    def _shown(self, key: Held) -> None:
        self._leases.shows(*key)
        asked = self._asked.get(key)
        if asked is not None and asked.to_look:
            self._settle(key)
        elif asked is not None:
            asked.shown.set()

    def _over(self, key: Held, serial: int) -> None:
        is_open = self._sessions.has_open(key.session, key.ino)
        self._leases.stops_caching(key.ino, key.session, up_to=serial, is_open=is_open)
        asked = self._asked.get(key)
        if asked is not None and asked.serial < serial:
            self._leases.knows_home(key.ino, key.session, asked.home_epoch)
            self._settle(key)

    def _settle(self, key: Held) -> None:
        asked = self._asked.pop(key, None)
        if asked is not None:
            asked.ends()
            line = self._lines.get(key.session)
            if line is not None:
                line.wanted.pop(key.ino, None)

    # ------------------------------------------------------------------------------------------------- no answer

    def _wait_out(self, key: Held) -> None:
        """The holder has not answered, and caches nothing any more since its time is over. It may have the inode open."""
        if key not in self._asked:
            return
        self._leases.counts.waited_out.value += 1
        if self._asked[key].to_look:
            self._settle(key)  # that it is alone ends by time, and not before its records are applied
            return
        session = self._sessions.get(key.session)
        if session is not None and self._sessions.open(session, key.ino, write=False, sequence=0):
            self.line(key.session).presumed.add(key.ino)
        self._leases.stops_caching(key.ino, key.session, up_to=self._leases.next_serial(), is_open=session is not None)
        self._settle(key)

    def expire(self, now: float) -> None:
        """Ends recalls whose time is over and for which nobody waits any more."""
        for key in [key for key, asked in self._asked.items() if asked.until_s <= now]:
            self._wait_out(key)
        for number in [number for number in self._lines if self._sessions.get(number) is None]:
            line = self._lines[number]
            if not line.wanted and not any(key.session == number for key in self._asked):
                line.ring()
                del self._lines[number]

    def presented(self, session: Session) -> None:
        """The session has said what it has open: nothing needs to be presumed any more."""
        line = self._lines.get(session.number)
        if line is not None:
            line.presumed.clear()
            line.ring()

    def ends_alone(self, number: int) -> None:
        """The session is alone with nothing any more: who only wants to look need not wait for its caches."""
        for key in [key for key in self._asked if key.session == number]:
            self._shown(key)

    def end_session(self, number: int) -> None:
        """The session's process is known to be dead: its caches are gone. What it is still alone with is waited for."""
        line = self._lines.pop(number, None)
        if line is not None:
            line.ring()
        for key in [key for key in self._asked if key.session == number]:
            if not self._leases.is_alone(key.ino, number, monotonic_s()):
                self._settle(key)

    def end(self) -> None:
        """The term is over: wakes all streams to find that out."""
        for line in self._lines.values():
            line.ring()
