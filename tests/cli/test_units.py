"""The systemd units: right for this installation, whatever the paths are called, and accepted by systemd."""

import os
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from cli.commands.units import UNITS, make_units, program
from cluster.config import ServerConfig, dump_config, parse_config
from cluster.errors import Refused
from tests.support.runner import godwit

CONFIG = parse_config(
    b"""
cluster = "here"
server = "s1"
secret = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
managers = ["10.0.0.1:7400"]
[manager]
listen = "10.0.0.1:7400"
database = "sqlite:////tmp/catalog.db"
[agent]
listen = "10.0.0.1:7401"
volumes = ["/srv/one", "/srv/two words"]
[mount]
mountpoint = "/mnt/100% mine"
""",
    "the test",
)


def units(config: ServerConfig = CONFIG) -> dict[str, str]:
    return make_units(config, Path("/etc/godwit/godwit.toml"), ["/opt/godwit/bin/godwit"])


def test_paths_are_quoted_as_systemd_wants_them() -> None:
    made = units()
    mount = made["godwit-mount.service"]
    assert "ExecStart=/opt/godwit/bin/godwit run mount --config /etc/godwit/godwit.toml\n" in mount
    assert 'RequiresMountsFor=/srv/one "/srv/two words" /mnt\n' in mount
    assert '-- "/mnt/100%% mine"\n' in mount
    assert 'Environment="GODWIT_MOUNTPOINT=/mnt/100%% mine"\n' in mount
    assert 'stat -f -c %%t -- "$$GODWIT_MOUNTPOINT")" = 65735546 ]' in mount
    assert 'RequiresMountsFor=/srv/one "/srv/two words"\n' in made["godwit-agent.service"]


def test_a_path_that_cannot_stand_in_a_unit_is_refused() -> None:
    mount = msgspec.structs.replace(CONFIG.mount, mountpoint="/mnt/a\nb")
    with pytest.raises(Refused, match="cannot stand in a unit"):
        units(msgspec.structs.replace(CONFIG, mount=mount))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze: package systemd")
def test_systemd_accepts_them(tmp_path: Path) -> None:
    plain = msgspec.structs.replace(CONFIG, mount=msgspec.structs.replace(CONFIG.mount, mountpoint=str(tmp_path / "a mount")))
    for name, text in make_units(plain, tmp_path / "godwit.toml", program()).items():
        (tmp_path / name).write_text(text)
    paths = [str(tmp_path / name) for name in UNITS]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *paths], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "godwit" in line]
    assert ours == []


def test_they_are_shown_and_installed(tmp_path: Path) -> None:
    config = tmp_path / "godwit.toml"
    config.write_bytes(dump_config(CONFIG))
    shown = godwit("units", "--config", str(config))
    assert shown.returncode == 0, shown.stderr
    assert "ExecStart=" in shown.stdout
    folder = tmp_path / "system"
    folder.mkdir()
    (folder / UNITS[0]).write_text("older")
    for _ in range(2):
        done = godwit("units", "--install", "--config", str(config), "--directory", str(folder))
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == sorted(UNITS)
    for name in UNITS:
        text = (folder / name).read_text()
        assert text in shown.stdout
        assert "older" not in text
        assert (folder / name).stat().st_mode & 0o777 == 0o644


def test_the_installed_program_is_the_one_that_asked() -> None:
    assert os.access(program()[0], os.X_OK)
    done = subprocess.run([*program(), "--help"], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.startswith("Usage: godwit")
