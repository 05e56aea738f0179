"""Storage networks of a test's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.messages import NamesPolicy
from lab.lab import Lab


@contextmanager
def lab_up(root: Path, names: NamesPolicy | None = None, **options: Any) -> Iterator[Lab]:
    """A lab with these *options* of `Lab.create`; taken down and deleted at the end, whatever happened."""
    made = Lab.create(root, **options)
    try:
        made.up(names=names)
        yield made
    finally:
        made.down(purge=True)
