"""Running the load and judging it: what all tests of the network with the checker do alike."""

import shutil
from collections.abc import Callable
from pathlib import Path

from tests.coherence.checker import Report, check_history
from tests.coherence.load import SEED_VARIABLE
from tests.coherence.records import Operation


def judge(
    operations: list[Operation], workers: int, seed: int, logs: Path, tell: Callable[[str], None], *, early: bool = True
) -> Report:
    """Fails the test if something is wrong, with what contradicts what, how to do the same again, and where the logs are."""
    report = check_history(operations, workers, early=early)
    tell(f"{report.operations} operations, {report.unknown} of unknown outcome, seed {seed}")
    if report.findings:
        kept = keep(logs)
        again = f"{SEED_VARIABLE}={seed} repeats the choices, not the timing; the logs are in {kept}"
        raise AssertionError(f"{len(report.findings)} findings ({again})\n\n{report}")
    return report


def keep(logs: Path) -> Path:
    """Copies the logs of a failure to where the next run does not delete them."""
    kept = Path("/tmp") / f"godwit-coherence-{logs.parent.name}-{logs.name}"
    shutil.rmtree(kept, ignore_errors=True)
    return Path(shutil.copytree(logs, kept))
