"""Which tests run beside others where there are several workers (pytest-xdist), and which run one after the other.

What needs labs, mounts, namespaces or real programs is a unit of work for each folder: its tests run one after the other, beside
those of one other unit, and begin when nothing else is left. They mostly wait (for leases, elections, copies): two of them at
once take little more time than one. Of three, on two processors, some take longer than what they test may take. (The mark
`xdist_group` does not do it: pytest 9 does not see how pytest-xdist 3.8 names groups.)
"""

import pytest
from xdist.scheduler import LoadScopeScheduling

UNITS = (  # the longest first, so that both workers end at about the same time
    "network/servers/",
    "network/caching/",
    "network/trust/",
    "programs/",
    "network/content/",
    "mount/",
    "network/disks/",
    "coherence/",
    "lab/",
    "package/test_package.py",
    "cli/test_join.py",
    "vagrant/",
    "network/",  # what is in none of those above
)


def unit_of(nodeid: str) -> str | None:
    """The unit that a test belongs to; None if it can run beside any other."""
    return next((unit for unit in UNITS if nodeid.startswith(f"tests/{unit}")), None)


def turn_of(nodeid: str) -> int:
    """When a test's turn is: units come last, in the order of the table."""
    unit = unit_of(nodeid)
    return -1 if unit is None else UNITS.index(unit)


def needs_more(item: pytest.Item) -> bool:
    """Whether a test needs more than this process, files and a moment: what `--fast` leaves out."""
    engine = item.callspec.params.get("url") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None
    fixtures = item.fixturenames if isinstance(item, pytest.Function) else ()
    needs_postgres = engine == "postgres" or "postgres_url" in fixtures
    return unit_of(item.nodeid) is not None or needs_postgres or item.get_closest_marker("search") is not None


class UnitsLast(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out single tests, and what runs one after the other as a unit."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid) or nodeid
