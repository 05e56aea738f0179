"""Which directories an agent takes as its volumes, and that each is opened by itself, whenever its disk is there."""

import errno
import os
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from agent.volumes.disk_errors import FAILING_ERRORS, WITHIN_S, Troubles
from agent.volumes.opening import learn
from agent.volumes.volume import VolumeTable, open_volume
from cluster.catalog_point import CatalogMemory, CatalogPoint
from cluster.errors import Refused, Unavailable, Undone
from cluster.volume.layout import VolumeIdentity, VolumeLayout
from tests.agent.network import Network, RunningAgent, make_volume

pytestmark = pytest.mark.deadline(60)


def test_a_volume_that_was_made_is_opened_again_and_again(tmp_path: Path) -> None:
    first = make_volume(tmp_path / "new" / "deep")
    first.close()
    second = open_volume(tmp_path / "new" / "deep", "test", "s1")
    assert first.uuid == second.uuid
    state = second.opened_as
    assert 0 < state.free_bytes <= state.total_bytes
    assert state.device.endswith(f":{os.stat(tmp_path).st_dev}")
    second.close()


@pytest.mark.parametrize("missing", [False, True])
def test_a_directory_without_a_volume_is_left_as_it_is(tmp_path: Path, missing: bool) -> None:
    root = tmp_path / "mountpoint"
    if not missing:
        root.mkdir()
    with pytest.raises(Refused, match="is not a volume"):
        open_volume(root, "test", "s1")
    assert root.exists() is not missing
    assert missing or list(root.iterdir()) == []


@pytest.mark.parametrize(("cluster", "server"), [("other", "s1"), ("test", "s2")])
def test_a_volume_of_others_is_refused(tmp_path: Path, cluster: str, server: str) -> None:
    make_volume(tmp_path).close()
    with pytest.raises(Refused, match="is a volume of"):
        open_volume(tmp_path, cluster, server)


