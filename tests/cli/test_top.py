"""`godwit top`: the screen fits any terminal, says what matters first, and ends as it should."""

import html
import io
import os
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from rich.console import Console

from cli.commands.top import View
from cli.display.top import Flow, Screen, is_shown, shown
from cluster.errors import Unavailable
from cluster.membership import ServerState, VolumeCondition
from cluster.messages import (
    EventRow,
    Events,
    GetStatus,
    ListEvents,
    ListMigrations,
    MigrationRow,
    MigrationRows,
    MountCounts,
    MoveCount,
    ServerInfo,
    Space,
    Status,
    Volume,
)
from cluster.progress import Rate
from cluster.rates import Rates
from tests.support.runner import godwit

DOCS = Path(__file__).resolve().parents[2] / "docs"
GIB = 1 << 30
NOW_S = 1_800_000_000.0
SIZES = [(80, 24), (200, 60), (60, 16), (40, 10), (20, 5), (3, 1)]


def server(number: int, state: str = ServerState.UP, **fields: Any) -> ServerInfo:
    volume = Volume(
        number, f"s{number}", "/srv/godwit", f"10.0.0.{number}:7401", 4000 * GIB, (900 + 700 * (number % 4)) * GIB, f"d{number}"
    )
    given: dict[str, Any] = {"counts": MountCounts(10, 5), "waiting_tasks": 0, "dead_tasks": 0, "last_seen_s": 0.4, **fields}
    return ServerInfo(f"s{number}", ["agent", "mount"], [volume], state=state, **given)


def event(number: int, kind: str, severity: str, about: str = "", count: int = 1, **fields: int | str) -> EventRow:
    at_ns = int((NOW_S - 600 + 60 * number) * 1e9)
    return EventRow(number, at_ns, at_ns, count, severity, kind, about, 0, fields)


SERVERS = [
    server(1),
    server(2, waiting_tasks=212, oldest_task_s=95.0),
    server(3, ServerState.DOWN, last_seen_s=700.0, counts=None),
]
SPACE = Space(6000 * GIB, 2800 * GIB, 48_213)
STATUS = Status("godwit", "s1", 4, "sqlite", SERVERS, 48_213, 212, 4, 0, SPACE, below_policy=212)
WELL = msgspec.structs.replace(STATUS, servers=[server(1), server(2)], below_policy=0, waiting_tasks=0, claimed_tasks=0)
COUNTS = [MoveCount("done", 3100, 3100 << 20), MoveCount("copying", 200, 200 << 20), MoveCount("planned", 1700, 1700 << 20)]
MIGRATION = MigrationRow(7, "move", "running", "s1", "s2", [b"/projects"], True, COUNTS, "", 1, 0, 100.0)
EVENTS = [
    event(1, "office-taken", "info", "s1", term=4, before="s3"),
    event(2, "migration-started", "info", "s1", migration=7, source="s1", target="s2"),
    event(3, "server-down", "error", "s3"),
    event(4, "files-at-risk", "warning", count=212),
]
FLOWS = {"s1": Flow(1240.0, 31.5), "s2": Flow(88.0, 2.04)}
SCREEN = Screen(STATUS, NOW_S, 0.3, "", FLOWS, [(MIGRATION, Rate(64.0, 64 << 20, 30.0))], EVENTS)


