"""`godwit init`: the first server of a new network."""

from pathlib import Path
from typing import Annotated

import typer

from cli.display.render import print_facts, print_json, print_line
from cli.network.secrets import database_url
from cli.network.target import JsonOption
from cli.new_server import (
    AGENT_PORT,
    DEFAULT_MOUNTPOINT,
    MANAGER_PORT,
    AddressOption,
    AdminGroupOption,
    AgentPortOption,
    ConfigOption,
    ManagerPortOption,
    MountpointOption,
    ServerOption,
    VolumeOption,
    make_config,
    make_place,
    server_facts,
    server_object,
    set_up,
    start_commands,
)
from cluster.config import DEFAULT_CONFIG
from cluster.trust.issue import issue_to_candidate

DEFAULT_CATALOG = Path("/var/lib/godwit/catalog.db")


def init(
    address: AddressOption,
    cluster: Annotated[str, typer.Option("--cluster", metavar="NAME", help="The network's name.")] = "godwit",
    server: ServerOption = None,
    volume: VolumeOption = None,
    mountpoint: MountpointOption = DEFAULT_MOUNTPOINT,
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            metavar="URL",
            help="The catalog's database, without a password; several candidates need PostgreSQL.  "
            f"[default: SQLite, {DEFAULT_CATALOG}]",
            show_default=False,
        ),
    ] = None,
    database_file: Annotated[
        Path | None,
        typer.Option(
            "--database-file", metavar="FILE", help="A file with the URL, which may have a password.", show_default=False
        ),
    ] = None,
    ask_password: Annotated[bool, typer.Option("--ask-password", help="Ask for the database's password.")] = False,
    config: ConfigOption = DEFAULT_CONFIG,
    manager_port: ManagerPortOption = MANAGER_PORT,
    agent_port: AgentPortOption = AGENT_PORT,
    admin_group: AdminGroupOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make this machine the first server of a new network. Writes its configuration, keys and certificates; starts nothing.

    What exists is never overwritten, and a failed attempt can simply be repeated. docs/operations.md goes through it all. A
    password of the database is never typed into the command line, where others see it: --database-file, --ask-password, or the
    URL in the environment, as GODWIT_DATABASE.

    \b
    Examples:
      godwit init --address 10.0.0.1 --volume /srv/godwit --ask-password \\
          --database postgresql+psycopg://godwit@10.0.0.9/godwit
      godwit init --address 127.0.0.1 --volume /srv/godwit    a single candidate, with SQLite
    """
    from manager.catalog.first_start import prepare_catalog

    # Without one no file could be written: nobody has joined yet.
    if not volume:
        raise typer.BadParameter("the first server needs at least one", param_hint="--volume")
    place = make_place(server, address, volume, mountpoint, config, manager_port, agent_port, admin_group)
    given = database_url(database, database_file, ask_password=ask_password)
    url = given or f"sqlite:///{DEFAULT_CATALOG}"
    made = make_config(place, {"cluster": cluster, "managers": [place.manager], "manager": {"database": url}})
    if given is None:
        # The catalog has the names of all files, also of those that not everybody may list.
        DEFAULT_CATALOG.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Before the volumes: a database that cannot be reached leaves nothing to be undone.
    prepare_catalog(url)
    set_up(place, made, lambda folder: issue_to_candidate(folder, cluster, made.server, group=admin_group), new=True)
    if as_json:
        print_json(server_object(place, made))
        return
    print_facts(server_facts(place, made))
    print_line()
    if url.startswith("sqlite"):
        print_line("The catalog is a SQLite file: no other server can become the manager. For that, begin with PostgreSQL.")
    print_line("Next:")
    for command in start_commands(place):
        print_line(f"  {command}")
    print_line("  godwit servers add NAME      prints what to type on the next server")
    if not url.startswith("sqlite"):
        print_line("  godwit servers add NAME --candidate      the same, for one that may become the manager")
