"""`godwit db …`: the catalog's database itself: made, backed up, brought back. Speaks to the database, not to a manager."""

from pathlib import Path
from typing import Annotated

import typer

from cli.display.render import as_bytes, print_facts, print_json, print_line
from cli.network.target import JsonOption, RootOption, only_lab
from cluster.catalog_point import CatalogPoint, remembered
from cluster.config import DEFAULT_CONFIG, ServerConfig, load_config
from cluster.errors import Refused
from lab.lab import Lab

app = typer.Typer(
    help="The catalog's database: backups, and what to do when it is lost.", no_args_is_help=True, rich_markup_mode=None
)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", metavar="FILE", help=f"The server's configuration.  [default: {DEFAULT_CONFIG}]", show_default=False
    ),
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]

WHAT_IT_MEANS = """What was done since it was written is not in this catalog: names, attributes and removals of that time
are lost. Content is not: all servers compare what is on their disks with it. Files that it does not know are kept in each
volume's folder unknown/ (godwit volumes unknown), and content that is newer than it says is committed."""


@app.callback()
def db() -> None:
    pass


@app.command()
def create(config: ConfigOption = None, root: RootOption = None) -> None:
    """Make the tables of a new network. `godwit init` does it by itself; a database that holds anything is refused.

    Example: godwit db create --config /etc/godwit/godwit.toml
    """
    # Imported here: most commands need no SQLAlchemy.
    from manager.catalog.first_start import prepare_catalog

    found = _find_config(config, root)
    # Its volumes have objects of that catalog, all unknown to an empty one.
    if (point := remembered(found.state)) is not None:
        raise Refused(
            f"this server has worked with {point}: an empty catalog in its place would hide every file. Bring a backup back: "
            "godwit db restore FILE"
        )
    prepare_catalog(found.manager.database)


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the backup goes; nothing is replaced.", show_default=False)],
    config: ConfigOption = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a backup of the catalog into a file. The network goes on meanwhile.

    \b
    Examples:
      godwit db backup /backup/catalog-monday
      godwit db backup /backup/lab --root /var/lib/godwit/lab
    """
    from manager.catalog.backup import back_up

    point = back_up(_find_config(config, root).manager.database, file.absolute())
    if as_json:
        print_json({"file": str(file.absolute()), **point_object(point)})
        return
    print_line(f"{file}: {point}, {file.stat().st_size:,} bytes")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What godwit db backup has written.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Read a backup whole, and say whether it is good. Needs no configuration and no database.

    Of one from PostgreSQL, pg_restore reads it (Debian's package postgresql-client). Nothing that is in the file is run.

    Example: godwit db verify /backup/catalog-monday
    """
    from manager.catalog.verification import verify as read_whole

    found = read_whole(file)
    size = file.stat().st_size
    if as_json:
        shown = {"file": str(file.absolute()), "kind": found.kind, "bytes": size, "schema": found.revision}
        print_json({**shown, **point_object(found.point), "rows": found.rows})
        return
    print_facts(
        [
            ("good", f"{file}, {as_bytes(size)}, of {found.kind}"),
            ("catalog", f"{found.point}, schema {found.revision}"),
            ("inodes", f"{found.rows['inodes']:,}, with {found.rows.get('dentries', 0):,} names"),
            ("replicas", f"{found.rows.get('replicas', 0):,}, on {found.rows.get('volumes', 0)} volumes"),
        ]
    )


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What godwit db backup has written.", show_default=False)],
    yes: YesOption = False,
    config: ConfigOption = None,
    root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replace the catalog by a backup. The managers of all servers must be stopped.

    The catalog that was there is kept beside it (SQLite). Afterwards the managers are started again; agents then compare their
    disks with the catalog by themselves. docs/operations.md goes through it.

    Example: godwit db restore /backup/catalog-monday
    """
    from manager.catalog.backup import restore as bring_back

    found = _find_config(config, root)
    _confirm(f"replace the catalog by {file}?", yes=yes, as_json=as_json)
    point, kept = bring_back(found.manager.database, file.absolute(), remembered(found.state), found.manager.term_s)
    if as_json:
        print_json({**point_object(point), "kept": str(kept) if kept else None})
        return
    if kept is not None:
        print_line(f"what was there is kept as {kept}")
    _print_next(point)


@app.command("accept-rollback")
def accept(yes: YesOption = False, config: ConfigOption = None, root: RootOption = None, as_json: JsonOption = False) -> None:
    """Go on with a catalog that is older than what servers have seen. The managers of all servers must be stopped.

    For a database that lost its last changes, or was restored by other means than godwit db restore.

    Example: godwit db accept-rollback
    """
    from manager.catalog.backup import accept_rollback

    found = _find_config(config, root)
    _confirm("go on with the catalog as it is?", yes=yes, as_json=as_json)
    before, after = accept_rollback(found.manager.database, remembered(found.state), found.manager.term_s)
    if as_json:
        print_json({**point_object(after), "before": point_object(before)})
        return
    _print_next(after)


def point_object(point: CatalogPoint) -> dict[str, object]:
    """How far a catalog has come, for JSON; see docs/cli.md."""
    return {"catalog": point.catalog, "generation": point.generation, "term": point.term}


def _confirm(question: str, *, yes: bool, as_json: bool) -> None:
    if yes:
        return
    if as_json:
        # A program cannot answer, and the question would be in the middle of the JSON.
        raise typer.BadParameter("--json needs --yes: it does not ask", param_hint="--json")
    print_line(WHAT_IT_MEANS)
    typer.confirm(question, abort=True)


def _print_next(point: CatalogPoint) -> None:
    print_line(f"the catalog is in generation {point.generation} now; next: start the managers again")


def _find_config(config: Path | None, root: Path | None) -> ServerConfig:
    """The configuration of this machine's server, or of the first of a lab, which may be down."""
    path = config if config is not None else DEFAULT_CONFIG if root is None and DEFAULT_CONFIG.exists() else None
    if path is not None:
        found = load_config(path)
        if not found.is_candidate:
            raise Refused(f"{found.server} is no candidate: it does not know the catalog's database")
        return found
    lab = Lab.load(root) if root is not None else only_lab()
    # All servers of a lab have the same database.
    return lab.config(lab.servers[0])
