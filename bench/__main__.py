"""The command: options, the two sides brought up and taken down, the run, and what is printed."""

import argparse
import contextlib
import dataclasses
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec

from bench.caches import can_drop
from bench.machine import file_system, machine_facts
from bench.programs import make_tar
from bench.registry import measurements, needed_groups, wanted_metrics
from bench.report import MOUNTED, NATIVE, SCHEMA, Report, compare, differences, make_result
from bench.runner import Plan, Runner
from bench.sample import QUICK, Load
from bench.sides import Side, lab_side, mounted_side, native_side
from bench.tables import show_changes, show_report
from cluster.errors import GodwitError
from cluster.messages import NamesPolicy
from lab.lab import Lab
from lab.state import POSTGRESQL, SQLITE

DEFAULT_PARENT = Path("/var/tmp")  # on a disk, unlike /tmp, which may be memory
BUDGET_S = 330.0
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

DESCRIPTION = """Measures a three-server lab of Godwit beside native ext4 on the same disk, in turn; prints medians and ratios.
With --mount, any file system that is mounted already is measured instead of a lab."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dev bench", description=DESCRIPTION)
    parser.add_argument(
        "--json", metavar="FILE|-", help="write every sample and the machine's facts, too; - is stdout, instead of tables"
    )
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="how often each side is measured (default 3)")
    parser.add_argument("--only", metavar="PATTERN", help="metrics or groups whose name contains or matches this")
    parser.add_argument("--quick", action="store_true", help="small sizes and one round: a smoke test, not a measurement")
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="where lab and native directory go (default: a new one in /var/tmp)"
    )
    # No URL, which may have a password.
    parser.add_argument("--db", choices=[SQLITE, POSTGRESQL], help="the lab's catalog, as for godwit lab up (default: SQLite)")
    parser.add_argument(
        "--names",
        type=NamesPolicy,
        choices=list(NamesPolicy),
        help="of the root's policy, as for godwit lab up (default: not set)",
    )
    parser.add_argument("--mount", type=Path, metavar="DIR", help="measure this mounted file system instead of a lab")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="show the difference to an earlier run")
    parser.add_argument("--load", type=Path, metavar="NEW.json", help="show this run instead of measuring")
    parser.add_argument(
        "--budget", type=float, default=BUDGET_S, metavar="S", help=f"begin no round that would end later (default {BUDGET_S:g})"
    )
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    if options.only is not None and not wanted_metrics(options.only):
        parser.error(f"--only {options.only} matches none of: " + "; ".join(found.metric for found in measurements()))
    if options.names is not None and options.mount is not None:
        parser.error("--names is of a lab: set the policy of what --mount names by godwit policy set")
    if options.quick:
        options.rounds = 1
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code: 1 if a measurement failed, 2 for wrong usage, 130 after Ctrl-C."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        # Read before anything is measured: a wrong file must not cost a run.
        old = read_report(options.compare) if options.compare else None
        report = read_report(options.load) if options.load else measure(options)
    except KeyboardInterrupt:
        # SIGTERM as well (`_interrupt`): labs and folders are taken down by the same way.
        _tell("interrupted; everything was taken down")
        return EXIT_INTERRUPTED
    except (GodwitError, OSError, msgspec.DecodeError) as error:
        _tell(f"bench: {error}")
        return EXIT_USAGE
    if options.json:
        write_report(report, options.json)
    if options.json != "-":
        show_report(report)
        if old is not None:
            show_changes(compare(old, report), differences(old, report))
    return EXIT_FAILED if report.failures else 0


def measure(options: argparse.Namespace) -> Report:
    """Brings both sides up, measures, and takes both down again, whatever happens."""
    load = QUICK if options.quick else Load()
    wanted = wanted_metrics(options.only)
    started, begin = datetime.now(UTC), time.monotonic()
    with workplace(options.root) as root, sides(root, options.mount, options.db, options.names) as (subject, both):
        # Outside of both sides: reading it costs both the same.
        make_tar(root / "tree.tar", load.tree_files)
        # Before the first measurement, which would be the load that is noted.
        facts = machine_facts(root)
        plan = Plan(needed_groups(wanted), both, load, root / "tree.tar", options.rounds, options.budget)
        runner = Runner(plan, _tell)
        runner.run()
    results = [
        make_result(found, runner.samples.get((found.metric, NATIVE), []), runner.samples.get((found.metric, MOUNTED), []))
        for found in measurements(plan.groups)
        # Measured but not wanted: what only prepared a wanted one.
        if found.metric in wanted and (options.mount is None or not _is_of_network(plan, found.metric))
    ]
    return Report(
        schema=SCHEMA,
        started=started.isoformat(timespec="seconds"),
        duration_s=round(time.monotonic() - begin, 1),
        subject=subject,
        machine=facts,
        load=dataclasses.asdict(load),
        results=results,
        failures=runner.failures,
        notes=notes(facts, runner.left_out, options.quick),
    )


def _is_of_network(plan: Plan, metric: str) -> bool:
    return any(found.metric == metric for group in plan.groups if group.needs_network for found in group.measurements)


def notes(facts: dict[str, str | int | float], left_out: int, quick: bool) -> list[str]:
    """What a reader of the figures should know."""
    found = []
    if quick:
        found.append("--quick: too small to be figures")
    if not can_drop():
        found.append("not root: caches were not dropped, cold figures are warm")
    if facts["file_system"] != "ext4":
        found.append(f"the native side is {facts['file_system']}, not ext4")
    if float(facts["load_average"]) > 1.0:
        found.append(f"the machine was busy at the start: load average {facts['load_average']}")
    if left_out:
        found.append(f"{left_out} rounds of a group were left out to keep within the time (--budget)")
    return found


@contextlib.contextmanager
def workplace(root: Path | None) -> Iterator[Path]:
    """A folder on the disk that is measured; deleted at the end if it was made here, else left as empty as it was found."""
    if root is not None:
        root.mkdir(parents=True, exist_ok=True)
        # What is there would be deleted in the end, or measured.
        if any(root.iterdir()):
            raise OSError(f"{root} is not empty: give --root a directory that is, or a new one")
    made = Path(tempfile.mkdtemp(prefix="godwit-bench-", dir=root or DEFAULT_PARENT))
    try:
        yield made
    finally:
        (made / "tree.tar").unlink(missing_ok=True)
        # Not empty: a side that could not be removed; better left than deleted blindly.
        with contextlib.suppress(OSError):
            made.rmdir()


@contextlib.contextmanager
def sides(
    root: Path, mount: Path | None, db: str | None = None, names: NamesPolicy | None = None
) -> Iterator[tuple[str, list[Side]]]:
    """What is measured, in words, and the native and the mounted side."""
    # A mount that is there already has other people's names.
    name = f"godwit-bench-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        native = native_side(root, "native")
        # At once after it is made: whatever fails next, it goes.
        stack.callback(native.remove)
        if mount is not None:
            mounted = mounted_side(mount, name)
            stack.callback(mounted.remove)
            subject = f"{mount} ({file_system(mount)})"
        else:
            lab = stack.enter_context(running_lab(root / "lab", db, names))
            mounted = lab_side(lab, name)
            subject = f"a lab of {len(lab.servers)} servers" + (" on a database of its own" if lab.has_database else "")
            subject += f", names {names}" if names is not None else ""
        yield subject, [native, mounted]


@contextlib.contextmanager
def running_lab(root: Path, db: str | None = None, names: NamesPolicy | None = None) -> Iterator[Lab]:
    """A lab that is up. Once it is being taken down, a second Ctrl-C does not stop that, so that nothing is left behind."""
    lab = Lab.create(root, servers=3, db=db)
    try:
        _tell(f"bringing up a lab of three servers in {root}")
        lab.up(names=names)
        yield lab
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            # Half a teardown leaves namespaces and dead mounts.
            signal.signal(number, signal.SIG_IGN)
        _tell("taking the lab down")
        lab.down(purge=True)
        with contextlib.suppress(OSError):
            root.rmdir()


def read_report(path: Path) -> Report:
    """The report in a file; raises `OSError` or `msgspec.DecodeError`."""
    report = msgspec.json.decode(path.read_bytes(), type=Report)
    if report.schema != SCHEMA:
        # Figures of another schema may mean something else: none is converted.
        raise OSError(f"{path} has schema {report.schema}, this is {SCHEMA}")
    return report


def write_report(report: Report, target: str) -> None:
    text = msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text)


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
