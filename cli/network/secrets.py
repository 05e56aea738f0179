"""Passwords and tokens that a person gives: from a file, from the environment, or typed at a prompt, never as an argument.

Everybody on the machine sees the arguments of commands, and shells remember them.
"""

import os
import sys
from pathlib import Path

import typer

from cluster.errors import Refused

DATABASE_VARIABLE = "GODWIT_DATABASE"
LAB_DATABASE_VARIABLE = "GODWIT_LAB_DATABASE"  # another one: a lab must not take the database that is meant for a network
TOKEN_VARIABLE = "GODWIT_TOKEN"  # noqa: S105 - its name


def database_url(
    argument: str | None,
    file: Path | None,
    *,
    ask_password: bool,
    option: str = "--database",
    variable: str = DATABASE_VARIABLE,
) -> str | None:
    """The URL of the catalog's database; None: nobody has given one. Raises `Refused`, never with a password.

    *option*: the name of the one that *argument* is of; that of *file* is the same with `-file`. *variable* counts if there is
    neither. What is no URL (`sqlite`) is returned as it is.
    """
    given = [name for name, value in ((option, argument), (f"{option}-file", file)) if value is not None]
    if len(given) > 1:
        raise typer.BadParameter("only one of them", param_hint=" and ".join(given))
    if argument is not None and "://" in argument and _has_secret(argument):
        raise Refused(
            f"{option} has a password in it, which everybody on this machine can see: leave it out and add --ask-password, or "
            f"give the URL as {option}-file or in {variable}"
        )
    text = argument if argument is not None else _read(file) if file is not None else os.environ.get(variable)
    if not ask_password:
        return text
    if text is None:
        raise typer.BadParameter(f"there is no {option} that it could be of", param_hint="--ask-password")
    return _with_password(text)


def _has_secret(text: str) -> bool:
    # Imported here, as below: most commands need no SQLAlchemy.
    from manager.catalog.urls import has_secret

    return has_secret(text)


def _with_password(text: str) -> str:
    from manager.catalog.urls import with_password

    return with_password(text, typer.prompt("Password of the database", hide_input=True, err=True))


def join_token(file: Path | None) -> str:
    """What somebody gives as a token."""
    if file is not None:
        return _read(file)
    if (text := os.environ.get(TOKEN_VARIABLE)) is not None:
        return text
    if not sys.stdin.isatty():
        raise Refused(f"a token is needed: --token-file FILE (- for the standard input), or {TOKEN_VARIABLE}")
    token: str = typer.prompt("Token", hide_input=True, err=True)
    return token


def _read(file: Path) -> str:
    try:
        return (sys.stdin.read() if str(file) == "-" else file.read_text()).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise Refused(f"cannot read {file}: {reason}") from error
