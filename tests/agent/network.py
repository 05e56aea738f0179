"""A small network for tests: the fake manager and real agents, all on loopback ports."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio
from blake3 import blake3

from agent.main import Agent, Pace, serve_agent
from agent.serving.routes import ROUTES
from agent.volumes.volume import LocalVolume, open_volume
from cluster.config import AgentConfig, ManagerConfig, MountConfig, ServerConfig
from cluster.messages import CommitObject, CreateObject, Node, Replica, Request, Stamp, TaskOperation, WriteObject
from cluster.rpc.connection import Answer, Channel, connect
from cluster.rpc.wire import Party
from cluster.trust.identity import Role
from cluster.volume.content import stamp_of
from cluster.volume.layout import ObjectRecord, VolumeLayout, read_record
from tests.agent.fakemanager import FakeManager, regular_file
from tests.agent.tokens import token_for
from tests.support.trust import credentials, trust_of

R = TypeVar("R")

TIMEOUT_S = 10.0
QUICK = Pace(idle_s=0.1, room_s=0.1, trash_s=0.1, refused_s=0.1)


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class RunningAgent:
    """A real agent inside the test's event loop."""

    def __init__(self, config: ServerConfig, pace: Pace = QUICK) -> None:
        self.config = config
        self._pace = pace
        self.layouts = [VolumeLayout(Path(root)) for root in config.agent.volumes]
        self.agent: Agent | None = None
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        self._stop = trio.Event()

    @property
    def layout(self) -> VolumeLayout:
        return self.layouts[0]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            with self.scope:
                async with trio.open_nursery() as nursery:
                    self.agent = await nursery.start(self._serve)
                    task_status.started()
        finally:
            self.ended.set()

    async def _serve(self, task_status: trio.TaskStatus[Agent]) -> None:
        await serve_agent(self.config, self._stop.wait, self._pace, task_status=task_status)

    async def stop(self) -> None:
        """Ends it as SIGTERM does."""
        self._stop.set()
        await self.ended.wait()

    async def kill(self) -> None:
        """Ends it at once, with whatever is under way."""
        self.scope.cancel()
        await self.ended.wait()


class Somebody:
    """Asks an agent: each request as somebody of s9 whose role may ask it."""

    def __init__(self, address: str, nursery: trio.Nursery) -> None:
        self.peer = address
        self._nursery = nursery
        self._channels: dict[Role, Channel] = {}

    async def as_(self, role: Role) -> Channel:
        channel = self._channels.get(role)
        if channel is None or channel.broken.is_set():
            who = credentials("s9", role)
            channel = self._channels[role] = await connect(self.peer, self._nursery, who, Party(Role.AGENT), timeout_s=TIMEOUT_S)
        return channel

    async def call(self, request: Request[R], *, timeout_s: float, body: bytes = b"") -> R:
        return await (await self._for(request)).call(request, timeout_s=timeout_s, body=body)

    async def exchange(self, request: Request[Any], **options: Any) -> Answer:
        return await (await self._for(request)).exchange(request, **options)

    @asynccontextmanager
    async def open_stream(self, request: Request[Any]) -> AsyncIterator[AsyncIterator[Answer]]:
        async with (await self._for(request)).open_stream(request) as replies:
            yield replies

    async def _for(self, request: Request[Any]) -> Channel:
        return await self.as_(min(ROUTES[type(request)], key=list(Role).index))  # type: ignore[index]

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()


