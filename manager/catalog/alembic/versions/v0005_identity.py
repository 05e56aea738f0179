"""Which catalog this is: an identity, and the generation that a restored backup raises."""

import uuid

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    made = op.create_table(
        "identity",
        sa.Column("id", NUMBER, autoincrement=False, nullable=False),
        sa.Column("catalog", sa.String(length=36), nullable=False),
        sa.Column("generation", NUMBER, server_default=sa.text("1"), nullable=False),
        sa.Column("first_ino", NUMBER, server_default=sa.text("1024"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_identity")),
    )
    op.bulk_insert(made, [{"id": 1, "catalog": str(uuid.uuid4())}])
