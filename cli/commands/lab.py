"""`godwit lab …`: a whole storage network on this machine, with faults on demand."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.display.lab import lab_object, print_labs, print_up, server_object, shown
from cli.display.render import print_json, print_line
from cli.network.completion import complete_host
from cli.network.secrets import LAB_DATABASE_VARIABLE, database_url
from cli.network.target import JsonOption, RootOption, only_lab
from cluster.errors import Refused
from cluster.messages import NamesPolicy
from lab.lab import DEFAULT_ROOT, START_TIMEOUT_S, Lab
from lab.registry import lab_lock, registered
from lab.state import SQLITE, STATE_FILE, read_state
from lab.teardown import end_everything, has_remains
from lab.tools import require_root

app = typer.Typer(
    help="A whole storage network on this machine: servers s1, s2, … as network namespaces. Needs root.\n\n"
    "DIR/s1/mnt is a server's mount, DIR/s1/vol1 its volume, DIR/s1/log its logs. DIR is /var/lib/godwit/lab unless --root or "
    "GODWIT_ROOT says otherwise.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class Part(StrEnum):
    """What `kill` and `start` take."""

    ALL = "all"  # the default: a server dies as a whole
    MOUNT = "mount"
    AGENT = "agent"
    MANAGER = "manager"


HostArgument = Annotated[
    str,
    typer.Argument(
        metavar="HOST", autocompletion=complete_host, help="s1, s2, …, or db: the lab's PostgreSQL.", show_default=False
    ),
]
PartArgument = Annotated[Part, typer.Argument(help="Which of its processes.")]


@app.command()
def up(
    servers: Annotated[int | None, typer.Option("--servers", metavar="N", help="How many servers.  [default: 3]")] = None,
    volumes: Annotated[int | None, typer.Option("--volumes", metavar="K", help="How many volumes each.  [default: 1]")] = None,
    db: Annotated[
        str | None,
        typer.Option(
            "--db",
            metavar="DATABASE",
            help="sqlite; postgresql, started by the lab; or a URL without a password.  [default: sqlite]",
        ),
    ] = None,
    db_file: Annotated[
        Path | None,
        typer.Option("--db-file", metavar="FILE", help="A file with the URL, which may have a password.", show_default=False),
    ] = None,
    ask_password: Annotated[
        bool, typer.Option("--ask-password", help="Ask for the password of the database at that URL.")
    ] = False,
    names: Annotated[
        NamesPolicy | None,
        typer.Option(
            "--names", help="Sets this in the root's policy, before mounts start: see godwit policy set.", show_default=False
        ),
    ] = None,
    root: RootOption = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, metavar="SECONDS", help="How long it may take.")
    ] = START_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Start a lab. Returns when every mount answers.

    A lab that was taken down without --purge, or killed, comes up again with its data. A password of a database is never typed
    into the command line, where others see it: --db-file, --ask-password, or the URL in the environment, as GODWIT_LAB_DATABASE.

    \b
    Examples:
      godwit lab up
      godwit lab up --servers 5 --volumes 2 --root /tmp/five
      godwit lab up --db postgresql
      godwit lab up --db postgresql+psycopg://godwit@10.0.0.9/lab --ask-password
      godwit lab up --names through
    """
    require_root()
    database = database_url(db, db_file, ask_password=ask_password, option="--db", variable=LAB_DATABASE_VARIABLE)
    folder = Path(os.path.realpath(root or DEFAULT_ROOT))
    with _interruptible():
        lab = _make_or_load(folder, servers, volumes, database)
        lab.up(timeout, names)
    if as_json:
        print_json({"lab": lab_object(lab)})
    else:
        print_up(lab)


def _make_or_load(root: Path, servers: int | None, volumes: int | None, database: str | None) -> Lab:
    if not (root / STATE_FILE).exists():
        return Lab.create(root, 3 if servers is None else servers, 1 if volumes is None else volumes, database)
    state = read_state(root)
    for option, given, made in (
        ("--servers", servers, state.servers),
        ("--volumes", volumes, state.volumes),
        ("--db", database, state.database or SQLITE),
    ):
        # An option that would be ignored is refused; without options a lab is taken as it is.
        if given is not None and given != made:
            # Without what was given: a URL may have a password.
            raise Refused(f"{option}: the lab at {root} was made otherwise; take another --root, or purge it first")
    return Lab.load(root)


