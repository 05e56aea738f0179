"""Owners, modes, ACLs and extended attributes on one mount."""

import errno
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.support.acting import ANNA, BERT, ROOT, User, acting_as
from tests.support.choices import ACLS


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def write(path: Path, content: bytes = b"x", flags: int = 0) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | flags)
    try:
        os.write(descriptor, content)
    finally:
        os.close(descriptor)


CONTENT_CHANGES: dict[str, Callable[[Path], object]] = {
    "write": write,
    "append": lambda path: write(path, b"more", os.O_APPEND),
    "append much": lambda path: write(path, bytes(1 << 20), os.O_APPEND),
    "truncate": lambda path: os.truncate(path, 1),
    "open with O_TRUNC": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
}


@pytest.mark.parametrize("change", CONTENT_CHANGES)
@pytest.mark.parametrize(
    ("user", "mode", "after"),
    [(ANNA, 0o6777, 0o777), (ANNA, 0o4755, 0o755), (ANNA, 0o2767, 0o2767), (ROOT, 0o6777, 0o6777)],
)
def test_a_change_of_content_takes_away_the_set_id_bits_unless_root_makes_it(
    place: Path, change: str, user: User, mode: int, after: int
) -> None:
    path = place / "file"
    path.write_bytes(b"content")
    os.chown(path, ANNA.uid, ANNA.gid)
    path.chmod(mode)
    with acting_as(user):
        CONTENT_CHANGES[change](path)
    assert f"{mode_of(path):o}" == f"{after:o}"


def test_a_new_owner_takes_away_the_set_id_bits(place: Path) -> None:
    path, directory = place / "file", place / "directory"
    path.touch()
    directory.mkdir()
    for made in (path, directory):
        made.chmod(0o6755)
        os.chown(made, ANNA.uid, ANNA.gid)
    assert (mode_of(path), mode_of(directory)) == (0o755, 0o6755)


@pytest.mark.parametrize(("group", "kept"), [(5000, True), (0, False)], ids=["of theirs", "of others"])
def test_an_access_list_takes_the_set_group_id_bit_away_unless_its_owner_is_in_the_group(
    place_in_each_mode: Path, group: int, kept: bool
) -> None:
    path = place_in_each_mode / "file"
    path.touch()
    os.chown(path, ANNA.uid, group)
    path.chmod(0o2770)
    with acting_as(ANNA):
        os.setxattr(path, "system.posix_acl_access", ACLS[1])
    assert stat.S_IMODE(path.stat().st_mode) == (0o2750 if kept else 0o750)


def test_an_owner_that_is_refused_takes_no_set_id_bits_away(place_in_each_mode: Path) -> None:
    path = place_in_each_mode / "program"
    with path.open("wb") as file:
        file.write(b"program")
        file.flush()
        os.fchmod(file.fileno(), 0o6755)
    with acting_as(BERT), pytest.raises(PermissionError):
        os.chown(path, BERT.uid, -1)
    assert mode_of(path) == 0o6755


def test_who_is_not_in_the_group_cannot_set_the_group_bit(place: Path) -> None:
    path = place / "file"
    path.touch()
    os.chown(path, ANNA.uid, BERT.gid)
    with acting_as(ANNA):
        path.chmod(0o2755)
    assert mode_of(path) == 0o755


def test_a_set_group_id_directory_passes_its_group_on(place: Path) -> None:
    directory = place / "directory"
    directory.mkdir()
    os.chown(directory, 0, 5000)
    directory.chmod(0o2777)
    with acting_as(BERT):
        (directory / "file").touch()
        (directory / "inner").mkdir()
        (directory / "link").symlink_to("file")
        os.close(os.open(directory / "executable", os.O_WRONLY | os.O_CREAT, 0o2755))
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in directory.iterdir()} == {(BERT.uid, 5000)}
    assert mode_of(directory / "inner") == 0o2755
    assert mode_of(directory / "executable") == 0o755


def test_a_sticky_directory_protects_names(place: Path) -> None:
    place.chmod(0o1777)
    for user, name in ((ANNA, "hers"), (BERT, "his")):
        with acting_as(user):
            (place / name).touch()
    with acting_as(BERT):
        with pytest.raises(PermissionError):
            (place / "hers").unlink()
        with pytest.raises(PermissionError):
            (place / "hers").rename(place / "other")
        with pytest.raises(PermissionError):
            (place / "his").rename(place / "hers")
        (place / "his").unlink()
    place.chmod(0o777)
    with acting_as(BERT):
        (place / "hers").unlink()


