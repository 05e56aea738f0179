"""Processes are killed, networks cut, disks filled, messages garbled; nothing that was acknowledged is lost.

Each test has a network of its own, since it leaves it damaged.
"""

import errno
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from cluster.config import credentials_of
from cluster.rpc.frames import PREFACE
from cluster.rpc.wire import parse_address
from cluster.trust.identity import Role
from cluster.volume.layout import VolumeLayout
from lab.lab import Lab
from tests.support.conditions import godwit, wait_for_copies, wait_for_replicas, wait_until

REQUEST_TIMEOUT_S = 8.0
SESSION_TIMEOUT_S = 6.0
OVERRIDES = {
    "mount": {"request_timeout_s": REQUEST_TIMEOUT_S, "commit_s": 1.0, "renew_s": 1.0},
    "manager": {"term_s": 2.0, "session_timeout_s": SESSION_TIMEOUT_S, "access_s": 3.0},
}

MakeLab = Callable[[], Lab]


@pytest.fixture
def make_lab(tmp_path: Path) -> Iterator[MakeLab]:
    """Makes networks of three servers in `tmp_path/lab`, and takes them down."""
    labs: list[Lab] = []

    def make() -> Lab:
        lab = Lab.create(tmp_path / "lab", overrides=OVERRIDES)
        labs.append(lab)
        lab.up()
        return lab

    yield make
    for lab in labs:
        lab.down(purge=True)


def object_of(lab: Lab, server: str, ino: int) -> Path:
    return Path(VolumeLayout(lab.volume(server)).object_path(ino))


def holder(lab: Lab, ino: int, *, but: str) -> str:
    """The other server that holds an object of the inode."""
    (server,) = [s for s in lab.servers if s != but and object_of(lab, s, ino).exists()]
    return server


def test_clean_files_are_read_after_the_death_of_their_home_and_manager(make_lab: MakeLab) -> None:
    lab = make_lab()
    contents = {f"file{number}": os.urandom(1000 + 7919 * number) for number in range(40)}
    for name, content in contents.items():
        (lab.mount("s1") / name).write_bytes(content)
    wait_for_copies(lab)
    wait_for_replicas(lab, str(lab.mount("s1") / "file39"), 2)
    lab.kill("s1", "all")
    for server in ("s2", "s3"):
        for name, content in contents.items():
            assert (lab.mount(server) / name).read_bytes() == content
    (lab.mount("s2") / "afterwards").write_bytes(b"written without s1")
    assert (lab.mount("s3") / "afterwards").read_bytes() == b"written without s1"
    lab.start("s1")
    assert (lab.mount("s1") / "afterwards").read_bytes() == b"written without s1"
    assert godwit(lab, "status")["term"] >= 2


