"""A server is emptied while everybody works with its files, and while agents and the manager die."""

import errno
import itertools
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blake3 import blake3

from cluster.volume.layout import VolumeLayout
from lab.lab import Lab
from tests.support.conditions import godwit, wait_for_copies, wait_until
from tests.support.runner import godwit_process as run_godwit
from tests.support.runner import heed_interrupts

SMALL = 2_480
LARGE = 20
LARGE_BYTES = 26 << 20
HOT = 9  # of the small ones, those that are written meanwhile
MAX_UNKNOWN = 3  # appends that were under way when an agent was killed
OVERRIDES = {"mount": {"commit_s": 1.0}, "manager": {"term_s": 2.0, "session_timeout_s": 6.0}}
FOLDERS = 20

# Clean, committed files with fewer copies than the policy's two; what is to be deleted does not count any more.
SHORT = """
    SELECT i.ino, COUNT(r.volume) AS copies
    FROM inodes i
    LEFT JOIN (
        SELECT r.* FROM replicas r
        LEFT JOIN tasks t ON t.ino = r.ino AND t.volume = r.volume AND t.operation = 'delete'
        WHERE t.task IS NULL AND r.fault = ''
    ) r ON r.ino = i.ino AND r.version = i.version
    WHERE i.home_volume != 0 AND i.dirty = 0 AND i.version != 0 AND i.nlink != 0
    GROUP BY i.ino HAVING COUNT(r.volume) < ?
"""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A network of three servers of its own."""
    lab = Lab.create(tmp_path / "lab", overrides=OVERRIDES)
    lab.up()
    yield lab
    lab.down(purge=True)


class Crew:
    """Threads that work until they are told to stop; what one of them raises fails the test."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._failures: list[BaseException] = []
        self.rounds: dict[str, int] = {}

    def hire(self, name: str, work: Callable[[], None], pause_s: float = 0.0) -> None:
        def run() -> None:
            try:
                while not self._stopping.wait(pause_s):
                    work()
                    self.rounds[name] = self.rounds.get(name, 0) + 1
            except BaseException as error:
                self._failures.append(error)

        thread = threading.Thread(target=run, name=name)
        self._threads.append(thread)
        thread.start()

    def dismiss(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), f"{thread.name} hangs"

    def check(self) -> None:
        if self._failures:
            raise self._failures[0]


def make_files(top: Path, small: int, large: int) -> dict[str, bytes]:
    """Files of known content below *top*: their digests by name."""
    block = os.urandom(LARGE_BYTES)
    names = [f"d{number % FOLDERS}/{number:05}" for number in range(small + large)]
    for folder in range(FOLDERS):
        (top / f"d{folder}").mkdir(parents=True)

    def make(number: int) -> tuple[str, bytes]:
        content = b"%d," % number * (1 + number % 300) if number < small else b"%08d" % number + block[8:]
        (top / names[number]).write_bytes(content)
        return names[number], blake3(content).digest()

    with ThreadPoolExecutor(8) as pool:
        return dict(pool.map(make, range(small + large)))


def digest(path: Path) -> bytes:
    hasher = blake3()
    hasher.update_mmap(path) if path.stat().st_size > 1 << 20 else hasher.update(path.read_bytes())
    return hasher.digest()


def objects_on(lab: Lab, server: str) -> list[Path]:
    return [path for path in VolumeLayout(lab.volume(server)).objects.rglob("*") if path.is_file()]


