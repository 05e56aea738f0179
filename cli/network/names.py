"""From a path of this machine, or a number, to an inode of the network: asked of the manager, never of the mount."""

import errno
import os
import stat
from pathlib import Path
from typing import Annotated

import typer

from cli.network.target import Target, split_at_mount
from cluster.errors import Refused
from cluster.messages import ROOT_INO, Lookup, ReadLink
from cluster.rpc.conversation import Asker

PathArgument = Annotated[
    Path | None, typer.Argument(metavar="[PATH]", help="A path on one of the network's mounts.", show_default=False)
]
InoOption = Annotated[
    int | None, typer.Option("--ino", min=1, metavar="N", help="An inode number instead of a path.", show_default=False)
]

MAX_LINKS = 40  # MAXSYMLINKS of Linux


def require_one(path: Path | None, ino: int | None) -> None:
    """Raises a usage error unless exactly one of both is given."""
    if (path is None) == (ino is None):
        raise typer.BadParameter("give either a PATH or --ino N", param_hint="PATH")


async def find_inode(asker: Asker, target: Target, path: Path | None, ino: int | None) -> int:
    """The inode that *path* names (a symbolic link at its end is not followed), or *ino* itself."""
    if path is None:
        assert ino is not None
        return ino
    _mount, names = split_at_mount(path, target.mounts)
    return await _walk(asker, path, names)


async def _walk(asker: Asker, path: Path, names: list[bytes]) -> int:
    # A stack, so that the target of a link is put in the place of its name.
    left = names[::-1]
    parents = [ROOT_INO]
    links = 0
    while left:
        name = left.pop()
        if name in (b"", b"."):
            continue
        if name == b"..":
            parents[1:] = parents[1:-1]  # `..` of the root is the root
            continue
        try:
            node = (await asker(Lookup(parents[-1], name))).node
        except Refused as error:
            # The manager names an inode; people know the path.
            if error.errno == errno.ENOTDIR:
                raise Refused(f"{path}: {os.strerror(error.errno)}", error.errno) from error
            raise
        if node is None:
            raise Refused(f"{path}: {os.strerror(errno.ENOENT)}", errno.ENOENT)
        # Only on the way: the last name may be a link, and it is the link that is asked about.
        if left and stat.S_ISLNK(node.mode):
            target = (await asker(ReadLink(node.ino))).value
            links += 1
            # An absolute target may lead out of the network's mounts.
            if target.startswith(b"/") or links > MAX_LINKS:
                raise Refused(f"{path} leads through the symbolic link {name!r}: give the path that it points to")
            left += target.split(b"/")[::-1]
            continue
        parents.append(node.ino)
    return parents[-1]
