"""The tables of the catalog: what each column means, which values are special, and who repairs what a crash leaves.

`docs/catalog.md` explains how they are used. All numbers are 64-bit, all times nanoseconds since the epoch, all names bytes.
The first version of the schema is `alembic/versions/v0001_first.py` beside it; a test keeps the two equal.
"""

from sqlalchemy import (
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    text,
)

FIRST_INO = 1024

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite makes only an INTEGER primary key the key of the table itself; its INTEGER has 64 bits.
Number = BigInteger().with_variant(Integer, "sqlite")


def _number(name: str, default: int = 0) -> Column[int]:
    return Column(name, Number, nullable=False, server_default=text(str(default)))


# Who is the manager. One row, id 1. A transaction that finds another term than its own changes nothing.
office = Table(
    "office",
    metadata,
    Column("id", Number, primary_key=True, autoincrement=False),
    _number("term"),  # 0: nobody was ever in office
    Column("server", String(63), nullable=False, server_default=""),  # empty: vacant, anyone may take it at once
    Column("address", String(255), nullable=False, server_default=""),  # host:port of the holder; stale while vacant
    _number("beat"),  # raised by the holder; candidates watch it change
    _number("stopped"),  # the holders of all terms up to this one have said that they act no more
    _number("lasts_ms"),  # for how long the office lasts from the beat on; 0: `term_s`
)

# Which catalog this is. One row, id 1; the identity is drawn when the tables are made (see `cluster.catalog_point`).
identity = Table(
    "identity",
    metadata,
    Column("id", Number, primary_key=True, autoincrement=False),
    Column("catalog", String(36), nullable=False),  # a UUID
    _number("generation", 1),  # raised when an operator has accepted a catalog that had been older
    _number("first_ino", FIRST_INO),  # the first inode number of this generation: what is below may be older than the catalog
)

# Named numbers: `next_ino` (first inode number never handed out), `next_volume`, `inodes` (rows of that table),
# `authorities_revision`.
counters = Table(
    "counters",
    metadata,
    Column("name", String(32), primary_key=True),
    _number("value"),
    sqlite_with_rowid=False,
)

# Every file, directory, symlink and special file. Row 1 is the root.
inodes = Table(
    "inodes",
    metadata,
    Column("ino", Number, primary_key=True, autoincrement=False),
    _number("mode"),  # type and permission bits
    _number("nlink"),  # directories: 2 + subdirectories; 0: no name left, or none yet: the row is in `orphans` too
    _number("uid"),
    _number("gid"),
    _number("rdev"),  # device number of a character or block device, else 0
    _number("size"),  # of the last commit while dirty
    _number("blocks"),  # of 512 bytes, as `st_blocks`
    _number("atime_ns"),  # set at the creation and by setattr: reading changes none
    _number("mtime_ns"),
    _number("ctime_ns"),
    _number("btime_ns"),  # of creation; never changes
    _number("version"),  # of the content; 0: never committed
    _number("dirty"),  # 1: the home's object may be newer than `version`. Left by a crash: the home's agent commits
    _number("home_volume"),  # 0: no content (not a regular file)
    _number("home_epoch"),  # raised with each change of the home: commits of an earlier one are refused; 0: no home
    _number("object_ctime_ns"),  # of the home's object at the last commit, or as it was made; 0: not known
    _number("marks"),  # which special attributes `xattrs` has for it, and more: see manager.catalog.inodes
)
Index("ix_inodes_dirty", inodes.c.home_volume, inodes.c.ino, sqlite_where=text("dirty = 1"), postgresql_where=text("dirty = 1"))