def drawn(screen: Screen, width: int, height: int) -> Console:
    console = Console(width=width, height=height, record=True, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(shown(screen, width, height))
    return console


def lines(screen: Screen, width: int = 80, height: int = 24) -> list[str]:
    return drawn(screen, width, height).export_text().splitlines()


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize(
    "screen",
    [
        Screen(None),
        Screen(None, silent_s=30.0, why="no manager within 10 s at 10.0.0.1:7400, 10.0.0.2:7400, 10.0.0.3:7400"),
        Screen(WELL, NOW_S),
        Screen(msgspec.structs.replace(WELL, servers=[]), NOW_S),
        SCREEN,
        Screen(msgspec.structs.replace(STATUS, servers=[server(n) for n in range(1, 100)]), NOW_S, events=EVENTS * 50),
        Screen(STATUS, NOW_S, migrations=[(MIGRATION, Rate(0.0, 0.0, None))] * 40, events=EVENTS * 50),
    ],
    ids=["nothing", "nobody", "well", "no servers", "ill", "many servers", "many migrations"],
)
def test_it_is_as_large_as_the_terminal(screen: Screen, width: int, height: int) -> None:
    shown_lines = lines(screen, width, height)
    assert len(shown_lines) == height
    assert max(map(len, shown_lines)) <= width
    assert shown_lines[-1][:6] == "q  quit"[: min(6, width - 1)] or width < 6


def test_what_is_wrong_comes_first_and_the_command_that_shows_more() -> None:
    found = lines(SCREEN)
    assert found[1] == "ATTENTION  s3 is down: what is on it does not count (godwit servers show s3)"
    assert found[2].startswith("ATTENTION  at risk: 212 files have fewer copies")
    assert found[3] == "           files --below-policy)"
    assert lines(Screen(WELL, NOW_S))[1].startswith("OK  2 servers up, 48212 files")


def test_the_servers_their_queues_and_rates() -> None:
    table = [line.split() for line in lines(SCREEN) if re.match(r"SERVER|s\d", line)]
    assert table[0] == ["SERVER", "STATE", "SEEN", "FREE", "USED", "REQ/S", "MGR/S", "QUEUE", "OLDEST", "DEAD"]
    assert table[1] == ["s1*", "up", "0", "s", "1.6", "TiB", "60%", "1240", "32", "0", "-", "0"]
    assert table[2] == ["s2", "up", "0", "s", "2.2", "TiB", "42%", "88", "2.0", "212", "2", "min", "0"]
    assert table[3] == ["s3", "down", "12", "min", "2.9", "TiB", "25%", "-", "-", "0", "-", "0"]


def test_the_migration_and_the_newest_events() -> None:
    found = lines(SCREEN)
    (migration,) = [line for line in found if line.startswith("7  s1 to s2")]
    assert migration == "7  s1 to s2  ███████░░░░░  running  3100 of 5000 files, 64.0 MiB/s, 30 s left"
    assert found[found.index("EVENTS") + 4].endswith("warning  212 files have fewer copies than the policy wants")
    assert lines(Screen(STATUS, NOW_S, events=EVENTS * 50))[-2].endswith("than the policy wants")


def test_of_many_servers_those_that_are_ill_are_kept() -> None:
    many = [server(n) for n in range(1, 60)] + [server(60, ServerState.SUSPECT)]
    found = lines(Screen(msgspec.structs.replace(WELL, servers=many), NOW_S, events=EVENTS))
    assert any(line.startswith("s60") for line in found)
    assert any(re.fullmatch(r"and \d+ more: godwit servers ls", line) for line in found)
    assert "EVENTS" in found


def test_a_disk_that_is_bad_is_named_instead_of_its_space() -> None:
    ill = server(2)
    bad = msgspec.structs.replace(ill.volumes[0], condition=str(VolumeCondition.FAILING))
    status = msgspec.structs.replace(WELL, servers=[msgspec.structs.replace(ill, volumes=[bad])])
    assert any("failing" in line for line in lines(Screen(status, NOW_S)))


def test_that_nobody_answers_is_said_beside_what_was_known() -> None:
    found = lines(msgspec_replaced(SCREEN, silent_s=12.0, why="no manager answers"))
    assert found[1] == "ATTENTION  nobody has answered for 12 s: no manager answers"
    assert any(line.startswith("s1*") for line in found)
    assert lines(Screen(None))[1] == "waiting for the manager"


def msgspec_replaced(screen: Screen, **changes: Any) -> Screen:
    return Screen(**{**vars(screen), **changes})


@pytest.mark.parametrize(("state", "ended_ns", "is_wanted"), [("running", 0, True), ("failed", 0, True), ("done", 1, False)])
def test_migrations_that_go_on_are_of_interest(state: str, ended_ns: int, is_wanted: bool) -> None:
    assert is_shown(msgspec.structs.replace(MIGRATION, state=state, ended_ns=ended_ns)) is is_wanted


# ------------------------------------------------------------------------------------------------------------ rates


def test_rates_are_of_the_last_seconds() -> None:
    rates: Rates[str] = Rates()
    assert rates.add(0.0, {"a": 1000}) == {}
    assert rates.add(2.0, {"a": 1020}) == {"a": 10.0}
    assert rates.add(100.0, {"a": 1020}) == {"a": 0.0}
    assert rates.add(102.0, {"a": 1220})["a"] == pytest.approx(2.0)
    for second in range(103, 120):
        last = rates.add(float(second), {"a": 1220.0})
    assert last == {"a": 0.0}


def test_a_process_that_begins_anew_counts_from_zero() -> None:
    rates: Rates[str] = Rates()
    rates.add(0.0, {"a": 1000, "b": 5})
    assert rates.add(2.0, {"a": 10, "b": 7}) == {"b": 1.0}
    assert rates.add(4.0, {"a": 30, "b": 9}) == {"a": 10.0, "b": 1.0}
    assert rates.add(6.0, {}) == {}


# ---------------------------------------------------------------------------------------------------------- looking


async def test_it_goes_on_when_somebody_answers_again(autojump_clock: trio.testing.MockClock) -> None:
    is_away = True

    async def asker(request: Any) -> Any:
        await trio.sleep(0.1)
        if is_away:
            raise Unavailable("no manager answers")
        replies: dict[type[Any], Any] = {
            GetStatus: STATUS,
            ListEvents: Events(EVENTS, 4),
            ListMigrations: MigrationRows([MIGRATION, msgspec.structs.replace(MIGRATION, migration=6, state="done", ended_ns=1)]),
        }
        return replies[type(request)]

    view = View(asker, "keys")  # type: ignore[arg-type]
    screens: list[Screen] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(view.look_loop, 2.0)
        nursery.start_soon(view.draw_loop, screens.append)
        await trio.sleep(10.0)
        assert (screens[-1].status, screens[-1].why) == (None, "no manager answers")
        assert screens[-1].silent_s > 8.0
        is_away = False
        await trio.sleep(2.5)
        assert (screens[-1].status, screens[-1].why) == (STATUS, "")
        assert [row.migration for row, _rate in screens[-1].migrations] == [7]
        assert screens[-1].flows == {"s1": Flow(), "s2": Flow(), "s3": Flow()}
        await trio.sleep(2.5)
        assert screens[-1].flows["s1"] == Flow(0.0, 0.0)
        looks = len(screens)
        view.look_now()
        await trio.sleep(0.5)
        assert len(screens) > looks
        is_away = True
        await trio.sleep(8.0)
        assert screens[-1].status == STATUS
        assert screens[-1].silent_s > 5.0
        nursery.cancel_scope.cancel()


def test_without_a_terminal_it_says_what_else_there_is() -> None:
    done = godwit("top")
    assert (done.returncode, done.stdout) == (1, "")
    assert "godwit status --watch" in done.stderr


# ----------------------------------------------------------------------------------------------------- in the docs

FONTS = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def test_the_screenshot_in_the_docs_is_what_it_looks_like() -> None:
    """GODWIT_SCREENSHOTS=1 draws it anew."""
    svg = drawn(SCREEN, 80, 24).export_svg(title="godwit top", unique_id="top")
    # Without fonts from elsewhere: whoever looks at it asks nobody.
    svg = re.sub(r"<!--.*?-->\s*", "", FONTS.sub("", svg))
    picture = DOCS / "top.svg"
    if os.environ.get("GODWIT_SCREENSHOTS"):
        picture.write_text(svg)
    assert words_of(picture.read_text()) == words_of(svg)
    assert "http" not in picture.read_text().replace("http://www.w3.org/2000/svg", "")


def words_of(svg: str) -> list[str]:
    """What can be read in the picture, in order; times are of the zone in which it was drawn."""
    text = " ".join(html.unescape(part) for part in re.findall(r"<text [^>]*>([^<]*)</text>", svg))
    return [word for word in text.replace("\xa0", " ").split() if not re.fullmatch(r"\d\d:\d\d:\d\d|\d\d-\d\d", word)]
