"""One worker process: does random calls on the shared folder, as seen through one mount, until it is told to stop.

    python -m tests.coherence.workers SETTINGS

prints a dot when it is ready, begins when it reads a byte, and ends after its number of calls or when its input ends.
"""

import errno
import os
import random
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec

from cluster.readable import is_readable
from tests.coherence.actions import (
    CHANGING,
    DIRECTORIES,
    FIXED,
    GROWING,
    LOGS,
    SETUP_WORKER,
    STAYING,
    TIMED,
    Actor,
    Opened,
    make_shared_files,
    own_name,
)
from tests.coherence.records import CELLS, NEW_MODE
from tests.support.acting import RENAME_EXCHANGE, RENAME_NOREPLACE

KEPT_OPEN = 4
MODES = (0o600, 0o640, NEW_MODE, 0o660, 0o666, 0o700, 0o711, 0o755)
AWAY = frozenset({errno.EIO, errno.ENOTCONN, errno.ECONNABORTED})
AWAY_PAUSE_S = 0.1
CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL


class Settings(msgspec.Struct, frozen=True):
    """`calls`: after how many the worker ends, 0 for never. `pause_s` is the longest pause between two actions.

    `mapping`: files are read through mmap(2), too, where an error of the file system is a SIGBUS.
    """

    worker: int
    mount: str
    folder: str
    log: str
    seed: int
    calls: int = 0
    pause_s: float = 0.0
    mapping: bool = True


