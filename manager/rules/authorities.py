"""How one authority follows another: what each state waits for, and for whom.

A rotation makes a new one, *introduced*. When all that are expected believe it, it *signs*, and the one before is *leaving*. When
all have shown a certificate of the one that signs, the one before is dropped. Whoever is expected and away holds that up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from cluster.messages import AuthorityState, Missing
from cluster.trust.identity import Role

ROLES = (Role.AGENT, Role.MOUNT, Role.ADMIN)  # of every server; a candidate has a manager's certificate as well


class Step(StrEnum):
    """What is done next."""

    SIGN = "sign"
    """The one that is introduced signs from now on."""
    DROP = "drop"
    """Those that are leaving are believed no more."""


class Process(NamedTuple):
    """A role of a server."""

    server: str
    role: str


class Shown(NamedTuple):
    """The certificate that a process has shown. They are ordered: the newest is the greatest."""

    epoch: int
    authority: int  # number of the one that has signed it
    ends_s: int
    revision: int  # of the list that the process believed then


class Waiting(NamedTuple):
    """Who is waited for, and why."""

    server: str
    role: str
    missing: Missing


@dataclass(frozen=True)
class View:
    """All that is decided by."""

    states: Mapping[int, AuthorityState]  # of the authorities, by number
    revision: int  # of the list of them
    servers: Mapping[str, bool]  # the members, and whether each is a candidate; none of which no certificate is believed
    shown: Mapping[Process, Shown]
    least: Mapping[str, int]  # the least epoch of a server that is believed, where that is not 1

    @property
    def signs(self) -> int:
        """The number of the one that signs."""
        return next(number for number, state in self.states.items() if state is AuthorityState.SIGNS)


def phase_of(states: Mapping[int, AuthorityState]) -> AuthorityState | None:
    """What a rotation waits for: belief in the one that is introduced, or the end of one that is leaving. None: there is none."""
    present = set(states.values())
    # Both only if files had to be gone by: then one after the other.
    return (
        AuthorityState.LEAVING
        if AuthorityState.LEAVING in present
        else AuthorityState.INTRODUCED
        if AuthorityState.INTRODUCED in present
        else None
    )


def expected(view: View, now_s: float) -> list[Process]:
    """All processes that must follow before the next step."""
    found = {
        Process(server, role)
        for server, is_candidate in view.servers.items()
        for role in (*ROLES, *((Role.MANAGER,) if is_candidate else ()))
    }
    # A workstation's command has no server; one that has joined and was not started yet is no member. Of members what counts is
    # what they are: one that is no candidate any more has no process that could follow.
    return sorted(found | {process for process in in_force(view, now_s) if process.server not in view.servers})


def in_force(view: View, now_s: float) -> dict[Process, Shown]:
    """The certificates that were shown, and have neither ended nor become void."""
    return {process: shown for process, shown in view.shown.items() if shown.ends_s > now_s and _is_of_now(view, process, shown)}


def waiting(view: View, now_s: float) -> list[Waiting]:
    """Who holds up the rotation that is under way."""
    phase = phase_of(view.states)
    if phase is None:
        return []
    found = []
    for process in expected(view, now_s):
        missing = _missing(view, process, phase)
        if missing is not None:
            found.append(Waiting(*process, missing))
    return found


def _missing(view: View, process: Process, phase: AuthorityState) -> Missing | None:
    shown = view.shown.get(process)
    if shown is None or not _is_of_now(view, process, shown):
        return Missing.SHOWN
    if phase is AuthorityState.INTRODUCED:
        return None if shown.revision >= view.revision else Missing.BELIEF
    return None if shown.authority == view.signs else Missing.CERTIFICATE


def _is_of_now(view: View, process: Process, shown: Shown) -> bool:
    return shown.epoch >= view.least.get(process.server, 1)


def next_step(view: View, now_s: float) -> Step | None:
    """What may be done now; None: there is no rotation, or somebody is waited for."""
    phase = phase_of(view.states)
    if phase is None or waiting(view, now_s):
        return None
    return Step.SIGN if phase is AuthorityState.INTRODUCED else Step.DROP
