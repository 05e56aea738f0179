"""What is said of the catalog's database: of made-up answers, and of real files."""

import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from cli.diagnosis.catalog import examine_catalog, judge
from cli.diagnosis.checks import Check, Verdict
from cluster.config import ManagerConfig
from manager.catalog.examination import Examined
from manager.catalog.first_start import prepare_catalog
from tests.cli.diagnosis.test_disks import config

SQLITE = Examined("sqlite:////c.db", "/c.db", "3.40.1", "0015", "0015", 0.001, {"journal_mode": "wal"})
DURABLE = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "synchronous_standby_names": "",
    "encoding": "UTF8",
    "standby": "false",
}
POSTGRES = Examined("postgresql+psycopg://u@h/g", "", "15.14", "0015", "0015", 0.001, DURABLE)


def with_settings(**settings: str) -> Examined:
    return POSTGRES._replace(settings=DURABLE | settings)


@pytest.mark.parametrize(
    "found", [SQLITE, POSTGRES, with_settings(synchronous_commit="local"), with_settings(synchronous_commit="remote_apply")]
)
def test_a_good_one_is_one_line(found: Examined) -> None:
    (check,) = judge(found, "ext4")
    assert (check.verdict, check.text.endswith("its commits last")) == (Verdict.OK, True)


@pytest.mark.parametrize(
    ("found", "kind", "verdict", "text"),
    [
        (SQLITE._replace(revision=""), "ext4", Verdict.FAILURE, "holds no catalog"),
        (SQLITE._replace(revision="0016"), "ext4", Verdict.FAILURE, "of a newer Godwit"),
        (SQLITE._replace(revision="0014"), "ext4", Verdict.NOTE, "older than this Godwit's"),
        (SQLITE, "nfs4", Verdict.FAILURE, "SQLite's file is on nfs4"),
        (SQLITE, "fuse.godwit", Verdict.FAILURE, "SQLite's file is on fuse.godwit"),
        (SQLITE._replace(settings={"journal_mode": "delete"}), "ext4", Verdict.NOTE, "journal mode is delete"),
        (POSTGRES._replace(answered_s=0.2), "", Verdict.NOTE, "it takes 200 ms"),
        (with_settings(fsync="off"), "", Verdict.FAILURE, "fsync is off"),
        (with_settings(full_page_writes="off"), "", Verdict.FAILURE, "full_page_writes is off"),
        (with_settings(synchronous_commit="off"), "", Verdict.FAILURE, "synchronous_commit is off"),
        (
            with_settings(synchronous_commit="local", synchronous_standby_names="*"),
            "",
            Verdict.WARNING,
            "synchronous_commit is local",
        ),
        (with_settings(encoding="SQL_ASCII"), "", Verdict.FAILURE, "encoded as SQL_ASCII"),
        (with_settings(standby="true"), "", Verdict.FAILURE, "it is a standby"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_what_is_wrong_is_told_with_what_to_do(found: Examined, kind: str, verdict: Verdict, text: str) -> None:
    check, *others = judge(found, kind)
    assert (check.verdict, text in check.text, bool(check.advice)) == (verdict, True, True), check
    assert [other.verdict for other in others] == ([] if check.is_trouble else [Verdict.OK])


def of_database(url: str) -> list[Check]:
    return list(examine_catalog(msgspec.structs.replace(config(), manager=ManagerConfig("127.0.0.1:3", url)), 10))


def test_a_real_file(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    url = f"sqlite:///{path}"
    (missing,) = of_database(url)
    assert (missing.verdict, missing.text) == (Verdict.FAILURE, f"{path} is missing")
    assert not path.exists()
    prepare_catalog(url)
    (check,) = of_database(url)
    assert check.verdict is Verdict.OK, check
    with closing(sqlite3.connect(path)) as file:
        file.execute("DROP TABLE office")
    (check,) = of_database(url)
    assert (check.verdict, "holds no catalog" in check.text) == (Verdict.FAILURE, True)
    path.write_bytes(b"x" * 9000)
    (check,) = of_database(url)
    assert check.verdict is Verdict.FAILURE


def test_only_candidates_have_one() -> None:
    assert list(examine_catalog(config(), 10)) == []


def test_a_password_is_not_told() -> None:
    (check,) = of_database("postgresql+psycopg://godwit:hunter2@127.0.0.1:1/godwit")
    assert (check.verdict, "hunter2" in str(check)) == (Verdict.FAILURE, False)
