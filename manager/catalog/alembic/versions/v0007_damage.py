"""Replicas with something wrong are found without a look at all others."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    faulty = sa.text("fault <> ''")
    op.create_index("ix_replicas_faulty", "replicas", ["ino"], sqlite_where=faulty, postgresql_where=faulty)
