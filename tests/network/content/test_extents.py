"""Blocks and holes of files whose home is another server, seen from everywhere, with homes that move, restart or are cut off."""

import errno
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster.volume.layout import VolumeLayout
from lab.lab import Lab
from tests.conftest import fresh
from tests.network.caching.test_caching import Meter
from tests.network.content.test_homes import home_of
from tests.support.acting import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, Outcome, fallocate, outcome
from tests.support.conditions import godwit, wait_for_replicas, wait_until
from tests.support.extents import runs
from tests.support.modes import both_modes

BLOCK = 4096
HOLE_BYTES = 64 * 1024
MIB = 1 << 20
OVERRIDES = {
    "mount": {"request_timeout_s": 4.0, "commit_s": 0.5, "renew_s": 0.7},
    "manager": {"access_s": 3.0, "term_s": 2.0, "session_timeout_s": 6.0},
}


@pytest.fixture
def folder(network: Lab, orderly_logs: None) -> str:
    """The name of a fresh directory in the root of all mounts."""
    return fresh(network.mount("s1")).name


@pytest.fixture
def held() -> Iterator[Callable[[Path, int], int]]:
    """Opens files until the test ends."""
    with ExitStack() as stack:

        def opened(path: Path, flags: int) -> int:
            descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
            stack.callback(os.close, descriptor)
            return descriptor

        yield opened


Held = Callable[[Path, int], int]


COLLAPSE_RANGE, INSERT_RANGE, UNSHARE_RANGE = 0x08, 0x20, 0x40


@both_modes
@pytest.mark.parametrize("mode", [COLLAPSE_RANGE, INSERT_RANGE, UNSHARE_RANGE])
def test_what_fuse_has_no_way_for_is_refused(network: Lab, folder: str, held: "Held", mode: int) -> None:
    """By the kernel, which asks no file system that is mounted by FUSE."""
    file = held(network.mount("s1") / folder / "file", os.O_RDWR | os.O_CREAT)
    content = os.urandom(3 * BLOCK)
    os.write(file, content)
    assert outcome(lambda: fallocate(file, mode, BLOCK, BLOCK)) == Outcome(errno.errorcode[errno.EOPNOTSUPP])
    assert os.pread(file, 4 * BLOCK, 0) == content


def punched(blocks: int, *holes: int) -> bytes:
    return b"".join(bytes(BLOCK) if number in holes else b"x" * BLOCK for number in range(blocks))


def make_with_holes(path: Path) -> bytes:
    """A file with two holes that are large enough to be left in its copies; its content."""
    with path.open("wb", buffering=0) as file:
        file.write(b"x" * 15 * HOLE_BYTES)
        fallocate(file.fileno(), PUNCH_HOLE | KEEP_SIZE, 4 * HOLE_BYTES, HOLE_BYTES)
        file.truncate(16 * HOLE_BYTES)
    return b"x" * 4 * HOLE_BYTES + bytes(HOLE_BYTES) + b"x" * 10 * HOLE_BYTES + bytes(HOLE_BYTES)


ALL_DATA = [(0, 16 * HOLE_BYTES)]
AWAY = Outcome("EIO")
DATA = [(0, 4 * HOLE_BYTES), (5 * HOLE_BYTES, 15 * HOLE_BYTES)]


@pytest.mark.parametrize("server", ["s2", "s3"])
def test_a_home_elsewhere_is_allocated_punched_and_searched(network: Lab, folder: str, held: Held, server: str) -> None:
    views = [network.mount(name) / folder / "file" for name in network.servers]
    held(views[0], os.O_RDWR | os.O_CREAT)
    file = held(network.mount(server) / folder / "file", os.O_RDWR)
    os.write(file, b"x" * 4 * BLOCK)
    fallocate(file, PUNCH_HOLE | KEEP_SIZE, BLOCK, BLOCK)
    assert {view.read_bytes() for view in views} == {punched(4, 1)}
    assert runs(file) == [(0, BLOCK), (2 * BLOCK, 4 * BLOCK)]
    fallocate(file, 0, 4 * BLOCK, 2 * BLOCK)
    assert {view.stat().st_size for view in views} == {6 * BLOCK} == {os.fstat(file).st_size}
    fallocate(file, ZERO_RANGE, 2 * BLOCK, BLOCK)
    fallocate(file, KEEP_SIZE, 6 * BLOCK, MIB)
    assert {view.read_bytes() for view in views} == {punched(6, 1, 2, 4, 5)}
    assert outcome(lambda: fallocate(file, 0x1000, 0, 10)) == Outcome(errno.errorcode[errno.EOPNOTSUPP])
    assert outcome(lambda: os.lseek(file, 6 * BLOCK, os.SEEK_HOLE)) == Outcome("ENXIO")
    assert home_of(godwit(network, "where", str(views[0]))) == "s1"
    for view in views:
        searched = held(view, os.O_RDONLY)
        os.pwrite(file, b"y" * BLOCK, 10 * BLOCK)
        assert runs(searched) == runs(file)
        fallocate(file, PUNCH_HOLE | KEEP_SIZE, 10 * BLOCK, BLOCK)
        assert runs(searched) == runs(file)


