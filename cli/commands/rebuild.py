"""`godwit rebuild`: a catalog made of what volumes hold, for the day on which the database is gone."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.commands.db import ConfigOption, point_object
from cli.display.live import bar, interruptible
from cli.display.render import print_facts, print_json, print_line
from cli.network.target import JsonOption
from cluster.catalog_point import remembered
from cluster.config import DEFAULT_CONFIG, ManagerConfig, load_config
from cluster.errors import Refused

WITHOUT_BACKUP = """No backup was used. This catalog has no directories without files, no symbolic and further hard links, no
extended attributes and ACLs, no owners and modes of directories, no policies but the default, and does not know which
certificates were revoked (godwit servers revoke)."""

_SHOWN = {
    "known": "as in the backup",
    "newer": "newer than the backup",
    "made": "not in the backup",
    "renamed": "renamed since then",
    "moved": "home elsewhere",
    "older": "older than the backup",
    "gone": "gone since the backup",
    "lost": "without a path",
    "removed": "objects of removed files",
    "left-out": "objects left out",
    "blank": "blank objects",
    "unreadable": "unreadable objects",
}
_EXAMPLES = {
    "older": "its newest content is on none of these volumes: it is older than in the backup",
    "gone": "nothing of it is on any volume: removed after the backup, or lost",
    "unreadable": "cannot be looked at",
}


def rebuild(
    volumes: Annotated[
        list[Path],
        typer.Option("--from", metavar="VOLUME", help="A volume's directory; repeated for all of them.", show_default=False),
    ],
    database: Annotated[
        str | None,
        typer.Option(
            "--db",
            metavar="URL",
            help="The database, which must be empty.  [default: that of this server's configuration]",
            show_default=False,
        ),
    ] = None,
    backup: Annotated[
        Path | None,
        typer.Option(
            "--backup", metavar="FILE", help="Use this backup instead of the newest on the volumes.", show_default=False
        ),
    ] = None,
    no_backup: Annotated[bool, typer.Option("--no-backup", help="Use none: make everything of the objects.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be made, and leave nothing.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a catalog of the volumes alone, when its database is gone. All managers and agents must be stopped.

    The newest good backup that is on the volumes is brought back; then files that were made, written or renamed after it are
    taken from what objects say of themselves. Volumes are only read: those of other servers may be mounted here over a network,
    or their disks carried. What has no known path comes to /lost+found. docs/operations.md goes through it.

    \b
    Examples:
      godwit rebuild --from /srv/godwit/vol1 --from /mnt/s2/vol1 --from /mnt/s3/vol1
      godwit rebuild --from /srv/godwit/vol1 --db sqlite:////var/lib/godwit/catalog.db --dry-run
    """
    from manager.catalog.rebuilding import rebuild as make

    if backup is not None and no_backup:
        raise typer.BadParameter("--backup and --no-backup exclude each other", param_hint="--no-backup")
    path = config if config is not None else DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None
    found = load_config(path) if path is not None else None
    url = database or (found.manager.database if found is not None else "")
    if not url:
        raise Refused("there is no configuration with a database on this machine: name the database with --db URL")
    with interruptible("interrupted: nothing was made"), bar("looking at objects", quiet=quiet or as_json) as progress:
        made = make(
            url,
            volumes,
            backup=backup.absolute() if backup is not None else None,
            use_backups=not no_backup,
            remembered=remembered(found.state) if found is not None else None,
            term_s=found.manager.term_s if found is not None else ManagerConfig().term_s,
            dry_run=dry_run,
            progress=progress,
        )
    shown = {
        **point_object(made.point),
        "backup": str(made.backup) if made.backup is not None else None,
        "refused": made.refused,
        "missing": made.missing,
        "dry_run": dry_run,
        "inodes": made.inodes,
        "directories_made": made.directories,
        "counts": {str(name): number for name, number in made.counts.items()},
        "examples": {str(name): paths for name, paths in made.examples.items()},
    }
    if as_json:
        print_json(shown)
    else:
        _print(shown)


def _print(shown: dict[str, Any]) -> None:
    for why in shown["refused"]:
        sys.stderr.write(f"godwit: a newer backup is not good: {why}\n")
    for name in shown["missing"]:
        sys.stderr.write(f"godwit: {name} was not looked at: what only it has is as in the backup, or not there\n")
    print_facts(
        [
            ("backup", shown["backup"] or "none"),
            ("catalog", f"{shown['catalog']}, generation {shown['generation']}"),
            ("inodes", f"{shown['inodes']:,}"),
            *((_SHOWN[name], f"{number:,}") for name, number in shown["counts"].items()),
            *([("directories made", f"{shown['directories_made']:,}")] if shown["directories_made"] else []),
        ]
    )
    for name, what in _EXAMPLES.items():
        examples = shown["examples"].get(name, [])
        for one in examples:
            sys.stderr.write(f"godwit: {one}: {what}\n")
        if (more := shown["counts"].get(name, 0) - len(examples)) > 0:
            sys.stderr.write(f"godwit: and {more:,} others\n")
    if shown["backup"] is None:
        print_line(WITHOUT_BACKUP)
    print_line(
        "nothing was left: this was a dry run" if shown["dry_run"] else "next: start the managers and agents of all servers"
    )
