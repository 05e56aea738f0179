"""What wants somebody's attention in a network, and what does not."""

import msgspec
import pytest

from cluster.health import findings, summary
from cluster.membership import ServerState
from cluster.messages import HoldCounts, ServerInfo, Space, Status


def server(name: str, state: ServerState = ServerState.UP, *problems: str, wanted_empty: bool = False) -> ServerInfo:
    return ServerInfo(name, ["agent", "mount"], [], 0, 0, 0.4, state=state, problems=list(problems), wanted_empty=wanted_empty)


def network(*servers: ServerInfo, **figures: object) -> Status:
    status = Status("c", "s1", 1, "sqlite", list(servers) or [server("s1"), server("s2")], 1, 0, 0, 0, Space(0, 0, 0))
    return msgspec.structs.replace(status, **figures)


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (network(), "2 servers up, 0 files and directories, nothing left to be done"),
        (network(server("s1"), inodes=2), "1 server up, 1 file or directory, nothing left to be done"),
        (
            network(inodes=9, waiting_tasks=1, claimed_tasks=2),
            "2 servers up, 8 files and directories, 3 copies and deletions to be made",
        ),
        (network(waiting_tasks=1), "2 servers up, 0 files and directories, 1 copy or deletion to be made"),
        (
            network(server("s1"), server("s2", ServerState.DRAINING)),
            "2 servers up (s2 being emptied), 0 files and directories, nothing left to be done",
        ),
        # Who has left, or was declared lost, was given up by somebody, who knows it.
        (
            network(server("s1"), server("s2", ServerState.LEFT), server("s3", ServerState.LOST)),
            "1 server up, 0 files and directories, nothing left to be done",
        ),
        # Of this term only: what was lost is a problem of the server whose mount had made it.
        (network(holds=HoldCounts(lost=3)), "2 servers up, 0 files and directories, nothing left to be done"),
    ],
)
def test_all_is_well(status: Status, line: str) -> None:
    assert findings(status) == []
    assert summary(status) == line


@pytest.mark.parametrize(
    ("status", "text", "look"),
    [
        (network(server("s1"), server("s2", ServerState.SUSPECT)), "s2 is silent", "godwit servers show s2"),
        (
            network(server("s2", ServerState.DOWN)),
            "s2 is down: what is on it does not count",
            "godwit servers show s2",
        ),
        (
            network(server("s2", ServerState.DOWN, wanted_empty=True)),
            "s2 is down, and is to be drained: what is on it does not count",
            "godwit servers show s2",
        ),
        (
            network(catalog_fault="the disk of the catalog is full"),
            "the disk of the catalog is full: make room there, or mend it; nothing can be added until then",
            "godwit servers show s1",
        ),
        (network(damaged=1), "1 object is not what the catalog says", "godwit where PATH, godwit accept PATH"),
        (network(damaged=2), "2 objects are not what the catalog says", "godwit where PATH, godwit accept PATH"),
        (
            network(below_policy=1),
            "at risk: 1 file has fewer copies than the policy wants",
            "godwit files --below-policy",
        ),
        (network(conflicts=2), "0 objects on lost servers, 2 files under conflict names", "godwit servers show NAME"),
        (network(forsaken=1), "1 object on lost servers, 0 files under conflict names", "godwit servers show NAME"),
        (network(dead_tasks=2), "2 tasks were given up", "godwit queue ls --state dead"),
        (network(server("s1", ServerState.UP, "a disk is full")), "s1: a disk is full", "godwit servers show s1"),
    ],
)
def test_what_is_not_as_it_should_be(status: Status, text: str, look: str) -> None:
    assert [tuple(finding) for finding in findings(status)] == [(text, look)]


def test_the_most_urgent_comes_first() -> None:
    status = network(server("s1", ServerState.UP, "old"), server("s2", ServerState.DOWN), catalog_fault="full", dead_tasks=1)
    assert [finding.text.split(":")[0] for finding in findings(status)] == ["full", "s2 is down", "1 task was given up", "s1"]
