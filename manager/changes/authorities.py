"""Transactions that change which authorities are believed, and what their processes have shown."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import Connection, bindparam, delete, insert, select, update

from cluster.messages import AuthorityState
from cluster.trust.authority import Authority, number_of, own_certificate
from cluster.trust.believed import listing
from manager.catalog.schema import authorities, certificates, counters, epochs, invitations, servers
from manager.catalog.store import Transaction
from manager.changes.epochs import read_revoked
from manager.rules.authorities import Process, Shown, Step, View, phase_of

GONE = ("left", "lost")  # states of servers that are waited for no more
REVISION = "authorities_revision"
AHEAD = 1000  # revisions, further than any server can have come before an older catalog was brought back

_ROWS = select(authorities).order_by(authorities.c.number)
_REVISION = select(counters.c.value).where(counters.c.name == REVISION)
_SHOWN = select(certificates).where(certificates.c.server == bindparam("server"), certificates.c.role == bindparam("role"))


@dataclass(frozen=True)
class AuthorityRow:
    """An authority that is believed."""

    number: int
    certificate: bytes  # PEM
    sealed: bytes  # its key; empty for one that signs no more
    state: AuthorityState


@dataclass(frozen=True)
class Believed:
    """All that are believed. There are none before the first term of a catalog."""

    revision: int
    rows: tuple[AuthorityRow, ...]

    @property
    def signing(self) -> AuthorityRow:
        """The one that signs."""
        return next(row for row in self.rows if row.state is AuthorityState.SIGNS)

    @cached_property
    def text(self) -> bytes:
        """The list of them (`cluster.trust.believed`)."""
        return listing(self.revision, [row.certificate for row in _in_order(self.rows)])

    @property
    def phase(self) -> AuthorityState | None:
        """What a rotation waits for."""
        return phase_of({row.number: row.state for row in self.rows})


def read_authorities(connection: Connection) -> Believed:
    """What the catalog says."""
    revision = connection.execute(_REVISION).scalar_one()
    rows = connection.execute(_ROWS).all()
    return Believed(
        revision, tuple(AuthorityRow(row.number, row.certificate, row.sealed, AuthorityState(row.state)) for row in rows)
    )


def reconcile(
    tx: Transaction, believed: Sequence[bytes], revision: int, authority: Authority, seal: Callable[[Authority], bytes]
) -> Believed:
    """What holds from now on: what the catalog says, unless this server has files of a higher revision, or it says nothing.

    *believed*: the certificates in the files (PEM); *authority*: the one that signs by them. An older catalog was brought back
    then, and the network has gone on with what the files say. One of which nobody has the key is not introduced any more.
    """
    found = read_authorities(tx.connection)
    if found.rows and found.revision >= revision:
        return found
    known = {row.certificate: row for row in found.rows}
    rows = {authority.number: AuthorityRow(authority.number, authority.pem, seal(authority), AuthorityState.SIGNS)}
    for pem in believed:
        number = number_of(own_certificate(pem))
        if number < authority.number:
            rows.setdefault(number, AuthorityRow(number, pem, b"", AuthorityState.LEAVING))
        elif pem in known and known[pem].sealed:
            rows.setdefault(number, AuthorityRow(number, pem, known[pem].sealed, AuthorityState.INTRODUCED))
    # Of a catalog that was brought back nobody knows which revisions other servers have seen.
    made = Believed(revision + AHEAD if found.rows else revision, tuple(rows.values()))
    if listing(0, believed) != listing(0, [row.certificate for row in _in_order(made.rows)]):
        made = Believed(made.revision + 1, made.rows)
    tx.execute(delete(authorities))
    _insert(tx, made.rows)
    _set_revision(tx, made.revision)
    return made


def _in_order(rows: Iterable[AuthorityRow]) -> list[AuthorityRow]:
    """As they are listed: the one that signs first."""
    return sorted(rows, key=lambda row: (row.state is not AuthorityState.SIGNS, row.number))


def introduce(tx: Transaction, authority: Authority, sealed: bytes) -> Believed:
    """Begins a rotation; changes nothing if one is under way, or somebody else has taken the number."""
    found = read_authorities(tx.connection)
    if found.phase is not None or authority.number in {row.number for row in found.rows}:
        return found
    _insert(tx, [AuthorityRow(authority.number, authority.pem, sealed, AuthorityState.INTRODUCED)])
    _set_revision(tx, found.revision + 1)
    return read_authorities(tx.connection)


def take_step(tx: Transaction, step: Step) -> Believed:
    """Does what `manager.rules.authorities.next_step` has decided in the same transaction."""
    if step is Step.SIGN:
        # It never signs again: who gets hold of the master secret later has nothing of it.
        _change(tx, AuthorityState.SIGNS, state=AuthorityState.LEAVING, sealed=b"")
        _change(tx, AuthorityState.INTRODUCED, state=AuthorityState.SIGNS)
        # Managers prove themselves to who joins by the authority whose pin is in the token: from now on by the new one.
        tx.execute(delete(invitations))
    else:
        tx.execute(delete(authorities).where(authorities.c.state == AuthorityState.LEAVING))
        tx.execute(delete(certificates).where(certificates.c.authority.not_in(select(authorities.c.number))))
    _set_revision(tx, read_authorities(tx.connection).revision + 1)
    return read_authorities(tx.connection)


def _change(tx: Transaction, which: AuthorityState, **values: object) -> None:
    tx.execute(update(authorities).where(authorities.c.state == which).values(values))


def _insert(tx: Transaction, rows: Iterable[AuthorityRow]) -> None:
    for row in rows:
        values = {"number": row.number, "certificate": row.certificate, "sealed": row.sealed, "state": row.state}
        tx.execute(insert(authorities), values)


def _set_revision(tx: Transaction, revision: int) -> None:
    tx.execute(update(counters).where(counters.c.name == REVISION).values(value=revision))


# ------------------------------------------------------------------------------------------------------ certificates


def read_shown(connection: Connection, process: Process) -> Shown | None:
    """The newest certificate that a process has shown."""
    row = connection.execute(_SHOWN, process._asdict()).one_or_none()
    return None if row is None else Shown(row.epoch, row.authority, row.ends_s, row.revision)


def note_shown(tx: Transaction, process: Process, shown: Shown) -> None:
    """A process has shown a certificate. What comes late changes nothing; may be repeated."""
    known = read_shown(tx.connection, process)
    if known is not None and known >= shown:
        return
    values = shown._asdict()
    if known is None:
        tx.execute(insert(certificates), process._asdict() | values)
    else:
        of_it = (certificates.c.server == process.server) & (certificates.c.role == process.role)
        tx.execute(update(certificates).where(of_it).values(values))


def has_shown(tx: Transaction, server: str) -> bool:
    """Whether a process of that name has ever shown a certificate, be it no server's."""
    return tx.execute(select(certificates.c.server).where(certificates.c.server == server)).first() is not None


def read_view(connection: Connection) -> View:
    """What a rotation is decided by."""
    found = read_authorities(connection)
    void = set(connection.execute(select(epochs.c.server).where(epochs.c.least > epochs.c.epoch)).scalars())
    members = connection.execute(select(servers.c.server, servers.c.manager).where(servers.c.state.not_in(GONE))).all()
    rows = connection.execute(select(certificates)).all()
    return View(
        {row.number: row.state for row in found.rows},
        found.revision,
        {row.server: row.manager != "" for row in members if row.server not in void},
        {Process(row.server, row.role): Shown(row.epoch, row.authority, row.ends_s, row.revision) for row in rows},
        read_revoked(connection),
    )
