"""Whoever reaches the ports of a network and sends what he likes: no process ends, none grows, none is held up.

GODWIT_STRANGERS_S says for how many seconds bytes are thrown.
"""

import itertools
import os
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import msgspec

from cluster.messages import (
    PROTOCOL,
    ROOT_INO,
    AskLeases,
    AwaitCopies,
    GetAttr,
    Greeting,
    Hello,
    LockSpan,
    Ping,
    PullObject,
    ReadDir,
    ReadObject,
    Request,
    SetLock,
    Stamp,
    WriteObject,
)
from cluster.rpc.frames import GREETING_NUMBER, PREFACE, pack
from lab.lab import Lab
from lab.state import read_state
from tests.support.conditions import wait_until

SECONDS = float(os.environ.get("GODWIT_STRANGERS_S", "8"))
GROWTH_MAX_MIB = 120
MIB = 1 << 20

_pack = msgspec.msgpack.encode

Throw = Callable[[str, str, random.Random], None]


def send(address: str, data: bytes, *, wait_s: float = 0.05) -> None:
    """Sends it over a connection of its own, and reads a little."""
    host, _, port = address.rpartition(":")
    with suppress(OSError), closing(socket.create_connection((host, int(port)), 2.0)) as sock:
        sock.sendall(data)
        sock.settimeout(wait_s)
        sock.recv(4096)


def greeted(cluster: str) -> bytes:
    return PREFACE + pack(GREETING_NUMBER, _pack(Greeting(PROTOCOL, cluster, "nobody", "mount")))


def introduced(cluster: str, draw: random.Random, role: str = "cli") -> bytes:
    hello = Hello(PROTOCOL, cluster, "nobody", role, draw.randrange(1, 2**62))
    return PREFACE + pack(1, _pack(hello))


def garbage(address: str, _cluster: str, draw: random.Random) -> None:
    """What is no message: random, no UTF-8, nested, truncated, too long."""
    ping = pack(1, _pack(Ping("x")))
    bad = [
        draw.randbytes(draw.randrange(1, 5000)),
        PREFACE + draw.randbytes(draw.randrange(1, 5000)),
        (PREFACE + ping)[: draw.randrange(1, 40)],
        PREFACE + pack(1, b"\x92\xa4ping\xa2\xff\xfe"),
        PREFACE + pack(1, b"\x92\xaa" + b"\xff" * 10 + b"\x01"),
        PREFACE + pack(1, b"\x93\xa4ping\xa1x" + b"\x91" * 50_000 + b"\xc0"),
        PREFACE + struct.pack(">IIQ", 2**32 - 1, 2**32 - 1, 1),
        PREFACE + struct.pack(">IIQ", 0, 0, 0),
        PREFACE + pack(GREETING_NUMBER, b"\xc1"),
    ]
    send(address, draw.choice(bad))


def held_back(address: str, cluster: str, draw: random.Random) -> None:
    """Frames that never end, from somebody who has greeted and from somebody who has not."""
    head = draw.choice([PREFACE, greeted(cluster)])
    send(address, head + struct.pack(">IIQ", 4 * MIB, 4 * MIB, 1) + bytes(8 * MIB - 1), wait_s=0.5)


def many_questions(address: str, cluster: str, draw: random.Random) -> None:
    """Small questions with large answers in one segment, and requests that wait with bodies; nobody reads the answers."""
    listing = pack(5, _pack(ReadDir(ROOT_INO, 0, 1000))) * 1000
    waiting = pack(6, _pack(AwaitCopies(ROOT_INO, 1 << 40, 3, 60.0))) * 1000
    bodies = pack(7, _pack(AwaitCopies(ROOT_INO, 1 << 40, 3, 60.0)), bytes(4 * MIB)) * 4
    send(address, introduced(cluster, draw) + draw.choice([listing, waiting, bodies]), wait_s=0.5)


