"""`godwit fsck` on real processes: rows without objects, objects without rows, and objects that are others, all made by hand."""

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cluster.volume.layout import VolumeLayout
from lab.lab import Lab
from tests.support.conditions import godwit, wait_for_copies, wait_until
from tests.support.labs import lab_up
from tests.support.runner import godwit_process as run_godwit

NAMES = ("trashed home", "set aside copy", "cut copy", "lost home", "touched home", "changed copy", "rotten copy", "lost copy")
STRAY_INO = 2_000_000
SIZE = 20_000


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with lab_up(
        tmp_path / "lab", overrides={"manager": {"session_timeout_s": 3.0, "access_s": 4.0}, "mount": {"renew_s": 1.5}}
    ) as made:
        yield made


def fsck(lab: Lab, *arguments: str, code: int) -> dict[str, Any]:
    done = run_godwit("fsck", *arguments, "--json", "--root", str(lab.root), timeout_s=120)
    assert done.returncode == code, done
    report: dict[str, Any] = json.loads(done.stdout)
    assert all(not item["problems"] and item["error"] is None for item in report["servers"])
    return report


def kinds(report: dict[str, Any]) -> dict[str, str]:
    return {item["path"].lstrip("/") or str(item["ino"]): item["kind"] for item in report["findings"]}


class File:
    """One file of the namespace, and where its replicas are."""

    def __init__(self, lab: Lab, name: str, content: bytes) -> None:
        self.content = content
        where = godwit(lab, "where", str(lab.mount("s1") / name))
        self.ino: int = where["ino"]
        self.volumes = {
            home: VolumeLayout(Path(next(item["path"] for item in where["replicas"] if item["home"] is home)))
            for home in (True, False)
        }

    def path(self, *, home: bool) -> Path:
        return Path(self.volumes[home].object_path(self.ino))

    def set_aside(self, folder: str, *, home: bool) -> None:
        target = self.volumes[home].root / folder
        target.mkdir(exist_ok=True)
        self.path(home=home).rename(target / f"{self.ino}.{time.time_ns()}")


def write_files(lab: Lab) -> dict[str, File]:
    contents = {name: os.urandom(SIZE) for name in NAMES}
    for number, (name, content) in enumerate(contents.items()):
        (lab.mount(lab.servers[number % 3]) / name).write_bytes(content)
    wait_for_copies(lab)
    wait_until(lambda: not any(godwit(lab, "where", str(lab.mount("s1") / name))["dirty"] for name in NAMES), "committed")
    wait_for_copies(lab)
    return {name: File(lab, name, content) for name, content in contents.items()}


def damage(lab: Lab, files: dict[str, File]) -> None:
    files["trashed home"].set_aside("trash", home=True)
    files["set aside copy"].set_aside("unknown", home=False)
    os.truncate(files["cut copy"].path(home=False), SIZE // 2)
    files["lost home"].path(home=True).unlink()
    files["lost copy"].path(home=False).unlink()
    files["touched home"].path(home=True).chmod(0o640)
    for name in ("changed copy", "rotten copy"):
        path = files[name].path(home=False)
        times = path.stat()
        with path.open("r+b") as file:
            file.write(b"rot")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    rotten = files["rotten copy"]
    with closing(sqlite3.connect(lab.root / "catalog" / "catalog.db", timeout=10, isolation_level=None)) as connection:
        connection.execute(
            "UPDATE replicas SET stamp_ctime_ns = ? WHERE ino = ? "
            "AND volume != (SELECT home_volume FROM inodes WHERE inodes.ino = replicas.ino)",
            (rotten.path(home=False).stat().st_ctime_ns, rotten.ino),
        )
    stray = Path(VolumeLayout(lab.volume("s2")).object_path(STRAY_INO))
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"of a file that nobody knows")


def test_a_check_shows_what_differs_and_a_repair_mends_it_and_deletes_nothing(lab: Lab) -> None:
    files = write_files(lab)
    assert fsck(lab, code=0)["findings"] == []
    damage(lab, files)
    expected = {
        "trashed home": "missing",
        "set aside copy": "missing",
        "cut copy": "wrong size",
        "lost home": "missing",
        "lost copy": "missing",
        "touched home": "wrong stamp",
        "changed copy": "wrong stamp",
        str(STRAY_INO): "unknown",
    }
    assert kinds(fsck(lab, code=1)) == expected
    assert kinds(fsck(lab, "--deep", code=1)) == {**expected, "rotten copy": "wrong digest"}
    assert not files["set aside copy"].path(home=False).exists(), "nothing is mended unasked"

    report = fsck(lab, "--repair", "--deep", code=0)
    assert report["mended"] == len(expected) + 1, report
    wait_for_copies(lab)
    for name, file in files.items():
        for server in lab.servers:
            assert (lab.mount(server) / name).read_bytes() == file.content, (name, server)
        where = godwit(lab, "where", str(lab.mount("s1") / name))
        assert sum(item["current"] for item in where["replicas"]) == 2, where
        assert all(item["fault"] == "" for item in where["replicas"])
    assert fsck(lab, "--deep", code=0)["findings"] == []
    aside = {item["ino"]: item for item in godwit(lab, "volumes", "unknown")["unknown"]}
    assert set(aside) == {STRAY_INO, *(files[name].ino for name in ("cut copy", "changed copy", "rotten copy"))}
    kept = Path(aside[STRAY_INO]["volume_path"]) / "unknown" / aside[STRAY_INO]["name"]
    assert kept.read_bytes() == b"of a file that nobody knows"


def test_the_only_content_of_a_file_stays_where_it_is(lab: Lab) -> None:
    name = lab.mount("s1") / "alone"
    godwit(lab, "policy", "set", str(lab.mount("s1")), "--copies", "1")
    name.write_bytes(b"the only content")
    wait_until(lambda: not godwit(lab, "where", str(name))["dirty"], "committed")
    wait_for_copies(lab)
    where = godwit(lab, "where", str(name))
    (replica,) = where["replicas"]
    path = Path(VolumeLayout(Path(replica["path"])).object_path(where["ino"]))
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").rename(path)  # without its record
    os.truncate(path, 8)
    (finding,) = fsck(lab, "--repair", code=1)["findings"]
    assert (finding["outcome"], finding["path"]) == ("left", "/alone")
    assert "no other replica has its content" in finding["text"]
    assert path.read_bytes() == b"the only"
    assert "8 bytes instead of 16" in godwit(lab, "where", str(name))["replicas"][0]["fault"]
