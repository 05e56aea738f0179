"""How long the office lasts from each beat on: longer while the machine of its holder is busy."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("office", sa.Column("lasts_ms", NUMBER, server_default=sa.text("0"), nullable=False))
