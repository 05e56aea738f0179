"""`Join`: the secret of a one-time token lets a machine in, once, and has its certificates signed.

The row of a token that was used is replaced, in the same transaction, by one that only the same keys can show again, for
`REPEAT_S`: a reply that was lost must not lock the server out. The server becomes a member when its processes introduce
themselves; until then joining has changed nothing that anybody else could notice. What a manager needs is handed out for tokens
of candidates alone.
"""

from collections.abc import Mapping
from functools import partial
from hashlib import blake2b
from typing import NamedTuple

import msgspec
import trio
from sqlalchemy import delete, insert, make_url, select

from cluster.clock import file_time_ns
from cluster.config import ManagerConfig, MountConfig, ServerConfig
from cluster.errors import ProtocolError, Refused
from cluster.messages import PROTOCOL, Join, Joined
from cluster.rpc.wire import parse_address
from cluster.trust.authority import Authority, key_digest
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Identity, Role
from cluster.trust.tokens import digest_of
from manager.catalog.schema import invitations, servers
from manager.catalog.store import Transaction
from manager.changes.authorities import note_shown, read_authorities
from manager.changes.epochs import note_epoch
from manager.rules.authorities import Process, Shown
from manager.term import Term

REPEAT_S = 60.0  # within which a machine whose reply was lost may ask again
FIELD_MAX = 255  # characters, as the columns have
KEPT_NS = 86400 * 10**9  # for so long an expired token is told from one that never was

LOCAL_HOSTS = frozenset({"", "localhost", "127.0.0.1", "::1"})
OWN_SETTINGS = frozenset({"listen", "database"})  # of [manager]: everything else must be the same everywhere
SHARED_MOUNT_SETTINGS = ("renew_s",)


class Invited(NamedTuple):
    """What a token that was good lets in."""

    candidate: bool
    epoch: int  # of its certificates
    managers: list[str]  # addresses of the other candidates

    @property
    def roles(self) -> list[Role]:
        """Whose certificates it gets."""
        return [role for role in Role if self.candidate or role is not Role.MANAGER]


async def join(term: Term, request: Join) -> Joined:
    """Uses the token up. Raises `Refused` with the reason if it is not good, or what it is to bring cannot be had."""
    check_join(request)
    # First: what cannot be signed uses no token up. Parsing a key is work for a thread.
    again = await trio.to_thread.run_sync(again_digest, request.secret, request.requests)
    # Durable before it is answered: a token that is used must not be good again after a power failure.
    work = partial(_use_token, term=term, request=request, again=again, now_ns=file_time_ns())
    invited = await term.store.write(work, durable=True, grows=True)
    # In one step: what was signed is of the first of the list.
    signed = partial(joined, term.config, term.authority, term.believed.text)
    return await trio.to_thread.run_sync(signed, request, invited)


def check_join(request: Join) -> None:
    """`ProtocolError` for another version of the protocol and for what is too long, `Refused` for a wrong address."""
    if request.protocol != PROTOCOL:
        raise ProtocolError(
            f"{request.server} speaks version {request.protocol} of the protocol, this manager {PROTOCOL}: upgrade"
        )
    if max(map(len, (request.secret, request.server, request.manager))) > FIELD_MAX:
        raise ProtocolError("malformed request to join")
    if set(request.requests) != set(Role):
        raise ProtocolError(f"a request to join asks for certificates of: {', '.join(sorted(Role))}")
    try:
        if request.manager:
            parse_address(request.manager)
    except ValueError as error:
        raise Refused(str(error)) from error


def check_shared(database: str) -> None:
    """`Refused` for a catalog that other machines cannot reach: a candidate with its own would be a second network."""
    url = make_url(database)
    if url.get_backend_name() == "sqlite":
        raise Refused(
            "the catalog of this network is a SQLite file, which only one machine can use: several candidates need PostgreSQL"
        )
    if (url.host or "") in LOCAL_HOSTS:
        raise Refused("the URL of this network's database names no host that other machines reach: change manager.database first")


