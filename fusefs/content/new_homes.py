"""Where a new file gets its home: which volumes are tried, and in which order. Pure."""

from collections.abc import Collection

from cluster.errors import NoSpace
from cluster.messages import Volume
from cluster.volume.room import is_nearly_full


def homes_in_order(server: str, volumes: Collection[Volume], avoided: Collection[int] = ()) -> list[Volume]:
    """The volumes that take new files, best first: those of *server*, then others, the emptiest first.

    Behind them those that are nearly full, in the same order, and last those that are *avoided*, since they have just failed.
    Raises `NoSpace` if there is none at all.
    """

    def rank(volume: Volume) -> tuple[bool, bool, bool, int, int]:
        full = is_nearly_full(volume.total_bytes, volume.free_bytes)
        return volume.volume in avoided, full, volume.server != server, -volume.free_bytes, volume.volume

    found = [volume for volume in volumes if volume.accepts and (volume.up or volume.server == server)]
    if not found:
        raise NoSpace("no volume that takes new files is up: a new file has nowhere to go")
    return sorted(found, key=rank)
