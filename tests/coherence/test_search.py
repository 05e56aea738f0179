"""The search beside the definition: on small histories, an order exists iff one of all permutations is one."""

import itertools
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.coherence.models import Names, Register
from tests.coherence.records import Call, Operation
from tests.coherence.search import Model, State, Step, check
from tests.support.acting import RENAME_EXCHANGE, RENAME_NOREPLACE

OPERATION = Operation(1, "s1", Call(1, 0, "write"))


def step(invoked: int, returned: int | None, observes: bool, *what: Hashable, keys: frozenset[Hashable] | None = None) -> Step:
    return Step(OPERATION, what, invoked, returned, observes, keys)


def orders(steps: Sequence[Step]) -> Iterator[Sequence[Step]]:
    """Every order of the steps that keeps those apart that do not overlap, with and without those that never returned."""
    firm = [one for one in steps if one.returned_ns is not None]
    unknown = [one for one in steps if one.returned_ns is None and not one.observes]
    for count in range(len(unknown) + 1):
        for chosen in itertools.combinations(unknown, count):
            for order in itertools.permutations([*firm, *chosen]):
                pairs = itertools.combinations(order, 2)
                if all(late.returned_ns is None or late.returned_ns >= early.invoked_ns for early, late in pairs):
                    yield order


def can_be(model: Model, order: Sequence[Step]) -> bool:
    states: set[State] = {model.initial()}
    for one in order:
        if one.observes:
            states = {state for state in states if model.explains(state, one.what)}
        else:
            states = {result for state in states for result in model.results(state, one.what, ())}
    return bool(states)


TIMES = st.tuples(st.integers(0, 12), st.integers(0, 5), st.booleans()).map(
    lambda drawn: (drawn[0], None if drawn[2] and drawn[1] == 0 else drawn[0] + drawn[1])
)


@st.composite
def register_steps(draw: st.DrawFn) -> list[Step]:
    steps = []
    for _ in range(draw(st.integers(1, 6))):
        invoked, returned = draw(TIMES)
        kind = draw(st.sampled_from(["set", "reach", "in", "in"]))
        value: Hashable = draw(st.integers(0, 3))
        steps.append(step(invoked, returned, kind == "in", kind, (value,) if kind == "in" else value))
    return steps


@settings(max_examples=600, deadline=None)
@given(register_steps())
def test_a_register_is_judged_as_by_trying_every_order(steps: list[Step]) -> None:
    model = Register(0)
    assert (check(model, steps) is None) == any(can_be(model, order) for order in orders(steps))


@st.composite
def names_steps(draw: st.DrawFn) -> list[Step]:
    """Changes of three names and what is seen of them; the kernel's renames without effect are left to a test of their own.

    What is created twice counts as linked: each name changes the number of links that the others have.
    """
    names = st.integers(0, 2)
    inodes = st.integers(10, 12)
    seen = st.one_of(
        st.tuples(st.just("is"), names, st.one_of(st.none(), inodes)),
        st.tuples(st.just("links"), inodes, st.integers(0, 2)),
        st.tuples(st.just("present"), names),
    )
    pair = st.permutations(range(3)).map(lambda order: (order[0], order[1]))
    changed = st.one_of(
        st.tuples(st.just("create"), names, inodes),
        st.tuples(st.just("link"), inodes, names),
        st.tuples(st.just("unlink"), names),
        st.tuples(pair, st.sampled_from([RENAME_NOREPLACE, RENAME_NOREPLACE])).map(lambda drawn: ("rename", *drawn[0], drawn[1])),
    )
    steps = [step(0, 1, False, "create", 0, 10)]
    for _ in range(draw(st.integers(1, 5))):
        invoked, returned = draw(TIMES)
        observes = draw(st.booleans())
        what = draw(seen if observes else changed)
        alone = what[0] in ("links", "link")
        keys = {"is": what[1:2], "present": what[1:2], "create": what[1:2], "unlink": what[1:2], "rename": what[1:3]}.get(what[0])
        steps.append(step(invoked, returned, observes, *what, keys=None if alone or keys is None else frozenset(keys)))
    made = Counter(one.what[2] for one in steps if one.what[0] == "create")
    return [replace(one, keys=None) if one.what[0] == "create" and made[one.what[2]] > 1 else one for one in steps]


@settings(max_examples=600, deadline=None)
@given(names_steps())
def test_names_are_judged_as_by_trying_every_order(steps: list[Step]) -> None:
    model = Names(["a", "b", "c"])
    assert (check(model, steps) is None) == any(can_be(model, order) for order in orders(steps))


RENAMED = [
    step(0, 1, False, "create", 0, 10, keys=frozenset({0})),
    step(2, 9, False, "rename", 0, 1, 0, keys=frozenset({0, 1})),
    step(3, 4, False, "rename", 0, 1, 0, keys=frozenset({0, 1})),
]


def test_a_rename_may_find_its_inode_under_both_names_one_after_the_other() -> None:
    assert check(Names(["a", "b"]), RENAMED) is None


def test_a_rename_of_what_was_gone_before_it_began_is_found() -> None:
    late = step(5, 9, False, "rename", 0, 1, 0, keys=frozenset({0, 1}))
    assert check(Names(["a", "b"]), [RENAMED[0], RENAMED[2], late]) is not None


def test_an_exchange_leaves_no_moment_without_a_name() -> None:
    steps = [
        step(0, 1, False, "create", 0, 10, keys=frozenset({0})),
        step(0, 1, False, "create", 1, 11, keys=frozenset({1})),
        step(2, 5, False, "rename", 0, 1, RENAME_EXCHANGE, keys=frozenset({0, 1})),
    ]
    model = Names(["a", "b"])
    assert check(model, [*steps, step(3, 4, True, "is", 0, 11, keys=frozenset({0}))]) is None
    assert check(model, [*steps, step(3, 4, True, "is", 0, None, keys=frozenset({0}))]) is not None
    assert check(model, [*steps, step(6, 7, True, "is", 1, 11, keys=frozenset({1}))]) is not None


@example([(1, 2), (3, 4)])
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 4)), min_size=1, max_size=40))
def test_a_register_that_is_read_where_it_was_set_is_right(drawn: list[tuple[int, int]]) -> None:
    """Right histories of any length: each step has its effect at a time of its own, within its time."""
    state, steps = 0, []
    for moment, (before, after) in enumerate(drawn):
        observes = before % 2 == 0
        if not observes:
            state = moment + 1
        what = ("in", (state,)) if observes else ("set", state)
        steps.append(step(moment * 10 - before, moment * 10 + after * 7, observes, *what))
    assert check(Register(0), steps) is None
