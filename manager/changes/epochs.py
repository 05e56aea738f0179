"""How often a server was let in: certificates of an epoch that is below the least one that is believed are void."""

from collections.abc import Callable

from sqlalchemy import Connection, bindparam, insert, select, update

from manager.catalog.schema import epochs
from manager.catalog.store import Transaction

_ROW = select(epochs.c.epoch, epochs.c.least).where(epochs.c.server == bindparam("server"))
_REVOKED = select(epochs.c.server, epochs.c.least).where(epochs.c.least > 1)


def read_revoked(connection: Connection) -> dict[str, int]:
    """The least epoch that is believed, of each server of which one was revoked."""
    return {row.server: row.least for row in connection.execute(_REVOKED)}


def next_epoch(tx: Transaction, server: str) -> int:
    """That of the certificates which the server gets when it joins now."""
    row = tx.execute(_ROW, {"server": server}).one_or_none()
    return 1 if row is None else max(row.epoch, row.least)


def note_epoch(tx: Transaction, server: str, epoch: int) -> None:
    """Certificates of this epoch were signed. May be repeated."""
    newest, _least = _row(tx, server)
    if newest < epoch:
        tx.execute(update(epochs).where(epochs.c.server == server).values(epoch=epoch))


def is_certified(tx: Transaction, server: str) -> bool:
    """Whether anything was ever signed for the server when it joined."""
    return tx.execute(_ROW, {"server": server}).first() is not None


def is_revoked(tx: Transaction, server: str) -> bool:
    """Whether no certificate is believed that was signed for the server."""
    row = tx.execute(_ROW, {"server": server}).one_or_none()
    return row is not None and row.least > row.epoch


def revoke(tx: Transaction, server: str, changed: Callable[[dict[str, int]], None]) -> bool:
    """Makes all certificates void that were signed for the server; False if they were. *changed* is told once it is so."""
    newest, least = _row(tx, server)
    if least > newest:
        return False
    tx.execute(update(epochs).where(epochs.c.server == server).values(least=newest + 1))
    revoked = read_revoked(tx.connection)
    tx.after(lambda: changed(revoked))
    return True


def _row(tx: Transaction, server: str) -> tuple[int, int]:
    """Its newest epoch, and the least one that is believed."""
    row = tx.execute(_ROW, {"server": server}).one_or_none()
    if row is None:
        # Of the first certificates, that `init` makes, nobody has told the catalog.
        tx.execute(insert(epochs), {"server": server})
        row = tx.execute(_ROW, {"server": server}).one()
    return row.epoch, row.least