symlinks = Table(
    "symlinks",
    metadata,
    Column("ino", Number, ForeignKey(inodes.c.ino, ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("target", LargeBinary, nullable=False),  # the bytes as they were given; `inodes.size` is their number
)

# Names. `cookie` orders a listing and is never used again: (term << 40) | n, n counted in the manager's memory.
dentries = Table(
    "dentries",
    metadata,
    Column("parent", Number, ForeignKey(inodes.c.ino), primary_key=True, autoincrement=False),
    Column("name", LargeBinary, primary_key=True),  # at most NAME_MAX bytes
    Column("cookie", Number, nullable=False),  # see above; an entry that is pointed elsewhere keeps it
    Column("ino", Number, ForeignKey(inodes.c.ino), nullable=False),
    Index(None, "parent", "cookie", unique=True),  # listings are read in this order
    Index(None, "ino"),  # from an inode to its names: paths, policies
    sqlite_with_rowid=False,
)

xattrs = Table(
    "xattrs",
    metadata,
    Column("ino", Number, ForeignKey(inodes.c.ino, ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("name", LargeBinary, primary_key=True),  # with its namespace: `user.`, `security.`, ...
    Column("value", LargeBinary, nullable=False),
)

# Inodes without a name, kept while a session holds them open. Left by a crash: reaped after the next manager's grace time.
orphans = Table(
    "orphans",
    metadata,
    Column("ino", Number, ForeignKey(inodes.c.ino, ondelete="CASCADE"), primary_key=True, autoincrement=False),
)

# Contents on volumes. Current when `version` is the inode's. Rows outlive their inode until the object is deleted, so
# there is no foreign key. The home has a row from the creation on, with version 0 and no stamp until the first commit.
replicas = Table(
    "replicas",
    metadata,
    Column("ino", Number, primary_key=True, autoincrement=False),
    Column("volume", Number, primary_key=True, autoincrement=False),
    _number("version"),  # of the content that the object has; 0: none yet
    Column("stamp_size", Number),  # the three are NULL together: the object has no committed content
    Column("stamp_mtime_ns", Number),  # as `lstat` showed the object at the commit
    Column("stamp_ctime_ns", Number),
    Column("checksum", LargeBinary, nullable=False, server_default=text("''")),  # BLAKE3; empty: not known yet
    Column("fault", String, nullable=False, server_default=""),  # what a reader found wrong with this version; empty: nothing
    Index(None, "volume", "ino"),  # all files of a volume, page by page
    sqlite_with_rowid=False,
)
Index("ix_replicas_faulty", replicas.c.ino, sqlite_where=text("fault <> ''"), postgresql_where=text("fault <> ''"))

# Objects that were homes on a server that was declared lost, and may hold what nobody else had: the file fell back to an
# older replica. Nothing is put over them and they are deleted by nobody; a row goes when the server is back and its agent has
# looked. Rows outlive their inode, so there is no foreign key; they hold what the file was, for its conflict name. In the
# database the table has its name of earlier versions.
abandoned = Table(
    "forsaken",
    metadata,
    Column("ino", Number, primary_key=True, autoincrement=False),
    Column("volume", Number, primary_key=True, autoincrement=False),
    _number("newer"),  # 1: its last commit is newer than what the file fell back to
    Column("stamp_size", Number),  # of its last commit; the three are NULL together
    Column("stamp_mtime_ns", Number),  # a difference shows that it was written after its last commit
    Column("stamp_ctime_ns", Number),
    _number("kept_size"),  # of what the file fell back to, with its checksum
    Column("kept_checksum", LargeBinary, nullable=False, server_default=text("''")),  # BLAKE3; empty: not known
    _number("mode"),  # these five are of the file when it fell back, for the inode that a conflict makes of the object
    _number("uid"),
    _number("gid"),
    _number("parent"),  # a directory that had a name of it then; it may be gone by now
    Column("name", LargeBinary, nullable=False, server_default=text("''")),
    _number("conflict"),  # the inode that it becomes; 0: not known yet
    Index(None, "volume", "ino"),  # all of a volume, when its server is back
    sqlite_with_rowid=False,
)

# Files that were kept under a conflict name, until they are removed.
conflicts = Table(
    "conflicts",
    metadata,
    Column("ino", Number, ForeignKey(inodes.c.ino, ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("server", String(63), nullable=False),  # whose object it was, as its conflict name says
)

# Servers that have ever introduced themselves or were added.
servers = Table(
    "servers",
    metadata,
    Column("server", String(63), primary_key=True),
    _number("joined_ns"),  # when it was first written down
    _number("mount_session"),  # the live mount's session, for the next manager's grace time; 0: none
    _number("agent_session"),  # the newest agent's session: an older one's claims are void; 0: none yet
    Column("state", String(8), nullable=False, server_default="up"),  # up, down, lost, left: cluster.membership.stored_state
    _number("draining"),  # 1: wanted empty, whatever `state` says
    _number("since_ns"),  # when `state` or `draining` last changed; 0: never
    Column("manager", String(255), nullable=False, server_default=""),  # its candidate's host:port
    Column("release", String(32), nullable=False, server_default=""),  # of Godwit that its agent runs
    sqlite_with_rowid=False,
)

# One-time tokens with which a new server may join; a row is deleted when it is used, and replaced by one for its keys alone.
invitations = Table(
    "invitations",
    metadata,
    Column("digest", LargeBinary, primary_key=True),  # BLAKE2b of the token's secret
    Column("server", String(63), nullable=False),  # the one that is invited
    _number("expires_ns"),  # by the clock of the manager that made it
    _number("candidate"),  # 1: it gets what a manager needs
    _number("epoch", 1),  # of the certificates that it gets
)

# Servers that were ever let in anew, or revoked. All others have certificates of epoch 1, which are believed.
epochs = Table(
    "epochs",
    metadata,
    Column("server", String(63), primary_key=True),
    _number("epoch", 1),  # of the newest certificates that were signed
    _number("least", 1),  # of those that are believed; more than `epoch`: none is, until it joins again
    sqlite_with_rowid=False,
)

# Authorities that are believed (docs/security.md, *Rotation*). The counter `authorities_revision` is raised with each change.
authorities = Table(
    "authorities",
    metadata,
    Column("number", Number, primary_key=True, autoincrement=False),  # which one of the network's, as its name says
    Column("certificate", LargeBinary, nullable=False),  # PEM
    Column("sealed", LargeBinary, nullable=False, server_default=text("''")),  # its key, for who may still sign: trust.sealing
    Column("state", String(10), nullable=False),  # introduced, signs, leaving: manager.rules.authorities
)

# The newest certificate that each process has shown to a manager. Rows of authorities that are gone go with them.
certificates = Table(
    "certificates",
    metadata,
    Column("server", String(63), primary_key=True),
    Column("role", String(8), primary_key=True),
    _number("epoch"),  # of the server, when it was signed
    _number("authority"),  # the one that has signed it
    _number("ends_s"),  # in seconds since the epoch
    _number("revision"),  # of the list of authorities that its process believes
    sqlite_with_rowid=False,
)

# `free_bytes` is the last value that was worth a transaction; the manager has the newest in memory.
volumes = Table(
    "volumes",
    metadata,
    Column("volume", Number, primary_key=True, autoincrement=False),
    Column("uuid", String(64), nullable=False),  # in the label on its disk: by this it is known wherever it is mounted
    Column("server", String(63), nullable=False),  # whose agent reported it last
    Column("path", String, nullable=False),  # on that server
    Column("address", String(255), nullable=False),  # host:port at which the server's agent serves its objects
    Column("device", String(255), nullable=False),  # tells volumes of one server that share a disk
    _number("total_bytes"),  # of its file system
    _number("free_bytes"),
    Column("standing", String(8), nullable=False, server_default="in"),  # in, out, lost: cluster.membership.VolumeStanding
    UniqueConstraint("uuid"),
)

# Directories with a policy of their own; the root always has one.
policies = Table(
    "policies",
    metadata,
    Column("ino", Number, ForeignKey(inodes.c.ino, ondelete="CASCADE"), primary_key=True, autoincrement=False),
    _number("copies"),  # that each file is to have, the home's among them
    _number("sync_copies"),  # of these, how many fsync waits for
    Column("names", String(8), nullable=False, server_default=""),  # held, through; empty: what a directory above says
)

# Directories whose files are still to be brought to their policy; worked off in the background, entry by entry.
scans = Table(
    "scans",
    metadata,
    Column("ino", Number, ForeignKey(inodes.c.ino, ondelete="CASCADE"), primary_key=True, autoincrement=False),
    _number("after"),  # the cookie up to which entries are done
)

# Volumes whose files are to be brought to their policy, since the volume stopped or began to count; worked off by number.
volume_scans = Table(
    "volume_scans",
    metadata,
    Column("volume", Number, primary_key=True, autoincrement=False),
    _number("after"),  # the inode up to which files are done
)

# Orders to move files from one server to others. Kept after their end, as history.
migrations = Table(
    "migrations",
    metadata,
    Column("migration", Number, primary_key=True),
    Column("kind", String(8), nullable=False),  # move (chosen paths), drain (all that a server holds)
    Column("state", String(9), nullable=False),  # planning, running, paused, failed, done, cancelled
    Column("source", String(63), nullable=False),  # server
    Column("target", String(63), nullable=False),  # server; empty: wherever placement says
    Column("subject", String, nullable=False),  # the paths as they were asked for, for people: JSON list
    _number("planned"),  # 1: every file has its move
    _number("cursor"),  # drain: the inode up to which moves are planned, on volume `cursor_volume`
    _number("cursor_volume"),  # volume of `source`
    _number("created_ns"),  # by the clock of the manager then
    _number("ended_ns"),  # 0: not yet; a cancelled one ends when what was being deleted is gone
    _number("token"),  # of the request that started it, which may come again; drains: negative, drawn here
    UniqueConstraint("token"),  # a repeated request finds the migration that the first one made
    Index(None, "ended_ns"),  # the open ones are few, the history grows
    sqlite_autoincrement=True,
)

# Directories whose files still have to get their moves.
migration_scans = Table(
    "migration_scans",
    metadata,
    Column("migration", Number, ForeignKey(migrations.c.migration, ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("ino", Number, primary_key=True, autoincrement=False),
    _number("after"),  # the cookie up to which entries are done
)

# One replica each that leaves a volume: copy, check, delete. `docs/migration.md` has the states as a table.
moves = Table(
    "moves",
    metadata,
    Column("migration", Number, ForeignKey(migrations.c.migration, ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("ino", Number, primary_key=True, autoincrement=False),
    Column("source", Number, primary_key=True, autoincrement=False),  # volume
    _number("target"),  # volume; 0: wherever placement says
    Column("state", String(9), nullable=False),  # manager.rules.moves
    _number("bytes"),  # size when it was planned
    Column("error", String, nullable=False, server_default=""),  # why it does not go on, or failed; empty if it does
    _number("changed_ns"),  # when `state` or `error` last changed
    Index(None, "migration", "state", "ino"),  # how many there are in a state, and the next of them
    Index(None, "ino"),  # all moves of a file that is looked at
    sqlite_with_rowid=False,
)

# The queues. At most one row per (inode, volume). Deadlines of claims and back-offs are in the manager's memory: a new
# manager makes all deferred tasks wait and gives the claimed ones a whole claim time.
tasks = Table(
    "tasks",
    metadata,
    Column("task", Number, primary_key=True),
    Column("server", String(63), nullable=False),  # whose queue
    Column("operation", String(8), nullable=False),  # copy, delete
    Column("state", String(8), nullable=False),  # waiting, deferred, claimed, dead
    _number("ino"),  # may be gone already: no foreign key, its objects are to be deleted all the same
    _number("volume"),  # where the copy is to be made or the object is to be deleted
    _number("version"),  # the newest version wanted; may be newer than the one a claim is for
    _number("claim"),  # raised at each claim: reports of older ones are ignored
    _number("attempts"),  # that failed since it was queued or retried; claims that ran out do not count
    Column("error", String, nullable=False, server_default=""),  # why it last went wrong, for people
    _number("queued_ns"),  # by the manager's clock of file times; a restart keeps it
    UniqueConstraint("ino", "volume"),  # so what is wanted anew changes the row that is there
    Index(None, "server", "state", "task"),  # what an agent claims, oldest first
    Index(None, "state", "task"),  # of all servers: dead ones, and what a new manager resets
    sqlite_autoincrement=True,
)

# Files with fewer places for copies than their policy wants, and why. Written by `manager.changes.alignment.align`, which also
# deletes the row when that has changed; looked at again by `manager.workers.shortfalls`.
shortfalls = Table(
    "shortfalls",
    metadata,
    Column("ino", Number, ForeignKey(inodes.c.ino, ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("reason", String, nullable=False, server_default=""),  # for people, as `rules.placement.why_short` words it
    _number("since_ns"),  # when it first had too few; a new reason keeps it
)

# Replies to mutations that the client has not acknowledged yet. Rows of sessions that have ended: the manager's housekeeping.
applied = Table(
    "applied",
    metadata,
    Column("session", Number, primary_key=True, autoincrement=False),
    Column("request_id", Number, primary_key=True, autoincrement=False),  # counted by the client, ever larger within a session
    Column("reply", LargeBinary, nullable=False),  # msgpack of `Applied`, without tokens and grants: a repeat gets fresh ones
    sqlite_with_rowid=False,
)

# Directories in which the mount of a server may be caching names or what they stand for; a row is there before the first grant,
# and deleted some time after the last one has ended. What a new manager goes by until the mounts have presented themselves.
caching = Table(
    "caching",
    metadata,
    Column("directory", Number, ForeignKey(inodes.c.ino, ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("server", String(63), primary_key=True),  # whose mount may be caching there
    _number("held"),  # 1: it may be alone there, and have changed what the catalog does not know yet
    sqlite_with_rowid=False,
)

# Journals of mounts (`docs/held-directories.md`): how far each has been applied, written with what is applied. The manager's
# housekeeping deletes rows some time after the last record.
journals = Table(
    "journals",
    metadata,
    Column("session", Number, primary_key=True, autoincrement=False),  # the mount's, which names its journal
    Column("server", String(63), nullable=False),  # of the mount
    _number("last"),  # the sequence of the last record that was applied or passed over
    _number("final"),  # 1: the mount is gone, and nothing follows
    _number("changed_ns"),  # by the manager's clock of file times, when `final` was set; 0: never
    sqlite_with_rowid=False,
)

# Inode numbers handed out, so that an object made just now is not taken for a stray. The newest few of each mount.
ranges = Table(
    "ranges",
    metadata,
    Column("first", Number, primary_key=True, autoincrement=False),
    _number("count"),  # the range is `first` to `first + count - 1`
    Column("server", String(63), nullable=False),  # of the mount that it was given to
    _number("session"),  # ranges of a dead session protect only what may be in its journal: see `find_strays`
    Index(None, "server"),  # a new mount of a server deletes those of the one before
)

# What has happened, for people: `cluster.events` has the kinds. Written in the transaction of what happened, if there is one.
# `manager.workers.events` deletes the oldest.
events = Table(
    "events",
    metadata,
    Column("event", Number, primary_key=True),  # ever growing, with gaps; who writes one has locked the office's row: in order
    _number("time_ns"),  # when it happened, by the manager's clock of file times
    _number("last_ns"),  # when it happened last, if there is one row for several times
    _number("count", 1),  # how often, or of how many things
    Column("severity", String(8), nullable=False),  # info, warning, error
    Column("kind", String(24), nullable=False),
    Column("server", String(63), nullable=False, server_default=""),  # which it is about; empty: none
    _number("volume"),  # the same; 0: none
    Column("fields", String, nullable=False, server_default="{}"),  # JSON in ASCII: a map of texts and numbers
    Index(None, "kind", "server", "volume"),  # the newest of its kind
    sqlite_autoincrement=True,
)
