"""`Join`: a one-time token lets a machine in, once.

The row of a token that was used is replaced, in the same transaction, by one that only the same machine can show again, for
`REPEAT_S`: a reply that was lost must not lock the server out. The server becomes a member when its processes introduce
themselves; until then joining has changed nothing that anybody else could notice.
"""

from functools import partial
from hashlib import blake2b

from sqlalchemy import delete, insert, make_url, select

from cluster.clock import file_time_ns
from cluster.config import ManagerConfig, MountConfig, ServerConfig
from cluster.errors import ProtocolError, Refused
from cluster.invitations import digest_of
from cluster.messages import PROTOCOL, Join, Joined
from cluster.rpc.wire import parse_address
from manager.catalog.schema import invitations, servers
from manager.catalog.store import Transaction
from manager.term import Term

REPEAT_S = 60.0  # within which a machine whose reply was lost may ask again
FIELD_MAX = 255  # characters, as the columns have
KEPT_NS = 86400 * 10**9  # for so long an expired token is told from one that never was

LOCAL_HOSTS = frozenset({"", "localhost", "127.0.0.1", "::1"})
OWN_SETTINGS = frozenset({"listen", "database"})  # of [manager]: everything else must be the same everywhere
SHARED_MOUNT_SETTINGS = ("renew_s",)


async def join(term: Term, request: Join) -> Joined:
    """Uses the token up. Raises `Refused` with the reason if it is not good, or if nobody can join this network."""
    check_join(request)
    check_shared(term.config.manager.database)
    # Durable before it is answered: a token that is used must not be good again after a power failure.
    managers = await term.store.write(partial(_use_token, request=request, now_ns=file_time_ns()), durable=True, grows=True)
    return joined(term.config, [*managers, request.manager])


def check_join(request: Join) -> None:
    """`ProtocolError` for another version of the protocol and for what is too long, `Refused` for a wrong address."""
    if request.protocol != PROTOCOL:
        raise ProtocolError(
            f"{request.server} speaks version {request.protocol} of the protocol, this manager {PROTOCOL}: upgrade"
        )
    if max(map(len, (request.token, request.server, request.manager, request.machine))) > FIELD_MAX:
        raise ProtocolError("malformed request to join")
    try:
        parse_address(request.manager)
    except ValueError as error:
        raise Refused(str(error)) from error


def check_shared(database: str) -> None:
    """`Refused` for a catalog that other machines cannot reach: a server with a catalog of its own would be a second network."""
    url = make_url(database)
    if url.get_backend_name() == "sqlite":
        raise Refused(
            "the catalog of this network is a SQLite file, which only one machine can use: several servers need PostgreSQL"
        )
    if (url.host or "") in LOCAL_HOSTS:
        raise Refused("the URL of this network's database names no host that other machines reach: change manager.database first")


def joined(config: ServerConfig, managers: list[str]) -> Joined:
    """The manager's answer to a server whose token was good."""
    defaults = ManagerConfig(listen="", database="")
    settings = {name: getattr(config.manager, name) for name in ManagerConfig.__struct_fields__ if name not in OWN_SETTINGS}
    mount = MountConfig(mountpoint="")
    return Joined(
        cluster=config.cluster,
        secret=config.secret,
        managers=list(dict.fromkeys([config.manager.listen, *config.managers, *managers])),
        database=config.manager.database,
        manager={name: value for name, value in settings.items() if value != getattr(defaults, name)},
        mount={
            name: getattr(config.mount, name)
            for name in SHARED_MOUNT_SETTINGS
            if getattr(config.mount, name) != getattr(mount, name)
        },
    )


def _use_token(tx: Transaction, request: Join, now_ns: int) -> list[str]:
    """The addresses of the other candidates. A repeat in the same or in a later transaction finds the same."""
    others = tx.execute(select(servers.c.server, servers.c.manager).where(servers.c.manager != "")).all()
    for server, address in others:
        if address == request.manager and server != request.server:
            raise Refused(f"{address} is the address of {server}: give {request.server} one of its own")
    first, again = digest_of(request.token), _again(request)
    found = {row.digest: row for row in tx.execute(select(invitations).where(invitations.c.digest.in_([first, again]))).all()}
    # An invitation that is unused, else one that this very machine used a moment ago.
    invitation = found.get(first, found.get(again))
    if invitation is None:
        raise Refused("this token is not good: it was used, taken back by a newer one, or mistyped")
    if invitation.server != request.server:
        raise Refused(f"this token is for {invitation.server}, not for {request.server}")
    if invitation.expires_ns <= now_ns:
        raise Refused(f"this token has expired: get a new one with godwit servers add {request.server}")
    tx.execute(delete(invitations).where((invitations.c.digest == first) | (invitations.c.expires_ns < now_ns - KEPT_NS)))
    if first in found:
        values = {"digest": again, "server": request.server, "expires_ns": now_ns + int(REPEAT_S * 1e9)}
        tx.execute(delete(invitations).where(invitations.c.digest == again))
        tx.execute(insert(invitations), values)
    return sorted(address for server, address in others if server != request.server)


def _again(request: Join) -> bytes:
    """What the catalog keeps of a token that was used: only the machine that used it can show it again."""
    return blake2b(request.token.encode(), key=blake2b(request.machine).digest()).digest()
