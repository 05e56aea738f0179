"""`godwit events`: what is shown, and how it goes on."""

import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import typer

from cli import exits
from cli.commands import events as command
from cli.commands.events import since_ns
from cli.display.events import line_of
from cluster.errors import Unavailable
from cluster.messages import EventRow, Events, ListEvents
from tests.support.runner import godwit

NOW_S = 1_800_000_000.0
DOWN = EventRow(7, int(NOW_S * 1e9), int(NOW_S * 1e9), 1, "error", "server-down", "s3", 0, {})
AT_RISK = msgspec.structs.replace(DOWN, event=9, kind="files-at-risk", server="", count=12, severity="warning")
PROBLEM = msgspec.structs.replace(DOWN, event=8, kind="server-problem", count=3, fields={"problem": "it smells"})
LINES = [
    "error    s3 is down: what is on it does not count any more",
    "error    s3: it smells (3 times, the last at HH:MM:SS)",
    "warning  12 files have fewer copies than the policy wants",
]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[ListEvents]:
    """What was asked; three events are the answer."""
    requests: list[ListEvents] = []

    def ask(_target: object, _timeout: float, request: ListEvents) -> Events:
        requests.append(request)
        return Events([DOWN, PROBLEM, AT_RISK], 9)

    monkeypatch.setattr(command, "find_target", lambda _root: tmp_path)
    monkeypatch.setattr(command, "ask", ask)
    return requests


def test_a_line_each(asked: list[ListEvents]) -> None:
    done = godwit("events")
    at = datetime.fromtimestamp(NOW_S)
    assert done.stdout.splitlines() == [f"{at:%Y-%m-%d %H:%M:%S}  {line}".replace("HH:MM:SS", f"{at:%H:%M:%S}") for line in LINES]
    assert (done.returncode, done.stderr) == (0, "")
    assert asked == [ListEvents(limit=100)]


def test_an_object_in_each_line(asked: list[ListEvents]) -> None:
    done = godwit(
        "events", "--json", "--kind", "server", "--server", "s3", "--severity", "warning", "-n", "5", "--since", "1970-01-02"
    )
    objects = [msgspec.json.decode(line) for line in done.stdout.splitlines()]
    assert [(one["event"], one["server"], one["volume"]) for one in objects] == [
        (7, "s3", None),
        (8, "s3", None),
        (9, None, None),
    ]
    assert objects[0]["time"] == "2027-01-15T08:00:00.000+00:00"
    assert objects[1]["message"] == "s3: it smells"
    (request,) = asked
    assert (request.kind, request.server, request.severity, request.limit) == ("server", "s3", "warning", 5)
    assert 0 < request.since_ns < 3 * 86400 * 10**9


def test_since_when_means_all_since_then(asked: list[ListEvents]) -> None:
    godwit("events", "--since", "1h30m")
    assert asked[0].limit > 1000
    assert 5399e9 < time.time() * 1e9 - asked[0].since_ns < 5500e9


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("2h", 7200), ("1h30m", 5400), ("1d 2h", 93600), ("5min", 300), ("1.5h", 5400), ("", NOW_S)],
)
def test_spans(text: str, seconds: float) -> None:
    assert since_ns(text, NOW_S) == int((NOW_S - seconds) * 1e9)


def test_dates() -> None:
    local = datetime(2026, 12, 24, 18, 0).timestamp()
    assert since_ns("2026-12-24 18:00", NOW_S) == int(local * 1e9)
    assert since_ns("2026-12-24T18:00:00+00:00", NOW_S) == 1798135200 * 10**9
    for wrong in ("soon", "2x", "h", "2026-13-01", "-2h", "0001-01-01"):
        with pytest.raises(typer.BadParameter):
            assert since_ns(wrong, NOW_S) == -1


def test_wrong_kinds_are_told_with_those_that_there_are(asked: list[ListEvents]) -> None:
    done = godwit("events", "--kind", "servers")
    assert done.returncode == 2
    assert "server-down" in done.stderr
    assert asked == []


def test_nothing(monkeypatch: pytest.MonkeyPatch, asked: list[ListEvents]) -> None:
    monkeypatch.setattr(command, "ask", lambda *_: Events([], 0))
    assert godwit("events").stdout == "no events\n"
    assert godwit("events", "--json").stdout == ""


def following(monkeypatch: pytest.MonkeyPatch, answers: list[Events | Unavailable]) -> list[ListEvents]:
    """Has the manager give these answers, and then Ctrl-C typed; what is asked."""
    requests: list[ListEvents] = []

    async def asker(request: ListEvents) -> Events:
        await trio.lowlevel.checkpoint()
        requests.append(request)
        if not answers:
            raise KeyboardInterrupt
        answer = answers.pop(0)
        if isinstance(answer, Unavailable):
            raise answer
        return answer

    def talk_on(_target: object, _timeout: float, work: Callable[[Any], Awaitable[None]]) -> None:
        async def main() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(work, asker)

        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    monkeypatch.setattr(command, "talk_on", talk_on)
    return requests


def test_it_goes_on_after_the_last_number_whoever_answers(monkeypatch: pytest.MonkeyPatch, asked: list[ListEvents]) -> None:
    away = Unavailable("no manager answers")
    requests = following(monkeypatch, [Events([DOWN], 7), Events([], 8), away, away, Events([AT_RISK], 9), Events([], 4)])
    done = godwit("events", "--follow", "--json")
    assert done.returncode == exits.INTERRUPTED
    assert [msgspec.json.decode(line)["event"] for line in done.stdout.splitlines()] == [7, 9]
    assert done.stderr == "godwit: no manager answers; going on as soon as somebody does\n"
    # At last an older catalog was brought back.
    assert [request.after for request in requests] == [-1, 7, 8, 8, 8, 9, 4]
    assert requests[0].limit == 10


def test_a_reader_that_goes_away_ends_it_though_nothing_happens() -> None:
    script = """
import sys, trio
from cli.commands import events
from cli.network import ask
from cluster.messages import Events
async def asker(_request):
    await trio.lowlevel.checkpoint()
    return Events([], 1)
def talk(_target, _timeout, work, each):
    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work, asker)
    trio.run(main)
ask.talk, events.POLL_S = talk, 0.01
events.find_target = lambda _root: None
from cli.main import main
sys.argv = ["godwit", "events", "--follow"]
main()
"""
    with subprocess.Popen([sys.executable, "-bb", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        try:
            assert process.wait(20) == exits.FAILURE
            assert process.stderr.read() == b""
        finally:
            process.kill()


def test_a_line_never_commands_the_terminal() -> None:
    row = msgspec.structs.replace(PROBLEM, fields={"problem": "\x1b]0;title\x07"})
    assert "\x1b" not in line_of(row)
