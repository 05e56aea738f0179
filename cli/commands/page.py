"""`godwit page …`: who may look at the page that this server's manager serves to browsers."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from cli.display.render import print_line
from cli.network.target import RootOption, find_configs
from cluster.config import DEFAULT_CONFIG, ServerConfig
from cluster.durable import read_file, replace_file
from cluster.errors import Refused, error_text
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role
from cluster.trust.password import BYTES_MAX, LENGTH_MIN, dump, keep

app = typer.Typer(
    help="The page about the network that managers serve to browsers, where [page] listen says.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def page() -> None:
    pass


@app.command("password")
def password(
    remove: Annotated[bool, typer.Option("--remove", help="Only certificates of administrators are let in from now on.")] = False,
    config: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The server's configuration.")] = DEFAULT_CONFIG,
    root: RootOption = None,
) -> None:
    """Set the password of this server's page; who was let in with the one before has to give it anew.

    It is typed twice, or is the first line of the standard input. Only a salted hash is kept, beside the server's keys. In a lab
    it is set for all servers.

    \b
    Examples:
      godwit page password
      pwgen -s 20 1 | tee /dev/tty | godwit page password
    """
    configs = find_configs(root, config)
    for one in configs:
        if not one.is_candidate:
            raise Refused(f"{one.server} has no manager, and so no page (godwit servers add --candidate)")
    kept = b"" if remove else dump(keep(_new_password()))
    for one in configs:
        path = TrustFolder(one.trust).page_password
        try:
            if remove:
                path.unlink(missing_ok=True)
            else:
                replace_file(path, kept)
        except OSError as error:
            raise Refused(f"the password of {one.server} cannot be changed: {error_text(error)}", error.errno) from error
    for one in configs:
        print_line(_outcome(one, removed=remove))


def _new_password() -> str:
    if sys.stdin.isatty():
        text: str = typer.prompt("Password of the page", hide_input=True, confirmation_prompt=True, err=True)
    else:
        try:
            text = sys.stdin.readline().rstrip("\r\n")
        except UnicodeDecodeError:
            raise Refused("the password is no text") from None
    if len(text) < LENGTH_MIN:
        raise Refused(
            f"the password has {len(text)} characters: at least {LENGTH_MIN} are needed, as whoever reaches the page can try"
        )
    if len(text.encode("utf-8", "surrogatepass")) > BYTES_MAX:
        raise Refused(f"the password has more than {BYTES_MAX} bytes")
    return text


def _outcome(config: ServerConfig, *, removed: bool) -> str:
    """What there is now, and how a browser's user knows that he is there."""
    if not config.page.listen:
        where = f"{config.server} serves no page yet: [page] listen in its configuration, and restart its manager"
        return f"removed; {where}" if removed else f"set; {where}"
    where = f"https://{config.page.listen}/"
    if removed:
        return f"removed: {where} lets in certificates of administrators alone"
    return f"set, for {where}\nits certificate has the SHA-256 fingerprint {_fingerprint(config)}"


def _fingerprint(config: ServerConfig) -> str:
    path = Path(config.page.certificate or TrustFolder(config.trust).credential(Role.MANAGER))
    try:
        certificate = x509.load_pem_x509_certificates(read_file(path))[0]
    except (OSError, ValueError) as error:
        raise Refused(f"the password is set, but the certificate {path} cannot be read: {error_text(error)}") from error
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()
