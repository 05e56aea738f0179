"""`godwit leases …`: which server may use or cache which file, in which way, and for how long."""

from pathlib import Path
from typing import Annotated

import typer

from cli.display.render import as_age, as_shown, as_text, print_json, print_line, print_table
from cli.network.ask import talk
from cli.network.completion import complete_server
from cli.network.names import find_inode
from cli.network.target import DEFAULT_TIMEOUT_S, JsonOption, RootOption, TimeoutOption, find_target
from cluster.leases import SHARED
from cluster.messages import LeaseCounts, LeaseRow, LeaseRows, ListLeases
from cluster.rpc.conversation import Asker

app = typer.Typer(
    help="The leases: which server may use or cache which file, how, and for how long.\n\nModes: read; write (alone, at the "
    "file's home); shared (somebody else uses it, too, and one of both writes: nothing of it is cached); "
    "alone (its holder changes it by itself, and whoever looks waits until it was called back).",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def leases() -> None:
    pass


@app.command("ls")
def list_leases(
    path: Annotated[Path | None, typer.Argument(metavar="[PATH]", help="Only leases of this file.", show_default=False)] = None,
    server: Annotated[
        str,
        typer.Option(
            "--server", metavar="NAME", autocompletion=complete_server, help="Only what this server holds.", show_default=False
        ),
    ] = "",
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most so many leases.")] = 1000,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """List the leases that are in force. Those that end first at the top, and what has happened since this manager is in office.

    \b
    Examples:
      godwit leases ls
      godwit leases ls /mnt/godwit/projects/plan.txt
      godwit leases ls --server s2 --json
    """
    target = find_target(root)

    async def look(asker: Asker) -> LeaseRows:
        ino = 0 if path is None else await find_inode(asker, target, path, None)  # 0: of all inodes
        return await asker(ListLeases(server, ino, limit))

    answer = talk(target, timeout, look)
    if as_json:
        print_json(leases_object(answer))
        return
    if answer.leases:
        print_leases(answer.leases)
    # Only when the manager has left some out: the count below is of all.
    if answer.total > len(answer.leases):
        print_line(f"… and {answer.total - len(answer.leases)} more (--limit)")
    print_line(f"{answer.total or 'no'} lease{'' if answer.total == 1 else 's'}, access time {answer.access_s:g} s")
    print_line(f"in this term: {as_sentence(answer.counts)}")


def as_sentence(counts: LeaseCounts) -> str:
    """What has happened to leases, in words."""
    # Each of them was a wait for the access time: worth a word only when there were any.
    waited_out = f" ({counts.waited_out} of them waited out)" if counts.waited_out else ""
    return (
        f"{counts.granted} granted, {counts.renewed} renewed, {counts.recalled} recalled{waited_out}, "
        f"{counts.given_back} given back, {counts.expired} expired, {counts.refused} refused; "
        f"{counts.requests} requests of mounts"
    )


def is_cached(row: LeaseRow) -> bool:
    """Whether the holder may answer from its caches: whatever is not shared."""
    # Somebody else uses a shared inode, too: its holder must ask each time.
    return row.mode != SHARED


def use_of(row: LeaseRow) -> str:
    """How the holder uses the inode, in words."""
    uses = [word for word, applies in (("open", row.is_open), ("cached", is_cached(row))) if applies]
    return ", ".join(uses) or "closed"


def print_leases(rows: list[LeaseRow]) -> None:
    """One line for each lease."""
    table = [
        (
            row.ino,
            row.holder,
            row.mode,
            use_of(row),
            as_age(row.held_s),
            # Not as an age: leases last seconds, of which tenths matter.
            f"{row.left_s:.1f} s",
            row.renewals,
            # Directories and links have no content, and so no home and no epoch.
            f"{row.home} ({row.home_volume})" if row.home_volume else "-",
            row.home_epoch or "-",
            row.version,
            # A file that is open may have lost its last name.
            as_shown(row.path) or "(removed)",
        )
        for row in rows
    ]
    columns = ("INODE", "HOLDER", "MODE", "USE", "HELD", "LEFT", "RENEWED", "HOME", "EPOCH", "VERSION", "PATH")
    print_table(columns, table, right=("INODE", "HELD", "LEFT", "RENEWED", "EPOCH", "VERSION"))


def leases_object(answer: LeaseRows) -> dict[str, object]:
    """For JSON; see docs/cli.md."""
    return {
        "leases": [lease_object(row) for row in answer.leases],
        "total": answer.total,
        "access_s": answer.access_s,
        "granted": answer.counts.granted,
        "renewed": answer.counts.renewed,
        "expired": answer.counts.expired,
        "refused": answer.counts.refused,
        "recalled": answer.counts.recalled,
        "waited_out": answer.counts.waited_out,
        "given_back": answer.counts.given_back,
        "requests": answer.counts.requests,
    }


def lease_object(row: LeaseRow) -> dict[str, object]:
    """A lease for JSON; see docs/cli.md."""
    return {
        "ino": row.ino,
        "path": as_text(row.path),
        "holder": row.holder,
        "mode": row.mode,
        "open": row.is_open,
        "cached": is_cached(row),
        "left_s": round(row.left_s, 2),
        "held_s": round(row.held_s, 2),
        "renewals": row.renewals,
        "home": row.home,
        "home_volume": row.home_volume,
        "home_epoch": row.home_epoch,
        "version": row.version,
        "serial": row.serial,  # which grant of the term: tells a renewal from a new lease
        "term": row.term,
    }
