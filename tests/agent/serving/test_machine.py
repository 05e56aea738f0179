"""What an agent tells of its machine, and how it lets a line be measured."""

import os

import pytest

from agent.serving.machine import LINE_MAX_BYTES, NAME_MAX_BYTES, OWNERS_MAX, people
from cluster.clock import file_time_ns
from cluster.errors import Refused
from cluster.messages import DescribeMachine, MeasureLine, Owner
from cluster.release import RELEASE
from tests.agent.network import TIMEOUT_S, Network

pytestmark = pytest.mark.deadline(60)


async def test_it_says_what_machine_it_is(net: Network) -> None:
    await net.start("s1")
    told = await (await net.channel("s1")).call(DescribeMachine(), timeout_s=TIMEOUT_S)
    assert (told.server, told.release, told.kernel) == ("s1", RELEASE, os.uname().release)


@pytest.mark.parametrize("size", [0, 1, LINE_MAX_BYTES])
async def test_it_sends_as_many_bytes_as_it_is_asked_for(net: Network, size: int) -> None:
    await net.start("s1")
    before_ns = file_time_ns()
    answer = await (await net.channel("s1")).exchange(MeasureLine(size), timeout_s=TIMEOUT_S)
    assert len(answer.body) == size
    assert before_ns <= answer.reply.now_ns <= file_time_ns()


@pytest.mark.parametrize("size", [-1, LINE_MAX_BYTES + 1, 2**62])
async def test_it_sends_no_more_than_its_bound(net: Network, size: int) -> None:
    await net.start("s1")
    with pytest.raises(Refused, match=str(size)):
        await (await net.channel("s1")).call(MeasureLine(size), timeout_s=TIMEOUT_S)


def test_only_people_are_named() -> None:
    listed = [(0, "root"), (999, "daemon"), (1001, "bo"), (1000, "al"), (65534, "nobody"), (61184, "service"), (200_000, "ldap")]
    assert people(listed) == [Owner(1000, b"al"), Owner(1001, b"bo"), Owner(200_000, b"ldap")]


def test_the_lists_are_bounded() -> None:
    long = [(1000, "x" * (NAME_MAX_BYTES + 1)), (1001, os.fsdecode(b"\xff"))]
    assert people(long) == [Owner(1001, b"\xff")]
    assert len(people((number, "n") for number in range(1000, 1000 + 2 * OWNERS_MAX))) == OWNERS_MAX
