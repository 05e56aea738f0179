"""The files of a server's trust: who may read them, and that this stays so when they are replaced."""

import os
import ssl
import stat
from pathlib import Path

import pytest

from cluster.errors import Refused
from cluster.trust.authority import Authority, load_certificates, new_key, number_of
from cluster.trust.believed import listing, revision_of
from cluster.trust.credentials import context
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role


@pytest.fixture
def folder(tmp_path: Path) -> TrustFolder:
    made = TrustFolder(tmp_path / "trust")
    made.make()
    return made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("role", list(Role))
def test_a_key_is_its_owners_alone(folder: TrustFolder, role: Role) -> None:
    folder.write_credential(role, new_key())
    assert mode(folder.credential(role)) == 0o600
    assert folder.read_key(role) is not None


@pytest.mark.skipif(os.geteuid() != 0, reason="to give a file to another group needs root")
def test_what_a_group_could_read_it_can_read_when_it_is_replaced(folder: TrustFolder) -> None:
    path = folder.credential(Role.ADMIN)
    folder.write_credential(Role.ADMIN, new_key(), group="nogroup")
    for _ in range(2):
        assert (mode(path), path.stat().st_gid) == (0o640, 65534)
        folder.write_credential(Role.ADMIN, new_key())
    path.chmod(0o600)
    folder.write_credential(Role.ADMIN, new_key())
    assert mode(path) == 0o600


def test_a_group_that_there_is_not_leaves_the_older_key(folder: TrustFolder) -> None:
    folder.write_credential(Role.ADMIN, new_key())
    before = folder.credential(Role.ADMIN).read_bytes()
    with pytest.raises(Refused, match="no group 'nobody-has-this'"):
        folder.write_credential(Role.ADMIN, new_key(), group="nobody-has-this")
    assert folder.credential(Role.ADMIN).read_bytes() == before


def test_what_says_who_was_revoked_is_never_passed_over(folder: TrustFolder) -> None:
    assert folder.read_revoked() == {}
    folder.add_revoked({"s2": 3})
    folder.add_revoked({"s2": 2})
    assert folder.read_revoked() == {"s2": 3}
    folder.revoked.write_bytes(b"{")
    with pytest.raises(Refused, match="revoked"):
        folder.read_revoked()


def test_a_list_of_authorities_is_never_replaced_by_an_older_one(folder: TrustFolder) -> None:
    first, second = Authority.make("test"), Authority.make("test", 2)
    folder.write_authorities(listing(0, [first.pem]))
    assert folder.read_authorities() == first.pem
    both = listing(12, [second.pem, first.pem])
    folder.write_authorities(both)
    for older in (listing(0, [first.pem]), listing(11, [first.pem, second.pem])):
        folder.write_authorities(older)
        assert folder.read_authorities() == both
    with pytest.raises(Refused, match="no certificates"):
        folder.write_authorities(b"# revision 13\n")
    assert folder.read_authorities() == both
    folder.write_authorities(listing(13, [second.pem]))
    assert revision_of(folder.read_authorities()) == 13
    # Of another network, which this machine joins.
    folder.write_authorities(first.pem, anew=True)
    assert folder.read_authorities() == first.pem


def test_a_list_is_read_alike_with_its_revision_and_without() -> None:
    first, second = Authority.make("test"), Authority.make("test", 2)
    for revision in (0, 7, 10**14):
        text = listing(revision, [second.pem, first.pem])
        assert revision_of(text) == revision
        assert [number_of(one) for one in load_certificates(text)] == [2, 1]
        believed = context(ssl.PROTOCOL_TLS_CLIENT, text.decode()).get_ca_certs()
        assert len(believed) == 2
    assert revision_of(b"\n# revision 7\n") == 0
