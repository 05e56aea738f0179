"""Where an import goes: which directory of the network, and which volume of this server."""

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cli.importing.attributes import imported_name, read_xattrs
from cli.importing.findings import Found, Walk
from cli.importing.work import Destination, Directory
from cli.network.target import Target, split_at_mount
from cluster.clock import file_time_ns
from cluster.errors import GodwitError, Refused
from cluster.messages import ROOT_INO, ImportedAs, ImportNames, ImportOutcome, ListVolumes, Lookup, Node, TakeInodes, Volume
from cluster.mounted import mount_below
from cluster.rpc.conversation import Asker
from cluster.volume.layout import VolumeLayout

KIND = "fuse.godwit"


class Place(NamedTuple):
    """A place in the network."""

    path: bytes
    parent: int
    name: bytes  # empty: the root
    node: Node | None  # what is there


def volumes_here(target: Target, path: Path) -> tuple[str, ...]:
    """The volumes of the server on whose mount *path* lies. Raises `Refused`."""
    mount, _names = split_at_mount(path, target.mounts)
    return target.volumes[target.mounts.index(mount)]


def check_source(source: str, volumes: Sequence[str], *, keep: bool) -> None:
    """Raises `Refused` for what cannot be imported, `OSError`."""
    if not os.path.isdir(source):
        raise Refused(f"{source} is no directory", errno.ENOTDIR)
    real = os.path.realpath(source)
    for volume in map(os.path.realpath, volumes):
        if os.path.commonpath([real, volume]) in (real, volume):
            raise Refused(f"{source} and the volume {volume}: neither may lie within the other")
    mounted = mount_below(Path(real))
    if mounted is not None and mounted.kind == KIND:
        raise Refused(f"{source} is on a mount of Godwit already: mv and cp work there")
    if not keep and os.statvfs(real).f_flag & os.ST_RDONLY:
        raise Refused(f"{source} is on a file system that cannot be changed: import with --keep")


async def choose_volume(asker: Asker, paths: Sequence[str], source: str, wanted: Path | None) -> Destination:
    """The volume that was asked for, else one on the file system of *source*, else the one with most room. Raises `Refused`."""
    known = {volume.uuid: volume for volume in (await asker(ListVolumes())).volumes}
    device = os.stat(source).st_dev
    found: list[tuple[Volume, Destination]] = []
    for path in paths if wanted is None else [os.path.abspath(wanted)]:
        if wanted is not None and path not in map(os.path.abspath, paths):
            raise Refused(f"{path} is no volume of this server; there are: {', '.join(paths) or 'none'}")
        layout = VolumeLayout(Path(path))
        volume = known.get(layout.identity().uuid)
        if volume is not None and volume.up and volume.accepts:
            found.append((volume, Destination(layout, volume.volume, layout.objects.stat().st_dev)))
    if not found:
        raise Refused("no volume of this server takes new files now: see godwit volumes ls")
    return max(found, key=lambda each: (each[1].device == device, each[0].free_bytes))[1]


async def find_place(asker: Asker, target: Target, path: Path) -> Place:
    """What *path* means; only its last name may be missing. Raises `Refused`."""
    _mount, names = split_at_mount(path, target.mounts)
    if not names:
        return Place(b"/", ROOT_INO, b"", None)
    parent = ROOT_INO
    for name in names[:-1]:
        node = (await asker(Lookup(parent, name))).node
        if node is None or not stat.S_ISDIR(node.mode):
            raise Refused(f"{path}: {os.fsdecode(name)} is no directory there", errno.ENOENT)
        parent = node.ino
    node = (await asker(Lookup(parent, names[-1]))).node
    if node is not None and not stat.S_ISDIR(node.mode):
        raise Refused(f"{path} is there, and is no directory", errno.EEXIST)
    return Place(b"/" + b"/".join(names), parent, names[-1], node)


async def enter(asker: Asker, walk: Walk, place: Place) -> tuple[int, bool]:
    """The inode of the directory at *place*, which is made as the imported one is if it is missing; and whether it was."""
    if not place.name:
        return ROOT_INO, False
    if place.node is not None:
        return place.node.ino, False
    folder = walk.folder.descriptor
    ino = (await asker(TakeInodes(1))).first
    found = Found(place.name, os.fstat(folder))
    name = imported_name(place.parent, found, ino, read_xattrs(folder, walk.brick))
    (answer,) = (await asker(ImportNames([name], file_time_ns()))).names
    if answer.outcome not in (ImportOutcome.MADE, ImportOutcome.THERE):
        raise _refusal(place, answer)
    return ino, True


def _refusal(place: Place, answer: ImportedAs) -> GodwitError:
    return Refused(f"{os.fsdecode(place.path)} cannot be made: {answer.reason or 'somebody else has made it just now'}")


def top_directory(ino: int, place: Place, known: dict[bytes, Node] | None) -> Directory:
    """Where the import begins."""
    return Directory((), ino, place.path, known)
