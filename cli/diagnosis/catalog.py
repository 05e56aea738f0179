"""The catalog's database, as a candidate reaches it: whether it answers, and whether what it commits can be lost.

To import this takes SQLAlchemy, and half a second.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from cli.diagnosis.checks import Check, Field, Look, Verdict, judged
from cli.diagnosis.disks import NETWORK_KINDS
from cluster.config import ServerConfig
from cluster.mounted import mount_below
from manager.catalog.examination import Examined, examine

SLOW_S = 0.05  # for a question about nothing: each change of a name waits for some
DURABLE = {
    "fsync": ("on", Verdict.FAILURE, "what it has committed is lost when its machine stops"),
    "full_page_writes": ("on", Verdict.FAILURE, "a machine that stops may leave it damaged"),
}
"""Settings of PostgreSQL, as they have to be, and what else they mean."""


def examine_catalog(config: ServerConfig, looked_s: float) -> Iterator[Check]:
    """All checks of the database of a candidate; of another server there are none."""
    if not config.is_candidate:
        return
    look = Look(lambda: examine(config.manager.database))
    yield from judged(
        Field.CATALOG,
        "database",
        lambda: judge(found := look.result(looked_s), _kind_of(found.file)),
        hung="is its machine there, and reached from here? The log of the database says more",
    )


def _kind_of(file: str) -> str:
    """The kind of file system that SQLite's file is on."""
    mount = mount_below(Path(os.path.realpath(file))) if file else None
    return mount.kind if mount else ""


def judge(found: Examined, kind: str) -> Iterator[Check]:
    """What is wrong with it; if nothing is, that. *kind*: of the file system that it is on, if it is a file."""
    wrong = [
        Check(Field.CATALOG, "database", *each) for each in (*_of_schema(found), *_of_place(found, kind), *_of_settings(found))
    ]
    yield from wrong
    if not any(check.is_trouble for check in wrong):
        program = f"SQLite {found.version}" if found.file else f"PostgreSQL {found.version}"
        text = f"{program} answers in {found.answered_s * 1000:.1f} ms; its commits last"
        yield Check(Field.CATALOG, "database", Verdict.OK, text)


def _of_schema(found: Examined) -> Iterator[tuple[Verdict, str, str]]:
    if not found.revision:
        advice = "is it the right one (manager.database)? Else bring the catalog back: godwit db restore FILE"
        yield Verdict.FAILURE, f"{found.place} holds no catalog", advice
    elif found.revision > found.newest:
        text = f"its schema {found.revision} is of a newer Godwit than this ({found.newest})"
        yield Verdict.FAILURE, text, "upgrade Godwit on this server"
    elif found.revision < found.newest:
        text = f"its schema {found.revision} is older than this Godwit's ({found.newest})"
        yield Verdict.NOTE, text, "the next manager of this release upgrades it: systemctl restart godwit-manager"


def _of_place(found: Examined, kind: str) -> Iterator[tuple[Verdict, str, str]]:
    if kind in NETWORK_KINDS or kind.startswith("fuse"):
        text = f"SQLite's file is on {kind}, where its locks and its log cannot be trusted"
        yield Verdict.FAILURE, text, "put it on a disk of this machine, or use PostgreSQL"
    if found.answered_s >= SLOW_S:
        text = f"it takes {found.answered_s * 1000:.0f} ms for a question about nothing"
        yield Verdict.NOTE, text, "each change waits for it: put it nearer to the candidates, or look who else uses it"


def _of_settings(found: Examined) -> Iterator[tuple[Verdict, str, str]]:
    settings = found.settings
    for name, (wanted, verdict, meaning) in DURABLE.items():
        if settings.get(name, wanted) != wanted:
            yield verdict, f"{name} is {settings[name]}: {meaning}", f"ALTER SYSTEM SET {name} = {wanted}; then pg_reload_conf()"
    if settings.get("synchronous_commit") == "off":
        text = "synchronous_commit is off: the last changes are lost when its machine stops"
        yield Verdict.FAILURE, text, "ALTER SYSTEM SET synchronous_commit = on; then pg_reload_conf()"
    elif settings.get("synchronous_commit") == "local" and settings.get("synchronous_standby_names"):
        text = "synchronous_commit is local: after a fail-over to a standby the last changes are lost"
        yield Verdict.WARNING, text, "ALTER SYSTEM SET synchronous_commit = on; then pg_reload_conf()"
    if settings.get("encoding", "UTF8") != "UTF8":
        text = f"it is encoded as {settings['encoding']}, which cannot hold every name"
        yield Verdict.FAILURE, text, "createdb --template template0 --encoding UTF8, and restore a backup into that"
    if settings.get("standby") == "true":
        yield Verdict.FAILURE, "it is a standby, which takes no changes", "have manager.database name the primary"
    if settings.get("journal_mode", "wal") != "wal":
        text = f"SQLite's journal mode is {settings['journal_mode']}, not wal"
        yield Verdict.NOTE, text, "the next manager changes it; if it stays so, its file system takes no shared memory"
