"""The console script: the nouns put together, and what the shell is told when they fail."""

import logging
import os
import sys
from contextlib import suppress
from typing import Annotated, TextIO

import typer

from cli import exits
from cli.commands import (
    accept,
    certs,
    db,
    doctor,
    drain,
    events,
    export,
    files,
    fsck,
    imports,
    init,
    join,
    lab,
    leases,
    locks,
    manager,
    migrate,
    migrations,
    page,
    policy,
    queue,
    rebuild,
    rejoin,
    run,
    status,
    top,
    units,
    where,
)
from cli.commands.servers import servers
from cli.commands.volumes import volumes
from cli.display.render import print_line
from cluster.errors import GodwitError, Unavailable, error_text
from cluster.release import RELEASE

HELP = """Godwit: one storage network out of several Linux servers.

Commands about a running network ask its manager. Which network: --root DIR or GODWIT_ROOT names a lab; without them it is
this machine's own (/etc/godwit/godwit.toml), else the only lab that is up.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 somebody did not answer in time, 4 (godwit status, godwit doctor)
something wants attention, 130 interrupted.

\b
Examples:
  godwit lab up                           three servers on this machine
  godwit status                           is all well, and what is not
  godwit where /var/lib/godwit/lab/s1/mnt/file
  godwit queue ls --json                  for programs
"""

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # rich's tracebacks show local variables, secrets among them
    rich_markup_mode=None,  # brackets in help texts mean themselves
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("status")(status.status)
app.command("events")(events.events)
app.command("top")(top.top)
app.command("where")(where.where)
app.command("doctor")(doctor.doctor)
app.command("fsck")(fsck.fsck)
app.command("export")(export.export)
app.command("rebuild")(rebuild.rebuild)
app.command("import")(imports.import_tree)
app.command("accept")(accept.accept)
app.command("files")(files.files)
app.command("init")(init.init)
app.command("join")(join.join)
app.command("rejoin")(rejoin.rejoin)
app.command("units")(units.units)
app.add_typer(servers.app, name="servers")
app.add_typer(volumes.app, name="volumes")
app.add_typer(manager.app, name="manager")
app.add_typer(certs.app, name="certs")
app.add_typer(db.app, name="db")
app.add_typer(page.app, name="page")
app.add_typer(queue.app, name="queue")
app.add_typer(policy.app, name="policy")
app.command("migrate")(migrate.migrate)
app.command("drain")(drain.drain)
app.add_typer(migrations.app, name="migrations")
app.add_typer(leases.app, name="leases")
app.add_typer(locks.app, name="locks")
app.add_typer(lab.app, name="lab")
app.add_typer(run.app, name="run")


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(f"godwit {RELEASE}")
        raise typer.Exit


@app.callback()
def godwit(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log to stderr what the connection does.")] = False,
    _version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print which Godwit this is, and exit."),
    ] = False,
) -> None:
    logging.basicConfig(
        # CRITICAL is silence: what a command has to say it prints, and the log is for --verbose.
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.CRITICAL,
        format="godwit: %(name)s: %(message)s",
    )


def main() -> None:
    """Runs the command line of this process and exits: an error is one line on stderr, never a traceback."""
    out = sys.stdout  # click puts another in its place when nobody reads it any more
    try:
        try:
            app(prog_name="godwit")
        except SystemExit:
            write_out(out)
            raise
    except BrokenPipeError:
        sys.exit(exits.FAILURE)
    except BaseExceptionGroup as group:
        # trio wraps what ends a nursery. Ctrl-C is no defect; anything else is one, as below.
        if group.split(KeyboardInterrupt)[1] is not None:
            raise
        sys.exit(exits.INTERRUPTED)
    except Unavailable as error:
        # Before GodwitError, of which it is one.
        fail(str(error), exits.UNREACHABLE)
    except (GodwitError, OSError) as error:
        # Anything else is a defect of the program: its traceback is what helps.
        fail(error_text(error), exits.FAILURE)


def fail(message: str, code: int) -> None:
    print(f"godwit: {message}", file=sys.stderr)  # noqa: T201 – the one place that reports failures
    with suppress(OSError):
        write_out(sys.stdout)
    sys.exit(code)


def write_out(out: TextIO) -> None:
    """Writes what was printed and is still in memory. Raises `OSError`, once.

    At the end of the process nobody could catch it, and the interpreter would end that with a message and a code of its own.
    """
    try:
        out.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        raise


if __name__ == "__main__":
    main()
