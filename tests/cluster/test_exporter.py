"""What a scraper is told, and what becomes of whatever it sends."""

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial

import msgspec
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from cluster.config import AgentConfig, ManagerConfig, MetricsConfig, MountConfig, ServerConfig
from cluster.counters import Counters, Kind, Metric, Sample
from cluster.exporter import CONNECTIONS_MAX, HEAD_BYTES, Scraped, own_samples, render, serve_metrics
from cluster.faults import faults
from cluster.listening import PACE_S, RETRY_S
from cluster.trust.identity import Role
from tests.support.trust import credentials, trust_of

Ask = Callable[[bytes], Awaitable[bytes]]
GET = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"


def metric(name: str, kind: Kind, *labels: str, bounds: tuple[float, ...] = ()) -> Metric:
    """A declaration that is not kept: tests share a process."""
    return Metric(name, "What it is.", kind, labels, bounds)


def config(listen: str) -> ServerConfig:
    agent, mount = AgentConfig("127.0.0.1:7401"), MountConfig("/mnt/godwit")
    made = ServerConfig("test", "s1", ["127.0.0.1:7400"], ManagerConfig(), agent, mount, trust=trust_of("s1"))
    return msgspec.structs.replace(made, metrics=MetricsConfig(listen))


def parsed(text: bytes) -> dict[str, float]:
    """The samples by name and labels, in the order of the labels' names."""
    samples = (sample for family in text_string_to_metric_families(text.decode()) for sample in family.samples)
    return {f"{sample.name}{dict(sorted(sample.labels.items())) or ''}": sample.value for sample in samples}


def test_the_text_is_what_prometheus_reads() -> None:
    counters = Counters()
    counters.cell(metric("godwit_errors_total", Kind.COUNTER, "disk"), 'a"b\\c\nd').value += 2
    counters.cell(metric("godwit_errors_total", Kind.COUNTER, "disk"), "/v1").value += 1
    counters.follow(metric("godwit_kept", Kind.GAUGE), lambda: -1.5)
    took = counters.histograms(metric("godwit_took_seconds", Kind.HISTOGRAM, "what", bounds=(0.001, 0.5, 10.0)))
    for seconds in (0.0001, 0.001, 0.0011, 0.5, 11.0):
        took["read"].observe(seconds)
    text = render(counters.samples())
    found = parsed(text)
    assert {name: number for name, number in found.items() if name.startswith("godwit")} == {
        "godwit_errors_total{'disk': 'a\"b\\\\c\\nd'}": 2,
        "godwit_errors_total{'disk': '/v1'}": 1,
        "godwit_kept": -1.5,
        "godwit_took_seconds_bucket{'le': '0.001', 'what': 'read'}": 2,
        "godwit_took_seconds_bucket{'le': '0.5', 'what': 'read'}": 4,
        "godwit_took_seconds_bucket{'le': '10.0', 'what': 'read'}": 4,
        "godwit_took_seconds_bucket{'le': '+Inf', 'what': 'read'}": 5,
        "godwit_took_seconds_count{'what': 'read'}": 5,
        "godwit_took_seconds_sum{'what': 'read'}": pytest.approx(11.5022),
    }
    assert b"# HELP godwit_errors_total What it is.\n# TYPE godwit_errors_total counter\n" in text
    assert {
        "process_cpu_seconds_total",
        "process_virtual_memory_bytes",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_start_time_seconds",
    } <= {*found}


@asynccontextmanager
async def scraped(gather: Callable[[], Iterable[Sample]] = list) -> AsyncIterator[Ask]:
    """A function that sends bytes over a connection of its own and returns all that comes back."""

    async def gathered() -> Iterable[Sample]:
        return gather()

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]

    async def ask(sent: bytes) -> bytes:
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            try:
                await stream.send_all(sent)
                if not sent.endswith(b"\r\n\r\n"):
                    await stream.send_eof()
                return b"".join([data async for data in stream])
            except trio.BrokenResourceError:  # what it would not read was left when it closed the connection
                return b""

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Scraped(gathered).serve, listeners)
        yield ask
        nursery.cancel_scope.cancel()


