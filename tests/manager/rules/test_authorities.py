"""Who is waited for while one authority follows another, and what is done when nobody is."""

import dataclasses
import itertools

import pytest

from cluster.messages import AuthorityState, Missing
from cluster.trust.identity import Role
from manager.rules.authorities import Process, Shown, Step, View, Waiting, expected, next_step, phase_of, waiting

NOW = 1000.0
ALONE = {1: AuthorityState.SIGNS}
INTRODUCED = {1: AuthorityState.SIGNS, 2: AuthorityState.INTRODUCED}
LEAVING = {1: AuthorityState.LEAVING, 2: AuthorityState.SIGNS}
OF_S1 = [Process("s1", role) for role in ("admin", "agent", "manager", "mount")]


def shown(authority: int = 1, revision: int = 0, epoch: int = 1, ends_s: int = 2000) -> Shown:
    return Shown(epoch, authority, ends_s, revision)


def view(states: dict[int, AuthorityState], of_s1: Shown | None, revision: int = 1) -> View:
    """One server, a candidate, whose processes have all shown the same."""
    return View(states, revision, {"s1": True}, {} if of_s1 is None else dict.fromkeys(OF_S1, of_s1), {})


def test_each_server_is_expected_with_all_its_roles() -> None:
    two = dataclasses.replace(view(ALONE, None), servers={"s1": True, "s2": False})
    assert expected(two, NOW) == [*OF_S1, *(Process("s2", role) for role in ("admin", "agent", "mount"))]


def test_of_others_those_are_expected_whose_certificate_is_in_force() -> None:
    mine = Process("desk", Role.ADMIN)
    for certificate, least, counts in (
        (shown(), {}, True),
        (shown(ends_s=1000), {}, False),
        (shown(), {"desk": 2}, False),
        (shown(epoch=2), {"desk": 2}, True),
    ):
        alone = View(ALONE, 1, {}, {mine: certificate}, least)
        assert expected(alone, NOW) == ([mine] if counts else [])


def test_what_a_member_is_no_more_is_not_waited_for() -> None:
    """The manager's certificate of a server that was a candidate: no process has it."""
    before = view(LEAVING, shown(2))
    was = dataclasses.replace(before, shown={**before.shown, Process("s1", "manager"): shown(1)})
    assert waiting(was, NOW) == [Waiting("s1", "manager", Missing.CERTIFICATE)]
    assert waiting(dataclasses.replace(was, servers={"s1": False}), NOW) == []


def test_nobody_is_waited_for_without_a_rotation() -> None:
    assert waiting(view(ALONE, None), NOW) == []
    assert next_step(view(ALONE, shown(revision=1)), NOW) is None


@pytest.mark.parametrize(
    ("states", "of_s1", "missing", "step"),
    [
        (INTRODUCED, None, Missing.SHOWN, Step.SIGN),
        (INTRODUCED, shown(revision=0), Missing.BELIEF, Step.SIGN),
        (INTRODUCED, shown(revision=1), None, Step.SIGN),
        (LEAVING, shown(1, revision=1), Missing.CERTIFICATE, Step.DROP),
        (LEAVING, shown(2, revision=0), None, Step.DROP),
    ],
)
def test_a_step_is_taken_when_the_last_one_has_followed(
    states: dict[int, AuthorityState], of_s1: Shown | None, missing: Missing | None, step: Step
) -> None:
    """Whoever of them is the last."""
    seen = view(states, of_s1)
    assert waiting(seen, NOW) == ([] if missing is None else [Waiting(*one, missing) for one in OF_S1])
    assert next_step(seen, NOW) is (None if missing else step)
    followed = shown(2, revision=1)
    for late in OF_S1:
        others = {one: followed for one in OF_S1 if one != late}
        before = {} if of_s1 is None else {late: of_s1}
        last = dataclasses.replace(seen, shown=others | before)
        assert waiting(last, NOW) == ([] if missing is None else [Waiting(*late, missing)])
        assert next_step(dataclasses.replace(seen, shown=others | {late: followed}), NOW) is step


def test_a_member_is_waited_for_also_when_its_certificate_has_ended() -> None:
    """It is named until somebody has revoked it, or brought it back."""
    assert waiting(view(LEAVING, shown(1, ends_s=10)), NOW) == [Waiting(*one, Missing.CERTIFICATE) for one in OF_S1]


def test_who_came_back_with_new_certificates_has_to_show_those() -> None:
    rejoined = dataclasses.replace(view(LEAVING, shown(2, epoch=1)), least={"s1": 2})
    assert waiting(rejoined, NOW) == [Waiting(*one, Missing.SHOWN) for one in OF_S1]
    assert next_step(dataclasses.replace(rejoined, shown=dict.fromkeys(OF_S1, shown(2, epoch=2))), NOW) is Step.DROP


def test_one_follows_the_other_should_both_be_there() -> None:
    assert phase_of({1: AuthorityState.LEAVING, 2: AuthorityState.SIGNS, 3: AuthorityState.INTRODUCED}) is AuthorityState.LEAVING
    for states in itertools.permutations(INTRODUCED.items()):
        assert phase_of(dict(states)) is AuthorityState.INTRODUCED


def test_a_newer_certificate_is_greater() -> None:
    ordered = [shown(9, 9, 1, 9999), shown(1, 1, 2), shown(2, 1, 2, 1500), shown(2, 1, 2, 2000), shown(2, 2, 2, 2000)]
    assert ordered == sorted(ordered)