def joined(config: ServerConfig, authority: Authority, believed: bytes, request: Join, invited: Invited) -> Joined:
    """The manager's answer to a server whose token was good. Reads files, signs: for a thread."""
    valid_s = config.manager.certificate_s
    certificates: dict[str, bytes] = {
        role: authority.sign(request.requests[role], Identity(config.cluster, request.server, role, invited.epoch), valid_s)
        for role in invited.roles
    }
    defaults = ManagerConfig()
    settings = {name: getattr(config.manager, name) for name in ManagerConfig.__struct_fields__ if name not in OWN_SETTINGS}
    mount = MountConfig(mountpoint="")
    own = [request.manager] if invited.candidate else []
    answer = Joined(
        cluster=config.cluster,
        managers=list(dict.fromkeys([config.manager.listen, *config.managers, *invited.managers, *own])),
        certificates=certificates,
        authorities=believed,
        manager={name: value for name, value in settings.items() if value != getattr(defaults, name)},
        mount={
            name: getattr(config.mount, name)
            for name in SHARED_MOUNT_SETTINGS
            if getattr(config.mount, name) != getattr(mount, name)
        },
    )
    if not invited.candidate:
        return answer
    return msgspec.structs.replace(
        answer, database=config.manager.database, authority=authority.dump(), master=TrustFolder(config.trust).read_master()
    )


def _use_token(tx: Transaction, term: Term, request: Join, again: bytes, now_ns: int) -> Invited:
    """What it lets in. A repeat in the same or in a later transaction finds the same."""
    first = digest_of(request.secret)
    found = {row.digest: row for row in tx.execute(select(invitations).where(invitations.c.digest.in_([first, again]))).all()}
    # An invitation that is unused, else one that these very keys used a moment ago.
    invitation = found.get(first, found.get(again))
    if invitation is None:
        raise Refused("this token is not good: it was used, taken back by a newer one, or mistyped")
    if invitation.server != request.server:
        raise Refused(f"this token is for {invitation.server}, not for {request.server}")
    if invitation.expires_ns <= now_ns:
        raise Refused(f"this token has expired: get a new one with godwit servers add {request.server}")
    if request.again and request.manager and not invitation.candidate:
        raise Refused(
            f"{request.server} is a candidate by its configuration, and this token is for a server that is none: "
            f"godwit servers add {request.server} --candidate"
        )
    others = tx.execute(select(servers.c.server, servers.c.manager).where(servers.c.manager != "")).all()
    if invitation.candidate:
        if not request.again:
            check_shared(term.config.manager.database)
        if not request.manager:
            raise Refused(f"this token is for a candidate, which {request.server} is not by its configuration: add it without")
        for server, address in others:
            if address == request.manager and server != request.server:
                raise Refused(f"{address} is the address of {server}: give {request.server} one of its own")
    tx.execute(delete(invitations).where((invitations.c.digest == first) | (invitations.c.expires_ns < now_ns - KEPT_NS)))
    if first in found:
        tx.execute(delete(invitations).where(invitations.c.digest == again))
        values = {
            "digest": again,
            "server": request.server,
            "expires_ns": now_ns + int(REPEAT_S * 1e9),
            "candidate": invitation.candidate,
            "epoch": invitation.epoch,
        }
        tx.execute(insert(invitations), values)
    note_epoch(tx, request.server, invitation.epoch)
    managers = sorted(address for server, address in others if server != request.server)
    invited = Invited(bool(invitation.candidate), invitation.epoch, managers)
    # A rotation waits for it from now on, though it may be started much later.
    believed, ends_s = read_authorities(tx.connection), int(now_ns / 1e9 + term.config.manager.certificate_s)
    for role in invited.roles:
        shown = Shown(invited.epoch, believed.signing.number, ends_s, believed.revision)
        note_shown(tx, Process(request.server, role), shown)
    return invited


def again_digest(secret: str, requests: Mapping[str, bytes]) -> bytes:
    """What the catalog keeps of a token that was used: only the keys that used it can show it again. Raises `Refused`."""
    keys = b"".join(role.encode() + b"\0" + key_digest(requests[role]) for role in sorted(requests))
    return blake2b(secret.encode(), key=blake2b(keys).digest()).digest()
