"""`godwit certs …`: the certificates of this server, how long they are good, new ones before their time, and a new authority."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import trio
import typer

from cli.commands.rotating import rotation_object, show_own, show_rotation, watch_rotation
from cli.display.render import as_age, print_json, print_line, print_table
from cli.network.ask import ask
from cli.network.target import DEFAULT_TIMEOUT_S, JsonOption, RootOption, Target, TimeoutOption, find_target
from cluster.errors import GodwitError, Refused, Unavailable
from cluster.messages import Certified, GetAuthorities, ListCertificates, RenewCertificate
from cluster.rpc.connection import ask_once
from cluster.rpc.renewal import renew as renew_with
from cluster.trust.authority import has_signed, load_certificates, own_certificate, pin_of
from cluster.trust.credentials import Credentials
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role

PAUSE_S = 0.2  # between rounds through all managers

app = typer.Typer(
    help="The certificates of this server's processes.\n\nProcesses renew them by themselves when two thirds of their life are "
    "over; the agent does it for commands.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

RolesArgument = Annotated[
    list[Role] | None, typer.Argument(metavar="[ROLE]…", help="manager, agent, mount, admin.  [default: all]", show_default=False)
]


class Shown(NamedTuple):
    """A certificate of this server."""

    credentials: Credentials
    authority: str  # pin of the one that has signed it; empty: it is not believed any more


@app.callback()
def certs() -> None:
    pass


@app.command("ls")
def list_certificates(
    everybody: Annotated[
        bool, typer.Option("--all", help="Those of the whole network, as its processes have shown them to the manager.")
    ] = False,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """List this server's certificates, and whose are void. Reads files only; in a lab, those of its first server.

    \b
    Examples:
      godwit certs ls --json
      godwit certs ls --all
    """
    target = find_target(root)
    if everybody:
        _list_all(target, timeout, as_json)
        return
    folder = TrustFolder(target.trust)
    found = [_shown(Credentials(folder, role)) for role in present(folder)]
    if not found:
        raise Refused(f"{folder.path} has no certificates (godwit join)")
    authorities = load_certificates(folder.read_authorities())
    revoked = folder.read_revoked()
    if as_json:
        print_json(
            {
                "certificates": [certificate_object(shown) for shown in found],
                "authorities": [{"authority": pin_of(one), "ends_s": one.not_valid_after_utc.timestamp()} for one in authorities],
                "revoked": revoked,
            }
        )
        return
    now = time.time()
    print_table(
        ("SERVER", "ROLE", "EPOCH", "ENDS", "LEFT", "RENEWED IN", "AUTHORITY"),
        [
            (
                shown.credentials.identity.server,
                shown.credentials.role,
                shown.credentials.identity.epoch,
                _day(shown.credentials.ends_s),
                as_age(max(0.0, shown.credentials.ends_s - now)),
                as_age(max(0.0, shown.credentials.renewed_from_s - now)),
                shown.authority[:12] or "none that is believed",
            )
            for shown in found
        ],
        right=("EPOCH",),
    )
    for one in authorities:
        print_line(f"authority {pin_of(one)[:12]} until {_day(one.not_valid_after_utc.timestamp())}")
    for server, least in sorted(revoked.items()):
        print_line(f"void: certificates of {server} before epoch {least}")


def _list_all(target: Target, timeout_s: float, as_json: bool) -> None:
    rows = ask(target, timeout_s, ListCertificates()).certificates
    if as_json:
        print_json({"certificates": [msgspec.structs.asdict(row) for row in rows]})
        return
    now = time.time()
    print_table(
        ("SERVER", "ROLE", "EPOCH", "ENDS", "LEFT", "AUTHORITY"),
        [(row.server, row.role, row.epoch, _day(row.ends_s), as_age(max(0.0, row.ends_s - now)), row.authority) for row in rows],
        right=("EPOCH", "AUTHORITY"),
    )


@app.command("rotate-ca")
def rotate_ca(
    status: Annotated[bool, typer.Option("--status", help="Only look how far it is; begin nothing.")] = False,
    root: RootOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Replace the network's certificate authority, while everything goes on. Shows whom it waits for, until it is done.

    First all processes are told of the new authority, then all get certificates of it, then the old one is believed no more. A
    server that is away holds that up until it is back, or was revoked. The rotation goes on by itself if this command ends; typed
    again, it joins it.

    \b
    Examples:
      godwit certs rotate-ca
      godwit certs rotate-ca --status
    """
    target = find_target(root)
    if status:
        found = ask(target, timeout, GetAuthorities())
        if as_json:
            print_json(rotation_object(found))
        else:
            show_rotation(found)
        return
    done = watch_rotation(target, timeout, lambda credentials: _renew(credentials, target.managers, timeout), quiet=as_json)
    if as_json:
        print_json(rotation_object(done))


@app.command("renew")
def renew(
    roles: RolesArgument = None, root: RootOption = None, timeout: TimeoutOption = DEFAULT_TIMEOUT_S, as_json: JsonOption = False
) -> None:
    """Renew certificates of this server now, for new keys. Its processes use them at once, or when they start.

    Example: godwit certs renew agent mount
    """
    target = find_target(root)
    folder = TrustFolder(target.trust)
    renewed = []
    for role in roles or present(folder):
        credentials = Credentials(folder, role)
        trio.run(_renew, credentials, target.managers, timeout)
        renewed.append(_shown(credentials))
    if as_json:
        print_json({"certificates": [certificate_object(shown) for shown in renewed]})
        return
    for shown in renewed:
        print_line(f"{shown.credentials.identity} has a new certificate, until {_day(shown.credentials.ends_s)}")


def present(folder: TrustFolder) -> list[Role]:
    """The roles for which the server has a certificate."""
    return [role for role in Role if folder.credential(role).exists()]


def certificate_object(shown: Shown) -> dict[str, object]:
    """A certificate for JSON; see docs/cli.md."""
    mine = shown.credentials
    return {
        "server": mine.identity.server,
        "role": str(mine.role),
        "epoch": mine.identity.epoch,
        "ends_s": mine.ends_s,
        "renewed_from_s": mine.renewed_from_s,
        "authority": shown.authority or None,
    }


async def _renew(credentials: Credentials, managers: Sequence[str], timeout_s: float) -> None:
    async def certify(request: RenewCertificate) -> Certified:
        why = "none is known"
        with trio.move_on_after(timeout_s):
            while True:
                for address in managers:
                    try:
                        return await ask_once(address, request, credentials, timeout_s=timeout_s)
                    # Candidates that are not in office say so; whoever refuses it is asked again in vain.
                    except Refused:
                        raise
                    except GodwitError as error:
                        why = str(error)
                await trio.sleep(PAUSE_S)
        raise Unavailable(f"no manager has renewed it within {timeout_s:g} s: {why}")

    await renew_with(credentials, certify)
    if credentials.role is Role.ADMIN:
        # Processes show theirs by themselves.
        await show_own(credentials, managers)


def _shown(credentials: Credentials) -> Shown:
    certificate = own_certificate(Path(credentials.folder.credential(credentials.role)).read_bytes())
    signers = [one for one in load_certificates(credentials.authorities) if has_signed(one, certificate)]
    return Shown(credentials, pin_of(signers[0]) if signers else "")


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
