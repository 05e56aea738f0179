"""Whether mounts may hold directories."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("policies", sa.Column("names", sa.String(length=8), server_default="", nullable=False))
