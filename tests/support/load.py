"""A mixed load on one mount that notices every operation that failed, was lost, or was applied twice.

Each worker is a thread with a model of what must be there. Names are made with `O_EXCL`, renamed and removed exactly once,
so that what is applied twice fails; records and counters have to be complete at the end. All files have their home on the
mount's own server.
"""

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

RECORD = b"%011d\n"
KEPT = 12


class Worker:
    """One thread; `completed` are the times at which its operations returned."""

    def __init__(self, folder: Path, work: Callable[["Worker", Path], Callable[[Path], None]]) -> None:
        self.name = f"{work.__name__} in {folder}"
        self.completed: list[float] = [time.monotonic()]
        self.failure: BaseException | None = None
        self._folder = folder
        self._work = work
        self._stop = threading.Event()
        self._check: Callable[[Path], None] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        folder.mkdir(parents=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._check = self._work(self, self._folder)
        except BaseException as error:
            self.failure = error

    def did(self) -> bool:
        """An operation has returned; False when it was the last one."""
        self.completed.append(time.monotonic())
        return not self._stop.is_set()

    def stop(self) -> None:
        self._stop.set()
        done = len(self.completed)
        self._thread.join(60)
        assert not self._thread.is_alive(), f"{self.name} hangs: {len(self.completed) - done} operations in 60 s; {self._place()}"
        if self.failure is not None:
            raise AssertionError(f"{self.name} failed after {len(self.completed)} operations") from self.failure

    def _place(self) -> str:
        """Where the thread is: its line, and what the kernel says of its system call."""
        frame = sys._current_frames().get(self._thread.ident or 0)
        line = "".join(traceback.format_stack(frame)[-2:]) if frame is not None else "no frame"
        stack = Path(f"/proc/self/task/{self._thread.native_id}/stack").read_text(errors="replace")
        return f"since {time.monotonic() - self.completed[-1]:.1f} s\n{line}\n{stack}"

    def longest_gap_s(self) -> float:
        """The longest time between two operations that returned."""
        return max((later - earlier for earlier, later in zip(self.completed, self.completed[1:], strict=False)), default=0.0)

    def check(self, folder: Path) -> None:
        """Compares what is there, seen through *folder* of any mount, with what must be there."""
        assert self._check is not None
        self._check(folder)


def names(worker: Worker, folder: Path) -> Callable[[Path], None]:
    """Makes files, writes, syncs some, renames each, reads, and removes old ones."""
    number = 0
    while True:
        new, done, old = (folder / f"{number:06}.new", folder / f"{number:06}", folder / f"{number - KEPT:06}")
        with new.open("xb") as file:
            worker.did()
            file.write(b"%d" % number)
            if number % 4 == 0:
                file.flush()
                os.fsync(file.fileno())
        worker.did()
        os.rename(new, done)
        worker.did()
        assert done.read_bytes() == b"%d" % number
        worker.did()
        if number >= KEPT:
            old.unlink()
        number += 1
        if not worker.did():
            break

    def check(seen: Path) -> None:
        kept = range(max(0, number - KEPT), number)
        assert sorted(path.name for path in seen.iterdir()) == [f"{n:06}" for n in kept]
        assert [(seen / f"{n:06}").read_bytes() for n in kept] == [b"%d" % n for n in kept]

    return check


def records(worker: Worker, folder: Path) -> Callable[[Path], None]:
    """Appends numbered records, syncs, and opens the file again and again."""
    number = 0
    going = True
    while going:
        with (folder / "log").open("ab", buffering=0) as file:
            for _ in range(20):
                file.write(RECORD % number)
                number += 1
                worker.did()
            os.fsync(file.fileno())
        going = worker.did()

    def check(seen: Path) -> None:
        assert (seen / "log").read_bytes() == b"".join(RECORD % n for n in range(number))

    return check


def counting(worker: Worker, folder: Path) -> Callable[[Path], None]:
    """Reads a counter, adds one and writes it back; counts in a directory's links and an attribute, too."""
    path = folder / "counter"
    path.write_bytes(b"0")
    number = 0
    while True:
        with path.open("r+b") as file:
            value = int(file.read())
            file.seek(0)
            file.write(b"%d" % (value + 1))
        worker.did()
        number += 1
        os.setxattr(path, "user.count", b"%d" % number, os.XATTR_REPLACE if number > 1 else os.XATTR_CREATE)
        worker.did()
        (folder / f"d{number}").mkdir()
        worker.did()
        if number > KEPT:
            (folder / f"d{number - KEPT}").rmdir()
        if not worker.did():
            break

    def check(seen: Path) -> None:
        assert (seen / "counter").read_bytes() == b"%d" % number
        assert os.getxattr(seen / "counter", "user.count") == b"%d" % number
        assert seen.stat().st_nlink == 2 + min(number, KEPT)

    return check


KINDS = (names, records, counting)


class Load:
    """Every kind of work on each of some mounts, below a new directory *name* of each."""

    def __init__(self, mounts: list[Path], name: str) -> None:
        self._mounts = mounts
        self._placed = [
            (Path(f"{name}-{number}-{kind.__name__}"), Worker(mount / f"{name}-{number}-{kind.__name__}", kind))
            for number, mount in enumerate(mounts)
            for kind in KINDS
        ]

    @property
    def workers(self) -> list[Worker]:
        return [worker for _place, worker in self._placed]

    def progress(self) -> list[int]:
        return [len(worker.completed) for worker in self.workers]

    def has_done(self, count: int, since: list[int] | None = None) -> bool:
        """Whether every worker has done *count* operations (since an earlier `progress`); raises when one has failed."""
        for worker in self.workers:
            if worker.failure is not None:
                worker.stop()
        before = since or [0] * len(self._placed)
        return all(now - then >= count for now, then in zip(self.progress(), before, strict=True))

    def stop(self) -> None:
        for worker in self.workers:
            worker.stop()

    def check(self) -> None:
        """Everything is there once, on every mount."""
        for place, worker in self._placed:
            for mount in self._mounts:
                worker.check(mount / place)

    def longest_gap_s(self) -> float:
        return max(worker.longest_gap_s() for worker in self.workers)
