"""`godwit fsck` at the agent: what is found, what is mended, and that what is only of a moment is not found."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio

from cluster.catalog_point import CatalogPoint
from cluster.clock import file_time_ns
from cluster.errors import Corrupt, Refused, Unavailable
from cluster.messages import (
    MISSING,
    CheckProgress,
    CheckVolumes,
    Done,
    ExamineObject,
    Finding,
    ListReplicas,
    ReplicaState,
    Stamp,
)
from cluster.volume.content import stamp_of
from cluster.volume.layout import read_record, write_record
from tests.agent.network import TIMEOUT_S, Network, RunningAgent, Somebody, digest, network, put_object
from tests.agent.tokens import token_for

pytestmark = pytest.mark.deadline(60)

CONTENT = b"content" * 1000


class Scene:
    """One server with committed files, of which the catalog says what it has."""

    def __init__(self, net: Network, running: RunningAgent) -> None:
        self.net = net
        self.running = running
        self.layout = running.layout
        self.volume = net.manager.volume_of("s1")
        self.rows = net.manager.replicas.setdefault(self.volume, {})

    async def file(self, ino: int, *, home: bool = True, others: int = 1, checksum: bytes = b"") -> Path:
        node = await self.net.file("s1", ino, CONTENT)
        path = Path(self.layout.object_path(ino))
        stamp = stamp_of(path.stat())
        state = ReplicaState(ino, node.version, node.version, stamp, checksum, "", home, False, 1, others, "", b"/f%d" % ino)
        self.rows[ino] = state
        return path

    def change(self, ino: int, **changes: object) -> None:
        self.rows[ino] = msgspec.structs.replace(self.rows[ino], **changes)

    def forget_last_commit(self, ino: int) -> None:
        """The catalog is as it was before."""
        node, stamp = self.net.manager.nodes[ino], self.net.manager.stamp(ino)
        version = node.version - 1
        self.net.manager.nodes[ino] = msgspec.structs.replace(node, version=version, object_ctime_ns=1, size=1)
        self.change(ino, version=version, wanted=version, stamp=msgspec.structs.replace(stamp, size=1))

    def set_aside(self, path: Path, folder: str) -> Path:
        target = self.layout.root / folder / f"{path.name}.{file_time_ns()}"
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
        return target

    async def check(self, *, repair: bool = False, deep: bool = False) -> list[Finding]:
        channel = await self.net.channel("s1")
        try:
            return await findings_of(channel, CheckVolumes("s1", repair, deep))
        finally:
            channel.close()

    async def outcomes(self, *, repair: bool = True, deep: bool = False) -> dict[int, tuple[str, str]]:
        return {item.ino: (item.kind, item.outcome) for item in await self.check(repair=repair, deep=deep)}


async def findings_of(channel: Somebody, request: CheckVolumes) -> list[Finding]:
    found: list[Finding] = []
    async with channel.open_stream(request) as replies:
        async for answer in replies:
            if isinstance(answer.reply, Done):
                break
            assert isinstance(answer.reply, CheckProgress)
            assert answer.reply.problem == ""
            found += answer.reply.findings
    return found


@asynccontextmanager
async def scene(folder: Path) -> AsyncIterator[Scene]:
    async with network(folder) as net:
        running = await net.start("s1")
        await net.manager.wait_for(lambda: len(net.manager.registrations) > 2, "reports")
        yield Scene(net, running)


async def test_what_is_in_order_is_no_finding(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        for ino in range(2000, 2010):
            await here.file(ino, checksum=digest(CONTENT))
        assert await here.check(repair=True, deep=True) == []


@pytest.mark.parametrize("folder", ["trash", "unknown"])
@pytest.mark.parametrize("home", [True, False])
@pytest.mark.parametrize("checksum", [b"", digest(CONTENT)])
async def test_what_was_set_aside_comes_back(folder: str, home: bool, checksum: bytes, tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        path = await here.file(2000, home=home, others=0, checksum=checksum)
        kept = here.set_aside(path, folder)
        assert await here.outcomes(repair=False) == {2000: ("missing", "found")}
        assert kept.exists()
        assert await here.outcomes() == {2000: ("missing", "mended")}
        assert path.read_bytes() == CONTENT
        assert not kept.exists()
        assert await here.check() == [], "the catalog knows the object's new stamp"


async def test_what_a_home_had_written_since_the_catalog_was_saved_is_committed(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        for ino in (2000, 2001):
            await here.file(ino)
            here.forget_last_commit(ino)
        here.set_aside(Path(here.layout.object_path(2001)), "trash")
        assert await here.outcomes(repair=False) == {2000: ("wrong version", "found"), 2001: ("missing", "found")}
        assert await here.outcomes() == {2000: ("wrong version", "mended"), 2001: ("missing", "mended")}
        for ino in (2000, 2001):
            node = here.net.manager.nodes[ino]
            assert (node.size, node.dirty) == (len(CONTENT), False)
            assert Path(here.layout.object_path(ino)).read_bytes() == CONTENT


async def test_damaged_copies_are_set_aside_and_the_last_content_stays(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        copy = await here.file(2000, home=False)
        alone = await here.file(2001, home=True, others=0)
        older = await here.file(2002, home=False)
        gone = await here.file(2003, home=False)
        for path in (copy, alone):
            os.truncate(path, 3)
        here.change(2002, version=9, wanted=9, stamp=Stamp(1, 1, 1))
        gone.unlink()
        assert await here.outcomes() == {
            2000: ("wrong size", "mended"),
            2001: ("wrong size", "left"),
            2002: ("wrong version", "mended"),
            2003: ("missing", "mended"),
        }
        assert not copy.exists()
        assert [path.read_bytes() for path in here.layout.unknown.iterdir()] == [CONTENT[:3]]
        assert alone.read_bytes() == CONTENT[:3]
        assert older.exists(), "what a copy is about to be put over, and holds nothing of its own"
        assert {ino: bool(row.fault) for ino, row in here.rows.items()} == dict.fromkeys((2000, 2001, 2002, 2003), True)


async def test_only_reading_the_content_shows_that_it_rots(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        path = await here.file(2000, home=False, checksum=digest(CONTENT))
        await here.file(2001, home=False, checksum=digest(CONTENT))
        with path.open("r+b") as file:
            file.write(b"rot")
        here.change(2000, stamp=stamp_of(path.stat()))
        assert await here.check() == []
        assert await here.outcomes(repair=False, deep=True) == {2000: ("wrong digest", "found")}
        assert await here.outcomes(deep=True) == {2000: ("wrong digest", "mended")}


async def test_what_is_written_meanwhile_or_has_a_task_is_no_finding(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        written, busy, dirty, changing = [await here.file(ino) for ino in (2000, 2001, 2002, 2003)]
        for path in (written, busy, dirty, changing):
            os.truncate(path, 5)
        here.change(2001, task="copy")
        here.change(2002, dirty=True)

        def write_meanwhile(request: ListReplicas) -> None:
            if request.after == 1999 and request.limit == 1:
                here.change(2000, stamp=stamp_of(written.stat()), version=2, wanted=2)
            if request.after == 2002 and request.limit == 1:
                # Each time that it is asked for, somebody has committed again.
                here.change(2003, version=here.rows[2003].version + 1)

        here.net.manager.on_list = write_meanwhile
        assert await here.check(repair=True) == []
        assert {path.stat().st_size for path in (written, busy, dirty, changing)} == {5}


async def test_what_is_on_a_disk_that_has_gone_is_not_missing(net: Network) -> None:
    here = Scene(net, await net.start("s1", report_s=30.0))  # the agent does not look at its disks meanwhile
    path = await here.file(2000)
    root = here.layout.root
    root.rename(root.with_name("away"))
    root.mkdir()
    here.net.manager.damage.clear()
    channel = await net.channel("s1")
    problems: list[str] = []
    async with channel.open_stream(CheckVolumes("s1", repair=True)) as replies:
        async for answer in replies:
            if isinstance(answer.reply, Done):
                break
            assert answer.reply.findings == []
            problems.append(answer.reply.problem)
    assert [problem for problem in problems if problem] == [f"{root}: No such file or directory"]
    assert (here.rows[2000].fault, list(root.iterdir())) == ("", [])
    root.rmdir()
    root.with_name("away").rename(root)
    assert path.read_bytes() == CONTENT
    assert await here.check(repair=True) == []


async def test_objects_that_are_unknown_are_set_aside_unless_they_are_many(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        strays = [await here.file(ino) for ino in (2000, 2001)]
        here.rows.clear()
        here.net.manager.strays = {2000, 2001}
        assert await here.outcomes(repair=False) == {2000: ("unknown", "found"), 2001: ("unknown", "found")}
        assert all(path.exists() for path in strays)
        assert await here.outcomes() == {2000: ("unknown", "mended"), 2001: ("unknown", "mended")}
        assert sorted(path.name.partition(".")[0] for path in here.layout.unknown.iterdir()) == ["2000", "2001"]
        many = set(range(3000, 3040))
        for ino in many:
            put_object(here.layout, ino)
        here.net.manager.strays = many
        found = await here.check(repair=True)
        assert {item.ino for item in found} == many
        assert {item.outcome for item in found} == {"left"}
        assert all("godwit volumes sweep" in item.text for item in found)


async def test_one_check_at_a_time_and_only_of_the_server_that_is_meant(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        await here.file(2000)
        first, second = await here.net.channel("s1"), await here.net.channel("s1")
        here.net.manager.hold_stray_answers = True
        async with first.open_stream(CheckVolumes("s1")) as replies:
            await here.net.manager.wait_for(lambda: here.net.manager.listed, "it has begun")
            with pytest.raises(Refused, match="being checked already"):
                await second.call(CheckVolumes("s1"), timeout_s=TIMEOUT_S)
            with pytest.raises(Refused, match="this is s1, not s2"):
                await second.call(CheckVolumes("s2"), timeout_s=TIMEOUT_S)
            here.net.manager.hold_stray_answers = False
            here.net.manager.notify()
            async for answer in replies:
                if isinstance(answer.reply, Done):
                    break


@pytest.mark.parametrize("first", ["comparison", "review"])
async def test_an_agent_repairs_of_its_own_accord_when_the_catalog_was_brought_back(
    first: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever of the two workers that look for what is missing comes first."""
    async with scene(tmp_path) as here:
        path = await here.file(2000)
        here.set_aside(path, "trash")
        compared = Path(here.running.config.state) / "catalog-compared.json"
        await here.net.manager.wait_for(compared.exists, "the generation is remembered")
        await here.running.stop()
        manager = here.net.manager
        manager.point = CatalogPoint("fake", 2, 7)
        # A page is for a comparison, one replica for whoever repairs it.
        manager.hold_listing = lambda request: first == "review" and request.limit > 1
        manager.hold_held = first == "comparison"
        await here.net.start_with(here.running.config)
        await manager.wait_for(path.exists, "it is back")
        await manager.wait_for(lambda: here.rows[2000].stamp == stamp_of(path.stat()), "the catalog knows its new stamp")
        answered = len(manager.held_answers)
        manager.hold_listing, manager.hold_held = lambda _request: False, False
        manager.notify()
        await manager.wait_for(lambda: '"generation":2' in compared.read_text(), "it was compared")
        # Of the list, which shows the object's old stamp if it was held up, and then of this object.
        await manager.wait_for(lambda: first == "review" or len(manager.held_answers) >= answered + 2, "it was reviewed")
        assert "inode 2000 on volume 1 was missing and is brought back" in caplog.text
        assert (here.rows[2000].fault, here.rows[2000].is_home) == ("", True)


