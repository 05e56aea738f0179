"""Which inodes have extended attributes without a mark of their own."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

MARK = 32
MARKED = (b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default")  # by marks of their own


def upgrade() -> None:
    inodes = sa.table("inodes", sa.column("ino"), sa.column("marks"))
    xattrs = sa.table("xattrs", sa.column("ino"), sa.column("name", sa.LargeBinary()))
    others = sa.select(xattrs.c.ino).where(xattrs.c.name.not_in(MARKED))
    op.execute(sa.update(inodes).where(inodes.c.ino.in_(others)).values(marks=inodes.c.marks.op("|")(MARK)))
