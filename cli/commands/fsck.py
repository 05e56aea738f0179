"""`godwit fsck`: what the catalog says against what is on the disks, in both directions."""

import sys
from dataclasses import dataclass, field
from typing import Annotated

import typer

from cli import exits
from cli.display.render import as_shown, as_text, print_json, print_line, print_table
from cli.network.agents import addresses_of, ask_agents
from cli.network.target import DEFAULT_TIMEOUT_S, JsonOption, RootOption, find_target
from cluster.errors import GodwitError, Unavailable
from cluster.messages import CheckProgress, CheckVolumes, Done, Finding, FindingOutcome

SILENCE_S = 60.0  # agents say something every few seconds (`ALIVE_S`)
EXIT_FINDINGS = 1  # as fsck(8) of other file systems: not zero while anything is wrong


@dataclass
class Check:
    """How far one server's check is; `error` is what ended it, `problems` what ended the look at volumes."""

    replicas: int = 0  # rows of the catalog that were compared
    objects: int = 0  # files on the disks that were looked up
    findings: list[Finding] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    error: GodwitError | None = None


def fsck(
    servers: Annotated[
        list[str] | None, typer.Argument(metavar="[SERVER]...", help="Only these servers.", show_default=False)
    ] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Put right what can be.")] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Read all content, and compare its digests.")] = False,
    root: RootOption = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="How long an agent may say nothing.")
    ] = SILENCE_S,
    as_json: JsonOption = False,
) -> None:
    """Compare the catalog with the disks. Which objects are missing, unknown, or of another version, size or time.

    With --repair, what the catalog knows is brought back from the trash and from unknown/; what it does not know is set aside;
    replicas that are missing or wrong count no more, and others are copied in their place. Nothing is deleted, and files that
    are being written are left alone. Ends with 1 if findings are left.

    \b
    Examples:
      godwit fsck
      godwit fsck --repair s2
      godwit fsck --deep --json
    """
    target = find_target(root)
    addresses = addresses_of(target, min(timeout, DEFAULT_TIMEOUT_S), servers or [])
    checks = {server: Check() for server in addresses}
    # Progress on stderr: stdout may be a file, or JSON.
    is_watched = sys.stderr.isatty()

    def take(server: str, progress: CheckProgress) -> None:
        check = checks[server]
        check.replicas, check.objects = progress.replicas, progress.objects
        check.findings += progress.findings
        check.problems += [progress.problem] if progress.problem else []
        if is_watched:
            _show_progress(checks)

    outcomes = ask_agents(target, addresses, lambda server: CheckVolumes(server, repair, deep), Done, take, timeout)
    for server, outcome in outcomes.items():
        checks[server].error = outcome if isinstance(outcome, GodwitError) else None
    if is_watched:
        # Clears the line of progress.
        sys.stderr.write("\r\033[K")
    if as_json:
        print_json(report_object(checks))
    else:
        print_report(checks)
    raise typer.Exit(exit_code(checks))


def exit_code(checks: dict[str, Check]) -> int:
    """0 if nothing is left to do, 1 if something is, 3 if that is not known of a server that did not answer."""
    # Findings before silence: 3 would hide that something is known to be wrong.
    if any(check.problems or any(item.outcome != FindingOutcome.MENDED for item in check.findings) for check in checks.values()):
        return EXIT_FINDINGS
    errors = [check.error for check in checks.values() if check.error is not None]
    if any(not isinstance(error, Unavailable) for error in errors):
        return EXIT_FINDINGS
    return exits.UNREACHABLE if errors else 0


def print_report(checks: dict[str, Check]) -> None:
    """What was found, for people."""
    rows = [
        (server, item.volume, item.ino, as_shown(item.path) or "-", item.kind, item.outcome, item.text)
        for server, check in checks.items()
        for item in check.findings
    ]
    if rows:
        print_table(("SERVER", "VOLUME", "INODE", "PATH", "WHAT", "IS", "MORE"), rows, right=("VOLUME", "INODE"))
    for server, check in checks.items():
        for problem in check.problems:
            print_line(f"{server}: {problem}")
        if check.error is not None:
            print_line(f"{server}: not checked to the end: {check.error}")
    counts = _outcomes(checks)
    looked_at = f"{sum(c.replicas for c in checks.values())} replicas and {sum(c.objects for c in checks.values())} objects"
    found = ", ".join(
        f"{counts[outcome]} {outcome}"
        for outcome in (FindingOutcome.FOUND, FindingOutcome.MENDED, FindingOutcome.LEFT)
        if counts[outcome]
    )
    print_line(f"{looked_at} on {' '.join(checks) or 'no server'}: {found or 'nothing is wrong'}")
    if counts[FindingOutcome.FOUND]:
        print_line("to put right what can be: godwit fsck --repair")


def report_object(checks: dict[str, Check]) -> dict[str, object]:
    """What was found for JSON; see docs/cli.md."""
    return {
        "servers": [
            {
                "server": server,
                "replicas": check.replicas,
                "objects": check.objects,
                "problems": check.problems,
                "error": None if check.error is None else str(check.error),
            }
            for server, check in checks.items()
        ],
        "findings": [finding_object(server, item) for server, check in checks.items() for item in check.findings],
        **_outcomes(checks),
    }


def finding_object(server: str, item: Finding) -> dict[str, object]:
    """One finding for JSON; see docs/cli.md."""
    return {
        "server": server,
        "volume": item.volume,
        "volume_path": item.volume_path,
        "ino": item.ino,
        "path": as_text(item.path),
        "kind": item.kind,
        "outcome": item.outcome,
        "text": item.text,
    }


def _outcomes(checks: dict[str, Check]) -> dict[str, int]:
    outcomes = [item.outcome for check in checks.values() for item in check.findings]
    return {outcome: outcomes.count(outcome) for outcome in (FindingOutcome.FOUND, FindingOutcome.MENDED, FindingOutcome.LEFT)}


def _show_progress(checks: dict[str, Check]) -> None:
    parts = [f"{server} {check.replicas}+{check.objects}" for server, check in checks.items()]
    findings = sum(len(check.findings) for check in checks.values())
    sys.stderr.write(f"\r\033[Kreplicas+objects: {', '.join(parts)}; {findings} findings")
    sys.stderr.flush()
