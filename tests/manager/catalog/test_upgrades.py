"""What the versions of the schema make of the rows that are there."""

from sqlalchemy import column, insert, select, table

from cluster.messages import ROOT_INO
from manager.catalog.engines import make_engines, write_transaction
from manager.catalog.inodes import HAS_CAPABILITY, HAS_OTHER_XATTRS, UNSETTLED
from manager.catalog.schema import epochs, inodes, invitations, policies, xattrs
from manager.catalog.upgrade import upgrade
from manager.changes.epochs import read_revoked

PLAIN, CAPABLE, TAGGED, BOTH = 10, 11, 12, 13
CAPABILITY, TAG = b"security.capability", b"user.tag"


def test_inodes_with_extended_attributes_are_marked(url: str) -> None:
    writer, _reader = make_engines(url)
    columns = {column.name: 0 for column in inodes.c}
    marks = {PLAIN: UNSETTLED, CAPABLE: HAS_CAPABILITY, TAGGED: UNSETTLED, BOTH: HAS_CAPABILITY}
    names = [(CAPABLE, CAPABILITY), (TAGGED, TAG), (BOTH, CAPABILITY), (BOTH, TAG)]
    with write_transaction(writer) as connection:
        # The version changes rows only, so that a catalog which is made of all of them is also one of the version before.
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0009'")
        connection.execute(insert(inodes), [{**columns, "ino": ino, "marks": mark} for ino, mark in marks.items()])
        connection.execute(insert(xattrs), [{"ino": ino, "name": name, "value": b"x"} for ino, name in names])
    upgrade(writer, "0010")
    with writer.connect() as connection:
        found = dict(connection.execute(select(inodes.c.ino, inodes.c.marks).where(inodes.c.ino.in_(marks))).all())
    assert found == marks | {TAGGED: UNSETTLED | HAS_OTHER_XATTRS, BOTH: HAS_CAPABILITY | HAS_OTHER_XATTRS}
    writer.dispose()


def test_policies_of_earlier_releases_say_nothing_of_names(url: str) -> None:
    writer, _reader = make_engines(url)
    with write_transaction(writer) as connection:
        connection.exec_driver_sql("ALTER TABLE policies DROP COLUMN names")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0010'")
    upgrade(writer, "0011")
    with writer.connect() as connection:
        assert connection.execute(select(policies.c.ino, policies.c.copies, policies.c.names)).all() == [(ROOT_INO, 2, "")]
    writer.dispose()


def test_invitations_without_a_pin_are_taken_back(url: str) -> None:
    """Nobody could join with their tokens; servers that are there have certificates of epoch 1."""
    writer, _reader = make_engines(url)
    with write_transaction(writer) as connection:
        connection.exec_driver_sql("ALTER TABLE invitations DROP COLUMN candidate")
        connection.exec_driver_sql("ALTER TABLE invitations DROP COLUMN epoch")
        connection.exec_driver_sql("DROP TABLE epochs")
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0012'")
        old = table("invitations", column("digest"), column("server"), column("expires_ns"))
        connection.execute(insert(old), {"digest": b"d", "server": "s4", "expires_ns": 1})
    upgrade(writer, "0013")
    with write_transaction(writer) as connection:
        assert connection.execute(select(invitations)).all() == []
        assert read_revoked(connection) == {}
        connection.execute(insert(invitations), {"digest": b"d", "server": "s4", "expires_ns": 1})
        connection.execute(insert(epochs), {"server": "s4"})
        assert connection.execute(select(invitations.c.candidate, invitations.c.epoch)).all() == [(0, 1)]
        assert connection.execute(select(epochs.c.epoch, epochs.c.least)).all() == [(1, 1)]
    writer.dispose()
