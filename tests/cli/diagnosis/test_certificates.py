"""What is said of certificates and keys: of made-up ones, and of real files."""

import os
import shutil
from pathlib import Path

import msgspec
import pytest

from cli.diagnosis.certificates import Certificate, examine_certificates, judge, judge_authority, judge_modes
from cli.diagnosis.checks import Verdict
from cluster.config import ManagerConfig
from cluster.trust.authority import CERTIFICATE_S
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Identity, Role
from cluster.trust.issue import issue
from tests.cli.diagnosis.test_disks import config
from tests.support.trust import authority, trust_of

DAY_S = 86400.0
NOW_S = 1e9
MINE = Identity("test", "s1", Role.AGENT, 1)
GOOD = Certificate(MINE, NOW_S - DAY_S, NOW_S + 364 * DAY_S, is_superseded=False, is_revoked=False)


def test_a_good_one() -> None:
    check = judge("s1 agent", GOOD, config(), NOW_S)
    assert (check.verdict, check.text, check.advice) == (Verdict.OK, "good for 364 days", "")


@pytest.mark.parametrize(
    ("found", "verdict", "text", "advice"),
    [
        (GOOD._replace(identity=MINE._replace(server="s2")), Verdict.FAILURE, "it is of s2 in cluster 'test'", "folder"),
        (GOOD._replace(identity=MINE._replace(cluster="c")), Verdict.FAILURE, "it is of s1 in cluster 'c'", "folder"),
        (GOOD._replace(is_revoked=True), Verdict.FAILURE, "it was revoked", "godwit rejoin"),
        (GOOD._replace(ends_s=NOW_S - 3 * DAY_S), Verdict.FAILURE, "it has ended 3 days ago", "godwit rejoin"),
        (GOOD._replace(issued_s=NOW_S + 2 * DAY_S), Verdict.FAILURE, "not good yet by this machine's clock", "clock"),
        (
            GOOD._replace(issued_s=NOW_S - 335 * DAY_S, ends_s=NOW_S + 30 * DAY_S),
            Verdict.WARNING,
            "ends in 30 days",
            "certs renew agent",
        ),
        (GOOD._replace(is_superseded=True), Verdict.NOTE, "authority that is leaving", "rotate-ca --status"),
    ],
)
def test_what_is_wrong_with_one(found: Certificate, verdict: Verdict, text: str, advice: str) -> None:
    check = judge("s1 agent", found, config(), NOW_S)
    assert (check.verdict, text in check.text, advice in check.advice) == (verdict, True, True), check


@pytest.mark.parametrize(("left", "verdict"), [(-1, Verdict.FAILURE), (200, Verdict.WARNING), (3000, Verdict.OK)])
def test_the_authority(left: int, verdict: Verdict) -> None:
    assert judge_authority("s1 authority", NOW_S + left * DAY_S, NOW_S).verdict is verdict


def test_who_can_read_keys() -> None:
    admin, agent = Path("/t/admin.pem"), Path("/t/agent.pem")
    grouped = msgspec.structs.replace(config(), admin_group="operators")
    assert judge_modes("s1", {admin: 0o640, agent: 0o600}, grouped).verdict is Verdict.OK
    for modes, mine in (({admin: 0o640}, config()), ({agent: 0o640}, grouped), ({agent: 0o604}, config())):
        check = judge_modes("s1", modes, mine)
        assert (check.verdict, f"chmod 600 {next(iter(modes))}" in check.advice) == (Verdict.FAILURE, True)


@pytest.fixture
def folder(tmp_path: Path) -> TrustFolder:
    """A copy of the files of s1, a candidate."""
    shutil.copytree(trust_of("s1"), tmp_path / "trust")
    return TrustFolder(tmp_path / "trust")


def verdicts(folder: TrustFolder) -> dict[str, Verdict]:
    mine = msgspec.structs.replace(
        config(), trust=str(folder.path), manager=ManagerConfig(listen="127.0.0.1:3", database="sqlite:////nowhere")
    )
    return {check.subject: check.verdict for check in examine_certificates(mine)}


def test_real_ones(folder: TrustFolder) -> None:
    found = verdicts(folder)
    assert set(found) == {"s1 manager", "s1 agent", "s1 mount", "s1 admin", "s1 authority", "s1 keys"}
    assert set(found.values()) == {Verdict.OK}
    folder.credential(Role.MANAGER).unlink()
    folder.credential(Role.ADMIN).unlink()
    folder.credential(Role.MOUNT).write_bytes(b"nonsense")
    os.chmod(folder.master, 0o644)
    issue(folder, authority(), "test", "s1", roles=[Role.AGENT], valid_s=CERTIFICATE_S / 100)
    found = verdicts(folder)
    assert "s1 admin" not in found
    assert found["s1 manager"] is found["s1 mount"] is found["s1 keys"] is Verdict.FAILURE
    assert found["s1 agent"] is Verdict.OK
