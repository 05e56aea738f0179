"""The password of the page, as a file keeps it: salted, and hashed by scrypt (RFC 7914), so that it cannot be read back.

Who gets the file can only try passwords, each of which costs 32 MiB and a fifth of a second.
"""

import hmac
import secrets
from base64 import b64decode, b64encode
from hashlib import scrypt
from typing import NamedTuple

import msgspec

from cluster.decoding import Decode, from_json
from cluster.errors import Malformed

LENGTH_MIN = 12  # characters
BYTES_MAX = 1024  # of a password that is looked at
SALT_BYTES = 16
DIGEST_BYTES = 32
COST, BLOCK, LANES = 2**15, 8, 3  # scrypt's N, r and p: as OWASP recommends for 32 MiB
MEMORY_BYTES = 64 << 20  # what OpenSSL may take


class Kept(NamedTuple):
    """What is kept of a password."""

    salt: bytes
    digest: bytes


class _File(msgspec.Struct, frozen=True):
    scheme: str
    salt: str
    digest: str


SCHEME = f"scrypt-{COST}-{BLOCK}-{LANES}"
_decode: Decode[_File] = from_json(_File)


def keep(password: str) -> Kept:
    """What to keep of a new password. Blocks for a fifth of a second."""
    salt = secrets.token_bytes(SALT_BYTES)
    return Kept(salt, _digest(password.encode("utf-8", "surrogatepass"), salt))


def is_right(password: str, kept: Kept) -> bool:
    """Whether it is the one that *kept* is of. Blocks for a fifth of a second, whatever the answer is."""
    text = password.encode("utf-8", "surrogatepass")
    return hmac.compare_digest(_digest(text[:BYTES_MAX], kept.salt), kept.digest) and len(text) <= BYTES_MAX


def _digest(text: bytes, salt: bytes) -> bytes:
    return scrypt(text, salt=salt, n=COST, r=BLOCK, p=LANES, maxmem=MEMORY_BYTES, dklen=DIGEST_BYTES)


def dump(kept: Kept) -> bytes:
    """The content of the file."""
    salt, digest = (b64encode(part).decode() for part in kept)
    return msgspec.json.encode(_File(SCHEME, salt, digest)) + b"\n"


def load(text: bytes) -> Kept:
    """What a file holds; raises `Malformed`."""
    file = _decode(text)
    if file.scheme != SCHEME:
        raise Malformed(f"its scheme is {file.scheme[:50]!r}, not {SCHEME!r}")
    try:
        kept = Kept(b64decode(file.salt, validate=True), b64decode(file.digest, validate=True))
    except ValueError as error:
        raise Malformed(str(error)) from error
    if (len(kept.salt), len(kept.digest)) != (SALT_BYTES, DIGEST_BYTES):
        raise Malformed("salt or digest is not of its length")
    return kept
