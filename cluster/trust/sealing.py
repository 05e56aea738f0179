"""The key of an authority, sealed for the catalog: who reads that, or a backup of it, and has no master secret, cannot sign.

AES-256-GCM (NIST SP 800-38D) under a key that HKDF with SHA-256 (RFC 5869) derives from the master secret. The network and the
authority's number are authenticated with it: a sealed key is of no use in another row.
"""

import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cluster.errors import Refused
from cluster.trust.authority import Authority, dump_key

KEY_BYTES = 32
NONCE_BYTES = 12  # drawn for each: far fewer keys are sealed than would make one come twice
PURPOSE = b"godwit: keys of authorities"  # no other use of the master secret derives the same key


def seal(authority: Authority, master: bytes, cluster: str) -> bytes:
    """Its private key, sealed."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce + _cipher(master).encrypt(nonce, dump_key(authority.key), _bound_to(cluster, authority.number))


def unseal(sealed: bytes, certificate: bytes, number: int, master: bytes, cluster: str) -> Authority:
    """The authority with this certificate (PEM). Raises `Refused` if that was sealed with another secret, or is damaged."""
    try:
        key = _cipher(master).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _bound_to(cluster, number))
    except (InvalidTag, ValueError):
        why = "it was sealed with another master secret, or is damaged"
        raise Refused(f"the key of authority {number} in the catalog cannot be opened: {why}") from None
    return Authority.load(key + certificate)


def _cipher(master: bytes) -> AESGCM:
    return AESGCM(HKDF(hashes.SHA256(), KEY_BYTES, None, PURPOSE).derive(master))


def _bound_to(cluster: str, number: int) -> bytes:
    return f"{cluster} {number}".encode()
