"""Large contents that go unencrypted, where both ends say so: who listens sees them, who changes them gains nothing."""

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
import pytest

from cluster.config import NetworkConfig
from tests.agent.network import Network, network
from tests.agent.relay import relay_to

MARK = b"a marked place in the content of a file"
CONTENT = (MARK + bytes(range(256)) * 4096) * 5


@pytest.fixture
def net(tmp_path: Path) -> AbstractAsyncContextManager[Network]:
    return network(tmp_path)


async def start(net: Network, server: str, bulk: str) -> None:
    config = net.config(server)
    await net.start_with(msgspec.structs.replace(config, network=NetworkConfig(bulk=bulk)))  # type: ignore[arg-type]


@pytest.mark.parametrize(("source", "target"), [("tls", "tls"), ("tls", "plain"), ("plain", "tls"), ("plain", "plain")])
async def test_they_go_unencrypted_if_both_ends_say_so(net: Network, source: str, target: str) -> None:
    await start(net, "s1", source)
    await start(net, "s2", target)
    await net.file("s1", 7, CONTENT)
    relay = await relay_to(net, "s1")
    report = await net.manager.report_of(net.copy(7, "s1", "s2"))
    assert report.outcome == "done", report.error
    assert net.content("s2", 7) == CONTENT
    assert (MARK in relay.seen) == (source == target == "plain")


async def test_what_was_changed_on_the_way_is_not_taken_for_the_content(net: Network) -> None:
    await start(net, "s1", "plain")
    await start(net, "s2", "plain")
    await net.file("s1", 7, CONTENT)
    relay = await relay_to(net, "s1")
    relay.alters = (b"a marked place", b"a forged place")
    report = await net.manager.report_of(net.copy(7, "s1", "s2"))
    assert report.outcome != "done"
    assert not Path(net.path("s2", 7)).exists()
    relay.alters = (b"", b"")
    assert (await net.manager.report_of(net.copy(7, "s1", "s2"))).outcome == "done"
    assert net.content("s2", 7) == CONTENT