def odd_numbers(address: str, cluster: str, draw: random.Random) -> None:
    """Requests with numbers that nothing has."""
    number = draw.choice([-(2**63), -1, 0, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
    requests: list[Request[Any]] = [
        GetAttr(number),
        AskLeases([number]),
        AwaitCopies(number, number, 1, float("nan")),
        SetLock(number, False, 1, 1, LockSpan(0, number, True), 1, True),
        ReadObject(number, 1, b"x", number, number),
        WriteObject(7, number, b"x", number),
        PullObject(7, 1, number, Stamp(number, number, number), b"x"),
    ]
    chosen = pack(2, _pack(draw.choice(requests)))
    role = draw.choice(["cli", "mount", "agent"])  # each may ask something else
    send(address, draw.choice([introduced(cluster, draw, role), greeted(cluster)]) + chosen)


THROWS: tuple[Throw, ...] = (garbage, held_back, many_questions, odd_numbers)


def throw_from_threads(cluster: str, ports: list[str], seconds: float) -> None:
    """Throws all kinds at all ports. The process: it gives way to the network, whose machine the strangers' would not be."""
    os.nice(19)
    until_s = time.monotonic() + seconds

    def throw(number: int, act: Throw) -> None:
        draw = random.Random(number)
        for address in itertools.cycle(ports):
            if time.monotonic() > until_s:
                return
            act(address, cluster, draw)
            time.sleep(0.02)

    threads = [threading.Thread(target=throw, args=(number, act)) for number, act in enumerate(THROWS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@contextmanager
def thrown_at(lab: Lab, seconds: float) -> Iterator[None]:
    """Throws all kinds at all ports of the network from another process; waits at the end until *seconds* are over."""
    configs = [lab.config(server) for server in lab.servers]
    ports = [port for config in configs for port in (config.manager.listen, config.agent.listen)]
    strangers = get_context("spawn").Process(target=throw_from_threads, args=(configs[0].cluster, ports, seconds))
    strangers.start()
    yield
    strangers.join()
    assert strangers.exitcode == 0


def memory_mib(lab: Lab) -> dict[str, int]:
    """What each process holds, by its name and number."""
    sizes = {}
    for name, process in read_state(lab.root).processes.items():
        fields = Path(f"/proc/{process.pid}/status").read_text().split("VmRSS:")[1].split()
        sizes[f"{name} {process.pid}"] = int(fields[0]) // 1024
    return sizes


def rounds(directory: Path, seconds: float) -> int:
    """How many files can be made, written and read there in that time."""
    until_s, count = time.monotonic() + seconds, 0
    while time.monotonic() < until_s:
        path = directory / f"file-{time.monotonic_ns()}"
        path.write_bytes(b"content")
        assert path.read_bytes() == b"content"
        count += 1
    return count


def test_a_network_that_bytes_are_thrown_at_works_on(network: Lab, directory: Path, tell: Callable[[str], None]) -> None:
    quiet_s = max(2.0, SECONDS / 8)
    rounds(directory, 1.0)
    quiet, before = rounds(directory, quiet_s) / quiet_s, memory_mib(network)
    with thrown_at(network, SECONDS):
        during = rounds(directory, SECONDS) / SECONDS
    after, grown = rounds(directory, quiet_s) / quiet_s, memory_mib(network)
    assert before.keys() == grown.keys()
    assert all(grown[name] - before[name] < GROWTH_MAX_MIB for name in grown), (before, grown)
    assert during > 0
    growth = max(grown[name] - before[name] for name in grown)
    part = during / quiet
    tell(f"{quiet:.0f} files/s before, {part:.2f} of that meanwhile, {after:.0f} afterwards; at most {growth} MiB more")


def test_a_slow_stranger_is_hung_up_on(network: Lab, orderly_logs: None) -> None:
    config = network.config("s1")
    starts = (b"", PREFACE[:1], PREFACE, (PREFACE + pack(1, bytes(50)))[:-1])
    silent = []
    for address, start in itertools.product((config.manager.listen, config.agent.listen), starts):
        host, _, port = address.rpartition(":")
        silent.append(socket.create_connection((host, int(port)), 5.0))
        silent[-1].sendall(start)
    wait_until(lambda: all(_is_closed(sock) for sock in silent), "the end of slow connections", timeout_s=8.0)
    for sock in silent:
        sock.close()


def _is_closed(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
