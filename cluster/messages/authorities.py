"""The network's authorities, how one follows another, and the certificates that processes have shown."""

from __future__ import annotations

from enum import StrEnum

from cluster.decoding import Finite, Int64  # noqa: F401 - the annotations' names, see `bound_numbers`
from cluster.messages.base import Done, ManagerRequest, Reply, Value


class AuthorityState(StrEnum):
    """What an authority is for; how one follows the other is in `manager.rules.authorities`."""

    INTRODUCED = "introduced"
    """The next one: to be believed by all, before anybody shows a certificate of it."""
    SIGNS = "signs"
    """The one that signs; there is always one."""
    LEAVING = "leaving"
    """The one before: believed until everybody has a certificate of the one that signs."""


class Missing(StrEnum):
    """Why a process is waited for."""

    SHOWN = "shown"
    """It has never shown a certificate of its server's present epoch."""
    BELIEF = "belief"
    """It has not said that it believes the one that is introduced."""
    CERTIFICATE = "certificate"
    """It has not shown a certificate of the one that signs."""


class ShowCertificate(ManagerRequest[Done], frozen=True):
    """Shows the certificate of the connection, over which nothing else is asked. Needs no `Hello`."""

    revision: int  # of the list of authorities that the process believes


class AuthorityInfo(Value, frozen=True):
    """An authority that is believed."""

    number: int
    pin: str  # the digest of its key
    state: str  # an `AuthorityState`
    ends_s: float  # in seconds since the epoch


class WaitingFor(Value, frozen=True):
    """A process that holds up the rotation."""

    server: str
    role: str
    missing: str  # a `Missing`


class Rotation(Reply, frozen=True):
    """How far the change of authorities has come."""

    phase: str  # the `AuthorityState` of the one that it waits for to be over; empty: there is none under way
    revision: int  # of the list of authorities
    authorities: list[AuthorityInfo]
    waiting: list[WaitingFor]
    expected: int  # processes that must follow, also those that have


class RotateAuthority(ManagerRequest[Rotation], frozen=True):
    """Begins to replace the authority; what is under way goes on. The command that asks is among those that must follow."""

    revision: int  # as of `ShowCertificate`: this connection's certificate counts as shown


class GetAuthorities(ManagerRequest[Rotation], frozen=True):
    """How far it has come."""


class CertificateInfo(Value, frozen=True):
    """The newest certificate that a process has shown."""

    server: str
    role: str
    epoch: int
    authority: int
    ends_s: float


class CertificateRows(Reply, frozen=True):
    """All that are in force, by server and role."""

    certificates: list[CertificateInfo]


class ListCertificates(ManagerRequest[CertificateRows], frozen=True):
    """The certificates of the whole network, as they were shown."""