def test_what_one_home_has_is_copied_there(network: Lab, folder: str, held: Held) -> None:
    """The mount that asks sees neither what is read nor what is written: that would be 64 requests at least."""
    home, elsewhere = network.mount("s1") / folder, network.mount("s3") / folder
    content = os.urandom(64 * MIB)
    (home / "from").write_bytes(content)
    for name in ("from", "to"):
        held(home / name, os.O_RDWR | os.O_CREAT)
    source, target = held(elsewhere / "from", os.O_RDONLY), held(elsewhere / "to", os.O_RDWR)
    assert os.fstat(source).st_size == len(content)
    meter = Meter(network, "s3")
    cost = meter.cost(lambda: os.copy_file_range(source, target, len(content), 0, 5))
    assert cost.kernel < 40
    assert os.fstat(target).st_size == len(content) + 5
    for server in network.servers:
        assert (network.mount(server) / folder / "to").read_bytes() == bytes(5) + content


@pytest.mark.parametrize("server", ["s1", "s2", "s3"])
def test_between_two_homes_it_is_copied_too(network: Lab, folder: str, held: Held, server: str) -> None:
    content = os.urandom(3 * MIB)
    (network.mount("s1") / folder / "from").write_bytes(content)
    held(network.mount("s1") / folder / "from", os.O_RDONLY)
    held(network.mount("s2") / folder / "to", os.O_RDWR | os.O_CREAT)
    source = held(network.mount(server) / folder / "from", os.O_RDONLY)
    target = held(network.mount(server) / folder / "to", os.O_RDWR)
    assert os.fstat(source).st_size == len(content)
    copied = 0
    while count := os.copy_file_range(source, target, len(content), copied, copied):
        copied += count
    for name in network.servers:
        assert (network.mount(name) / folder / "to").read_bytes() == content


def test_what_is_preallocated_is_committed_and_copied(network: Lab, folder: str) -> None:
    path = network.mount("s1") / folder / "file"
    path.write_bytes(b"content")
    before = wait_for_replicas(network, str(path), 2)
    with path.open("r+b") as file:
        fallocate(file.fileno(), KEEP_SIZE, 0, 3 * MIB)
        fallocate(file.fileno(), 0, 0, MIB)
    wait_until(lambda: godwit(network, "where", str(path))["version"] > before["version"], "committed")
    where = wait_for_replicas(network, str(path), 2)
    for replica in where["replicas"]:
        volume = VolumeLayout(network.volume(replica["server"]))
        assert Path(volume.object_path(where["ino"])).read_bytes() == b"content" + bytes(MIB - 7)
    for server in network.servers:
        assert (network.mount(server) / folder / "file").stat().st_size == MIB


