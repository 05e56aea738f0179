"""What mounts leave behind: dirty files without a writer, and objects that the catalog does not know."""

import logging
import os
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from agent.checking.strays import Grace
from agent.main import serve_agent
from cluster.config import ServerConfig
from cluster.errors import Fenced, GodwitError, Unavailable
from cluster.messages import ReadObject, TaskOperation, Welcome, WriteObject
from cluster.volume.fence import fence, is_fenced
from cluster.volume.layout import RECORD_XATTR
from tests.agent.fakemanager import regular_file
from tests.agent.network import TIMEOUT_S, Network, network, put_object, record_of, stamp_at
from tests.agent.tokens import token_for

pytestmark = pytest.mark.deadline(60)


async def test_a_dirty_file_without_a_writer_is_committed(net: Network) -> None:
    await net.start("s1")
    await net.file("s1", 7, b"first", dirty=True)
    Path(net.path("s1", 7)).write_bytes(b"left behind")
    await net.file("s1", 8, b"committed", dirty=True)
    net.manager.unsettled |= {7, 8}
    await net.manager.wait_for(lambda: not net.manager.unsettled, "settled")
    seven, eight = net.manager.nodes[7], net.manager.nodes[8]
    assert (seven.version, seven.size, seven.dirty) == (2, 11, False)
    assert (eight.size, eight.dirty) == (9, False)
    assert net.manager.stamp(8) == stamp_at(net.path("s1", 8)), "the fence has moved the ctime of what was not written"
    assert record_of(net.path("s1", 7)).version == 2
    assert net.manager.stamp(7) == stamp_at(net.path("s1", 7))


async def test_a_time_that_was_set_after_the_last_commit_stays(net: Network) -> None:
    await net.start("s1")
    for ino in (7, 8):
        await net.file("s1", ino, b"first", dirty=True)
        net.manager.nodes[ino] = msgspec.structs.replace(net.manager.nodes[ino], mtime_ns=10**18 + ino)
    Path(net.path("s1", 8)).write_bytes(b"written since then")
    net.manager.unsettled |= {7, 8}
    await net.manager.wait_for(lambda: not net.manager.unsettled, "settled")
    seven, eight = net.manager.nodes[7], net.manager.nodes[8]
    assert (seven.mtime_ns, seven.size) == (10**18 + 7, 5)
    assert eight.mtime_ns == os.stat(net.path("s1", 8)).st_mtime_ns != 10**18 + 8


async def test_what_a_silent_mount_has_open_is_fenced_until_somebody_writes_with_a_good_right(net: Network) -> None:
    await net.start("s1")
    await net.file("s1", 7, b"first", dirty=True)
    path = net.path("s1", 7)
    silent = os.open(path, os.O_RDWR)
    os.pwrite(silent, b"written", 0)
    net.manager.unsettled.add(7)
    await net.manager.wait_for(lambda: not net.manager.unsettled, "settled")
    with pytest.raises(PermissionError):
        os.pwrite(silent, b"too late", 0)
    assert net.manager.stamp(7) == stamp_at(path)
    volume = net.manager.volume_of("s1")
    token = token_for(7)
    channel = await net.channel("s1")
    data = (await channel.exchange(ReadObject(7, volume, token, 0, 100), timeout_s=TIMEOUT_S)).body
    assert data == b"written"
    with pytest.raises(PermissionError):
        os.pwrite(silent, b"too late", 0)
    await channel.call(WriteObject(7, volume, token, 0), body=b"W", timeout_s=TIMEOUT_S)
    assert os.pread(silent, 100, 0) == b"Written"
    os.close(silent)
    net.manager.nodes[7] = msgspec.structs.replace(net.manager.nodes[7], dirty=True)
    net.manager.unsettled.add(7)
    await net.manager.wait_for(lambda: not net.manager.unsettled, "settled again")
    again = os.open(path, os.O_RDONLY)
    assert is_fenced(again)
    os.close(again)
    await net.manager.report_of(net.manager.put("s1", TaskOperation.DELETE, 7, volume))
    assert not os.path.exists(path)


async def test_what_a_mount_has_fenced_before_it_closed_it_is_committed(net: Network) -> None:
    """Its lease had ended while it was stopped: its own commit was refused, but it went on to close the file."""
    await net.start("s1")
    await net.file("s1", 7, b"first", dirty=True)
    path = net.path("s1", 7)
    Path(path).write_bytes(b"written in time")
    descriptor = os.open(path, os.O_RDONLY)
    assert fence(descriptor)
    net.manager.orderly.add(7)
    net.manager.unsettled.add(7)
    await net.manager.wait_for(lambda: not net.manager.unsettled, "settled")
    assert (net.manager.nodes[7].version, net.manager.nodes[7].size) == (2, 15)
    assert net.manager.stamp(7) == stamp_at(path)
    assert is_fenced(descriptor)
    os.close(descriptor)


async def test_what_somebody_has_opened_since_it_was_listed_is_left_to_him(net: Network) -> None:
    """A fence would stop writes that he has a good right to."""
    await net.start("s1")
    await net.file("s1", 7, b"first", dirty=True)
    await net.file("s1", 8, b"other", dirty=True)
    net.manager.written.add(7)
    net.manager.unsettled |= {7, 8}
    with open(net.path("s1", 7), "r+b", buffering=0) as writing:
        await net.manager.wait_for(lambda: net.manager.unsettled == {7}, "the other is settled")
        writing.write(b"FIRST")
        assert not is_fenced(writing.fileno())
    assert net.manager.nodes[7].dirty
    net.manager.written.clear()
    await net.manager.wait_for(lambda: not net.manager.unsettled, "settled when he has closed it")


