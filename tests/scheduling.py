"""Which tests run beside others where there are several workers (pytest-xdist), and which run alone.

What needs the machine's time for itself, such as labs, mounts, namespaces and real programs, is one unit of work: one worker runs
it in the order of its tests, and begins when nothing else is left. (The mark `xdist_group` does not do it: pytest 9 does not see
how pytest-xdist 3.8 names groups.)
"""

from xdist.scheduler import LoadScopeScheduling

ALONE = tuple(
    f"tests/{part}" for part in ("cli/test_join.py", "coherence/", "lab/", "mount/", "network/", "programs/", "vagrant/")
)


def runs_alone(nodeid: str) -> bool:
    return nodeid.startswith(ALONE)


class AloneLast(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out single tests, and all that runs alone as one unit."""

    def _split_scope(self, nodeid: str) -> str:
        return "alone" if runs_alone(nodeid) else nodeid
