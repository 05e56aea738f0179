"""`godwit doctor`: what is wrong with this server and its network, and what to do about it."""

import os
import textwrap
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from cli import exits
from cli.commands.bundling import MEBIBYTE, require_place, write_bundle
from cli.diagnosis.certificates import examine_certificates
from cli.diagnosis.checks import LOOK_S, Check, Field, Verdict, judged
from cli.diagnosis.disks import examine_disks
from cli.diagnosis.logs import logs_of_lab, logs_of_machine
from cli.diagnosis.machine import examine_machine
from cli.diagnosis.network import examine_network
from cli.display.render import as_bytes, print_json, print_line
from cli.network.target import JsonOption, RootOption, Target, lab_target, machine_target, only_lab
from cluster.config import DEFAULT_CONFIG, ServerConfig, load_config
from cluster.errors import GodwitError, Refused
from cluster.release import RELEASE
from lab.lab import Lab

WIDTH = 80  # columns
WORDS = {Verdict.OK: "ok", Verdict.NOTE: "note", Verdict.WARNING: "WARNING", Verdict.FAILURE: "FAILED"}
INDENT = " " * 9  # below the words of verdicts
NOTHING_HERE = "no configuration here, and no lab that is up: only the machine was looked at"


class Place(NamedTuple):
    """What is looked at: configurations of servers that can be read here, and how their network is reached."""

    configs: list[ServerConfig]
    target: Target | None
    checks: list[Check]  # what was wrong with finding them
    lab: Lab | None = None  # it is this lab


def doctor(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            metavar="FILE",
            readable=False,  # that it cannot be read is a finding
            help=f"The server's configuration.  [default: {DEFAULT_CONFIG}]",
            show_default=False,
        ),
    ] = None,
    root: RootOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only what is not ok.")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="How long to wait for each disk, database and server.")
    ] = LOOK_S,
    bundle: Annotated[
        Path | None,
        typer.Option(
            "--bundle",
            metavar="FILE.tar.gz",
            help="Pack findings, state and logs into a file for who is to help, without names of files and secrets.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Let --bundle replace a file that is there.")] = False,
    log_mib: Annotated[
        int, typer.Option("--log-mib", min=1, max=256, help="How much of the end of each log --bundle takes.")
    ] = 4,
    as_json: JsonOption = False,
) -> None:
    """Find out what is wrong with this server and its network. And say what to do about it.

    Looks at the machine (kernel, FUSE, the C extension, clock), the disks of the volumes, keys and certificates, the catalog's
    database, the other servers (reached, how fast, clocks, releases, owners that differ), and at what the manager says. With
    --root it is a lab, all of whose servers are looked at from here. Some of it only root can look at.

    Exits with 0 if there is nothing to be done, and with 4 if there are warnings or failures. Each says what to do.

    With --bundle it also packs what it has found into a file, with versions, configurations, what godwit status, servers,
    queue, migrations and events say, and the end of the logs. Passwords are left out, and names of files are digests.

    \b
    Examples:
      godwit doctor
      godwit doctor --quiet
      godwit doctor --root /var/lib/godwit/lab --json
      godwit doctor --bundle /tmp/godwit.tar.gz
    """
    if bundle is not None:
        require_place(bundle, force=force)
    place = find_place(config, root)
    found = list(examine(place, timeout))
    if bundle is not None:
        _write(bundle, place, found, timeout, log_mib * MEBIBYTE)
    if as_json:
        print_json(findings_object(found))
    else:
        print_findings(found, quiet=quiet)
        if not place.configs and not place.checks:
            print_line(NOTHING_HERE)
        if bundle is not None:
            print_line(f"{bundle}: {as_bytes(bundle.stat().st_size)}; look at it before you give it away")
    if any(check.is_trouble for check in found):
        raise typer.Exit(exits.ATTENTION)


