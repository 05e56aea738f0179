"""The extension's message stream alone, under AddressSanitizer: right messages, truncated ones, and many at random."""

import random
import struct
import subprocess
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import pytest

from fusefs.kernel.stream import InitFlag, OpenFlag
from tests.fusefs.kernel.drivers import NATIVE, built

OPEN, WRITE, FLUSH, INIT, OPENDIR, SETLKW, CREATE, INTERRUPT, FALLOCATE, LSEEK = 14, 16, 25, 26, 27, 33, 35, 36, 43, 46
TAKEN = (FLUSH, SETLKW, FALLOCATE, LSEEK)
WANTED = InitFlag.PASSTHROUGH | InitFlag.FLOCK_LOCKS
INIT_EXT = 1 << 30
WRITEBACK = 1 << 16
OUT_BYTES = 16

Command = tuple[str, bytes]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stream with its driver, built with the sanitizers."""
    return built(tmp_path_factory.mktemp("stream"), "stream")


def play(driver: Path, commands: Iterable[Command], taken_too: int = 0) -> list[str]:
    """What comes of each command; the last line counts what is left."""
    stream = b"".join(letter.encode() + struct.pack("<I", len(data)) + data for letter, data in commands)
    taken = sum(1 << opcode for opcode in TAKEN) | 1 << taken_too
    done = subprocess.run([driver, str(int(WANTED)), str(taken)], input=stream, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


def request(opcode: int, unique: int, body: bytes = b"", *, ino: int = 7) -> Command:
    return "R", struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, ino, 0, 0, 1, 0, 0) + body


def reply(unique: int, body: bytes = b"", *, error: int = 0) -> Command:
    return "P", struct.pack("<IiQ", OUT_BYTES + len(body), error, unique) + body


def will_open(handle: int, flags: int, backing_id: int = 0, *, directory: bool = False) -> Command:
    return "O", struct.pack("<IIIIQ", directory, flags, backing_id, 0, handle)


def init_request(flags: int, flags2: int, unique: int = 1) -> Command:
    return request(INIT, unique, struct.pack("<IIIII", 7, 45, 131072, flags, flags2) + bytes(44))


def init_reply(flags: int = 0, flags2: int = 0, unique: int = 1) -> Command:
    return reply(unique, struct.pack("<IIIIHHIIHHIII", 7, 36, 131072, flags, 12, 9, 1 << 20, 1, 256, 0, flags2, 0, 0) + bytes(20))


def body_of(line: str) -> bytes:
    return bytes.fromhex(line.split()[1])[OUT_BYTES:]


ALL = (INIT_EXT | InitFlag.FLOCK_LOCKS, InitFlag.PASSTHROUGH >> 32)


@pytest.mark.parametrize(
    ("offered", "given", "expected"),
    [
        pytest.param(ALL, (1, 0), (INIT_EXT | InitFlag.FLOCK_LOCKS | 1, InitFlag.PASSTHROUGH >> 32, 1), id="everything"),
        pytest.param((InitFlag.FLOCK_LOCKS, 0), (1, 0), (InitFlag.FLOCK_LOCKS | 1, 0, 0), id="an old kernel"),
        pytest.param((INIT_EXT, 0), (1, 0), (1, 0, 0), id="a kernel without passthrough"),
        pytest.param(ALL, (WRITEBACK, 0), (WRITEBACK | InitFlag.FLOCK_LOCKS, 0, 0), id="beside the writeback cache"),
        pytest.param(ALL, (1, 64), (INIT_EXT | InitFlag.FLOCK_LOCKS | 1, InitFlag.PASSTHROUGH >> 32, 1), id="flags of nobody"),
    ],
)
def test_the_kernel_is_asked_for_what_it_offers(
    driver: Path, offered: tuple[int, int], given: tuple[int, int], expected: tuple[int, int, int]
) -> None:
    _, line, _ = play(driver, [init_request(*offered), init_reply(*given)])
    fields = struct.unpack_from("<IIIIHHIIHHII", body_of(line))
    assert (fields[3], fields[10], fields[11]) == expected


def opened(handle: int) -> bytes:
    return struct.pack("<QII", handle, 0, 0)


def test_replies_to_opens_get_their_flags_and_backing_ids(driver: Path) -> None:
    entry = bytes(128)
    lines = play(
        driver,
        [
            request(OPEN, 10),
            request(CREATE, 11),
            request(OPENDIR, 12),
            request(OPEN, 13),
            request(OPEN, 14),
            will_open(5, OpenFlag.PASSTHROUGH, 77),
            will_open(6, OpenFlag.PASSTHROUGH, 78),
            will_open(5, OpenFlag.CACHE_DIR, directory=True),
            reply(12, opened(5)),
            reply(11, entry + opened(6)),
            reply(10, opened(5)),
            reply(13, opened(5)),
            reply(14, error=-2),
            reply(10, opened(5)),
        ],
    )
    told = [struct.unpack("<QII", body_of(line)[-16:]) for line in lines[8:12]]
    assert told == [(5, OpenFlag.CACHE_DIR, 0), (6, OpenFlag.PASSTHROUGH, 78), (5, OpenFlag.PASSTHROUGH, 77), (5, 0, 0)]
    assert [line.split()[0] for line in lines[8:14]] == ["changed", "changed", "changed", "same", "same", "same"]
    assert lines[-1].startswith("asked 0 opens 0")


def test_interrupts_of_what_has_no_answer_yet_are_taken(driver: Path) -> None:
    interrupt = struct.pack("<Q", 20)
    lines = play(
        driver,
        [
            request(SETLKW, 20, bytes(48)),
            request(INTERRUPT, 21, interrupt),
            request(INTERRUPT, 22, struct.pack("<Q", 99)),
            ("A", interrupt),
            request(INTERRUPT, 23, interrupt),
            request(OPEN + 1, 24),
            request(200, 25),
            request(INTERRUPT, 26, struct.pack("<Q", 25)),
            reply(25),
            request(INTERRUPT, 27, struct.pack("<Q", 25)),
        ],
    )
    assert lines[:7] == ["take", "take", "pass", "ok", "pass", "pass", "pass"]
    assert lines[7:10:2] == ["take", "pass"]
    assert "under way 1 " in lines[-1]


def number(letter: str, value: int) -> Command:
    return letter, struct.pack("<Q", value)


def test_it_is_known_who_waits_for_what(driver: Path) -> None:
    forget, batch_forget, notify_reply = 2, 42, 41
    whole = request(WRITE, 32, struct.pack("<QQIIQII", 1, 0, 0, 0, 0, 0, 0), ino=9)[1]
    silent = [request(opcode, 33) for opcode in (forget, batch_forget, notify_reply)]
    lines = play(
        driver,
        [request(OPEN, 30, ino=8), request(SETLKW, 31), ("L", whole), *silent, *(number("I", key) for key in range(30, 34))],
    )
    assert lines[6:10] == [f"{OPEN} by 1 of 8", f"{SETLKW} by 1 of 7", f"{WRITE} by 1 of 9", "nobody"]
    assert lines[-1].endswith("passed 0")  # which is the last one


def test_what_is_answered_after_it_was_abandoned_is_dropped(driver: Path) -> None:
    asked = [(OPEN, 30), (CREATE, 31), (OPENDIR, 32), (OPEN, 33), (WRITE, 34), (SETLKW, 35)]
    lines = play(
        driver,
        [
            *(request(opcode, unique) for opcode, unique in asked),
            *(number("B", unique) for _, unique in asked),
            will_open(6, OpenFlag.PASSTHROUGH, 78),
            reply(30, opened(5)),
            reply(31, bytes(128) + opened(6)),
            reply(32, opened(7)),
            reply(33, error=-2),
            reply(34, bytes(8)),
            number("A", 35),
            *(number("B", unique) for _, unique in asked),
            reply(30, opened(5)),
        ],
    )
    assert lines[6:13] == ["ok"] * 7
    assert lines[13:16] == ["dropped file 5", "dropped file 6", "dropped directory 7"]
    assert lines[16:19] == ["dropped nothing 0", "dropped nothing 0", "drop"]
    assert lines[19:25] == ["no"] * 6
    assert lines[25].startswith("same")
    assert lines[-1].startswith("asked 0 opens 0 under way 0")


def test_a_request_that_is_declined_goes_to_libfuse_like_any_other(driver: Path) -> None:
    first, second = request(OPENDIR, 40), request(OPENDIR, 41)
    lines = play(
        driver,
        [
            first,
            ("D", first[1]),
            will_open(5, OpenFlag.CACHE_DIR, directory=True),
            reply(40, opened(5)),
            second,
            ("A", struct.pack("<Q", 41)),
            request(SETLKW, 42, bytes(48)),
            ("D", request(SETLKW, 42)[1]),
            request(INTERRUPT, 43, struct.pack("<Q", 42)),
        ],
        taken_too=OPENDIR,
    )
    assert (lines[0], lines[4], lines[6], lines[8]) == ("take", "take", "take", "take")
    assert struct.unpack("<QII", body_of(lines[3])) == (5, OpenFlag.CACHE_DIR, 0)
    assert lines[-1].startswith("asked 0 opens 0")


def test_a_file_that_is_not_made_at_once_is_opened_through_libfuse(driver: Path) -> None:
    first, second = request(CREATE, 40), request(CREATE, 41)
    name = bytes(128)
    lines = play(
        driver,
        [
            first,
            ("A", struct.pack("<Q", 40)),
            second,
            ("D", second[1]),
            will_open(6, OpenFlag.PASSTHROUGH, 3),
            reply(41, name + opened(6)),
        ],
        taken_too=CREATE,
    )
    assert (lines[0], lines[2]) == ("take", "take")
    assert body_of(lines[5]) == name + struct.pack("<QII", 6, OpenFlag.PASSTHROUGH, 3)
    assert lines[-1].startswith("asked 0 opens 0 under way 0")


def test_a_flush_is_answered_at_once_unless_somebody_wants_it(driver: Path) -> None:
    def watch(wanted: int) -> Command:
        return "F", struct.pack("<QII", 7, wanted, 0)

    lines = play(
        driver, [request(FLUSH, 30), watch(1), request(FLUSH, 31), request(FLUSH, 32, ino=8), watch(0), request(FLUSH, 33)]
    )
    answers = ["answer " + struct.pack("<IiQ", OUT_BYTES, 0, unique).hex() for unique in (30, 32, 33)]
    assert [lines[0], lines[2], lines[3], lines[5]] == [answers[0], "take", answers[1], answers[2]]


def test_writes_that_take_the_set_id_bits_are_noticed_once(driver: Path) -> None:
    def write(flags: int, ino: int, content: bytes = b"new") -> Command:
        return request(WRITE, 50, struct.pack("<QQIIQII", 1, 0, len(content), flags, 0, 0, 0) + content, ino=ino)

    def asked(ino: int) -> Command:
        return "K", struct.pack("<Q", ino)

    kills, whole = 4 | 1, write(4, 9)[1]
    lines = play(
        driver,
        [
            *(write(1, 7), asked(7), write(kills, 7), write(kills, 7), asked(8), asked(7), asked(7)),
            *(("L", whole[:79]), asked(9), ("L", whole[:80]), asked(9), ("L", request(OPEN, 51, bytes(40))[1]), asked(7)),
        ],
    )
    assert lines[:7] == ["pass", "no", "pass", "pass", "no", "yes", "no"]
    assert lines[7:13] == ["ok", "no", "ok", "yes", "ok", "no"]


@pytest.mark.parametrize("length", [0, 1, 39, 40, 47, 55, 59])
def test_truncated_requests_go_to_libfuse(driver: Path, length: int) -> None:
    letter, whole = init_request(*ALL)
    interrupted = request(INTERRUPT, 2, b"1234")
    assert play(driver, [(letter, whole[:length]), interrupted])[:2] == ["pass", "pass"]


def test_truncated_replies_go_out_as_they_are(driver: Path) -> None:
    for message, body in ((init_request(*ALL), init_reply()[1]), (request(OPEN, 1), reply(1, opened(5))[1])):
        for length in range(len(body)):
            lines = play(driver, [message, will_open(5, 128, 3), ("P", body[:length])])
            assert lines[2] == f"same {body[:length].hex()}"


@pytest.mark.search
def test_messages_at_random(driver: Path) -> None:
    for seed in range(20):
        play(driver, random_commands(random.Random(seed)), taken_too=(0, OPENDIR, CREATE)[seed % 3])


def random_commands(rng: random.Random) -> Iterable[Command]:
    """Requests and replies that nearly fit together, some with bytes changed, added or cut off."""
    opcodes = (OPEN, WRITE, FLUSH, INIT, OPENDIR, SETLKW, CREATE, INTERRUPT, FALLOCATE, LSEEK, 0, 63, 64, 4096)
    for _ in range(2000):
        unique, size = rng.randrange(50), rng.choice((0, 4, 8, 15, 16, 20, 40, 64, 143, 144, 200, 300))
        body = rng.randbytes(size)
        letter, message = rng.choice(
            [
                request(rng.choice(opcodes), unique, body, ino=rng.randrange(20)),
                reply(unique, rng.choice([body, bytes(128) + opened(rng.randrange(30)), opened(rng.randrange(30))])),
                will_open(rng.randrange(30), rng.randrange(256), rng.randrange(9), directory=rng.random() < 0.3),
                ("F", struct.pack("<QII", rng.randrange(1000), rng.random() < 0.7, 0)),
                ("A", struct.pack("<Q", unique)),
                ("L", request(WRITE, unique, body, ino=rng.randrange(20))[1]),
                ("K", struct.pack("<Q", rng.randrange(20))),
                ("I", struct.pack("<Q", unique)),
                ("B", struct.pack("<Q", unique)),
                ("D", request(rng.choice(opcodes), unique)[1]),
            ]
        )
        if letter in "RP" and rng.random() < 0.2:
            letter = rng.choice((letter, "W")) if letter == "P" else letter
            message = message[: rng.randrange(len(message) + 1)] + rng.randbytes(rng.choice((0, 0, 1, 9)))
        yield letter, message


def test_what_python_loads_is_built_without_warnings(tmp_path: Path) -> None:
    include = sysconfig.get_paths()["include"]
    command = ["gcc", "-std=c11", "-D_GNU_SOURCE", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{include}", "-c"]
    for source in NATIVE.glob("*.c"):
        subprocess.run([*command, source, "-o", tmp_path / f"{source.stem}.o"], check=True)
