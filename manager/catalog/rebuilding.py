"""Makes a catalog of what volumes hold: of the newest backup that is good, and of what objects say that is newer.

Without a backup it is made of the objects alone: then it has files, by their last known paths, and nothing else. The database
must be empty. On SQLite the catalog is made beside its place, and gets it when it is whole; what was begun in PostgreSQL and not
ended is taken away again. Volumes are only read. Blocks.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, Engine, func, insert, inspect, make_url, select, text, update
from sqlalchemy.exc import SQLAlchemyError

from cluster.catalog_point import CatalogPoint, later
from cluster.clock import file_time_ns
from cluster.durable import sync_directory
from cluster.errors import Refused, Unavailable
from cluster.membership import VolumeStanding
from cluster.volume.layout import OBJECTS_PER_DIRECTORY, VolumeIdentity, VolumeLayout
from cluster.volume.records import folder_numbers
from cluster.volume.tree import unattended
from manager.catalog.backup import restore
from manager.catalog.engines import make_engines, retrying, write_transaction
from manager.catalog.first_start import prepare_catalog
from manager.catalog.identity import begin_generation, read_point
from manager.catalog.schema import counters, identity, inodes, metadata, servers, volume_scans, volumes
from manager.catalog.taking_in import Found, Place, TakingIn, count_inodes, folders_of_files
from manager.catalog.urls import parse_url, shown
from manager.catalog.verification import kind_of, verify

Progress = Callable[[int, int], None]  # directories of objects that are done, and all


@dataclass
class Rebuilt:
    """A catalog that was made."""

    point: CatalogPoint
    backup: Path | None  # that it was made of, too
    refused: list[str]  # what is wrong with newer backups
    counts: dict[Found, int]
    examples: dict[Found, list[str]]  # paths, or places of objects
    directories: int  # made for files whose directories nobody knows
    missing: list[str]  # volumes that the catalog knows and that were not looked at
    inodes: int  # all of them


def rebuild(
    url: str,
    roots: Sequence[Path],
    *,
    backup: Path | None,
    use_backups: bool,
    remembered: CatalogPoint | None,
    term_s: float,
    dry_run: bool,
    progress: Progress = lambda _done, _all: None,
) -> Rebuilt:
    """Makes the catalog. *backup*: this one instead of the newest on the volumes; *dry_run*: it is thrown away again.

    Raises `Refused` for a database that is not empty, for volumes that are in use or of several networks, and for a backup of
    another catalog; `Unavailable` if the database does not answer; `OSError` if a volume cannot be read.
    """
    parse_url(url)
    layouts = [VolumeLayout(root.absolute()) for root in roots]
    with ExitStack() as attended:
        for layout in layouts:
            attended.enter_context(unattended(layout))
        identities = [layout.identity() for layout in layouts]
        known = later(remembered, _require_one_network(layouts, identities))
        refused: list[str] = []
        chosen = backup
        if chosen is None and use_backups:
            chosen, refused = newest_backup(layouts)
        elif chosen is not None:
            verify(chosen)
        if chosen is not None and kind_of(chosen) != (kind := make_url(url).get_backend_name()):
            raise Refused(
                f"{chosen} is of {kind_of(chosen)}, and cannot be brought back into {kind}: give such a database by --db"
            )
        make = partial(
            _make, chosen=chosen, layouts=layouts, identities=identities, known=known, term_s=term_s, progress=progress
        )
        try:
            made = _in_file(url, make, dry_run=dry_run) if _is_file(url) else _in_database(url, make, dry_run=dry_run)
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
            raise Unavailable(f"{shown(make_url(url))}: {reason}") from error
        made.refused = refused
        return made


def newest_backup(layouts: Sequence[VolumeLayout]) -> tuple[Path | None, list[str]]:
    """The newest backup on volumes that is good, and what is wrong with newer ones. Raises `OSError`."""
    found = [path for layout in layouts for path in backups_on(layout)]
    refused = []
    # Their names begin with when they were made.
    for path in sorted(found, key=lambda path: path.name, reverse=True):
        try:
            verify(path)
        except Refused as error:
            refused.append(str(error))
        else:
            return path, refused
    return None, refused


def backups_on(layout: VolumeLayout) -> list[Path]:
    """The whole backups on a volume, in the order of their names."""
    with suppress(FileNotFoundError):
        return sorted(path for path in layout.backups.iterdir() if not path.name.startswith(".") and path.is_file())
    return []


def _require_one_network(layouts: Sequence[VolumeLayout], identities: Sequence[VolumeIdentity]) -> CatalogPoint | None:
    """How far the catalog had come as the volumes know it. Raises `Refused` unless they are different ones of one network."""
    if not layouts:
        raise Refused("a catalog is made of volumes: name them with --from")
    uuids: dict[str, Path] = {}
    for layout, found in zip(layouts, identities, strict=True):
        if found.uuid in uuids:
            raise Refused(f"{layout.root} and {uuids[found.uuid]} are the same volume, or one is a copy of the other")
        uuids[found.uuid] = layout.root
    first, catalogs = identities[0], {found.catalog for found in identities if found.catalog}
    for layout, found in zip(layouts, identities, strict=True):
        if found.cluster != first.cluster:
            raise Refused(f"{layout.root} is of cluster {found.cluster!r}, and {layouts[0].root} of {first.cluster!r}")
    if len(catalogs) > 1:
        raise Refused(f"the volumes are of several catalogs: {', '.join(sorted(catalogs))}")
    if not catalogs:
        return None
    return CatalogPoint(catalogs.pop(), max(found.generation for found in identities), 0)


# ------------------------------------------------------------------------------------------------------- where it is made

Make = Callable[[str], Rebuilt]


def _is_file(url: str) -> bool:
    return make_url(url).get_backend_name() == "sqlite"


def _in_file(url: str, make: Make, *, dry_run: bool) -> Rebuilt:
    place = Path(make_url(url).database or "")
    if place.exists() and place.stat().st_size:
        raise Refused(
            f"{place} is not empty: a catalog is made in an empty database only. Keep it elsewhere (mv), or name another"
        )
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = place.with_name(f".{place.name}.rebuilding")
    _remove(beside)
    try:
        made = make(f"sqlite:///{beside.absolute()}")
        if not dry_run:
            descriptor = os.open(beside, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
            beside.rename(place)
            sync_directory(place.parent)
    except OSError as error:
        raise Refused(f"cannot make {place}: {error.strerror}", error.errno) from error
    finally:
        _remove(beside)
    return made


def _remove(file: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)


def _in_database(url: str, make: Make, *, dry_run: bool) -> Rebuilt:
    writer, reader = make_engines(url)
    try:
        with writer.connect() as connection:
            if found := inspect(connection).get_table_names():
                raise Refused(
                    f"{shown(writer.url)} is not empty, it has the table {found[0]}: a catalog is made in an empty database only "
                    "(createdb --template template0 --encoding UTF8)"
                )
        ended = False
        try:
            made = make(url)
            ended = not dry_run
        finally:
            if not ended:
                _clear(writer)
        return made
    finally:
        writer.dispose()
        reader.dispose()


def _clear(writer: Engine) -> None:
    with write_transaction(writer) as connection:
        metadata.drop_all(connection)
        connection.execute(text("DROP TABLE IF EXISTS alembic_version"))


# ------------------------------------------------------------------------------------------------------- how it is made


def _make(
    url: str,
    *,
    chosen: Path | None,
    layouts: Sequence[VolumeLayout],
    identities: Sequence[VolumeIdentity],
    known: CatalogPoint | None,
    term_s: float,
    progress: Progress,
) -> Rebuilt:
    if chosen is not None:
        restore(url, chosen, known, term_s)
    else:
        prepare_catalog(url)
    writer, reader = make_engines(url)
    try:
        take = partial(_take_all, writer, layouts, identities, known if chosen is None else None, progress, fresh=chosen is None)
        made = retrying(take, for_s=0.0)
        made.backup = chosen
        return made
    finally:
        writer.dispose()
        reader.dispose()


def _take_all(
    writer: Engine,
    layouts: Sequence[VolumeLayout],
    identities: Sequence[VolumeIdentity],
    known: CatalogPoint | None,
    progress: Progress,
    *,
    fresh: bool,
) -> Rebuilt:
    folders = sorted({number for layout in layouts for number in folder_numbers(layout)})
    with write_transaction(writer) as connection:
        # Before a generation begins, which leaves out numbers after it.
        _leave_out(connection, (folders[-1] + 1) * OBJECTS_PER_DIRECTORY if folders else 0)
        if fresh:
            if known is not None:
                connection.execute(update(identity).where(identity.c.id == 1).values(catalog=known.catalog))
            begin_generation(connection, known)
        places = [_place(connection, layout, found) for layout, found in zip(layouts, identities, strict=True)]
        missing = _missing(connection, places)
        taking = TakingIn(connection, places, read_point(connection).term, complete=not missing)
        before = _count(connection)
        work = sorted({*folders, *folders_of_files(connection)})
        for done, folder in enumerate(work):
            progress(done, len(work))
            taking.take(folder)
        taking.give_names()
        progress(len(work), len(work))
        after = _count(connection)
        count_inodes(connection, after - before)
        _look_at_all_again(connection, places)
        point = read_point(connection)
    return Rebuilt(
        point,
        None,
        [],
        {what: number for what, number in taking.counts.items() if number},
        dict(taking.examples),
        taking.directories,
        missing,
        after,
    )


def _leave_out(connection: Connection, first_free: int) -> None:
    """No number below is given again."""
    numbers = counters.c.name == "next_ino"
    connection.execute(update(counters).where(numbers, counters.c.value < first_free).values(value=first_free))


def _place(connection: Connection, layout: VolumeLayout, found: VolumeIdentity) -> Place:
    """The volume's number in the catalog, which may not know it, nor its server, yet."""
    if connection.execute(select(servers.c.server).where(servers.c.server == found.server)).first() is None:
        connection.execute(insert(servers), {"server": found.server, "joined_ns": file_time_ns()})
    number: int | None = connection.execute(select(volumes.c.volume).where(volumes.c.uuid == found.uuid)).scalar_one_or_none()
    if number is None:
        number = connection.execute(select(counters.c.value).where(counters.c.name == "next_volume")).scalar_one()
        connection.execute(update(counters).where(counters.c.name == "next_volume").values(value=number + 1))
        # Its agent says the rest when it introduces itself.
        where = {"server": found.server, "path": str(layout.root), "address": "", "device": found.uuid}
        connection.execute(insert(volumes), {"volume": number, "uuid": found.uuid, **where})
    return Place(number, layout)


def _missing(connection: Connection, places: Sequence[Place]) -> list[str]:
    """Volumes that the catalog knows and that are not looked at, but for lost ones."""
    given = [place.number for place in places]
    left = select(volumes.c.server, volumes.c.path).where(
        volumes.c.volume.not_in(given), volumes.c.standing != str(VolumeStanding.LOST)
    )
    return [f"{row.server}:{row.path}" for row in connection.execute(left.order_by(volumes.c.volume))]


def _count(connection: Connection) -> int:
    number: int = connection.execute(select(func.count()).select_from(inodes)).scalar_one()
    return number


def _look_at_all_again(connection: Connection, places: Sequence[Place]) -> None:
    """The manager brings all files of these volumes to their policies."""
    begun = set(connection.execute(select(volume_scans.c.volume)).scalars())
    new = [{"volume": place.number, "after": 0} for place in places if place.number not in begun]
    if new:
        connection.execute(insert(volume_scans), new)
    connection.execute(update(volume_scans).values(after=0))
