"""What a process tells systemd: one datagram each, in the words of sd_notify(3), and nothing where nobody listens."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from cluster.service import Service, service_of


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        opened.bind(str(tmp_path / "notify"))
        opened.setblocking(False)
        yield opened


def told(listening: socket.socket) -> list[str]:
    """All messages that have come."""
    found = []
    while True:
        try:
            found.append(listening.recv(4096).decode())
        except BlockingIOError:
            return found


def service(listening: socket.socket, watchdog_us: str = "") -> Service:
    environment = {"NOTIFY_SOCKET": listening.getsockname()}
    if watchdog_us:
        environment |= {"WATCHDOG_USEC": watchdog_us, "WATCHDOG_PID": str(os.getpid())}
    return service_of(environment, os.getpid())


def test_it_is_ready_once(listening: socket.socket) -> None:
    of_process = service(listening)
    of_process.status("waits for a manager")
    of_process.status("waits for a manager")
    of_process.ready()
    of_process.ready()
    of_process.status("the manager\nis s1")
    of_process.stopping()
    assert told(listening) == ["STATUS=waits for a manager", "READY=1", "STATUS=the manager is s1", "STOPPING=1"]


def test_reloading_makes_nobody_ready_who_was_not(listening: socket.socket) -> None:
    of_process = service(listening)
    of_process.reloading()
    of_process.reloaded()
    (before,) = told(listening)
    of_process.ready()
    of_process.reloading()
    of_process.reloaded()
    _ready, after, ready = told(listening)
    assert ready == "READY=1"
    times = [int(message.removeprefix("RELOADING=1\nMONOTONIC_USEC=")) for message in (before, after)]
    assert times == sorted(times)
    assert times[-1] > 0


async def test_pings_come_from_the_event_loop(listening: socket.socket, autojump_clock: trio.testing.MockClock) -> None:
    of_process = service(listening, watchdog_us="60000000")
    with trio.move_on_after(121):
        await of_process.keep_pinging()
    assert told(listening) == ["WATCHDOG=1"] * 7, "three within the time, and one at once"


async def test_nobody_watches(listening: socket.socket) -> None:
    for watched in ({}, {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "0"}):
        of_process = service_of({"NOTIFY_SOCKET": listening.getsockname(), **watched}, os.getpid())
        await of_process.keep_pinging()
    assert told(listening) == []


def test_what_children_get_says_nothing_of_it() -> None:
    environment = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}
    service_of(environment, 2)
    assert environment == {"PATH": "/bin"}


def test_who_does_not_listen_holds_up_nobody(listening: socket.socket, tmp_path: Path) -> None:
    nobody = service_of({}, 1)
    nobody.ready()
    gone = service_of({"NOTIFY_SOCKET": str(tmp_path / "gone")}, 1)
    gone.ready()
    full = service(listening)
    for number in range(10_000):  # more than any queue of the kernel's has room for
        full.status(str(number))
    assert told(listening)[0] == "STATUS=0"


def test_an_abstract_socket_is_one(tmp_path: Path) -> None:
    name = f"godwit-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as opened:
        opened.bind(f"\0{name}")
        opened.setblocking(False)
        service_of({"NOTIFY_SOCKET": f"@{name}"}, 1).ready()
        assert told(opened) == ["READY=1"]
