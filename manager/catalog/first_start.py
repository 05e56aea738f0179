"""Creates the catalog of a new network, once; afterwards requires that it is there."""

import logging
from functools import partial

import trio
from sqlalchemy import Engine, make_url, select
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from cluster.errors import Refused, Unavailable
from manager.catalog.engines import make_engines, make_private_file, retrying
from manager.catalog.faults import Fault, is_missing, reason_of
from manager.catalog.identity import has_tables
from manager.catalog.office import read_office
from manager.catalog.room import Need, Room
from manager.catalog.schema import servers
from manager.catalog.upgrade import upgrade

log = logging.getLogger(__name__)

PAUSE_S = 1.0


def prepare_catalog(url: str) -> None:
    """Makes the tables of a new network, or finds them made. Blocks.

    Raises `Refused` if the database holds a network already or the URL is wrong, `Unavailable` if it does not answer.
    """
    try:
        shown = make_url(url).render_as_string(hide_password=True)
        make_private_file(url)
        writer, reader = make_engines(url)
    except ArgumentError as error:
        raise Refused(f"{url!r} is not the URL of a database: postgresql+psycopg://user:password@host/name") from error
    except ImportError as error:
        raise Refused(
            f"{shown} needs a Python package that is missing here ({error.name}): pip install 'godwit[postgres]'"
        ) from error
    try:
        retrying(partial(upgrade, writer))
        _require_new(reader, shown)
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise Unavailable(f"cannot open the database {shown}: {reason}") from error
    finally:
        writer.dispose()
        reader.dispose()


def _require_new(reader: Engine, shown: str) -> None:
    with reader.connect() as connection:
        known = sorted(connection.execute(select(servers.c.server)).scalars())
        term = read_office(connection).term
    if known or term:
        whose = f"with {', '.join(known)}" if known else f"that has reached term {term}"
        raise Refused(f"{shown} holds the catalog of a network already, {whose}: join that, or give an empty database")


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
            reason = f"cannot open the catalog {engine.url.render_as_string(hide_password=True)}: {reason_of(error)}"
            if room.failed(error) is Fault.WRONG or is_missing(error):
                raise Unavailable(reason) from error
            if reason != said:
                said = reason
                log.warning("%s; trying on", reason)
        await trio.sleep(PAUSE_S)


def _upgrade(engine: Engine) -> None:
    if not has_tables(engine):
        url = engine.url.render_as_string(hide_password=True)
        raise Refused(
            f"{url} holds no catalog, and none was made in it: an empty one in the place of a lost one would hide every file. "
            "Bring the catalog back (godwit db restore FILE), or mend manager.database in the configuration; a new network's "
            "is made by godwit init"
        )
    upgrade(engine)
