"""One-time tokens with which a new server joins: `GW1.PIN.SECRET`.

The pin is the digest of the authority's public key: who joins sends the secret only to a manager that this authority has
certified. The catalog keeps a digest of the secret: who reads it cannot join.
"""

import re
import secrets
from hashlib import blake2b
from typing import NamedTuple

from cluster.errors import Refused

VERSION = "GW1"
SECRET_BYTES = 24
_PIN = re.compile(r"[A-Za-z0-9_-]{43}")  # 32 bytes in base64
_SECRET = re.compile(r"[A-Za-z0-9_-]{32}")  # 24 bytes


class JoinToken(NamedTuple):
    """A token."""

    pin: str
    """Of the authority that has certified the managers (`cluster.trust.authority.pin_of`)."""
    secret: str
    """What lets in."""

    def __str__(self) -> str:
        return f"{VERSION}.{self.pin}.{self.secret}"


def new_secret() -> str:
    """What nobody can guess."""
    return secrets.token_urlsafe(SECRET_BYTES)


def parse_token(text: str) -> JoinToken:
    """The token that somebody has typed or pasted; raises `Refused` with what is wrong, never with the token itself."""
    version, *parts = text.strip().split(".")
    if version != VERSION:
        if re.fullmatch(r"GW[0-9]+", version):
            raise Refused(
                f"this token is of another release of Godwit ({version}, this one knows {VERSION}): install the network's"
            )
        raise Refused(f"this is no token to join with: one begins with {VERSION}, as godwit servers add has printed it")
    if len(parts) != 2 or not _PIN.fullmatch(parts[0]) or not _SECRET.fullmatch(parts[1]):
        raise Refused("this token was mistyped or cut off: it must be as godwit servers add has printed it, in one line")
    return JoinToken(*parts)


def digest_of(secret: str) -> bytes:
    """What the catalog keeps of a token."""
    return blake2b(secret.encode()).digest()
