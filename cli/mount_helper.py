"""`mount.godwit`: what mount(8) calls for file systems of type godwit, as lines of /etc/fstab name them.

There is one mount of a server, that of its configuration, and one process that serves it: this starts it, or waits for it, and
returns when the mount is there. Options that nobody would keep are refused, not ignored.
"""

import errno
import getopt
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

from cli.commands.units import RUNNING_SYSTEMD, program
from cluster.config import DEFAULT_CONFIG, ServerConfig, load_config
from cluster.errors import GodwitError, Refused, error_text
from cluster.mounted import uppermost
from cluster.mountpoint import detach_by_force

UNIT = "godwit-mount.service"
LOG = Path("/run/godwit/mount.log")  # of a mount that systemd did not start
PATIENCE_S = 120.0  # until it is mounted, as in the unit
LOOK_S = 0.1  # between two looks at what is mounted
WRONG_USAGE = 1  # mount(8), EXIT STATUS
FAILED = 32
# Of mount(8) and of systemd.mount(5), whose business they are, or true of every mount of Godwit.
ACCEPTED = frozenset({"", "defaults", "rw", "auto", "noauto", "nofail", "_netdev", "async", "exec", "user", "users", "nouser"})
ACCEPTED_BEGINNINGS = ("x-", "comment=", "user=")


class Asked(NamedTuple):
    """What mount(8) wants."""

    source: str
    mountpoint: str
    options: list[str]
    is_sloppy: bool = False  # options that are not understood are to be ignored
    is_rehearsal: bool = False  # nothing is to be mounted


def main() -> NoReturn:
    """Mounts, and exits as mount(8) says."""
    try:
        asked = parse_arguments(sys.argv[1:])
        config_path = choose_config(asked)
        config = load_config(config_path)
        check(asked, config, config_path)
    except (Refused, getopt.GetoptError) as error:
        fail(str(error), WRONG_USAGE)
    if asked.is_rehearsal:
        sys.exit(0)
    try:
        bring_up(config, config_path)
    except (GodwitError, OSError) as error:
        fail(error_text(error), FAILED)
    sys.exit(0)


def fail(message: str, code: int) -> NoReturn:
    print(f"mount.godwit: {message}", file=sys.stderr)  # noqa: T201 – the one place that reports failures
    sys.exit(code)


def parse_arguments(arguments: list[str]) -> Asked:
    """The command line that mount(8) makes: `SOURCE MOUNTPOINT [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]`."""
    found, words = getopt.gnu_getopt(arguments, "sfnvN:o:t:")
    if len(words) != 2:
        raise Refused("usage: mount -t godwit [-o OPTIONS] SOURCE MOUNTPOINT")
    names = {name for name, _value in found}
    options = [option for name, value in found if name == "-o" for option in value.split(",")]
    return Asked(words[0], words[1], options, is_sloppy="-s" in names, is_rehearsal="-f" in names)


def choose_config(asked: Asked) -> Path:
    """The configuration that is meant, by the option or by the source; else the machine's own."""
    for option in asked.options:
        if option.startswith("config="):
            return Path(option.removeprefix("config=")).absolute()
    return Path(asked.source) if asked.source.startswith("/") else DEFAULT_CONFIG


def check(asked: Asked, config: ServerConfig, path: Path) -> None:
    """Raises `Refused` if the server's mount is not what is asked for."""
    if asked.source not in ("godwit", f"godwit:{config.cluster}") and not asked.source.startswith("/"):
        raise Refused(f"{asked.source}: this server is of the network {config.cluster}: its source is godwit:{config.cluster}")
    if os.path.realpath(asked.mountpoint) != os.path.realpath(config.mount.mountpoint):
        raise Refused(f"{asked.mountpoint}: in {path} the mount point is {config.mount.mountpoint}")
    rights = {"suid": config.mount.suid, "dev": config.mount.dev}
    for option in asked.options:
        if not asked.is_sloppy and not is_true_of(option, rights):
            raise Refused(f"the option {option} is not supported: see mount.godwit(8)")


def is_true_of(option: str, rights: dict[str, bool]) -> bool:
    """Whether a mount with these *rights* is what an option says."""
    if option in rights:
        return rights[option]
    if option.removeprefix("no") in rights:
        return not rights[option.removeprefix("no")]
    return option in ACCEPTED or option.startswith((*ACCEPTED_BEGINNINGS, "config="))


def bring_up(config: ServerConfig, path: Path) -> None:
    """Returns when it is mounted. Raises `Refused` if it cannot be, `OSError`."""
    # An installation of its own, or a configuration elsewhere, has no unit.
    if path == DEFAULT_CONFIG and RUNNING_SYSTEMD.is_dir():
        start_unit()
    elif not is_mounted(config) or is_dead(config.mount.mountpoint):
        start_process(config, path)
    if not is_mounted(config):
        raise Refused(f"nothing is mounted at {config.mount.mountpoint}, although its process was started")


def is_mounted(config: ServerConfig) -> bool:
    found = uppermost(Path(config.mount.mountpoint))
    return found is not None and found.is_fuse and found.source == f"godwit:{config.cluster}"


def is_dead(mountpoint: str) -> bool:
    """Whether the process of the mount has died; then it is taken away."""
    try:
        os.stat(mountpoint)
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        detach_by_force(mountpoint)
        return True
    return False


def start_unit() -> None:
    """Has systemd start the mount, and waits until it is active, which is when it is mounted."""
    # A mount that local-fs.target waits for would wait for ever: services begin after that.
    if systemctl("is-active", "--quiet", "sysinit.target") != 0:
        raise Refused("the machine has not started far enough: the line in /etc/fstab needs the option _netdev")
    if systemctl("start", UNIT) != 0:
        raise Refused(f"{UNIT} did not start: journalctl -u {UNIT}")


def systemctl(*words: str) -> int:
    return subprocess.run(["systemctl", *words], stdin=subprocess.DEVNULL, check=False).returncode


def start_process(config: ServerConfig, path: Path) -> None:
    """Starts the mount's process, which goes on by itself, and waits until it is mounted."""
    LOG.parent.mkdir(mode=0o755, exist_ok=True)
    command = [*program(), "run", "mount", "--config", str(path)]
    with open(LOG, "ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", start_new_session=True, close_fds=True
        )
    if wait(lambda: is_mounted(config) or process.poll() is not None) and process.returncode is None:
        return
    if process.returncode is None:
        process.terminate()
        raise Refused(f"it was not mounted within {PATIENCE_S:g} s: see {LOG}")
    lines = LOG.read_text(errors="replace").splitlines()
    raise Refused(f"its process has ended: {lines[-1] if lines else 'without a word'}")


def wait(is_so: Callable[[], bool]) -> bool:
    """Waits until something is so; False if it has taken too long."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_S)
    return True