class Network:
    """What a test works with."""

    def __init__(self, manager: FakeManager, nursery: trio.Nursery, folder: Path) -> None:
        self.manager = manager
        self.nursery = nursery
        self.folder = folder
        self.agents: dict[str, RunningAgent] = {}

    def config(self, server: str, volumes: list[str] | None = None, **settings: Any) -> ServerConfig:
        settings = {"report_s": 0.1, "trash_keep_s": 300.0, **settings}
        roots = [str(self.folder / server)] if volumes is None else volumes
        return ServerConfig(
            cluster="test",
            server=server,
            managers=[self.manager.address],
            manager=ManagerConfig(listen=self.manager.address, database="sqlite://"),
            agent=AgentConfig(listen=free_address(), volumes=roots, **settings),
            mount=MountConfig(mountpoint="/mnt/nowhere"),
            state=str(self.folder / f"{server}.state"),
            trust=trust_of(server),
        )

    async def start(self, server: str, **settings: Any) -> RunningAgent:
        """Starts a server's agent, and waits until it is registered."""
        return await self.start_with(self.config(server, **settings))

    async def start_with(self, config: ServerConfig, pace: Pace = QUICK) -> RunningAgent:
        make_volumes(config)
        running = RunningAgent(config, pace)
        await self.nursery.start(running.run)
        self.agents[config.server] = running
        address = config.agent.listen

        def registered() -> bool:
            return sum(volume.address == address for volume in self.manager.volumes.values()) == len(config.agent.volumes)

        await self.manager.wait_for(registered, "registration")
        return running

    async def channel(self, server: str) -> Somebody:
        address = self.agents[server].config.agent.listen
        return Somebody(address, self.nursery)

    async def file(self, server: str, ino: int, content: bytes, *, dirty: bool = False) -> Node:
        """A committed file whose home is *server*, written through its agent."""
        volume = self.manager.volume_of(server)
        self.manager.nodes.setdefault(ino, regular_file(ino, volume))
        channel = await self.channel(server)
        await channel.call(CreateObject(ino, volume), timeout_s=TIMEOUT_S)
        for offset in range(0, len(content), 1 << 20):
            part = content[offset : offset + (1 << 20)]
            request = WriteObject(ino, volume, token_for(ino, server=server), offset)
            await channel.call(request, body=part, timeout_s=TIMEOUT_S)
        token = token_for(ino, server=server)
        node = await channel.call(CommitObject(ino, volume, token, final=not dirty), timeout_s=TIMEOUT_S)
        channel.close()
        return node

    def copy(self, ino: int, source: str, target: str, **fields: Any) -> int:
        """Queues a copy of a committed file's home object; returns the task's number."""
        node = self.manager.nodes[ino]
        replica = Replica(self.manager.volume_of(source), node.version, self.manager.stamp(ino))
        fields = {"sources": [replica], "size": node.size, "path": b"/some/where", **fields}
        return self.manager.put(target, TaskOperation.COPY, ino, self.manager.volume_of(target), node.version, **fields)

    def path(self, server: str, ino: int) -> str:
        return self.agents[server].layout.object_path(ino)

    def left_over(self, server: str) -> list[str]:
        """What is in `staging/` of copies: not the volumes' identities, which an agent writes by itself now and then."""
        names = [name for layout in self.agents[server].layouts for name in os.listdir(layout.staging)]
        return [name for name in names if name != "volume.toml"]

    def content(self, server: str, ino: int) -> bytes:
        return Path(self.path(server, ino)).read_bytes()


@asynccontextmanager
async def network(folder: Path) -> AsyncIterator[Network]:
    """A manager and no agents yet; everything is killed at the end."""
    manager = FakeManager(free_address())
    async with trio.open_nursery() as nursery:
        await nursery.start(manager.run)
        yield Network(manager, nursery, folder)
        nursery.cancel_scope.cancel()


def make_volumes(config: ServerConfig) -> None:
    """What `godwit join` does; what is there already is kept."""
    for root in config.agent.volumes:
        VolumeLayout(Path(root)).prepare(config.cluster, config.server)


def make_volume(root: Path, cluster: str = "test", server: str = "s1") -> LocalVolume:
    """A volume that was made and is open; whoever asks closes it."""
    VolumeLayout(root).prepare(cluster, server)
    return open_volume(root, cluster, server)


def record_of(path: str) -> ObjectRecord:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        record = read_record(descriptor)
    finally:
        os.close(descriptor)
    assert record is not None
    return record


def stamp_at(path: str) -> Stamp:
    return stamp_of(os.stat(path))


def digest(content: bytes) -> bytes:
    return blake3(content).digest()


def with_epoch(node: Node, epoch: int) -> Node:
    return msgspec.structs.replace(node, home_epoch=epoch)


def put_object(layout: VolumeLayout, ino: int, content: bytes = b"content") -> None:
    """An object that says nothing of itself."""
    with os.fdopen(layout.create_object(ino), "wb") as file:
        file.write(content)