def test_permissions_are_those_of_the_owner_the_group_and_the_rest(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"text")
    os.chown(path, ANNA.uid, 5000)
    path.chmod(0o040)
    with acting_as(ANNA), pytest.raises(PermissionError):
        path.read_bytes()
    with acting_as(BERT), pytest.raises(PermissionError):
        path.read_bytes()
    os.chown(path, BERT.uid, 5000)
    with acting_as(ANNA):
        assert path.read_bytes() == b"text"
        with pytest.raises(PermissionError):
            path.chmod(0o777)
        with pytest.raises(PermissionError):
            os.chown(path, ANNA.uid, -1)
        with pytest.raises(PermissionError):
            os.utime(path, (1, 1))
    assert path.read_bytes() == b"text"


def test_the_umask_takes_bits_away(place: Path) -> None:
    with acting_as(ROOT, umask=0o027):
        os.close(os.open(place / "file", os.O_WRONLY | os.O_CREAT, 0o666))
        os.mkdir(place / "directory", 0o777)
        os.mkfifo(place / "pipe", 0o666)
    assert [f"{mode_of(place / name):o}" for name in ("file", "directory", "pipe")] == ["640", "750", "640"]


# --------------------------------------------------------------------------------------------------------------- ACLs


def setfacl(*arguments: object) -> None:
    if shutil.which("setfacl") is None:
        pytest.fail("setfacl is missing: apt-get install acl, or let ./dev setup do it")
    subprocess.run(["setfacl", *map(str, arguments)], check=True)


def getfacl(path: Path) -> list[str]:
    done = subprocess.run(["getfacl", "-cnE", "--absolute-names", path], check=True, capture_output=True, text=True)
    return done.stdout.split()


def test_an_acl_lets_a_named_user_in(place: Path) -> None:
    path = place / "file"
    path.write_bytes(b"text")
    path.chmod(0o600)
    setfacl("-m", f"u:{ANNA.uid}:rw", path)
    assert getfacl(path) == ["user::rw-", "user:4001:rw-", "group::---", "mask::rw-", "other::---"]
    assert mode_of(path) == 0o660
    with acting_as(ANNA):
        assert path.read_bytes() == b"text"
        write(path)
    with acting_as(BERT), pytest.raises(PermissionError):
        path.read_bytes()
    path.chmod(0o640)
    assert getfacl(path) == ["user::rw-", "user:4001:rw-", "group::---", "mask::r--", "other::---"]
    with acting_as(ANNA):
        assert path.read_bytes() == b"xext"
        with pytest.raises(PermissionError):
            write(path)
    setfacl("-b", path)
    assert getfacl(path) == ["user::rw-", "group::---", "other::---"]
    assert mode_of(path) == 0o600


def test_a_default_acl_is_inherited(place: Path) -> None:
    directory = place / "directory"
    directory.mkdir()
    setfacl("-d", "-m", f"u::rwx,u:{ANNA.uid}:rwx,g::r-x,o::---", directory)
    with acting_as(ROOT, umask=0o077):  # the list takes its place
        os.close(os.open(directory / "file", os.O_WRONLY | os.O_CREAT, 0o666))
        os.mkdir(directory / "inner", 0o777)
        os.mkfifo(directory / "pipe", 0o600)
        os.mknod(directory / "node", 0o666 | stat.S_IFREG)
        os.symlink("file", directory / "link")
    assert getfacl(directory / "file") == ["user::rw-", "user:4001:rwx", "group::r-x", "mask::rw-", "other::---"]
    assert mode_of(directory / "file") == 0o660
    inherited = ["user::rwx", "user:4001:rwx", "group::r-x", "mask::rwx", "other::---"]
    assert getfacl(directory / "inner") == inherited + [f"default:{entry}" for entry in inherited]
    assert mode_of(directory / "inner") == 0o770
    assert mode_of(directory / "node") == 0o660
    assert getfacl(directory / "pipe")[-2:] == ["mask::---", "other::---"]
    assert not os.listxattr(directory / "link", follow_symlinks=False)


def test_a_minimal_acl_is_only_a_mode(place: Path) -> None:
    path = place / "file"
    path.touch()
    setfacl("--set", "u::rwx,g::r--,o::--x", path)
    assert mode_of(path) == 0o741
    assert os.listxattr(path) == []


def test_only_directories_have_default_acls_and_only_owners_set_them(place: Path) -> None:
    path = place / "file"
    path.touch()
    default = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, 7, 0xFFFFFFFF) for tag in (1, 4, 32))
    with pytest.raises(PermissionError):
        os.setxattr(path, "system.posix_acl_default", default)
    path.chmod(0o666)
    with acting_as(BERT), pytest.raises(PermissionError):
        os.setxattr(path, "system.posix_acl_access", default)
    with pytest.raises(OSError, match="Invalid argument"):
        os.setxattr(path, "system.posix_acl_access", default[:-3])


