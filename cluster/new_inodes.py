"""What a new inode is like: what the manager writes, and what a mount that is alone in the directory says at once. Pure."""

import stat

from cluster.messages import Create, Node

DIRECTORY_BYTES = 4096  # what `st_size` of every directory says, as of a small one in ext4
LINK_MAX = 65000  # names of one inode, as in ext4
DIRECTORY_BLOCKS = 8  # of 512 bytes: the same in blocks


def inherited(parent_mode: int, parent_gid: int, mode: int, gid: int) -> tuple[int, int]:
    """Mode and group of what is made in a directory: the group is inherited, and by directories the set-group-id bit, too."""
    if not parent_mode & stat.S_ISGID:
        return mode, gid
    return mode | (stat.S_ISGID if stat.S_ISDIR(mode) else 0), parent_gid


def new_node(op: Create, mode: int, gid: int, *, links: int, xattrs: int = 0) -> Node:
    """The node of what *op* makes; mode and group are those that it has in the end."""
    directory, regular = stat.S_ISDIR(mode), stat.S_ISREG(mode)
    return Node(
        ino=op.ino,
        mode=mode,
        nlink=links,
        uid=op.uid,
        gid=gid,
        rdev=op.rdev if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0,
        size=DIRECTORY_BYTES if directory else len(op.target),
        blocks=DIRECTORY_BLOCKS if directory else 0,
        atime_ns=op.now_ns,
        mtime_ns=op.now_ns,
        ctime_ns=op.now_ns,
        btime_ns=op.now_ns,
        version=0,
        dirty=regular,  # until its first commit
        home_volume=op.home_volume if regular else 0,
        home_epoch=int(regular),
        object_ctime_ns=op.object_ctime_ns if regular else 0,
        xattrs=xattrs,
    )
