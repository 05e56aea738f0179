"""`godwit import`: files that are on a server already become files of the network."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from cli import exits
from cli.display.live import bar, interruptible
from cli.display.render import as_bytes, as_shown, print_facts, print_json
from cli.importing.destination import check_source, choose_volume, enter, find_place, top_directory, volumes_here
from cli.importing.disk import Disk
from cli.importing.findings import Brick, Folder, Survey, Walk
from cli.importing.importer import Importer
from cli.importing.report import Report
from cli.importing.work import Destination
from cli.network.ask import talk_on
from cli.network.target import JsonOption, RootOption, TimeoutOption, find_target
from cluster.errors import Refused
from cluster.rpc.conversation import Asker
from cluster.volume.takeover import How

SHOWN = 20
TIMEOUT_S = 60.0  # of each question: a manager may change meanwhile


def import_tree(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What is to be imported, on this server.", show_default=False)],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Where it goes, on this server's mount.", show_default=False)],
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave DIR as it is: reflinks where its file system has them, else copies.")
    ] = False,
    volume: Annotated[
        Path | None,
        typer.Option("--volume", metavar="VOLUME", help="The volume of this server that gets the content.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what there is to import.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    root: RootOption = None,
    timeout: TimeoutOption = TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Bring existing files of a server into the network. Without copying them where DIR lies on a volume's file system.

    What is in DIR moves to PATH, which is made if it is missing, with attributes, ACLs, times, hard links and holes. Nothing in
    the network is overwritten: names that it has already stay on both sides and are reported. It may be repeated, and goes on
    after an interruption; at each moment a file is in DIR or in the network. Files that somebody has open for writing are left
    alone. Bricks of GlusterFS are recognized. As root.

    \b
    Examples:
      godwit import /srv/data /mnt/godwit/data --dry-run
      godwit import /srv/data /mnt/godwit/data
      godwit import /mnt/old-storage /mnt/godwit --keep
    """
    if os.geteuid() != 0:
        raise Refused("import as root: who changes owners, and works in a volume")
    target = find_target(root)
    volumes = volumes_here(target, path)
    check_source(os.fspath(directory), volumes, keep=keep)
    report = Report()
    with interruptible("interrupted; what was imported is whole, and the same command goes on"), _walking(directory) as walk:
        survey = walk.survey()

        async def work(asker: Asker) -> Destination:
            place = await find_place(asker, target, path)
            chosen = await choose_volume(asker, volumes, walk.folder.path, volume)
            if dry_run:
                return chosen
            disk = Disk(chosen, walk, survey, report, keep=keep)
            with _progress(survey, report, quiet=quiet or as_json) as progress:
                importer = Importer(asker, walk, disk, report, keep=keep, progress=progress)
                ino, is_new = await enter(asker, walk, place)
                await importer.run(top_directory(ino, place, None if is_new else await importer.listing(ino)))
            return chosen

        try:
            chosen = talk_on(target, timeout, work)
        finally:
            _show_problems(report)
    in_place = not keep and os.stat(walk.folder.path).st_dev == chosen.device
    if dry_run:
        _show_plan(survey, walk, chosen, in_place=in_place, as_json=as_json)
        return
    _show(report, as_json=as_json)
    if report.failed or report.taken or report.problems:
        raise typer.Exit(exits.FAILURE)


@contextmanager
def _walking(directory: Path) -> Iterator[Walk]:
    # Else the kernel's word that somebody wants to write a file that is being looked at would end the process.
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    folder = Folder(os.fspath(directory))
    try:
        yield Walk(folder, Brick.around(folder.path))
    finally:
        folder.close()


@contextmanager
def _progress(survey: Survey, report: Report, *, quiet: bool) -> Iterator[Callable[[], None]]:
    """Shows how far it is whenever that is called, on a terminal."""
    total = survey.files + survey.directories + survey.others
    columns = (TextColumn("importing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with bar("importing", *columns, quiet=quiet) as show:
        show(0, total)
        yield lambda: show(report.done(), total)


def _show_problems(report: Report) -> None:
    for path, why in report.problems[:SHOWN]:
        sys.stderr.write(f"godwit: {as_shown(os.fsencode(path))}: {why}\n")
    if len(report.problems) > SHOWN:
        sys.stderr.write(f"godwit: and more, {len(report.problems)} in all: --json has up to 1000\n")


def _show(report: Report, *, as_json: bool) -> None:
    if as_json:
        print_json(_object(report))
        return
    facts: list[tuple[str, object]] = [
        (str(how), f"{report.files[how]} files, {as_bytes(report.size[how])}") for how in How if report.files[how]
    ]
    numbers = {
        "further names": report.names,
        "directories": report.directories,
        "links and devices": report.others,
        "there already": report.there,
        "other file there": report.taken,
        "skipped": report.skipped,
        "failed": report.failed,
        "attributes lost": report.lost_xattrs,
        "with set-id bits": report.set_id,
    }
    facts += [(name, number) for name, number in numbers.items() if number]
    print_facts(facts or [("imported", "nothing")])
    for path, why in report.notes[:SHOWN]:
        sys.stderr.write(f"godwit: skipped {as_shown(os.fsencode(path))}: {why}\n")


def _object(report: Report) -> dict[str, object]:
    """See docs/cli.md."""
    return {
        "files": {how.name.lower(): report.files[how] for how in How},
        "bytes": {how.name.lower(): report.size[how] for how in How},
        "further_names": report.names,
        "directories": report.directories,
        "others": report.others,
        "there": report.there,
        "taken": report.taken,
        "skipped": report.skipped,
        "failed": report.failed,
        "lost_attributes": report.lost_xattrs,
        "set_id": report.set_id,
        "problems": [{"path": path, "problem": why} for path, why in report.problems],
        "notes": [{"path": path, "note": why} for path, why in report.notes],
    }


def _show_plan(survey: Survey, walk: Walk, chosen: Destination, *, in_place: bool, as_json: bool) -> None:
    if as_json:
        plan = {
            "files": survey.files,
            "bytes": survey.size,
            "directories": survey.directories,
            "others": survey.others,
            "skipped": len(survey.skipped),
            "unreadable": len(survey.unreadable),
            "volume": os.fspath(chosen.layout.root),
            "in_place": in_place,
        }
        print_json({"plan": plan})
        return
    how = "in place" if in_place else "by reflinks or copies"
    print_facts(
        [
            ("files", f"{survey.files}, {as_bytes(survey.size)}, {how}"),
            ("volume", chosen.layout.root),
            ("directories", survey.directories),
            ("links and devices", survey.others),
            ("skipped", len(survey.skipped)),
            ("unreadable", len(survey.unreadable)),
        ]
    )
    for place, why in [*survey.skipped, *survey.unreadable][:SHOWN]:
        sys.stderr.write(f"godwit: {as_shown(os.fsencode(walk.folder.shown(place)))}: {why}\n")
