"""Which tests run beside others where there are several workers (pytest-xdist), and which run one after the other.

What needs labs, mounts, namespaces or real programs is two units of work, about equally long: one worker runs each, in the order
of its tests, and begins when nothing else is left. They mostly wait (for leases, elections, copies), so that two of them at once
take little more time than one. (The mark `xdist_group` does not do it: pytest 9 does not see how pytest-xdist 3.8 names groups.)
"""

import pytest
from xdist.scheduler import LoadScopeScheduling

UNITS = {
    "network": ("cli/test_join.py", "network/", "vagrant/"),
    "mounts": ("coherence/", "lab/", "mount/", "programs/"),
}
_UNIT_OF = {f"tests/{part}": unit for unit, parts in UNITS.items() for part in parts}


def unit_of(nodeid: str) -> str | None:
    """The unit that a test belongs to; None if it can run beside any other."""
    return next((unit for part, unit in _UNIT_OF.items() if nodeid.startswith(part)), None)


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
