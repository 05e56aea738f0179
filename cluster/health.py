"""Whether a network is as it should be: everything that wants somebody's attention, from what its manager says of it."""

from collections.abc import Iterator
from typing import NamedTuple

from cluster.membership import ServerState
from cluster.messages import Status


class Finding(NamedTuple):
    """Something that is not as it should be."""

    text: str
    """What it is, and what it means, in one sentence without its full stop."""
    look: str
    """The command that shows more, or mends it."""


def findings(status: Status) -> list[Finding]:
    """What is wrong, the most urgent first; empty: nothing is."""
    return [*_of_catalog(status), *_of_absence(status), *_of_content(status), *_of_work(status), *_of_servers(status)]


def summary(status: Status) -> str:
    """One line about a network with which nothing is wrong."""
    up = sum(info.state in (ServerState.UP, ServerState.DRAINING) for info in status.servers)
    draining = [info.server for info in status.servers if info.state == ServerState.DRAINING]
    emptied = f" ({', '.join(draining)} being emptied)" if draining else ""
    # The root is always there.
    what = _count(status.inodes - 1, "file or directory", "files and directories")
    work = status.waiting_tasks + status.claimed_tasks
    left = f"{_count(work, 'copy or deletion', 'copies and deletions')} to be made" if work else "nothing left to be done"
    return f"{_count(up, 'server')} up{emptied}, {what}, {left}"


def _of_catalog(status: Status) -> Iterator[Finding]:
    if status.catalog_fault:
        text = f"{status.catalog_fault}: make room there, or mend it; nothing can be added until then"
        yield Finding(text, f"godwit servers show {status.manager}")
    if status.backup_problem:
        yield Finding(f"the catalog is not backed up: {status.backup_problem}", "godwit events --kind catalog")


def _of_absence(status: Status) -> Iterator[Finding]:
    for info in status.servers:
        look = f"godwit servers show {info.server}"
        if info.state == ServerState.DOWN:
            drained = ", and is to be drained" if info.wanted_empty else ""
            yield Finding(f"{info.server} is down{drained}: what is on it does not count", look)
        elif info.state == ServerState.SUSPECT:
            yield Finding(f"{info.server} is silent", look)


def _of_content(status: Status) -> Iterator[Finding]:
    if status.damaged:
        text = f"{_count(status.damaged, 'object is', 'objects are')} not what the catalog says"
        yield Finding(text, "godwit where PATH, godwit accept PATH")
    if status.below_policy:
        text = f"at risk: {_count(status.below_policy, 'file has', 'files have')} fewer copies than the policy wants"
        yield Finding(text, "godwit files --below-policy")
    if status.forsaken or status.conflicts:
        lost = f"{_count(status.forsaken, 'object')} on lost servers"
        yield Finding(f"{lost}, {_count(status.conflicts, 'file')} under conflict names", "godwit servers show NAME")


def _of_work(status: Status) -> Iterator[Finding]:
    if status.dead_tasks:
        yield Finding(f"{_count(status.dead_tasks, 'task was', 'tasks were')} given up", "godwit queue ls --state dead")


def _of_servers(status: Status) -> Iterator[Finding]:
    for info in status.servers:
        for problem in info.problems:
            yield Finding(f"{info.server}: {problem}", f"godwit servers show {info.server}")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
