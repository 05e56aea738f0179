"""A volume that is away is left, given up and forgotten, while its server goes on."""

import errno
from functools import partial
from typing import Any

import pytest

from cluster.clock import monotonic_s
from cluster.errors import Refused
from cluster.membership import VolumeStanding
from cluster.messages import GetServer, ListVolumes, LoseVolume, RegisterVolumes, RemoveVolume, Volume, VolumeState
from manager.changes.standing import change_volume
from tests.manager.changes.scene import Scene
from tests.manager.office import GIB


def state(uuid: str, condition: str = "good") -> VolumeState:
    return VolumeState(uuid, f"/srv/{uuid}", 200 * GIB, 100 * GIB, f"device of {uuid}", condition)


async def report(scene: Scene, *states: VolumeState) -> None:
    await scene.agents["s1"].ask(RegisterVolumes("127.0.0.1:1", list(states)))


async def stand(scene: Scene, volume: int, standing: VolumeStanding) -> None:
    work = partial(change_volume, state=scene.office.state, volume=volume, standing=standing)
    await scene.office.store.write(work)
    scene.office.state.leases.expire(1e12)
    await scene.fall()


async def volume(scene: Scene, number: int) -> Volume:
    listed = (await scene.agents["s2"].ask(ListVolumes())).volumes
    return next(volume for volume in listed if volume.volume == number)


async def test_a_volume_that_is_not_reported_is_away_and_gets_no_tasks(scene: Scene) -> None:
    node = await scene.file(b"f")
    await report(scene)
    found = await volume(scene, 1)
    assert (found.condition, found.up, found.accepts, found.standing) == ("away", False, False, "in")
    problems = (await scene.agents["s2"].ask(GetServer("s1"))).info.problems
    assert any("volume 1" in problem and "is away" in problem for problem in problems)
    assert scene.office.state.members.missing("s1") == [1]
    assert await scene.agents["s1"].claim() == []
    assert await scene.home(node.ino) == "s1"
    await report(scene, state("u1"))
    assert (await volume(scene, 1)).condition == "good"


@pytest.mark.parametrize("condition", ["read-only", "failing", "silent"])
async def test_a_bad_disk_takes_nothing_new_and_is_out_after_its_delay(scene: Scene, condition: str) -> None:
    await report(scene, state("u1", condition))
    members = scene.office.state.members
    assert not members.places()[1].accepts
    assert members.places()[1].counts
    assert (await volume(scene, 1)).accepts is False
    now = monotonic_s()
    members.heard("s1", now + 700)
    assert members.due_volumes(now + 700) == {1: VolumeStanding.OUT}


async def test_files_of_a_volume_that_is_out_get_another_home_and_return(scene: Scene) -> None:
    node = await scene.file(b"f")
    await stand(scene, 1, VolumeStanding.OUT)
    assert await scene.home(node.ino) != "s1"
    assert (await scene.mount.attr(node.ino)).home_epoch > node.home_epoch
    assert not scene.office.state.members.volume_counts(1)
    await stand(scene, 1, VolumeStanding.IN)
    assert scene.office.state.members.volume_counts(1)


async def test_only_a_volume_that_is_out_is_given_up_and_files_fall_back(scene: Scene) -> None:
    kept, older, only = [await scene.file(name, copied=name != b"only") for name in (b"kept", b"older", b"only")]
    await scene.write(older, 2)
    operator = scene.agents["s2"]
    with pytest.raises(Refused, match="is in use") as refusal:
        await operator.ask(LoseVolume(1))
    assert refusal.value.errno == errno.EBUSY
    with pytest.raises(Refused, match="there is no volume 77; there are: 1, 2, 3"):
        await operator.ask(LoseVolume(77))
    await report(scene)
    await stand(scene, 1, VolumeStanding.OUT)
    plan = await operator.ask(LoseVolume(1, dry_run=True))
    assert (plan.older, plan.only, plan.paths) == (1, 1, [b"/only"])
    with pytest.raises(Refused, match="files need volume 1"):
        await operator.ask(RemoveVolume(1))
    await operator.ask(LoseVolume(1))
    await scene.fall()
    assert [await scene.home(node.ino) for node in (older, only)] == [await scene.home(kept.ino), "s1"]
    assert (await volume(scene, 1)).standing == "lost"


async def test_a_volume_that_nobody_needs_is_forgotten(scene: Scene) -> None:
    node = await scene.file(b"f")
    await report(scene)
    await stand(scene, 1, VolumeStanding.OUT)
    assert (await scene.agents["s2"].ask(RemoveVolume(1))).count >= 1
    assert [row.server for row in (await scene.where(node.ino)).replicas if row.server == "s1"] == []
    left: Any = (await scene.agents["s2"].ask(ListVolumes())).volumes
    assert 1 not in [volume.volume for volume in left]
    assert (await scene.agents["s2"].ask(GetServer("s1"))).info.volumes == []
