"""The lab's supervisor: one process that starts a part again that ended by itself, as systemd does on a server (`cli/systemd`).

The kernel tells it when a process ends, `WAKE` that a command has changed `lab.json`; in between it sleeps. It starts parts under
the lab's lock, and only those that `lab.json` says should run, so that none is started twice. It ends with the lab, or when
`lab.json` names another supervisor. Not being the parent of all parts, it cannot see how one ended: one that stopped in order is
started again, too, unless `godwit lab kill` told it to stop.
"""

import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cluster.errors import GodwitError, Refused, Unavailable, error_text
from cluster.logs import STAMP, log_to_stderr
from lab import processes
from lab.lab import Lab
from lab.launch import WAKE
from lab.processes import ProcessId
from lab.registry import lab_lock, registered
from lab.state import LabState, read_state, supervised

log = logging.getLogger(__name__)

STEADY_S = 60.0  # a part that lived so long has begun well: its failures count from the beginning again
FIRST_DELAY_S = 1.0  # doubled with each further failure
LONGEST_DELAY_S = 60.0  # a part whose cause is mended is back within a minute
LOG_FORMAT = STAMP + "supervisor: %(message)s"


# ------------------------------------------------------------------------------------------------------------- rules


@dataclass(frozen=True)
class Life:
    """A part that should run, and how it went lately."""

    process: ProcessId  # the last one that was started
    failures: int = 0  # how many lives in a row were over before `STEADY_S`, and attempts to start it that failed
    due_s: float | None = None  # when it is started again; None while it runs


def delay_s(failures: int) -> float:
    """How long a part waits that has failed so often in a row: at first not at all, then 1, 2, 4 … 60 s."""
    return min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** (failures - 2)) if failures > 1 else 0.0


def ended(life: Life, lived_s: float, now_s: float) -> Life:
    """The part after its process has ended, or did not come to be."""
    failures = life.failures + 1 if lived_s < STEADY_S else 0
    return replace(life, failures=failures, due_s=now_s + delay_s(failures))


def followed(lives: Mapping[str, Life], state: LabState) -> dict[str, Life]:
    """The parts that should run now. One that somebody else has started begins with a clean record."""
    return {
        name: life if (life := lives.get(name)) and life.process == process else Life(process)
        for name, process in supervised(state).items()
    }


# ----------------------------------------------------------------------------------------------------------- process


class Supervisor:
    """Looks after the lab at *root* as the process *own*; *woken* can be read from when `lab.json` has changed."""

    def __init__(self, root: Path, own: ProcessId, woken: socket.socket) -> None:
        self._root = root  # the lab's folder
        self._own = own  # compared with what `lab.json` says, under the lock: two supervisors never both start parts
        self._woken = woken  # the signal handler's end of it is written by the interpreter (`set_wakeup_fd`)
        self._lives: dict[str, Life] = {}  # by names like `s1/agent`; rebuilt from `lab.json` at every look

    def run(self) -> None:
        """Returns when the lab is down or has another supervisor; raises `Refused` if it cannot be understood any more."""
        while True:
            try:
                if not self._look():
                    return
            except (OSError, Unavailable) as error:
                log.error("cannot look after the lab: %s", error_text(error))
                # The disk may be full or the lock taken for long: neither tells when it is over.
                time.sleep(FIRST_DELAY_S)
            else:
                self._sleep()

    def _look(self) -> bool:
        """Starts what is due; False if there is nothing to look after any more."""
        # Parts that were started here are its children, and zombies until somebody reaps them.
        processes.reap()
        with lab_lock(self._root):
            # Under the lock: `down` holds it from its first step to its last.
            if self._root not in registered():
                return False
            state = read_state(self._root)
            if state.supervisor != self._own:
                return False
            lab = Lab.load(self._root)
            self._lives = {name: self._tended(lab, name, life) for name, life in followed(self._lives, state).items()}
        return True

    def _tended(self, lab: Lab, name: str, life: Life) -> Life:
        if life.due_s is None and not processes.is_alive(life.process):
            lived_s = processes.age_s(life.process)
            life = ended(life, lived_s, time.monotonic())
            log.warning("%s ended after %.1f s; %s", name, lived_s, _outlook(life))
        if life.due_s is None or life.due_s > time.monotonic():
            return life
        try:
            return replace(life, process=lab.launch(*name.split("/")), due_s=None)
        except (OSError, GodwitError) as error:
            life = ended(life, 0.0, time.monotonic())
            log.error("%s cannot be started: %s; %s", name, error_text(error), _outlook(life))
            return life

    def _sleep(self) -> None:
        """Waits until a process ends, `lab.json` changes, or a part is due."""
        with ExitStack() as opened:
            poll = select.poll()
            poll.register(self._woken, select.POLLIN)
            for life in self._lives.values():
                if life.due_s is None:
                    descriptor = processes.watch(life.process)
                    # It has ended since the look: look again at once.
                    if descriptor is None:
                        return
                    opened.callback(os.close, descriptor)
                    poll.register(descriptor, select.POLLIN)
            due = [life.due_s for life in self._lives.values() if life.due_s is not None]
            # None waits without limit: what ends is told by a pidfd, what changes by WAKE.
            poll.poll(max(0.0, min(due) - time.monotonic()) * 1000 if due else None)
        with suppress(BlockingIOError):
            # All bytes at once: one look serves many signals.
            self._woken.recv(4096)


def _outlook(life: Life) -> str:
    wait_s = delay_s(life.failures)
    return f"started again in {wait_s:g} s, failure {life.failures} in a row" if wait_s else "started again now"


def main(root: Path) -> None:
    """The process. SIGTERM ends it at once: whoever sends it holds the lab's lock, so that nothing is half done."""
    with log_to_stderr(LOG_FORMAT, logging.INFO):
        # It would keep the file system of whoever called it from being unmounted.
        os.chdir("/")
        woken, waker = socket.socketpair()
        # `recv` must not wait when something else has ended the poll; of the other end `set_wakeup_fd` demands it.
        woken.setblocking(False)
        waker.setblocking(False)
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        # Without a handler the interpreter would not write to the wakeup descriptor.
        signal.signal(WAKE, lambda _number, _frame: None)
        own = processes.identify(os.getpid())
        assert own is not None, "a process has an identity"
        try:
            Supervisor(root, own, woken).run()
        except Refused as error:
            log.critical("%s", error)
            sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
