"""How long applications wait when a manager dies: faults again and again, and the distribution of the longest stalls.

    python -m bench.failover --kills 20 --server-kills 20 --cuts 10 --busy 20

Writers on the mounts of all other servers make, write, rename, read and remove files, one after the other. After each fault it is
looked at the longest time between two of their operations, and whether any failed. Then the network is made whole again.
"""

import argparse
import contextlib
import itertools
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.__main__ import DEFAULT_PARENT, running_lab
from cli.commands.manager import ask_candidates, manager_of
from cli.display.render import print_table
from cli.network.target import lab_target
from cluster.errors import GodwitError
from lab.lab import Lab

ANSWER_S = 1.0  # for a candidate to say what it sees; dead ones take all of it
WHOLE_S = 60.0  # for a network to be whole again after a fault was mended
WATCH_S = 60.0
"""After a fault: longer than any operation may wait."""
STEADY_OPERATIONS = 40  # of each writer before the fault, and after it, to call it running
POLL_S = 0.1  # adds nothing to the figures: those are of the writers' clocks
CONTENT = b"x" * 100  # small: the stalls are the manager's, not the disk's
FIGURES = ("MIN", "MEDIAN", "P90", "MAX", "ERRORS")


class Writer:
    """One thread on one mount; `returned` are the times at which its operations came back, `errors` what failed."""

    def __init__(self, folder: Path) -> None:
        self.returned = [time.monotonic()]  # monotonic; grows in the thread, only copied elsewhere
        self.errors: list[str] = []  # what the system said; any of them fails the run
        self._folder = folder
        self._stop = threading.Event()  # looked at between rounds of four operations
        folder.mkdir(parents=True)
        # A daemon: one that hangs in a mount must not keep the process.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        while not self._stop.is_set():
            new, old = self._folder / f"{number}.new", self._folder / f"{number}"
            for step in (partial(new.write_bytes, CONTENT), partial(new.rename, old), old.read_bytes, old.unlink):
                try:
                    step()
                except OSError as error:
                    self.errors.append(f"{error.strerror}")
                # Also after an error: it came back, and the wait is what is measured.
                self.returned.append(time.monotonic())
            number += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(WATCH_S)

    def longest_since(self, begin: float) -> float:
        """The longest time without an operation that came back, from the fault on."""
        # From the fault on, so that a pause before it does not count.
        times = [begin, *(each for each in list(self.returned) if each > begin)]
        return max((later - earlier for earlier, later in itertools.pairwise(times)), default=0.0)

    def done_since(self, begin: float) -> int:
        return sum(each > begin for each in list(self.returned))


def read_for_ever(folder: Path) -> None:
    """Looks at all that is in a folder, until the mount is gone: so it has leases for it."""
    with contextlib.suppress(OSError):
        while True:
            for path in folder.rglob("*"):
                with contextlib.suppress(FileNotFoundError):
                    path.stat()


@dataclass
class Fault:
    """One kind of fault: how it is done and undone, how often, and what came of it."""

    name: str  # as the table shows it; part of the folder's name
    times: int  # how often; 0 leaves it out
    strike: Callable[[Lab, str], None]  # on the server whose manager is in office
    mend: Callable[[Lab, str], None]  # harmless where `strike` was never done
    stalls_s: list[float] = field(default_factory=list)  # the longest of each fault, over all writers
    errors: list[str] = field(default_factory=list)  # of all writers, in the whole run


def manager_now(lab: Lab) -> str:
    """The server whose manager is in office, once all candidates hear it."""
    deadline = time.monotonic() + WHOLE_S
    while time.monotonic() < deadline:
        with contextlib.suppress(GodwitError):
            answers = ask_candidates(lab_target(lab), ANSWER_S)
            found = manager_of(answers)
            # All must hear it: a fault during an election would measure two.
            if found is not None and all(info is not None and info.hears for info in answers.values()):
                return found.server
        time.sleep(POLL_S)
    raise GodwitError(f"no manager that everybody hears within {WHOLE_S:g} s")