async def test_a_missing_object_is_never_committed_as_empty(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        async with network(tmp_path) as net:
            await net.start("s1")
            volume = net.manager.volume_of("s1")
            net.manager.nodes[7] = regular_file(7, volume, version=3, size=100)
            net.manager.nodes[8] = regular_file(8, volume + 10)
            net.manager.nodes[9] = regular_file(9, volume)
            net.manager.unsettled |= {6, 7, 8}
            await net.manager.wait_for(lambda: "object is missing" in caplog.text, "the error")
            await net.file("s1", 9, b"later", dirty=True)
            net.manager.unsettled.add(9)
            await net.manager.wait_for(lambda: 9 not in net.manager.unsettled, "settled")
            assert net.manager.nodes[7].dirty
            assert [commit.ino for commit in net.manager.commits if commit.final] == [9]
            assert caplog.text.count("object is missing") == 1


async def test_strays_are_set_aside_and_nothing_else_is(net: Network) -> None:
    await net.start("s1")
    numbers = [*range(1, 30), *range(5000, 6100)]
    layout = net.agents["s1"].layout
    for ino in numbers:
        put_object(layout, ino)
    (layout.objects / "1" / "notes").touch()
    (layout.objects / "1" / "7").touch()
    config = net.agents["s1"].config
    await net.agents["s1"].stop()
    net.manager.strays = {3, 5001, 6099, 77}
    net.manager.stray_questions = []
    await net.start_with(config)
    await net.manager.wait_for(lambda: layout.unknown.exists() and len(os.listdir(layout.unknown)) == 3, "strays gone")
    await net.manager.wait_for(lambda: set(net.manager.stray_questions) == set(numbers), "all asked for")
    assert {name.partition(".")[0] for name in os.listdir(layout.unknown)} == {"3", "5001", "6099"}
    assert layout.unknown.stat().st_mode & 0o777 == 0o700
    assert os.listdir(layout.trash) == []
    assert all(os.path.exists(layout.object_path(ino)) for ino in numbers if ino not in net.manager.strays)
    assert (layout.objects / "1" / "notes").exists()
    assert (layout.objects / "1" / "7").exists()


async def test_blank_strays_are_removed_however_many_they_are(net: Network) -> None:
    await net.start("s1")
    layout, config = net.agents["s1"].layout, net.agents["s1"].config
    blank, unreadable, filled, known = set(range(1, 200)), 300, 301, 302
    for ino in (*blank, unreadable, known):
        put_object(layout, ino, b"")
    os.setxattr(layout.object_path(unreadable), RECORD_XATTR, b"{")
    put_object(layout, filled)
    await net.agents["s1"].stop()
    net.manager.strays = {*blank, unreadable, filled}
    await net.start_with(config)
    await net.manager.wait_for(lambda: not any(os.path.exists(layout.object_path(ino)) for ino in blank), "blank ones gone")
    assert {name.partition(".")[0] for name in os.listdir(layout.unknown)} == {str(unreadable), str(filled)}
    assert os.listdir(layout.trash) == []
    assert os.path.exists(layout.object_path(known))


@pytest.mark.usefixtures("autojump_clock")
async def test_a_new_manager_is_not_asked_for_strays_until_it_can_know_all_sessions() -> None:
    grace = Grace()
    assert grace.lasts
    grace.welcomed(Welcome(3, "s1", 30.0, []))
    await trio.sleep(20)
    grace.welcomed(Welcome(3, "s1", 30.0, []))
    assert grace.lasts
    await trio.sleep(10.1)
    assert not grace.lasts
    grace.welcomed(Welcome(4, "s2", 30.0, []))
    assert grace.lasts


async def test_a_copy_that_has_just_arrived_is_no_stray(net: Network) -> None:
    await net.start("s1")
    await net.start("s2")
    await net.file("s1", 7, b"content")
    await net.manager.report_of(net.copy(7, "s1", "s2"))
    os.close(net.agents["s2"].layout.create_object(8))
    config = net.agents["s2"].config
    await net.agents["s2"].stop()
    net.manager.strays = {7, 8}
    net.manager.stray_questions = []
    net.manager.hold_stray_answers = True
    running = await net.start_with(config)
    await net.manager.wait_for(lambda: set(net.manager.stray_questions) == {7, 8}, "the question")
    assert (await net.manager.report_of(net.copy(7, "s1", "s2"))).outcome == "done"
    net.manager.hold_stray_answers = False
    net.manager.notify()
    await net.manager.wait_for(lambda: not os.path.exists(net.path("s2", 8)), "the stray gone")
    await running.stop()
    assert net.content("s2", 7) == b"content"


async def test_an_agent_that_was_replaced_ends(net: Network) -> None:
    net.manager.fence = "s1"
    problem = await problem_at_start(net.config("s1"))
    assert isinstance(problem, Fenced)


async def test_what_prevents_a_start_is_said_as_it_is(net: Network) -> None:
    running = await net.start("s1")
    config = net.config("s3")
    agent = msgspec.structs.replace(config.agent, listen=running.config.agent.listen)
    assert isinstance(await problem_at_start(msgspec.structs.replace(config, agent=agent)), Unavailable)
    (await net.start_with(config)).layout.identity()


async def problem_at_start(config: ServerConfig) -> Exception | None:
    try:
        await serve_agent(config, trio.sleep_forever)
    except GodwitError as error:
        return error
    return None
