"""Workers on the mounts of a lab: started together, stopped, and their history."""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from tests.coherence.records import Operation, parse
from tests.coherence.workers import Settings, set_up

START_TIMEOUT_S = 30.0
SEED_VARIABLE = "GODWIT_COHERENCE_SEED"
CODE = Path(__file__).resolve().parents[2]


def chosen_seed(default: int) -> int:
    """The seed of a test, which the environment may change."""
    return int(os.environ.get(SEED_VARIABLE, default))


@contextmanager
def marked_missing(mount_points: Iterable[Path], names: Iterable[str]) -> Iterator[None]:
    """Below mount points, before anything is mounted there: what comes before the mount is back is told from a missing name.

    The shared folders' names lead to themselves there, so that every call on them fails with ELOOP. It is a read-only mount of
    its own, which nothing shields.
    """
    with ExitStack() as stack:
        for path in mount_points:
            path.mkdir(exist_ok=True)
            for name in names:
                (path / name).symlink_to(name)
            subprocess.run(["mount", "--bind", path, path], check=True)
            stack.callback(_unmount, path)
            subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)
        yield


def _unmount(path: Path) -> None:
    subprocess.run(["umount", path], check=True)


class Load:
    """*per_mount* processes on each of *mounts* (server: mount point), in a new folder *name*. Its logs are in *logs*."""

    def __init__(
        self,
        mounts: Mapping[str, Path],
        name: str,
        logs: Path,
        *,
        seed: int,
        per_mount: int = 2,
        calls_each: int = 0,
        pause_s: float = 0.0,
        mapping: bool = True,
    ) -> None:
        self._logs = logs
        logs.mkdir(parents=True)
        self.count = per_mount * len(mounts)
        first, first_mount = next(iter(mounts.items()))
        (first_mount / name).mkdir()
        set_up(first_mount / name, first, logs / "0")
        self._processes = []
        placed = [(server, mount) for _ in range(per_mount) for server, mount in mounts.items()]
        for number, (server, mount) in enumerate(placed, 1):
            settings = Settings(
                number, server, str(mount / name), str(logs / str(number)), seed * 1000 + number, calls_each, pause_s, mapping
            )
            self._processes.append(self._start(settings))
        self._begin()

    def _start(self, settings: Settings) -> "subprocess.Popen[bytes]":
        argv = [sys.executable, "-bb", "-m", "tests.coherence.workers", msgspec.json.encode(settings).decode()]
        return subprocess.Popen(argv, cwd=CODE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def _begin(self) -> None:
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdin is not None
            if process.stdout.read(1) != b".":
                _output, errors = process.communicate(timeout=START_TIMEOUT_S)
                raise AssertionError(errors.decode(errors="replace"))
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(b".")
            process.stdin.flush()

    def calls(self) -> int:
        """How many calls have been logged so far, roughly: by the bytes of the logs."""
        return sum(path.read_bytes().count(b'"type":"outcome"') for path in self._logs.iterdir())

    def finish(self, timeout_s: float) -> list[Operation]:
        """Waits until every worker has done its calls; the history."""
        for process in self._processes:
            process.wait(timeout_s)
        return self.stop(timeout_s)

    def stop(self, timeout_s: float) -> list[Operation]:
        """Tells the workers to stop, and waits until they have; the history. A worker that failed by itself fails the test."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        failed = []
        for process in self._processes:
            process.wait(timeout_s)
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            with process.stderr as errors:
                if process.returncode:
                    failed.append(f"exit {process.returncode}: {errors.read().decode(errors='replace')}")
        assert not failed, "\n".join(failed)
        return [operation for path in sorted(self._logs.iterdir()) for operation in parse(path)]

    def kill(self) -> None:
        """Ends what still runs, whatever happened."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()
