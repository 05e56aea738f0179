"""`godwit run …`: one process of a server, in the foreground, until SIGTERM or SIGINT.

Each command imports its own part only: a manager must not load the FUSE library, nor a mount the database's.
"""

import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import trio
import typer

from cluster.config import DEFAULT_CONFIG, ServerConfig, load_config
from cluster.errors import GodwitError, Unavailable, own_error
from cluster.logs import log_to_stderr

log = logging.getLogger(__name__)

EXIT_FAILURE = 1  # systemd starts it again (Restart=on-failure)
EXIT_UNREACHABLE = 3

RunPart = Callable[[ServerConfig, Callable[[], Awaitable[None]]], Awaitable[None]]

SWITCH_INTERVAL_S = 0.0001  # a thread that commits or hashes must not hold up the event loop for the default 5 ms
LOG_FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s {server} {part} %(name)s: %(message)s"

app = typer.Typer(
    help="Run one process of this server in the foreground.\n\nEach server runs all three, with the same configuration file. "
    "They log to stderr and stop in order at SIGTERM.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

ConfigOption = Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The server's configuration.")]
LevelOption = Annotated[str, typer.Option("--log-level", metavar="LEVEL", help="DEBUG, INFO, WARNING or ERROR.")]


@app.command()
def mount(config: ConfigOption = DEFAULT_CONFIG, log_level: LevelOption = "INFO") -> None:
    """The file system. Mounts the namespace at `mount.mountpoint`; needs root.

    Example: godwit run mount --config /etc/godwit/godwit.toml
    """
    from fusefs.main import run_mount

    run_part("mount", run_mount, config, log_level)


@app.command()
def agent(config: ConfigOption = DEFAULT_CONFIG, log_level: LevelOption = "INFO") -> None:
    """The background agent. Owns the volumes, makes copies, serves bytes to other servers.

    Example: godwit run agent --config /etc/godwit/godwit.toml
    """
    from agent.main import run_agent

    run_part("agent", run_agent, config, log_level)


@app.command()
def manager(config: ConfigOption = DEFAULT_CONFIG, log_level: LevelOption = "INFO") -> None:
    """A manager. The candidate that holds the office keeps the catalog and the queues.

    Example: godwit run manager --config /etc/godwit/godwit.toml
    """
    from manager.main import run_manager

    run_part("manager", run_manager, config, log_level)


def run_part(part: str, run: RunPart, path: Path, log_level: str) -> None:
    """Runs a process to its end and exits: 0 after a signal, 1 or 3 (see the log) when it could not go on."""
    level = logging.getLevelNamesMapping().get(log_level.upper())
    if level is None:
        raise typer.BadParameter(f"{log_level!r} is not DEBUG, INFO, WARNING or ERROR", param_hint="--log-level")
    # Before the working directory is left.
    path = path.absolute()
    # Before the log is set up: a mistake in it is one line on stderr, as of any command.
    config = load_config(path)
    with log_to_stderr(LOG_FORMAT.format(server=config.server, part=part), level):
        _more_descriptors()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        # A process that stays keeps the file system of its working directory from being unmounted.
        os.chdir("/")
        log.info("starting with %s", path)
        _run_to_the_end(run, config)
        log.info("stopped")


def _run_to_the_end(run: RunPart, config: ServerConfig) -> None:
    try:
        trio.run(until_signal, run, config)
    except Exception as error:
        # trio wraps what ends a nursery in groups: the one error of ours in it is what people should read.
        own = own_error(error) if isinstance(error, BaseExceptionGroup) else error
        if not isinstance(own, GodwitError):
            log.critical("stopped by an unexpected error", exc_info=True)
            sys.exit(EXIT_FAILURE)
        log.critical("%s", own)
        sys.exit(EXIT_UNREACHABLE if isinstance(own, Unavailable) else EXIT_FAILURE)


def _more_descriptors() -> None:
    """An open file costs a descriptor in the mount and in the agent: take all that the system allows."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # To the hard limit, which needs no privilege; systemd's units set that (LimitNOFILE).
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def until_signal(run: RunPart, config: ServerConfig) -> None:
    """Runs a part until SIGTERM or SIGINT tells it to stop in order; further signals change nothing."""
    stopping = trio.Event()
    async with trio.open_nursery() as nursery:
        # Handlers first: a signal while the part starts stops it in order, too.
        await nursery.start(_set_on_signal, stopping)
        await run(config, stopping.wait)
        # Ends the receiver of signals, which waits for ever.
        nursery.cancel_scope.cancel()


async def _set_on_signal(stopping: trio.Event, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            log.info("stopping because of %s", signal.Signals(number).name)
            stopping.set()
