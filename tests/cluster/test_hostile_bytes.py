"""No bytes end a process: each decoder gives a value or raises `Malformed`, whatever it is given.

The seed is fixed, so that a failure comes again. More, or others: GODWIT_FUZZ=1000000 GODWIT_FUZZ_SEED=7 ./dev test this file.
"""

import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cluster.catalog_point import CatalogPoint
from cluster.config import ServerConfig, dump_config, parse_config
from cluster.decoding import Decode, from_json, from_msgpack, from_toml
from cluster.errors import GodwitError, Malformed, OutOfRange, TokenRefused
from cluster.leases import LeaseToken, read_token
from cluster.messages import (
    AGENT_UNION,
    MANAGER_UNION,
    REPLY_UNION,
    Applied,
    Apply,
    AwaitCopies,
    Create,
    GetAttr,
    GiveBack,
    Greeting,
    Hello,
    LockSpan,
    Lookup,
    Node,
    OpenInode,
    Ping,
    PullObject,
    ReadObject,
    SetLock,
    SetXattr,
    Stamp,
    Welcome,
)
from cluster.rpc.frames import FrameParser, pack
from cluster.volume.layout import ObjectRecord, VolumeIdentity
from lab.registry import Entry
from lab.state import LabState, new_state

INPUTS = int(os.environ.get("GODWIT_FUZZ", "100000"))
SEED = int(os.environ.get("GODWIT_FUZZ_SEED", "13"))
LARGE_EVERY = 5000  # such inputs are megabytes

NODE = Node(7, 0o100644, 1, 0, 0, 0, 10, 8, 1, 2, 3, 4)
TOKEN = LeaseToken(1, 2, "read", "s1", 1, "h:1", 1, 1, 1, 15.0, 2.0)
CREATE = Create(1, b"name", 5000, 0o100644, 0, 0, 0, 10**18, 1)
REQUESTS = [
    Hello(1, "c", "s1", "mount", 2**62, [OpenInode(7, True)], [b"token"], [1, 2, 3]),
    Lookup(1, b"name"),
    Apply(1, 1, [CREATE, SetXattr(7, b"user.x", b"value" * 50, 0, 1)]),
    Ping("c"),
    GiveBack([1, 2**40], 5),
    AwaitCopies(7, 1, 2, 3.5),
]
DATA_REQUESTS = [ReadObject(7, 1, b"token", 0, 4096), PullObject(7, 1, 1, Stamp(1, 2, 3), b"token", [(0, 1), (5, 9)])]
REPLIES = [NODE, Welcome(1, "s1", 30.0, [1], 2.0, ["a:1"]), Applied([NODE, None], touched=[1])]
CONFIG = b"""cluster = "c"\nserver = "s1"\nmanagers = ["a:1"]
[manager]\nlisten = "a:1"\ndatabase = "sqlite://"\n[agent]\nlisten = "a:2"\n[mount]\nmountpoint = "/mnt"\n"""
OBJECT = ObjectRecord(7, 1, 1, "00", "/a/\udcff", 0o644, 0, 0, 5)

_pack = msgspec.msgpack.encode

DECODERS: dict[str, tuple[Decode[Any], list[bytes]]] = {
    "a manager's requests": (from_msgpack(MANAGER_UNION), [_pack(request) for request in REQUESTS]),
    "an agent's requests": (from_msgpack(AGENT_UNION), [_pack(request) for request in DATA_REQUESTS]),
    "replies": (from_msgpack(REPLY_UNION), [_pack(reply) for reply in REPLIES]),
    "greetings": (from_msgpack(Greeting), [_pack(Greeting(1, "c", "s1", "mount"))]),
    "stored replies": (from_msgpack(Applied), [_pack(REPLIES[-1])]),
    "lease tokens": (from_msgpack(LeaseToken), [_pack(TOKEN)]),
    "objects' records": (from_json(ObjectRecord), [msgspec.json.encode({"ino": 7, "version": 1, "home_epoch": 2, "path": "/a"})]),
    "a migration's subject": (from_json(list[str]), [b'["/a", "/\\udcff"]']),
    "lab.json": (from_json(LabState), [msgspec.json.encode(new_state(3, 1, None, {"mount": {"renew_s": 1.0}}))]),
    "the labs' registry": (from_json(Entry), [b'{"root": "/lab"}']),
    "what a server remembers": (from_json(CatalogPoint), [msgspec.json.encode(CatalogPoint("c", 1, 2, 3))]),
    "volume.toml": (from_toml(VolumeIdentity), [msgspec.toml.encode(VolumeIdentity("u", "c", "s1"))]),
    "godwit.toml": (from_toml(ServerConfig), [CONFIG]),
}


def mutated(draw: random.Random, valid: bytes) -> bytes:
    """*valid* with a few bytes changed, taken out, put in or repeated."""
    data = bytearray(valid)
    for _ in range(draw.randrange(1, 5)):
        at = draw.randrange(len(data) + 1)
        match draw.randrange(5):
            case 0:
                data[at : at + 1] = draw.randbytes(1)
            case 1:
                del data[at : at + draw.randrange(1, 9)]
            case 2:
                data[at:at] = draw.choice(NUMBERS)
            case 3:
                data[at:at] = draw.randbytes(draw.randrange(1, 20))
            case _:
                data[at:at] = data[at : at + draw.randrange(1, 30)] * draw.randrange(1, 4)
    return bytes(data)