# ------------------------------------------------------------------------------------------------ extended attributes


def test_extended_attributes(place: Path) -> None:
    path = place / "file"
    path.touch()
    os.setxattr(path, "user.one", b"1", os.XATTR_CREATE)
    os.setxattr(path, "user.one", b"eins", os.XATTR_REPLACE)
    os.setxattr(path, "trusted.two", b"")
    os.setxattr(path, "user." + "n" * 250, bytes(range(256)))
    for name, flags, expected in (("user.one", os.XATTR_CREATE, errno.EEXIST), ("user.none", os.XATTR_REPLACE, errno.ENODATA)):
        with pytest.raises(OSError, match=os.strerror(expected)):
            os.setxattr(path, name, b"", flags)
    assert sorted(os.listxattr(path)) == ["trusted.two", "user." + "n" * 250, "user.one"]
    assert os.getxattr(path, "user.one") == b"eins"
    assert os.getxattr(path, "user." + "n" * 250) == bytes(range(256))
    os.removexattr(path, "user.one")
    for call in (os.getxattr, os.removexattr):
        with pytest.raises(OSError, match="No data available"):
            call(path, "user.one")
    path.rename(place / "renamed")
    assert os.getxattr(place / "renamed", "trusted.two") == b""


def test_trusted_attributes_are_roots_alone(place: Path) -> None:
    path = place / "file"
    path.touch()
    os.chown(path, ANNA.uid, ANNA.gid)
    os.setxattr(path, "trusted.t", b"secret")
    os.setxattr(path, "user.u", b"open")
    with acting_as(ANNA):
        assert os.listxattr(path) == ["user.u"]
        with pytest.raises(OSError, match="No data available"):
            os.getxattr(path, "trusted.t")
        with pytest.raises(PermissionError):
            os.setxattr(path, "trusted.t", b"")


def test_user_attributes_belong_to_files_and_directories_alone(place: Path) -> None:
    (place / "link").symlink_to("nowhere")
    os.mkfifo(place / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(PermissionError):
            os.setxattr(place / name, "user.u", b"", follow_symlinks=False)
        os.setxattr(place / name, "trusted.t", b"value", follow_symlinks=False)
        assert os.getxattr(place / name, "trusted.t", follow_symlinks=False) == b"value"


def test_writing_takes_capabilities_away(place: Path) -> None:
    path = place / "program"
    path.write_bytes(b"#!/bin/true")
    os.setxattr(path, "security.capability", struct.pack("<5I", 0x02000000, 1 << 10, 0, 0, 0))
    with path.open("rb") as reader:
        reader.read()
    assert "security.capability" in os.listxattr(path)
    write(path)
    assert "security.capability" not in os.listxattr(path)


# ------------------------------------------------------------------------------------------------ the rest


def test_special_files(place: Path) -> None:
    numbers = {"null": os.makedev(1, 3), "large": os.makedev(4000, 1_000_000)}
    for name, number in numbers.items():
        os.mknod(place / name, stat.S_IFCHR | 0o640, number)
        assert (place / name).stat().st_rdev == number
        assert stat.S_ISCHR((place / name).stat().st_mode)
    os.mkfifo(place / "pipe")
    reader = os.open(place / "pipe", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    writer = os.open(place / "pipe", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(writer, b"through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
        os.close(writer)
    with acting_as(ANNA), pytest.raises(PermissionError):
        os.mknod(place / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))


def test_symbolic_links_keep_their_text(place: Path) -> None:
    for number, target in enumerate((b"x", b"\xff/\n", b"../" * 500, b"t" * 4095)):
        path = os.fsencode(place / f"link-{number}")
        os.symlink(target, path)
        assert os.readlink(path) == target
        assert os.lstat(path).st_size == len(target)
        assert os.lstat(path).st_mode == stat.S_IFLNK | 0o777


def test_statfs_is_believable(network: Lab, directory: Path) -> None:
    seen = os.statvfs(directory)
    disk = os.statvfs(network.volume("s1"))
    assert seen.f_namemax == 255
    assert 0 < seen.f_bavail <= seen.f_bfree <= seen.f_blocks
    assert seen.f_bsize == seen.f_frsize == 4096
    total, of_disks = seen.f_blocks * seen.f_frsize, disk.f_blocks * disk.f_frsize
    assert of_disks * 0.3 <= total <= of_disks, "all volumes are on one disk, and each file is kept twice"
    assert 0 < seen.f_ffree <= seen.f_files
