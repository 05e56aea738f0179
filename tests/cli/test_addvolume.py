"""`godwit volumes add`: a further volume, and one on a disk that was replaced."""

import subprocess
from pathlib import Path

import msgspec
import pytest

from cluster.config import ServerConfig, load_config
from cluster.volume.layout import VolumeLayout
from tests.support.runner import godwit

CONFIG = """
cluster = "here"
server = "s1"
managers = ["127.0.0.1:7400"]

[manager]
listen = "127.0.0.1:7400"
database = "sqlite:////nowhere"

[agent]
listen = "127.0.0.1:7401"
volumes = ["{root}/vol1"]
copies_at_once = 7

[mount]
mountpoint = "{root}/mnt"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "godwit.toml"
    path.write_text(CONFIG.format(root=tmp_path))
    path.chmod(0o600)
    VolumeLayout(tmp_path / "vol1").format("here", "s1")
    return path


def add(config: Path, directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return godwit("volumes", "add", str(directory), "--config", str(config), *options)


def volumes(config: Path) -> list[str]:
    loaded: ServerConfig = load_config(config)
    assert loaded.agent.copies_at_once == 7
    return loaded.agent.volumes


def test_a_further_volume_is_made_and_configured(config: Path, tmp_path: Path) -> None:
    done = add(config, tmp_path / "vol2", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = msgspec.json.decode(done.stdout)
    assert told == {
        "volume": str(tmp_path / "vol2"),
        "uuid": VolumeLayout(tmp_path / "vol2").identity().uuid,
        "configured": True,
        "restart": True,
    }
    assert volumes(config) == [str(tmp_path / "vol1"), str(tmp_path / "vol2")]
    assert config.stat().st_mode & 0o777 == 0o600


def test_a_new_disk_at_the_old_place_gets_a_new_volume(config: Path, tmp_path: Path) -> None:
    old = VolumeLayout(tmp_path / "vol1").identity().uuid
    (tmp_path / "vol1").rename(tmp_path / "old")
    (tmp_path / "vol1").mkdir()
    before = config.read_bytes()
    done = add(config, tmp_path / "vol1")
    assert done.returncode == 0
    assert "takes it up within seconds" in done.stdout
    assert VolumeLayout(tmp_path / "vol1").identity().uuid != old
    assert config.read_bytes() == before


def test_a_volume_that_is_there_is_kept(config: Path, tmp_path: Path) -> None:
    old = VolumeLayout(tmp_path / "vol1").identity().uuid
    assert add(config, tmp_path / "vol1").returncode == 0
    assert VolumeLayout(tmp_path / "vol1").identity().uuid == old


def test_comments_are_not_lost(config: Path, tmp_path: Path) -> None:
    config.write_text("# mine\n" + config.read_text())
    before = config.read_bytes()
    done = add(config, tmp_path / "vol2")
    assert done.returncode == 0
    assert f'add "{tmp_path}/vol2" to volumes' in done.stdout
    assert f"  godwit units --install --config {config}\n  systemctl restart godwit-agent\n" in done.stdout
    assert config.read_bytes() == before


def test_what_must_not_become_a_volume_is_refused_and_nothing_is_changed(config: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.tex").touch()
    VolumeLayout(tmp_path / "foreign").format("here", "s2")
    before = config.read_bytes()
    for directory, reason in (
        ("used", "thesis.tex"),
        ("foreign", "is a volume of s2"),
        ("vol1/inside", "must lie beside each other"),
        ("mnt", "must lie beside each other"),
    ):
        done = add(config, tmp_path / directory)
        assert done.returncode == 1
        assert reason in done.stderr
    assert config.read_bytes() == before
    assert not (tmp_path / "mnt").exists()
