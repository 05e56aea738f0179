"""Operations that go on while something else happens, none of which may fail."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.lab import Lab


class Load(threading.Thread):
    """Writes on one server and reads on another, names and contents, until it is told to stop."""

    def __init__(self, writer: Path, reader: Path, name: str) -> None:
        super().__init__()
        self.folder, self.there = writer / name, reader / name
        self.turns = 0
        self.slowest_s = 0.0
        self.failed: list[str] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        try:
            self.folder.mkdir()
            while not self.stopped.is_set():
                began_s = time.monotonic()
                self._turn(self.turns)
                self.slowest_s = max(self.slowest_s, time.monotonic() - began_s)
                self.turns += 1
        except Exception as error:
            self.failed.append(f"turn {self.turns}: {error!r}")

    def _turn(self, number: int) -> None:
        name, content = f"file-{number % 50}", b"%d " % number * 10_000
        (self.folder / name).write_bytes(content)
        # Through the agent of the writer's server.
        assert (self.there / name).read_bytes() == content
        if number % 3 == 0:
            (self.there / name).unlink()
            assert not (self.folder / name).exists()
        with (self.folder / "open").open("ab") as file:
            file.write(b"x")


@contextmanager
def loads_on(lab: Lab, *names: str) -> Iterator[list[Load]]:
    """Each of these servers writes what the next one reads, while inside; fails at the end for what has failed."""
    pairs = zip(names, (*names[1:], names[0]), strict=True)
    loads = [Load(lab.mount(one), lab.mount(other), f"on-{one}-{time.monotonic_ns()}") for one, other in pairs]
    for load in loads:
        load.start()
    try:
        yield loads
    finally:
        for load in loads:
            load.stopped.set()
            load.join(60)
    assert [load.failed for load in loads] == [[] for _ in loads]
