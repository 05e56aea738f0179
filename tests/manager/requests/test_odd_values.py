"""Whatever values the fields of a request have, the answer is a reply or an error of ours, never an unexpected one.

The seed is fixed. More, or others: GODWIT_FUZZ_VALUES=20000 GODWIT_FUZZ_SEED=7.
"""

import os
import random
import types
from contextlib import suppress
from enum import StrEnum
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
import trio

from cluster.decoding import from_msgpack
from cluster.errors import GodwitError, Malformed
from cluster.messages import MANAGER_UNION, Apply, Hello, ManagerRequest, StepDown, WatchRecalls
from manager.requests.routes import ALL, ROUTES, Dispatch, Who
from tests.manager.office import small_network

pytestmark = pytest.mark.deadline(120)

ROUNDS = int(os.environ.get("GODWIT_FUZZ_VALUES", "4000"))
SEED = int(os.environ.get("GODWIT_FUZZ_SEED", "13"))
APPLY_PART = 0.5
WAIT_S = 0.05  # for an answer: many requests wait for something that does not come

NUMBERS = [-(2**63), -(2**32), -5, -1, 0, 1, 2, 3, 7, 0o40755, 0o100644, 0o120777, 2**31, 2**32, 2**40, 2**62, 2**63 - 1]
FLOATS = [-1e18, -1.0, 0.0, 0.01, 1e18]
TEXTS = ["", "s1", "s2", "nobody", "done", "retry", "waiting", "a:1", "not an address", "\0", "../x", "x" * 5000, "\U0001f600"]
NAMES = [b"", b".", b"..", b"a", b"file", b"a/b", b"a\0b", b"\xff\xfe", b"x" * 300, b"user.x", b"security.capability"]
LISTS = [
    b"system.posix_acl_access",
    b"system.posix_acl_default",
    b"\2\0\0\0",
    b"\2\0\0\0\1\0\7\0\xff\xff\xff\xff",
    b"\2\0\0\0" + b"\xff" * 16,
]
DECODE = from_msgpack(MANAGER_UNION)
KINDS = [
    kind
    for kind, route in ROUTES.items()
    if route.who & ALL and route.dispatch is not Dispatch.CANDIDATE and kind not in (Hello, StepDown, WatchRecalls)
]
"""Those that a session asks and that have one answer, but for what ends the term."""


def drawn(kind: Any, draw: random.Random) -> Any:
    """A value of the type, of those that decoders let through."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return drawn(draw.choice(get_args(kind)), draw)
    if origin is not None and hasattr(kind, "__metadata__"):
        return drawn(get_args(kind)[0], draw)
    if origin is list:
        return [drawn(get_args(kind)[0], draw) for _ in range(draw.choice([0, 1, 1, 2, 3]))]
    if origin is dict:
        key, value = get_args(kind)
        return {drawn(key, draw): drawn(value, draw) for _ in range(draw.choice([0, 1, 2]))}
    if origin is tuple:
        return tuple(drawn(item, draw) for item in get_args(kind) if item is not Ellipsis)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = get_type_hints(kind)
        return kind(*(drawn(hints[name], draw) for name in kind.__struct_fields__))
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return draw.choice(list(kind))
    choices: dict[Any, list[Any]] = {
        bool: [False, True],
        int: NUMBERS,
        float: FLOATS,
        str: TEXTS,
        bytes: NAMES + LISTS,
        type(None): [None],
    }
    return draw.choice(choices[kind])


def asked(draw: random.Random) -> ManagerRequest[Any] | None:
    """A request that a decoder lets through, most often one that changes something; None for one that it does not."""
    kind = Apply if draw.random() < APPLY_PART else draw.choice(KINDS)
    try:
        request: ManagerRequest[Any] = DECODE(msgspec.msgpack.encode(drawn(kind, draw)))
    except Malformed:
        return None
    return request


@pytest.mark.search
async def test_no_value_of_a_request_is_unexpected(url: str) -> None:
    draw = random.Random(SEED)
    answered: set[type[Any]] = set()
    async with small_network(url) as (office, mount):
        agent = await office.peer("s1", "agent")
        await mount.make(b"file")
        await mount.mkdir(b"a")
        for _ in range(ROUNDS):
            request = asked(draw)
            if request is None:
                continue
            who = ROUTES[type(request)].who
            peer = mount if Who.MOUNT in who else agent if Who.AGENT in who else office.admin
            with trio.move_on_after(WAIT_S), suppress(GodwitError):
                await peer.ask(request)
                answered.add(type(request))
    assert len(answered) > 20