def test_it_is_searched_where_the_home_has_moved_to(network: Lab, folder: str, held: Held) -> None:
    path = network.mount("s1") / folder / "file"
    content = make_with_holes(path)
    where = wait_for_replicas(network, str(path), 2)
    (replica,) = [row["server"] for row in where["replicas"] if not row["home"]]
    (other,) = [name for name in network.servers if name not in ("s1", replica)]
    readers = [held(network.mount(name) / folder / "file", os.O_RDONLY) for name in (replica, other)]
    assert [runs(reader) for reader in readers] == [DATA, DATA]
    godwit(network, "migrate", str(path), "--from", "s1", "--to", other)
    wait_until(lambda: "s1" not in {row["server"] for row in godwit(network, "where", str(path))["replicas"]}, "moved")
    assert [runs(reader) for reader in readers] == [DATA, DATA]
    assert [os.pread(reader, 2 * MIB, 0) for reader in readers] == [content, content]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The manager is on s1; s3 is the home of all files."""
    lab = Lab.create(tmp_path_factory.mktemp("extents") / "lab", overrides=OVERRIDES)
    try:
        lab.up()
        yield lab
    finally:
        lab.down(purge=True)


def test_an_allocation_outlasts_a_restart_of_the_homes_agent(lab: Lab, held: Held) -> None:
    held(lab.mount("s3") / "restarted", os.O_RDWR | os.O_CREAT)
    file = held(lab.mount("s1") / "restarted", os.O_RDWR)
    os.write(file, b"x" * 4 * BLOCK)
    lab.kill("s3", "agent")
    with ThreadPoolExecutor() as pool:
        punching = pool.submit(fallocate, file, PUNCH_HOLE | KEEP_SIZE, BLOCK, BLOCK)
        lab.start("s3", "agent")
        punching.result(timeout=30)
    assert (lab.mount("s2") / "restarted").read_bytes() == punched(4, 1)


def test_a_home_that_is_cut_off_holds_up_nobody_for_ever(lab: Lab, held: Held) -> None:
    clean, dirty = (lab.mount("s3") / name for name in ("clean", "dirty"))
    content = make_with_holes(clean)
    where = wait_for_replicas(lab, str(clean), 2)
    (replica,) = [row["server"] for row in where["replicas"] if not row["home"]]
    (other,) = [name for name in ("s1", "s2") if name != replica]
    at_replica, at_other = (held(lab.mount(name) / "clean", os.O_RDONLY) for name in (replica, other))
    held(dirty, os.O_RDWR | os.O_CREAT)
    written = held(lab.mount("s1") / "dirty", os.O_RDWR)
    os.write(written, b"x" * 4 * BLOCK)
    lab.cut("s3")
    try:
        assert runs(at_replica) in (DATA, ALL_DATA)  # the lease to read it may have ended
        assert runs(at_other) == ALL_DATA
        assert os.pread(at_other, 2 * MIB, 0) == content == os.pread(at_replica, 2 * MIB, 0)
        assert outcome(lambda: fallocate(written, PUNCH_HOLE | KEEP_SIZE, 0, BLOCK)) == AWAY
        assert outcome(lambda: os.lseek(written, 0, os.SEEK_HOLE)) == AWAY
    finally:
        lab.mend("s3")
    wait_until(lambda: not outcome(lambda: fallocate(written, PUNCH_HOLE | KEEP_SIZE, BLOCK, BLOCK)).error, "it can be reached")
    assert os.pread(written, 8 * BLOCK, BLOCK) == punched(4, 1)[BLOCK:]


LONG_BYTES = 8 << 30
PIECES = {0: b"beginning", LONG_BYTES // 2 + 5: b"middle", LONG_BYTES - 3: b"end"}


def sent_by(lab: Lab, server: str) -> int:
    """How many bytes have left the server, by all its interfaces but its own loop."""
    lines = lab.run(server, ["cat", "/proc/net/dev"], capture_output=True, check=True, text=True).stdout.splitlines()[2:]
    counts = {name.strip(): values.split() for name, values in (line.split(":") for line in lines)}
    return sum(int(values[8]) for name, values in counts.items() if name != "lo")


def test_a_long_hole_is_copied_without_being_sent(network: Lab, folder: str) -> None:
    path = network.mount("s1") / folder / "file"
    godwit(network, "policy", "set", str(path.parent), "--copies", "2")
    before = sent_by(network, "s1")
    with path.open("wb") as file:
        file.truncate(LONG_BYTES)
        for offset, piece in PIECES.items():
            os.pwrite(file.fileno(), piece, offset)
    where = wait_for_replicas(network, str(path), 2, 120)
    assert sent_by(network, "s1") - before < 100 * MIB
    (copy,) = {replica["server"] for replica in where["replicas"]} - {"s1"}
    object_path = VolumeLayout(network.volume(copy)).object_path(path.stat().st_ino)
    assert os.stat(object_path).st_blocks * 512 < 10 * MIB
    with open(object_path, "rb") as found:
        assert {offset: os.pread(found.fileno(), len(piece), offset) for offset, piece in PIECES.items()} == PIECES
    assert path.stat().st_size == os.stat(object_path).st_size == LONG_BYTES