class Worker:
    """Chooses what to do next; `run` ends after the number of calls, or when standard input does."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rng = random.Random(settings.seed)
        self._actor = Actor(settings.worker, settings.mount, Path(settings.folder), Path(settings.log))
        self._kept: deque[Opened] = deque()
        self._known_records: dict[str, int] = {}
        weighted: list[tuple[int, Callable[[], None]]] = [
            (14, self._stat),
            (8, self._list),
            (8, self._read),
            (10, self._read_kept),
            (4 if settings.mapping else 0, self._read_mapped),
            (4, self._replace),
            (4, self._create),
            (4, self._link),
            (5, self._unlink),
            (5, self._rename),
            (5, self._write_fixed),
            (3, self._write_changing),
            (5, self._use_growing),
            (4, self._append),
            (4, self._read_log),
            (2, self._chmod),
            (2, self._set_time),
        ]
        self._weights = [weight for weight, _action in weighted]
        self._actions = [action for _weight, action in weighted]

    def run(self) -> None:
        wanted = self._settings.calls
        while not self._is_told_to_stop() and not (wanted and self._actor.calls >= wanted):
            self._rng.choices(self._actions, self._weights)[0]()
        while self._kept:
            self._kept.popleft().close()

    def _is_told_to_stop(self) -> bool:
        away = self._actor.last_errno in AWAY
        pause_s = AWAY_PAUSE_S if away else self._rng.uniform(0, self._settings.pause_s)
        return is_readable(0, pause_s)

    def _changing(self) -> str:
        return self._rng.choice(CHANGING)

    # --------------------------------------------------------------------------------------------------- looking

    def _stat(self) -> None:
        self._actor.stat(self._changing() if self._rng.random() < 0.7 else self._rng.choice(STAYING))

    def _list(self) -> None:
        self._actor.listing(self._rng.choice(DIRECTORIES))

    def _read(self) -> None:
        """Opens, reads and closes; or keeps the file open for later."""
        name = self._changing() if self._rng.random() < 0.6 else self._rng.choice(FIXED + GROWING)
        file = self._actor.open(name, os.O_RDONLY)
        if file is None:
            return
        self._actor.read(file, *self._part())
        if self._rng.random() < 0.4:
            self._keep(file)
        else:
            file.close()

    def _part(self) -> tuple[int, int]:
        """A single cell, or all: the first and the number of cells."""
        return (0, CELLS) if self._rng.random() < 0.6 else (self._rng.randrange(CELLS), 1)

    def _keep(self, file: Opened) -> None:
        self._kept.append(file)
        if len(self._kept) > KEPT_OPEN:
            self._kept.popleft().close()

    def _read_kept(self) -> None:
        if not self._kept:
            self._read()
            return
        file = self._rng.choice(self._kept)
        self._actor.fstat(file)
        if self._actor.last_errno == 0:
            self._actor.read(file, *self._part())
        if self._actor.last_errno:
            self._kept.remove(file)
            file.close()

    def _read_mapped(self) -> None:
        self._actor.read_mapped(self._changing() if self._rng.random() < 0.6 else self._rng.choice(FIXED))

    # ----------------------------------------------------------------------------------------------------- names

    def _make(self, name: str) -> bool:
        """A new file with content; whether it is there."""
        with self._actor.opened(name, CREATE) as file:
            if file is not None:
                self._actor.write(file)
        return file is not None

    def _replace(self) -> None:
        """Writes a file under a name of its own, and renames it over a shared name."""
        own = own_name(self._settings.worker)
        if not self._make(own) and self._actor.last_errno != errno.EEXIST:
            return  # (there may be one of which nothing is known but that its making, or its renaming, failed)
        self._actor.rename(own, self._changing())

    def _create(self) -> None:
        self._make(self._changing())

    def _link(self) -> None:
        with self._actor.opened(self._changing(), os.O_RDONLY) as file:
            if file is not None:
                self._actor.link(file, self._changing())

    def _unlink(self) -> None:
        self._actor.unlink(self._changing())

    def _rename(self) -> None:
        name, target = self._rng.sample(CHANGING, 2)
        self._actor.rename(name, target, self._rng.choice((0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE)))

    # --------------------------------------------------------------------------------------------------- content

    def _write_fixed(self) -> None:
        self._write_to(self._rng.choice(FIXED))

    def _write_changing(self) -> None:
        self._write_to(self._changing())

    def _write_to(self, name: str) -> None:
        with self._actor.opened(name, os.O_RDWR) as file:
            if file is None:
                return
            for _ in range(self._rng.randint(1, 3)):
                self._actor.write(file, *self._part())
                if self._rng.random() < 0.3:
                    self._actor.read(file, *self._part())

    def _use_growing(self) -> None:
        name = self._rng.choice(GROWING)
        with self._actor.opened(name, os.O_RDWR) as file:
            if file is None:
                return
            chosen = self._rng.random()
            if chosen < 0.2:
                self._actor.truncate(name, file.ino, self._whole_pages(), file)
            elif chosen < 0.4:
                self._actor.truncate(name, file.ino, self._whole_pages())
            else:
                self._actor.write(file, *self._part())
            self._actor.fstat(file)

    def _whole_pages(self) -> int:
        return self._rng.choice((0, 2, 4, 6))

    def _append(self) -> None:
        with self._actor.opened(self._rng.choice(LOGS), os.O_WRONLY | os.O_APPEND) as file:
            if file is not None:
                for _ in range(self._rng.randint(1, 3)):
                    self._actor.append(file)

    def _read_log(self) -> None:
        name = self._rng.choice(LOGS)
        with self._actor.opened(name, os.O_RDONLY) as file:
            if file is not None:
                known = self._known_records.get(name, 0)
                self._known_records[name] = self._actor.read_log(file, known if self._rng.random() < 0.98 else 0)
                self._actor.fstat(file)

    # ------------------------------------------------------------------------------------------------ attributes

    def _chmod(self) -> None:
        name = self._changing() if self._rng.random() < 0.7 else self._rng.choice(STAYING)
        with self._actor.opened(name, os.O_RDONLY) as file:
            if file is not None:
                self._actor.chmod(file, self._rng.choice(MODES))

    def _set_time(self) -> None:
        name = self._rng.choice(TIMED)
        with self._actor.opened(name, os.O_RDONLY) as file:
            if file is not None:
                self._actor.set_time(name, file.ino)


def main() -> None:
    settings = msgspec.json.decode(sys.argv[1].encode(), type=Settings)
    worker = Worker(settings)
    os.write(1, b".")
    if os.read(0, 1):
        worker.run()


def set_up(folder: Path, mount: str, log: Path) -> None:
    """Makes the shared files in an empty *folder*."""
    make_shared_files(Actor(SETUP_WORKER, mount, folder, log))


if __name__ == "__main__":
    main()
