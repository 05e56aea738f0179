"""One process's proof of who it is, and its judgement of others: TLS contexts (RFC 8446), and what is looked at beyond them.

Python's `ssl` verifies that a certificate is of one of our authorities and in force. Whom it names, whether that one was revoked,
and, for a session that was resumed, whether it is still in force, is looked at here, at each connection.
"""

import logging
import math
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from weakref import WeakSet

from cluster.errors import ProtocolError, Refused, error_text
from cluster.faults import faults
from cluster.trust.authority import certified, has_signed, load_certificates, number_of, own_certificate, signer_of
from cluster.trust.believed import revision_of
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import (
    BACKDATED_S,
    Identity,
    Peer,
    Role,
    authority_of,
    end_of,
    identity_of,
    lasting,
    merged,
    renewed_from,
)

log = logging.getLogger(__name__)

SUPERSEDED_S = 2.0  # a connection to who has no certificate yet of the authority that signs is used for so long
SESSIONS_KEPT = 256  # of TLS, to be resumed: one for each address


class NotBelieved(ProtocolError):
    """A peer has a certificate of the network that is not taken all the same. `cause`: the kind of reason, one of a few."""

    def __init__(self, cause: str, why: str) -> None:
        super().__init__(why)
        self.cause = cause


class Connection(Protocol):
    """What is closed when the peer is revoked, or its authority is believed no more."""

    peer: Peer

    def close(self) -> None: ...


