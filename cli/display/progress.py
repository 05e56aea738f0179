"""How far a migration is, in words."""

from cli.display.render import as_age, as_bytes
from cluster.messages import MigrationRow
from cluster.progress import ENDS, Rate, Totals


def describe(row: MigrationRow, done: Totals, rate: Rate) -> str:
    """One line that says how far it is."""
    parts = [
        f"{done.done_files} of {done.files} files",
        f"{as_bytes(done.done_size)} of {as_bytes(done.size)}",
        f"{as_bytes(int(rate.size))}/s",
    ]
    # While it is planned, what is left to do is not known, however fast it goes.
    if row.state not in ENDS and rate.left_s is not None and row.planned:
        parts.append(f"{as_age(rate.left_s)} left")
    if done.failed_files:
        parts.append(f"{done.failed_files} failed")
    return ", ".join(parts)