def strike_once(lab: Lab, fault: Fault, name: str, *, watched: bool) -> None:
    """One fault, with writers on all servers but the manager's, and with *watched* a reader of the same directories there."""
    server = manager_now(lab)
    # Not on the server that dies: its mount dies with it.
    writers = [Writer(lab.mount(other) / name / other) for other in lab.servers if other != server]
    if watched:
        threading.Thread(target=read_for_ever, args=(lab.mount(server) / name,), daemon=True).start()
    try:
        _wait_for(lambda: all(writer.done_since(0.0) > STEADY_OPERATIONS for writer in writers))
        begin = time.monotonic()
        fault.strike(lab, server)
        _wait_for(lambda: all(writer.done_since(begin) > STEADY_OPERATIONS for writer in writers))
        manager_now_but(lab, server)
        fault.stalls_s.append(max(writer.longest_since(begin) for writer in writers))
    finally:
        fault.mend(lab, server)
        for writer in writers:
            writer.stop()
            fault.errors += writer.errors


def manager_now_but(lab: Lab, server: str) -> None:
    """Waits until another server's manager is in office, so that the whole of the fail-over is in the figures."""

    def is_followed() -> bool:
        found = manager_of(ask_candidates(lab_target(lab), ANSWER_S))
        return found is not None and found.server != server

    _wait_for(is_followed)


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WATCH_S
    while not condition():
        if time.monotonic() > deadline:
            return  # what has not come by then is a stall of that length
        time.sleep(POLL_S)


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """So many processes that only compute, ended again whatever happens."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.failover", description=__doc__)
    parser.add_argument("--kills", type=int, default=3, metavar="N", help="of the manager's process (default 3)")
    parser.add_argument("--server-kills", type=int, default=3, metavar="N", help="of all processes of its server (default 3)")
    parser.add_argument("--cuts", type=int, default=2, metavar="N", help="of its server from the network (default 2)")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="processes that only compute meanwhile (default 0)")
    parser.add_argument(
        "--watched", action="store_true", help="the dying server reads what the others write: leases are waited for"
    )
    options = parser.parse_args(arguments)
    if min(options.kills, options.server_kills, options.cuts, options.busy) < 0:
        parser.error("numbers must not be negative")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 1 if an operation of an application failed."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    faults = [
        Fault("manager killed", options.kills, lambda lab, s: lab.kill(s, "manager"), lambda lab, s: lab.start(s, "manager")),
        Fault("its server killed", options.server_kills, lambda lab, s: lab.kill(s), lambda lab, s: lab.start(s)),
        Fault("its server cut off", options.cuts, lambda lab, s: lab.cut(s), lambda lab, s: lab.mend(s)),
    ]
    with (
        tempfile.TemporaryDirectory(prefix="godwit-failover-", dir=DEFAULT_PARENT) as folder,
        running_lab(Path(folder) / "lab") as lab,
        busy(options.busy),
    ):
        for fault in faults:
            for number in range(fault.times):
                strike_once(lab, fault, f"{fault.name.replace(' ', '-')}-{number}", watched=options.watched)
    show(faults)
    return 1 if any(fault.errors for fault in faults) else 0


def show(faults: Sequence[Fault]) -> None:
    """The longest stall after each fault, in seconds, over all faults of a kind."""
    rows = []
    for fault in faults:
        if fault.stalls_s:
            ordered = sorted(fault.stalls_s)
            # A stall that was seen, never a value between two.
            ninth = ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))]
            figures = (ordered[0], statistics.median(ordered), ninth, ordered[-1])
            rows.append([fault.name, str(len(ordered)), *(f"{figure:.2f}" for figure in figures), str(len(fault.errors))])
    print_table(["FAULT", "TIMES", *FIGURES], rows, right=["TIMES", *FIGURES])


if __name__ == "__main__":
    sys.exit(main())
