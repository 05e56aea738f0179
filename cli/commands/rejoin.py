"""`godwit rejoin`: new keys and certificates for a server that has its configuration."""

from pathlib import Path
from typing import Annotated

import typer

from cli.commands.join import JOIN_TIMEOUT_S, Keys, ask_to_join, certify, join_with_keys, request_to_join
from cli.display.render import print_json, print_line
from cli.network.secrets import join_token
from cli.network.target import JsonOption, TimeoutOption
from cluster.config import DEFAULT_CONFIG, load_config
from cluster.errors import Refused
from cluster.messages import Joined
from cluster.rpc.candidates import known_candidates
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role
from cluster.trust.tokens import parse_token

NEW_KEYS = "new"  # in the folder of the old ones, which stay in use until there are certificates for these


def rejoin(
    manager: Annotated[
        list[str] | None,
        typer.Option(
            "--manager",
            metavar="HOST:PORT",
            help="Of any server; may be repeated.  [default: those it knows]",
            show_default=False,
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", metavar="FILE", help="A file with the token; - for the standard input.", show_default=False),
    ] = None,
    config: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The server's configuration.")] = DEFAULT_CONFIG,
    timeout: TimeoutOption = JOIN_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Give this server new keys and certificates. For one that was revoked, lost or removed, or whose certificates have expired.

    Its configuration, volumes and state stay. The token is what godwit servers add has printed; see godwit join. Processes that
    run take the new certificates when they connect next.

    Example: godwit rejoin
    """
    found = load_config(config)
    token = parse_token(join_token(token_file))
    folder = TrustFolder(found.trust)
    managers = manager or known_candidates(found.state, found.managers)
    folder.make()
    new = TrustFolder(folder.path / NEW_KEYS)

    def ask(keys: Keys) -> Joined:
        request = request_to_join(found.server, found.manager.listen, token, keys, again=True)
        return ask_to_join(managers, token, request, timeout)

    keys, joined = join_with_keys(new, ask)
    if joined.cluster != found.cluster:
        raise Refused(f"the token is of the network {joined.cluster!r}, the configuration of {found.cluster!r}")
    certify(folder, keys, joined, found)
    for role in Role:
        new.credential(role).unlink()
    new.path.rmdir()
    if as_json:
        print_json({"server": found.server, "cluster": found.cluster, "roles": sorted(joined.certificates)})
        return
    print_line(f"{found.server} has new certificates: {' '.join(sorted(joined.certificates))}")