NUMBERS = [_pack(2**64 - 1), _pack(2**63), _pack(-(2**63)), _pack(float("nan")), b"1" * 5000, b"1e999", b"\xff\xfe", b"\xc1"]
NESTED = [
    b"\x91" * 100_000,
    b"\x81\x01" * 50_000,
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b"a=" + b"[" * 5_000,
    b"\xdd\xff\xff\xff\xff",
]


def inputs(valid: list[bytes], count: int) -> Iterator[bytes]:
    """Random, valid with changes, truncated, deep and huge ones."""
    draw = random.Random(SEED)
    for number in range(count):
        if number % LARGE_EVERY == 0:
            yield from (draw.choice(valid)[: draw.randrange(20)] + deep + b"\xc0" for deep in NESTED)
            yield draw.choice([draw.randbytes(1 << 20), draw.choice(valid) * 10_000, b"\xdb\xff\xff\xff\xff" + bytes(1 << 20)])
        match number % 4:
            case 0:
                yield draw.randbytes(draw.randrange(200))
            case 1:
                whole = draw.choice(valid)
                yield whole[: draw.randrange(len(whole))]
            case _:
                yield mutated(draw, draw.choice(valid))


@pytest.mark.search
@pytest.mark.parametrize("what", DECODERS)
def test_a_decoder_gives_a_value_or_says_that_it_is_malformed(what: str) -> None:
    decode, valid = DECODERS[what]
    for whole in valid:
        decode(whole)
    refusals = []
    for data in inputs(valid, INPUTS):
        try:
            decode(data)
        except Malformed as error:
            refusals.append(str(error))
    assert refusals
    assert all(said.isprintable() and len(said) < 2000 for said in refusals)


@pytest.mark.search
def test_frames_give_heads_or_an_error_of_ours() -> None:
    def parse(data: bytes) -> None:
        for frame in FrameParser(expect_preface=False).feed(data):
            assert frame

    valid = [pack(7, b"head", b"body"), pack(1, b"h") + pack(2, b"")]
    outcomes = [_outcome(parse, data) for data in inputs(valid, INPUTS)]
    assert {True, False} == set(outcomes)


def _outcome(function: Callable[[bytes], object], data: bytes) -> bool:
    try:
        function(data)
    except GodwitError:
        return False
    return True


def test_who_decodes_for_others_raises_their_errors() -> None:
    for deep in (*NESTED, b"\x9b\x01\x02\xa4\xff\xff\xff\xff", b"\xff\xfe"):
        with pytest.raises(TokenRefused):
            read_token(bytes(32) + deep)
        with pytest.raises(GodwitError, match="the file"):
            parse_config(deep, "the file")
    assert parse_config(dump_config(parse_config(CONFIG, "")), "").server == "s1"


@pytest.mark.parametrize("number", [2**63, 2**64 - 1])
def test_numbers_that_nothing_can_have_are_told_apart(number: int) -> None:
    for request in (GetAttr(number), GiveBack([1, number], 1), Apply(1, 1, [msgspec.structs.replace(CREATE, now_ns=number)])):
        with pytest.raises(OutOfRange):
            from_msgpack(MANAGER_UNION)(_pack(request))
    lock = SetLock(7, True, 2**64 - 1, 1, LockSpan(0, 1, True), 1, True)  # the kernel draws owners from all 64 bits
    assert from_msgpack(MANAGER_UNION)(_pack(lock)) == lock
    for seconds in (float("nan"), float("inf")):
        with pytest.raises(OutOfRange):
            from_msgpack(MANAGER_UNION)(_pack(AwaitCopies(1, 1, 1, seconds)))


@pytest.mark.parametrize("half", [rb"\ud800", rb"\udc7f", b"\xed\xa0\x80"])
def test_text_of_which_no_file_name_can_be_made_is_malformed(half: bytes) -> None:
    record = b'{"ino":7,"version":1,"home_epoch":2,"path":"/%s"}'
    with pytest.raises(Malformed):
        from_json(ObjectRecord)(record % half)
    paths = [from_json(ObjectRecord)(record % good).path for good in (rb"\udcff", rb"\ud83d\ude00", "\xfc".encode())]
    assert [os.fsencode(path) for path in paths] == [b"/\xff", "/\U0001f600".encode(), "/\xfc".encode()]


def test_bytes_become_values_in_one_place() -> None:
    """Besides there, only what the `ip` command of this machine has printed is decoded."""
    tree = Path(__file__).parents[2]
    decoding = re.compile(r"(msgpack|json|toml)\.(Decoder|decode)\b|json\.loads?\(|tomllib\.loads?\(")
    files = [path for part in ("cluster", "fusefs", "manager", "agent", "cli", "lab") for path in (tree / part).rglob("*.py")]
    found = {str(path.relative_to(tree)) for path in files if decoding.search(path.read_text())}
    assert found <= {"cluster/decoding.py", "lab/network.py", "cli/commands/volumes/add.py"}, found
