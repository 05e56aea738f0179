"""In which directories which servers' mounts may be caching."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "caching",
        sa.Column("directory", NUMBER, autoincrement=False, nullable=False),
        sa.Column("server", sa.String(length=63), nullable=False),
        sa.PrimaryKeyConstraint("directory", "server", name=op.f("pk_caching")),
        sa.ForeignKeyConstraint(["directory"], ["inodes.ino"], name=op.f("fk_caching_directory"), ondelete="CASCADE"),
        sqlite_with_rowid=False,
    )
