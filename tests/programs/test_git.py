"""git with its repositories on a mount."""

import shutil
from pathlib import Path

import pytest

from tests.support.modes import both_modes
from tests.support.running import need, run

pytestmark = [pytest.mark.programs, both_modes]

IDENTITY = {
    "GIT_AUTHOR_NAME": "Anna",
    "GIT_AUTHOR_EMAIL": "anna@example.org",
    "GIT_COMMITTER_NAME": "Anna",
    "GIT_COMMITTER_EMAIL": "anna@example.org",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
}


def git(repository: Path, *arguments: object) -> str:
    return run([need("git", "git"), *arguments], cwd=repository, env=IDENTITY)


def fill(repository: Path) -> None:
    for n in range(60):
        path = repository / f"part-{n % 6}" / f"file-{n}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"line {line} of file {n}\n" for line in range(n * 5)))
    (repository / "run.sh").write_text("#!/bin/sh\n")
    (repository / "run.sh").chmod(0o755)
    (repository / "link").symlink_to("part-1")


def test_a_repository_lives_on_a_mount(directory: Path) -> None:
    repository = directory / "repository"
    repository.mkdir()
    git(repository, "init", "-q", "-b", "main")
    fill(repository)
    git(repository, "add", ".")
    git(repository, "commit", "-q", "-m", "First")
    assert git(repository, "status", "--porcelain") == ""

    git(repository, "checkout", "-q", "-b", "side")
    (repository / "part-1" / "file-7.txt").write_text("changed\n")
    git(repository, "mv", "part-2", "part-two")
    shutil.rmtree(repository / "part-3")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "Second")
    git(repository, "checkout", "-q", "main")
    assert (repository / "part-3").is_dir()
    assert not (repository / "part-two").exists()
    git(repository, "merge", "-q", "--no-ff", "-m", "Merge", "side")
    assert (repository / "part-two").is_dir()
    assert git(repository, "status", "--porcelain") == ""

    git(repository, "gc", "-q", "--aggressive", "--prune=now")
    assert git(repository, "fsck", "--strict", "--full") == ""
    assert git(repository, "rev-list", "--count", "HEAD").strip() == "3"


def test_a_clone_is_the_same(directory: Path, tmp_path: Path) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    git(origin, "init", "-q", "-b", "main")
    fill(origin)
    git(origin, "add", ".")
    git(origin, "commit", "-q", "-m", "First")
    for source, target in ((origin, "from-outside"), (directory / "from-outside", "from-inside")):
        git(directory, "clone", "-q", source, target)
        clone = directory / target
        assert git(clone, "status", "--porcelain") == ""
        assert git(clone, "fsck", "--full") == ""
        assert git(clone, "rev-parse", "HEAD") == git(origin, "rev-parse", "HEAD")
    (directory / "from-inside" / "new").write_text("new\n")
    git(directory / "from-inside", "add", "new")
    git(directory / "from-inside", "commit", "-q", "-m", "New")
    git(directory / "from-inside", "push", "-q", "origin", "HEAD:refs/heads/new")
    assert "new" in git(directory / "from-outside", "ls-tree", "--name-only", "new")
