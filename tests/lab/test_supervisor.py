"""What ends by itself is started again, what was told to end is not, and nothing is started twice."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from cluster.errors import Refused
from cluster.volume.fence import fence, lift
from lab.lab import Lab
from lab.launch import program_of
from lab.mounts import detach, mounts_below
from lab.processes import ProcessId, identify, wait_gone
from lab.registry import lab_lock
from lab.state import PARTS, SUPERVISOR_LOG, LabState, left_dead, new_state, supervised, with_process
from lab.supervisor import STEADY_S, Life, delay_s, ended, followed
from tests.lab.test_lab import remains
from tests.support.conditions import wait_until
from tests.support.runner import godwit_process as godwit

FIRST, SECOND = ProcessId(1, 100, "boot"), ProcessId(2, 200, "boot")
BACK_S = 60.0

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and mounts need root")


# -------------------------------------------------------------------------------------------------------------- rules


def test_delays_grow_up_to_a_minute() -> None:
    assert [delay_s(failures) for failures in range(10)] == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60]


def test_what_dies_at_once_is_tried_less_and_less_often() -> None:
    life, starts, now_s = Life(FIRST), 0, 0.0
    while now_s < 600:
        life = ended(life, 0.5, now_s + 0.5)
        assert life.due_s is not None
        now_s, starts = life.due_s, starts + 1
    assert starts == 16


def test_what_lived_for_a_while_is_started_at_once() -> None:
    life = replace(Life(FIRST), failures=7)
    assert ended(life, STEADY_S, 50.0) == Life(FIRST, failures=0, due_s=50.0)
    assert ended(Life(FIRST), 0.0, 50.0).due_s == 50.0


def test_a_part_that_somebody_else_started_begins_anew() -> None:
    state = running({"s1/agent": FIRST, "s1/mount": FIRST})
    lives = {"s1/agent": Life(FIRST, 3, 99.0), "s1/mount": Life(SECOND, 3), "s9/mount": Life(FIRST)}
    assert followed(lives, state) == {"s1/agent": Life(FIRST, 3, 99.0), "s1/mount": Life(FIRST)}
    assert followed(lives, left_dead(state, ["s1/agent"])) == {"s1/mount": Life(FIRST)}


def test_what_was_told_to_end_is_looked_after_again_once_it_is_started() -> None:
    state = left_dead(running({"s1/agent": FIRST, "s1/mount": FIRST}), ["s1/agent"])
    assert supervised(state) == {"s1/mount": FIRST}
    assert supervised(with_process(state, "s1/agent", SECOND, is_own=True)) == {"s1/agent": SECOND, "s1/mount": FIRST}
    assert supervised(with_process(state, "s1/mount", SECOND, is_own=False)) == {}


def running(processes: dict[str, ProcessId]) -> LabState:
    return msgspec.structs.replace(new_state(1, 1, None, {}), processes=processes)


# ------------------------------------------------------------------------------------------------------ a lab's parts


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab.create(tmp_path_factory.mktemp("supervised") / "lab", servers=1)
    try:
        made.up()
        yield made
    finally:
        made.down(purge=True)
    assert remains(made.root) == []
    assert not made.root.exists()


def die(lab: Lab, part: str) -> int:
    """Ends a part of s1 behind the lab's back and waits until it has ended; returns what its process id was."""
    before = lab.pid("s1", part)
    process = identify(before)
    os.kill(before, signal.SIGKILL)
    # The kernel takes a killed process apart for a while, in which the lab rightly starts no other.
    assert process is None or wait_gone(process, BACK_S)
    return before


def wait_back(lab: Lab, part: str, before: int) -> None:
    def is_back() -> bool:
        return lab.find_pid("s1", part) not in (None, before)

    wait_until(is_back, f"another {part} is running", BACK_S)


def count(lab: Lab, part: str) -> int:
    """How many processes of a part there are."""
    ours = ["pgrep", "--full", "--count", f"run {part} --config {lab.config_path('s1')}"]
    return int(subprocess.run(ours, capture_output=True, check=False).stdout)


def can_write(lab: Lab, name: str) -> bool:
    try:
        (lab.mount("s1") / name).write_bytes(b"written")
        return (lab.mount("s1") / name).read_bytes() == b"written"
    except OSError:
        return False


@needs_root
@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_dies_is_back(lab: Lab, part: str) -> None:
    before = die(lab, part)
    wait_back(lab, part, before)
    wait_until(lambda: can_write(lab, f"after {part}"), "files are written and read", BACK_S)
    assert [mounted.path for mounted in mounts_below(lab.mount("s1"))] == [lab.mount("s1")]
    assert count(lab, part) == 1
    assert re.search(rf"s1/{part} ended after [0-9.]+ s; started again", (lab.root / SUPERVISOR_LOG).read_text())


@needs_root
def test_nothing_lands_beneath_a_mount_that_was_started_again(lab: Lab) -> None:
    wait_back(lab, "mount", die(lab, "mount"))
    wait_until(lambda: can_write(lab, "there"), "the mount takes files", BACK_S)
    lab.kill("s1", "mount")
    detach(lab.mount("s1"))
    with pytest.raises(PermissionError):
        (lab.mount("s1") / "beneath").touch()
    lab.start("s1")


