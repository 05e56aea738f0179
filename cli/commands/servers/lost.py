"""`godwit servers lost`: gives up a server that will not come back."""

from typing import Annotated

import typer

from cli.display.render import as_bytes, as_shown, as_text, print_facts, print_json, print_line
from cli.network.ask import ask
from cli.network.completion import NameArgument
from cli.network.target import DEFAULT_TIMEOUT_S, JsonOption, RootOption, TimeoutOption, find_target
from cluster.messages import LosePlan, LoseServer


def lost(
    name: NameArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen to its files.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also if it is silent only, and not down yet.")] = False,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Declare a server lost. Files whose newest content only it has fall back to the newest that others have.

    Its processes are refused from then on. If it comes back after all (servers add), what it alone had is kept beside the files
    under conflict names. Nothing is deleted.

    \b
    Examples:
      godwit servers lost s3 --dry-run
      godwit servers lost s3
    """
    if as_json and not (yes or dry_run):
        raise typer.BadParameter("--json needs --yes or --dry-run: it does not ask", param_hint="--json")
    target = find_target(root)
    if not as_json and not dry_run and not yes:
        # Shown before the question: whoever answers knows which files fall back.
        print_plan(ask(target, timeout, LoseServer(name, dry_run=True, force=force)))
        typer.confirm(f"declare {name} lost?", abort=True)
    # Planned anew: what is reported is what was done, not what was shown.
    plan = ask(target, timeout, LoseServer(name, dry_run, force))
    if as_json:
        print_json({**plan_object(plan), "dry_run": dry_run})
        return
    if dry_run or yes:
        print_plan(plan)
    if not dry_run:
        print_line(f"{name} is lost: its files fall back in the background, see godwit servers show {name}")


def plan_object(plan: LosePlan) -> dict[str, object]:
    """What becomes of the files of a lost server for JSON; see docs/cli.md."""
    return {
        "server": plan.server,
        "whole": {"files": plan.whole, "bytes": plan.whole_bytes},
        "older": {"files": plan.older, "bytes": plan.older_bytes},
        "only": {"files": plan.only, "bytes": plan.only_bytes, "paths": [as_text(path) for path in plan.paths]},
    }


def print_plan(plan: LosePlan) -> None:
    """What becomes of the files, for people."""
    print_facts(
        [
            ("home elsewhere", f"{plan.whole} files, {as_bytes(plan.whole_bytes)}: others have their content"),
            ("fall back", f"{plan.older} files, {as_bytes(plan.older_bytes)}: to an older content that others have"),
            (f"only on {plan.server}", f"{plan.only} files, {as_bytes(plan.only_bytes)}: they stay, and cannot be opened"),
        ]
    )
    for path in plan.paths:
        print_line(f"  {as_shown(path)}")
    # The manager names a limited number of them.
    if plan.only > len(plan.paths):
        print_line(f"  … and {plan.only - len(plan.paths)} more")
