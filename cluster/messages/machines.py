"""What `godwit doctor` asks of an agent: what its machine is, and how good the line to it is."""

from __future__ import annotations

from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import AgentRequest, Reply, Value


class Owner(Value, frozen=True):
    """A user or a group of a machine."""

    number: int
    name: bytes


class MachineInfo(Reply, frozen=True):
    """The machine of a server."""

    server: str
    release: str  # of Godwit
    kernel: str  # as uname(2) has it
    users: list[Owner] = []  # those of people, by number: at most `agent.serving.machine.OWNERS_MAX`, as of groups
    groups: list[Owner] = []
    in_step: bool | None = None  # whether something keeps its clock right; None: the kernel does not tell


class DescribeMachine(AgentRequest[MachineInfo], frozen=True):
    """What the machine is. Takes as long as its list of users."""


class Measured(Reply, frozen=True):
    """The frame's body has as many bytes as were asked for, which mean nothing."""

    now_ns: int  # by the wall clock of the machine, when it answered


class MeasureLine(AgentRequest[Measured], frozen=True):
    """Has the agent send this many bytes: none at all for how long the way takes, some MiB for how much goes over it."""

    size: int
