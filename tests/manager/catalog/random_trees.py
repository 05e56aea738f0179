"""Random trees in a catalog: what every kind of inode, link and attribute can be."""

import random
import stat

from cluster.messages import ROOT_INO, Link, SetAttr, SetXattr
from tests.manager.office import NOW, Peer

NAMES = (b"plain", b"with space", b"\xff\xfe not text", "ü".encode(), b"tab\there", b"back\\slash", b"new\nline")


def new_name(rng: random.Random, number: int) -> bytes:
    """One that nothing else has."""
    return rng.choice(NAMES) + b" %d" % number


async def grow(mount: Peer, rng: random.Random, steps: int) -> dict[int, int]:
    """Makes things at random; the files, with the versions that they were committed with."""
    directories, files = [ROOT_INO], dict[int, int]()
    for number in range(steps):
        parent, name = rng.choice(directories), new_name(rng, number)
        mode, owner = rng.randrange(0o7777 + 1), {"uid": rng.randrange(2000), "gid": rng.randrange(2000)}
        kind = rng.choice(("file", "file", "file", "directory", "symlink", "fifo", "link"))
        if kind == "directory":
            ino = (await mount.make(name, parent, stat.S_IFDIR | mode, **owner)).ino
            directories.append(ino)
        elif kind == "symlink":
            ino = (await mount.make(name, parent, stat.S_IFLNK | 0o777, target=b"../\xff " + name, **owner)).ino
        elif kind == "fifo":
            ino = (await mount.make(name, parent, stat.S_IFIFO | mode, **owner)).ino
        elif kind == "link" and files:
            ino = rng.choice(sorted(files))
            await mount.one(Link(ino, parent, name, NOW + number))
        else:
            ino = (await mount.make(name, parent, stat.S_IFREG | (mode & ~0o7000), **owner)).ino
            files[ino] = rng.randrange(1, 4)
            for version in range(1, files[ino] + 1):
                await mount.commit(ino, version, size=rng.randrange(1, 10_000))
        if rng.random() < 0.3 and kind in ("file", "directory"):
            await mount.one(SetXattr(ino, b"user.\xc3\xbc%d" % rng.randrange(3), rng.randbytes(rng.randrange(1, 300)), 0, NOW))
        if rng.random() < 0.3:
            await mount.one(SetAttr(ino, NOW + number, atime_ns=rng.randrange(NOW), mtime_ns=rng.randrange(NOW)))
    return files
