"""What became of everything, in numbers and, up to a limit, by name."""

from collections import Counter
from dataclasses import dataclass, field

from cluster.volume.takeover import How

NAMED_MAX = 1000  # that are kept by name, of each kind


@dataclass
class Report:
    """Counts names, but for bytes."""

    files: Counter[How] = field(default_factory=Counter)  # each file once
    size: Counter[How] = field(default_factory=Counter)  # their bytes
    names: int = 0  # further names of files
    directories: int = 0
    others: int = 0  # symbolic links, FIFOs and devices
    there: int = 0  # names that an import before has made, and directories that there were
    taken: int = 0
    skipped: int = 0
    failed: int = 0
    lost_xattrs: int = 0  # attributes that the network cannot have
    set_id: int = 0  # files that run as another user or group
    problems: list[tuple[str, str]] = field(default_factory=list)  # paths, and what was wrong
    notes: list[tuple[str, str]] = field(default_factory=list)  # paths that were skipped, and why

    def done(self) -> int:
        """Names that have been looked at."""
        made = sum(self.files.values()) + self.names + self.directories + self.others
        return made + self.there + self.taken + self.failed

    def took(self, how: How, size: int) -> None:
        self.files[how] += 1
        self.size[how] += size

    def fail(self, path: str, why: str) -> None:
        self.failed += 1
        self._name(self.problems, path, why)

    def warn(self, path: str, why: str) -> None:
        """Something about a name that is counted elsewhere, and that somebody must look at."""
        self._name(self.problems, path, why)

    def take(self, path: str) -> None:
        """The network has something else under that name."""
        self.taken += 1
        self._name(self.problems, path, "the network has another file there: neither was touched")

    def skip(self, path: str, why: str) -> None:
        self.skipped += 1
        self._name(self.notes, path, why)

    @staticmethod
    def _name(listed: list[tuple[str, str]], path: str, why: str) -> None:
        if len(listed) < NAMED_MAX:
            listed.append((path, why))
