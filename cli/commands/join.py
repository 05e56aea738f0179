"""`godwit join`: a further server of a network that runs."""

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import trio
import typer

from cli.display.render import print_facts, print_json, print_line
from cli.network.target import JsonOption, TimeoutOption
from cli.new_server import (
    AGENT_PORT,
    DEFAULT_MOUNTPOINT,
    MANAGER_PORT,
    AddressOption,
    AgentPortOption,
    ConfigOption,
    ManagerPortOption,
    MountpointOption,
    Place,
    ServerOption,
    VolumeOption,
    make_config,
    make_place,
    server_facts,
    server_object,
    set_up,
    start_commands,
)
from cluster.config import DEFAULT_CONFIG, ServerConfig
from cluster.errors import Unavailable
from cluster.messages import PROTOCOL, Join, Joined
from cluster.rpc.connection import ask_once
from cluster.rpc.wire import parse_address

MACHINE_ID = Path("/etc/machine-id")  # lets the same machine repeat a join whose answer was lost
JOIN_TIMEOUT_S = 30.0  # longer than a change of managers takes
ATTEMPT_S = 5.0  # of one address, dead ones included
PAUSE_S = 0.2  # between rounds through all addresses


def join(
    token: Annotated[
        str,
        typer.Argument(metavar="TOKEN", envvar="GODWIT_TOKEN", help="What godwit servers add has printed.", show_default=False),
    ],
    manager: Annotated[
        list[str],
        typer.Option("--manager", metavar="HOST:PORT", help="The manager of any server; may be repeated.", show_default=False),
    ],
    address: AddressOption,
    server: ServerOption = None,
    volume: VolumeOption = None,
    mountpoint: MountpointOption = DEFAULT_MOUNTPOINT,
    config: ConfigOption = DEFAULT_CONFIG,
    manager_port: ManagerPortOption = MANAGER_PORT,
    agent_port: AgentPortOption = AGENT_PORT,
    timeout: TimeoutOption = JOIN_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Make this machine a further server of a network. Shows the manager a one-time token; starts nothing.

    Connections are not encrypted yet, and the answer holds the cluster's secret: join over a network that you trust. If the
    answer was lost, the same command may be repeated on the same machine for a minute.

    \b
    Examples:
      godwit join TOKEN --manager 10.0.0.1:7400 --server s4 --address 10.0.0.4 --volume /srv/godwit
      GODWIT_TOKEN=TOKEN godwit join --manager 10.0.0.1:7400 --address 10.0.0.4     a server without a volume
    """
    for known in manager:
        try:
            parse_address(known)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--manager") from None
    place = make_place(server, address, volume, mountpoint, config, manager_port, agent_port)
    made = _joined_config(place, ask_to_join(manager, _request(place, token), timeout))
    set_up(place, made, new=False)
    if as_json:
        print_json(server_object(place, made))
        return
    print_facts(server_facts(place, made))
    print_line()
    print_line("Next:")
    for command in start_commands(place):
        print_line(f"  {command}")


def _request(place: Place, token: str) -> Join:
    try:
        machine = MACHINE_ID.read_bytes().strip()
    except OSError:
        machine = b""
    # Containers may have no machine-id: then the host name has to do.
    return Join(PROTOCOL, token, place.server, place.manager, machine or socket.gethostname().encode())


def _joined_config(place: Place, joined: Joined) -> ServerConfig:
    common = {
        "cluster": joined.cluster,
        "secret": joined.secret,
        "managers": joined.managers,
        # Settings of managers are the network's: the same on all.
        "manager": {**joined.manager, "database": joined.database},
        "mount": joined.mount,
    }
    return make_config(place, common)


def ask_to_join(managers: Sequence[str], request: Join, timeout_s: float) -> Joined:
    """Shows the token to whoever is the manager; raises what it answers, or `Unavailable` when it is too late."""

    async def ask() -> Joined:
        known = list(dict.fromkeys(managers))
        reason = "nobody was asked"
        with trio.move_on_after(timeout_s):
            while True:
                # A copy: answers add addresses.
                for address in list(known):
                    try:
                        reply = await ask_once(address, request, timeout_s=ATTEMPT_S)
                    except Unavailable as error:
                        reason = str(error)
                        continue
                    if isinstance(reply, Joined):
                        return reply
                    reason = f"{address} is not the manager, and knows none"
                    if reply.address and reply.address not in known:
                        known.append(reply.address)
                await trio.sleep(PAUSE_S)
        raise Unavailable(f"no manager let {request.server} in within {timeout_s:g} s: {reason}")

    return trio.run(ask)
