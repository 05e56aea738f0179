"""The folder in which a manager keeps its backups: whole ones, the newest, and nothing but those can be read."""

import shutil
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3

from cluster.config import BackupConfig
from cluster.errors import Refused
from manager.catalog.backup_folder import BackupFolder
from manager.rules.backups import is_due
from tests.manager.office import config

NOW_S = 1_800_000_000.0


@pytest.fixture
def folder(tmp_path: Path) -> BackupFolder:
    backup = BackupConfig(keep=3, directory=str(tmp_path / "kept"))
    return BackupFolder(msgspec.structs.replace(config("sqlite:////nowhere"), backup=backup))


def write(url: str, path: Path) -> None:
    path.write_bytes(f"{url} {path.name}".encode() * 1000)


def fail(url: str, path: Path) -> None:
    path.with_name(f".{path.name}").write_bytes(b"half of it")
    raise Refused(f"{url} does not answer")


def test_the_newest_few_stay_and_a_failure_removes_none(folder: BackupFolder) -> None:
    assert folder.newest() is None
    made = [folder.make(NOW_S + number, write) for number in range(5)]
    assert folder.names() == [one.name for one in made[2:]]
    with pytest.raises(Refused, match="does not answer"):
        folder.make(NOW_S + 9, fail)
    assert folder.names() == [one.name for one in made[2:]]
    content = (folder.path / made[-1].name).read_bytes()
    assert folder.newest() == made[-1] == (made[-1].name, len(content), blake3(content).digest())
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.make(NOW_S + 10, write)
    assert sorted(path.name for path in folder.path.iterdir()) == folder.names(), "what was not finished is removed"


def test_only_backups_can_be_read(folder: BackupFolder, tmp_path: Path) -> None:
    made = folder.make(NOW_S, write)
    (tmp_path / "catalog-secret").write_text("secret")
    (folder.path / "notes").write_text("of an operator")
    assert folder.read(made.name, 0, 10) == b"sqlite:///"
    assert folder.read(made.name, made.size - 4, 10) == b"000Z"
    for name in ("../catalog-secret", "notes", "", "/etc/passwd", f".{made.name}"):
        with pytest.raises(Refused, match="no such backup"):
            folder.read(name, 0, 10)


def test_no_backup_is_begun_without_room(folder: BackupFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    made = folder.make(NOW_S, write)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(1 << 40, 1 << 40, 60 << 20))
    with pytest.raises(Refused, match="60 MiB are free, 64 are wanted"):
        folder.make(NOW_S + 1, write)
    assert folder.names() == [made.name]


@pytest.mark.parametrize(("age_s", "due"), [(None, True), (0.0, False), (99.0, False), (100.0, True), (-5.0, True)])
def test_a_backup_is_due(age_s: float | None, due: bool) -> None:
    assert is_due(age_s, 100.0) is due
