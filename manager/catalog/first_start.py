"""Creates the catalog of a new network, once; afterwards requires that it is there."""

import logging
from functools import partial

import trio
from sqlalchemy import Engine, select
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from cluster.errors import Refused, Unavailable
from manager.catalog.engines import make_engines, make_private_file, retrying
from manager.catalog.faults import Fault, is_missing, reason_of
from manager.catalog.identity import has_tables
from manager.catalog.office import read_office
from manager.catalog.room import Need, Room
from manager.catalog.schema import servers
from manager.catalog.upgrade import upgrade
from manager.catalog.urls import NO_URL, parse_url, shown

log = logging.getLogger(__name__)

PAUSE_S = 1.0


def prepare_catalog(url: str) -> None:
    """Makes the tables of a new network, or finds them made. Blocks.

    Raises `Refused` if the database holds a network already or the URL is wrong, `Unavailable` if it does not answer.
    """
    place = shown(parse_url(url))
    try:
        make_private_file(url)
        writer, reader = make_engines(url)
    except ArgumentError:
        raise Refused(NO_URL) from None
    except ImportError as error:
        raise Refused(
            f"{place} needs a Python package that is missing here ({error.name}): pip install 'godwit[postgres]'"
        ) from error
    try:
        _require_unicode(writer, place)
        retrying(partial(upgrade, writer))
        _require_new(reader, place)
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise Unavailable(f"cannot open the database {place}: {reason}") from error
    finally:
        writer.dispose()
        reader.dispose()


def _require_unicode(engine: Engine, place: str) -> None:
    if engine.dialect.name != "postgresql":
        return
    query = "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database()"
    with engine.connect() as connection:
        encoding = connection.exec_driver_sql(query).scalar_one()
    if encoding != "UTF8":
        raise Refused(
            f"{place} is encoded as {encoding}, which cannot hold every name: createdb --template template0 --encoding UTF8"
        )


def _require_new(reader: Engine, place: str) -> None:
    with reader.connect() as connection:
        known = sorted(connection.execute(select(servers.c.server)).scalars())
        term = read_office(connection).term
    if known or term:
        whose = f"with {', '.join(known)}" if known else f"that has reached term {term}"
        raise Refused(f"{place} holds the catalog of a network already, {whose}: join that, or give an empty database")


async def open_catalog(engine: Engine, room: Room) -> None:
    """Waits for a database that is starting, or whose disk has to be mended, and brings its schema up to date.

    Raises `Unavailable` if it cannot be opened for another reason, `Refused` if it holds no catalog: tables are made by
    `godwit init` alone.
    """
    said = ""
    while True:
        try:
            await trio.to_thread.run_sync(room.run, partial(retrying, partial(_upgrade, engine)), Need.OFFICE)
            return
        except SQLAlchemyError as error:
            reason = f"cannot open the catalog {shown(engine.url)}: {reason_of(error)}"
            if room.failed(error) is Fault.WRONG or is_missing(error):
                raise Unavailable(reason) from error
            if reason != said:
                said = reason
                log.warning("%s; trying on", reason)
        await trio.sleep(PAUSE_S)


def _upgrade(engine: Engine) -> None:
    if not has_tables(engine):
        url = shown(engine.url)
        raise Refused(
            f"{url} holds no catalog, and none was made in it: an empty one in the place of a lost one would hide every file. "
            "Bring the catalog back (godwit db restore FILE), or mend manager.database in the configuration; a new network's "
            "is made by godwit init"
        )
    upgrade(engine)
