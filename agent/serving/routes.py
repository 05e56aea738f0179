"""Who may ask an agent what. Everything else is refused."""

from typing import Any

from cluster.messages import (
    AgentRequest,
    AllocateObject,
    CheckVolumes,
    CommitObject,
    CopyObject,
    CreateObject,
    DescribeMachine,
    ExamineObject,
    ListUnknown,
    MakeRoom,
    MeasureLine,
    PullObject,
    PullObjects,
    ReadObject,
    SeekObject,
    SetObjectTimes,
    StatObject,
    SumBlocks,
    SweepVolumes,
    SyncObject,
    TruncateObject,
    WriteObject,
)
from cluster.trust.identity import Role

MOUNT, AGENT, ADMIN = (frozenset({role}) for role in (Role.MOUNT, Role.AGENT, Role.ADMIN))

ROUTES: dict[type[AgentRequest[Any]], frozenset[Role]] = {
    StatObject: MOUNT,
    CreateObject: MOUNT,
    ReadObject: MOUNT | AGENT,  # an agent compares what it has set aside with what is current
    WriteObject: MOUNT,
    TruncateObject: MOUNT,
    AllocateObject: MOUNT,
    SeekObject: MOUNT,
    CopyObject: MOUNT,
    SyncObject: MOUNT,
    SetObjectTimes: MOUNT,
    CommitObject: MOUNT,
    ExamineObject: MOUNT,
    MakeRoom: MOUNT,
    PullObject: AGENT,
    PullObjects: AGENT,
    SumBlocks: AGENT,
    CheckVolumes: ADMIN,
    ListUnknown: ADMIN,
    SweepVolumes: ADMIN,
    DescribeMachine: ADMIN,
    MeasureLine: ADMIN,
}