class Sampler:
    """Looks at the catalog and at the disks: files that nobody writes must always have their two copies."""

    def __init__(self, lab: Lab, steady: list[int]) -> None:
        self._lab = lab
        self._steady = frozenset(steady)
        self._draw = random.Random(7)
        self._list = sorted(steady)
        self._catalog = f"file:{lab.root}/catalog/catalog.db?mode=ro"

    def sample(self) -> None:
        with sqlite3.connect(self._catalog, uri=True, timeout=30) as connection:
            short = connection.execute(SHORT, (2,)).fetchall()
        connection.close()
        assert not [row for row in short if row[0] in self._steady]
        assert not [row for row in short if row[1] < 1], "a file that is written has a current replica all the same"
        for ino in self._draw.sample(self._list, min(200, len(self._list))):
            # The source first: what goes from there has arrived elsewhere before.
            there = [Path(VolumeLayout(self._lab.volume(server)).object_path(ino)).exists() for server in ("s1", "s2", "s3")]
            assert sum(there) >= 2, ino


class Writer:
    """Appends records to the hot files through one mount; remembers what was taken, and what nobody can know.

    An append that was under way to an agent when that was killed ends with EIO: it was done, or it was not.
    """

    def __init__(self, name: str, paths: list[Path]) -> None:
        self._name = name
        self._paths = paths
        self._draw = random.Random(name)
        self._numbers = itertools.count()
        self.written: dict[str, list[bytes]] = {path.name: [] for path in paths}
        self.unknown: set[bytes] = set()

    def append(self) -> None:
        path = self._draw.choice(self._paths)
        record = f"{self._name} {path.name} {next(self._numbers):06}\n".encode()
        with path.open("ab", buffering=0) as file:
            try:
                assert file.write(record) == len(record)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                self.unknown.add(record)
                return
        self.written[path.name].append(record)


def kill_an_agent(lab: Lab, draw: random.Random) -> None:
    server = draw.choice(lab.servers)
    lab.kill(server, "agent")
    time.sleep(draw.uniform(0.1, 0.5))
    lab.start(server, "agent")


def watch(lab: Lab, number: int) -> subprocess.Popen[str]:
    """A `migrations watch` whose output is a pipe."""
    command = [sys.executable, "-m", "cli.main", "migrations", "watch", str(number), "--root", str(lab.root)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heed_interrupts)


def wait_for_end(lab: Lab, number: int, timeout_s: float) -> dict[str, object]:
    def ended() -> dict[str, object] | None:
        row: dict[str, object] = godwit(lab, "migrations", "show", str(number))["migration"]
        return row if row["state"] in ("done", "failed", "cancelled") else None

    return wait_until(ended, f"migration {number} ends", timeout_s)


