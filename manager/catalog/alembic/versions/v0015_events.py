"""What has happened."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("event", NUMBER, nullable=False),
        sa.Column("time_ns", NUMBER, server_default="0", nullable=False),
        sa.Column("last_ns", NUMBER, server_default="0", nullable=False),
        sa.Column("count", NUMBER, server_default="1", nullable=False),
        sa.Column("severity", sa.String(length=8), nullable=False),
        sa.Column("kind", sa.String(length=24), nullable=False),
        sa.Column("server", sa.String(length=63), server_default="", nullable=False),
        sa.Column("volume", NUMBER, server_default="0", nullable=False),
        sa.Column("fields", sa.String(), server_default="{}", nullable=False),
        sa.PrimaryKeyConstraint("event", name=op.f("pk_events")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_events_kind_server_volume"), "events", ["kind", "server", "volume"])
