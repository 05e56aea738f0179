"""Programs that wait for a manager or an agent that does not answer can be ended; who handles a signal is not disturbed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cluster.messages import NamesPolicy
from lab.lab import Lab
from tests.conftest import fresh
from tests.support.conditions import godwit, stop_between_transactions, wait_until

ENDS_WITHIN_S = 3.0  # half a second, and what 30 processes take to die on a busy machine
ACCESS_S = 6.0
OVERRIDES = {
    "mount": {"request_timeout_s": 30.0, "renew_s": 2.0, "commit_s": 1.0},
    "manager": {"term_s": 2.0, "access_s": ACCESS_S},
}

# What a program asks for, by what the kernel makes of it; each has a directory `folder` of its own.
OF_MANAGER = {
    "lookup": "os.stat(folder + '/other')",
    "open": "os.open(folder + '/file', os.O_RDWR)",
    "create": "os.open(folder + '/new', os.O_RDWR | os.O_CREAT)",
    "unnamed": "os.open(folder, os.O_RDWR | os.O_TMPFILE)",
    "mkdir": "os.mkdir(folder + '/directory')",
    "link": "os.link(folder + '/file', folder + '/link')",
    "rename": "os.rename(folder + '/file', folder + '/renamed')",
    "unlink": "os.unlink(folder + '/file')",
    "readdir": "os.listdir(folder)",
    "chmod": "os.chmod(folder + '/file', 0o600)",
    "truncate": "os.truncate(folder + '/file', 3)",
    "setxattr": "os.setxattr(folder + '/file', 'user.name', b'value')",
    "statfs": "os.statvfs(folder)",
    "fsync": "number = os.open(folder + '/open', os.O_RDWR); os.write(number, b'more'); wait(); os.fsync(number)",
    "lock": "number = os.open(folder + '/open', os.O_RDWR); wait(); fcntl.flock(number, fcntl.LOCK_EX)",
}

# The same with the file at another server, where somebody writes it.
OPENED = "number = os.open(folder + '/file', os.O_RDWR); wait(); "
OF_AGENT = {
    "read": OPENED + "os.pread(number, 10, 0)",
    "write": OPENED + "os.pwrite(number, b'new', 0)",
    "large write": OPENED + "os.pwrite(number, bytes(1 << 20), 0)",
    "append": "number = os.open(folder + '/file', os.O_WRONLY | os.O_APPEND); wait(); os.write(number, b'new')",
    "truncate": OPENED + "os.ftruncate(number, 3)",
    "fsync": OPENED + "os.fsync(number)",
    "fallocate": OPENED + "os.posix_fallocate(number, 0, 100000)",
    "seek": OPENED + "os.lseek(number, 0, os.SEEK_DATA)",
    "stat": OPENED + "os.fstat(number)",
}

PROGRAM = """
import fcntl, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts the tests in the background has it ignored
folder, requests = sys.argv[1:]
def wait():
    print("ready", flush=True)
    sys.stdin.readline()
if "wait()" not in requests:
    wait()
exec(requests)
print("done", flush=True)
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab.create(tmp_path_factory.mktemp("interrupts") / "lab", overrides=OVERRIDES)
    try:
        lab.up(names=NamesPolicy.THROUGH)  # a change that waits for no manager cannot be interrupted
        yield lab
    finally:
        lab.down(purge=True)


@contextmanager
def stopped_managers(lab: Lab) -> Iterator[None]:
    """Nobody answers what the manager is asked."""
    for server in lab.servers:
        stop_between_transactions(lab, server)
    try:
        yield
    finally:
        for server in lab.servers:
            lab.kill(server, "manager", signal.SIGCONT)


