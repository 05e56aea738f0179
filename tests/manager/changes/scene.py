"""A network in which a server or a volume is given up."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from cluster.membership import Event
from cluster.messages import ROOT_INO, AddServer, Close, Closing, Commit, Content, GetWhere, LoseServer, Node, Open, Where
from tests.manager.changes.test_membership import told
from tests.manager.office import NOW, Office, Peer, in_office


class Scene:
    """Files with their homes on s1, which is lost; s2 is the manager's."""

    def __init__(self, office: Office, mount: Peer, agents: dict[str, Peer]) -> None:
        self.office, self.mount, self.agents = office, mount, agents

    async def file(self, name: bytes, *, copied: bool = True, parent: int = ROOT_INO) -> Node:
        """Version 1, clean, with a copy on another server if it is to be *copied*."""
        node = await self.mount.make(name, parent=parent, mode=0o100640, uid=7, gid=8)
        node = await self.mount.commit(node.ino, 1)
        await self.mount.ask(Close([Closing(node.ino, 9)]))
        if copied:
            await self.copy(node.ino)
        return node

    async def copy(self, ino: int) -> None:
        for server in ("s2", "s3"):
            for task in await self.agents[server].claim():
                if task.ino == ino:
                    await self.agents[server].done(task)

    async def write(self, node: Node, version: int) -> None:
        """Another version at the home, which has no copy."""
        await self.mount.ask(Open(node.ino, True, 10 * version))
        await self.mount.one(Commit(node.ino, 1, version, Content(20, 8, NOW + version, NOW + version), True))
        await self.mount.ask(Close([Closing(node.ino, 10 * version + 1)]))

    async def dirty(self, node: Node) -> None:
        """Open for writing when its mount vanishes."""
        await self.mount.ask(Open(node.ino, True, 1000))

    async def lose(self, **options: Any) -> Any:
        """s1 is down for long, its leases are over, and somebody gives it up."""
        await told(self.office, "s1", Event.SILENT_TOO_LONG)
        plan = await self.agents["s2"].ask(LoseServer("s1", **options))
        self.office.state.leases.expire(1e12)
        return plan

    async def fall(self) -> None:
        """The background does its work."""
        assert self.office.term is not None

        async def scanned() -> bool:
            return not await self.rows("SELECT volume FROM volume_scans")

        await self.office.background(scanned)

    async def rows(self, question: str) -> list[Any]:
        return list(await self.office.store.read(lambda connection: connection.exec_driver_sql(question).all()))

    async def where(self, ino: int) -> Where:
        return await self.agents["s2"].ask(GetWhere(ino))

    async def home(self, ino: int) -> str:
        return next(row.server for row in (await self.where(ino)).replicas if row.home)

    async def come_back(self) -> Peer:
        await self.agents["s2"].ask(AddServer("s1", 60.0))
        agent = await self.office.peer("s1", "agent")
        assert await agent.volume("u1") == 1
        return agent


async def scene_in(office: Office) -> Scene:
    agents = dict(zip(("s1", "s2", "s3"), await office.three_servers(), strict=True))
    return Scene(office, await office.peer("s1"), agents)


@asynccontextmanager
async def scene_on(url: str) -> AsyncIterator[Scene]:
    """Three servers, of which s2 has the office."""
    async with in_office(url, "s2") as office:
        yield await scene_in(office)
