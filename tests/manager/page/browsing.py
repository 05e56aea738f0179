"""A page that is served, and a browser that asks what a test wants it to."""

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import h11
import msgspec
import trio

from cluster.config import PageConfig, ServerConfig
from cluster.trust.credentials import Credentials
from manager.page.listener import serve_page
from manager.requests.routes import Candidate
from tests.manager.office import config
from tests.support.trust import credentials, raw

PASSWORD = "a godwit flies for eleven days"
RECEIVE_BYTES = 65536


class Answered(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def page_config(url: str, **page: str) -> ServerConfig:
    """That of s1, whose page has an address that is free."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    return msgspec.structs.replace(config(url), page=PageConfig(address, **page))


class Browser:
    """Asks at an address, with a certificate or without; keeps cookies."""

    def __init__(self, address: str, who: Credentials | None = None) -> None:
        self.address = address
        self.cookie = ""
        self._who = who

    async def send(self, data: bytes) -> bytes:
        """All that comes back for these bytes over a connection of its own."""
        stream = await raw(self.address, self._who)
        with trio.fail_after(20):
            received = b""
            try:
                await stream.send_all(data)
                while more := await stream.receive_some(RECEIVE_BYTES):
                    received += more
            except trio.BrokenResourceError:  # what was not read is left when the other end closes
                pass
            finally:
                await trio.aclose_forcefully(stream)
            return received

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answered:
        """The answer to one request."""
        client = h11.Connection(h11.CLIENT)
        told = {"Host": self.address, "Connection": "close", "Content-Length": str(len(body)), **headers}
        if self.cookie:
            told["Cookie"] = self.cookie
        named = [(name.replace("_", "-"), value) for name, value in told.items()]
        data = client.send(h11.Request(method=method, target=path, headers=named)) or b""
        data += (client.send(h11.Data(data=body)) or b"") + (client.send(h11.EndOfMessage()) or b"")
        client.receive_data(await self.send(data))
        response = client.next_event()
        assert isinstance(response, h11.Response), response
        received = b""
        while isinstance(part := client.next_event(), h11.Data):
            received += bytes(part.data)
        found = {name.decode(): value.decode() for name, value in response.headers}
        if "set-cookie" in found:
            self.cookie = found["set-cookie"].partition(";")[0]
        return Answered(response.status_code, found, received)

    async def get(self, path: str) -> Answered:
        return await self.ask("GET", path)

    async def log_in(self, password: str) -> Answered:
        return await self.ask("POST", "/login", json.dumps({"password": password}).encode(), Content_Type="application/json")


@asynccontextmanager
async def served(candidate: Candidate, settings: ServerConfig) -> AsyncIterator[str]:
    """The page of s1, and its address."""
    host, _, port = settings.page.listen.rpartition(":")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_page, settings, credentials("s1", "manager"), candidate)
        with trio.fail_after(10):
            while True:
                try:
                    await (await trio.open_tcp_stream(host, int(port))).aclose()
                    break
                except OSError:
                    await trio.sleep(0.01)
        yield settings.page.listen
        nursery.cancel_scope.cancel()