def find_place(config: Path | None, root: Path | None) -> Place:
    """What to look at; what is wrong with a configuration is a finding like others. Raises `Refused` if there is no such lab."""
    if config is not None and root is not None:
        raise typer.BadParameter("a lab has its servers' configurations: leave out one of both", param_hint="--config")
    if root is not None:
        return _lab(Lab.load(root))
    path = DEFAULT_CONFIG if config is None else config
    if config is None and not os.path.lexists(path):
        try:
            return _lab(only_lab())
        except Refused:
            return Place([], None, [])
    try:
        return Place([load_config(path)], machine_target(path), [])
    except Refused as error:
        # Others may not read it: that is as it should be.
        if path.exists() and not os.access(path, os.R_OK):
            return Place([], None, [Check(Field.MACHINE, "configuration", Verdict.NOTE, str(error), "run godwit doctor as root")])
        return Place([], None, [Check(Field.MACHINE, "configuration", Verdict.FAILURE, str(error), f"mend {path}")])


def _lab(lab: Lab) -> Place:
    checks, configs = [], []
    for server in lab.servers:
        try:
            configs.append(lab.config(server))
        except Refused as error:
            checks.append(Check(Field.MACHINE, f"configuration of {server}", Verdict.FAILURE, str(error)))
    try:
        return Place(configs, lab_target(lab), checks, lab)
    except GodwitError as error:
        return Place(configs, None, [*checks, Check(Field.NETWORK, "lab", Verdict.FAILURE, str(error))], lab)


def examine(place: Place, timeout_s: float) -> Iterator[Check]:
    """All checks, field by field; whatever one of them meets, the others are made."""
    yield from judged(Field.MACHINE, "machine", examine_machine)
    yield from place.checks
    for config in place.configs:
        yield from judged(Field.DISKS, config.server, partial(examine_disks, config, timeout_s))
    for config in place.configs:
        yield from judged(Field.CERTIFICATES, config.server, partial(examine_certificates, config))
    yield from _examine_catalogs(place.configs, timeout_s)
    if (target := place.target) is not None:
        yield from judged(Field.NETWORK, "network", lambda: examine_network(target, timeout_s))


def _examine_catalogs(configs: Iterable[ServerConfig], timeout_s: float) -> Iterator[Check]:
    # All servers of a lab have the same database.
    by_database = {config.manager.database: config for config in configs if config.is_candidate}
    if by_database:
        # Imported here: most commands need no SQLAlchemy.
        from cli.diagnosis.catalog import examine_catalog
    for config in by_database.values():
        yield from judged(Field.CATALOG, "database", partial(examine_catalog, config, timeout_s))


def _write(file: Path, place: Place, found: list[Check], timeout_s: float, bytes_max: int) -> None:
    logs = logs_of_machine(bytes_max) if place.lab is None else logs_of_lab(place.lab, bytes_max)
    kept = [str(DEFAULT_CONFIG.parent), *([str(place.lab.root)] if place.lab is not None else [])]
    write_bundle(file, findings_object(found), place.configs, place.target, logs, timeout_s, kept=kept)


# --------------------------------------------------------------------------------------------------------- printing


def findings_object(checks: Iterable[Check]) -> dict[str, object]:
    """The findings for JSON; see docs/cli.md."""
    listed = list(checks)
    return {
        "ok": not any(check.is_trouble for check in listed),
        "release": RELEASE,
        "checks": [check._asdict() for check in listed],
    }


def print_findings(checks: Iterable[Check], *, quiet: bool = False) -> None:
    """The findings for people, in groups."""
    shown = [check for check in checks if not (quiet and check.verdict is Verdict.OK)]
    for field in Field:
        group = [check for check in shown if check.field is field]
        if group:
            print_line(field.value)
        for check in group:
            _print(f"{WORDS[check.verdict]:<8} ", f"{check.subject}: {check.text}")
            if check.advice and check.verdict is not Verdict.OK:
                _print(INDENT + "-> ", check.advice)


def _print(before: str, text: str) -> None:
    # One paragraph, whatever errors have in them; long paths stay whole.
    for line in textwrap.wrap(
        " ".join(text.split()),
        WIDTH,
        initial_indent=before,
        subsequent_indent=" " * len(before),
        break_long_words=False,
        break_on_hyphens=False,
    ):
        print_line(line)
