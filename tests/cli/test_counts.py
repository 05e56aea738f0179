"""What `leases ls` and `servers` say of leases and of what mounts have done: every number under its own name."""

import re

import msgspec
import pytest

from cli.commands.leases import as_sentence, lease_object, leases_object, print_leases
from cli.commands.servers.servers import details_object, print_details, print_servers, server_object
from cli.commands.status import print_status, status_object
from cluster.leases import READ, SHARED, WRITE
from cluster.messages import (
    HoldCounts,
    Holdings,
    LeaseCounts,
    LeaseRow,
    LeaseRows,
    MountCounts,
    NamesPolicy,
    ServerDetails,
    ServerInfo,
    Space,
    Status,
)

ROW = LeaseRow(7, b"/a b", READ, "s2", "s1", 1, 2, 3, 4, 5, 6, 62.0, 9.54, is_open=False)
COUNTS = LeaseCounts(11, 12, 13, 14, recalled=15, waited_out=16, given_back=17, requests=18)
MOUNT = MountCounts(
    kernel_requests=21,
    manager_requests=22,
    recalls=23,
    caching=24,
    why_not_passed="no reason",
    files="fallback",
    answerer="python",
    unsent=25,
    lost=26,
)
INFO = ServerInfo("s1", ["mount"], [], 0, 0, 0.4, counts=MOUNT)
HOLDS = HoldCounts(held=31, granted=32, refused=33, recalled=34, held_s=35.04, applied=36, lost=37)
STATUS = Status("c", "s1", 1, "sqlite", [INFO], 0, 0, 0, 0, Space(0, 0, 0))
SILENT = msgspec.structs.replace(INFO, server="s2", counts=None)


def columns(table: str) -> dict[str, str]:
    """The one line of a table by the names of its columns."""
    names, values = (re.split(r" {2,}", line.strip()) for line in table.splitlines())
    return dict(zip(names, values, strict=True))


@pytest.mark.parametrize(
    ("mode", "is_open", "use", "cached"),
    [
        (READ, False, "cached", True),
        (READ, True, "open, cached", True),
        (WRITE, True, "open, cached", True),
        (SHARED, True, "open", False),
        (SHARED, False, "closed", False),
    ],
)
def test_a_lease_is_open_or_cached_or_both(
    mode: str, is_open: bool, use: str, cached: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    row = msgspec.structs.replace(ROW, mode=mode, is_open=is_open)
    print_leases([row])
    assert columns(capsys.readouterr().out)["USE"] == use
    shown = lease_object(row)
    assert (shown["mode"], shown["open"], shown["cached"]) == (mode, is_open, cached)


def test_a_lease_says_how_long_it_has_been_held_and_how_long_it_lasts(capsys: pytest.CaptureFixture[str]) -> None:
    print_leases([ROW])
    shown = columns(capsys.readouterr().out)
    assert (shown["HELD"], shown["LEFT"]) == ("1 min", "9.5 s")
    assert (lease_object(ROW)["held_s"], lease_object(ROW)["left_s"]) == (62.0, 9.54)


def test_what_happened_to_leases() -> None:
    listed = leases_object(LeaseRows([], 0, 15.0, COUNTS))
    names = ["granted", "renewed", "expired", "refused", "recalled", "waited_out", "given_back", "requests"]
    assert [listed[name] for name in names] == list(range(11, 19))
    assert as_sentence(COUNTS) == (
        "11 granted, 12 renewed, 15 recalled (16 of them waited out), 17 given back, 13 expired, 14 refused; "
        "18 requests of mounts"
    )
    assert "waited out" not in as_sentence(msgspec.structs.replace(COUNTS, waited_out=0))


def test_what_a_mount_has_done(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"mount": {"godwit_kernel_requests_total": 21.0}, "agent": {'godwit_disk_errors_total{volume="/v1"}': 2.0}}
    details = ServerDetails(INFO, Holdings(0, 0, 0, 0, 0, 0), {}, is_manager=False, leases=3, metrics=metrics)
    print_details(details)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[-2:]] == [
        ["agent", 'godwit_disk_errors_total{volume="/v1"}', "2"],
        ["mount", "godwit_kernel_requests_total", "21"],
    ]
    assert details_object(details)["metrics"] == metrics
    (line,) = [line for line in lines if line.startswith("mount ") and "asked" in line]
    assert line.split(maxsplit=1)[1] == (
        "asked 21 times by its kernel, asked managers 22 times, obeyed 23 recalls, caches 24 inodes"
    )
    assert details_object(details)["counts"] == {
        "kernel_requests": 21,
        "manager_requests": 22,
        "recalls": 23,
        "caching": 24,
        "files": "fallback",
        "why_not_passed": "no reason",
        "answerer": "python",
        "unsent": 25,
        "lost": 26,
    }


