"""Membership, invitations, migrations and their moves."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _number(name: str) -> "sa.Column[int]":
    return sa.Column(name, NUMBER, server_default=sa.text("0"), nullable=False)


def _key(name: str) -> "sa.Column[int]":
    return sa.Column(name, NUMBER, autoincrement=False, nullable=False)


def _text(name: str, length: int | None = None, default: str | None = None) -> "sa.Column[str]":
    return sa.Column(name, sa.String(length=length), server_default=default, nullable=False)


def upgrade() -> None:
    with op.batch_alter_table("servers") as servers:
        servers.add_column(_text("state", 8, "up"))
        servers.add_column(_number("draining"))
        servers.add_column(_number("since_ns"))
        servers.add_column(_text("manager", 255, ""))
        servers.add_column(_text("release", 32, ""))
    with op.batch_alter_table("office") as office:
        office.add_column(_number("stopped"))
    op.create_index(op.f("ix_replicas_volume_ino"), "replicas", ["volume", "ino"])
    op.create_table(
        "invitations",
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        _text("server", 63),
        _number("expires_ns"),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_invitations")),
    )
    op.create_table(
        "volume_scans",
        _key("volume"),
        _number("after"),
        sa.PrimaryKeyConstraint("volume", name=op.f("pk_volume_scans")),
    )
    op.create_table(
        "migrations",
        sa.Column("migration", NUMBER, nullable=False),
        _text("kind", 8),
        _text("state", 9),
        _text("source", 63),
        _text("target", 63),
        _text("subject"),
        _number("planned"),
        _number("cursor"),
        _number("cursor_volume"),
        _number("created_ns"),
        _number("ended_ns"),
        _number("token"),
        sa.PrimaryKeyConstraint("migration", name=op.f("pk_migrations")),
        sa.UniqueConstraint("token", name=op.f("uq_migrations_token")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_migrations_ended_ns"), "migrations", ["ended_ns"])
    _create_children()


def _create_children() -> None:
    op.create_table(
        "migration_scans",
        _key("migration"),
        _key("ino"),
        _number("after"),
        sa.PrimaryKeyConstraint("migration", "ino", name=op.f("pk_migration_scans")),
        sa.ForeignKeyConstraint(
            ["migration"], ["migrations.migration"], name=op.f("fk_migration_scans_migration"), ondelete="CASCADE"
        ),
    )
    op.create_table(
        "moves",
        _key("migration"),
        _key("ino"),
        _key("source"),
        _number("target"),
        _text("state", 9),
        _number("bytes"),
        _text("error", None, ""),
        _number("changed_ns"),
        sa.PrimaryKeyConstraint("migration", "ino", "source", name=op.f("pk_moves")),
        sa.ForeignKeyConstraint(["migration"], ["migrations.migration"], name=op.f("fk_moves_migration"), ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_moves_migration_state_ino"), "moves", ["migration", "state", "ino"])
    op.create_index(op.f("ix_moves_ino"), "moves", ["ino"])
