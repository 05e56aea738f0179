"""Copying objects from one agent to another."""

from __future__ import annotations

from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import AgentRequest, Failure, Reply
from cluster.messages.values import Stamp

SUM_BLOCK_BYTES = 128 * 1024
SUM_BYTES = 32
RANGES_MAX = 16 * 1024


class PullHeader(Reply, frozen=True):
    """First reply to `PullObject` and `SumBlocks`; `size` bytes follow in `Chunk` and `Hole` replies."""

    size: int


class Chunk(Reply, frozen=True):
    """The next bytes, in the body."""

    plain: bool = False  # the body is not encrypted: it follows beneath TLS. Only where the request `takes_plain`


class Hole(Reply, frozen=True):
    """The next `size` bytes are zeros, which the source has no blocks for. Only where the request `takes_holes`."""

    size: int


class PullEnd(Reply, frozen=True):
    """All bytes were sent and the object did not change meanwhile; `checksum` is the BLAKE3 digest of what was sent.

    In the answer to `SumBlocks` it is the digest of the object.
    """

    checksum: bytes


class PullObject(AgentRequest[PullEnd], frozen=True):
    """The content of a replica: `PullHeader`, `Chunk` …, `PullEnd`, or a `Failure` at any point.

    The source serves it only if its object's stamp is `stamp` before and after: otherwise `Changed` if a newer version is
    being written there, else `Corrupt`.
    """

    ino: int
    volume: int
    version: int
    stamp: Stamp
    token: bytes  # a pass to read
    ranges: list[tuple[int, int]] = []  # these pairs of offset and length only: at most `RANGES_MAX`, ascending
    is_written: bool = False  # somebody may have it open for writing without a break since before that version
    takes_holes: bool = False  # `Hole` may come in the place of a `Chunk` with zeros
    takes_plain: bool = False  # bodies need not be encrypted: the digest at the end, which is, shows what was changed


PULLS_MAX = 256
PULLED_MAX_BYTES = 2 * 1024 * 1024


class Pulled(Reply, frozen=True):
    """For each object its end or why it is not sent. The contents of the former are in the body, one behind the other."""

    results: list[PullEnd | Failure]


class PullObjects(AgentRequest[Pulled], frozen=True):
    """Small replicas on one volume, each as `PullObject` would give it: at most `PULLS_MAX`, together `PULLED_MAX_BYTES` long."""

    pulls: list[PullObject]


class SumBlocks(AgentRequest[PullEnd], frozen=True):
    """As `PullObject`, but the BLAKE3 digests of the replica's blocks, one behind the other, in the place of its content."""

    ino: int
    volume: int
    version: int
    stamp: Stamp
    token: bytes
    is_written: bool = False
