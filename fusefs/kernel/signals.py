"""Decides whether a signal that interrupts a waiting program ends its wait.

Linux interrupts a request for any signal, also for one that the program handles and then goes on as if nothing had happened:
a timer, the end of a child. On a local disk such a program never sees EINTR, and many could not cope with it. So it depends
on the signal:

- A signal that kills the program ends its wait at once.
- A signal of `ENDING` that the program handles ends it after `ENDING_S`. While all is well everything is done by then, as if
  there had been no signal.
- Any other signal that it handles ends it after `OTHERS_S`, which is longer than an election takes.
- A signal that is blocked or ignored, or only stops the program, changes nothing.
"""

import signal
from typing import NamedTuple

ENDING = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM})
ENDING_S = 0.5  # while all is well, everything is done within that time
OTHERS_S = 30.0  # longer than any election takes

_HARMLESS = frozenset(
    {
        signal.SIGCHLD,
        signal.SIGCONT,
        signal.SIGSTOP,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
        signal.SIGURG,
        signal.SIGWINCH,
    }
)
"""What ends no program that does not handle it."""


def _set_of(signals: frozenset[signal.Signals]) -> int:
    return sum(1 << number - 1 for number in signals)


_KILL, _ENDING, _HARMLESS_SET = _set_of(frozenset({signal.SIGKILL})), _set_of(ENDING), _set_of(_HARMLESS)


class Signals(NamedTuple):
    """The signals of a thread, bit n - 1 for signal n: those that wait for it or its process, and what becomes of them."""

    pending: int
    blocked: int
    ignored: int
    handled: int


def signals_of(pid: int) -> Signals | None:
    """The signals of a thread; None for one that this process cannot see."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            lines = dict(line.split(b":", 1) for line in file)
        own, shared, *others = (int(lines[name], 16) for name in (b"SigPnd", b"ShdPnd", b"SigBlk", b"SigIgn", b"SigCgt"))
    except (OSError, KeyError, ValueError):
        return None
    return Signals(own | shared, *others)


def ends_waiting(signals: Signals | None, waited_s: float) -> bool:
    """Whether a program that was interrupted *waited_s* ago is answered EINTR now. None: its signals cannot be seen."""
    if signals is None:
        return waited_s >= ENDING_S
    if signals.pending & _KILL:
        return True
    comes = signals.pending & ~signals.blocked & ~signals.ignored
    if comes & ~signals.handled & ~_HARMLESS_SET:
        return True
    handled = comes & signals.handled
    return bool(handled & _ENDING and waited_s >= ENDING_S) or bool(handled and waited_s >= OTHERS_S)
