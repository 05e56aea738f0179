"""The console script: the nouns put together, and what the shell is told when they fail."""

import logging
import sys
from typing import Annotated

import typer

from cli.commands import (
    accept,
    db,
    drain,
    files,
    fsck,
    init,
    join,
    lab,
    leases,
    locks,
    manager,
    migrate,
    migrations,
    policy,
    queue,
    run,
    status,
    units,
    where,
)
from cli.commands.servers import servers
from cli.commands.volumes import volumes
from cluster.errors import GodwitError, Unavailable

EXIT_FAILURE = 1  # what typer and the shell take for any failure; 2 is wrong usage, by typer itself
EXIT_UNREACHABLE = 3  # for scripts: trying again may help

HELP = """Godwit: one storage network out of several Linux servers.

Commands about a running network ask its manager. Which network: --root DIR or GODWIT_ROOT names a lab; without them it is
this machine's own (/etc/godwit/godwit.toml), else the only lab that is up.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 somebody did not answer in time.

\b
Examples:
  godwit lab up                           three servers on this machine
  godwit status                           who is the manager, what is waiting
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
app.command("where")(where.where)
app.command("fsck")(fsck.fsck)
app.command("accept")(accept.accept)
app.command("files")(files.files)
app.command("init")(init.init)
app.command("join")(join.join)
app.command("units")(units.units)
app.add_typer(servers.app, name="servers")
app.add_typer(volumes.app, name="volumes")
app.add_typer(manager.app, name="manager")
app.add_typer(db.app, name="db")
app.add_typer(queue.app, name="queue")
app.add_typer(policy.app, name="policy")
app.command("migrate")(migrate.migrate)
app.command("drain")(drain.drain)
app.add_typer(migrations.app, name="migrations")
app.add_typer(leases.app, name="leases")
app.add_typer(locks.app, name="locks")
app.add_typer(lab.app, name="lab")
app.add_typer(run.app, name="run")


@app.callback()
def godwit(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log to stderr what the connection does.")] = False,
) -> None:
    logging.basicConfig(
        # CRITICAL is silence: what a command has to say it prints, and the log is for --verbose.
        stream=sys.stderr,
        level=logging.DEBUG if verbose else logging.CRITICAL,
        format="godwit: %(name)s: %(message)s",
    )


def main() -> None:
    """Runs the command line of this process and exits: an error is one line on stderr, never a traceback."""
    try:
        app(prog_name="godwit")
    except Unavailable as error:
        # Before GodwitError, of which it is one.
        fail(str(error), EXIT_UNREACHABLE)
    except (GodwitError, OSError) as error:
        # Anything else is a defect of the program: its traceback is what helps.
        fail(str(error), EXIT_FAILURE)


def fail(message: str, code: int) -> None:
    print(f"godwit: {message}", file=sys.stderr)  # noqa: T201 – the one place that reports failures
    sys.exit(code)


if __name__ == "__main__":
    main()
