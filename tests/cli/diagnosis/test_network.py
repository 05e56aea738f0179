"""What is said of other servers, whatever they answer."""

import msgspec
import pytest

from cli.diagnosis.checks import Check, Field, Verdict
from cli.diagnosis.network import (
    SHOWN,
    Candidate,
    Line,
    differences,
    judge_candidates,
    judge_line,
    judge_owners,
    judge_status,
)
from cluster.errors import Unavailable
from cluster.membership import ServerState
from cluster.messages import MachineInfo, MountCounts, OfficeInfo, Owner, ServerInfo, Space, Status
from cluster.release import RELEASE

HERE = MachineInfo("s2", RELEASE, "6.18", [Owner(1000, b"al")], [Owner(1000, b"al")], True)
GOOD = Line("s2", "10.0.0.2:7401", round_s=0.0005, bytes_s=2e8, ahead_s=0.001, unsure_s=0.0003, machine=HERE)
HOLDER = OfficeInfo("s1", True, 60.0, True, "s1", 4, 60, "10.0.0.1:7400", [])
OTHER = OfficeInfo("s2", False, 0.0, True, "s1", 4, 60, "10.0.0.1:7400", [])
INFO = ServerInfo("s1", ["agent", "mount"], [], 0, 0, 0.4, counts=MountCounts(files="passthrough", answerer="extension"))
WELL = Status("c", "s1", 1, "sqlite", [INFO], 1, 0, 0, 0, Space(0, 0, 0))


def line(**fields: object) -> list[Check]:
    return list(judge_line(Line(**{**vars(GOOD), **fields})))


def test_a_good_line_is_one() -> None:
    (check,) = line()
    assert (check.verdict, check.text) == (Verdict.OK, "0.5 ms, 190.7 MiB/s, its clock +1 ms")


@pytest.mark.parametrize(
    ("fields", "verdict", "text"),
    [
        ({"error": "nobody listens"}, Verdict.FAILURE, "nobody listens"),
        ({"round_s": 0.08}, Verdict.NOTE, "there and back takes 80 ms"),
        ({"bytes_s": 1e6}, Verdict.NOTE, "976.6 KiB come through in a second"),
        ({"ahead_s": 0.3}, Verdict.NOTE, "its clock is 0.3 s ahead"),
        ({"ahead_s": -5.0}, Verdict.WARNING, "its clock is 5.0 s behind"),
        ({"machine": msgspec.structs.replace(HERE, release="0.0.9")}, Verdict.WARNING, "its agent is of Godwit 0.0.9"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_is_wrong_with_a_line(fields: dict[str, object], verdict: Verdict, text: str) -> None:
    check, *others = line(**fields)
    assert (check.verdict, text in check.text, bool(check.advice)) == (verdict, True, True), check
    assert [other.verdict for other in others] == ([] if check.is_trouble else [Verdict.OK])


def test_a_clock_is_not_blamed_for_a_slow_line() -> None:
    assert {check.verdict for check in line(ahead_s=1.4, unsure_s=1.4)} == {Verdict.OK}


def test_candidates() -> None:
    assert [check.verdict for check in judge_candidates([Candidate("a", office=HOLDER), Candidate("b", office=OTHER)])] == [
        "ok",
        "ok",
    ]
    deaf = msgspec.structs.replace(OTHER, hears=False)
    good, silent, unheard = judge_candidates(
        [Candidate("a", office=HOLDER), Candidate("b:1", error="no answer"), Candidate("c", office=deaf)]
    )
    assert (good.verdict, silent.verdict, unheard.verdict) == (Verdict.OK, Verdict.FAILURE, Verdict.WARNING)
    assert (silent.subject, silent.text) == ("manager b:1", "no answer")
    *_others, vacant = judge_candidates([Candidate("b", office=OTHER)])
    assert (vacant.verdict, vacant.text) == (Verdict.FAILURE, "nobody is in office")


def test_owners_that_are_the_same() -> None:
    (check,) = judge_owners({"s1": HERE, "s2": HERE})
    assert check.verdict is Verdict.OK
    assert list(judge_owners({})) == []


def test_owners_that_differ() -> None:
    other = msgspec.structs.replace(HERE, users=[Owner(1001, b"al")], groups=[Owner(1000, b"bo")])
    user, group = judge_owners({"s1": HERE, "s2": other})
    assert (user.verdict, user.text) == (Verdict.WARNING, "user al is 1000 on s1, 1001 on s2")
    assert (group.verdict, group.text) == (Verdict.WARNING, "group 1000 is al on s1, bo on s2")
    many = msgspec.structs.replace(HERE, users=[Owner(2000 + n, b"u%d" % n) for n in range(30)])
    shifted = msgspec.structs.replace(HERE, users=[Owner(3000 + n, b"u%d" % n) for n in range(30)])
    *shown, rest = judge_owners({"s1": many, "s2": shifted})
    assert (len(shown), rest.text) == (SHOWN, "and 20 more that differ")


@pytest.mark.parametrize(
    ("owners", "expected"),
    [
        ({"s1": [], "s2": [Owner(1000, b"al")]}, []),
        ({"s1": [Owner(1000, b"al"), Owner(1000, b"alias")], "s2": [Owner(1000, b"al")]}, []),
        ({"s1": [Owner(1000, b"al")], "s2": [Owner(1000, b"bo")], "s3": [Owner(1000, b"al")]}, ["1000 is al on s1, bo on s2"]),
        ({"s1": [Owner(1000, b"\x1b[m")], "s2": [Owner(1001, b"\x1b[m")]}, ["\\x1b[m is 1000 on s1, 1001 on s2"]),
    ],
    ids=["missing is no difference", "two names on one machine", "another name", "not printed as it is"],
)
def test_differences(owners: dict[str, list[Owner]], expected: list[str]) -> None:
    assert differences(owners) == expected


def test_what_the_manager_says() -> None:
    (well,) = judge_status(WELL)
    assert (well.field, well.verdict) == (Field.HEALTH, Verdict.OK)
    (away,) = judge_status(Unavailable("no manager answers"))
    assert (away.verdict, away.text) == (Verdict.FAILURE, "no manager answers")
    down = msgspec.structs.replace(INFO, state=ServerState.DOWN, counts=None)
    (check,) = judge_status(msgspec.structs.replace(WELL, servers=[down]))
    assert (check.verdict, check.advice) == (Verdict.WARNING, "godwit servers show s1")


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        (MountCounts(why_not_passed="the kernel is too old"), "does not pass files through: the kernel is too old"),
        (MountCounts(why_not_passed="it is turned off in the configuration"), ""),
        (MountCounts(answerer="python"), "has no C extension"),
    ],
)
def test_what_mounts_say(counts: MountCounts, text: str) -> None:
    *notes, well = judge_status(msgspec.structs.replace(WELL, servers=[msgspec.structs.replace(INFO, counts=counts)]))
    assert well.verdict is Verdict.OK
    assert [(note.verdict, text in note.text) for note in notes] == ([(Verdict.NOTE, True)] if text else [])
