"""`godwit queue …`: the copies and deletions that agents have yet to do."""

import time
from enum import StrEnum
from typing import Annotated

import typer

from cli.display.render import as_age, as_bytes, as_shown, as_text, print_facts, print_json, print_line, print_table
from cli.network.ask import ask
from cli.network.completion import complete_server
from cli.network.target import DEFAULT_TIMEOUT_S, JsonOption, RootOption, TimeoutOption, find_target
from cluster.errors import Refused
from cluster.messages import ListTasks, RetryTasks, TaskRow, TaskState

app = typer.Typer(
    help="The copies and deletions that agents have yet to do.\n\nA task is waiting, claimed (an agent works "
    "on it), deferred (it failed and will be tried again) or dead (given up: see queue show, then queue retry).",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class State(StrEnum):
    """What `--state` takes."""

    WAITING = TaskState.WAITING
    DEFERRED = TaskState.DEFERRED
    CLAIMED = TaskState.CLAIMED
    DEAD = TaskState.DEAD


@app.command("ls")
def list_tasks(
    server: Annotated[
        str,
        typer.Option(
            "--server", metavar="NAME", autocompletion=complete_server, help="Only this server's queue.", show_default=False
        ),
    ] = "",
    state: Annotated[State | None, typer.Option("--state", help="Only tasks in this state.", show_default=False)] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="At most so many tasks.")] = 1000,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """List tasks. An empty list means that every copy is made.

    \b
    Examples:
      godwit queue ls --state dead
      godwit queue ls --server s2 --json
    """
    answer = ask(find_target(root), timeout, ListTasks(server, state.value if state else "", limit))
    if as_json:
        print_json({"tasks": [task_object(task) for task in answer.tasks], "total": answer.total})
        return
    if not answer.tasks:
        print_line("no tasks")
        return
    print_tasks(answer.tasks)
    if answer.total > len(answer.tasks):
        print_line(f"… and {answer.total - len(answer.tasks)} more (--limit)")


@app.command("show")
def show_task(
    task: Annotated[int, typer.Argument(metavar="TASK", min=1, help="The number from queue ls.")],
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Show one task, with its last error.

    Example: godwit queue show 17
    """
    answer = ask(find_target(root), timeout, ListTasks(task=task))
    if not answer.tasks:
        # An empty answer to one number is an error; to a listing it is good news.
        raise Refused(f"there is no task {task} (a task that is done is forgotten)")
    row = answer.tasks[0]
    if as_json:
        print_json({"task": task_object(row)})
        return
    print_facts(
        [
            ("task", row.task),
            ("what", f"{row.operation} inode {row.ino}, version {row.version}, {as_bytes(row.size)}"),
            # A deletion may be of a file that has no name any more.
            ("path", as_shown(row.path) or "-"),
            ("where", f"{row.server}, volume {row.volume}"),
            ("state", row.state),
            ("age", _age(row)),
            ("attempts", row.attempts),
            ("last error", row.error or "-"),
        ]
    )


@app.command("retry")
def retry_tasks(
    task: Annotated[
        int | None, typer.Argument(metavar="[TASK]", min=1, help="The number from queue ls.", show_default=False)
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All dead and deferred tasks.")] = False,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Let tasks be tried again. Dead and deferred ones, at once, with no attempts counted.

    \b
    Examples:
      godwit queue retry 17
      godwit queue retry --all
    """
    # `retry` without a number would be a dangerous default.
    if (task is None) != everything:
        raise typer.BadParameter("give either a TASK or --all", param_hint="TASK")
    answer = ask(find_target(root), timeout, RetryTasks(task or 0))
    if as_json:
        print_json({"retried": answer.count})
        return
    if task is not None and answer.count == 0:
        raise Refused(f"there is no dead or deferred task {task}")
    print_line(f"{answer.count} task{'' if answer.count == 1 else 's'} will be tried again")


def print_tasks(tasks: list[TaskRow]) -> None:
    rows = [
        (
            row.task,
            row.server,
            row.operation,
            row.state,
            # Failed ones; a task that is at work for the first time has none.
            row.attempts,
            _age(row),
            as_bytes(row.size),
            as_shown(row.path) or f"inode {row.ino}",
        )
        for row in tasks
    ]
    columns = ("TASK", "SERVER", "WHAT", "STATE", "TRIES", "AGE", "SIZE", "PATH")
    print_table(columns, rows, right=("TASK", "TRIES", "AGE", "SIZE"))


def task_object(row: TaskRow) -> dict[str, object]:
    """A task for JSON; see docs/cli.md."""
    return {
        "task": row.task,
        "server": row.server,
        "operation": row.operation,
        "state": row.state,
        "ino": row.ino,
        "path": as_text(row.path),
        "volume": row.volume,
        "version": row.version,
        "size": row.size,
        "attempts": row.attempts,
        "error": row.error,
        "queued_ns": row.queued_ns,  # wall clock of the manager that queued it
    }


def _age(row: TaskRow) -> str:
    # Two wall clocks, this one and the manager's: a difference must not show as a negative age.
    return as_age(max(0.0, time.time() - row.queued_ns / 1e9))
