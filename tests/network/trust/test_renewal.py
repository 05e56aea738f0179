"""Certificates that live for a minute are renewed under load, without an operation that fails."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.config import credentials_of
from cluster.trust.authority import own_certificate
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role
from lab.lab import Lab
from tests.support.conditions import godwit
from tests.support.labs import lab_up
from tests.support.runner import godwit_process as run_godwit
from tests.support.steady import loads_on

LIFE_S = 60
LASTS_S = 1.25 * LIFE_S  # each certificate is renewed, and the first one ends


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with lab_up(tmp_path / "lab", overrides={"manager": {"certificate_s": LIFE_S}}) as made:
        yield made


def test_nothing_fails_while_certificates_are_renewed(lab: Lab, tell: Callable[[str], None]) -> None:
    first = {
        (name, role): own_certificate(TrustFolder(lab.config(name).trust).credential(role).read_bytes())
        for name in lab.servers
        for role in Role
    }
    with loads_on(lab, "s1", "s2", "s3") as loads:
        until_s = time.monotonic() + LASTS_S
        while time.monotonic() < until_s and not any(load.failed for load in loads):
            time.sleep(1)
    assert min(load.turns for load in loads) > 100
    tell(f"{sum(load.turns for load in loads)} turns, the slowest took {max(load.slowest_s for load in loads):.1f} s")
    for (name, role), certificate in first.items():
        mine = credentials_of(lab.config(name), role)
        assert mine.ends_s > certificate.not_valid_after_utc.timestamp() + LIFE_S / 2, (name, role)
        assert mine.ends_s > time.time()
        now = own_certificate(TrustFolder(lab.config(name).trust).credential(role).read_bytes())
        assert now.public_key() != certificate.public_key()
    # Commands, too, whose certificate the agent has renewed.
    godwit(lab, "status")
    for name in lab.servers:
        for part in ("manager", "agent", "mount"):
            log = lab.log(name, part).read_text()
            assert "has expired" not in log, (name, part)
            assert "is not renewed" not in log, (name, part)


def test_a_command_shows_certificates_and_renews_them_now(lab: Lab) -> None:
    shown = godwit(lab, "certs", "ls")
    pin = TrustFolder(lab.config("s1").trust).read_authority().pin
    assert [item["role"] for item in shown["certificates"]] == ["manager", "agent", "mount", "admin"]
    assert {(item["server"], item["epoch"], item["authority"]) for item in shown["certificates"]} == {("s1", 1, pin)}
    assert [item["authority"] for item in shown["authorities"]] == [pin]
    assert shown["revoked"] == {}
    before = {item["role"]: item["ends_s"] for item in shown["certificates"]}
    time.sleep(1.1)  # certificates count in seconds
    for roles in (["mount", "manager"], []):
        renewed = {item["role"]: item["ends_s"] for item in godwit(lab, "certs", "renew", *roles)["certificates"]}
        assert set(renewed) == set(roles or before)
        assert all(ends_s > before[role] for role, ends_s in renewed.items())
    godwit(lab, "servers", "revoke", "s3" if godwit(lab, "status")["manager"] != "s3" else "s2")
    assert set(godwit(lab, "certs", "ls")["revoked"].values()) == {2}
    assert "ENDS" in run_godwit("certs", "ls", "--root", str(lab.root)).stdout
    assert run_godwit("certs", "renew", "king", "--root", str(lab.root)).returncode == 2
