"""`godwit volumes lost` and `remove`: a disk that will not come back."""

from typing import Annotated

import typer

from cli.commands.servers.lost import plan_object, print_plan
from cli.display.render import print_json, print_line
from cli.network.ask import ask
from cli.network.target import DEFAULT_TIMEOUT_S, JsonOption, RootOption, TimeoutOption, find_target
from cluster.messages import LoseVolume, RemoveVolume

REMOVE_TIMEOUT_S = 600.0  # the volume is forgotten replica by replica

VolumeArgument = Annotated[
    int, typer.Argument(metavar="NUMBER", min=1, help="The volume's number, as in servers ls.", show_default=False)
]


def lost(
    number: VolumeArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would happen to its files.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Declare a volume lost whose disk is out of use. Files whose newest content only it has fall back to the newest elsewhere.

    If the disk comes back after all, what it alone had is kept beside the files under conflict names. Nothing is deleted.

    \b
    Examples:
      godwit volumes lost 3 --dry-run
      godwit volumes lost 3
    """
    if as_json and not (yes or dry_run):
        raise typer.BadParameter("--json needs --yes or --dry-run: it does not ask", param_hint="--json")
    target = find_target(root)
    if not as_json and not dry_run and not yes:
        print_plan(ask(target, timeout, LoseVolume(number, dry_run=True)))
        typer.confirm(f"declare volume {number} lost?", abort=True)
    plan = ask(target, timeout, LoseVolume(number, dry_run))
    if as_json:
        print_json({**plan_object(plan), "volume": number, "dry_run": dry_run})
        return
    if dry_run or yes:
        print_plan(plan)
    if not dry_run:
        print_line(f"volume {number} is lost: its files fall back in the background; then godwit volumes remove {number}")


def remove(
    number: VolumeArgument, root: RootOption = None, timeout: TimeoutOption = REMOVE_TIMEOUT_S, as_json: JsonOption = False
) -> None:
    """Forget a volume whose disk is out of use, and that no file needs any more.

    If the disk comes back after all, what is on it is unknown to the catalog (godwit volumes unknown).

    Example: godwit volumes remove 3
    """
    answer = ask(find_target(root), timeout, RemoveVolume(number))
    if as_json:
        print_json({"volume": number, "forgotten_replicas": answer.count})
        return
    print_line(f"volume {number} is forgotten, with {answer.count} replicas that others have")