async def test_damage_is_not_reported_while_a_repair_holds_the_object_and_is_afterwards(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        manager, path = here.net.manager, await here.file(2000, others=0)
        path.unlink()
        manager.hold_listing = lambda request: request.limit == 1
        held = here.set_aside(await here.file(2001), "trash")
        channel = await here.net.channel("s1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(here.check, repair=False))
            await manager.wait_for(lambda: manager.listed and manager.listed[-1].limit == 1, "the check has the lock")
            with pytest.raises(Unavailable, match="inode 2000 on volume 1 is being worked on"):
                await channel.call(ExamineObject(2000, here.volume, token_for(2000)), timeout_s=TIMEOUT_S)
            assert here.rows[2000].fault == ""
            manager.hold_listing = lambda _request: False
            manager.notify()
            await manager.wait_for(lambda: here.rows[2000].fault == MISSING, "it is looked at again, unasked")
        assert held.exists(), "nobody has asked for this one"
        await channel.call(ExamineObject(2001, here.volume, token_for(2001)), timeout_s=TIMEOUT_S)
        assert (held.exists(), here.rows[2001].fault) == (False, "")
        channel.close()


async def test_what_was_set_aside_since_it_rots_does_not_come_back(tmp_path: Path) -> None:
    """The catalog has no digest, and the rot has changed neither size nor times: the object's own record tells."""
    async with scene(tmp_path) as here:
        kept = [await here.file(ino, home=False) for ino in (2000, 2001)]
        for number, path in enumerate(kept):
            times = path.stat()
            with path.open("r+b") as file:
                file.write(b"rot")
                record = read_record(file.fileno())
                assert record is not None
                write_record(file.fileno(), msgspec.structs.replace(record, checksum=digest(CONTENT).hex()))
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            kept[number] = here.set_aside(path, "unknown")
        channel = await here.net.channel("s1")
        with pytest.raises(Corrupt, match=MISSING):
            await channel.call(ExamineObject(2000, here.volume, token_for(2000)), timeout_s=TIMEOUT_S)
        channel.close()
        assert await here.outcomes() == {2001: ("missing", "mended")}, "a copy of the first is to be made already"
        assert all(path.exists() for path in kept)
        assert {row.fault for row in here.rows.values()} == {MISSING}
