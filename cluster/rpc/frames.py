"""Frames on a connection: pure parsing and building, no I/O.

A connection starts with the preface; then come frames in both directions:

    u32 length of head | u32 length of body | u64 number | head (msgpack of one message) | body (raw bytes)

The number ties replies to requests; the largest one is that of a greeting, which has no reply. Lengths are checked before
anything is buffered for them.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from cluster.errors import ProtocolError

PREFACE = b"GODWIT/1\n"
HEADER = struct.Struct(">IIQ")
HEAD_MAX_BYTES = 4 * 1024 * 1024
BODY_MAX_BYTES = 4 * 1024 * 1024
GREETING_NUMBER = 2**64 - 1


class Limits(NamedTuple):
    """How many bytes a frame may have at most."""

    head: int
    body: int


LARGEST = Limits(HEAD_MAX_BYTES, BODY_MAX_BYTES)


class Frame(NamedTuple):
    """One message with its number; `head` is encoded."""

    number: int
    head: bytes
    body: bytes


def pack(number: int, head: bytes, body: bytes | memoryview = b"") -> bytes:
    """The bytes of one frame. Raises `ProtocolError` for a message that no receiver would take."""
    return b"".join((pack_head(number, head, len(body)), body))


def pack_head(number: int, head: bytes, body_bytes: int) -> bytes:
    """As `pack`, up to where the body begins."""
    if len(head) > HEAD_MAX_BYTES or body_bytes > BODY_MAX_BYTES:
        raise ProtocolError(f"message too large to send: head {len(head)} bytes, body {body_bytes} bytes")
    return HEADER.pack(len(head), body_bytes, number) + head


def lengths_of(buffer: bytes | bytearray | memoryview, position: int = 0, limits: Limits = LARGEST) -> tuple[int, int, int]:
    """Length of head, length of body and number from the header at *position*. Raises `ProtocolError`."""
    head_bytes, body_bytes, number = HEADER.unpack_from(buffer, position)
    if head_bytes > limits.head or body_bytes > limits.body:
        raise ProtocolError(f"frame too large: head {head_bytes} bytes, body {body_bytes} bytes")
    return head_bytes, body_bytes, number


class FrameParser:
    """Turns received bytes into frames no larger than `limits`. After a `ProtocolError` the connection must be closed."""

    def __init__(self, *, expect_preface: bool, limits: Limits = LARGEST) -> None:
        self.limits = limits
        self._buffer = bytearray()
        self.expects_preface = expect_preface

    def feed(self, data: bytes | bytearray) -> Iterator[Frame]:
        """Takes received bytes and yields the frames that they complete."""
        self._buffer += data
        if self.expects_preface and not self._take_preface():
            return
        position = 0
        try:
            while len(self._buffer) - position >= HEADER.size:
                head_bytes, body_bytes, number = lengths_of(self._buffer, position, self.limits)
                start = position + HEADER.size
                end = start + head_bytes + body_bytes
                if len(self._buffer) < end:
                    break
                with memoryview(self._buffer) as view:
                    frame = Frame(number, bytes(view[start : start + head_bytes]), bytes(view[start + head_bytes : end]))
                position = end
                yield frame
        finally:
            del self._buffer[:position]

    @property
    def is_within_frame(self) -> bool:
        """Whether more must come of the preface, or of a frame of which some has come."""
        return self.expects_preface or bool(self._buffer)

    @property
    def frame_bytes(self) -> int:
        """How long the frame is, header included, of which some has come; 0 while that is not known."""
        if self.expects_preface or len(self._buffer) < HEADER.size:
            return 0
        head_bytes, body_bytes, _number = lengths_of(self._buffer, 0, self.limits)
        return HEADER.size + head_bytes + body_bytes

    def _take_preface(self) -> bool:
        have = bytes(self._buffer[: len(PREFACE)])
        if not PREFACE.startswith(have):
            raise ProtocolError(f"not a Godwit peer: connection starts with {have!r}")
        if len(have) < len(PREFACE):
            return False
        del self._buffer[: len(PREFACE)]
        self.expects_preface = False
        return True
