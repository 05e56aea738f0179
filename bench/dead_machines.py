"""What a machine that dies takes with it, as its programs and the others see it: a server of a lab is killed again and again.

    python -m bench.dead_machines --kills 10 --rate 200

A program on s2 makes files in a held directory at a steady rate, and notes when each call returned. Then all processes of s2
are killed, and the journal of its mount goes, as with `/run`. What s1 does not find, once the leases of s2 have ended, is lost.
Prints milliseconds: how long before the last answer the oldest file was made that is lost. Fails if what is lost is not the
end. `bench.loss_window` measures the same without a kernel and kills, at many more moments.
"""

import argparse
import itertools
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from bench.__main__ import DEFAULT_PARENT, running_lab
from bench.failover import manager_now
from cli.display.render import print_table
from cluster.journal import JOURNALS, journal_owner
from cluster.messages import NamesPolicy
from lab.lab import Lab

DIES, LOOKS = "s2", "s1"
STEADY_S = 3.0  # of making files before the machine dies: the mount asks to be alone after the second one


class Maker:
    """A thread that makes files at a steady rate; `answered_s` are the times at which that was done, by their numbers."""

    def __init__(self, folder: Path, rate: float) -> None:
        self.answered_s: list[float] = []
        self._folder, self._rate = folder, rate
        self._stop = threading.Event()
        # A daemon: one that hangs in a mount must not keep the process.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        begin_s = time.monotonic()
        for number in itertools.count():
            if self._stop.wait(max(0.0, begin_s + number / self._rate - time.monotonic())):
                return
            try:
                os.close(os.open(self._folder / f"{number}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
            except OSError:
                return  # its mount is dead
            self.answered_s.append(time.monotonic())

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(10.0)


def lost_of(answered_s: Sequence[float], found: set[int]) -> tuple[int, float]:
    """How many files are not among those found, by their numbers, and how long before the last answer the oldest was made."""
    lost = [number for number in range(len(answered_s)) if number not in found]
    if lost != list(range(len(answered_s) - len(lost), len(answered_s))):
        raise RuntimeError(f"what is lost is not the end: {lost}")
    return len(lost), answered_s[-1] - answered_s[lost[0]] if lost else 0.0


def lose_machine(lab: Lab, name: str, rate: float) -> tuple[int, int, float]:
    """How many files were made, how many of them are lost, and how old the oldest of these was."""
    if manager_now(lab) == DIES:
        raise RuntimeError(f"the manager is on {DIES}, which is about to die")
    (lab.mount(DIES) / name).mkdir()
    maker = Maker(lab.mount(DIES) / name, rate)
    time.sleep(STEADY_S)
    lab.kill(DIES)
    maker.stop()
    for journal in JOURNALS.glob(f"{journal_owner(lab.config(DIES).cluster, DIES)}:*"):
        journal.unlink()
    lost, age_s = lost_of(maker.answered_s, {int(entry) for entry in os.listdir(lab.mount(LOOKS) / name)})
    lab.start(DIES)
    return len(maker.answered_s), lost, age_s


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m bench.dead_machines", description=__doc__)
    parser.add_argument("--kills", type=int, default=10, metavar="N", help="how often the machine dies (default 10)")
    parser.add_argument("--rate", type=float, default=200.0, help="files made a second (default 200)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        tempfile.TemporaryDirectory(prefix="godwit-dead-", dir=DEFAULT_PARENT) as folder,
        running_lab(Path(folder) / "lab", names=NamesPolicy.HELD) as lab,
    ):
        seen = [lose_machine(lab, f"dead-{number}", options.rate) for number in range(options.kills)]
    print_table(
        ["MADE", "LOST", "OLDEST MS"],
        [[f"{made}", f"{lost}", f"{1e3 * age_s:.1f}"] for made, lost, age_s in sorted(seen, key=lambda item: item[2])],
        right=["MADE", "LOST", "OLDEST MS"],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
