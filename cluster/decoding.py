"""Bytes from outside become values here and nowhere else: those of the network, of disks and attributes, of files that people
write, and of the catalog's columns.

Whatever is wrong with them, and however the library says so, it is `Malformed`: who decodes handles one error, and no bytes end
a process. Numbers and times of what is decoded are bounded (`bound_numbers`), since SQL and offsets know no larger
ones, and none of them is NaN.
"""

import json
import re
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, cast

import msgspec

from cluster.errors import Malformed, OutOfRange

T = TypeVar("T")
Decode = Callable[[bytes | memoryview], T]

SAID_MAX = 300  # characters: what a library says of bytes may quote all of them

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Unsigned64 = Annotated[int, msgspec.Meta(ge=0)]  # what the kernel draws from all 64 bits, and no column holds
Finite = Annotated[float, msgspec.Meta(ge=-1e18, le=1e18)]  # a comparison with NaN fails as well

_RANGE = re.compile(r"Expected `(int|float)` [<>]=")
_BOUNDED = {"int": "Int64", "float": "Finite"}


def bound_numbers(struct: type[Any]) -> None:
    """Bounds all numbers of a struct whose annotations are strings, and whose module knows `Int64` and `Finite`.

    For `__init_subclass__`: so that no field, of whoever adds one, is left out.
    """
    annotations = struct.__dict__.get("__annotations__", {})  # noqa: RUF063 - they are changed in place
    for name, kind in annotations.items():
        annotations[name] = re.sub(r"\b(int|float)\b", lambda match: _BOUNDED[match[1]], kind)


def from_msgpack(kind: type[T] | Any) -> Decode[T]:
    """A decoder of MessagePack for *kind*, which may be a union; it raises `Malformed` (`OutOfRange` for numbers)."""
    return _guarded(msgspec.msgpack.Decoder(kind).decode)


def from_json(kind: type[T]) -> Decode[T]:
    """A decoder of JSON for *kind*; it raises `Malformed`. File names that are no UTF-8 are in it as lone surrogates, so that
    `os.fsencode` makes bytes of any text that it gives.
    """
    return _guarded(lambda data: msgspec.convert(_json_value(bytes(data)), kind))


def _json_value(data: bytes) -> Any:
    value = json.loads(data)
    # Only an escape, or bytes that are no ASCII, can be a surrogate that stands for no byte: it raises UnicodeEncodeError.
    if b"\\u" in data or not data.isascii():
        json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")
    return value


def from_toml(kind: type[T]) -> Decode[T]:
    """A decoder of TOML for *kind*; it raises `Malformed`."""
    return _guarded(lambda data: msgspec.toml.decode(bytes(data), type=kind))


def _guarded(decode: Callable[[bytes | memoryview], Any]) -> Decode[T]:
    def decoded(data: bytes | memoryview) -> T:
        try:
            return cast(T, decode(data))
        # Not only the library's own: UnicodeDecodeError, RecursionError, OverflowError … and what a later release adds.
        except Exception as error:
            kind = OutOfRange if isinstance(error, msgspec.ValidationError) and _RANGE.match(str(error)) else Malformed
            raise kind(_said(error)) from error

    return decoded


def _said(error: Exception) -> str:
    """One line that is good for a log, whatever the bytes were."""
    return printable(str(error)[:SAID_MAX] or type(error).__name__)


def printable(text: str) -> str:
    """A text as one line that any terminal, log and browser can show: what is not printable is escaped."""
    # Escape sequences would be obeyed by a terminal, marks that turn the direction of writing by a browser.
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def printable_name(name: bytes) -> str:
    """As `printable`, for the name of a file; bytes that are no UTF-8 are escaped, too."""
    return printable(name.decode("utf-8", "backslashreplace"))
