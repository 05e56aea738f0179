"""`godwit policy …`: how many copies the files below a directory get, and how names there may be changed."""

import sys
from typing import Annotated

import typer

from cli.display.render import as_shown, as_text, print_facts, print_json, print_table
from cli.network.ask import ask, talk
from cli.network.names import InoOption, PathArgument, find_inode, require_one
from cli.network.target import DEFAULT_TIMEOUT_S, JsonOption, RootOption, TimeoutOption, find_target
from cluster.messages import GetPolicy, ListPolicies, NamesPolicy, PolicyRow, SetPolicy
from cluster.rpc.conversation import Asker

app = typer.Typer(
    help="How many copies the files below a directory get, and how names there may be changed.\n\nA policy is set on a "
    "directory, and inherited by everything below that has none of its own.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Copies = Annotated[
    int | None,
    typer.Option("--copies", min=1, max=64, metavar="N", help="Replicas of each file, the home's included.", show_default=False),
]
SyncCopies = Annotated[
    int | None,
    typer.Option("--sync-copies", min=0, max=64, metavar="N", help="fsync waits for so many (0: for none).", show_default=False),
]
Names = Annotated[
    NamesPolicy | None,
    typer.Option(
        "--names",
        help="held, the default: a mount that is alone in a directory may change names there by itself, and tell the manager "
        "afterwards. "
        "through: each change reaches the manager before it is acknowledged.",
        show_default=False,
    ),
]


@app.command("set")
def set_policy(
    path: PathArgument = None,
    copies: Copies = None,
    sync_copies: SyncCopies = None,
    names: Names = None,
    inherit: Annotated[bool, typer.Option("--inherit", help="Take the directory's own policy away.")] = False,
    ino: InoOption = None,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Set a directory's policy. What is not given stays as it is; files below are brought to it in the background.

    \b
    Examples:
      godwit policy set /mnt/godwit/photos --copies 3
      godwit policy set /mnt/godwit/mail --copies 2 --sync-copies 2
      godwit policy set /mnt/godwit/mail --names through
      godwit policy set /mnt/godwit/scratch --inherit
    """
    require_one(path, ino)
    # Exactly one of both kinds: what is inherited has nothing of its own.
    if inherit == (copies is not None or sync_copies is not None or names is not None):
        raise typer.BadParameter("give --copies, --sync-copies or --names, or else --inherit", param_hint="--copies")
    target = find_target(root)

    async def change(asker: Asker) -> PolicyRow:
        inode = await find_inode(asker, target, path, ino)
        # The next policy above is in force at once; nothing is copied from it.
        if inherit:
            return await asker(SetPolicy(inode, clear=True))
        present = await asker(GetPolicy(inode))
        wanted = present.copies if copies is None else copies
        # fsync cannot wait for more copies than there shall be.
        waited = min(present.sync_copies, wanted) if sync_copies is None else sync_copies
        return await asker(SetPolicy(inode, wanted, waited, names=names))

    row = talk(target, timeout, change)
    _warn(row)
    _show(row, as_json)


@app.command("show")
def show_policy(
    path: PathArgument = None,
    ino: InoOption = None,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Show the policy in force. For a file or directory, and where it comes from.

    Example: godwit policy show /mnt/godwit/photos/2024
    """
    require_one(path, ino)
    target = find_target(root)

    async def look(asker: Asker) -> PolicyRow:
        return await asker(GetPolicy(await find_inode(asker, target, path, ino)))

    _show(talk(target, timeout, look), as_json)


@app.command("ls")
def list_policies(root: RootOption = None, timeout: TimeoutOption = DEFAULT_TIMEOUT_S, as_json: JsonOption = False) -> None:
    """List all policies. The directories that have one of their own.

    Example: godwit policy ls --json
    """
    answer = ask(find_target(root), timeout, ListPolicies())
    if as_json:
        print_json({"policies": [policy_object(row) for row in answer.policies]})
        return
    rows = [(as_shown(row.path), row.copies, row.sync_copies, names_text(row)) for row in answer.policies]
    print_table(("DIRECTORY", "COPIES", "SYNC", "NAMES"), rows, right=("COPIES", "SYNC"))


def policy_object(row: PolicyRow) -> dict[str, object]:
    """A policy for JSON; see docs/cli.md."""
    return {
        "ino": row.ino,
        "path": as_text(row.path),
        "copies": row.copies,
        "sync_copies": row.sync_copies,
        "names": row.names,
        "names_path": as_text(row.names_path) if row.names_path else None,
        "servers": row.servers,
    }


def names_text(row: PolicyRow) -> str:
    """How names may be changed, and where that comes from unless it is said where the policy is set."""
    if not row.names_path:
        return f"{row.names} (default)"
    return str(row.names) if row.names_path == row.path else f"{row.names} (from {as_shown(row.names_path)})"


def _warn(row: PolicyRow) -> None:
    if row.copies > row.servers:
        have = "1 server has volumes" if row.servers == 1 else f"{row.servers} servers have volumes"
        # On stderr: with --json nothing but JSON belongs on stdout.
        sys.stderr.write(
            f"godwit: {row.copies} copies are wanted, and {have}: files below the policy stay at risk "
            "(godwit files --below-policy), or have copies on one server, until there are more (godwit servers add)\n"
        )


def _show(row: PolicyRow, as_json: bool) -> None:
    if as_json:
        print_json({"policy": policy_object(row)})
        return
    print_facts(
        [
            ("copies", row.copies),
            ("sync copies", row.sync_copies),
            ("names", names_text(row)),
            ("set on", as_shown(row.path)),
        ]
    )
