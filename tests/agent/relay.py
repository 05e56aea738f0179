"""A relay in front of an agent that counts what the agent sends."""

import trio

from cluster.rpc.wire import parse_address
from tests.agent.network import Network, free_address

RELAYED_AT_ONCE = 256 * 1024


class Relay:
    """`sent` is how many bytes came from the agent; what it sends is held up by `delay_s` each time that somebody connects."""

    def __init__(self, target: str) -> None:
        self.address = free_address()
        self.sent = 0
        self.delay_s = 0.0
        self._target = parse_address(target)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        _host, port = parse_address(self.address)
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        task_status.started()
        await trio.serve_listeners(self._relay, listeners)

    async def _relay(self, asker: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream(*self._target) as agent, trio.open_nursery() as nursery:
            nursery.start_soon(_forward, asker, agent)
            await trio.sleep(self.delay_s)
            while data := await _received(agent):
                self.sent += len(data)
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
