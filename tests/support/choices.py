"""What the random operations are drawn from. Few names and few values, so that operations meet one another."""

import os
import stat
import struct
from dataclasses import dataclass

from hypothesis import strategies as st

from tests.support.acting import ANNA, BERT, KEEP_SIZE, PUNCH_HOLE, ROOT, ZERO_RANGE

NAMES = (b"a", b"b", b"c", b"\xff\xfe", "ä\n€".encode(), b"n" * 255, b"N" * 256)
TARGETS = (b"a", b"b", b"../a", b"../b", b"a/c", b".", b"..", b"nowhere", b"t" * 1000)
MODES = (0o644, 0o755, 0o777, 0o600, 0o000, 0o444, 0o4755, 0o6711, 0o2644, 0o2770, 0o1777, 0o4777, 0o6777)
OWNERS = (-1, 0, 4001, 4002)
GROUPS = (-1, 0, 4001, 5000)
OFFSETS = (0, 1, 100, 4095, 4096, 10_000, 131_072, 1_000_000, 5_000_000)
LENGTHS = (0, 1, 10, 100, 4096, 5000, 70_000, 140_000)
SIZES = (0, 1, 99, 4095, 4096, 10_000, 1 << 20, 5_000_000)
ALLOCATIONS = (0, KEEP_SIZE, PUNCH_HOLE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE, 0x1000)
TIMES_NS = (0, 1, 999_999_999, 1_234_567_890_123_456_789, 1_111_111_111 * 10**9, 4_294_967_296 * 10**9 + 7)
XATTR_NAMES = (b"user.a", b"user.b", b"user.", b"trusted.t", b"security.godwit", b"system.nothing", b"nonsense", b"bad.name")
XATTR_LENGTHS = (0, 1, 30, 300)
DEVICES = (
    (stat.S_IFIFO, 0),
    (stat.S_IFSOCK, 0),
    (stat.S_IFREG, 0),
    (stat.S_IFCHR, os.makedev(1, 3)),
    (stat.S_IFBLK, os.makedev(240, 70_000)),
)
UNNAMED_FLAGS = (os.O_RDWR, os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_EXCL, os.O_RDONLY)
EXTRA_FLAGS = (os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_DIRECTORY, os.O_NOFOLLOW)


@dataclass(frozen=True)
class Where:
    """Which path: the n-th that exists, a name in the n-th directory, or a name below the n-th path, whatever that is."""

    kind: str
    index: int
    name: bytes
    suffix: bytes


def acl(*entries: tuple[int, int, int]) -> bytes:
    """The extended attribute's form of an ACL of (tag, permissions, id); acl(5), <linux/posix_acl_xattr.h>."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, perm, number) for tag, perm, number in entries)


NO_ID = 0xFFFFFFFF
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
ACLS = (
    acl((USER_OBJ, 6, NO_ID), (GROUP_OBJ, 4, NO_ID), (OTHER, 0, NO_ID)),
    acl((USER_OBJ, 7, NO_ID), (USER, 7, 4002), (GROUP_OBJ, 5, NO_ID), (MASK, 5, NO_ID), (OTHER, 0, NO_ID)),
    acl((USER_OBJ, 7, NO_ID), (USER, 0, 4001), (GROUP_OBJ, 0, NO_ID), (GROUP, 6, 5000), (MASK, 7, NO_ID), (OTHER, 5, NO_ID)),
    acl((USER_OBJ, 7, NO_ID), (USER, 7, 4002), (OTHER, 0, NO_ID)),
)

paths = st.builds(
    Where,
    kind=st.sampled_from(["existing"] * 10 + ["fresh", "through"]),
    index=st.integers(0, 30),
    name=st.sampled_from(NAMES),
    suffix=st.sampled_from([b""] * 30 + [b"/", b"/.", b"/.."]),
)
new_paths = st.builds(
    Where,
    kind=st.sampled_from(["fresh"] * 8 + ["existing", "through"]),
    index=st.integers(0, 30),
    name=st.sampled_from(NAMES),
    suffix=st.sampled_from([b""] * 20 + [b"/"]),
)
targets = st.sampled_from(TARGETS)
slots = st.integers(0, 7)
users = st.sampled_from([ROOT, ROOT, ROOT, ANNA, BERT])
modes = st.sampled_from(MODES)
owners = st.sampled_from(OWNERS)
groups = st.sampled_from(GROUPS)
offsets = st.sampled_from(OFFSETS)
sizes = st.sampled_from(SIZES)
allocations = st.sampled_from(ALLOCATIONS)
times = st.none() | st.tuples(st.sampled_from(TIMES_NS), st.sampled_from(TIMES_NS))
data = st.builds(lambda byte, length: bytes([byte]) * length, st.integers(97, 122), st.sampled_from(LENGTHS))
xattr_names = st.sampled_from(XATTR_NAMES)
xattr_values = st.sampled_from(XATTR_LENGTHS).map(lambda length: b"v" * length)
xattr_flags = st.sampled_from([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE])
acl_names = st.sampled_from([b"system.posix_acl_access", b"system.posix_acl_default"])
acls = st.sampled_from(ACLS)
unnamed_flags = st.sampled_from(UNNAMED_FLAGS).map(lambda flags: flags | os.O_TMPFILE)
flags = st.builds(
    lambda access, extra: access | sum(extra),
    st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR]),
    st.sets(st.sampled_from(EXTRA_FLAGS), max_size=3) | st.just({os.O_CREAT}),
)
