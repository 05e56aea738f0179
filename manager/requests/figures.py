"""What a scraper is told of the network: servers, volumes, queues, files at risk. Only who is in office can say it.

The catalog is asked when a scraper asks (`Figures.fresh`), by one question at a time, however many ask and however long it takes:
a database that hangs holds up one thread and no answer, which then has everything but these figures.
"""

import time

import trio
from sqlalchemy import Connection, func, select

from cluster.clock import file_time_ns, monotonic_s
from cluster.counters import Counters, Metric, Sample, gauge
from cluster.membership import ServerState, VolumeCondition
from cluster.messages import MigrationState, TaskState
from cluster.trust.identity import Role
from manager.catalog.schema import migrations
from manager.changes.damage import count_damaged
from manager.changes.fallback import count_abandoned
from manager.changes.tasks import ages_by_state, count_tasks
from manager.memory.members import Member
from manager.requests.conflicts import count_conflicts
from manager.requests.shortfalls import count_below_policy
from manager.term import Term, counter

INODES = gauge("godwit_inodes", "Files, directories and all else that has a name, or is open still.")
BACKUP_AGE = gauge(
    "godwit_backup_age_seconds", "Age of the newest backup of the catalog on the manager's server; missing while there is none."
)
BELOW_POLICY = gauge("godwit_files_below_policy", "Files at risk: those with fewer current copies than their policy wants.")
DAMAGED = gauge("godwit_objects_damaged", "Objects that are not what the catalog says.")
FORSAKEN = gauge("godwit_objects_forsaken", "Objects on lost servers whose files fell back to an older content.")
CONFLICTS = gauge("godwit_files_conflicting", "Files under conflict names, which somebody has to look at.")
TASKS = gauge("godwit_tasks", "Copies and deletions that are to be made, by the server that makes them.", "server", "state")
OLDEST = gauge("godwit_oldest_task_seconds", "Age of the oldest of these tasks; 0 if there is none.", "server", "state")
SERVERS = gauge("godwit_server_state", "1 for the state that a server is in, 0 for the others.", "server", "state")
VOLUME_SIZE = gauge("godwit_volume_size_bytes", "Size of a volume's file system.", "server", "volume")
VOLUME_FREE = gauge(
    "godwit_volume_free_bytes", "Room for files that a volume has, with what its trash makes.", "server", "volume"
)
VOLUMES = gauge(
    "godwit_volume_condition",
    "1 for the condition that a volume's disk is in, 0 for the others.",
    "server",
    "volume",
    "condition",
)
MOUNTS = gauge("godwit_mounts", "Mounts that the manager hears.")
MIGRATIONS = gauge("godwit_migrations", "Migrations that are not over.", "state")
RECALLS = gauge("godwit_recalls_under_way", "Inodes that are being called back from mounts.")
AUTHORITY_END = gauge(
    "godwit_authority_end_timestamp_seconds", "When the authority that signs certificates ends, in seconds since the epoch."
)

PATIENCE_S = 3.0  # for the catalog: Prometheus itself waits for ten seconds by default
RESTS = 10  # times as long as the catalog took, the same are told again
OPEN = (MigrationState.PLANNING, MigrationState.RUNNING, MigrationState.PAUSED, MigrationState.FAILED)

_MIGRATIONS = (
    select(migrations.c.state, func.count().label("open")).where(migrations.c.ended_ns == 0).group_by(migrations.c.state)
)


class Figures:
    """Those of a candidate's terms."""

    def __init__(self) -> None:
        self._wanted = trio.Event()
        self._taken = trio.Event()  # set when what was wanted is there; a new one for each time
        self._found = Counters()
        self._fresh_until_s = 0.0  # for which `_found` is told again

    async def take_loop(self, term: Term) -> None:
        """Takes them whenever they are wanted, until cancelled."""
        self._fresh_until_s = 0.0
        while True:
            await self._wanted.wait()
            began_s = monotonic_s()
            self._found = await take_figures(term)
            ended_s = monotonic_s()
            self._fresh_until_s = ended_s + (ended_s - began_s) * RESTS
            # In one step: whoever comes from now on may want newer ones.
            taken, self._taken, self._wanted = self._taken, trio.Event(), trio.Event()
            taken.set()

    async def fresh(self) -> list[Sample]:
        """Figures that were taken just now; none if the catalog does not answer in time."""
        if monotonic_s() < self._fresh_until_s:
            return self._found.samples()
        self._wanted.set()
        taken = self._taken
        with trio.move_on_after(PATIENCE_S):
            await taken.wait()
        return self._found.samples() if taken.is_set() else []


async def take_figures(term: Term) -> Counters:
    """All of them, as they are now. Raises what reading the catalog raises."""
    figures = Counters()
    now_ns = file_time_ns()
    volumes = [volume.volume for volume in term.state.members.volumes()]

    def ask(connection: Connection) -> None:
        # In a thread: nobody else has these figures yet.
        figures.cell(INODES).value = counter(connection, "inodes")
        if (age_s := term.backups.age_s(time.time())) is not None:
            figures.cell(BACKUP_AGE).value = age_s
        figures.cell(BELOW_POLICY).value = count_below_policy(connection)
        figures.cell(DAMAGED).value = count_damaged(connection)
        figures.cell(FORSAKEN).value = count_abandoned(connection, volumes)
        figures.cell(CONFLICTS).value = count_conflicts(connection)
        open_ones = {row.state: int(row.open) for row in connection.execute(_MIGRATIONS)}
        _count_each(figures, MIGRATIONS, (), OPEN, open_ones)
        _ask_queues(connection, figures, now_ns)

    # First: each server has its queue, also an empty one.
    for server in _members(term):
        _count_each(figures, TASKS, (server,), tuple(TaskState), {})
        _count_each(figures, OLDEST, (server,), tuple(TaskState), {})
    await term.store.read_slowly(ask)
    _tell_members(term, figures)
    return figures


def _members(term: Term) -> dict[str, Member]:
    return {server: member for server, member in term.state.members.servers().items() if member.state is not ServerState.LEFT}


def _count_each(
    figures: Counters, metric: Metric, values: tuple[str, ...], names: tuple[str, ...], found: dict[str, int]
) -> None:
    """One number for each name, 0 where nothing was found: what is never missing can be compared."""
    for name in names:
        figures.cell(metric, *values, str(name)).value = found.get(name, 0)


def _ask_queues(connection: Connection, figures: Counters, now_ns: int) -> None:
    for (server, state), count in count_tasks(connection).items():
        figures.cell(TASKS, server, state).value = count
    for (server, state), age_s in ages_by_state(connection, now_ns).items():
        figures.cell(OLDEST, server, state).value = age_s


def _tell_members(term: Term, figures: Counters) -> None:
    for server, member in _members(term).items():
        _count_each(figures, SERVERS, (server,), tuple(ServerState), {member.state: 1})
    for volume in term.state.members.volumes():
        figures.cell(VOLUME_SIZE, volume.server, volume.path).value = volume.total_bytes
        figures.cell(VOLUME_FREE, volume.server, volume.path).value = volume.free_bytes
        _count_each(figures, VOLUMES, (volume.server, volume.path), tuple(VolumeCondition), {volume.condition: 1})
    figures.cell(MOUNTS).value = sum(session.role == Role.MOUNT for session in term.state.sessions.all())
    figures.cell(RECALLS).value = len(term.state.recalls)
    figures.cell(AUTHORITY_END).value = term.authority.certificate.not_valid_after_utc.timestamp()
