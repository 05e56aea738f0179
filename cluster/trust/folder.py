"""The files of a server's trust: private keys with their certificates, the authorities, and on candidates the master secret.

`/etc/godwit/trust` by default (the configuration's `trust`), mode 0711, with

- `ROLE.pem` of each role: its private key and its certificate, in one file that is replaced as a whole, mode 0600
  (`admin.pem` 0640, for the group that may use `godwit`);
- `authorities.pem`: the certificates of the authorities that are believed, the one that signs first, mode 0644
  (`cluster.trust.believed`);
- `revoked.json`: for each server that was let in again the least epoch that is believed, mode 0644;
- on candidates only, mode 0600: `authority.pem`, the key and the certificate of the authority that signs, `master.key`, and
  `page.password`, what is kept of the password of the page (`cluster.trust.password`).
"""

import fcntl
import grp
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cluster.decoding import Decode, Int64, from_json
from cluster.durable import read_file, replace_file
from cluster.errors import Malformed, Refused, error_text
from cluster.trust.authority import Authority, dump_key, load_certificates
from cluster.trust.believed import revision_of
from cluster.trust.identity import Role, merged

DEFAULT_TRUST = "/etc/godwit/trust"
MASTER_BYTES = 32

_decode_revoked: Decode[dict[str, Int64]] = from_json(dict[str, Int64])


class TrustFolder:
    """One server's files. Methods block for as long as a small file takes, and raise `Refused` for what cannot be read."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def make(self) -> None:
        """Makes the folder if it is missing."""
        self.path.mkdir(mode=0o711, parents=True, exist_ok=True)

    def credential(self, role: Role) -> Path:
        """Where the key and the certificate of a role are."""
        return self.path / f"{role}.pem"

    @property
    def authorities(self) -> Path:
        return self.path / "authorities.pem"

    @property
    def authority(self) -> Path:
        return self.path / "authority.pem"

    @property
    def master(self) -> Path:
        return self.path / "master.key"

    @property
    def page_password(self) -> Path:
        return self.path / "page.password"

    @property
    def revoked(self) -> Path:
        return self.path / "revoked.json"

    # ---------------------------------------------------------------------------------------------------- reading

    def read_authorities(self) -> bytes:
        """The certificates of the authorities, as PEM."""
        text = self._read(self.authorities)
        try:
            load_certificates(text)
        except Refused as error:
            raise Refused(f"{self.authorities}: {error}") from error
        return text

    def read_authority(self) -> Authority:
        """The authority that signs, with its key."""
        try:
            return Authority.load(self._read(self.authority))
        except Refused as error:
            raise Refused(f"{self.authority}: {error}") from error

    def read_master(self) -> bytes:
        """The master secret of the network."""
        text = self._read(self.master)
        try:
            master = bytes.fromhex(text.decode("ascii"))
        except ValueError:
            master = b""
        if len(master) != MASTER_BYTES:
            raise Refused(f"{self.master} is damaged: {MASTER_BYTES} bytes in hexadecimal are expected")
        return master

    def read_revoked(self) -> dict[str, int]:
        """The least epoch that is believed of each server that is named; a file that is missing names none."""
        try:
            return dict(_decode_revoked(read_file(self.revoked)))
        except FileNotFoundError:
            return {}
        except (OSError, Malformed) as error:
            # Not skipped: who was revoked would be believed again.
            raise Refused(f"{self.revoked} cannot be read: {error_text(error, with_file=False)}") from error

    def read_key(self, role: Role) -> ec.EllipticCurvePrivateKey | None:
        """The private key of a role, also while it has no certificate yet; None if there is none."""
        path = self.credential(role)
        try:
            key = load_pem_private_key(read_file(path), None)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise Refused(f"{path} cannot be read: {error_text(error, with_file=False)}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise Refused(f"{path} has a key of another kind than P-256")
        return key

    def _read(self, path: Path) -> bytes:
        try:
            return read_file(path)
        except OSError as error:
            raise Refused(f"cannot read {path}: {error.strerror}", error.errno) from error

    # ---------------------------------------------------------------------------------------------------- writing

    def write_credential(self, role: Role, key: ec.EllipticCurvePrivateKey, certificate: bytes = b"", group: str = "") -> None:
        """Replaces the key and the certificate of a role. *group* may read those of `Role.ADMIN`; else only the owner may."""
        path = self.credential(role)
        number = group_number(group) if group and role is Role.ADMIN else _reader_of(path)
        replace_file(path, dump_key(key) + certificate, mode=0o600 if number < 0 else 0o640, group=number)

    def write_authorities(self, text: bytes, *, anew: bool = False) -> None:
        """Replaces the list, unless that which is there is newer; *anew*: also then, by that of another network.

        Raises `Refused` for what is no list.
        """
        load_certificates(text)
        with self._alone():
            try:
                known = self.read_authorities()
            except Refused:  # there is none
                known = b""
            if known != text and (anew or revision_of(known) <= revision_of(text)):
                replace_file(self.authorities, text, mode=0o644)

    def write_authority(self, authority: Authority) -> None:
        replace_file(self.authority, authority.dump(), mode=0o600)

    def write_master(self, master: bytes) -> None:
        replace_file(self.master, master.hex().encode(), mode=0o600)

    def add_revoked(self, revoked: Mapping[str, int]) -> None:
        """Raises the least epochs of these servers; none is ever lowered."""
        with self._alone():
            known = self.read_revoked()
            void = merged(known, revoked)
            if void != known:
                replace_file(self.revoked, msgspec.json.encode(void), mode=0o644)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds a lock on the folder: every process of the server writes what all of them have in common."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _reader_of(path: Path) -> int:
    """The group that can read a file, and goes on to when that is replaced; -1: none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return -1
    return status.st_gid if status.st_mode & stat.S_IRGRP else -1


def group_number(group: str) -> int:
    """The number of a group of this machine; raises `Refused` if there is none of that name."""
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise Refused(f"there is no group {group!r} on this machine") from None
