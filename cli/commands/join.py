"""`godwit join`: a further server of a network that runs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import trio
import typer
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cli.display.render import print_facts, print_json, print_line
from cli.network.secrets import join_token
from cli.network.target import JsonOption, TimeoutOption
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
from cli.unit_limits import missing_files
from cluster.config import DEFAULT_CONFIG, ServerConfig
from cluster.errors import Refused, Unavailable
from cluster.messages import PROTOCOL, AskAuthority, Join, Joined
from cluster.rpc.connection import ask_once
from cluster.rpc.wire import A_MANAGER, ANYBODY, parse_address
from cluster.trust.authority import (
    Authority,
    certified,
    load_certificates,
    new_key,
    number_of,
    own_certificate,
    pin_of,
    request_for,
)
from cluster.trust.credentials import Newcomer
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role
from cluster.trust.tokens import JoinToken, parse_token

JOIN_TIMEOUT_S = 30.0  # longer than a change of managers takes
ATTEMPT_S = 5.0  # of one address, dead ones included
PAUSE_S = 0.2  # between rounds through all addresses

GET_ANOTHER = "get a new one with godwit servers add"

Keys = dict[Role, ec.EllipticCurvePrivateKey]


def join(
    manager: Annotated[
        list[str],
        typer.Option("--manager", metavar="HOST:PORT", help="The manager of any server; may be repeated.", show_default=False),
    ],
    address: AddressOption,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", metavar="FILE", help="A file with the token; - for the standard input.", show_default=False),
    ] = None,
    server: ServerOption = None,
    volume: VolumeOption = None,
    mountpoint: MountpointOption = DEFAULT_MOUNTPOINT,
    config: ConfigOption = DEFAULT_CONFIG,
    manager_port: ManagerPortOption = MANAGER_PORT,
    agent_port: AgentPortOption = AGENT_PORT,
    admin_group: AdminGroupOption = "",
    timeout: TimeoutOption = JOIN_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Make this machine a further server of a network. Shows the manager a one-time token; starts nothing.

    The token is what godwit servers add has printed. It comes from --token-file, from the environment as GODWIT_TOKEN, or is
    asked for. Managers are known by it: it is shown to nobody else. Private keys are made here, and stay here. If the answer was
    lost, the same command may be repeated on the same machine for a minute.

    \b
    Examples:
      godwit join --manager 10.0.0.1:7400 --server s4 --address 10.0.0.4 --volume /srv/godwit
      godwit join --token-file /root/token --manager 10.0.0.1:7400 --address 10.0.0.4     a server without a volume
    """
    for known in manager:
        try:
            parse_address(known)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--manager") from None
    place = make_place(server, address, volume, mountpoint, config, manager_port, agent_port, admin_group)
    token = parse_token(join_token(token_file))
    folder = TrustFolder(place.trust)
    keys, joined = join_with_keys(
        folder, lambda keys: ask_to_join(manager, token, request_to_join(place.server, place.manager, token, keys), timeout)
    )
    made = _joined_config(place, joined)
    set_up(place, made, lambda there: certify(there, keys, joined, made), new=False)
    if not made.is_candidate:
        # Not before the configuration is there: a repeat would need the same keys.
        folder.credential(Role.MANAGER).unlink(missing_ok=True)
    if as_json:
        print_json(server_object(place, made))
        return
    print_facts(server_facts(place, made))
    print_line()
    if missing := missing_files(made.manager.database):
        print_line("The database's URL names files that are not here yet; its manager waits for them (docs/security.md,")
        print_line(f"PostgreSQL with client certificates): {' '.join(missing)}")
        print_line()
    print_line("Next:")
    for command in start_commands(place):
        print_line(f"  {command}")


def request_to_join(server: str, manager: str, token: JoinToken, keys: Keys, *, again: bool = False) -> Join:
    """What is shown to the manager. *manager*: where this server's own will listen."""
    return Join(PROTOCOL, token.secret, server, manager, {role: request_for(key) for role, key in keys.items()}, again)


