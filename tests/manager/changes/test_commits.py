"""Commits: which are taken, and when a file is clean."""

import errno
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from cluster.errors import Fenced, Refused
from cluster.messages import ROOT_INO, BeginCommit, Close, Closing, Commit, Content, ListUnsettled, Open, Stamp
from manager.catalog.schema import replicas
from tests.manager.changes.test_copies import agents_of
from tests.manager.office import NOW, Office, small_network


async def test_versions_epochs_and_stale_commits(url: str) -> None:
    async with small_network(url) as (_office, mount):
        node = await mount.make(b"f")
        await mount.commit(node.ino, 5)
        for version in (4, 5):
            with pytest.raises(Refused) as stale:
                await mount.commit(node.ino, version)
            assert stale.value.errno == errno.ESTALE
        with pytest.raises(Fenced):
            await mount.one(Commit(node.ino, 2, 9, Content(1, 1, 1, 1), True))
        with pytest.raises(Refused) as gone:
            await mount.commit(999_999, 9)
        assert gone.value.errno == errno.ENOENT
        with pytest.raises(Refused):
            await mount.one(Commit(node.ino, 1, 9, Content(-1, 1, 1, 1), True))
        assert (await mount.attr(node.ino)).version == 5


async def test_dirty_ends_with_the_last_writer(url: str) -> None:
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        other = await office.peer("s2")
        node = await mount.make(b"f")
        assert (await other.ask(Open(node.ino, True, 1))).node.dirty
        assert (await mount.commit(node.ino, 1)).dirty
        await mount.ask(Close([Closing(node.ino, 9)]))
        assert (await agents["s1"].ask(ListUnsettled(10))).inodes == []
        await other.ask(Close([Closing(node.ino, 2, still_open=True)]))
        assert (await mount.attr(node.ino)).dirty
        assert (await agents["s1"].ask(ListUnsettled(10))).inodes == [node.ino]
        assert (await agents["s2"].ask(ListUnsettled(10))).inodes == []
        answer = await agents["s1"].ask(BeginCommit(node.ino))
        begun = answer.number
        assert answer.orderly, "nobody can be writing it still"
        assert not answer.written
        with pytest.raises(Refused) as refusal:  # a write may have been under way at the commit before
            await agents["s1"].one(Commit(node.ino, 1, 0, None, True, begun))
        assert refusal.value.errno == errno.ESTALE
        assert not (await agents["s1"].one(Commit(node.ino, 1, 2, Content(20, 8, NOW, NOW + 2), True, begun))).dirty
        assert (await mount.ask(Open(node.ino, False, 10))).node.dirty is False
        assert (await mount.ask(Open(node.ino, True, 11))).node.dirty is True
        assert (await agents["s1"].ask(BeginCommit(node.ino))).written, "the agent may have it on a list of before"
        with pytest.raises(Refused):
            await mount.ask(Open(ROOT_INO, True, 12))
        with pytest.raises(Refused):
            await mount.ask(Open(999_999, False, 13))
        assert not office.state.sessions.is_open(999_999)

        writer = office.state.sessions.of_server("s1", "mount")
        assert writer is not None
        office.state.sessions.end(writer)
        begun_anew = await agents["s1"].ask(BeginCommit(node.ino))
        assert not begun_anew.orderly, "its mount went away with the file open"
        assert not begun_anew.written


async def test_commits_of_many_files_do_what_each_would(url: str, tmp_path: Path) -> None:
    """New files, ones that have copies, or that others write, or of which nothing was written: together or one by one."""

    async def committed(where: str, *, together: bool) -> list[Any]:
        async with small_network(where) as (office, mount):
            agents = await agents_of(office)
            other = await office.peer("s2")
            fresh, copied, written, unchanged, lost = nodes = [await mount.make(b"f%d" % number) for number in range(5)]
            for node in (copied, written, unchanged):
                await mount.commit(node.ino, 1, final=node is unchanged)
            await mount.ask(Open(unchanged.ino, True, 5))
            assert (await mount.attr(unchanged.ino)).dirty
            for agent in agents.values():
                for task in await agent.claim():
                    if task.ino != written.ino:
                        await agent.done(task)
            await other.ask(Open(written.ino, True, 1))
            await office.store.write(lambda tx: tx.execute(delete(replicas).where(replicas.c.ino == lost.ino)))
            content = Content(77, 8, NOW + 7, NOW + 9)
            commits = [Commit(node.ino, 1, 2, None if node is unchanged else content, True) for node in nodes]
            answers = await mount.apply(*commits) if together else [await mount.one(commit) for commit in commits]
            assert [answer.dirty for answer in answers if answer] == [False, False, True, False, False]
            tables = ("inodes", "replicas", "tasks")
            rows = [await rows_of(office, f"SELECT * FROM {table} WHERE ino > {ROOT_INO} ORDER BY ino, 2") for table in tables]
            queued = [row.ino for row in rows[2]]
            assert {fresh.ino, copied.ino, written.ino, lost.ino} == set(queued)
            return [answers, *([_comparable(row) for row in table] for table in rows)]

    assert await committed(url, together=True) == await committed(f"sqlite:///{tmp_path}/alone.db", together=False)


