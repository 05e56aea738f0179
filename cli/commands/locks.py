"""`godwit locks …`: who has locked what, and who waits for it."""

from pathlib import Path
from typing import Annotated

import typer

from cli.display.render import as_age, as_shown, as_text, print_json, print_line, print_table
from cli.network.ask import talk
from cli.network.completion import complete_server
from cli.network.names import find_inode
from cli.network.target import DEFAULT_TIMEOUT_S, JsonOption, RootOption, TimeoutOption, find_target
from cluster.messages import LOCK_END, ListLocks, LockRow, LockRows
from cluster.rpc.conversation import Asker

app = typer.Typer(
    help="The locks of processes: flock(2) for whole files, record locks (fcntl, lockf) for ranges of bytes.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def locks() -> None:
    pass


@app.command("ls")
def list_locks(
    path: Annotated[Path | None, typer.Argument(metavar="[PATH]", help="Only locks of this file.", show_default=False)] = None,
    server: Annotated[
        str,
        typer.Option(
            "--server",
            metavar="NAME",
            autocompletion=complete_server,
            help="Only what processes on this server have or want.",
            show_default=False,
        ),
    ] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most so many locks.")] = 1000,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """List who has locked what, and who waits for it, for each file in the order in which they came.

    \b
    Examples:
      godwit locks ls
      godwit locks ls /mnt/godwit/mail/inbox
      godwit locks ls --server s2 --json
    """
    target = find_target(root)

    async def look(asker: Asker) -> LockRows:
        ino = 0 if path is None else await find_inode(asker, target, path, None)
        return await asker(ListLocks(server, ino, limit))

    answer = talk(target, timeout, look)
    if as_json:
        print_json({"locks": [lock_object(row) for row in answer.locks], "total": answer.total})
        return
    if answer.locks:
        print_locks(answer.locks)
    if answer.total > len(answer.locks):
        print_line(f"… and {answer.total - len(answer.locks)} more (--limit)")
    print_line(f"{answer.total or 'no'} lock{'' if answer.total == 1 else 's'}")


def print_locks(rows: list[LockRow]) -> None:
    """One line for each lock and for each who waits."""
    table = [
        (
            row.ino,
            row.holder,
            row.pid,
            kind_of(row),
            mode_of(row),
            range_of(row),
            "waits" if row.waiting else "held",
            as_age(row.since_s),
            as_shown(row.path) or "(removed)",
        )
        for row in rows
    ]
    columns = ("INODE", "SERVER", "PROCESS", "KIND", "MODE", "BYTES", "STATE", "FOR", "PATH")
    print_table(columns, table, right=("INODE", "PROCESS", "FOR"))


def kind_of(row: LockRow) -> str:
    return "flock" if row.whole else "record"


def mode_of(row: LockRow) -> str:
    return "write" if row.span.write else "read"


def range_of(row: LockRow) -> str:
    """The bytes that are locked, in words."""
    if row.whole or (row.span.start == 0 and row.span.end == LOCK_END):
        return "all"
    # Inclusive at both ends, as `/proc/locks` has them; open where the lock goes on to the end of the file.
    return f"{row.span.start}-{'' if row.span.end == LOCK_END else row.span.end}"


def lock_object(row: LockRow) -> dict[str, object]:
    """A lock for JSON; see docs/cli.md."""
    return {
        "ino": row.ino,
        "path": as_text(row.path),
        "holder": row.holder,
        "pid": row.pid,
        "kind": kind_of(row),
        "mode": mode_of(row),
        "start": row.span.start,
        # LOCK_END is a number of the wire (the greatest offset), which means nothing to people.
        "end": None if row.span.end == LOCK_END else row.span.end,
        "waiting": row.waiting,
        "for_s": round(row.since_s, 2),
    }
