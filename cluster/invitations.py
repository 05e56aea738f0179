"""One-time tokens with which a new server joins. The catalog keeps a digest only: who reads it cannot join."""

import secrets
from hashlib import blake2b

TOKEN_BYTES = 24


def new_token() -> str:
    """A token that nobody can guess, fit for a command line: it is never taken for an option."""
    while (token := secrets.token_urlsafe(TOKEN_BYTES)).startswith("-"):
        pass
    return token


def digest_of(token: str) -> bytes:
    """What the catalog keeps of a token."""
    return blake2b(token.encode()).digest()
