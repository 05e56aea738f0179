"""Rights that files give: of set-uid programs, file capabilities and devices. On a mount none, unless it is configured."""

import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.conftest import fresh, reading_logs
from tests.mount.conftest import open_to_all
from tests.support.acting import ANNA
from tests.support.modes import FALLBACK
from tests.support.running import need

CAP_NET_RAW = 1 << 13
VERSION_2_EFFECTIVE = 0x02000001  # linux/capability.h: VFS_CAP_REVISION_2 with VFS_CAP_FLAGS_EFFECTIVE


@pytest.fixture(params=["ext4", FALLBACK])
def giving(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory whose files give rights: on ext4, and on a mount with `suid` and `dev` in its configuration."""
    if request.param == "ext4":
        yield open_to_all(tmp_path)
        return
    network: Lab = request.getfixturevalue(request.param)
    with reading_logs(network):
        yield fresh(network.mount("s1"))


@pytest.fixture(params=["s1", "s2"])
def seen(request: pytest.FixtureRequest, network: Lab, directory: Path) -> Path:
    """A directory on a mount as it is by default, seen by the server where it was made and by another."""
    return network.mount(request.param) / directory.name


def program(place: Path) -> Path:
    """A program that shows the file that it is given; root's."""
    return Path(shutil.copyfile(need("cat", "coreutils"), place / "show"))


def rights_of(path: Path) -> dict[str, str]:
    """The rights that Anna's process has which runs the program: the lines of its status."""
    done = subprocess.run(
        [path, "/proc/self/status"], user=ANNA.uid, group=ANNA.gid, extra_groups=[], capture_output=True, text=True, check=True
    )
    return dict(line.split(":\t") for line in done.stdout.splitlines() if ":\t" in line)


def give_set_id_bits(path: Path) -> None:
    path.chmod(0o6755)


def give_capability(path: Path) -> None:
    path.chmod(0o755)
    os.setxattr(path, "security.capability", struct.pack("<5I", VERSION_2_EFFECTIVE, CAP_NET_RAW, 0, 0, 0))


def null_device(place: Path) -> Path:
    path = place / "null"
    os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    path.chmod(0o666)
    return path


def test_a_set_id_program_runs_as_its_owner_where_the_configuration_says_so(giving: Path) -> None:
    path = program(giving)
    give_set_id_bits(path)
    rights = rights_of(path)
    assert rights["Uid"].split()[:2] == [str(ANNA.uid), "0"]
    assert rights["Gid"].split()[:2] == [str(ANNA.gid), "0"]


def test_a_program_has_its_capabilities_where_the_configuration_says_so(giving: Path) -> None:
    path = program(giving)
    give_capability(path)
    assert int(rights_of(path)["CapEff"], 16) == CAP_NET_RAW


def test_a_device_is_opened_where_the_configuration_says_so(giving: Path) -> None:
    path = null_device(giving)
    path.write_bytes(b"gone")
    assert path.read_bytes() == b""


def test_a_set_id_program_gives_no_rights_by_default(directory: Path, seen: Path) -> None:
    give_set_id_bits(program(directory))
    rights = rights_of(seen / "show")
    assert stat.S_IMODE((seen / "show").stat().st_mode) == 0o6755, "it is a set-id program all the same"
    assert set(rights["Uid"].split()) == {str(ANNA.uid)}
    assert set(rights["Gid"].split()) == {str(ANNA.gid)}
    assert int(rights["CapEff"], 16) == 0


def test_a_program_has_no_capabilities_by_default(directory: Path, seen: Path) -> None:
    give_capability(program(directory))
    assert "security.capability" in os.listxattr(seen / "show")
    assert int(rights_of(seen / "show")["CapEff"], 16) == 0


def test_a_device_is_not_opened_by_default(directory: Path, seen: Path) -> None:
    null_device(directory)
    path = seen / "null"
    for flags in (os.O_RDONLY, os.O_WRONLY):
        with pytest.raises(PermissionError):
            os.close(os.open(path, flags | os.O_CLOEXEC))
    assert path.stat().st_rdev == os.makedev(1, 3)
