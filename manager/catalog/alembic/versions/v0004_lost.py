"""Servers that were declared lost: what may be left on them, and files kept under conflict names."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _number(name: str) -> "sa.Column[int]":
    return sa.Column(name, NUMBER, server_default=sa.text("0"), nullable=False)


def _key(name: str) -> "sa.Column[int]":
    return sa.Column(name, NUMBER, autoincrement=False, nullable=False)


def _bytes(name: str) -> "sa.Column[bytes]":
    return sa.Column(name, sa.LargeBinary(), server_default=sa.text("''"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "forsaken",
        _key("ino"),
        _key("volume"),
        _number("newer"),
        sa.Column("stamp_size", NUMBER),
        sa.Column("stamp_mtime_ns", NUMBER),
        sa.Column("stamp_ctime_ns", NUMBER),
        _number("kept_size"),
        _bytes("kept_checksum"),
        _number("mode"),
        _number("uid"),
        _number("gid"),
        _number("parent"),
        _bytes("name"),
        _number("conflict"),
        sa.PrimaryKeyConstraint("ino", "volume", name=op.f("pk_forsaken")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_forsaken_volume_ino"), "forsaken", ["volume", "ino"])
    op.create_table(
        "conflicts",
        _key("ino"),
        sa.Column("server", sa.String(length=63), nullable=False),
        sa.PrimaryKeyConstraint("ino", name=op.f("pk_conflicts")),
        sa.ForeignKeyConstraint(["ino"], ["inodes.ino"], name=op.f("fk_conflicts_ino"), ondelete="CASCADE"),
    )
