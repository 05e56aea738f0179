"""The processor time of a lab's processes, by part: what an operation costs, whatever else the machine does meanwhile."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from cluster.process_table import processor_s
from lab.database import DATABASE, PART
from lab.lab import Lab

# Parts, in the order in which they are shown. Each is summed over all servers.
MOUNT, MANAGER, AGENTS = "mount", "manager", "agents"
CATALOG = "database"  # only where the lab has started one
LATER = "later"  # all parts together, from the end of the counting until the lab is at rest again
SHOWN = (MOUNT, MANAGER, AGENTS, CATALOG, LATER)
_OF_SERVERS = {MOUNT: "mount", MANAGER: "manager", AGENTS: "agent"}

Reading = Mapping[str, float]
"""Seconds of processor time so far, by part."""


class Meter:
    """Notes what the parts use while operations are counted. *read* gives their readings; by default there are no parts."""

    def __init__(self, read: Callable[[], Reading] = dict) -> None:
        self._read = read
        self._began: Reading = {}  # when the counting began
        self._ended: Reading = {}  # when it ended
        self.settled_from: Reading = {}  # what is used from here on until the lab is at rest is used later

    @contextmanager
    def counting(self) -> Iterator[None]:
        """What is used within the block counts, and nothing that was counted before."""
        self.begin()
        yield
        self.end()

    def begin(self) -> None:
        """Counts from now on."""
        self._began = self._read()

    def end(self) -> None:
        """The counting has ended, unless this is called again."""
        self._ended = self.settled_from = self._read()

    def skip(self) -> None:
        """What was used since the counting has ended is the measurement's own, and counts nowhere."""
        self.settled_from = self._read()

    @property
    def used(self) -> dict[str, float]:
        """Seconds by part while operations were counted; empty if none were, or if there are no parts."""
        return used_between(self._began, self._ended)


def used_between(began: Reading, ended: Reading) -> dict[str, float]:
    """Seconds by part; nothing of what a process that has died meanwhile would have taken away."""
    return {part: max(0.0, ended[part] - began[part]) for part in began if part in ended}


def lab_reading(lab: Lab) -> Callable[[], dict[str, float]]:
    """Reads what the processes that a lab has now have used; may be called in other processes."""
    processes = {part: [lab.pid(server, name) for server in lab.servers] for part, name in _OF_SERVERS.items()}
    if lab.has_database:
        processes[CATALOG] = [lab.pid(DATABASE, PART)]
    return lambda: {part: sum(map(processor_s, pids)) for part, pids in processes.items()}