class Credentials:
    """A process of one role. Raises `Refused` if there are none for it, or they are somebody else's."""

    def __init__(self, folder: TrustFolder, role: Role) -> None:
        self.folder = folder
        self.role = role
        self.identity: Identity
        self.issued_s: float  # when its certificate was signed, in seconds since the epoch
        self.ends_s: float  # when its certificate does, in seconds since the epoch
        self.authorities: bytes  # the certificates of those that are believed, as PEM
        self.numbers: tuple[int, ...] = ()  # theirs; the first signs
        self.revision: int  # of the list of them
        self.authority: int  # the number of the one that has signed its certificate
        self.is_superseded: bool  # its certificate is not of the authority that signs
        self.serving: ssl.SSLContext  # of connections that others make
        self.asking: ssl.SSLContext  # of those that it makes
        self.generation = 0  # raised by `reload`: connections of an older one are to be replaced
        self.revoked: dict[str, int] = {}  # the least epoch of a server that is believed
        self.connections: WeakSet[Connection] = WeakSet()  # all that there are, with whomever
        self._sessions: OrderedDict[str, tuple[ssl.SSLSession, float]] = OrderedDict()  # by address, until when
        self._loaded: tuple[tuple[int, int], ...] = ()  # the files, when they were read
        self.reload()

    def reload(self) -> None:
        """Reads the files anew; what cannot be read raises `Refused` and leaves everything as it was."""
        folder, role = self.folder, self.role
        files = self._files()
        path = folder.credential(role)
        believed = folder.read_authorities()
        authorities = believed.decode("ascii", "replace")
        serving, asking = context(ssl.PROTOCOL_TLS_SERVER, authorities), context(ssl.PROTOCOL_TLS_CLIENT, authorities)
        # A machine that joins has no certificate yet: what it may ask is in the tables of routes.
        serving.verify_mode = ssl.CERT_OPTIONAL
        try:
            for each in (serving, asking):
                each.load_cert_chain(path)
            certificate = own_certificate(path.read_bytes())
            found = certified(certificate)
        except FileNotFoundError:
            raise Refused(f"this server has no certificate of the {role}: {path} is missing (godwit join)") from None
        except PermissionError:
            raise Refused(f"{path} cannot be read: only root may, and the group that it belongs to") from None
        except (OSError, ValueError, Refused) as error:
            raise Refused(f"{path} has no key with its certificate: {error_text(error, with_file=False)}") from error
        if found.role is not role:
            raise Refused(f"{path} is a certificate of {found}, not of a {role}")
        if self.generation and (found.cluster, found.server) != (self.identity.cluster, self.identity.server):
            raise Refused(f"{path} is a certificate of {found} in cluster {found.cluster!r} now")
        self.revoked = merged(folder.read_revoked(), self.revoked)
        self._loaded = files
        self.identity = found
        self.authorities = believed
        known = load_certificates(believed)
        self.numbers = tuple(map(number_of, known))
        self.revision = revision_of(believed)
        self.authority = signer_of(certificate)
        self.is_superseded = not has_signed(known[0], certificate)
        self.issued_s = certificate.not_valid_before_utc.timestamp() + BACKDATED_S
        self.ends_s = certificate.not_valid_after_utc.timestamp()
        self.serving, self.asking = serving, asking
        self.generation += 1
        # They prove what the older certificate said.
        self._sessions.clear()
        self._close_those(lambda peer: peer.authority not in self.numbers)

    @property
    def renewed_from_s(self) -> float:
        """When the next certificate is asked for, in seconds since the epoch."""
        return time.time() if self.is_superseded else renewed_from(self.issued_s, self.ends_s)

    def refresh(self) -> None:
        """As `reload`, if the files have changed; what is wrong with them is logged, and the older ones stay in use."""
        if self._files() == self._loaded:
            return
        try:
            self.reload()
        except Refused as error:
            self._loaded = self._files()  # looked at once
            faults.note(log, "certificates cannot be read", f"goes on with the certificate of before: {error}")
        else:
            log.info("has the certificates of %s anew", self.identity)

    def _files(self) -> tuple[tuple[int, int], ...]:
        """By what it is noticed that files were replaced."""
        found = []
        for path in (self.folder.credential(self.role), self.folder.authorities):
            try:
                there = path.stat()
            except OSError:
                continue
            found.append((there.st_ino, there.st_mtime_ns))
        return tuple(found)

    def require(self, cluster: str, server: str) -> None:
        """Raises `Refused` if these are of another server than the configuration's."""
        if (self.identity.cluster, self.identity.server) != (cluster, server):
            raise Refused(
                f"{self.folder.credential(self.role)} is of {self.identity.server} in cluster {self.identity.cluster!r}, "
                f"the configuration of {server} in {cluster!r}"
            )

    # ---------------------------------------------------------------------------------------------------- judging

    def judge(self, certificate: Mapping[str, Any] | None) -> Identity | None:
        """Whom the verified certificate of a peer names; None if it has shown none. Raises `NotBelieved`."""
        if not certificate:
            return None
        try:
            identity = identity_of(certificate)
        except ProtocolError as error:
            raise NotBelieved("no identity", str(error)) from error
        if identity.cluster != self.identity.cluster:
            theirs = f"{identity} of cluster {identity.cluster!r}"
            raise NotBelieved("another cluster", f"it is {theirs}, this is {self.identity.cluster!r}")
        if end_of(certificate) <= time.time():
            raise NotBelieved("expired", f"the certificate of {identity} has expired")
        # It was verified before the list changed.
        if (number := authority_of(certificate)) not in self.numbers:
            raise NotBelieved("another authority", f"{identity} has a certificate of authority {number}, which is not believed")
        if self.is_revoked(identity):
            raise NotBelieved("revoked", f"{identity} was revoked (to let it in: godwit servers add, and godwit rejoin)")
        return identity

    def is_revoked(self, identity: Identity) -> bool:
        """Whether certificates of this server and epoch are void."""
        return identity.epoch < self.revoked.get(identity.server, 0)

    def revoke(self, revoked: Mapping[str, int]) -> None:
        """From now on nobody is believed whose epoch is below that of its server here: what is connected to them is closed."""
        self.revoked = dict(revoked)
        self._close_those(lambda peer: peer.identity is not None and self.is_revoked(peer.identity))

    def _close_those(self, void: Callable[[Peer], bool]) -> None:
        for connection in list(self.connections):
            if connection.peer.identity is not None and void(connection.peer):
                connection.close()

    def peer_at(self, address: str, identity: Identity | None, certificate: Mapping[str, Any] | None) -> Peer:
        """Who is at *address*, as `judge` has found from this certificate."""
        if not certificate:
            return Peer(address)
        now_s = time.time()
        ends_s, replace_s, missed_s = lasting(certificate, now_s)
        number = authority_of(certificate)
        if number in self.numbers[1:]:
            # Soon it has one of the authority that signs; the present one is void some time after that.
            replace_s = min(replace_s, now_s + SUPERSEDED_S)
        return Peer(address, identity, ends_s, replace_s, missed_s, number)

    # --------------------------------------------------------------------------------------------------- sessions

    def session_for(self, address: str) -> ssl.SSLSession | None:
        """A TLS session with who was there last, to be resumed once."""
        session, until_s = self._sessions.pop(address, (None, 0.0))
        return session if time.time() < until_s else None

    def keep_session(self, address: str, session: ssl.SSLSession | None, until_s: float = math.inf) -> None:
        """Remembers what a connection of the present generation could be resumed by; what the peer has shown is old *until_s*."""
        if session is not None and session.has_ticket:
            self._sessions[address] = session, until_s
            while len(self._sessions) > SESSIONS_KEPT:
                self._sessions.popitem(last=False)


class Newcomer(Credentials):
    """A machine that is to become a server: it has no certificate, and believes *authorities* (PEM), or at first anybody."""

    def __init__(self, authorities: str = "") -> None:
        self.asking = context(ssl.PROTOCOL_TLS_CLIENT, authorities)
        self.generation = 0
        self.numbers = ()
        self.connections = WeakSet()

    def judge(self, certificate: Mapping[str, Any] | None) -> Identity | None:
        """Whom a certificate names that is of one of the authorities; None while anybody is believed."""
        return identity_of(certificate) if certificate else None

    def refresh(self) -> None:
        """There are no files."""

    def session_for(self, _address: str) -> None:
        """Nothing is resumed."""

    def keep_session(self, _address: str, _session: ssl.SSLSession | None, _until_s: float = math.inf) -> None:
        """Nothing is resumed."""


def context(protocol: int, authorities: str = "") -> ssl.SSLContext:
    """A context for TLS 1.3 alone, in which only these *authorities* (PEM) are believed."""
    made = ssl.SSLContext(protocol)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    # Certificates name servers of the network, not hosts.
    made.check_hostname = False
    if authorities:
        made.verify_mode = ssl.CERT_REQUIRED
        made.load_verify_locations(cadata=authorities)
    else:
        made.verify_mode = ssl.CERT_NONE
    return made
