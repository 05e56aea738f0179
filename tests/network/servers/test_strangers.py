"""Whoever reaches the ports of a network and sends what he likes: no process ends, none grows, none is held up.

He speaks no TLS, or has no certificate, or one of a server that was taken over.

GODWIT_STRANGERS_S says for how many seconds bytes are thrown.
"""

import itertools
import os
import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from cluster.config import METRICS_PORTS, ServerConfig
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
from cluster.trust.credentials import Credentials, Newcomer
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role
from lab.lab import Lab
from lab.state import read_state
from tests.support.conditions import wait_until

SECONDS = float(os.environ.get("GODWIT_STRANGERS_S", "8"))
GROWTH_MAX_MIB = 120
MIB = 1 << 20
HALF_OPEN = 100  # at one port at a time

_pack = msgspec.msgpack.encode

Throw = Callable[[str, "Thrower", random.Random], None]


class Thrower(NamedTuple):
    """Who throws. `context`: None for somebody who speaks no TLS; else with or without a certificate."""

    cluster: str
    server: str
    role: str
    context: ssl.SSLContext | None

    def send(self, address: str, data: bytes, *, wait_s: float = 0.05) -> None:
        """Sends it over a connection of its own, and reads a little."""
        host, _, port = address.rpartition(":")
        with suppress(OSError), closing(socket.create_connection((host, int(port)), 2.0)) as plain:
            sock = plain if self.context is None else self.context.wrap_socket(plain)
            with closing(sock):
                sock.sendall(data)
                sock.settimeout(wait_s)
                sock.recv(4096)


def throwers(config: ServerConfig) -> list[Thrower]:
    """Strangers, and the processes of a server that somebody else has got hold of."""
    folder = TrustFolder(config.trust)
    newcomer = Newcomer(folder.read_authorities().decode()).asking
    members = [Thrower(config.cluster, config.server, role, Credentials(folder, role).asking) for role in Role]
    return [Thrower(config.cluster, "nobody", "mount", context) for context in (None, newcomer)] + members


def greeted(who: Thrower) -> bytes:
    return PREFACE + pack(GREETING_NUMBER, _pack(Greeting(PROTOCOL, who.cluster, who.server, who.role)))


def introduced(who: Thrower, draw: random.Random, role: str) -> bytes:
    # Not as the mount or the agent of the server, which it would take the place of.
    hello = Hello(
        PROTOCOL, who.cluster, f"not {who.server}" if role in ("mount", "agent") else who.server, role, draw.randrange(1, 2**62)
    )
    return PREFACE + pack(1, _pack(hello))


def garbage(address: str, who: Thrower, draw: random.Random) -> None:
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
    who.send(address, draw.choice(bad))


def held_back(address: str, who: Thrower, draw: random.Random) -> None:
    """Frames that never end, from somebody who has greeted and from somebody who has not."""
    head = draw.choice([PREFACE, greeted(who)])
    who.send(address, head + struct.pack(">IIQ", 4 * MIB, 4 * MIB, 1) + bytes(8 * MIB - 1), wait_s=0.5)


def many_questions(address: str, who: Thrower, draw: random.Random) -> None:
    """Small questions with large answers in one segment, and requests that wait with bodies; nobody reads the answers."""
    listing = pack(5, _pack(ReadDir(ROOT_INO, 0, 1000))) * 1000
    waiting = pack(6, _pack(AwaitCopies(ROOT_INO, 1 << 40, 3, 60.0))) * 1000
    bodies = pack(7, _pack(AwaitCopies(ROOT_INO, 1 << 40, 3, 60.0)), bytes(4 * MIB)) * 4
    who.send(address, introduced(who, draw, "admin") + draw.choice([listing, waiting, bodies]), wait_s=0.5)


def odd_numbers(address: str, who: Thrower, draw: random.Random) -> None:
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
    role = draw.choice(["admin", "mount", "agent"])  # each may ask something else
    who.send(address, draw.choice([introduced(who, draw, role), greeted(who)]) + chosen)


def held_open(address: str, _who: Thrower, _draw: random.Random) -> None:
    """Connections that say nothing, or begin a handshake and do not go on: more than are let in from one address."""
    host, _, port = address.rpartition(":")
    silent: list[socket.socket] = []
    with suppress(OSError):
        for number in range(HALF_OPEN):
            silent.append(socket.create_connection((host, int(port)), 2.0))
            silent[-1].sendall(b"\x16\x03\x01\x02\x00\x01" if number % 2 else b"")
        time.sleep(1.0)
    for sock in silent:
        sock.close()


def scrapes(address: str, who: Thrower, draw: random.Random) -> None:
    """What scrapers ask, as often as they like, and what none would."""
    asked = [
        b"GET /metrics HTTP/1.1\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=\xff\r\n\r\n" * 100,
        b"POST /metrics HTTP/1.1\r\nContent-Length: 1000000000000\r\n\r\n" + bytes(MIB),
        b"GET /" + b"%2e" * MIB,
        draw.randbytes(draw.randrange(1, 5000)) + b"\r\n\r\n",
    ]
    who.send(address, draw.choice(asked), wait_s=0.5)


THROWS: tuple[Throw, ...] = (garbage, held_back, many_questions, odd_numbers, held_open, scrapes)


def throw_from_threads(config: ServerConfig, ports: list[str], seconds: float) -> None:
    """Throws all kinds at all ports. The process: it gives way to the network, whose machine the strangers' would not be."""
    os.nice(19)
    ways = throwers(config)
    until_s = time.monotonic() + seconds

    def throw(number: int, act: Throw) -> None:
        draw = random.Random(number)
        for address in itertools.cycle(ports):
            if time.monotonic() > until_s:
                return
            act(address, draw.choice(ways), draw)
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
    scraped = {server: lab.config(server).metrics for server in lab.servers}
    for server, metrics in scraped.items():
        ports += [metrics.address(part).replace("0.0.0.0", lab.address(server)) for part in METRICS_PORTS]
    strangers = get_context("spawn").Process(target=throw_from_threads, args=(configs[0], ports, seconds))
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


@pytest.mark.timeout(300 + 2 * SECONDS)
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
    stranger = Newcomer(TrustFolder(config.trust).read_authorities().decode()).asking
    for address, start in itertools.product((config.manager.listen, config.agent.listen), starts):
        host, _, port = address.rpartition(":")
        silent.append(socket.create_connection((host, int(port)), 5.0))
        if start:
            silent[-1] = stranger.wrap_socket(silent[-1])
            silent[-1].sendall(start)
    wait_until(lambda: all(_is_closed(sock) for sock in silent), "the end of slow connections", timeout_s=8.0)
    for sock in silent:
        sock.close()


def _is_closed(sock: socket.socket) -> bool:
    sock.setblocking(False)
    try:
        return sock.recv(1) == b""
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True