def _joined_config(place: Place, joined: Joined) -> ServerConfig:
    # Settings of managers are the network's: the same on all.
    manager = {**joined.manager, **({"database": joined.database} if joined.database else {})}
    common = {"cluster": joined.cluster, "managers": joined.managers, "manager": manager, "mount": joined.mount}
    return make_config(place, common)


# -------------------------------------------------------------------------------------------------------------- keys


def join_with_keys(folder: TrustFolder, ask: Callable[[Keys], Joined]) -> tuple[Keys, Joined]:
    """Makes the keys, or finds those of an attempt before, and asks with them.

    They stay in the folder if nobody knows whether the token was used: it is good for them a little longer. Who is refused
    leaves nothing.
    """
    new_folder = not folder.path.exists()
    folder.make()
    keys: Keys = {}
    made: list[Role] = []
    for role in Role:
        found = folder.read_key(role)
        if found is None:
            made.append(role)
            found = new_key()
            folder.write_credential(role, found)
        keys[role] = found
    try:
        return keys, ask(keys)
    except Refused:
        for role in made:
            folder.credential(role).unlink()
        if new_folder:
            folder.path.rmdir()
        raise


def certify(folder: TrustFolder, keys: Keys, joined: Joined, config: ServerConfig) -> None:
    """Writes what the manager has answered; raises `Refused` if that does not belong together."""
    folder.make()
    # Whatever was there: it may be of another network.
    folder.write_authorities(joined.authorities, anew=True)
    for name, certificate in joined.certificates.items():
        role = Role(name)
        check_certificate(certificate, keys[role], config, role)
        folder.write_credential(role, keys[role], certificate, config.admin_group)
    if config.is_candidate:
        folder.write_authority(Authority.load(joined.authority))
        folder.write_master(joined.master)


def check_certificate(certificate: bytes, key: ec.EllipticCurvePrivateKey, config: ServerConfig, role: Role) -> None:
    """Raises `Refused` if it is not for this key, server and role."""
    found = own_certificate(certificate)
    identity = certified(found)
    is_ours = (identity.cluster, identity.server, identity.role) == (config.cluster, config.server, role)
    if not is_ours or found.public_key() != key.public_key():
        raise Refused(f"the manager has answered with a certificate of {identity}, which is not what was asked for")


# ------------------------------------------------------------------------------------------------------------ asking


def ask_to_join(managers: Sequence[str], token: JoinToken, request: Join, timeout_s: float) -> Joined:
    """Shows the token to whoever proves to be the manager; raises what it answers, or `Unavailable` when it is too late.

    Somebody with another authority than the token names is told nothing of it: that raises `Refused`.
    """

    return trio.run(seek_admission, managers, token, request, timeout_s)


async def seek_admission(managers: Sequence[str], token: JoinToken, request: Join, timeout_s: float) -> Joined:
    """As `ask_to_join`."""
    known = list(dict.fromkeys(managers))
    believed: Newcomer | None = None
    reason = "nobody was asked"
    with trio.move_on_after(timeout_s):
        while True:
            # A copy: answers add addresses.
            for address in list(known):
                try:
                    # Asked once: its certificate, which is all that is believed from then on, was verified by the pin.
                    believed = believed or await _authority(address, token.pin)
                    reply = await ask_once(address, request, believed, A_MANAGER, timeout_s=ATTEMPT_S)
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


async def _authority(address: str, pin: str) -> Newcomer:
    """Who believes only managers of the authority with this pin. Raises `Refused` if *address* has another one."""
    # Anybody may answer this, and hears nothing of the token.
    answer = await ask_once(address, AskAuthority(), Newcomer(), ANYBODY, timeout_s=ATTEMPT_S)
    believed = load_certificates(answer.pem)
    for certificate in believed:
        if pin_of(certificate) == pin:
            if number_of(certificate) < number_of(believed[0]):
                raise Refused(f"the network has replaced its certificate authority since this token was made: {GET_ANOTHER}")
            return Newcomer(certificate.public_bytes(Encoding.PEM).decode())
    raise Refused(
        f"who answers at {address} is not of the network that the token is for: its certificate authority has another key. "
        f"Either the network has replaced it since the token was made ({GET_ANOTHER}), or the address is another network's, or "
        "somebody is in between. The token was not shown to it"
    )
