"""The two ways in which a mount's files are read and written: passed through to the kernel, or through the mount process.

Tests with the mark `both_modes` run in both, on a network that is in that mode, which is asked of its mounts. In the second one
each change of a name reaches the manager before a program is told (`--names through`), in the first one mounts hold directories.
The second network's mounts also let set-uid programs have rights and devices be opened, which mounts do not by default.
"""

import os
import re

import pytest

from lab.lab import Lab
from tests.support.conditions import godwit, wait_until

PASSTHROUGH, FALLBACK = "passthrough", "fallback"
"""Also the names of the fixtures that have the networks."""

FIRST_KERNEL = (6, 9)
OF_FALLBACK = {"mount": {"passthrough": False, "suid": True, "dev": True}}
WHY_TURNED_OFF = "it is turned off in the configuration"

both_modes = pytest.mark.parametrize("way_of_files", [PASSTHROUGH, FALLBACK])


def need_passthrough() -> None:
    """Skips the test where the kernel is too old to pass files through."""
    release = os.uname().release
    version = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    if version < FIRST_KERNEL:
        pytest.skip(f"Linux {release} cannot pass files through, 6.9 and later can")


def assert_mode(lab: Lab, mode: str) -> None:
    """Every mount says that it is in the mode."""

    expected = (mode, "" if mode == PASSTHROUGH else WHY_TURNED_OFF)
    assert files_of(lab) == dict.fromkeys(lab.servers, expected)


def files_of(lab: Lab) -> dict[str, tuple[str, str]]:
    """In which mode each server's mount is, and why not in the other, as soon as all have told."""

    def told() -> dict[str, tuple[str, str]] | None:
        servers = godwit(lab, "servers", "ls")["servers"]
        counts = {server["server"]: server["counts"] for server in servers if server["counts"] and server["counts"]["files"]}
        found = {server: (count["files"], count["why_not_passed"]) for server, count in counts.items()}
        return found if found.keys() == set(lab.servers) else None

    return wait_until(told, "every mount has told its counts", 20)
