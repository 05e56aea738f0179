"""The wire stays as it is: frames that were recorded when protocol 1 was made mean the same today.

`frames.txt` has one of each message of that time: who gets it, its name, its fields in order, and its bytes. They are never
recorded again; fields that were appended since then have their defaults. `Join` and `Joined` are of protocol 2, which came with
certificates.
"""

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
import pytest

import cluster.messages
from cluster.decoding import Decode, from_msgpack
from cluster.messages import AGENT_UNION, MANAGER_UNION, REPLY_UNION, Greeting

RECORDED = [line.split() for line in (Path(__file__).parent / "frames.txt").read_text().splitlines()]
DECODERS: dict[str, Decode[Any]] = {
    "manager": from_msgpack(MANAGER_UNION),
    "agent": from_msgpack(AGENT_UNION),
    "reply": from_msgpack(REPLY_UNION),
    "greeting": from_msgpack(Greeting),
}


@pytest.mark.parametrize(("who", "name", "fields", "frame"), RECORDED, ids=[f"{line[0]}-{line[1]}" for line in RECORDED])
def test_a_recorded_frame_means_the_same(who: str, name: str, fields: str, frame: str) -> None:
    message = DECODERS[who](bytes.fromhex(frame))
    assert type(message).__name__ == name
    tag, *values = msgspec.msgpack.decode(bytes.fromhex(frame))
    assert tag == name.lower()
    names = fields.split(",") if fields != "-" else []
    assert list(message.__struct_fields__[: len(names)]) == names
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    assert _same(values, again[1:])
    for field, value in zip(names, values, strict=True):
        assert _same(value, msgspec.msgpack.decode(msgspec.msgpack.encode(getattr(message, field))))


def _same(old: Any, new: Any) -> bool:
    """Whether *new* is *old*, but for what was appended to the arrays in it."""
    if isinstance(old, list):
        return len(old) <= len(new) and all(map(_same, old, new))
    return type(old) is type(new) and bool(old == new)


def test_all_kinds_were_recorded() -> None:
    counts = {who: sum(line[0] == who for line in RECORDED) for who in DECODERS}
    assert counts["manager"] >= 70
    assert counts["agent"] >= 19
    assert counts["reply"] >= 62


def test_the_package_has_every_class_of_its_modules() -> None:
    for found in pkgutil.iter_modules(cluster.messages.__path__):
        module = import_module(f"cluster.messages.{found.name}")
        classes = {name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
        assert classes
        assert classes <= vars(cluster.messages).keys()
