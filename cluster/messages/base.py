"""What all messages are made of, and the replies that any request may have."""

from __future__ import annotations

from typing import Any, Generic, TypeVar, get_args

import msgspec

from cluster.decoding import Finite, Int64, bound_numbers  # noqa: F401 - the annotations' names, see `bound_numbers`

R = TypeVar("R")

PROTOCOL = 2


class Value(msgspec.Struct, frozen=True, array_like=True):
    """Base of what messages carry."""

    def __init_subclass__(cls, **_options: Any) -> None:
        bound_numbers(cls)


class Message(Value, frozen=True, tag=str.lower):
    """Base of what is told from others of a union by its tag: its name in small letters."""


class Reply(Message, frozen=True):
    """Base of all replies."""


class Request(msgspec.Struct, Generic[R], frozen=True, array_like=True, tag=str.lower):
    """Base of all requests; `R` is the type of the reply."""

    def __init_subclass__(cls, **_options: Any) -> None:
        bound_numbers(cls)


class ManagerRequest(Request[R], Generic[R], frozen=True):
    """Base of what managers are asked."""


class AgentRequest(Request[R], Generic[R], frozen=True):
    """Base of what agents are asked by mounts, by other agents and by people."""


class Failure(Reply, frozen=True):
    """A request that was not carried out: see `cluster.errors` for the kinds."""

    kind: str  # which class of `cluster.errors`
    errno: int  # what an application is told
    message: str  # for people


class Done(Reply, frozen=True):
    """The reply that says only that it is done."""


class Working(Reply, frozen=True):
    """Comes before a reply that takes long: it is being worked on, and whoever asked goes on waiting.

    Only for peers whose `Greeting` says that they know it, as often as there is progress.
    """


def replies_to(request: type[Request[Any]]) -> frozenset[type[Any]]:
    """The types that may answer a request once, beside `Failure`: those between its brackets."""
    (reply,) = get_args(request.__orig_bases__[0])  # type: ignore[attr-defined]
    return frozenset(get_args(reply) or (reply,))