ODD = [
    (b"HEAD /metrics HTTP/1.1\r\n\r\n", b"200 OK"),
    (b"GET /metrics?name=x HTTP/1.0\r\n\r\n", b"200 OK"),
    (b"GET / HTTP/1.1\r\n\r\n", b"404 Not Found"),
    (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", b"404 Not Found"),
    (b"GET \xff\x00 HTTP/1.1\r\n\r\n", b"404 Not Found"),
    (b"POST /metrics HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
    (b"\x16\x03\x01\x02\x00\x01\x00", b"400 Bad Request"),
    (b"GET /metrics\r\n\r\n", b"400 Bad Request"),
    (b"GET /metrics HTTP/1.1\r\nHost", b"400 Bad Request"),
    (b"\r\n\r\n", b"400 Bad Request"),
    (b"", b"400 Bad Request"),
]


@pytest.mark.parametrize(("sent", "status"), ODD, ids=range(len(ODD)))
async def test_whatever_is_sent_is_answered(sent: bytes, status: bytes) -> None:
    async with scraped() as ask:
        answer = await ask(sent)
        assert answer.startswith(b"HTTP/1.1 " + status)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert sent.startswith(b"HEAD") or f"Content-Length: {len(body)}".encode() in head
        assert bool(body) is not sent.startswith(b"HEAD")


async def test_a_head_without_end_is_not_kept() -> None:
    async with scraped() as ask:
        answer = await ask(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * 100 * HEAD_BYTES)
        assert not answer or answer.startswith(b"HTTP/1.1 400")
        assert b"process_open_fds" in await ask(GET)


async def test_an_answer_is_made_once_for_all_who_ask_at_a_time() -> None:
    made: list[None] = []

    def gather() -> list[Sample]:
        made.append(None)
        return [Sample(metric("godwit_kept", Kind.GAUGE), (), len(made))]

    answers = []

    async def ask_one(ask: Ask) -> None:
        answers.append(await ask(GET))

    async with scraped(gather) as ask, trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS_MAX // 2):
            nursery.start_soon(ask_one, ask)
    assert len(answers) == CONNECTIONS_MAX // 2
    assert len(made) == 1
    assert all(b"\ngodwit_kept 1.0\n" in answer for answer in answers)


async def test_who_says_nothing_keeps_nobody_else_for_long(autojump_clock: trio.testing.MockClock) -> None:
    """As many as there may be say nothing: their time is over by and by, and then others are answered."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(Scraped(own_samples).serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        mine = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(CONNECTIONS_MAX)]
        await trio.sleep((CONNECTIONS_MAX + 1) * PACE_S)
        theirs = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(3)]
        assert [await stream.receive_some() for stream in theirs] == [b"", b"", b""]
        assert [await stream.receive_some() for stream in mine] == [b""] * CONNECTIONS_MAX
        last = await trio.open_tcp_stream("127.0.0.1", port)
        await last.send_all(b"GET / HTTP/1.1\r\n\r\n")
        assert (await last.receive_some()).startswith(b"HTTP/1.1 404")
        for stream in (*mine, *theirs, last):
            await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_however_many_come_they_come_at_a_pace() -> None:
    answers: list[bytes] = []

    async def ask_one(ask: Ask) -> None:
        answers.append(await ask(b"GET / HTTP/1.1\r\n\r\n"))

    async with scraped() as ask:
        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask_one, ask)
        assert trio.current_time() - began_s >= 19 * PACE_S
    assert len(answers) == 20
    assert all(answer.startswith(b"HTTP/1.1 404") for answer in answers)


async def test_an_error_of_ours_ends_one_connection() -> None:
    broken = [True]

    def gather() -> list[Sample]:
        if broken.pop():
            raise KeyError("a bug")
        return []

    async with scraped(gather) as ask:
        assert await ask(GET) == b""
        assert faults.unexpected_errors == 1
        broken.append(False)
        assert b"process_open_fds" in await ask(GET)


async def test_a_process_tells_who_it_is() -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    taken.close()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_metrics, config(f"127.0.0.1:{port - 1}"), credentials("s1", "agent"))
        stream = await connected(port)
        await stream.send_all(GET)
        answer = b"".join([data async for data in stream])
        nursery.cancel_scope.cancel()
    found = parsed(answer.partition(b"\r\n\r\n")[2])
    (build,) = (name for name in found if name.startswith("godwit_build_info"))
    assert "'cluster': 'test', 'part': 'agent'" in build
    assert found["godwit_certificate_end_timestamp_seconds"] == credentials("s1", "agent").ends_s


async def connected(port: int) -> trio.SocketStream:
    with trio.fail_after(5):
        while True:
            try:
                return await trio.open_tcp_stream("127.0.0.1", port)
            except OSError:
                await trio.sleep(0.01)


async def test_no_address_ends_no_process(autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(serve_metrics, config(f"127.0.0.1:{port}"), credentials("s1", "manager")))
        await trio.sleep(2.5 * RETRY_S)
        warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert [record.getMessage() for record in warnings] == [
            f"metrics cannot be had at 127.0.0.1:{port}, and it is tried again: Address already in use"
        ]
        taken.close()
        await trio.sleep(RETRY_S)
        await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
        assert trio.current_time() - began_s < 4 * RETRY_S
        nursery.cancel_scope.cancel()


async def test_without_an_address_nothing_listens() -> None:
    with trio.fail_after(5):
        await serve_metrics(config(""), credentials("s1", "mount"))


def test_each_part_has_a_port_of_its_own() -> None:
    metrics = MetricsConfig("[::1]:7410")
    assert [metrics.address(role) for role in (Role.MANAGER, Role.AGENT, Role.MOUNT)] == [
        "[::1]:7410",
        "[::1]:7411",
        "[::1]:7412",
    ]
    assert MetricsConfig().address(Role.MOUNT) == ""
