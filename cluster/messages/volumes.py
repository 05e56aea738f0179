"""What people ask of agents: `godwit volumes` and `godwit fsck`."""

from __future__ import annotations

from enum import StrEnum

from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import AgentRequest, Done, Message, Reply, Value
from cluster.messages.values import Count


class UnknownObject(Message, frozen=True):
    """A file in `unknown/` of a volume: an object that the catalog does not know."""

    volume: int
    volume_path: str
    name: str  # of that file
    ino: int
    path: bytes  # in the namespace, as its record says; empty without one
    size: int
    version: int  # as its record says; 0 without one
    when_ns: int  # when it was set aside
    why: str  # it is kept
    until_ns: int  # when it may be deleted; 0: never


class UnknownObjects(Reply, frozen=True):
    objects: list[UnknownObject]


class ListUnknown(AgentRequest[Done], frozen=True):
    """All that is in `unknown/` of the agent's volumes: `UnknownObjects` …, `Done`."""


class SweepVolumes(AgentRequest[Count], frozen=True):
    """Somebody says that what the catalog does not know may be set aside, however much it is: in one sweep, after which this is
    answered with how many objects that were. Only for the agent of `server`."""

    server: str


class FindingOutcome(StrEnum):
    """What becomes of a finding."""

    FOUND = "found"
    MENDED = "mended"
    LEFT = "left"


class Finding(Value, frozen=True):
    """Where a disk and the catalog differ."""

    volume: int
    volume_path: str
    ino: int
    kind: str  # `agent.checking.comparison` has them
    outcome: str  # a `FindingOutcome`
    text: str  # says more, for people
    path: bytes = b""  # in the namespace, if it is known


class CheckProgress(Reply, frozen=True):
    """New findings, and how many replicas and objects have been looked at so far. `problem`: what ended the look at a volume."""

    replicas: int
    objects: int
    findings: list[Finding] = []
    problem: str = ""


class CheckVolumes(AgentRequest[Done], frozen=True):
    """Compares what the catalog says of the agent's volumes with their objects: `CheckProgress` …, `Done`.

    With `deep` the content is read, too; with `repair` what can be put right is. Only for the agent of `server`.
    """

    server: str
    repair: bool = False
    deep: bool = False


class MakeRoom(AgentRequest[Count], frozen=True):
    """A mount's write has found a volume of its own server full: the trash there is to be emptied. Answered with 1 if anything
    has gone from it since the write began, else with 0. Only for the agent of `server`."""

    server: str
    volume: int
    age_s: float = 0.0  # since the write began