def test_a_directory_with_something_else_in_it_is_not_made_a_volume(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(Refused, match=r"thesis\.tex"):
        make_volume(tmp_path)


def test_a_volume_in_use_is_refused_and_free_again_after(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    with pytest.raises(Refused, match="in use by another agent"):
        open_volume(tmp_path, "test", "s1")
    volume.close()
    open_volume(tmp_path, "test", "s1").close()


def test_nobody_but_its_owner_can_open_what_is_in_a_volume_or_take_its_lock(tmp_path: Path) -> None:
    root = tmp_path / "volume"
    root.mkdir(mode=0o755)
    make_volume(root).close()
    assert [stat.S_IMODE(os.stat(path).st_mode) for path in (root, root / "volume.toml")] == [0o700, 0o600]
    root.chmod(0o755)
    (root / "volume.toml").chmod(0o644)
    open_volume(root, "test", "s1").close()
    assert [stat.S_IMODE(os.stat(path).st_mode) for path in (root, root / "volume.toml")] == [0o700, 0o600]


def test_unfinished_copies_go_at_the_start(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    volume.close()
    (volume.layout.staging / "7.abc").write_bytes(b"half")
    open_volume(tmp_path, "test", "s1").close()
    assert list(volume.layout.staging.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_file_system_without_user_attributes_is_refused(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "ramfs", "none", str(tmp_path)], check=False).returncode:
        pytest.skip("ramfs cannot be mounted here")
    try:
        with pytest.raises(Refused, match="no user extended attributes"):
            make_volume(tmp_path / "volume")
        with pytest.raises(Refused, match="no user extended attributes"):
            open_volume(tmp_path / "volume", "test", "s1")  # it left no lock
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_numbers_are_the_managers(tmp_path: Path) -> None:
    volumes = [make_volume(tmp_path / "a"), make_volume(tmp_path / "b")]
    table = VolumeTable(volumes)
    with pytest.raises(Unavailable):
        table.require(5)
    with pytest.raises(Refused):
        table.number([5], volumes)
    table.number([5, 9], volumes)
    assert table.require(9).layout.root == tmp_path / "b"
    with pytest.raises(Undone, match="no volume 6"):
        table.require(6)
    table.set(volumes[:1])
    with pytest.raises(Undone, match="may be away"):
        table.require(9)
    for volume in volumes:
        volume.close()


def test_a_disk_fails_when_errors_come_together() -> None:
    troubles = Troubles()
    assert not troubles.met(OSError(errno.ENOSPC, "full"), 0)
    for number in range(FAILING_ERRORS):
        assert not troubles.are_many(number)
        assert troubles.met(OSError(errno.EIO, "broken"), number)
    assert troubles.are_many(FAILING_ERRORS)
    assert not troubles.are_over(FAILING_ERRORS)
    assert troubles.are_over(FAILING_ERRORS + WITHIN_S)
    assert not troubles.are_many(WITHIN_S + 1)
    assert Troubles().are_over(0)


def test_a_disk_that_was_read_only_is_good_as_soon_as_it_can_be_written() -> None:
    troubles = Troubles()
    for _ in range(2 * FAILING_ERRORS):
        assert troubles.met(OSError(errno.EROFS, "read-only"), 0)
    assert troubles.count == 2 * FAILING_ERRORS
    assert not troubles.are_many(0)
    assert troubles.are_over(0)


# ------------------------------------------------------------------------------------------- disks that come and go


async def told(net: Network, text: str) -> None:
    await net.manager.wait_for(lambda: text in str([report.problems for report in net.manager.registrations[-1:]]), text)


async def reported(net: Network, *roots: Path) -> None:
    wanted = [str(root) for root in roots]
    await net.manager.wait_for(lambda: [v.path for v in net.manager.registrations[-1].volumes] == wanted, f"reports of {wanted}")


async def test_a_disk_that_is_away_is_told_and_taken_up_when_it_is_back_and_others_are_not_kept_from_work(
    net: Network, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    config = net.config("s1", volumes=[str(bad), str(good)], report_s=0.1)
    for root in (good, bad):
        VolumeLayout(root).format("test", "s1")
    away = tmp_path / "elsewhere"
    bad.rename(away)
    bad.mkdir()
    running = RunningAgent(config)
    await net.nursery.start(running.run)
    net.agents["s1"] = running
    await told(net, "is its disk mounted?")
    await reported(net, good)
    assert list(bad.iterdir()) == []
    bad.rmdir()
    away.rename(bad)
    await reported(net, bad, good)
    await net.file("s1", 7, b"content")
    # While it runs, likewise.
    bad.rename(away)
    bad.mkdir()
    await told(net, "is its disk mounted?")
    await reported(net, good)
    assert list(bad.iterdir()) == []
    bad.rmdir()
    away.rename(bad)
    await reported(net, bad, good)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
async def test_a_volume_that_is_read_only_is_opened_and_keeps_no_other_from_work(net: Network, tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    config = net.config("s1", volumes=[str(bad), str(good)], report_s=0.1)
    running = await net.start_with(config)
    await net.file("s1", 7, b"content")
    await running.stop()
    subprocess.run(["mount", "--bind", bad, bad], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", bad], check=True)
        await net.start_with(config)
        await told(net, "read-only")
        assert [volume.condition for volume in net.manager.registrations[-1].volumes] == ["read-only", "good"]
        assert net.content("s1", 7) == b"content"
    finally:
        subprocess.run(["umount", "-l", bad], check=True)


def test_a_volume_is_not_taken_for_another_while_it_notes_the_catalog(tmp_path: Path) -> None:
    volume = make_volume(tmp_path / "volume")
    over = threading.Event()

    def note() -> None:
        for generation in range(100):
            volume.remember(CatalogPoint("here", generation, 17))
        over.set()

    thread = threading.Thread(target=note)
    thread.start()
    while not over.is_set():
        assert volume.is_what_was_opened()
    thread.join()
    volume.close()


def test_a_volume_says_which_catalog_knows_it_and_stays_locked(tmp_path: Path) -> None:
    volume = make_volume(tmp_path / "a")
    assert volume.identity.catalog == ""
    volume.remember(CatalogPoint("here", 3, 17))
    assert volume.is_what_was_opened()
    with pytest.raises(Refused, match="in use by another agent"):
        open_volume(tmp_path / "a", "test", "s1")
    volume.close()
    again = open_volume(tmp_path / "a", "test", "s1")
    assert (again.identity.catalog, again.identity.generation, again.uuid) == ("here", 3, volume.uuid)
    again.close()


@pytest.mark.parametrize(
    ("known", "catalog", "generation", "remembers"),
    [
        (None, "", 0, None),
        (None, "here", 2, CatalogPoint("here", 2, 0)),
        (CatalogPoint("here", 1, 9), "here", 2, CatalogPoint("here", 2, 0)),
        (CatalogPoint("here", 2, 9), "here", 2, CatalogPoint("here", 2, 9)),
        (CatalogPoint("here", 2, 9), "", 0, CatalogPoint("here", 2, 9)),
    ],
)
def test_a_server_learns_from_its_volumes_how_far_the_catalog_has_come(
    tmp_path: Path, known: CatalogPoint | None, catalog: str, generation: int, remembers: CatalogPoint | None
) -> None:
    memory = CatalogMemory(tmp_path, "agent")
    memory.point = known
    assert learn(memory, VolumeIdentity("u", "test", "s1", catalog=catalog, generation=generation)) == ""
    assert memory.point == remembers


async def test_a_volume_of_another_catalog_is_not_used(net: Network) -> None:
    running = await net.start("s1")
    toml = running.layout.root / "volume.toml"

    def is_marked() -> bool:
        return running.layout.identity().catalog == "fake"

    await net.manager.wait_for(is_marked, "the volume is marked")
    await running.stop()
    toml.write_bytes(toml.read_bytes().replace(b'"fake"', b'"another"'))
    before = len(net.manager.registrations)
    again = RunningAgent(running.config)
    await net.nursery.start(again.run)

    def is_told() -> bool:
        later = net.manager.registrations[before:]
        return any("the catalog another" in problem for item in later for problem in item.problems)

    await net.manager.wait_for(is_told, "the problem is told")
    assert net.manager.registrations[-1].volumes == []
