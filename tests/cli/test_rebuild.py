"""`godwit rebuild` and `godwit db verify` as people use them: no configuration, no network, no process."""

import json
from pathlib import Path

from cluster.volume.layout import VolumeLayout
from tests.cluster.test_tree import make
from tests.support.runner import godwit


def volume(tmp_path: Path) -> VolumeLayout:
    layout = VolumeLayout(tmp_path / "volume")
    layout.format("cluster", "s1")
    make(layout, 2000, "/photos/one")
    make(layout, 2001, "")
    return layout


def test_a_catalog_is_made_and_what_it_lacks_is_said(tmp_path: Path) -> None:
    layout, file = volume(tmp_path), tmp_path / "catalog.db"
    arguments = ("rebuild", "--from", str(layout.root), "--db", f"sqlite:///{file}")
    tried = godwit(*arguments, "--dry-run")
    assert tried.returncode == 0, tried
    assert "nothing was left: this was a dry run" in tried.stdout
    assert not file.exists()
    done = godwit(*arguments)
    assert done.returncode == 0, done
    facts = dict(line.split("  ", 1) for line in done.stdout.splitlines() if "  " in line)
    assert {name: value.strip() for name, value in facts.items()} | {"catalog": ""} == {
        "backup": "none",
        "catalog": "",
        "inodes": "5",
        "not in the backup": "2",
        "without a path": "1",
        "directories made": "2",
    }
    assert "No backup was used" in done.stdout
    again = godwit(*arguments)
    assert again.returncode == 1
    assert "is not empty" in again.stderr
    looked_at = godwit("db", "verify", str(file), "--json")
    assert looked_at.returncode == 0, looked_at
    assert json.loads(looked_at.stdout)["rows"]["inodes"] == 5
    assert "5, with 4 names" in godwit("db", "verify", str(file)).stdout


def test_what_makes_no_sense_is_refused_in_words(tmp_path: Path) -> None:
    layout = volume(tmp_path)
    for arguments, why in (
        (("rebuild", "--from", str(tmp_path), "--db", "sqlite:////nowhere/db"), "is not a volume"),
        (("rebuild", "--from", str(layout.root), "--db", "words"), "URL"),
        (("rebuild", "--from", str(layout.root), "--backup", "/nowhere", "--no-backup"), "exclude each other"),
        (
            ("rebuild", "--from", str(layout.root), "--backup", "/nowhere", "--db", "sqlite:////nowhere/db"),
            "cannot read /nowhere",
        ),
        (("db", "verify", str(layout.root / "volume.toml")), "is no backup of a catalog"),
    ):
        done = godwit(*arguments)
        assert done.returncode in (1, 2), done
        assert why in done.stderr
        assert "Traceback" not in done.stderr
