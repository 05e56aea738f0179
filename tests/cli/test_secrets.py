"""Passwords and tokens come from files, the environment or a prompt; what was typed into the command line is refused."""

import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from cli.main import app
from cli.network.secrets import database_url, join_token
from cluster.errors import Refused
from lab.state import new_state, write_state

URL = "postgresql+psycopg://godwit@10.0.0.9/godwit"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GODWIT_DATABASE", "GODWIT_LAB_DATABASE", "GODWIT_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def test_a_password_is_asked_for_and_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(typer, "prompt", lambda *_words, hide_input, err: "p@ss:/?" if hide_input and err else "")
    assert database_url(URL, None, ask_password=True) == "postgresql+psycopg://godwit:p%40ss%3A%2F%3F@10.0.0.9/godwit"
    with pytest.raises(Refused, match="is not the URL of a database"):
        database_url("what", None, ask_password=True)


def test_the_environment_comes_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert database_url(None, None, ask_password=False) is None
    monkeypatch.setenv("GODWIT_DATABASE", "sqlite:////environment")
    (tmp_path / "url").write_text("sqlite:////file\n")
    assert database_url(None, None, ask_password=False) == "sqlite:////environment"
    assert database_url(None, tmp_path / "url", ask_password=False) == "sqlite:////file"
    assert database_url("sqlite:////typed", None, ask_password=False) == "sqlite:////typed"


@pytest.mark.parametrize(
    "typed",
    [
        "postgresql+psycopg://godwit:hidden@10.0.0.9/godwit",
        "postgresql+psycopg://godwit:hid/den@10.0.0.9/godwit",
        "postgresql+psycopg://:hidden@10.0.0.9/godwit",
        "postgresql+psycopg://godwit@10.0.0.9/godwit?password=hidden",
        "postgresql+psycopg://godwit@10.0.0.9/godwit?sslmode=require&%70assword=hidden",
        "postgresql+psycopg://godwit@10.0.0.9/godwit?sslkey=/key&sslpassword=hidden",
    ],
)
@pytest.mark.parametrize("option", ["--database", "--db"])
def test_what_others_see_is_refused(typed: str, option: str) -> None:
    with pytest.raises(Refused, match="everybody on this machine can see") as refused:
        database_url(typed, None, ask_password=False, option=option)
    assert f"{option}-file" in str(refused.value)
    assert "hid" not in str(refused.value)


def test_what_is_no_url_is_not_shown() -> None:
    with pytest.raises(Refused, match="is not the URL of a database") as refused:
        database_url("postgresql+psycopg://godwit:hidden@host:port/x", None, ask_password=False)
    assert "hidden" not in str(refused.value)


def test_a_certificate_is_no_secret() -> None:
    with_certificate = f"{URL}?sslmode=verify-full&sslcert=/etc/godwit/db/client.pem&sslkey=/etc/godwit/db/client.key"
    assert database_url(with_certificate, None, ask_password=False) == with_certificate
    assert database_url("postgresql", None, ask_password=False, option="--db") == "postgresql"


@pytest.fixture
def lab_with_url(tmp_path: Path) -> Path:
    """A lab that was made with a database elsewhere, and is down."""
    (tmp_path / "lab").mkdir()
    write_state(tmp_path / "lab", new_state(1, 1, "postgresql+psycopg://godwit:made@10.0.0.9/lab", {}))
    return tmp_path / "lab"


def refusal_of_lab_up(lab: Path, *options: str, **environment: str) -> str:
    done = CliRunner().invoke(app, ["lab", "up", "--root", str(lab), *options], env=environment, input="asked\n")
    assert isinstance(done.exception, Refused), done
    return str(done.exception)


@pytest.mark.skipif(os.geteuid() != 0, reason="labs need root")
def test_a_lab_takes_no_password_from_the_command_line(lab_with_url: Path, tmp_path: Path) -> None:
    url = "postgresql+psycopg://godwit:{}@10.0.0.9/lab"
    assert "--db has a password in it" in refusal_of_lab_up(lab_with_url, "--db", url.format("made"))
    (tmp_path / "url").write_text(url.format("file"))
    # Each way is taken: it gives another URL than the lab was made with.
    for refusal in (
        refusal_of_lab_up(lab_with_url, "--db-file", str(tmp_path / "url")),
        refusal_of_lab_up(lab_with_url, GODWIT_LAB_DATABASE=url.format("environment")),
        refusal_of_lab_up(lab_with_url, "--db", url.format("").replace(":@", "@"), "--ask-password"),
    ):
        assert "--db: the lab at" in refusal
        assert "was made otherwise" in refusal
        assert "10.0.0.9" not in refusal


# What takes a secret, or something beside one: how each is kept from being typed is tested above.
OF_SECRETS = {"--database", "--database-file", "--db", "--db-file", "--ask-password", "--token-file"}


def options_of(command: Any) -> Iterator[str]:
    for parameter in command.params:
        yield from parameter.opts
    for inner in getattr(command, "commands", {}).values():
        yield from options_of(inner)


def test_no_other_option_or_argument_takes_a_secret() -> None:
    names = set(options_of(typer.main.get_command(app)))
    telling = re.compile(r"pass|token|secret|key|pin|url|data|^--db|credential|auth", re.IGNORECASE)
    assert {name for name in names if telling.search(name)} == OF_SECRETS


def test_a_token_is_read_from_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("GW1.typed\n"))
    with pytest.raises(Refused, match="a token is needed"):
        join_token(None)
    assert join_token(Path("-")) == "GW1.typed"
    monkeypatch.setenv("GODWIT_TOKEN", "GW1.environment")
    assert join_token(None) == "GW1.environment"
    (tmp_path / "token").write_bytes(b"GW1.file\n")
    assert join_token(tmp_path / "token") == "GW1.file"
    (tmp_path / "token").write_bytes(b"\xff\xfe")
    with pytest.raises(Refused, match="it is no text"):
        join_token(tmp_path / "token")
    with pytest.raises(Refused, match="No such file"):
        join_token(tmp_path / "missing")
