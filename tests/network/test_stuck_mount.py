"""A mount whose process is to end while the kernel waits for it: for a read that it has not answered, on behalf of a recall.

Neither the process nor a program that uses the mount may hang, whether it is told to stop or killed.
"""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from cli.commands.units import program
from cluster.mountpoint import detach_by_force
from lab.lab import Lab
from lab.processes import ProcessId, send, wait_gone
from lab.state import read_state
from tests.support.conditions import godwit, wait_for_caching, wait_for_replicas, wait_until

OVERRIDES = {
    "mount": {"request_timeout_s": 40.0, "commit_s": 1.0, "renew_s": 1.0},
    "manager": {"access_s": 5.0, "session_timeout_s": 8.0},
}
ROOT = Path(__file__, "../../..").resolve()
END_S = 20.0  # half of what the read may last, with the process's ten seconds for what is not committed


@contextmanager
def control_files() -> Iterator[None]:
    """The kernel's control files of FUSE file systems, which systemd mounts on every machine."""
    place = "/sys/fs/fuse/connections"
    is_mounted = os.path.ismount(place)
    if not is_mounted:
        subprocess.run(["mount", "-t", "fusectl", "none", place], check=True)
    try:
        yield
    finally:
        if not is_mounted:
            subprocess.run(["umount", place], check=True)


def as_in_its_unit() -> list[str]:
    """The command line of an agent that has the capabilities of its unit, which are not enough to unmount anything."""
    setting = re.search("(?m)^CapabilityBoundingSet=(.*)$", (ROOT / "cli/systemd/godwit-agent.service").read_text())
    assert setting is not None
    # What stands in place of the configuration's values is for low ports.
    capabilities = [f"+{word.removeprefix('CAP_').lower()}" for word in setting[1].split() if word.startswith("CAP_")]
    assert "+sys_admin" not in capabilities
    return ["setpriv", "--no-new-privs", f"--bounding-set={','.join(['-all', *capabilities])}", *program(), "run", "agent"]


@pytest.fixture(scope="module", params=["all", "its unit's"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Whose agents have all capabilities, or those of their unit."""
    programs = {"agent": as_in_its_unit()} if request.param != "all" else None
    made = Lab.create(tmp_path_factory.mktemp("stuck") / "lab", servers=2, overrides=OVERRIDES, programs=programs)
    try:
        made.up()
        wait_for_caching(made, "s2")
        with control_files() if programs else nullcontext():
            yield made
    finally:
        # If the test has failed, a process may wait for ever: nothing but this ends it.
        for server in made.servers:
            if os.path.ismount(made.root / server / "mnt"):
                detach_by_force(str(made.mount(server)))
        made.down(purge=True)


def drops_pages(process: ProcessId) -> bool:
    """Whether one of its threads has the kernel drop the pages of an inode, and waits for that."""
    stacks = Path(f"/proc/{process.pid}/task").glob("*/stack")
    return any("fuse_reverse_inval_inode" in stack.read_text() for stack in stacks)


def is_cached(lab: Lab, there: Path) -> bool:
    ino = there.stat().st_ino
    return any(
        lease["holder"] == "s2" and lease["cached"] and lease["ino"] == ino for lease in godwit(lab, "leases", "ls")["leases"]
    )


@pytest.mark.skipif(not os.access("/proc/self/stack", os.R_OK), reason="the kernel shows no stacks")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_process_that_a_recall_waits_in_ends_and_holds_up_nobody(lab: Lab, number: signal.Signals) -> None:
    folder = lab.mount("s1") / number.name
    folder.mkdir()
    godwit(lab, "policy", "set", str(folder), "--copies", "1")
    path = folder / "file"
    path.write_bytes(os.urandom(1 << 20))
    wait_for_replicas(lab, str(path), 1)
    there = lab.mount("s2") / number.name / "file"
    wait_until(lambda: is_cached(lab, there), "s2 may cache the file, so that it is read into pages")
    process = read_state(lab.root).processes["s2/mount"]
    lab.kill("s1", "agent", signal.SIGSTOP)
    programs = []
    try:
        programs.append(subprocess.Popen(["dd", f"if={there}", "of=/dev/null"], stderr=subprocess.DEVNULL))
        time.sleep(0.5)  # for the read to be on its way to the agent that is stopped
        programs.append(subprocess.Popen(["chmod", "600", path]))
        wait_until(lambda: drops_pages(process), "the recall waits for the read", 20)
        assert send(process, number)
        wait_until(lambda: all(program.poll() is not None for program in programs), "nobody waits", END_S)
        assert wait_gone(process, END_S)
    finally:
        lab.kill("s1", "agent", signal.SIGCONT)
        for program in programs:
            program.kill()
    # The supervisor has started it again.
    wait_until(lambda: subprocess.run(["cmp", "--", path, there], capture_output=True, timeout=60).returncode == 0, "it is back")
