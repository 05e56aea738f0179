"""Requests that are answered past pyfuse3: decoded, interrupted, refused."""

import errno
import struct

import pytest
import trio
import trio.testing

from cluster.errors import refused
from cluster.faults import faults
from fusefs.kernel.interrupts import Interrupts
from fusefs.kernel.requests import Opcode, Raw, RawRequests, parse
from fusefs.kernel.stream import Whose


class Nobody:
    """A stream in which nobody waits."""

    def whose(self, unique: int) -> Whose | None:
        return None

    def abandon(self, unique: int) -> bool:
        raise AssertionError


async def forget(_inodes: set[int], _names: set[tuple[int, bytes]]) -> None:
    raise AssertionError


def message(opcode: int, unique: int, body: bytes, *, extensions: int = 0) -> bytes:
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, 7, 1000, 1001, 42, extensions, 0) + body


def test_a_request_is_decoded_without_its_extensions() -> None:
    assert parse(message(46, 9, b"x" * 24, extensions=1)) == Raw(46, 9, 7, 1000, 1001, 42, b"x" * 16)


async def test_what_can_be_answered_at_once_is_and_the_rest_goes_on() -> None:
    replies: list[bytes] = []

    def look_up(request: Raw) -> bytes | None:
        if request.body == b"missing\0":
            raise refused(errno.ENOENT)
        if request.body == b"broken\0":
            raise ZeroDivisionError
        return b"entry" if request.body == b"known\0" else None

    async with trio.open_nursery() as nursery:
        raw = RawRequests({Opcode.LOOKUP: look_up}, {}, nursery, replies.append, Interrupts(Nobody(), nursery, forget))
        assert raw.opcodes == [Opcode.LOOKUP]
        names = (b"known\0", b"missing\0", b"broken\0", b"unknown\0")
        taken = [raw.received(message(Opcode.LOOKUP, unique, name)) for unique, name in enumerate(names, 1)]
        assert taken == [True, True, True, False]
        assert raw.requests == 3
    assert replies == [
        struct.pack("<IiQ", 21, 0, 1) + b"entry",
        struct.pack("<IiQ", 16, -errno.ENOENT, 2),
        struct.pack("<IiQ", 16, -errno.EIO, 3),
    ]


async def test_requests_that_fail_unexpectedly_are_counted_and_rarely_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail(_request: Raw) -> bytes:
        raise ZeroDivisionError

    before = faults.unexpected_errors
    async with trio.open_nursery() as nursery:
        raw = RawRequests({Opcode.LOOKUP: fail}, {}, nursery, lambda _reply: None, Interrupts(Nobody(), nursery, forget))
        for unique in range(1, 26):
            raw.received(message(Opcode.LOOKUP, unique, b"name\0"))
    assert faults.unexpected_errors == before + 25
    assert len([record for record in caplog.records if "unexpected error in LOOKUP" in record.message]) == 2


async def test_answers_errors_and_interrupts() -> None:
    replies: dict[int, tuple[int, bytes]] = {}

    def reply(whole: bytes) -> None:
        length, code, unique = struct.unpack_from("<IiQ", whole)
        assert length == len(whole)
        replies[unique] = code, whole[16:]

    async def seek(request: Raw) -> bytes:
        return request.body[::-1]

    async def refuse(_request: Raw) -> bytes:
        raise refused(errno.EOPNOTSUPP)

    async def fail(_request: Raw) -> bytes:
        raise ZeroDivisionError

    async def wait(_request: Raw) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async with trio.open_nursery() as nursery:
        handlers = {Opcode.LSEEK: seek, Opcode.FALLOCATE: refuse, Opcode.GETLK: fail, Opcode.SETLKW: wait}
        raw = RawRequests({}, handlers, nursery, reply, Interrupts(Nobody(), nursery, forget))
        assert raw.received(message(Opcode.LSEEK, 1, b"ab"))
        raw.received(message(Opcode.FALLOCATE, 2, b""))
        raw.received(message(Opcode.GETLK, 3, b""))
        raw.received(message(Opcode.SETLKW, 4, b""))
        await trio.testing.wait_all_tasks_blocked()
        assert 4 not in replies
        raw.received(message(Opcode.INTERRUPT, 5, struct.pack("<Q", 4)))
        raw.received(message(Opcode.INTERRUPT, 6, struct.pack("<Q", 77)))
        assert raw.requests == 4
    assert replies == {1: (0, b"ba"), 2: (-errno.EOPNOTSUPP, b""), 3: (-errno.EIO, b""), 4: (-errno.EINTR, b"")}
