"""Which authorities are believed, and which certificates their processes have shown."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "authorities",
        sa.Column("number", NUMBER, autoincrement=False, nullable=False),
        sa.Column("certificate", sa.LargeBinary(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), server_default=sa.text("''"), nullable=False),
        sa.Column("state", sa.String(length=10), nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_authorities")),
    )
    op.create_table(
        "certificates",
        sa.Column("server", sa.String(length=63), nullable=False),
        sa.Column("role", sa.String(length=8), nullable=False),
        sa.Column("epoch", NUMBER, server_default="0", nullable=False),
        sa.Column("authority", NUMBER, server_default="0", nullable=False),
        sa.Column("ends_s", NUMBER, server_default="0", nullable=False),
        sa.Column("revision", NUMBER, server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("server", "role", name=op.f("pk_certificates")),
        sqlite_with_rowid=False,
    )
    # The manager that takes office next writes down the authority that it has.
    op.execute("INSERT INTO counters (name, value) VALUES ('authorities_revision', 0)")