@pytest.mark.timeout(420)
def test_thousands_of_files_move_while_they_are_used_and_agents_die(lab: Lab) -> None:
    top = lab.mount("s1") / "projects"
    digests = make_files(top, SMALL, LARGE)
    wait_for_copies(lab, 180)
    names = sorted(digests)
    hot, steady = names[:: len(names) // HOT][:HOT], [name for name in names if name not in names[:: len(names) // HOT][:HOT]]
    before = {name: (top / name).read_bytes() for name in hot}
    sampler = Sampler(lab, [(top / name).stat().st_ino for name in steady])
    writers = [Writer(server, [lab.mount(server) / "projects" / name for name in hot]) for server in lab.servers]
    draw = random.Random(3)

    def reader(server: str) -> Callable[[], None]:
        own = random.Random(server)

        def read() -> None:
            name = own.choice(steady)
            assert digest(lab.mount(server) / "projects" / name) == digests[name], name

        return read

    plan = godwit(lab, "migrate", str(top), "--from", "s1", "--to", "s3", "--dry-run")["plan"]
    assert (plan["files"], plan["problem_files"]) == (SMALL + LARGE, 0)
    assert plan["bytes"] > 1 << 29
    crew, hands = Crew(), Crew()
    sampler.sample()
    assert godwit(lab, "migrate", str(top), "--from", "s1", "--to", "s3")["migration"]["migration"] == 1
    watched = watch(lab, 1)
    try:
        crew.hire("sampler", sampler.sample, 0.2)
        crew.hire("killer", lambda: kill_an_agent(lab, draw), 2.0)
        for server, writer in zip(lab.servers, writers, strict=True):
            crew.hire(f"reader on {server}", reader(server), 0.01)
            hands.hire(f"writer on {server}", writer.append, 0.3)

        def most_moved() -> bool:
            crew.check()
            hands.check()
            files = godwit(lab, "migrations", "show", "1")["migration"]["files"]
            return bool(files["done"] > 0.97 * (SMALL + LARGE))

        wait_until(most_moved, "nearly all has moved", 240)
        hands.dismiss()
        row = wait_for_end(lab, 1, 120)
    finally:
        crew.dismiss()
        hands.dismiss()
        output, _ = watched.communicate(timeout=60)
    crew.check()
    hands.check()
    assert row["state"] == "done", output
    assert watched.returncode == 0, output
    assert f"{SMALL + LARGE} of {SMALL + LARGE} files" in output
    print(f"rounds: {crew.rounds} {hands.rounds}, {row['elapsed_s']} s")  # noqa: T201
    sampler.sample()
    # Those that its mount made in advance go when no file has been made for a while.
    wait_until(lambda: not objects_on(lab, "s1"), "s1 has no objects", 15)
    with ThreadPoolExecutor(8) as pool:
        found = dict(zip(steady, pool.map(lambda name: digest(lab.mount("s2") / "projects" / name), steady), strict=True))
    assert found == {name: digests[name] for name in steady}
    for name in hot:
        content = (lab.mount("s3") / "projects" / name).read_bytes()
        assert content.startswith(before[name])
        unknown = set().union(*(writer.unknown for writer in writers))
        assert len(unknown) <= MAX_UNKNOWN
        records = [line for line in content[len(before[name]) :].splitlines(keepends=True) if line not in unknown]
        assert sorted(records) == sorted(record for writer in writers for record in writer.written[Path(name).name])
    wait_for_copies(lab, 60)


def test_a_drain_goes_on_under_the_next_manager_and_leaves_nothing(lab: Lab) -> None:
    """Pause and resume on the way; the manager's server loses all its processes in the middle."""
    top = lab.mount("s2") / "things"
    digests = make_files(top, 600, 4)
    wait_for_copies(lab, 120)
    number = godwit(lab, "drain", "s2")["migration"]["migration"]
    paused = godwit(lab, "migrations", "pause", str(number))["migration"]
    assert paused["state"] == "paused"
    wait_for_copies(lab, 60)
    watched = watch(lab, number)
    assert watched.stdout is not None
    assert "paused" in watched.stdout.readline()
    watched.send_signal(signal.SIGINT)
    output, _ = watched.communicate(timeout=30)
    assert (watched.returncode, f"migration {number} goes on" in output) == (130, True), output
    at_rest = godwit(lab, "migrations", "show", str(number))["migration"]["files"]["done"]
    godwit(lab, "migrations", "resume", str(number))

    def some_done() -> bool:
        return bool(godwit(lab, "migrations", "show", str(number))["migration"]["files"]["done"] > at_rest + 20)

    wait_until(some_done, "the drain is under way", 60)
    lab.kill("s1", "manager")
    (lab.mount("s2") / "things" / "new").write_bytes(b"made on the server that is drained")
    lab.start("s1", "manager")
    row = wait_for_end(lab, number, 120)
    assert row["state"] == "done"
    assert row["kind"] == "drain"
    wait_until(lambda: not objects_on(lab, "s2"), "s2 has no objects", 15)
    for name, expected in digests.items():
        assert digest(top / name) == expected, name
    assert (lab.mount("s3") / "things" / "new").read_bytes() == b"made on the server that is drained"
    where = godwit(lab, "where", str(top / "new"))
    assert {replica["server"] for replica in where["replicas"]} == {"s1", "s3"}
    unknown = run_godwit("drain", "s9", "--root", str(lab.root))
    assert unknown.returncode == 1
    assert "s1, s2, s3" in unknown.stderr
