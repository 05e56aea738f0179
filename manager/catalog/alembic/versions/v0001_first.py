"""The first schema: names, inodes, replicas, queues, and the rows that must always be there."""

import stat

import sqlalchemy as sa
from alembic import op

from cluster.clock import file_time_ns
from cluster.messages import ROOT_INO

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _number(name: str) -> "sa.Column[int]":
    return sa.Column(name, NUMBER, server_default=sa.text("0"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "applied",
        sa.Column("session", NUMBER, autoincrement=False, nullable=False),
        sa.Column("request_id", NUMBER, autoincrement=False, nullable=False),
        sa.Column("reply", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("session", "request_id", name=op.f("pk_applied")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.String(length=32), nullable=False),
        _number("value"),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_counters")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "inodes",
        sa.Column("ino", NUMBER, autoincrement=False, nullable=False),
        _number("mode"),
        _number("nlink"),
        _number("uid"),
        _number("gid"),
        _number("rdev"),
        _number("size"),
        _number("blocks"),
        _number("atime_ns"),
        _number("mtime_ns"),
        _number("ctime_ns"),
        _number("btime_ns"),
        _number("version"),
        _number("dirty"),
        _number("home_volume"),
        _number("home_epoch"),
        _number("object_ctime_ns"),
        _number("marks"),
        sa.PrimaryKeyConstraint("ino", name=op.f("pk_inodes")),
    )
    op.create_index(
        "ix_inodes_dirty",
        "inodes",
        ["home_volume", "ino"],
        unique=False,
        sqlite_where=sa.text("dirty = 1"),
        postgresql_where=sa.text("dirty = 1"),
    )
    op.create_table(
        "office",
        sa.Column("id", NUMBER, autoincrement=False, nullable=False),
        _number("term"),
        sa.Column("server", sa.String(length=63), server_default="", nullable=False),
        sa.Column("address", sa.String(length=255), server_default="", nullable=False),
        _number("beat"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_office")),
    )
    op.create_table(
        "ranges",
        sa.Column("first", NUMBER, autoincrement=False, nullable=False),
        _number("count"),
        sa.Column("server", sa.String(length=63), nullable=False),
        _number("session"),
        sa.PrimaryKeyConstraint("first", name=op.f("pk_ranges")),
    )
    op.create_index(op.f("ix_ranges_server"), "ranges", ["server"], unique=False)
    op.create_table(
        "replicas",
        sa.Column("ino", NUMBER, autoincrement=False, nullable=False),
        sa.Column("volume", NUMBER, autoincrement=False, nullable=False),
        _number("version"),
        sa.Column("stamp_size", NUMBER, nullable=True),
        sa.Column("stamp_mtime_ns", NUMBER, nullable=True),
        sa.Column("stamp_ctime_ns", NUMBER, nullable=True),
        sa.Column("checksum", sa.LargeBinary(), server_default=sa.text("''"), nullable=False),
        sa.Column("fault", sa.String(), server_default="", nullable=False),
        sa.PrimaryKeyConstraint("ino", "volume", name=op.f("pk_replicas")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "servers",
        sa.Column("server", sa.String(length=63), nullable=False),
        _number("joined_ns"),
        _number("mount_session"),
        _number("agent_session"),
        sa.PrimaryKeyConstraint("server", name=op.f("pk_servers")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "tasks",
        sa.Column("task", NUMBER, nullable=False),
        sa.Column("server", sa.String(length=63), nullable=False),
        sa.Column("operation", sa.String(length=8), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        _number("ino"),
        _number("volume"),
        _number("version"),
        _number("claim"),
        _number("attempts"),
        sa.Column("error", sa.String(), server_default="", nullable=False),
        _number("queued_ns"),
        sa.PrimaryKeyConstraint("task", name=op.f("pk_tasks")),
        sa.UniqueConstraint("ino", "volume", name=op.f("uq_tasks_ino_volume")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_tasks_server_state_task"), "tasks", ["server", "state", "task"], unique=False)
    op.create_index(op.f("ix_tasks_state_task"), "tasks", ["state", "task"], unique=False)
    op.create_table(
        "volumes",
        sa.Column("volume", NUMBER, autoincrement=False, nullable=False),
        sa.Column("uuid", sa.String(length=64), nullable=False),
        sa.Column("server", sa.String(length=63), nullable=False),
        sa.Column("path", sa.String(), nullable=False),
        sa.Column("address", sa.String(length=255), nullable=False),
        sa.Column("device", sa.String(length=255), nullable=False),
        _number("total_bytes"),
        _number("free_bytes"),
        sa.PrimaryKeyConstraint("volume", name=op.f("pk_volumes")),
        sa.UniqueConstraint("uuid", name=op.f("uq_volumes_uuid")),
    )
    op.create_table(
        "dentries",
        sa.Column("parent", NUMBER, autoincrement=False, nullable=False),
        sa.Column("name", sa.LargeBinary(), nullable=False),
        sa.Column("cookie", NUMBER, nullable=False),
        sa.Column("ino", NUMBER, nullable=False),
        sa.ForeignKeyConstraint(["ino"], ["inodes.ino"], name=op.f("fk_dentries_ino")),
        sa.ForeignKeyConstraint(["parent"], ["inodes.ino"], name=op.f("fk_dentries_parent")),
        sa.PrimaryKeyConstraint("parent", "name", name=op.f("pk_dentries")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_dentries_ino"), "dentries", ["ino"], unique=False)
    op.create_index(op.f("ix_dentries_parent_cookie"), "dentries", ["parent", "cookie"], unique=True)
    op.create_table(
        "orphans",
        sa.Column("ino", NUMBER, autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["ino"], ["inodes.ino"], name=op.f("fk_orphans_ino"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("ino", name=op.f("pk_orphans")),
    )
    op.create_table(
        "policies",
        sa.Column("ino", NUMBER, autoincrement=False, nullable=False),
        _number("copies"),
        _number("sync_copies"),
        sa.ForeignKeyConstraint(["ino"], ["inodes.ino"], name=op.f("fk_policies_ino"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("ino", name=op.f("pk_policies")),
    )
    op.create_table(
        "scans",
        sa.Column("ino", NUMBER, autoincrement=False, nullable=False),
        _number("after"),
        sa.ForeignKeyConstraint(["ino"], ["inodes.ino"], name=op.f("fk_scans_ino"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("ino", name=op.f("pk_scans")),
    )
    op.create_table(
        "symlinks",
        sa.Column("ino", NUMBER, autoincrement=False, nullable=False),
        sa.Column("target", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["ino"], ["inodes.ino"], name=op.f("fk_symlinks_ino"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("ino", name=op.f("pk_symlinks")),
    )
    op.create_table(
        "xattrs",
        sa.Column("ino", NUMBER, autoincrement=False, nullable=False),
        sa.Column("name", sa.LargeBinary(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["ino"], ["inodes.ino"], name=op.f("fk_xattrs_ino"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("ino", "name", name=op.f("pk_xattrs")),
    )
    _insert_first_rows()


def _insert_first_rows() -> None:
    now_ns = file_time_ns()
    connection = op.get_bind()
    connection.exec_driver_sql("INSERT INTO office (id, term, server, address, beat) VALUES (1, 0, '', '', 0)")
    connection.exec_driver_sql("INSERT INTO counters (name, value) VALUES ('next_ino', 1024), ('next_volume', 1), ('inodes', 1)")
    connection.execute(
        sa.text(
            "INSERT INTO inodes (ino, mode, nlink, size, blocks, atime_ns, mtime_ns, ctime_ns, btime_ns)"
            " VALUES (:ino, :mode, 2, 4096, 8, :now, :now, :now, :now)"
        ),
        {"ino": ROOT_INO, "mode": stat.S_IFDIR | 0o755, "now": now_ns},
    )
    connection.execute(sa.text("INSERT INTO policies (ino, copies, sync_copies) VALUES (:ino, 2, 0)"), {"ino": ROOT_INO})
