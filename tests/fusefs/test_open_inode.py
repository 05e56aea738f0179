"""The stages of an open inode: which method leads where, what holds in each, and that the documentation says the same."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import Refused
from cluster.messages import Node, Opened, Replica
from fusefs.content.local_object import LocalObject
from fusefs.content.objects import Object
from fusefs.content.open_inode import METHODS, TRANSITIONS, Event, IoMode, OpenInode, OwnReplica, Stage, table

NODE = Node(7, 0o100644, 1, 0, 0, 0, 10, 8, 1, 1, 1, 1, version=3, home_volume=1, home_epoch=1)


class Home:
    """In the place of an object."""

    def __init__(self) -> None:
        self.is_closed = False

    def close(self) -> None:
        self.is_closed = True


def home() -> Object:
    return cast(Object, Home())


def opened(node: Node = NODE) -> Opened:
    return Opened(node, [], False, 1, 1)


HAPPEN: dict[Event, Callable[[OpenInode], object]] = {
    Event.REGISTERED: lambda state: state.registered(opened(), to_write=False),
    Event.REGISTERED_TO_WRITE: lambda state: state.registered(opened(), to_write=True),
    Event.PRESENTED: lambda state: state.presented(),
    Event.CREATED: lambda state: state.created(home()),
    Event.WRITE: lambda state: state.write_begins(),
    Event.COMMIT: lambda state: state.commit_begins(),
    Event.COMMITTED: lambda state: state.committed(NODE, final=False),
    Event.COMMIT_FAILED: lambda state: state.commit_failed(),
    Event.SETTLED: lambda state: state.settled(),
    Event.LEFT: lambda state: state.left(),
}


def paths() -> dict[Stage, list[Event]]:
    """The events that lead to each stage, in the fewest steps."""
    found: dict[Stage, list[Event]] = {Stage.ENTERED: []}
    todo = [Stage.ENTERED]
    while todo:
        stage = todo.pop(0)
        for event, following in TRANSITIONS[stage].items():
            if following not in found:
                found[following] = [*found[stage], event]
                todo.append(following)
    return found


PATHS = paths()


def in_stage(stage: Stage) -> OpenInode:
    state = OpenInode(NODE)
    for event in PATHS[stage]:
        HAPPEN[event](state)
    assert state.stage is stage
    return state


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("stage", Stage)
def test_a_method_does_what_the_table_says_and_nothing_that_it_does_not_say(stage: Stage, event: Event) -> None:
    state = in_stage(stage)
    following = TRANSITIONS[stage].get(event)
    if following is None:
        with pytest.raises(RuntimeError, match="it cannot be"):
            HAPPEN[event](state)
        assert state.stage is stage
    else:
        HAPPEN[event](state)
        assert state.stage is following


def test_every_event_happens_somewhere_and_every_stage_but_the_last_can_be_left() -> None:
    assert {event for row in TRANSITIONS.values() for event in row} == set(Event) == set(METHODS)
    assert set(PATHS) == set(TRANSITIONS) == set(Stage)
    for stage in Stage:
        reached, todo = {stage}, [stage]
        while todo:
            for following in set(TRANSITIONS[todo.pop()].values()) - reached:
                reached.add(following)
                todo.append(following)
        assert Stage.LEFT in reached, f"an inode that is {stage.value} may stay open for ever"


def test_the_documentation_shows_the_stages() -> None:
    assert table() in (Path(__file__).resolve().parents[2] / "docs/open-files.md").read_text()


def test_the_methods_of_the_table_are_there() -> None:
    assert all(callable(getattr(OpenInode, name)) for name in METHODS.values())


@given(st.lists(st.sampled_from([*Event, "open to write", "close"]), max_size=40))
def test_whatever_happens_what_was_written_is_committed_before_the_writer_is_taken_back(events: list[Event | str]) -> None:
    """A model beside it: the writes that no successful commit covers."""
    state, uncommitted, covered = OpenInode(NODE), 0, 0
    for event in events:
        if event == "open to write":
            if state.is_registered_to_write:
                state.handle_opened(write=True)
        elif event == "close":
            if state.writers:
                state.handle_released(write=True)
        elif isinstance(event, Event) and event in TRANSITIONS[state.stage]:
            if state.writers and event in (Event.SETTLED, Event.LEFT):
                with pytest.raises(AssertionError):
                    HAPPEN[event](state)
                continue
            HAPPEN[event](state)
            if event in (Event.WRITE, Event.CREATED):
                uncommitted += 1
            elif event is Event.COMMIT:
                covered = uncommitted
            elif event is Event.COMMITTED:
                uncommitted, covered = uncommitted - covered, 0
            elif event is Event.SETTLED:
                uncommitted = 0  # refused, or the home was never reached
        # A write that began while a commit was under way counts as not covered by it; a failed one covers nothing.
        assert not uncommitted or state.has_changed() or state.stage is Stage.COMMITTING
        assert not state.writers or state.is_registered_to_write
        assert state.is_registered == (state.stage not in (Stage.ENTERED, Stage.LEFT))


def test_an_inode_that_was_left_fails_whoever_still_works_with_it() -> None:
    state = in_stage(Stage.READING)
    state.check()
    held, copy = Home(), Home()
    state.reached(cast(Object, held))
    state.replica_opened(OwnReplica(cast(LocalObject, copy), 3, 2))
    state.left()
    assert held.is_closed
    assert copy.is_closed
    with pytest.raises(Refused, match="closed here"):
        state.check()


def test_an_inode_that_is_lost_has_nothing_to_commit() -> None:
    state = in_stage(Stage.WRITTEN)
    state.leave_home()
    assert not state.owes_last_commit, "its home was never reached"
    state.reached(home())
    assert state.owes_last_commit
    state.handle_opened(write=True)
    assert not state.owes_last_commit, "it is not the last one"
    state.handle_released(write=True)
    state.lost()
    assert not state.owes_last_commit
    with pytest.raises(Refused, match="removed"):
        state.check()


def test_the_last_commit_takes_nothing_for_known_that_was_committed_while_it_was_written() -> None:
    state = in_stage(Stage.WRITTEN)
    committed = msgspec.structs.replace(NODE, object_ctime_ns=5)
    state.commit_begins()
    state.committed(committed, final=False)
    assert state.node_to_end_with().object_ctime_ns == 0
    state.commit_begins()
    state.committed(committed, final=True)
    assert state.node_to_end_with() == committed


def test_another_home_ends_the_object_that_was_reached() -> None:
    state, first = in_stage(Stage.WRITING), Home()
    state.reach_begins()
    state.reached(cast(Object, first))
    state.located(opened())
    state.answered(msgspec.structs.replace(NODE, home_epoch=2, home_volume=9))
    assert first.is_closed
    assert state.home is None
    assert (state.home_epoch, state.located_version) == (1, -1), "which home was reached is known, so that a move is noticed"
    state.reach_begins()
    assert state.home_epoch == 2


def test_an_answer_to_open_counts_whatever_was_known() -> None:
    """It is asked under the lock, and what it says of copies belongs to the version that it names."""
    state, first = in_stage(Stage.READING), Home()
    state.reached(cast(Object, first))
    replicas = [Replica(2, 4, None)]
    state.registered(msgspec.structs.replace(opened(msgspec.structs.replace(NODE, version=4)), replicas=replicas), to_write=True)
    assert (state.node.version, state.replicas, state.located_version) == (4, replicas, 4)
    assert not first.is_closed, "the home is the same"


def test_a_file_that_others_opened_before_its_creator_heard_of_it_keeps_their_object() -> None:
    state, theirs, own = in_stage(Stage.READING), Home(), Home()
    state.reached(cast(Object, theirs))
    state.created(cast(Object, own))
    assert state.home is cast(Object, theirs)
    assert own.is_closed
    assert state.stage is Stage.WRITTEN


def test_what_the_kernel_writes_past_the_mount_counts_as_changed_by_the_objects_change_time() -> None:
    class Passed(LocalObject):
        def __init__(self) -> None:
            self.ctime_ns = 5

        def stamp(self) -> SimpleNamespace:  # type: ignore[override]
            return SimpleNamespace(ctime_ns=self.ctime_ns)

        def close(self) -> None:
            return

    state, passed = in_stage(Stage.WRITING), Passed()
    state.reached(passed)
    state.answered(msgspec.structs.replace(NODE, version=4, object_ctime_ns=5))
    state.io.opened(IoMode.PASSED, None)
    assert not state.has_changed()
    passed.ctime_ns = 6
    assert state.has_changed()
    state.io.released(IoMode.PASSED)
    assert not state.has_changed(), "the kernel asks the mount"
