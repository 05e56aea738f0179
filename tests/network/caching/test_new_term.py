"""Managers end while mounts cache: the caches go on, and what changes under the next manager is seen at once by everybody.

The access time is longer than a fail-over takes, so that nothing but leases that are still good can have answered meanwhile.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.conftest import fresh
from tests.support.conditions import godwit, stop_between_transactions, wait_for_copies, wait_until

ACCESS_S = 10.0
SESSION_TIMEOUT_S = 10.0
AT_ONCE_S = 1.0  # a fail-over takes two seconds and more
FAILED_OVER_S = 8.0  # and less than that; the grace of the new manager is longer
GRACE_S = 1.05 * max(ACCESS_S, SESSION_TIMEOUT_S)
OVERRIDES = {
    "mount": {"renew_s": 3.0, "commit_s": 1.0},
    "manager": {"access_s": ACCESS_S, "term_s": 2.0, "session_timeout_s": SESSION_TIMEOUT_S},
}
FILES = 50


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab.create(tmp_path_factory.mktemp("term") / "lab", overrides=OVERRIDES)
    try:
        lab.up()
        yield lab
    finally:
        lab.down(purge=True)


def manager_of(lab: Lab) -> str:
    """Waits until every candidate hears the one in office, and gives its server."""

    def heard() -> str | None:
        shown = godwit(lab, "manager", "show")
        everybody = all(candidate["hears"] for candidate in shown["candidates"])
        return shown["server"] if everybody else None

    return wait_until(heard, "all candidates hear a manager", 20)


def made_at(lab: Lab, server: str) -> Path:
    """A directory with finished files whose home is the server, in one where nobody else has looked, either."""
    made = fresh(lab.mount(server)) / "inner"
    made.mkdir()
    for number in range(FILES):
        (made / f"{number}").write_bytes(b"old")
    wait_for_copies(lab)
    return made


def seen_at(lab: Lab, server: str, made: Path) -> Path:
    """The directory as another server sees it."""
    return lab.mount(server) / made.parent.name / made.name


def sizes(folder: Path) -> list[int]:
    return [os.stat(folder / f"{number}").st_size for number in range(FILES)]


def absent(folder: Path) -> bool:
    """Whether a name is absent; an error of another kind is raised."""
    try:
        os.stat(folder / "new")
    except FileNotFoundError:
        return True
    return False


def are_warm(lab: Lab, views: Sequence[Path]) -> bool:
    """Looks at everything on each server; whether all may cache all of it, which others have to leave alone for a moment before.

    Who looks first calls back what the mount that made it is alone with: that one has to look again.
    """
    for view in views:
        assert sizes(view) == [3] * FILES
        assert absent(view)
    return all(_looked_at(view) <= cached_at(lab, server) for server, view in zip(lab.servers, views, strict=True))


def _looked_at(folder: Path) -> set[str]:
    return {str(path) for path in (folder.parent.parent, folder.parent, folder, *(folder / f"{n}" for n in range(FILES)))}


def cached_at(lab: Lab, server: str) -> set[str]:
    """The paths of what the server may be caching, on its own mount."""
    rows = godwit(lab, "leases", "ls", "--server", server)["leases"]
    return {str(lab.mount(server)) + row["path"].rstrip("/") for row in rows if row["cached"]}


def kill(lab: Lab, server: str) -> None:
    lab.kill(server, "manager")


def restart(lab: Lab, server: str) -> None:
    lab.start(server, "manager")


def wake(lab: Lab, server: str) -> None:
    lab.kill(server, "manager", signal.SIGCONT)


@pytest.mark.parametrize(("end", "mend"), [(kill, restart), (stop_between_transactions, wake)], ids=["killed", "stopped"])
def test_caches_go_on_without_a_manager_and_yield_to_the_next(
    lab: Lab, end: Callable[[Lab, str], None], mend: Callable[[Lab, str], None]
) -> None:
    """All mounts are there, and tell the new manager what they may be caching: nobody waits for its grace to end."""
    manager = manager_of(lab)
    first, second = (server for server in lab.servers if server != manager)
    made = made_at(lab, first)
    views = [seen_at(lab, server, made) for server in lab.servers]
    wait_until(lambda: are_warm(lab, views), "all have all of it in their caches")
    end(lab, manager)
    try:
        ended_s = time.monotonic()
        for view in views:
            assert sizes(view) == [3] * FILES
            assert absent(view)
        assert time.monotonic() - ended_s < AT_ONCE_S, "answered from caches"
        (seen_at(lab, second, made) / "0").write_bytes(b"newer")
        (seen_at(lab, second, made) / "new").touch()
        assert time.monotonic() - ended_s < FAILED_OVER_S
        for view in views:
            assert sizes(view) == [5] + [3] * (FILES - 1)
            assert (view / "0").read_bytes() == b"newer"
            assert not absent(view)
            assert len(os.listdir(view)) == FILES + 1
    finally:
        mend(lab, manager)
    manager_of(lab)
    (seen_at(lab, manager, made) / "1").write_bytes(b"newest")
    for view in views:
        assert sizes(view) == [5, 6] + [3] * (FILES - 2)


def test_a_dead_server_is_waited_for_only_where_it_was_looking(lab: Lab) -> None:
    """The manager's whole server dies. What its mount may have cached changes when that must have ended; all else at once."""
    manager = manager_of(lab)
    first, second = (server for server in lab.servers if server != manager)
    looked_at, never_looked_at = made_at(lab, first), made_at(lab, first)
    assert sizes(seen_at(lab, manager, looked_at)) == [3] * FILES
    lab.kill(manager)
    try:
        died_s = time.monotonic()

        def change(folder: Path) -> float:
            (seen_at(lab, second, folder) / "new").mkdir()
            return time.monotonic() - died_s

        with ThreadPoolExecutor(2) as pool:
            waited = pool.submit(change, looked_at)
            at_once = pool.submit(change, never_looked_at)
            assert at_once.result() < FAILED_OVER_S
            assert ACCESS_S / 2 < waited.result() < FAILED_OVER_S + GRACE_S
        for server in (first, second):
            for folder in (looked_at, never_looked_at):
                assert not absent(seen_at(lab, server, folder))
    finally:
        lab.start(manager)
    for folder in (looked_at, never_looked_at):
        assert not absent(seen_at(lab, manager, folder))