def test_operations_go_on_while_the_manager_dies(make_lab: MakeLab) -> None:
    """A writer on another server notices nothing but a pause, and nothing is applied twice or lost."""
    lab = make_lab()
    folder = lab.mount("s2") / "load"
    folder.mkdir()
    stop = threading.Event()
    done: list[int] = []
    failures: list[OSError] = []

    def load() -> None:
        number = 0
        while not stop.is_set():
            try:
                with (folder / f"{number:06}").open("xb") as file:
                    file.write(b"%d" % number)
                os.rename(folder / f"{number:06}", folder / f"{number:06}.done")
            except OSError as error:
                failures.append(error)
                return
            done.append(number)
            number += 1

    thread = threading.Thread(target=load)
    thread.start()
    try:
        wait_until(lambda: len(done) > 50, "the load runs")
        lab.kill("s1", "manager")
        before = len(done)
        wait_until(lambda: len(done) > before + 50, "the load goes on under another manager", 20)
    finally:
        stop.set()
        thread.join(30)
    assert failures == []
    names = sorted(path.name for path in (lab.mount("s3") / "load").iterdir())
    assert names == [f"{number:06}.done" for number in range(len(done))]
    for number in (0, len(done) // 2, len(done) - 1):
        assert (lab.mount("s3") / "load" / f"{number:06}.done").read_bytes() == b"%d" % number


def test_an_agent_killed_in_the_middle_of_a_copy_completes_it_once(make_lab: MakeLab) -> None:
    lab = make_lab()
    path = lab.mount("s1") / "large"
    block = os.urandom(1 << 20)
    digest = blake3()
    for agent in ("s2", "s3"):
        lab.kill(agent, "agent", signal.SIGSTOP)
    with path.open("wb") as file:
        for number in range(384):
            piece = struct.pack(">Q", number) + block[8:]
            file.write(piece)
            digest.update(piece)
    ino = path.stat().st_ino

    def staged() -> list[Path]:
        """The file's unfinished copies; agents write `volume.toml` anew by way of the same directory."""
        return [entry for s in ("s2", "s3") for entry in VolumeLayout(lab.volume(s)).staging.glob(f"{ino}.*")]

    for agent in ("s2", "s3"):
        lab.kill(agent, "agent", signal.SIGCONT)
    (begun,) = wait_until(staged, "the copy has begun")
    target = begun.parent.parent.parent.name
    lab.kill(target, "agent", signal.SIGKILL)
    assert not object_of(lab, target, ino).exists()
    lab.start(target, "agent")
    where = wait_for_replicas(lab, str(path), 2)
    assert {replica["checksum"] for replica in where["replicas"]} == {digest.hexdigest()}
    copied = holder(lab, ino, but="s1")
    assert blake3(object_of(lab, copied, ino).read_bytes()).hexdigest() == digest.hexdigest()
    assert staged() == []


def connects(lab: Lab, server: str, address: str) -> bool:
    """Whether somebody listens at the address, seen from a server."""
    host, port = parse_address(address)
    script = f"import socket; socket.create_connection(({host!r}, {port}), 5)"
    return lab.run(server, [sys.executable, "-c", script], capture_output=True).returncode == 0


def test_an_append_waits_for_an_agent_that_is_away_and_is_done_once(make_lab: MakeLab) -> None:
    """Nothing was sent to the dead agent, so the append may be tried again, which one that was under way must not be."""
    lab = make_lab()
    (lab.mount("s1") / "log").write_bytes(b"")
    with (lab.mount("s2") / "log").open("ab", buffering=0) as file:
        file.write(b"before\n")
        lab.kill("s1", "agent")
        # The first thread of a killed process may be gone a moment before its connections are.
        wait_until(lambda: not connects(lab, "s2", lab.config("s1").agent.listen), "its connections have ended")
        failures: list[OSError] = []

        def append() -> None:
            try:
                file.write(b"while it was away\n")
            except OSError as error:
                failures.append(error)

        thread = threading.Thread(target=append)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive(), "it waits"
        lab.start("s1", "agent")
        thread.join(REQUEST_TIMEOUT_S + 5)
        assert not thread.is_alive()
        assert failures == []
    assert (lab.mount("s1") / "log").read_bytes() == b"before\nwhile it was away\n"


def test_reading_waits_for_an_agent_that_is_away_and_alone_has_the_content(make_lab: MakeLab) -> None:
    lab = make_lab()
    (lab.mount("s1") / "alone").mkdir()
    godwit(lab, "policy", "set", str(lab.mount("s1") / "alone"), "--copies", "1")
    path = lab.mount("s1") / "alone" / "file"
    path.write_bytes(b"content")
    wait_for_replicas(lab, str(path), 1)
    with (lab.mount("s2") / "alone" / "file").open("rb", buffering=0) as file:
        lab.kill("s1", "agent")
        wait_until(lambda: not connects(lab, "s2", lab.config("s1").agent.listen), "its connections have ended")
        got: list[bytes | OSError] = []

        def read() -> None:
            try:
                got.append(file.read(100))
            except OSError as error:
                got.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        thread.join(0.5)
        assert thread.is_alive(), f"it does not wait: {got}"
        lab.start("s1", "agent")
        thread.join(REQUEST_TIMEOUT_S + 5)
        assert got == [b"content"]


def test_what_a_killed_mount_wrote_is_committed_by_its_agent(make_lab: MakeLab) -> None:
    lab = make_lab()
    path = lab.mount("s2") / "half"
    file = path.open("wb", buffering=0)
    file.write(b"first half, ")
    os.fsync(file.fileno())
    file.write(b"second half")
    lab.kill("s2", "mount")
    with pytest.raises(OSError, match=r"Transport endpoint|connection abort"):
        file.close()
    assert (lab.mount("s1") / "half").read_bytes() == b"first half, second half"
    lab.start("s2", "mount")
    assert path.read_bytes() == b"first half, second half"
    where = wait_for_replicas(lab, str(path), 2)
    assert where["size"] == 23


def test_an_open_file_that_is_unlinked_elsewhere_lives_until_its_last_close(make_lab: MakeLab) -> None:
    lab = make_lab()
    path = lab.mount("s1") / "unlinked"
    path.write_bytes(b"still here")
    with path.open("r+b") as file:
        ino = path.stat().st_ino
        (lab.mount("s2") / "unlinked").unlink()
        assert not path.exists()
        file.seek(0, os.SEEK_END)
        file.write(b", and growing")
        file.flush()
        lab.kill("s1", "manager")
        file.seek(0)
        assert file.read() == b"still here, and growing"
        assert os.fstat(file.fileno()).st_nlink == 0
    wait_until(lambda: not object_of(lab, "s1", ino).exists(), "the object is gone", 60)


def test_a_server_that_is_cut_off_gives_errors_in_time_and_comes_back_whole(make_lab: MakeLab) -> None:
    lab = make_lab()
    (lab.mount("s2") / "before").write_bytes(b"before")
    wait_for_copies(lab)
    lab.cut("s3")
    with pytest.raises(OSError, match="Input/output error") as failure:
        os.listdir(lab.mount("s3"))
    assert failure.value.errno == errno.EIO
    (lab.mount("s2") / "meanwhile").write_bytes(b"meanwhile")
    lab.mend("s3")

    def whole() -> bool:
        try:
            return (lab.mount("s3") / "meanwhile").read_bytes() == b"meanwhile"
        except OSError:
            return False

    wait_until(whole, "s3 is whole again", 20)
    assert sorted(os.listdir(lab.mount("s3"))) == ["before", "meanwhile"]


def test_a_file_that_is_being_written_at_an_unreachable_home_is_not_served_from_an_old_copy(make_lab: MakeLab) -> None:
    lab = make_lab()
    path = lab.mount("s2") / "hot"
    path.write_bytes(b"old")
    wait_for_replicas(lab, str(path), 2)
    with path.open("r+b", buffering=0) as file:
        file.write(b"new")
        lab.kill("s2", "agent")
        with pytest.raises(OSError, match="Input/output error"):
            (lab.mount("s1") / "hot").read_bytes()
        lab.start("s2", "agent")
        wait_until(lambda: godwit(lab, "where", str(path))["dirty"], "the file is dirty")
        assert (lab.mount("s1") / "hot").read_bytes() == b"new"
    wait_for_replicas(lab, str(path), 2)


def test_a_damaged_object_is_never_served_as_good(make_lab: MakeLab) -> None:
    """Truncated and altered objects, times restored: their copies fail, and say so."""
    lab = make_lab()
    for server in ("s2", "s3"):
        lab.kill(server, "agent")
    paths = {kind: lab.mount("s1") / kind for kind in ("truncated", "altered")}
    for path in paths.values():
        path.write_bytes(b"good content" * 1000)
        wait_until(lambda: not godwit(lab, "where", str(path))["dirty"], "it is committed")  # noqa: B023
    for kind, path in paths.items():
        damaged = object_of(lab, "s1", path.stat().st_ino)
        times = damaged.stat()
        if kind == "truncated":
            os.truncate(damaged, 100)
        else:
            with damaged.open("r+b") as file:
                file.write(b"evil")
        os.utime(damaged, ns=(times.st_atime_ns, times.st_mtime_ns))
    for server in ("s2", "s3"):
        lab.start(server, "agent")

    def complaints() -> bool:
        tasks = godwit(lab, "queue", "ls")["tasks"]
        return len(tasks) == 2 and all(task["error"] for task in tasks)

    wait_until(complaints, "both copies have failed and say why")
    for path in paths.values():
        ino = path.stat().st_ino
        assert not any(object_of(lab, server, ino).exists() for server in ("s2", "s3"))


GARBAGE = [
    b"GET / HTTP/1.1\r\n\r\n",
    PREFACE + struct.pack(">IIQ", 0xFFFFFFFF, 0xFFFFFFFF, 1) + b"x" * 100,
    PREFACE + struct.pack(">IIQ", 4, 0, 1) + b"\xc1\xc1\xc1\xc1",
    PREFACE + struct.pack(">IIQ", 12, 0, 1) + b"\x92\xa6lookup\xff\xff\xff\xff",
    os.urandom(4096),
]


@pytest.mark.parametrize("port", ["manager", "agent"])
def test_garbage_is_refused_and_logged_and_the_process_lives(network: Lab, port: str) -> None:
    config = network.config("s1")
    address = (config.manager if port == "manager" else config.agent).listen
    host, number = address.rsplit(":", 1)
    pid = network.pid("s1", port)
    asking = credentials_of(network.config("s2"), Role.MOUNT).asking
    for garbage in GARBAGE:
        with asking.wrap_socket(socket.create_connection((host, int(number)), timeout=10)) as connection:
            connection.settimeout(15)
            try:
                connection.sendall(garbage)
                while connection.recv(65536):
                    pass
            except ConnectionError:
                pass
    assert network.pid("s1", port) == pid
    assert "refused what" in network.log("s1", port).read_text()
    (network.mount("s1") / f"alive-{port}").write_bytes(b"alive")
    assert (network.mount("s2") / f"alive-{port}").read_bytes() == b"alive"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MiB where the lab will look for s1's volume."""
    image = tmp_path / "small.img"
    place = tmp_path / "lab" / "s1" / "vol1"
    place.mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(48 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True, timeout=60)
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True, timeout=60)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True, timeout=60)


def test_a_full_volume_gives_enospc_and_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    lab = Lab.create(tmp_path / "lab", overrides=OVERRIDES)
    lab.up()
    try:
        kept = lab.mount("s1") / "kept"
        kept.write_bytes(b"kept" * 1000)
        wait_for_replicas(lab, str(kept), 2)
        path = lab.mount("s1") / "filling"
        written = 0
        block = os.urandom(256 * 1024)
        failure = None
        with path.open("wb", buffering=0) as file:
            while failure is None and written < 100 << 20:
                try:
                    written += file.write(block)
                except OSError as error:
                    failure = error
        assert failure is not None
        assert failure.errno == errno.ENOSPC
        assert written > 20 << 20
        assert path.stat().st_size == written
        with path.open("rb") as file:
            left = written
            while left:
                piece = file.read(min(left, len(block)))
                assert piece == block[: len(piece)]
                left -= len(piece)
        assert kept.read_bytes() == b"kept" * 1000
        (lab.mount("s2") / "elsewhere").write_bytes(b"there is space on s2")
        path.unlink()
        wait_until(lambda: os.statvfs(small_disk).f_bavail * 4096 > 30 << 20, "the space is free again")
        (lab.mount("s1") / "again").write_bytes(block)
    finally:
        lab.down()
