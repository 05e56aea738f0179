"""`godwit run …`: one process of a server, in the foreground, until SIGTERM or SIGINT.

Each command imports its own part only: a manager must not load the FUSE library, nor a mount the database's.
"""

import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import msgspec
import trio
import typer

from cli import exits
from cluster.config import DEFAULT_CONFIG, ServerConfig, differing_keys, load_config
from cluster.errors import GodwitError, Unavailable, own_error
from cluster.logs import STAMP, log_to_stderr
from cluster.service import SERVICE

log = logging.getLogger(__name__)


RunPart = Callable[[ServerConfig, Callable[[], Awaitable[None]]], Awaitable[None]]

SWITCH_INTERVAL_S = 0.0001  # a thread that commits or hashes must not hold up the event loop for the default 5 ms
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
RELOADED = frozenset({"log.level"})  # settings that are in force at once
GC_THRESHOLD = 50_000  # objects; the interpreter's default is 700
LOG_FORMAT = STAMP + "{server} {part} %(name)s: %(message)s"

app = typer.Typer(
    help="Run one process of this server in the foreground.\n\nEach server runs all three, with the same configuration file. "
    "They log to stderr, stop in order at SIGTERM, and read their configuration again at SIGHUP.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

ConfigOption = Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The server's configuration.")]
LevelOption = Annotated[
    str | None,
    typer.Option(
        "--log-level",
        metavar="LEVEL",
        help="debug, info, warning or error.  [default: log.level of the configuration]",
        show_default=False,
    ),
]


@app.command()
def mount(config: ConfigOption = DEFAULT_CONFIG, log_level: LevelOption = None) -> None:
    """The file system. Mounts the namespace at `mount.mountpoint`; needs root.

    Example: godwit run mount --config /etc/godwit/godwit.toml
    """
    from fusefs.main import run_mount

    run_part("mount", run_mount, config, log_level)


@app.command()
def agent(config: ConfigOption = DEFAULT_CONFIG, log_level: LevelOption = None) -> None:
    """The background agent. Owns the volumes, makes copies, serves bytes to other servers.

    Example: godwit run agent --config /etc/godwit/godwit.toml
    """
    from agent.main import run_agent

    run_part("agent", run_agent, config, log_level)


@app.command()
def manager(config: ConfigOption = DEFAULT_CONFIG, log_level: LevelOption = None) -> None:
    """A manager. The candidate that holds the office keeps the catalog and the queues.

    Example: godwit run manager --config /etc/godwit/godwit.toml
    """
    from manager.main import run_manager

    run_part("manager", run_manager, config, log_level)


def run_part(part: str, run: RunPart, path: Path, log_level: str | None) -> None:
    """Runs a process to its end and exits: 0 after a signal, 1 or 3 (see the log) when it could not go on."""
    if log_level is not None and log_level.upper() not in LEVELS:
        raise typer.BadParameter(f"{log_level!r} is not debug, info, warning or error", param_hint="--log-level")
    # Before the working directory is left.
    path = path.absolute()
    # Before the log is set up: a mistake in it is one line on stderr, as of any command.
    config = load_config(path)
    reloader = Reloader(path, config, log_level)
    with log_to_stderr(LOG_FORMAT.format(server=config.server, part=part), reloader.level):
        _more_descriptors()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        # What is kept are many small objects without cycles: looking through them again and again would cost more than it frees.
        gc.set_threshold(GC_THRESHOLD)
        # A process that stays keeps the file system of its working directory from being unmounted.
        os.chdir("/")
        log.info("starting with %s", path)
        _run_to_the_end(run, reloader)
        log.info("stopped")


class Reloader:
    """Takes over, at SIGHUP, what of a configuration can be changed while a process runs."""

    def __init__(self, path: Path, config: ServerConfig, log_level: str | None) -> None:
        """*log_level*: what the command line says, which goes before the configuration."""
        self._path = path
        self.config = config  # that the process runs with
        self._log_level = log_level

    @property
    def level(self) -> int:
        """Of the least important lines that are logged."""
        return logging.getLevelNamesMapping()[(self._log_level or self.config.log.level).upper()]

    async def reload(self) -> None:
        """A file that is wrong changes nothing, and what takes another start is named; both are logged."""
        try:
            found = await trio.to_thread.run_sync(load_config, self._path)
        except GodwitError as error:
            log.error("goes on with the configuration of before: %s", error)
            return
        left = [key for key in differing_keys(self.config, found) if key not in RELOADED]
        self.config = msgspec.structs.replace(self.config, log=found.log)
        logging.getLogger().setLevel(self.level)
        log.info("has read %s again", self._path)
        if left:
            log.warning("in force when this process is started again: %s", ", ".join(left))


def _run_to_the_end(run: RunPart, reloader: Reloader) -> None:
    try:
        trio.run(until_signal, run, reloader)
    except Exception as error:
        # trio wraps what ends a nursery in groups: the one error of ours in it is what people should read.
        own = own_error(error) if isinstance(error, BaseExceptionGroup) else error
        if not isinstance(own, GodwitError):
            log.critical("stopped by an unexpected error", exc_info=True)
            sys.exit(exits.FAILURE)
        log.critical("%s", own)
        sys.exit(exits.UNREACHABLE if isinstance(own, Unavailable) else exits.FAILURE)


def _more_descriptors() -> None:
    """An open file costs a descriptor in the mount and in the agent: take all that the system allows."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # To the hard limit, which needs no privilege; systemd's units set that (LimitNOFILE).
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def until_signal(run: RunPart, reloader: Reloader) -> None:
    """Runs a part until SIGTERM or SIGINT tells it to stop in order; further ones change nothing. SIGHUP has it *reload*."""
    stopping = trio.Event()
    async with trio.open_nursery() as nursery:
        # Handlers first: a signal while the part starts stops it in order, too.
        await nursery.start(_heed_signals, stopping, reloader)
        # Until the end: also while it stops, the event loop must go on.
        nursery.start_soon(SERVICE.keep_pinging)
        await run(reloader.config, stopping.wait)
        # Ends the receiver of signals and the pings, which go on for ever.
        nursery.cancel_scope.cancel()


async def _heed_signals(
    stopping: trio.Event, reloader: Reloader, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP:
                SERVICE.reloading()
                await reloader.reload()
                SERVICE.reloaded()
                continue
            log.info("stopping because of %s", signal.Signals(number).name)
            SERVICE.stopping()
            stopping.set()