@pytest.mark.parametrize(
    ("files", "why_not", "cell", "fact"),
    [
        ("", "", "-", "-"),
        ("passthrough", "", "passthrough", "passed through to the kernel"),
        ("partly", "/v2: because", "partly", "passed through to the kernel on some volumes: /v2: because"),
        ("fallback", "because", "fallback", "through the mount process: because"),
    ],
)
def test_how_files_are_read_and_written(
    files: str, why_not: str, cell: str, fact: str, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = msgspec.structs.replace(MOUNT, files=files, why_not_passed=why_not)
    info = msgspec.structs.replace(INFO, counts=counts)
    print_servers([info], "s1", long=True)
    assert columns(capsys.readouterr().out)["FILES"] == cell
    print_details(ServerDetails(info, Holdings(0, 0, 0, 0, 0, 0), {}, is_manager=False, leases=3))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("files ")]
    assert line.split(maxsplit=1)[1] == fact


def test_servers_say_how_much_their_mounts_cache(capsys: pytest.CaptureFixture[str]) -> None:
    print_servers([INFO, SILENT], "s1", long=True)
    lines = capsys.readouterr().out.splitlines()
    assert [columns(f"{lines[0]}\n{line}")["CACHED"] for line in lines[1:]] == ["24", "-"]
    assert server_object(SILENT, "")["counts"] is None


@pytest.mark.parametrize(
    ("answerer", "lost", "cell", "fact"),
    [
        ("", 0, "-", "-"),
        ("extension", 0, "extension", "known ones answered by the extension; 25 changes of its own unsent"),
        ("python", 26, "python", "known ones answered by the mount process; 25 changes of its own unsent, 26 lost"),
    ],
)
def test_who_answers_names(answerer: str, lost: int, cell: str, fact: str, capsys: pytest.CaptureFixture[str]) -> None:
    info = msgspec.structs.replace(INFO, counts=msgspec.structs.replace(MOUNT, answerer=answerer, lost=lost))
    print_servers([info], "s1", long=True)
    assert columns(capsys.readouterr().out)["NAMES"] == cell
    print_details(ServerDetails(info, Holdings(0, 0, 0, 0, 0, 0), {}, is_manager=False, leases=3))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("names ")]
    assert line.split(maxsplit=1)[1] == fact


QUIET = msgspec.structs.replace(STATUS, servers=[SILENT])
BUSY = msgspec.structs.replace(STATUS, names=NamesPolicy.HELD, names_differing=2, holds=HOLDS)


@pytest.mark.parametrize(
    ("status", "fact"),
    [
        (QUIET, "through"),
        (msgspec.structs.replace(QUIET, names=NamesPolicy.HELD), "held"),
        (
            BUSY,
            "held (2 policies say otherwise: godwit policy ls), 31 directories held now (32 granted, 34 recalled), "
            "25 changes unsent, 37 changes lost",
        ),
    ],
)
def test_how_names_are_changed(status: Status, fact: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_status(status)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("names ")]
    assert line.split(maxsplit=1)[1] == fact


def test_what_happened_to_held_directories() -> None:
    assert status_object(BUSY)["names"] == {
        "policy": "held",
        "policies_differing": 2,
        "held": 31,
        "granted": 32,
        "refused": 33,
        "recalled": 34,
        "held_s": 35.0,
        "unsent": 25,
        "applied": 36,
        "lost": 37,
    }
