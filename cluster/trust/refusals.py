"""What is refused to a peer for who it is: logged once for each request and role, with its address."""

import errno
import logging
from collections.abc import Collection

from cluster.errors import ProtocolError, Refused, refused
from cluster.faults import faults
from cluster.trust.identity import Peer

STRANGER = "stranger"  # somebody without a certificate


def refusal(log: logging.Logger, peer: Peer, request: object, allowed: Collection[str]) -> Refused:
    """EPERM for a request that is only for these roles; noted in *log*."""
    name, identity = type(request).__name__, peer.identity
    what = f"{name}, which is for: {', '.join(sorted(allowed))}"
    faults.note(log, f"{name} is not for a {identity.role if identity else STRANGER}", f"refused {peer}: asked {what}")
    return refused(errno.EPERM, f"{identity or 'somebody without a certificate'} asked {what}")


def check_name(peer: Peer, server: str, role: str) -> None:
    """Raises `ProtocolError` for a peer that calls itself something else than its certificate does."""
    identity = peer.identity
    if identity is None or (server, role) != (identity.server, identity.role):
        raise ProtocolError(f"{peer} says that it is the {role:.20} of {server:.100}")
