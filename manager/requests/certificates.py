"""Certificates and authorities: signing for who has a certificate that is in force, what was shown, and how one authority follows
another.
"""

import time
from functools import partial

import trio

from cluster.events import EventKind
from cluster.messages import (
    AuthorityInfo,
    CertificateInfo,
    CertificateRows,
    Certified,
    Done,
    GetAuthorities,
    ListCertificates,
    RenewCertificate,
    RotateAuthority,
    Rotation,
    ShowCertificate,
    WaitingFor,
)
from cluster.trust.authority import Authority, own_certificate, pin_of
from cluster.trust.identity import Identity, Peer
from cluster.trust.sealing import seal
from manager.catalog.events import note
from manager.catalog.store import Transaction
from manager.changes.authorities import introduce, note_shown, read_authorities, read_shown, read_view
from manager.memory.sessions import Session
from manager.rules.authorities import Process, Shown, expected, in_force, waiting
from manager.term import Term


async def renew_certificate(term: Term, peer: Peer, request: RenewCertificate) -> Certified:
    """Signs for exactly the process that asks, in its epoch. Who was revoked does not get here."""
    assert peer.identity is not None
    return await certify(term, peer.identity, request.request)


async def certify(term: Term, identity: Identity, request: bytes) -> Certified:
    """A certificate, and those that are believed. Raises `Refused` for what is no request."""
    # In one step: what is signed is of the first of the list.
    signing, believed = term.authority, term.believed.text
    sign = partial(signing.sign, request, identity, term.config.manager.certificate_s)
    return Certified(await trio.to_thread.run_sync(sign), believed)


async def show_certificate(term: Term, peer: Peer, request: ShowCertificate) -> Done:
    """Writes down what the process has shown. A repeat costs a read."""
    assert peer.identity is not None
    await write_shown(term, peer.identity, peer.authority, peer.ends_s, request.revision)
    return Done()


async def write_shown(term: Term, identity: Identity, authority: int, ends_s: float, revision: int) -> None:
    """This process has this certificate, and believes this revision of the list; durable when it returns."""
    process = Process(identity.server, identity.role)
    # What nobody has told it, it cannot believe.
    shown = Shown(identity.epoch, authority, int(ends_s), min(revision, term.believed.revision))
    known = await term.store.read(partial(read_shown, process=process))
    if known is None or known < shown:
        await term.store.write(partial(note_shown, process=process, shown=shown), durable=True, grows=True)


# ---------------------------------------------------------------------------------------------------------- rotation


async def rotate_authority(term: Term, session: Session, request: RotateAuthority) -> Rotation:
    """Makes the next authority, unless a rotation is under way."""
    peer = session.peer
    # First: whoever asks must be able to follow, be it no server's.
    if peer is not None and peer.identity is not None:
        await write_shown(term, peer.identity, peer.authority, peer.ends_s, request.revision)
    # Of the catalog: the memory follows it a moment later, and would take a rotation that has just ended for one under way.
    believed = await term.store.read_slowly(read_authorities)
    if believed.phase is None:
        number = max(row.number for row in believed.rows) + 1
        made = await trio.to_thread.run_sync(Authority.make, term.config.cluster, number)
        sealed = seal(made, term.master, term.config.cluster)
        await term.store.write(partial(_introduce, term=term, made=made, sealed=sealed), durable=True, grows=True)
    return await _rotation(term)


def _introduce(tx: Transaction, term: Term, made: Authority, sealed: bytes) -> None:
    believed = introduce(tx, made, sealed)
    if any(row.certificate == made.pem for row in believed.rows):
        note(tx.connection, EventKind.AUTHORITY_INTRODUCED, authority=made.number)
    authority = term.opened(believed)
    tx.after(lambda: term.have_authorities(believed, authority))


async def get_authorities(term: Term, _session: Session, _request: GetAuthorities) -> Rotation:
    """How far the rotation has come."""
    return await _rotation(term)


async def _rotation(term: Term) -> Rotation:
    # The catalog's: the memory follows it a moment later.
    view, believed = await term.store.read_slowly(lambda connection: (read_view(connection), read_authorities(connection)))
    now_s = time.time()
    infos = []
    for row in believed.rows:
        certificate = own_certificate(row.certificate)
        infos.append(AuthorityInfo(row.number, pin_of(certificate), row.state, certificate.not_valid_after_utc.timestamp()))
    return Rotation(
        believed.phase or "",
        believed.revision,
        infos,
        [WaitingFor(*one) for one in waiting(view, now_s)],
        len(expected(view, now_s)),
    )


async def list_certificates(term: Term, _session: Session, _request: ListCertificates) -> CertificateRows:
    """What was shown, and is in force."""
    view = await term.store.read_slowly(read_view)
    return CertificateRows(
        [
            CertificateInfo(*process, shown.epoch, shown.authority, float(shown.ends_s))
            for process, shown in sorted(in_force(view, time.time()).items())
        ]
    )
