"""A relay in front of an agent that counts what the agent sends."""

import trio

from cluster.rpc.wire import parse_address
from tests.agent.network import Network, free_address

HANDSHAKE = 22  # type of a TLS record
RELAYED_AT_ONCE = 256 * 1024


class Relay:
    """`sent` is how many bytes came from the agent; what it sends first after the handshake is held up by `delay_s`
    on each connection. `seen` is what went by, `alters` what is changed in it."""

    def __init__(self, target: str) -> None:
        self.address = free_address()
        self.sent = 0
        self.delay_s = 0.0
        self.seen = bytearray()
        self.alters: tuple[bytes, bytes] = (b"", b"")
        self._target = parse_address(target)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        _host, port = parse_address(self.address)
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        task_status.started()
        await trio.serve_listeners(self._relay, listeners)

    async def _relay(self, asker: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream(*self._target) as agent, trio.open_nursery() as nursery:
            nursery.start_soon(_forward, asker, agent)
            is_held_up = False
            while data := await _received(agent):
                self.sent += len(data)
                self.seen += data
                if self.alters[0]:
                    data = data.replace(*self.alters)
                if not is_held_up and data[0] != HANDSHAKE:
                    is_held_up = True
                    await trio.sleep(self.delay_s)
                try:
                    await asker.send_all(data)
                except trio.BrokenResourceError:
                    break
            nursery.cancel_scope.cancel()


async def _forward(source: trio.SocketStream, target: trio.SocketStream) -> None:
    while data := await _received(source):
        try:
            await target.send_all(data)
        except trio.BrokenResourceError:
            return
    await target.send_eof()


async def _received(stream: trio.SocketStream) -> bytes:
    try:
        return bytes(await stream.receive_some(RELAYED_AT_ONCE))
    except trio.BrokenResourceError:
        return b""


async def relay_to(net: Network, server: str) -> Relay:
    """From now on all who look for *server*'s volumes come through the relay."""
    relay = Relay(net.agents[server].config.agent.listen)
    await net.nursery.start(relay.run)
    net.manager.addresses[server] = relay.address
    return relay
