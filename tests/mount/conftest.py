"""Where the tests of one mount do their work: each runs on ext4, too, and so shows that it expects what ext4 does."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.conftest import fresh, reading_logs
from tests.support.modes import FALLBACK, PASSTHROUGH


@pytest.fixture(params=["ext4", "mount"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A fresh directory that everybody may enter: once on ext4, once on a mount."""
    if request.param == "mount":
        path: Path = request.getfixturevalue("directory")
        return path
    return open_to_all(tmp_path)


@pytest.fixture(params=["ext4", PASSTHROUGH, FALLBACK])
def place_in_each_mode(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """The same on ext4, and on a mount in each of the two modes."""
    if request.param == "ext4":
        yield open_to_all(tmp_path)
        return
    network: Lab = request.getfixturevalue(request.param)
    with reading_logs(network):
        yield fresh(network.mount("s1"))


def open_to_all(path: Path) -> Path:
    """Lets everybody enter a temporary directory."""
    for folder in (path, *path.parents):
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    return path


@dataclass(frozen=True)
class Views:
    """The same directory as the three servers see it."""

    s1: Path
    s2: Path
    s3: Path

    @property
    def all(self) -> tuple[Path, Path, Path]:
        return self.s1, self.s2, self.s3


@pytest.fixture
def views(network: Lab, orderly_logs: None) -> Views:
    """A fresh directory on the mounts of three servers."""
    made = fresh(network.mount("s1"))
    return Views(made, network.mount("s2") / made.name, network.mount("s3") / made.name)
