"""`godwit migrate`: moves files from one server to another."""

import secrets
from pathlib import Path
from typing import Annotated

import typer

from cli.commands.migrations import finish
from cli.display.render import as_bytes, as_shown, as_text, print_facts, print_json, print_line
from cli.network.ask import talk
from cli.network.completion import complete_server
from cli.network.names import find_inode
from cli.network.target import DEFAULT_TIMEOUT_S, JsonOption, RootOption, Target, TimeoutOption, find_target, split_at_mount
from cluster.messages import MigrationPlan, MigrationRow, PlanMigration, StartMigration
from cluster.rpc.conversation import Asker

TOKEN_BITS = 61  # fits a signed 64-bit column; negative ones are drawn by managers, for drains

WatchOption = Annotated[bool, typer.Option("--watch", help="Show how far it is, until it is over.")]


def migrate(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and directories on the network's mounts.")],
    source: Annotated[
        str, typer.Option("--from", metavar="SERVER", autocompletion=complete_server, help="The server that the files leave.")
    ],
    destination: Annotated[
        str, typer.Option("--to", metavar="SERVER", autocompletion=complete_server, help="The server that they go to.")
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be moved, and what cannot be.")] = False,
    watch: WatchOption = False,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Move files from one server to another. By copy, confirmation and deletion, in the background, while they are used.

    What has no copy on the source stays as it is, and so does what is created below a directory after it was looked at.

    \b
    Examples:
      godwit migrate /mnt/godwit/projects --from s1 --to s3 --dry-run
      godwit migrate /mnt/godwit/projects --from s1 --to s3 --watch
    """
    if dry_run and watch:
        raise typer.BadParameter("--dry-run leaves nothing to watch", param_hint="--watch")
    target = find_target(root)
    if dry_run:
        _show_plan(talk(target, timeout, lambda asker: _dry_run(asker, target, paths, source, destination)), as_json)
        return
    # Drawn once: a request that is repeated after a lost answer finds the migration that it has started. 0 is none.
    token = secrets.randbits(TOKEN_BITS) + 1

    async def order(asker: Asker) -> MigrationRow:
        inodes = [await find_inode(asker, target, path, None) for path in paths]
        # As the network has them: what people typed means something on this machine only.
        names = [_name_of(path, target) for path in paths]
        return await asker(StartMigration(inodes, names, source, destination, token))

    finish(target, timeout, talk(target, timeout, order), watching=watch, as_json=as_json)


def _name_of(path: Path, target: Target) -> bytes:
    _mount, names = split_at_mount(path, target.mounts)
    return b"/" + b"/".join(names)


async def _dry_run(asker: Asker, target: Target, paths: list[Path], source: str, destination: str) -> MigrationPlan:
    inodes = [await find_inode(asker, target, path, None) for path in paths]
    return await asker(PlanMigration(inodes, source, destination))


def plan_object(plan: MigrationPlan) -> dict[str, object]:
    """What would be moved for JSON; see docs/cli.md."""
    return {
        "files": plan.files,
        "bytes": plan.size,
        "in_use": plan.in_use,
        "problem_files": plan.problem_files,
        "problem_bytes": plan.problem_size,
        "problems": [{"path": as_text(path), "problem": problem} for path, problem in plan.problems],
        "truncated": plan.truncated,
    }


def _show_plan(plan: MigrationPlan, as_json: bool) -> None:
    if as_json:
        print_json({"plan": plan_object(plan)})
        return
    print_facts(
        [
            ("to move", f"{plan.files} files, {as_bytes(plan.size)}" + (", and more" if plan.truncated else "")),
            ("open for writing", f"{plan.in_use} of them, which wait until they are closed"),
            ("cannot be moved", f"{plan.problem_files} files, {as_bytes(plan.problem_size)}"),
        ]
    )
    for path, problem in plan.problems:
        print_line(f"  {as_shown(path)}: {problem}")
    # Files that cannot be moved are counted to the end, and named up to a limit.
    if plan.problem_files > len(plan.problems):
        print_line(f"  … and {plan.problem_files - len(plan.problems)} more")