async def test_an_empty_file_keeps_its_times_and_its_object_those_that_it_was_made_with(url: str) -> None:
    """The object was made before the file, and must be known by its own stamp when it is copied."""
    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        made_ns, committed_ns = NOW - 50, NOW + 60
        empty, written = [await mount.make(name, object_ctime_ns=made_ns) for name in (b"empty", b"written")]
        contents = {empty.ino: Content(0, 0, made_ns, committed_ns), written.ino: Content(5, 8, NOW + 55, committed_ns)}
        await mount.apply(*[Commit(ino, 1, 1, content, True) for ino, content in contents.items()])
        assert [(await mount.attr(ino)).mtime_ns for ino in contents] == [NOW, NOW + 55]
        assert [(await mount.attr(ino)).ctime_ns for ino in contents] == [NOW, NOW + 55]
        tasks = {task.ino: task for server in ("s2", "s3") for task in await agents[server].claim()}
        for ino, content in contents.items():
            (source,) = tasks[ino].sources
            assert source.stamp == Stamp(content.size, content.mtime_ns, content.ctime_ns)


async def rows_of(office: Office, question: str) -> list[Any]:
    return list(await office.store.read(lambda connection: connection.exec_driver_sql(question).all()))


def _comparable(row: Any) -> dict[str, Any]:
    return {name: value for name, value in row._mapping.items() if name not in ("queued_ns", "task")}


async def test_of_commits_together_all_are_refused_if_one_is(url: str) -> None:
    async with small_network(url) as (office, mount):
        good, stale = await mount.make(b"good"), await mount.make(b"stale")
        content = Content(77, 8, NOW, NOW)
        await mount.commit(stale.ino, 5, final=False)
        before = await rows_of(office, "SELECT * FROM inodes ORDER BY ino")
        with pytest.raises(Refused) as refusal:
            await mount.apply(Commit(good.ino, 1, 1, content, True), Commit(stale.ino, 1, 5, content, True))
        assert refusal.value.errno == errno.ESTALE
        assert await rows_of(office, "SELECT * FROM inodes ORDER BY ino") == before
        nodes = await mount.apply(*[Commit(good.ino, 1, version, content, True) for version in (1, 2)])
        assert [node.version for node in nodes if node] == [1, 2], "the second depends on the first"


async def test_a_commit_that_began_before_a_writer_closed_leaves_the_file_dirty(url: str) -> None:
    """What that writer wrote may not be in it: another commit is owed, which began after the close."""

    async with small_network(url) as (office, mount):
        agents = await agents_of(office)
        home = agents["s1"]
        node = await mount.make(b"f")
        writers = [await office.peer("s2"), await office.peer("s3")]
        for writer in writers:
            await writer.ask(Open(node.ino, True, 1))
        assert (await mount.commit(node.ino, 1)).dirty
        await mount.ask(Close([Closing(node.ino, 9)]))
        await writers[0].ask(Close([Closing(node.ino, 2)]))
        early = (await home.ask(BeginCommit(node.ino))).number
        await writers[1].ask(Close([Closing(node.ino, 2)]))
        late = (await home.ask(BeginCommit(node.ino))).number
        assert (await home.one(Commit(node.ino, 1, 2, Content(20, 8, NOW, NOW + 2), True, early))).dirty
        assert not (await home.one(Commit(node.ino, 1, 3, Content(30, 8, NOW, NOW + 3), True, late))).dirty
        await mount.ask(Open(node.ino, True, 10))
        assert not (await mount.commit(node.ino, 4)).dirty
