"""What agents are asked, and what they answer."""

from typing import get_args

from agent.serving.dataserver import ObjectRequest
from cluster.messages import (
    AGENT_UNION,
    CheckVolumes,
    DescribeMachine,
    ListUnknown,
    MakeRoom,
    MeasureLine,
    PullObject,
    PullObjects,
    SumBlocks,
    SweepVolumes,
)

OF_VOLUMES = {CheckVolumes, ListUnknown, MakeRoom, SweepVolumes}
OF_COPIES = {PullObject, PullObjects, SumBlocks}
OF_MACHINES = {DescribeMachine, MeasureLine}


def test_every_request_of_agents_is_of_one_of_the_kinds_that_they_answer() -> None:
    assert set(get_args(AGENT_UNION)) == {*get_args(ObjectRequest), *OF_VOLUMES, *OF_COPIES, *OF_MACHINES}
