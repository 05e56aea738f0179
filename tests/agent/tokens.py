"""Lease tokens as the fake manager makes them."""

import time

from cluster.leases import WRITE, LeaseToken, Sealer

SECRET = "5e" * 32


def token_for(
    ino: int,
    *,
    epoch: int = 1,
    mode: str = WRITE,
    term: int = 1,
    age_s: float = 0.0,
    access_s: float = 60.0,
    secret: str = SECRET,
) -> bytes:
    """A sealed token that was issued *age_s* ago by the fake manager's clock."""
    token = LeaseToken(1, ino, mode, "s9", 1, "127.0.0.1:1", 0, epoch, term, access_s, time.monotonic() - age_s)
    return Sealer(secret).seal(token)
