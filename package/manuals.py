"""Writes the manual pages: one for each command, made of what its `--help` says. Run by the package's own Python.

As with git, the page of `godwit servers add` is godwit-servers-add(1).
"""

import gzip
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from cli.main import app
from cluster.release import RELEASE

PLAIN = "\b"  # what click has before a paragraph that keeps its lines
WIDTH = 100_000  # of help texts: nothing is cut off, and roff breaks lines
MOUNT = Path(__file__).with_name("mount.godwit.8")


def main() -> None:
    """Writes them below the directory that is the one argument."""
    place = Path(sys.argv[1])
    for section in ("man1", "man8"):
        (place / section).mkdir(parents=True)
    command = typer.main.get_command(app)
    for name, text in pages(command, typer.Context(command, info_name="godwit", terminal_width=WIDTH)):
        write(place / f"man1/{name}.1.gz", text)
    write(place / "man8/mount.godwit.8.gz", MOUNT.read_text().replace("@RELEASE@", RELEASE))


def write(path: Path, text: str) -> None:
    """Compresses as Debian wants it: best, and without a time."""
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def pages(command: Any, context: typer.Context) -> Iterator[tuple[str, str]]:  # typer's commands are of no public type
    """Name and text of the page of a command, and of all below it."""
    name = context.command_path.replace(" ", "-")
    inner = {word: found for word, found in sorted(getattr(command, "commands", {}).items()) if not found.hidden}
    yield name, page(name, command, context, list(inner.items()))
    for word, found in inner.items():
        yield from pages(found, typer.Context(found, info_name=word, parent=context, terminal_width=WIDTH))


def page(name: str, command: Any, context: typer.Context, inner: list[tuple[str, Any]]) -> str:
    """The text of one page, in roff's man macros."""
    help_text = (command.help or "").strip()
    first, _blank, rest = help_text.partition("\n\n")
    summary = " ".join(first.split())
    headline = summary.split(". ")[0].removesuffix(".")
    lines = [
        f'.TH {roff(name.upper())} 1 "" "godwit {RELEASE}" "Godwit"',
        ".SH NAME",
        f"{roff(name)} \\- {roff(headline)}",
        ".SH SYNOPSIS",
        f".B {roff(context.command_path)}",
        roff(" ".join(command.collect_usage_pieces(context))),
        ".SH DESCRIPTION",
        roff(summary),
        *paragraphs(rest),
    ]
    options = [record for option in command.get_params(context) if (record := option.get_help_record(context)) is not None]
    commands = [(word, (found.help or "").partition("\n\n")[0]) for word, found in inner]
    for title, records in (("OPTIONS", options), ("COMMANDS", commands)):
        lines += [f".SH {title}"] if records else []
        for term, explained in records:
            lines += [".TP", f".B {roff(term)}", roff(" ".join(explained.split()))]
    lines += [".SH SEE ALSO", *(f".BR {roff(other)} (1)," for other in related(name, inner, context))]
    lines += [".I /usr/share/doc/godwit/operations.md"]
    return "\n".join(lines) + "\n"


def related(name: str, inner: list[tuple[str, Any]], context: typer.Context) -> list[str]:
    """The pages above and below one."""
    above = [context.parent.command_path.replace(" ", "-")] if context.parent is not None else []
    return [*above, *(f"{name}-{word}" for word, _command in inner)]


def paragraphs(text: str) -> Iterator[str]:
    """Those of a help text after its first; *PLAIN* ones keep their lines."""
    for paragraph in filter(None, text.split("\n\n")):
        if paragraph.lstrip("\n").startswith(PLAIN):
            yield from (".PP", ".nf", *map(roff, paragraph.lstrip("\n").removeprefix(PLAIN).strip("\n").split("\n")), ".fi")
        else:
            yield from (".PP", roff(" ".join(paragraph.split())))


def roff(text: str) -> str:
    """Text as it stands, for roff: no character of it is an instruction."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...").replace("–", "\\(en")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    main()
