"""Files for whose copies there is no place."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "shortfalls",
        sa.Column("ino", NUMBER, autoincrement=False, nullable=False),
        sa.Column("reason", sa.String(), server_default=sa.text("''"), nullable=False),
        sa.Column("since_ns", NUMBER, server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("ino", name=op.f("pk_shortfalls")),
        sa.ForeignKeyConstraint(["ino"], ["inodes.ino"], name=op.f("fk_shortfalls_ino"), ondelete="CASCADE"),
    )