class Program:
    """One that waits to be told to ask, and then for the answer."""

    def __init__(self, folder: Path, request: str) -> None:
        command = [sys.executable, "-c", PROGRAM, str(folder), request]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def ask(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def signal(self, how: signal.Signals) -> None:
        assert self.process.poll() is None, self.process.communicate()
        self.process.send_signal(how)


def asking(folder: Path, requests: Mapping[str, str]) -> dict[str, Program]:
    """A program for each kind of request, in a directory of its own: who changes one holds up all others who use it."""
    programs = {}
    for kind, request in requests.items():
        own = folder / kind
        own.mkdir()
        for name in ("file", "open"):
            (own / name).write_bytes(b"content")
        programs[kind] = Program(own, request)
    return programs


def end_all(killed: Mapping[str, Program], interrupted: Mapping[str, Program]) -> set[str]:
    """Has them ask, and ends them while they wait; those that took too long to die."""
    for program in (*killed.values(), *interrupted.values()):
        program.ask()
    time.sleep(1.0)
    processes = {f"{kind} killed": program.process for kind, program in killed.items()}
    processes |= {f"{kind} interrupted": program.process for kind, program in interrupted.items()}
    for how, programs in ((signal.SIGKILL, killed), (signal.SIGINT, interrupted)):
        for program in programs.values():
            program.signal(how)
    deadline_s = time.monotonic() + ENDS_WITHIN_S
    while time.monotonic() < deadline_s and any(process.poll() is None for process in processes.values()):
        time.sleep(0.02)
    left = {what for what, process in processes.items() if process.poll() is None}
    for process in processes.values():
        process.wait(timeout=60)
    return left


def test_whatever_waits_for_a_manager_can_be_ended(lab: Lab) -> None:
    killed, interrupted = (asking(fresh(lab.mount("s2")), OF_MANAGER) for _ in range(2))
    time.sleep(ACCESS_S + 1)  # what they ask for is not cached any more
    with stopped_managers(lab):
        assert end_all(killed, interrupted) == set()


def test_whatever_waits_for_an_agent_can_be_ended(lab: Lab) -> None:
    here, there = fresh(lab.mount("s1")), {}
    programs = []
    with ExitStack() as stack:
        for folder in ("killed", "interrupted"):
            (here / folder).mkdir()
            for kind in OF_AGENT:
                (here / folder / kind).mkdir()
                stack.enter_context((here / folder / kind / "file").open("wb")).write(b"content")
            there[folder] = lab.mount("s2") / here.name / folder
            programs.append({kind: Program(there[folder] / kind, request) for kind, request in OF_AGENT.items()})
        lab.kill("s1", "agent", signal.SIGSTOP)
        try:
            assert end_all(*programs) == set()
        finally:
            lab.kill("s1", "agent", signal.SIGCONT)


CHANGES = {
    "create": "os.open(folder + '/new', os.O_RDWR | os.O_CREAT | os.O_EXCL)",
    "mkdir": "os.mkdir(folder + '/new')",
    "link": "os.link(folder + '/file', folder + '/new')",
    "rename": "os.rename(folder + '/open', folder + '/new')",
    "unlink": "os.unlink(folder + '/file')",
}
LEFT = {
    "create": {"file", "open", "new"},
    "mkdir": {"file", "open", "new"},
    "link": {"file", "open", "new"},
    "rename": {"file", "new"},
    "unlink": {"open"},
}


def see(folder: Path, names: set[str]) -> None:
    wait_until(lambda: set(os.listdir(folder)) == names, f"{folder} has {names}", 20)


def test_a_change_that_was_sent_is_made_once_and_seen_by_those_who_did_not_wait_for_it(lab: Lab) -> None:
    folder = fresh(lab.mount("s2"))
    programs = asking(folder, CHANGES)
    for kind in CHANGES:
        assert not (folder / kind / "new").exists()  # as the kernel may remember
        assert (folder / kind / "file").stat().st_nlink == 1
    with stopped_managers(lab):
        assert end_all(programs, {}) == set()
    for mount in map(lab.mount, lab.servers):
        for kind, left in LEFT.items():
            see(mount / folder.name / kind, left)
            assert {name for name in ("file", "open", "new") if (mount / folder.name / kind / name).exists()} == left
    assert (folder / "link" / "file").stat().st_nlink == 2
    path = str(folder / "create" / "new")
    wait_until(lambda: not godwit(lab, "where", path)["dirty"], "what was opened for nobody is closed", 20)


def test_a_signal_that_a_program_handles_does_not_disturb_it(lab: Lab) -> None:
    """A timer rings all the time, and its handler asks Linux to go on: on a local disk the program would never know."""
    folder = fresh(lab.mount("s2"))
    script = """
import os, signal, sys
rings = 0
def ring(*_):
    global rings
    rings += 1
signal.signal(signal.SIGALRM, ring)
signal.siginterrupt(signal.SIGALRM, False)
libc = __import__("ctypes").CDLL(None, use_errno=True)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
for number in range(300):
    assert libc.mkdir(f"{sys.argv[1]}/{number}".encode(), 0o755) == 0, __import__("ctypes").get_errno()
signal.setitimer(signal.ITIMER_REAL, 0)
print(rings)
"""
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50
    assert len(os.listdir(folder)) == 300
