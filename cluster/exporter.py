"""Tells a scraper (Prometheus) the numbers of this process: `GET /metrics` over plain HTTP, where `[metrics] listen` says.

The event loop itself takes connections and reads the numbers, since only it may (`cluster.counters`): a thread of an HTTP server
would have to ask it for each answer, and nobody bounds how many of those there are. What takes longest is done by one thread with
what was read: writing the text, and looking into `/proc`. Whoever reaches the port can ask: so connections are taken one after
the other with pauses, an answer is kept for a moment for all who ask, and whatever is sent here ends a connection at most. An
address that cannot be had is told, and tried again.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import accumulate
from platform import python_version

import trio
from prometheus_client import ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from cluster.clock import file_time_ns, monotonic_s
from cluster.config import ServerConfig
from cluster.counters import Counters, Kind, Sample, counters, gauge
from cluster.faults import faults
from cluster.listening import listeners_at, take_connections
from cluster.release import RELEASE
from cluster.trust.credentials import Credentials
from cluster.trust.identity import missed_from

log = logging.getLogger(__name__)

BUILD = gauge(
    "godwit_build_info",
    "Which process this is, and of which release: always 1.",
    "cluster",
    "server",
    "part",
    "release",
    "python",
)
TIME = gauge("godwit_time_seconds", "The time by the process's clock, in seconds since the epoch: not that of who scrapes.")
CERTIFICATE_OVERDUE = gauge(
    "godwit_certificate_overdue_timestamp_seconds",
    "When it becomes a problem that the process's certificate was not renewed, in seconds since the epoch.",
)
CERTIFICATE_END = gauge(
    "godwit_certificate_end_timestamp_seconds", "When the process's certificate ends, in seconds since the epoch."
)

FRESH_S = 0.5  # that an answer is given again to whoever asks
PATIENCE_S = 10.0  # for a connection, from its beginning to its end
CONNECTIONS_MAX = 16  # at once; those beyond are closed
HEAD_BYTES = 8192  # of a request, at most
PATH = "/metrics"

Gather = Callable[[], Awaitable[Iterable[Sample]]]


async def own_samples() -> Iterable[Sample]:
    """Those that any process has."""
    return counters.samples()


async def serve_metrics(config: ServerConfig, credentials: Credentials, gather: Gather = own_samples) -> None:
    """Answers scrapers until cancelled, with what *gather* brings and what is said of every process; returns at once if the
    configuration wants none. Raises nothing that somebody else caused."""
    address = config.metrics.address(credentials.role)
    if not address:
        return
    about = _about(config, credentials)

    async def gather_all() -> Iterable[Sample]:
        return [*about.samples(), *await gather()]

    listeners = await listeners_at(address, "metrics")
    log.info("metrics are at http://%s%s, for all who reach it", address, PATH)
    await Scraped(gather_all).serve(listeners)


def _about(config: ServerConfig, credentials: Credentials) -> Counters:
    """What is said of every process. Not among the numbers that travel: the manager knows it."""
    about = Counters()
    part = credentials.role.value
    about.cell(BUILD, config.cluster, config.server, part, RELEASE, python_version()).value = 1
    about.follow(TIME, lambda: file_time_ns() / 1e9)
    about.follow(CERTIFICATE_OVERDUE, lambda: missed_from(credentials.issued_s, credentials.ends_s))
    about.follow(CERTIFICATE_END, lambda: credentials.ends_s)
    return about


class Scraped:
    """Answers connections with what *gather* brings."""

    def __init__(self, gather: Gather) -> None:
        self._gather = gather
        self._one = trio.Lock()  # held while an answer is made: all who ask meanwhile get that one
        self._thread = trio.CapacityLimiter(1)
        self._text = b""  # the last answer
        self._fresh_until_s = 0.0  # for which it is given again
        self._connections = 0

    async def serve(self, listeners: Iterable[trio.SocketListener]) -> None:
        """Takes connections and answers one request over each, until cancelled."""
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(take_connections, listener, self._serve_one, nursery)

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        self._connections += 1
        try:
            with trio.move_on_after(PATIENCE_S):
                async with stream:
                    if self._connections <= CONNECTIONS_MAX:
                        await self._answer(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            log.debug("a scraper went: %s", error)
        except Exception as error:
            faults.unexpected(log, "while a scraper was answered", error)
        finally:
            self._connections -= 1

    async def _answer(self, stream: trio.SocketStream) -> None:
        head = await _head(stream)
        method, path = _asked(head)
        if not method:
            await stream.send_all(_response("400 Bad Request", b"this is no request of HTTP\n"))
        elif method not in ("GET", "HEAD"):
            await stream.send_all(_response("405 Method Not Allowed", b"only GET and HEAD\n", "Allow: GET, HEAD\r\n"))
        elif path != PATH:
            await stream.send_all(_response("404 Not Found", f"what there is to see is at {PATH}\n".encode()))
        else:
            response = _response("200 OK", await self._fresh_text(), content_type=CONTENT_TYPE_PLAIN_0_0_4)
            await stream.send_all(response if method == "GET" else response[: response.index(b"\r\n\r\n") + 4])

    async def _fresh_text(self) -> bytes:
        async with self._one:
            if monotonic_s() >= self._fresh_until_s:
                samples = [*await self._gather()]
                # What was read does not change any more: a thread may have it.
                self._text = await trio.to_thread.run_sync(render, samples, limiter=self._thread, abandon_on_cancel=True)
                self._fresh_until_s = monotonic_s() + FRESH_S
            return self._text


async def _head(stream: trio.SocketStream) -> bytes:
    """What comes up to the empty line, the end, or `HEAD_BYTES`."""
    head = b""
    while b"\r\n\r\n" not in head and len(head) <= HEAD_BYTES:
        data = await stream.receive_some(HEAD_BYTES)
        if not data:
            break
        head += data
    return head


def _asked(head: bytes) -> tuple[str, str]:
    """The method and the path without its query; empty ones for what is no request."""
    if b"\r\n\r\n" not in head:
        return "", ""
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return "", ""
    return words[0].decode("latin-1"), words[1].decode("latin-1").partition("?")[0]


def _response(status: str, body: bytes, more: str = "", content_type: str = "text/plain; charset=utf-8") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n"
    return head.encode() + body


# ------------------------------------------------------------------------------------------------------------- the text


class _Families(Collector):
    """What was read from a process, as prometheus-client wants it, and what the kernel says of the process."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = samples

    def collect(self) -> Iterator[Metric]:
        yield from families(self._samples)
        yield from ProcessCollector(registry=None).collect()


def render(samples: Iterable[Sample]) -> bytes:
    """The text that Prometheus reads. Looks into `/proc`: for a thread."""
    return generate_latest(_Families(samples))


def families(samples: Iterable[Sample]) -> list[Metric]:
    """Each metric once, with all its samples."""
    found: dict[str, CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily] = {}
    for metric, values, number, counts in samples:
        if metric.name not in found:
            found[metric.name] = _FAMILIES[metric.kind](metric.name, metric.help, labels=metric.labels)
        family = found[metric.name]
        if isinstance(family, HistogramMetricFamily):
            family.add_metric(values, _buckets(metric.bounds, counts), number)
        else:
            family.add_metric(values, number)
    return [*found.values()]


_FAMILIES: dict[Kind, Callable[..., CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]] = {
    Kind.COUNTER: CounterMetricFamily,
    Kind.GAUGE: GaugeMetricFamily,
    Kind.HISTOGRAM: HistogramMetricFamily,
}


def _buckets(bounds: tuple[float, ...], counts: tuple[int, ...]) -> list[tuple[str, float]]:
    """How many values were at most each bound."""
    names = [*map(floatToGoString, bounds), "+Inf"]
    return [(name, float(count)) for name, count in zip(names, accumulate(counts), strict=True)]
