"""`godwit migrations …`: what is being moved from server to server, and what was."""

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

import typer

from cli.commands.watching import find_migration, require_done, watch
from cli.display.progress import describe
from cli.display.render import as_age, as_bytes, as_shown, as_text, print_facts, print_json, print_line, print_table
from cli.network.ask import ask, talk
from cli.network.target import DEFAULT_TIMEOUT_S, JsonOption, RootOption, Target, TimeoutOption, find_target
from cluster.messages import (
    ChangeMigration,
    ListMigrations,
    ListMoves,
    MigrationChange,
    MigrationKind,
    MigrationRow,
    MoveRow,
    MoveRows,
    MoveState,
)
from cluster.progress import NOT_TO_DO, overall_rate, totals
from cluster.rpc.conversation import Asker

app = typer.Typer(
    help="What is being moved from server to server, and what was.\n\nA migration is planning, running, paused, failed (what "
    "could be moved is; resume tries the rest again), done or cancelled.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Number = Annotated[int, typer.Argument(metavar="MIGRATION", min=1, help="The number from migrations ls.")]
MOVES_SHOWN = 20  # failed moves: more are rarely of more than a few kinds


class State(StrEnum):
    """What `--state` takes."""

    # An enumeration of its own: typer takes the values for --state, in this order.
    PLANNED = MoveState.PLANNED
    COPYING = MoveState.COPYING
    WAITING = MoveState.WAITING
    DELETING = MoveState.DELETING
    DONE = MoveState.DONE
    FAILED = MoveState.FAILED
    SKIPPED = MoveState.SKIPPED
    CANCELLED = MoveState.CANCELLED


@app.command("ls")
def list_migrations(
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most so many, the newest first.")] = 100,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """List migrations. The newest first, with how far each is.

    Example: godwit migrations ls
    """
    answer = ask(find_target(root), timeout, ListMigrations(limit=limit))
    if as_json:
        print_json({"migrations": [migration_object(row) for row in answer.migrations]})
        return
    if not answer.migrations:
        print_line("no migrations")
        return
    columns = ("MIGRATION", "WHAT", "STATE", "FROM", "TO", "FILES", "SIZE", "FAILED", "TIME", "PATHS")
    rows = [_list_row(row) for row in answer.migrations]
    print_table(columns, rows, right=("MIGRATION", "FILES", "SIZE", "FAILED", "TIME"))


def _list_row(row: MigrationRow) -> tuple[object, ...]:
    done = totals(row)
    return (
        row.migration,
        row.kind,
        row.state,
        row.source,
        row.target or "-",  # a drain has none: placement chooses for each file
        # Of those that are planned: the second number grows until planning is over.
        f"{done.done_files}/{done.files}",
        f"{as_bytes(done.done_size)} of {as_bytes(done.size)}",
        done.failed_files,
        as_age(row.elapsed_s),
        _paths(row),
    )


def _paths(row: MigrationRow) -> str:
    # A newer manager may have kinds that this program does not know.
    return _CHOSEN[row.kind](row) if row.kind in _CHOSEN else row.kind


# What each kind of migration moves, as people read it.
_CHOSEN: dict[str, Callable[[MigrationRow], str]] = {
    MigrationKind.MOVE: lambda row: " ".join(as_shown(path) for path in row.paths),
    MigrationKind.DRAIN: lambda _row: "everything",
}


@app.command("show")
def show_migration(
    migration: Number,
    state: Annotated[
        State | None, typer.Option("--state", help="List the moves in this state, not the failed ones.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, max=10_000, help="At most so many moves.")] = MOVES_SHOWN,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Show one migration. How far it is, and which files could not be moved.

    \b
    Examples:
      godwit migrations show 7
      godwit migrations show 7 --state waiting --json
    """

    async def look(asker: Asker) -> tuple[MigrationRow, MoveRows]:
        row = await find_migration(asker, migration)
        return row, await asker(ListMoves(migration, (state or State.FAILED).value, limit))

    row, moves = talk(find_target(root), timeout, look)
    if as_json:
        listed = [move_object(move) for move in moves.moves]
        print_json({"migration": migration_object(row), "moves": listed, "total": moves.total})
        return
    print_migration(row)
    if moves.moves:
        print_line()
        print_moves(moves)


def print_migration(row: MigrationRow) -> None:
    """The facts of a migration, one a line."""
    done, rate = totals(row), overall_rate(row)
    facts: list[tuple[str, object]] = [
        ("migration", f"{row.migration}, {row.kind}: {_paths(row)}"),
        ("from, to", f"{row.source} to {row.target or 'wherever there is room'}"),
        ("state", row.state if row.planned else f"{row.state}, still planning"),
        ("moved", describe(row, done, rate)),
        ("time", as_age(row.elapsed_s)),
    ]
    # Only states that some move is in.
    facts += [(count.state, f"{count.files} files, {as_bytes(count.size)}") for count in row.counts]
    # Of one move: `show` lists all that failed.
    if row.problem:
        facts.append(("problem", row.problem))
    print_facts(facts)


def print_moves(moves: MoveRows) -> None:
    rows = [
        (
            move.state,
            f"{move.source_server}, volume {move.source}",
            f"{move.target_server}, volume {move.target}" if move.target else "-",
            as_bytes(move.size),
            # A file that was removed meanwhile has no path.
            as_shown(move.path) or f"inode {move.ino}",
            move.error or "-",
        )
        for move in moves.moves
    ]
    print_table(("STATE", "FROM", "TO", "SIZE", "PATH", "WHY"), rows, right=("SIZE",))
    if moves.total > len(rows):
        print_line(f"… and {moves.total - len(rows)} more (--limit)")


@app.command("watch")
def watch_migration(
    migration: Number, root: RootOption = None, timeout: TimeoutOption = DEFAULT_TIMEOUT_S, as_json: JsonOption = False
) -> None:
    """Watch a migration until it is over. Ctrl-C ends the watching, not the migration.

    Example: godwit migrations watch 7
    """
    target = find_target(root)
    _end_watch(watch(target, timeout, migration, quiet=as_json), as_json)


def _end_watch(row: MigrationRow, as_json: bool) -> None:
    if as_json:
        print_json({"migration": migration_object(row)})
    require_done(row)


@app.command("pause")
def pause_migration(
    migration: Number, root: RootOption = None, timeout: TimeoutOption = DEFAULT_TIMEOUT_S, as_json: JsonOption = False
) -> None:
    """Pause a migration. What agents are working on is finished, nothing new is begun.

    Example: godwit migrations pause 7
    """
    _change(root, timeout, migration, MigrationChange.PAUSE, as_json)


@app.command("resume")
def resume_migration(
    migration: Number, root: RootOption = None, timeout: TimeoutOption = DEFAULT_TIMEOUT_S, as_json: JsonOption = False
) -> None:
    """Let a migration go on. One that is paused, or files that could not be moved.

    Example: godwit migrations resume 7
    """
    _change(root, timeout, migration, MigrationChange.RESUME, as_json)


@app.command("cancel")
def cancel_migration(
    migration: Number, root: RootOption = None, timeout: TimeoutOption = DEFAULT_TIMEOUT_S, as_json: JsonOption = False
) -> None:
    """End a migration where it is. What has moved stays moved; a server that was to be drained takes new files again.

    Example: godwit migrations cancel 7
    """
    _change(root, timeout, migration, MigrationChange.CANCEL, as_json)


def _change(root: RootOption, timeout_s: float, number: int, action: str, as_json: bool) -> None:
    row = ask(find_target(root), timeout_s, ChangeMigration(number, action))
    if as_json:
        print_json({"migration": migration_object(row)})
    else:
        print_line(f"migration {row.migration} is {row.state}")


def finish(target: Target, timeout_s: float, row: MigrationRow, *, watching: bool, as_json: bool) -> None:
    """The end of a command that has started a migration: says so, or watches it."""
    if watching:
        _end_watch(watch(target, timeout_s, row.migration, quiet=as_json), as_json)
    elif as_json:
        print_json({"migration": migration_object(row)})
    else:
        print_line(f"migration {row.migration} is {row.state}; look at it with: godwit migrations watch {row.migration}")


def migration_object(row: MigrationRow) -> dict[str, object]:
    """A migration for JSON; see docs/cli.md."""
    done, rate = totals(row), overall_rate(row)
    # All states, so that programs need not ask which keys there are.
    files = {state.value: 0 for state in State} | {count.state: count.files for count in row.counts}
    sizes = {state.value: 0 for state in State} | {count.state: count.size for count in row.counts}
    over = row.ended_ns != 0
    return {
        "migration": row.migration,
        "kind": row.kind,
        "state": row.state,
        "source": row.source,
        "target": row.target or None,
        "paths": [as_text(path) for path in row.paths],
        "planned": row.planned,
        # With what was skipped or cancelled, which `totals` leaves out: the sum of all states.
        "files": {**files, "total": done.files + sum(files[state] for state in NOT_TO_DO)},
        "bytes": {**sizes, "total": done.size + sum(sizes[state] for state in NOT_TO_DO)},
        "problem": row.problem,
        "created_ns": row.created_ns,
        "ended_ns": row.ended_ns if over else None,
        "elapsed_s": round(row.elapsed_s, 1),
        "files_per_s": round(rate.files, 1),
        "bytes_per_s": round(rate.size),
        # null: nothing has been moved yet, so there is no rate.
        "left_s": 0.0 if over else None if rate.left_s is None else round(rate.left_s, 1),
    }


def move_object(move: MoveRow) -> dict[str, object]:
    """A move for JSON; see docs/cli.md."""
    return {
        "ino": move.ino,
        "path": as_text(move.path),
        "source": move.source,
        "source_server": move.source_server,
        "target": move.target or None,
        "target_server": move.target_server or None,
        "state": move.state,
        "size": move.size,
        "error": move.error,
        "changed_ns": move.changed_ns,
    }
