"""Lease tokens as the fake manager makes them."""

import time

from cluster.leases import WRITE, LeaseKeys, LeaseToken
from tests.support.trust import MASTER

SECRET = MASTER


def token_for(
    ino: int,
    *,
    epoch: int = 1,
    mode: str = WRITE,
    term: int = 1,
    age_s: float = 0.0,
    access_s: float = 60.0,
    secret: bytes = SECRET,
    server: str = "s1",
    holder: str = "s9",
) -> bytes:
    """A sealed token of *holder* for *server*'s agent that was issued *age_s* ago by the fake manager's clock."""
    issued_s = time.monotonic() - age_s
    token = LeaseToken(1, ino, mode, holder, 1, "127.0.0.1:1", 0, epoch, term, access_s, issued_s, checked_by=server)
    return LeaseKeys(secret).seal(token)
