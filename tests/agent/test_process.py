"""The agent as a process: killed at any moment it leaves what the next start mends, and SIGTERM ends it in order."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import trio

from cluster.config import ServerConfig, dump_config
from cluster.messages import StatObject
from cluster.rpc.connection import connect
from cluster.rpc.wire import ANYBODY
from tests.agent.network import TIMEOUT_S, Network, RunningAgent, make_volumes, network
from tests.agent.tokens import token_for
from tests.support.trust import credentials

pytestmark = pytest.mark.deadline(60)

ROOT = Path(__file__).resolve().parents[2]


def spawn(net: Network, config: ServerConfig) -> subprocess.Popen[bytes]:
    """Starts an agent's process; its log is `<server>.log`."""
    make_volumes(config)
    path = net.folder / f"{config.server}.toml"
    path.write_bytes(dump_config(config))
    net.agents[config.server] = RunningAgent(config)
    with open(net.folder / f"{config.server}.log", "ab") as log:
        command = [sys.executable, "-bb", "-W", "ignore", "-m", "cli.main", "run", "agent", "--config", str(path)]
        return subprocess.Popen(command, cwd=ROOT, stderr=log)


async def ended(process: subprocess.Popen[bytes]) -> int:
    with trio.fail_after(TIMEOUT_S):
        return await trio.to_thread.run_sync(process.wait)


@pytest.mark.search
async def test_killed_again_and_again_it_gets_its_copies_done(net: Network) -> None:
    await net.start("s1")
    contents = {ino: os.urandom(1500 * (ino % 3) + 900_000 * (ino % 7 == 0)) for ino in range(4080, 4200)}
    for ino, content in contents.items():
        await net.file("s1", ino, content)
    config = net.config("s2")
    process = spawn(net, config)

    async def reports(count: int) -> None:
        await net.manager.wait_for(lambda: len(net.manager.reports) >= count, f"{count} reports")

    try:
        await net.manager.wait_for(lambda: len(net.manager.volumes) == 2, "registration")
        tasks = [net.copy(ino, "s1", "s2") for ino in contents]
        for kills in range(1, 4):
            await reports(25 * kills)
            process.kill()
            await ended(process)
            process = spawn(net, config)
        await reports(len(tasks))
        assert {report.outcome for report in net.manager.reports} == {"done"}
        assert all(net.content("s2", ino) == content for ino, content in contents.items())
        assert net.left_over("s2") == []
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_in_order_when_told_to(tmp_path: Path, number: int) -> None:
    async with network(tmp_path) as net:
        config = net.config("s1")
        process = spawn(net, config)
        try:
            await net.manager.wait_for(lambda: net.manager.volumes, "registration")
            process.send_signal(number)
            assert await ended(process) == 0
        finally:
            process.kill()
            process.wait()
    log = (tmp_path / "s1.log").read_text()
    assert "volume 1 is" in log
    assert "stopping" in log
    assert "Traceback" not in log


async def test_without_a_manager_it_says_so_and_goes_on(net: Network) -> None:
    config = msgspec.structs.replace(net.config("s1"), managers=["127.0.0.1:1"])
    process = spawn(net, config)
    try:
        problem = ""
        with trio.fail_after(TIMEOUT_S):
            while "numbers" not in problem:
                try:
                    channel = await connect(config.agent.listen, net.nursery, credentials("s9", "mount"), ANYBODY, timeout_s=1)
                    await channel.call(StatObject(7, 1, token_for(7)), timeout_s=TIMEOUT_S)
                except Exception as error:
                    problem = str(error)
        process.terminate()
        assert await ended(process) == 0
    finally:
        process.kill()
        process.wait()
