"""Volumes that do not count, since their disks are away or failing."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("volumes", sa.Column("standing", sa.String(length=8), server_default="in", nullable=False))
