"""Deadlines of claims and back-offs, on the monotonic clock. In memory only; the states themselves are in the catalog."""

from dataclasses import dataclass, replace

DEFERRED_MAX = 10_000  # beyond it, back-offs end early


@dataclass(frozen=True)
class Claim:
    """An attempt under way. `version`: what it was given out for, 0 if a former manager did."""

    number: int
    server: str
    version: int
    deadline: float  # when the attempt is taken for lost unless the agent speaks up; seconds of `monotonic_s`


class Claims:
    """What is being worked on, and what waits for its back-off to end."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s  # from a claim or an extension to its deadline
        self._claims: dict[int, Claim] = {}  # by task
        self._deferred: dict[int, float] = {}  # by task: when its back-off is over

    def begin(self, task: int, number: int, server: str, version: int, now: float) -> None:
        self._claims[task] = Claim(number, server, version, now + self._timeout_s)
        self._deferred.pop(task, None)

    def end(self, task: int) -> None:
        self._claims.pop(task, None)

    def end_all(self, claims: dict[int, int]) -> None:
        """Ends claims, given as task: claim number, unless newer ones have begun."""
        for task, number in claims.items():
            claim = self._claims.get(task)
            # The task may have been claimed anew since *claims* was read.
            if claim is not None and claim.number == number:
                del self._claims[task]

    def get(self, task: int) -> Claim | None:
        return self._claims.get(task)

    def extend(self, tasks: list[int], server: str, now: float) -> None:
        """The server's agent is still working on these."""
        for task in tasks:
            claim = self._claims.get(task)
            # An agent cannot prolong what another server's agent works on.
            if claim is not None and claim.server == server:
                self._claims[task] = replace(claim, deadline=now + self._timeout_s)

    def defer(self, task: int, until: float) -> None:
        self._deferred[task] = until

    def expired(self, now: float) -> dict[int, int]:
        """Claims whose time has run out, as task: claim number."""
        return {task: claim.number for task, claim in self._claims.items() if claim.deadline <= now}

    def of_server(self, server: str) -> dict[int, int]:
        """The server's claims, as task: claim number."""
        return {task: claim.number for task, claim in self._claims.items() if claim.server == server}

    def due(self, now: float) -> dict[int, float]:
        """The back-offs that are over (or that are too many), as task: when it was to be over."""
        due = {task: until for task, until in self._deferred.items() if until <= now}
        surplus = len(self._deferred) - len(due) - DEFERRED_MAX
        if surplus > 0:
            rest = [task for task in self._deferred if task not in due][:surplus]
            due |= {task: self._deferred[task] for task in rest}
        return due

    def woken(self, due: dict[int, float]) -> None:
        """These back-offs, as `due` gave them, have ended in the catalog."""
        for task, until in due.items():
            # The task may have been claimed and deferred anew since *due* was read.
            if self._deferred.get(task) == until:
                del self._deferred[task]
