"""An agent whose server was down, or had left, and is a member again."""

import os

import pytest

from cluster.release import RELEASE
from cluster.rpc.session import ManagerSession
from tests.agent.network import QUICK, Network, free_address, put_object
from tests.support.trust import credentials

pytestmark = pytest.mark.deadline(60)


async def test_an_agent_says_who_its_server_is(net: Network) -> None:
    running = await net.start("s1")
    report = net.manager.registrations[-1]
    assert (report.manager, report.release) == (running.config.manager.listen, RELEASE)
    assert RELEASE[0].isdigit()


async def test_after_a_return_objects_that_nobody_knows_are_set_aside(net: Network) -> None:
    running = await net.start("s1")
    layout = running.layout
    for ino in (5, 6):
        put_object(layout, ino)
    await net.manager.wait_for(lambda: len(net.manager.registrations) > 3, "reports")
    net.manager.strays = {6}
    net.manager.stray_questions = []
    net.manager.settled_ns = 2
    await net.manager.wait_for(lambda: not os.path.exists(layout.object_path(6)), "the stray gone")
    assert set(net.manager.stray_questions) == {5, 6}
    put_object(layout, 7)
    net.manager.strays = {7}
    net.manager.settled_ns = 3
    await net.manager.wait_for(lambda: not os.path.exists(layout.object_path(7)), "the next stray gone")
    assert os.path.exists(layout.object_path(5))


async def test_a_server_that_has_left_waits_with_one_line_and_goes_on_when_it_is_added(
    net: Network, caplog: pytest.LogCaptureFixture
) -> None:
    await net.start("s1")
    net.manager.left.add("s1")
    before = net.manager.hellos
    await net.manager.wait_for(lambda: net.manager.hellos > before + 1, "it has asked again")
    assert caplog.text.count("the manager refuses this agent: s1 has left the network") == 1
    net.manager.left.clear()
    reports = len(net.manager.registrations)
    await net.manager.wait_for(lambda: len(net.manager.registrations) > reports, "a report")


async def test_a_process_finds_managers_that_it_was_not_configured_with(net: Network) -> None:
    first, later = net.manager.address, free_address()
    net.manager.candidates = [later]
    session = ManagerSession(managers=[first], credentials=credentials("s9", "agent"), refused_retry_s=QUICK.refused_s)
    net.nursery.start_soon(session.run)
    await net.manager.wait_for(lambda: session.term == 1, "a session")
    assert session.candidates == [first, later]
    net.manager.candidates = []
    net.manager.left.add("s9")
    hellos = net.manager.hellos
    await net.manager.wait_for(lambda: net.manager.hellos > hellos, "it is refused")
    net.manager.left.clear()
    hellos = net.manager.hellos
    await net.manager.wait_for(lambda: net.manager.hellos > hellos, "it is let in")
    await net.manager.wait_for(lambda: session.candidates == [first], "the one that is no member any more is forgotten")
