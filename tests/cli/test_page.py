"""`godwit page password`: what is kept, and what is said."""

import io
import stat
from pathlib import Path

import msgspec
import pytest

from cluster.config import AgentConfig, ManagerConfig, MountConfig, PageConfig, ServerConfig, write_config
from cluster.trust.folder import TrustFolder
from cluster.trust.password import LENGTH_MIN, is_right, load
from tests.support.runner import godwit
from tests.support.trust import trust_of

PASSWORD = "correct horse battery staple"


@pytest.fixture
def server(tmp_path: Path) -> ServerConfig:
    """A candidate that serves a page; its configuration is in `godwit.toml`."""
    made = ServerConfig(
        "test",
        "s7",
        ["127.0.0.1:7400"],
        ManagerConfig("127.0.0.1:7400", f"sqlite:///{tmp_path}/catalog.db"),
        AgentConfig("127.0.0.1:7401"),
        MountConfig("/mnt/godwit"),
        trust=trust_of("s7"),
        page=PageConfig("127.0.0.1:7420"),
    )
    write_config(tmp_path / "godwit.toml", made)
    return made


def command(folder: Path, *options: str) -> tuple[int, str, str]:
    done = godwit("page", "password", "--config", str(folder / "godwit.toml"), *options)
    return done.returncode, done.stdout, done.stderr


def test_a_password_is_kept_as_a_hash_and_removed(server: ServerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = TrustFolder(server.trust).page_password
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PASSWORD}\nmore\n"))
    code, out, err = command(tmp_path)
    assert (code, err) == (0, "")
    assert out.startswith("set, for https://127.0.0.1:7420/\nits certificate has the SHA-256 fingerprint ")
    assert len(out.split()[-1].split(":")) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    content = path.read_bytes()
    assert PASSWORD.encode() not in content
    assert is_right(PASSWORD, load(content))
    assert not is_right(PASSWORD + " ", load(content))
    assert command(tmp_path, "--remove") == (
        0,
        "removed: https://127.0.0.1:7420/ lets in certificates of administrators alone\n",
        "",
    )
    assert not path.exists()
    assert command(tmp_path, "--remove")[0] == 0


@pytest.mark.parametrize(
    ("given", "why"), [("", "0 characters"), ("x" * (LENGTH_MIN - 1), "at least 12"), ("x" * 2000, "1024 bytes")]
)
def test_a_bad_password_is_refused(
    given: str, why: str, server: ServerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(given + "\n"))
    code, out, err = command(tmp_path)
    assert (code, out) == (1, "")
    assert why in err
    assert not TrustFolder(server.trust).page_password.exists()


def test_a_server_without_a_manager_has_no_page(server: ServerConfig, tmp_path: Path) -> None:
    other = msgspec.structs.replace(server, manager=ManagerConfig(), page=PageConfig())
    write_config(tmp_path / "godwit.toml", other)
    code, _, err = command(tmp_path)
    assert (code, err.count("\n")) == (1, 1)
    assert "s7 has no manager, and so no page" in err
