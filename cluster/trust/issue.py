"""Certificates for all roles of a server whose files and whose authority are both at hand: for `init`, labs and tests."""

import secrets
from collections.abc import Iterable

from cluster.trust.authority import CERTIFICATE_S, Authority, new_key, request_for
from cluster.trust.folder import MASTER_BYTES, TrustFolder
from cluster.trust.identity import Identity, Role


def issue(
    folder: TrustFolder,
    authority: Authority,
    cluster: str,
    server: str,
    *,
    roles: Iterable[Role] = tuple(Role),
    epoch: int = 1,
    valid_s: float = CERTIFICATE_S,
    group: str = "",
    believed: bytes = b"",
) -> None:
    """Makes new keys and certificates of these roles, and has the server believe the authority. Blocks; raises `OSError`.

    *group* may read those of people. *believed*: the list, if there are more than this authority.
    """
    folder.make()
    folder.write_authorities(believed or authority.pem, anew=True)
    for role in roles:
        key = new_key()
        certificate = authority.sign(request_for(key), Identity(cluster, server, role, epoch), valid_s)
        folder.write_credential(role, key, certificate, group)


def issue_to_candidate(
    folder: TrustFolder,
    cluster: str,
    server: str,
    authority: Authority | None = None,
    master: bytes = b"",
    *,
    valid_s: float = CERTIFICATE_S,
    group: str = "",
    believed: bytes = b"",
) -> None:
    """Everything that a candidate has, of the network that is given, or else of a new one. As `issue`."""
    authority = authority or Authority.make(cluster)
    issue(folder, authority, cluster, server, valid_s=valid_s, group=group, believed=believed)
    folder.write_authority(authority)
    # The keys with which lease tokens are sealed are derived from it.
    folder.write_master(master or secrets.token_bytes(MASTER_BYTES))
