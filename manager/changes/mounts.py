"""What the catalog knows of mounts."""

from sqlalchemy import update

from manager.catalog.schema import servers
from manager.catalog.store import Transaction
from manager.memory.sessions import Session


def forget_mount(tx: Transaction, session: Session) -> None:
    """A mount's session has ended without a successor: the next manager need not wait for it."""
    tx.execute(update(servers).where(servers.c.mount_session == session.number).values(mount_session=0))