@needs_root
def test_what_was_killed_stays_dead_until_it_is_started(lab: Lab) -> None:
    lab.kill("s1", "agent")
    wait_back(lab, "mount", die(lab, "mount"))  # whoever started it has looked at the agent in the same step
    assert count(lab, "agent") == 0
    with pytest.raises(Refused, match="s1 agent is not running"):
        lab.kill("s1", "agent")
    lab.start("s1")
    wait_back(lab, "agent", die(lab, "agent"))


@needs_root
def test_a_program_of_somebodys_own_is_left_alone(lab: Lab) -> None:
    lab.kill("s1", "agent", signal.SIGTERM)
    Lab(lab.root, {"agent": program_of("agent")}).start("s1", "agent")
    die(lab, "agent")
    wait_back(lab, "mount", die(lab, "mount"))
    assert count(lab, "agent") == 0
    lab.start("s1")


@needs_root
def test_a_command_and_the_supervisor_do_not_both_start_a_part(lab: Lab) -> None:
    for _ in range(3):
        before = die(lab, "agent")
        lab.start("s1", "agent")
        wait_back(lab, "agent", before)
        assert count(lab, "agent") == 1


@needs_root
def test_what_cannot_be_noted_is_not_left_running(lab: Lab) -> None:
    descriptor = os.open(lab.root, os.O_RDONLY)
    log = lab.root / SUPERVISOR_LOG
    begun = log.stat().st_size
    try:
        assert fence(descriptor)
        before = die(lab, "agent")
        wait_until(lambda: "s1/agent cannot be started" in log.read_text()[begun:], "it is tried", BACK_S)
        with pytest.raises(OSError, match="not permitted"):
            lab.start("s1", "agent")
        with lab_lock(lab.root):  # not in the middle of the next attempt
            assert count(lab, "agent") == 0
    finally:
        lift(descriptor)
        os.close(descriptor)
    wait_back(lab, "agent", before)
    assert count(lab, "agent") == 1


@needs_root
def test_the_supervisor_is_shown_and_started_again_with_a_part(lab: Lab) -> None:
    supervisor = lab.supervisor()
    assert supervisor is not None
    assert os.getsid(supervisor) == supervisor  # Ctrl-C in the shell that made the lab does not reach it
    listed = ("lab", "ls", "--root", str(lab.root))
    assert json.loads(godwit(*listed, "--json").stdout)["labs"][0]["supervisor"] == supervisor
    assert " supervisor\n" in godwit(*listed).stdout
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: lab.supervisor() is None, "it ends", BACK_S)
    assert json.loads(godwit(*listed, "--json").stdout)["labs"][0]["supervisor"] is None
    assert f"no supervisor: godwit lab start s1 --root {lab.root}\n" in godwit(*listed).stdout
    before = die(lab, "agent")
    lab.start("s1")
    assert lab.supervisor() not in (None, supervisor)
    wait_back(lab, "agent", before)
    wait_back(lab, "agent", die(lab, "agent"))


# ---------------------------------------------------------------------------------------------- labs of their own


@needs_root
def test_what_dies_again_and_again_waits_longer_and_can_be_told_to_stay_dead(tmp_path: Path) -> None:
    lab = Lab.create(tmp_path / "lab", servers=1)
    try:
        lab.up()
        sound = lab.config_path("s1").read_bytes()
        lab.config_path("s1").write_bytes(sound.replace(lab.config("s1").manager.listen.encode(), b"192.0.2.1:7400"))
        die(lab, "manager")
        log = lab.root / SUPERVISOR_LOG
        wait_until(lambda: "failure 3 in a row" in log.read_text(), "it fails three times", 120)
        tried = [int(number) for number in re.findall(r"s1/manager ended .* failure ([0-9]) in a row", log.read_text())]
        waits = [float(wait) for wait in re.findall(r"s1/manager ended .* in ([0-9]+) s, failure", log.read_text())]
        assert (tried, waits) == ([2, 3], [1.0, 2.0])
        lab.kill("s1", "manager")
        with pytest.raises(Refused, match="s1 manager is not running"):
            lab.kill("s1", "manager")
        lab.config_path("s1").write_bytes(sound)
        lab.start("s1", "manager")
        assert can_write(lab, "written again")
        assert count(lab, "manager") == 1
    finally:
        lab.down(purge=True)
    assert remains(lab.root) == []


@needs_root
def test_down_leaves_nothing_of_a_lab_whose_supervisor_is_dead_or_unknown(tmp_path: Path) -> None:
    lab = Lab.create(tmp_path / "lab", servers=1)
    try:
        lab.up()
        supervisor = lab.supervisor()
        assert supervisor is not None
        os.kill(supervisor, signal.SIGKILL)
        die(lab, "agent")
        lab.down()
        assert remains(lab.root) == []
        lab.up()
        (lab.root / "lab.json").rename(tmp_path / "lab.json")
        assert subprocess.run(["pgrep", "--full", f"lab.supervisor {lab.root}$"], capture_output=True, check=False).stdout
        assert godwit("lab", "down", "--root", str(lab.root)).returncode == 0
        assert remains(lab.root) == []
        (tmp_path / "lab.json").rename(lab.root / "lab.json")
    finally:
        lab.down(purge=True)
    assert remains(lab.root) == []
