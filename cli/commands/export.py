"""`godwit export`: a volume's files as a tree, for the day when nothing else is left, or somebody leaves."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from cli import exits
from cli.display.live import interruptible
from cli.display.render import as_bytes, print_facts, print_json
from cli.network.target import JsonOption
from cluster.volume.layout import VolumeLayout
from cluster.volume.tree import LOST, Exported, Outcome, count_objects, export_tree, unattended

FAILURES_SHOWN = 20

VolumeArgument = Annotated[
    Path, typer.Argument(metavar="VOLUME", help="A volume's directory, as in [agent] volumes.", show_default=False)
]


def export(
    volume: VolumeArgument,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the tree is made.", show_default=False)],
    copy: Annotated[
        bool, typer.Option("--copy", help="Copy the files, also to another file system, and leave the volume as it is.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a readable tree of what a volume holds. By hard links, without any other process, catalog or network.

    Files lie under their last known paths with their modes, owners and times; set-id bits are left out. What has no known path
    is in DIR/lost+found. Directories without files, links, extended attributes and ACLs are in the catalog only: see godwit db
    backup. Several volumes may be exported to one DIR: of each file the newest version stays. It may be repeated, and goes on
    after an interruption. The volume's agent must be stopped.

    \b
    Examples:
      godwit export /srv/godwit/vol1 /srv/godwit/tree
      godwit export /media/disk-of-s2 /home/saved --copy
    """
    layout = VolumeLayout(volume.absolute())
    outcomes: Counter[Outcome] = Counter()
    size, failures = 0, list[Exported]()
    with interruptible("interrupted; what is there is whole, and the same command goes on"), unattended(layout):
        done = export_tree(layout, directory, copies=copy)
        for one in done if quiet or as_json else _tracked(done, layout):
            outcomes[one.outcome] += 1
            if one.outcome is Outcome.FAILED:
                failures.append(one)
            else:
                size += one.size
    if as_json:
        print_json({**{str(outcome): outcomes[outcome] for outcome in Outcome}, "bytes": size})
    else:
        print_facts(_facts(outcomes, size, directory))
    for one in failures[:FAILURES_SHOWN]:
        sys.stderr.write(f"godwit: {one.path}: {one.why}\n")
    if failures:
        sys.stderr.write(f"godwit: {len(failures)} of {sum(outcomes.values())} objects could not be exported\n")
        raise typer.Exit(exits.FAILURE)


def _tracked(done: Iterator[Exported], layout: VolumeLayout) -> Iterable[Exported]:
    """With a bar on a terminal. Only there all objects are counted first."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return done
    return track(done, description="exporting", total=count_objects(layout), console=console, transient=True)


def _facts(outcomes: Counter[Outcome], size: int, directory: Path) -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [
        ("files", f"{sum(outcomes.values()) - outcomes[Outcome.FAILED]}, {as_bytes(size)}"),
        ("made", outcomes[Outcome.MADE]),
    ]
    if outcomes[Outcome.NAMELESS]:
        facts.append(("without a path", f"{outcomes[Outcome.NAMELESS]}, in {directory / LOST}"))
    if outcomes[Outcome.REPLACED]:
        facts.append(("newer than there", outcomes[Outcome.REPLACED]))
    if outcomes[Outcome.THERE]:
        facts.append(("there already", outcomes[Outcome.THERE]))
    return facts
