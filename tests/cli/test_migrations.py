"""How far a migration is, as people and programs are told."""

import pytest
import typer
from typer.testing import CliRunner

from cli.commands.migrate import plan_object
from cli.commands.migrations import migration_object, print_migration
from cli.commands.watching import require_done
from cli.display.progress import describe
from cli.main import app
from cluster.errors import Refused
from cluster.messages import MigrationPlan, MigrationRow, MoveCount
from cluster.progress import Meter, Totals, overall_rate, rate_between, totals

MIB = 1 << 20


def row(state: str = "running", elapsed_s: float = 10.0, problem: str = "", **counts: tuple[int, int]) -> MigrationRow:
    listed = [MoveCount(name, files, size) for name, (files, size) in counts.items()]
    ended_ns = 5 if state in ("done", "cancelled") else 0
    return MigrationRow(7, "move", state, "s1", "s3", [b"/projects"], True, listed, problem, 1, ended_ns, elapsed_s)


def test_what_was_skipped_or_cancelled_is_not_to_be_done() -> None:
    seen = totals(row(planned=(5, 50), copying=(1, 10), done=(4, 40), failed=(2, 20), skipped=(9, 90), cancelled=(9, 90)))
    assert seen == Totals(12, 120, 4, 40, 2)
    assert seen.left_files == 6


def test_the_time_left_is_the_longer_of_files_and_bytes() -> None:
    many_small = rate_between(Totals(100, 1000, 0, 0, 0), Totals(100, 1000, 10, 900, 0), 10.0)
    assert (many_small.files, many_small.size, many_small.left_s) == (1.0, 90.0, 90.0)
    one_large = rate_between(Totals(100, 1000, 0, 0, 0), Totals(100, 1000, 90, 10, 0), 10.0)
    assert one_large.left_s == 990.0
    assert rate_between(Totals(1, 1, 0, 0, 0), Totals(1, 1, 0, 0, 0), 10.0).left_s is None
    assert rate_between(Totals(1, 1, 0, 0, 0), Totals(1, 1, 1, 1, 0), 10.0).left_s == 0.0
    assert rate_between(Totals(1, 1, 0, 0, 0), Totals(1, 1, 0, 0, 0), 0.0).left_s is None


def test_the_meter_forgets_what_was_long_ago() -> None:
    meter = Meter()
    assert meter.add(0.0, Totals(1000, 1000, 0, 0, 0)).left_s is None
    for second in range(1, 101):
        done = second if second <= 50 else 50
        rate = meter.add(float(second), Totals(1000, 1000, done, done, 0))
        if second == 50:
            assert rate.files == pytest.approx(1.0)
    assert rate.files == 0.0
    assert rate.left_s is None


def test_one_line_says_how_far_it_is() -> None:
    running = row(planned=(6, 6 * MIB), done=(3, 3 * MIB), failed=(1, MIB))
    line = describe(running, totals(running), overall_rate(running))
    assert line == "3 of 10 files, 3.0 MiB of 10.0 MiB, 307.2 KiB/s, 23 s left, 1 failed"
    done = row("done", done=(3, 3 * MIB))
    assert "left" not in describe(done, totals(done), overall_rate(done))


def test_an_end_that_was_not_wanted_is_a_failure() -> None:
    require_done(row("done"))
    with pytest.raises(Refused, match=r"2 files of migration 7 .*no luck.*godwit migrations resume 7"):
        require_done(row("failed", failed=(2, 2), problem="no luck"))
    with pytest.raises(Refused, match="cancelled"):
        require_done(row("cancelled"))


def test_the_object_for_programs_has_every_state() -> None:
    shown = migration_object(row(done=(4, 40), skipped=(1, 5)))
    assert shown["files"] == {
        "planned": 0,
        "copying": 0,
        "waiting": 0,
        "deleting": 0,
        "done": 4,
        "failed": 0,
        "skipped": 1,
        "cancelled": 0,
        "total": 5,
    }
    assert (shown["target"], shown["ended_ns"], shown["left_s"], shown["bytes_per_s"]) == ("s3", None, 0.0, 4)
    assert migration_object(row("done"))["ended_ns"] == 5
    plan = plan_object(MigrationPlan(5, 50, 1, 9, [(b"/a\xff", "no room")], 0, False))
    assert plan["problems"] == [{"path": "/a\udcff", "problem": "no room"}]


def test_people_see_the_problem(capsys: pytest.CaptureFixture[str]) -> None:
    print_migration(row("failed", failed=(1, 10), done=(2, 20), problem="copy, volume 3: no luck"))
    printed = capsys.readouterr().out
    assert "copy, volume 3: no luck" in printed
    assert "2 of 3 files" in printed
    assert "/projects" in printed


@pytest.mark.parametrize(
    "arguments",
    [
        ("migrate", "/tmp"),
        ("migrate", "--from", "s1", "--to", "s3"),
        ("migrate", "/tmp", "--from", "s1"),
        ("migrate", "/tmp", "--from", "s1", "--to", "s3", "--dry-run", "--watch"),
        ("migrations", "pause"),
        ("migrations", "show", "0"),
        ("migrations", "show", "1", "--state", "lost"),
        ("drain",),
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, arguments, prog_name="godwit")
    assert done.exit_code == 2, done.output


def test_the_commands_exist() -> None:
    group = typer.main.get_command(app)
    assert {"migrate", "migrations", "drain"} <= set(getattr(group, "commands", {}))
