"""The database is gone, and what else its host had: a catalog is made of the volumes, and the tree is what it was."""

import json
import os
import random
import shutil
from collections.abc import Iterable
from pathlib import Path

from tests.support.conditions import wait_until
from tests.support.labs import lab_up
from tests.support.runner import godwit_process
from tests.support.trees import differences, snapshot

FILES = 150
SEED = 20261203


def grow(root: Path) -> None:
    """Files, directories, links, attributes and access lists."""
    rng = random.Random(SEED)
    directories = [root]
    for number in range(FILES):
        parent = rng.choice(directories)
        kind = rng.choice(("file", "file", "file", "file", "directory", "symlink", "link", "fifo"))
        path = parent / f"{kind} ü {number}"
        if kind == "directory":
            path.mkdir()
            directories.append(path)
        elif kind == "symlink":
            path.symlink_to(f"../nowhere/{number}")
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "link" and (files := [one for one in parent.iterdir() if one.is_file() and not one.is_symlink()]):
            path.hardlink_to(files[0])
        else:
            path.write_bytes(rng.randbytes(rng.randrange(0, 3000)))
            os.setxattr(path, "user.number", str(number).encode())
        if kind != "symlink" and rng.random() < 0.5:
            os.chown(path, rng.randrange(1000), rng.randrange(1000))
            path.chmod(rng.choice((0o600, 0o640, 0o755, 0o4711, 0o1777)))
            os.utime(path, ns=(10**18, 10**18 + number))


def is_backed_up(volumes: Iterable[Path], after: float) -> bool:
    """Whether each volume has a whole backup that was begun later than that."""
    return all(
        any(not path.name.startswith(".") and path.stat().st_mtime > after + 2 for path in (volume / "backups").glob("*"))
        for volume in volumes
    )


def test_the_tree_is_as_it_was_before_the_database_was_deleted(tmp_path: Path) -> None:
    with lab_up(tmp_path / "lab", servers=1, volumes=2, overrides={"backup": {"every_s": 4.0}}) as lab:
        mount, volumes = lab.mount("s1"), [lab.root / "s1/vol1", lab.root / "s1/vol2"]
        grow(mount)
        written = max((mount / name).lstat().st_ctime for name in os.listdir(mount))
        wait_until(lambda: is_backed_up(volumes, written), "all volumes have a backup", 60)
        (mount / "after").mkdir()
        (mount / "after" / "the backup").write_text("new")
        before = snapshot(os.fsencode(mount))
        number = os.stat(mount / "after" / "the backup").st_ino
        lab.down()
        shutil.rmtree(lab.root / "catalog")
        shutil.rmtree(lab.root / "s1" / "state")
        sources = [argument for volume in volumes for argument in ("--from", str(volume))]
        url = f"sqlite:///{lab.root}/catalog/catalog.db"
        done = godwit_process("rebuild", *sources, "--db", url, "--json")
        assert done.returncode == 0, done
        made = json.loads(done.stdout)
        assert made["backup"] is not None
        assert set(made["counts"]) <= {"known", "newer", "made", "blank"}
        lab.up()
        assert differences(snapshot(os.fsencode(mount)), before, names=("rebuilt", "before")) == []
        assert os.stat(mount / "after" / "the backup").st_ino == number
