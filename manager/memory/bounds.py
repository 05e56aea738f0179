"""How much of each kind there is at once in one term."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """What a term allows at once, and for how long it gathers what comes together."""

    leases_max: int = 500_000  # in the table; beyond, nobody is granted anything to cache
    cached_max: int = 100_000  # leases to cache of one session; beyond, it is granted no more of them
    moves_max: int = 256  # of a migration, whose copies or deletions may be in the queues
    at_rest_s: float = 1.0  # a server that claimed nothing for so long gets its next task at once
    gather_s: float = 0.1  # else tasks of so long a time are claimed in one transaction


BOUNDS = Bounds()
