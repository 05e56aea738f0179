"""Objects that are not what the catalog says, as after a loss of power: nobody reads them, nobody builds on them.

The test has a network of its own, since it leaves it damaged.
"""

import errno
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from cluster.volume.fence import despite_fence
from cluster.volume.layout import VolumeLayout
from lab.lab import Lab
from tests.support.conditions import godwit, happened, kinds, wait_for_copies, wait_for_replicas, wait_until
from tests.support.labs import lab_up
from tests.support.no_files import put_instead

CONTENT = os.urandom(30_000)
OVERRIDES = {
    "mount": {"request_timeout_s": 10.0, "commit_s": 1.0, "renew_s": 1.0},
    "manager": {"term_s": 2.0, "session_timeout_s": 4.0, "access_s": 3.0},
}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with lab_up(tmp_path / "lab", overrides=OVERRIDES) as made:
        yield made


def object_of(lab: Lab, server: str, ino: int) -> str:
    return VolumeLayout(lab.volume(server)).object_path(ino)


def zero(path: str) -> None:
    Path(path).write_bytes(bytes(len(CONTENT)))


def alter(path: str) -> None:
    """One byte is another, and the size and mtime are as before."""
    before = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(10_000)
        file.write(bytes([CONTENT[10_000] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def grow(path: str) -> None:
    with open(path, "ab") as file:
        file.write(b"of nobody")


DAMAGE: dict[str, Callable[[str], None]] = {
    "emptied": lambda path: os.truncate(path, 0),
    "cut": lambda path: os.truncate(path, 12_345),
    "zeroed": zero,
    "missing": os.unlink,
    "altered": alter,
    "grown": grow,
    **{what: partial(put_instead, what) for what in ("fifo", "folder", "link", "socket")},
}
OWN = {"altered", "grown"}


def damage(lab: Lab, server: str, ino: int, how: str) -> None:
    path = object_of(lab, server, ino)
    despite_fence(path, lambda: DAMAGE[how](path))


def home_of(lab: Lab, path: Path) -> str:
    return next(str(row["server"]) for row in godwit(lab, "where", str(path))["replicas"] if row["home"])


def conflicts_of(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"{name}.conflict-*"))


def test_a_damaged_home_is_left(lab: Lab) -> None:
    folder = lab.mount("s1")
    files = {how: folder / how for how in (*DAMAGE, "touched")}
    for path in files.values():
        path.write_bytes(CONTENT)
    wait_for_copies(lab)
    numbers = {how: wait_for_replicas(lab, str(path), 2)["ino"] for how, path in files.items()}
    lab.kill("s1")
    for how in DAMAGE:
        damage(lab, "s1", numbers[how], how)
    touched = object_of(lab, "s1", numbers["touched"])
    despite_fence(touched, lambda: os.chmod(touched, 0o640))
    lab.start("s1")
    for how in files:
        for server in lab.servers:
            assert (lab.mount(server) / how).read_bytes() == CONTENT, f"{how} on {server}"
    with files["cut"].open("ab") as file:
        file.write(b"more")
    for server in lab.servers:
        assert (lab.mount(server) / "cut").read_bytes() == CONTENT + b"more", server
    for how in DAMAGE:
        wait_for_replicas(lab, str(files[how]), 2)
        assert home_of(lab, files[how]) != "s1", how
        wait_until(lambda how=how: bool(conflicts_of(folder, how)) == (how in OWN), f"{how} is kept if need be")  # type: ignore[misc]
    assert home_of(lab, files["touched"]) == "s1"
    assert conflicts_of(folder, "grown")[0].read_bytes() == CONTENT + b"of nobody"
    kept = conflicts_of(folder, "altered")[0].read_bytes()
    assert (kept[:10_000], kept[10_001:]) == (CONTENT[:10_000], CONTENT[10_001:])
    assert godwit(lab, "status")["damaged"] == 0
    wait_until(lambda: kinds(lab, "damage")[-1] == "damage-mended", "that is told")
    assert sum(event["count"] for event in happened(lab, "damage-found", "--server", "s1")) == len(DAMAGE)
    assert "is damaged on s1" in "".join(lab.log(server, "manager").read_text() for server in lab.servers)
    _damage_under_a_running_network(lab)
    _damage_without_another_copy(lab)


def _damage_under_a_running_network(lab: Lab) -> None:
    path = lab.mount("s2") / "alive"
    path.write_bytes(CONTENT)
    ino = wait_for_replicas(lab, str(path), 2)["ino"]
    assert (lab.mount("s3") / "alive").read_bytes() == CONTENT
    damage(lab, "s2", ino, "cut")
    other = next(row["server"] for row in godwit(lab, "where", str(path))["replicas"] if not row["home"])
    with (lab.mount(other) / "alive").open("ab") as file:
        file.write(b"more")
    for server in lab.servers:
        assert (lab.mount(server) / "alive").read_bytes() == CONTENT + b"more", server


def _damage_without_another_copy(lab: Lab) -> None:
    folder = lab.mount("s1") / "single"
    folder.mkdir()
    godwit(lab, "policy", "set", str(folder), "--copies", "1")
    path = folder / "file"
    path.write_bytes(CONTENT)
    ino = wait_for_replicas(lab, str(path), 1)["ino"]
    lab.kill("s1")
    damage(lab, "s1", ino, "cut")
    lab.start("s1")
    for server in lab.servers:
        there = lab.mount(server) / "single" / "file"
        for mode in ("rb", "ab"):
            with pytest.raises(OSError, match=os.strerror(errno.EIO)), there.open(mode) as file:
                file.read()
    assert "12345 bytes instead of 30000" in godwit(lab, "where", str(path))["replicas"][0]["fault"]
    assert godwit(lab, "status")["damaged"] == 1
    godwit(lab, "accept", str(path))
    wait_for_replicas(lab, str(path), 1)
    for server in lab.servers:
        assert (lab.mount(server) / "single" / "file").read_bytes() == CONTENT[:12_345], server
    assert godwit(lab, "status")["damaged"] == 0