@app.command("ls")
def list_labs(
    root: Annotated[Path | None, typer.Option("--root", metavar="DIR", help="Only this lab.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """List the labs that are up, and whether their supervisors run. Those that were killed and not taken down are listed, too.

    Example: godwit lab ls --json
    """
    require_root()
    wanted = [found for found in registered() if root is None or found == Path(os.path.realpath(root))]
    # A registered lab without `lab.json` was deleted by hand while it was up.
    there = [found for found in wanted if (found / STATE_FILE).exists()]
    lost = [found for found in wanted if found not in there]
    if as_json:
        labs, damaged = shown(there, lab_object)
        problems = [{"root": str(found), "problem": problem} for found, problem in damaged.items()]
        print_json({"labs": labs, "damaged": problems, "lost": [str(found) for found in lost]})
    else:
        print_labs(there, lost)


@app.command()
def down(purge: Annotated[bool, typer.Option("--purge", help="Delete its data, too.")] = False, root: RootOption = None) -> None:
    """Take a lab down. Its processes, mounts and network go; its data stays for the next up, unless --purge says otherwise.

    \b
    Examples:
      godwit lab down
      godwit lab down --purge --root /tmp/five
    """
    require_root()
    folder = Path(os.path.realpath(root)) if root is not None else None
    # Its folder is gone: names in the kernel are all that is left to go by.
    if folder is not None and not (folder / STATE_FILE).exists() and has_remains(folder):
        with lab_lock(folder):
            end_everything(folder)
        print_line(f"what was left of the lab at {folder} is gone; it has no {STATE_FILE}, so no data was touched")
        return
    lab = _find_lab(root)
    folder = lab.root
    lab.down(purge)
    print_line(f"the lab at {folder} is down{' and its data deleted' if purge else ''}")


@app.command()
def kill(
    host: HostArgument,
    part: PartArgument = Part.ALL,
    name: Annotated[
        str, typer.Option("--signal", metavar="SIGNAL", help="A name or number: KILL, TERM, STOP, CONT, 9.")
    ] = "KILL",
    root: RootOption = None,
) -> None:
    """Kill processes of a host. With SIGKILL, as a crash does, unless --signal says otherwise.

    They stay dead until start; a process that dies in any other way is started again by the lab's supervisor.

    \b
    Examples:
      godwit lab kill s1              the whole server
      godwit lab kill db              the lab's PostgreSQL
      godwit lab kill s2 agent
      godwit lab kill s2 mount --signal STOP
    """
    _find_lab(root).kill(host, part.value, _signal(name))


def _signal(name: str) -> signal.Signals:
    try:
        return signal.Signals(int(name)) if name.isdigit() else signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"]
    except (KeyError, ValueError):
        raise typer.BadParameter(f"{name!r} is not a signal", param_hint="--signal") from None


@app.command()
def start(
    host: HostArgument,
    part: PartArgument = Part.ALL,
    root: RootOption = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, metavar="SECONDS", help="How long it may take.")
    ] = START_TIMEOUT_S,
) -> None:
    """Start what is not running of a host, and the lab's supervisor. Returns when the host answers.

    Example: godwit lab start s2 agent
    """
    _find_lab(root).start(host, part.value, timeout)


@app.command()
def add(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="The next server's name.", show_default=False)] = None,
    root: RootOption = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, metavar="SECONDS", help="How long it may take.")
    ] = START_TIMEOUT_S,
    as_json: JsonOption = False,
) -> None:
    """Add a server to a running lab. Returns when its mount answers; the lab keeps it.

    \b
    Examples:
      godwit lab add
      godwit lab add s4 --json
    """
    lab = _find_lab(root)
    with _interruptible():
        server = lab.add_server(name, timeout)
    if as_json:
        print_json({"server": server_object(lab, server)})
    else:
        print_line(f"{server} is there: {lab.mount(server)}")


@app.command()
def cut(host: HostArgument, root: RootOption = None) -> None:
    """Cut a host off the network. Every packet from and to it is dropped, silently.

    Example: godwit lab cut s2
    """
    _find_lab(root).cut(host)


@app.command()
def mend(host: HostArgument, root: RootOption = None) -> None:
    """Undo cut.

    Example: godwit lab mend s2
    """
    _find_lab(root).mend(host)


@app.command("exec")
def execute(
    host: HostArgument,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND…", help="What to run.", show_default=False)],
    root: RootOption = None,
) -> None:
    """Run a command on a host's network. The exit code is the command's.

    Example: godwit lab exec s2 -- ip address
    """
    argv = _find_lab(root).command(host, command)
    # In the place of this process: signals and the exit code are the command's own.
    os.execvp(argv[0], argv)  # noqa: S606 – what the user asked for, without a shell


@app.command()
def logs(
    host: HostArgument,
    part: PartArgument = Part.ALL,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as the logs grow.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the last lines.")] = 100,
    root: RootOption = None,
) -> None:
    """Show the logs of a host's processes.

    Example: godwit lab logs s2 agent --follow
    """
    lab = _find_lab(root)
    paths = [str(lab.log(host, name)) for name in lab.parts(host, part.value)]
    # --follow=name: the log may be made anew by whoever rotates it.
    argv = ["tail", f"--lines={lines}", *(["--follow=name", "--retry"] if follow else []), "--", *paths]
    os.execvp(argv[0], argv)  # noqa: S606 – fixed arguments, without a shell


def _find_lab(root: Path | None) -> Lab:
    """The lab of *root*, else the only one that is up, else the one at the default place."""
    require_root()
    if root is not None:
        return Lab.load(root)
    return Lab.load(DEFAULT_ROOT) if not registered() and (DEFAULT_ROOT / STATE_FILE).exists() else only_lab()


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that what was begun is cleaned up."""

    def stop(number: int, _frame: object) -> None:
        # As an exception, so that `up` takes back what it began.
        sys.exit(128 + number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
