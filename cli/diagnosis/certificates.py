"""The keys and certificates of a server: whose they are, how long they are good, and who can read them."""

import errno
import os
import stat
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from cli.diagnosis.checks import Check, Field, Verdict, judged
from cli.display.render import as_age
from cluster.config import ServerConfig
from cluster.errors import Refused
from cluster.trust.authority import load_certificates
from cluster.trust.credentials import Credentials
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Identity, Role, missed_from

ANEW = "godwit servers revoke NAME, godwit servers add NAME, and godwit rejoin there (docs/security.md, Incidents)"
AUTHORITY_WARNED_S = 365 * 86400  # a year before the end of the authority
PRIVATE, OF_GROUP = 0o600, 0o640


class Certificate(NamedTuple):
    """A certificate of a server."""

    identity: Identity
    issued_s: float
    ends_s: float
    is_superseded: bool  # it is of an authority that signs no more
    is_revoked: bool


def examine_certificates(config: ServerConfig) -> Iterator[Check]:
    """All checks of a server's trust folder. Blocks for as long as small files take."""
    folder = TrustFolder(config.trust)
    expected = [Role.AGENT, Role.MOUNT, *([Role.MANAGER] if config.is_candidate else [])]
    roles = [role for role in Role if role in expected or folder.credential(role).exists()]
    now_s = time.time()
    for role in roles:
        subject = f"{config.server} {role}"
        yield from judged(Field.CERTIFICATES, subject, partial(_judge_role, subject, folder, role, config, now_s))
    yield from judged(Field.CERTIFICATES, f"{config.server} authority", lambda: _judge_authorities(config.server, folder, now_s))
    yield from judged(Field.CERTIFICATES, f"{config.server} keys", lambda: [judge_modes(config.server, modes_of(folder), config)])


def _judge_role(subject: str, folder: TrustFolder, role: Role, config: ServerConfig, now_s: float) -> Iterator[Check]:
    yield judge(subject, _read(folder, role), config, now_s)


def judge(subject: str, found: Certificate, config: ServerConfig, now_s: float) -> Check:
    """What is to be said of one certificate: the worst."""
    mine, left_s = found.identity, found.ends_s - now_s
    if (mine.cluster, mine.server) != (config.cluster, config.server):
        text = f"it is of {mine.server} in cluster {mine.cluster!r}"
        return _check(subject, Verdict.FAILURE, text, "is the right folder in the configuration (trust)?")
    if found.is_revoked:
        return _check(
            subject, Verdict.FAILURE, "it was revoked: nobody believes it", f"godwit servers add {mine.server}, godwit rejoin"
        )
    if left_s <= 0:
        return _check(subject, Verdict.FAILURE, f"it has ended {as_age(-left_s)} ago", ANEW)
    if now_s < found.issued_s - 86400:
        return _check(subject, Verdict.FAILURE, "it is not good yet by this machine's clock", "set the clock right")
    if now_s >= missed_from(found.issued_s, found.ends_s):
        text = f"it ends in {as_age(left_s)}, and was not renewed"
        advice = f"godwit certs renew {mine.role}; does its process run, and reach a manager?"
        return _check(subject, Verdict.WARNING, text, advice)
    if found.is_superseded:
        return _check(subject, Verdict.NOTE, "it is of an authority that is leaving", "godwit certs rotate-ca --status")
    return _check(subject, Verdict.OK, f"good for {as_age(left_s)}")


def judge_authority(subject: str, ends_s: float, now_s: float) -> Check:
    """Of the authority that signs."""
    left_s = ends_s - now_s
    if left_s <= 0:
        return _check(
            subject, Verdict.FAILURE, f"it has ended {as_age(-left_s)} ago: nobody is believed", "docs/security.md, Rotation"
        )
    if left_s < AUTHORITY_WARNED_S:
        return _check(subject, Verdict.WARNING, f"it ends in {as_age(left_s)}", "godwit certs rotate-ca")
    return _check(subject, Verdict.OK, f"good for {as_age(left_s)}")


def judge_modes(server: str, modes: dict[Path, int], config: ServerConfig) -> Check:
    """Whether others can read keys; *modes* of the files that have some."""
    open_ones = [path for path, mode in modes.items() if mode & ~(_allowed(path, config))]
    subject = f"{server} keys"
    if open_ones:
        names = ", ".join(str(path) for path in open_ones)
        advice = f"chmod {PRIVATE:o} {' '.join(str(path) for path in open_ones)}; were they read? docs/security.md, Incidents"
        return _check(subject, Verdict.FAILURE, f"others can read {names}", advice)
    return _check(subject, Verdict.OK, f"{len(modes)} files, which nobody else can read")


def _allowed(path: Path, config: ServerConfig) -> int:
    return OF_GROUP if path.name == f"{Role.ADMIN}.pem" and config.admin_group else PRIVATE


def modes_of(folder: TrustFolder) -> dict[Path, int]:
    """Those of the files with keys that there are. Raises `OSError`."""
    found = {}
    for path in (*(folder.credential(role) for role in Role), folder.authority, folder.master):
        try:
            found[path] = stat.S_IMODE(os.stat(path).st_mode)
        except FileNotFoundError:
            continue
    return found


def _read(folder: TrustFolder, role: Role) -> Certificate:
    path = folder.credential(role)
    # `Credentials` calls it refused: only who is not root may be told so.
    if path.exists() and not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    found = Credentials(folder, role)
    return Certificate(found.identity, found.issued_s, found.ends_s, found.is_superseded, found.is_revoked(found.identity))


def _judge_authorities(server: str, folder: TrustFolder, now_s: float) -> Iterator[Check]:
    believed = load_certificates(folder.read_authorities())
    if not believed:
        raise Refused(f"{folder.authorities} names none")
    yield judge_authority(f"{server} authority", believed[0].not_valid_after_utc.timestamp(), now_s)
    for _other in believed[1:]:
        yield _check(f"{server} authority", Verdict.NOTE, "it is being replaced", "godwit certs rotate-ca --status")


def _check(subject: str, verdict: Verdict, text: str, advice: str = "") -> Check:
    return Check(Field.CERTIFICATES, subject, verdict, text, advice)
