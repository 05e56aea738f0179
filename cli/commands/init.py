"""`godwit init`: the first server of a new network."""

import secrets
from pathlib import Path
from typing import Annotated

import typer

from cli.display.render import print_facts, print_json, print_line
from cli.network.target import JsonOption
from cli.new_server import (
    AGENT_PORT,
    DEFAULT_MOUNTPOINT,
    MANAGER_PORT,
    AddressOption,
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
            help=f"The catalog's database; several servers need PostgreSQL.  [default: SQLite, {DEFAULT_CATALOG}]",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = DEFAULT_CONFIG,
    manager_port: ManagerPortOption = MANAGER_PORT,
    agent_port: AgentPortOption = AGENT_PORT,
    as_json: JsonOption = False,
) -> None:
    """Make this machine the first server of a new network. Writes its configuration, with a new secret; starts nothing.

    What exists is never overwritten, and a failed attempt can simply be repeated. docs/operations.md goes through it all.

    \b
    Examples:
      godwit init --address 10.0.0.1 --volume /srv/godwit --database postgresql+psycopg://godwit:PASSWORD@10.0.0.9/godwit
      godwit init --address 127.0.0.1 --volume /srv/godwit    a single server, with SQLite
    """
    from manager.catalog.first_start import prepare_catalog

    # Without one no file could be written: nobody has joined yet.
    if not volume:
        raise typer.BadParameter("the first server needs at least one", param_hint="--volume")
    place = make_place(server, address, volume, mountpoint, config, manager_port, agent_port)
    url = database or f"sqlite:///{DEFAULT_CATALOG}"
    # The secret seals lease tokens: 32 random bytes, known to the servers of this network only.
    common = {"cluster": cluster, "secret": secrets.token_hex(32), "managers": [place.manager], "manager": {"database": url}}
    made = make_config(place, common)
    if database is None:
        # The catalog has the names of all files, also of those that not everybody may list.
        DEFAULT_CATALOG.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Before the volumes: a database that cannot be reached leaves nothing to be undone.
    prepare_catalog(url)
    set_up(place, made, new=True)
    if as_json:
        print_json(server_object(place, made))
        return
    print_facts(server_facts(place, made))
    print_line()
    if url.startswith("sqlite"):
        print_line("The catalog is a SQLite file: other machines cannot join this network. For them, begin with PostgreSQL.")
    print_line("Next:")
    for command in start_commands(place):
        print_line(f"  {command}")
    if not url.startswith("sqlite"):
        print_line("  godwit servers add NAME      prints what to type on the next server")
