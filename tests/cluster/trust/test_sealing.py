"""What the catalog keeps of an authority's key opens with the master secret, in its own row, undamaged, and not otherwise."""

import pytest

from cluster.errors import Refused
from cluster.trust.authority import Authority
from cluster.trust.sealing import seal, unseal
from tests.support.trust import MASTER, authority

OTHER = bytes(32)


def test_what_was_sealed_opens_again_and_looks_different_each_time() -> None:
    mine = authority()
    sealed = seal(mine, MASTER, "test")
    found = unseal(sealed, mine.pem, 1, MASTER, "test")
    assert (found.dump(), found.number) == (mine.dump(), 1)
    assert sealed != seal(mine, MASTER, "test")
    assert b"PRIVATE" not in sealed


def test_another_secret_number_or_network_opens_nothing() -> None:
    mine = authority()
    sealed = seal(mine, MASTER, "test")
    for number, master, cluster in ((1, OTHER, "test"), (2, MASTER, "test"), (1, MASTER, "other")):
        with pytest.raises(Refused, match="cannot be opened"):
            unseal(sealed, mine.pem, number, master, cluster)


def test_damage_is_noticed_wherever_it_is() -> None:
    mine = authority()
    sealed = seal(mine, MASTER, "test")
    for at in (0, 11, 12, len(sealed) // 2, len(sealed) - 1):
        damaged = bytearray(sealed)
        damaged[at] ^= 1
        with pytest.raises(Refused, match="cannot be opened"):
            unseal(bytes(damaged), mine.pem, 1, MASTER, "test")
    for short in (b"", sealed[:5], sealed[:-1]):
        with pytest.raises(Refused, match="cannot be opened"):
            unseal(short, mine.pem, 1, MASTER, "test")


def test_a_key_with_the_certificate_of_another_authority_is_none() -> None:
    with pytest.raises(Refused, match="do not belong together"):
        unseal(seal(authority(), MASTER, "test"), Authority.make("test").pem, 1, MASTER, "test")
