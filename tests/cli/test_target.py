"""Which network a command means, and where a path leads into it."""

import os
import stat
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from cli.network.names import find_inode
from cli.network.target import Target, find_target, only_lab, read_link, split_at_mount
from cluster.config import dump_config, write_config
from cluster.errors import Refused, Unavailable
from cluster.messages import Blob, Found, Lookup, Node, ReadLink
from cluster.rpc.conversation import Asker
from lab.lab import Lab
from lab.network import Network
from lab.registry import register
from lab.state import read_state, server_config


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    """One that other labs of this machine are not in."""
    made = tmp_path / "registry"
    made.mkdir()
    return made


def lab_that_is_up(root: Path, registry: Path) -> Lab:
    lab = Lab.create(root, servers=2)
    for server in lab.servers:
        config = server_config(lab.root, read_state(lab.root), Network(lab.tag, "10.64.0.0/24"), server)
        write_config(lab.config_path(server), config)
    register(lab.root, registry)
    return lab


NOWHERE = Path("/nonexistent/godwit.toml")


def test_the_only_lab_is_meant(tmp_path: Path, registry: Path) -> None:
    lab = lab_that_is_up(tmp_path / "lab", registry)
    found = find_target(None, NOWHERE, registry)
    assert found.mounts == (lab.mount("s1"), lab.mount("s2"))
    assert found.managers == ("10.64.0.1:7400", "10.64.0.2:7400")
    assert only_lab(registry).root == lab.root


def test_one_of_several_labs_must_be_named(tmp_path: Path, registry: Path) -> None:
    labs = [lab_that_is_up(tmp_path / name, registry) for name in ("one", "two")]
    with pytest.raises(Refused, match=f"{labs[0].root}, {labs[1].root}"):
        find_target(None, NOWHERE, registry)
    assert find_target(labs[1].root, NOWHERE, registry).mounts[0] == labs[1].mount("s1")


def test_no_lab_says_what_to_try(registry: Path) -> None:
    with pytest.raises(Refused, match="godwit lab up"):
        find_target(None, NOWHERE, registry)


def test_a_lab_that_is_down_is_unavailable(tmp_path: Path, registry: Path) -> None:
    lab = Lab.create(tmp_path / "lab", servers=1)
    with pytest.raises(Unavailable, match="is down"):
        find_target(lab.root, NOWHERE, registry)


def test_the_machines_configuration_goes_before_labs(tmp_path: Path, registry: Path) -> None:
    lab = lab_that_is_up(tmp_path / "lab", registry)
    machine = tmp_path / "godwit.toml"
    config = server_config(tmp_path, read_state(lab.root), Network("00000000", "10.99.0.0/24"), "s2")
    machine.write_bytes(dump_config(config))
    found = find_target(None, machine, registry)
    assert found.managers[0] == "10.99.0.1:7400"
    assert str(machine) in found.advice
    assert find_target(lab.root, machine, registry).managers[0] == "10.64.0.1:7400"


# --------------------------------------------------------------------------------------------------------- paths

MOUNTS = (Path("/srv/lab/s1/mnt"), Path("/srv/lab/s2/mnt"))


@pytest.mark.parametrize(
    ("path", "mount", "names"),
    [
        ("/srv/lab/s1/mnt", 0, []),
        ("/srv/lab/s2/mnt/a/b", 1, [b"a", b"b"]),
        ("//srv/lab/s2/mnt//a/./b/", 1, [b"a", b"b"]),
        ("/srv/lab/s1/mnt/../../s2/mnt/a", 1, [b"a"]),
        (os.fsdecode(b"/srv/lab/s1/mnt/\xff"), 0, [b"\xff"]),
    ],
)
def test_a_path_is_split_at_its_mount(path: str, mount: int, names: list[bytes]) -> None:
    assert split_at_mount(Path(path), MOUNTS) == (MOUNTS[mount], names)


@pytest.mark.parametrize("path", ["/", "/srv/lab", "/srv/lab/s1/mnt2/a", "/srv/lab/s1"])
def test_a_path_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(Refused, match="is on no mount"):
        split_at_mount(Path(path), MOUNTS)


def test_links_before_the_mount_are_followed_and_the_mount_is_not_touched(tmp_path: Path) -> None:
    mount = tmp_path / "s1" / "mnt"
    mount.mkdir(parents=True)
    (tmp_path / "shortcut").symlink_to("s1/mnt")
    (tmp_path / "absolute").symlink_to(tmp_path / "shortcut" / "deep")
    (tmp_path / "loop").symlink_to("loop")
    touched: list[bytes] = []

    def read(path: bytes) -> bytes | None:
        touched.append(path)
        return read_link(path)

    assert split_at_mount(tmp_path / "shortcut" / "a", [mount], read) == (mount, [b"a"])
    assert split_at_mount(tmp_path / "absolute" / "a", [mount], read) == (mount, [b"deep", b"a"])
    assert not any(path.startswith(os.fsencode(mount)) for path in touched)
    with pytest.raises(Refused, match="too many symbolic links"):
        split_at_mount(tmp_path / "loop" / "a", [mount], read)


class Namespace:
    """Answers lookups from a table of (parent, name) → (inode, link target)."""

    def __init__(self, table: dict[tuple[int, bytes], tuple[int, bytes]]) -> None:
        self._table = table
        self._targets = dict(table.values())

    async def __call__(self, request: Any) -> Any:
        if isinstance(request, ReadLink):
            return Blob(self._targets[request.ino])
        assert isinstance(request, Lookup)
        found = self._table.get((request.parent, request.name))
        if found is None:
            return Found(None)
        kind = stat.S_IFLNK if found[1] else stat.S_IFDIR
        return Found(Node(found[0], kind | 0o755, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0))


def inode_of(path: str) -> int:
    table = {
        (1, b"a"): (2, b""),
        (2, b"b"): (3, b""),
        (2, b"link"): (4, b"../a/b"),
        (3, b"c"): (5, b""),
        (2, b"out"): (6, b"/etc"),
    }
    asker = cast(Asker, Namespace(table))
    target = Target(Path("/nowhere"), ("h:1",), (Path("/m"),), "")

    async def find() -> int:
        return await find_inode(asker, target, Path(path), None)

    return trio.run(find)


@pytest.mark.parametrize(("path", "ino"), [("/m", 1), ("/m/a", 2), ("/m/a/b/", 3), ("/m/a/link", 4), ("/m/a/link/c", 5)])
def test_a_path_is_looked_up_name_by_name(path: str, ino: int) -> None:
    assert inode_of(path) == ino


def test_a_missing_name_is_told_with_the_whole_path() -> None:
    with pytest.raises(Refused, match=r"^/m/a/x/c: No such file or directory$"):
        inode_of("/m/a/x/c")


def test_a_link_that_leads_out_is_told() -> None:
    with pytest.raises(Refused, match="give the path that it points to"):
        inode_of("/m/a/out/passwd")
