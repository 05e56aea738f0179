"""What has to be in a database before the first manager starts."""

from functools import partial

from sqlalchemy import Engine, make_url, select
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from cluster.errors import Refused, Unavailable
from manager.catalog.office import read_office
from manager.catalog.schema import servers
from manager.catalog.store import make_engines, retrying
from manager.catalog.upgrade import migrate


def prepare_catalog(url: str) -> None:
    """Makes the tables of a new network, or finds them made. Blocks.

    Raises `Refused` if the database holds a network already or the URL is wrong, `Unavailable` if it does not answer.
    """
    try:
        shown = make_url(url).render_as_string(hide_password=True)
        writer, reader = make_engines(url)
    except ArgumentError as error:
        raise Refused(f"{url!r} is not the URL of a database: postgresql+psycopg://user:password@host/name") from error
    except ImportError as error:
        raise Refused(
            f"{shown} needs a Python package that is missing here ({error.name}): pip install 'godwit[postgres]'"
        ) from error
    try:
        retrying(partial(migrate, writer))
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
