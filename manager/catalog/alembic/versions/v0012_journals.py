"""Directories that mounts hold, and how far their journals have been applied."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("caching", sa.Column("held", NUMBER, server_default="0", nullable=False))
    op.create_table(
        "journals",
        sa.Column("session", NUMBER, autoincrement=False, nullable=False),
        sa.Column("server", sa.String(length=63), nullable=False),
        sa.Column("last", NUMBER, server_default="0", nullable=False),
        sa.Column("final", NUMBER, server_default="0", nullable=False),
        sa.Column("changed_ns", NUMBER, server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("session", name=op.f("pk_journals")),
        sqlite_with_rowid=False,
    )
