"""`godwit files`: which files are not as they should be."""

import time
from typing import Annotated

import typer

from cli.display.render import as_age, as_shown, as_text, print_json, print_line, print_table
from cli.network.ask import ask
from cli.network.target import DEFAULT_TIMEOUT_S, JsonOption, RootOption, TimeoutOption, find_target
from cluster.messages import ListBelowPolicy


def files(
    below_policy: Annotated[bool, typer.Option("--below-policy", help="Files with fewer current copies than wanted.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="At most so many files.")] = 1000,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """List files that are not as they should be. Those below their policy, with the reason, since when, and their paths.

    \b
    Examples:
      godwit files --below-policy
      godwit files --below-policy --limit 20 --json
    """
    if not below_policy:
        raise typer.BadParameter("say which files: --below-policy", param_hint="--below-policy")
    answer = ask(find_target(root), timeout, ListBelowPolicy(limit))
    if as_json:
        rows = [{"ino": r.ino, "path": as_text(r.path), "reason": r.reason, "since_ns": r.since_ns} for r in answer.files]
        print_json({"files": rows, "total": answer.total})
        return
    if not answer.files:
        print_line("no file is below its policy")
        return
    now = time.time()  # wall clock, as `since_ns`
    shown = [(r.ino, as_age(max(0.0, now - r.since_ns / 1e9)), r.reason, as_shown(r.path) or "-") for r in answer.files]
    print_table(("INODE", "SINCE", "WHY", "PATH"), shown, right=("INODE", "SINCE"))
    if answer.total > len(answer.files):
        print_line(f"… and {answer.total - len(answer.files)} more (--limit)")
