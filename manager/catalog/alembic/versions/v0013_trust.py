"""What an invitation lets in, and which certificates of a server are believed."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("invitations", sa.Column("candidate", NUMBER, server_default="0", nullable=False))
    op.add_column("invitations", sa.Column("epoch", NUMBER, server_default="1", nullable=False))
    op.create_table(
        "epochs",
        sa.Column("server", sa.String(length=63), nullable=False),
        sa.Column("epoch", NUMBER, server_default="1", nullable=False),
        sa.Column("least", NUMBER, server_default="1", nullable=False),
        sa.PrimaryKeyConstraint("server", name=op.f("pk_epochs")),
        sqlite_with_rowid=False,
    )
    # Tokens of earlier releases name no authority: nobody could join with one.
    op.execute("DELETE FROM invitations")
