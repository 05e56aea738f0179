"""How the kernel is to use each handle, with a channel that notes backing ids; what a channel makes of the kernel's answers."""

import errno
import fcntl
import logging
import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
import trio

from cluster.messages import Answerer, DataPath, Node
from cluster.rpc.session import ManagerSession
from fusefs.content.disk_threads import threads_of
from fusefs.content.local_object import LocalObject
from fusefs.content.objects import Object
from fusefs.content.open_inode import Handle, IoMode, OpenInode
from fusefs.content.passthrough import NO_FENCE, Passthrough
from fusefs.kernel.stream import Channel, InitFlag, OpenFlag

NODE = Node(7, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)
ALL = InitFlag.PASSTHROUGH | InitFlag.DIRECT_IO_ALLOW_MMAP


class Ids:
    """In the place of a channel: the backing ids that the kernel has, by the file behind each."""

    def __init__(self, granted: InitFlag = ALL, *, passes: bool = True) -> None:
        self.granted = granted
        self.passes = passes
        self.given = 0
        self.live: dict[int, int] = {}

    def open_backing(self, descriptor: int, _volume: int) -> int:
        if not self.passes:
            return 0
        self.given += 1
        self.live[self.given] = os.fstat(descriptor).st_ino
        return self.given

    def close_backing(self, backing_id: int) -> None:
        del self.live[backing_id]


class Files:
    """Objects of this server, and inodes that are open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objects: list[LocalObject] = []

    def object(self, name: str) -> LocalObject:
        path = self.folder / name
        path.touch()
        opened = LocalObject(str(path), os.open(path, os.O_RDWR), cast(ManagerSession, None), 1.0)
        self.objects.append(opened)
        return opened


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    made = Files(tmp_path)
    yield made
    for opened in made.objects:
        opened.close()


def inode(home: LocalObject | None = None, *, dirty: bool = False) -> OpenInode:
    elsewhere = cast(Object, SimpleNamespace(close=lambda: None))
    state = OpenInode(msgspec.structs.replace(NODE, dirty=dirty))
    state.reached(home or elsewhere)
    return state


def handle(of: OpenInode, *, write: bool = False, append: bool = False) -> Handle:
    return Handle(of, write or append, append)


def passthrough(ids: Ids) -> Passthrough:
    return Passthrough(cast(Channel, ids))


def test_all_handles_of_an_inode_share_one_backing_id_until_the_last_is_released(files: Files) -> None:
    ids = Ids()
    ways, state = passthrough(ids), inode(files.object("a"))
    handles = [handle(state), handle(state, write=True), handle(state, append=True)]
    assert [ways.opened(one) for one in handles] == [(IoMode.PASSED, 1)] * 3
    for one in handles:
        assert list(ids.live) == [1]
        ways.released(one)
    assert ids.live == {}
    assert ids.given == 1
    again = handle(state)
    assert ways.opened(again) == (IoMode.PASSED, 2)
    assert list(ids.live) == [2]


def test_nothing_is_passed_through_to_a_disk_that_does_not_answer(files: Files) -> None:
    ids = Ids()
    ways, home = passthrough(ids), files.object("a")
    state, disk = inode(home), threads_of(str(Path(home.path).parents[2]))
    disk.went_silent()
    asking = handle(state)
    assert ways.opened(asking) == (IoMode.CACHED, 0)
    ways.released(asking)
    disk.is_silent = False
    assert ways.opened(handle(state)) == (IoMode.PASSED, 1)


def test_inodes_have_ids_of_their_own(files: Files) -> None:
    ids = Ids()
    ways, states = passthrough(ids), [inode(files.object(name)) for name in "ab"]
    handles = [handle(state) for state in states]
    assert [ways.opened(one) for one in handles] == [(IoMode.PASSED, 1), (IoMode.PASSED, 2)]
    ways.released(handles[0])
    assert list(ids.live) == [2]


def test_what_is_passed_through_elsewhere_by_now_is_asked_for_each_time(files: Files) -> None:
    ids = Ids()
    ways, state = passthrough(ids), inode(files.object("a"))
    first = handle(state)
    ways.opened(first)
    for home in (None, files.object("b")):
        state.leave_home()
        if home is not None:
            state.reached(home)
        later = handle(state)
        assert ways.opened(later) == (IoMode.DIRECT, 0), "the kernel takes no other object, and no page cache, beside the first"
        ways.released(later)
    assert len(ids.live) == 1
    ways.released(first)
    assert ids.live == {}
    assert ways.opened(handle(state)) == (IoMode.PASSED, 2), "it begins anew, with the object that is the home now"


def test_what_goes_through_the_page_cache_stays_there_although_the_home_came(files: Files) -> None:
    ids = Ids()
    ways, state = passthrough(ids), inode()
    first = handle(state)
    assert ways.opened(first) == (IoMode.CACHED, 0)
    state.reached(files.object("a"))
    assert ways.opened(handle(state, write=True)) == (IoMode.CACHED, 0)
    assert ways.opened(handle(state, append=True)) == (IoMode.DIRECT, 0)
    assert ids.given == 0


@pytest.mark.parametrize(
    ("write", "append", "dirty", "granted", "mode"),
    [
        (False, False, False, ALL, IoMode.CACHED),
        (False, False, True, ALL, IoMode.DIRECT),
        (True, False, False, ALL, IoMode.DIRECT),
        (True, False, False, InitFlag.PASSTHROUGH, IoMode.CACHED),
        (False, False, True, InitFlag.PASSTHROUGH, IoMode.CACHED),
        (False, True, False, InitFlag(0), IoMode.DIRECT),
    ],
)
def test_what_has_its_home_elsewhere(write: bool, append: bool, dirty: bool, granted: InitFlag, mode: IoMode) -> None:
    state = inode(dirty=dirty)
    assert passthrough(Ids(granted)).opened(handle(state, write=write, append=append)) == (mode, 0)


def test_what_cannot_be_passed_through_goes_through_the_page_cache(files: Files) -> None:
    ways, state = passthrough(Ids(passes=False)), inode(files.object("a"))
    handles = [handle(state, write=True), handle(state, append=True)]
    assert [ways.opened(one) for one in handles] == [(IoMode.CACHED, 0), (IoMode.DIRECT, 0)]
    for one in handles:
        ways.released(one)
    assert state.io.mode is None


# -------------------------------------------------------------------------------------------------------- the channel


class Kernel:
    """What the extension and the ioctls say."""

    def __init__(self) -> None:
        self.device = 5
        self.offered = self.granted = int(ALL)
        self.refusal = 0
        self.has_fence: bool | None = True
        self.asked: list[tuple[int, int]] = []

    def prepare(self, *_: Any) -> None:
        return

    def state(self) -> tuple[int, int, int]:
        return self.device, self.offered, self.granted

    def stops_writers(self, _directory: str) -> bool | None:
        return self.has_fence

    def ioctl(self, device: int, request: int, argument: Any, mutate: bool = False) -> int:
        del mutate
        self.asked.append((device, request))
        if self.refusal:
            raise OSError(self.refusal, os.strerror(self.refusal))
        return 9 if isinstance(argument, bytearray) else 0


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(fcntl, "ioctl", made.ioctl)
    return made


def mounted(extension: Kernel | None, wanted: InitFlag = ALL) -> Channel:
    made = Channel(cast(ModuleType | None, extension), lambda: 5)
    made.prepare(wanted, [], lambda _message: True, lambda _directory, _handle: None)
    made.mounted()
    return made


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def try_volume(kernel: Kernel, made: Channel, root: str, **settings: Any) -> None:
    made.begun.set()
    trio.run(partial(Passthrough(made, has_fence=kernel.stops_writers, **settings).try_volumes, [root]))


def volume(folder: Path) -> str:
    (folder / "volume.toml").touch()
    return str(folder)


def test_a_volume_is_tried_and_its_id_given_back(kernel: Kernel, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = mounted(kernel)
    assert (made.files, made.why_not) == ("", "")
    try_volume(kernel, made, volume(tmp_path))
    assert (made.files, made.why_not, made.problems) == (DataPath.PASSED, "", [])
    assert len(kernel.asked) == 2
    assert told(caplog) == []


@pytest.mark.parametrize("error", [errno.ELOOP, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_volume_that_cannot_be_passed_through_is_asked_for_once(
    kernel: Kernel, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: int
) -> None:
    kernel.refusal = error
    made, root = mounted(kernel), volume(tmp_path)
    try_volume(kernel, made, root)
    with (tmp_path / "volume.toml").open() as file:
        assert made.open_backing(file.fileno(), os.fstat(file.fileno()).st_dev) == 0
    assert len(kernel.asked) == len(told(caplog)) == 1
    assert (made.files, made.problems) == (DataPath.FALLBACK, [])
    assert made.why_not.startswith(f"{root}: ")


def test_a_volume_without_a_fence_is_passed_through_only_if_that_is_wanted(
    kernel: Kernel, tmp_path: Path, caplog: pytest.LogCaptureFixture, files: Files
) -> None:
    kernel.has_fence = False
    made, root = mounted(kernel), volume(tmp_path)
    ways = Passthrough(made, has_fence=kernel.stops_writers)
    assert [ways.opened(handle(inode(files.object(name)))) for name in "ab"] == [(IoMode.CACHED, 0)] * 2
    assert len(kernel.asked) == 2, "an id was given, and given back at once"
    try_volume(kernel, made, root)
    assert (made.files, made.why_not) == (DataPath.FALLBACK, f"{root}: {NO_FENCE}")
    assert len(told(caplog)) == 1
    unfenced = mounted(kernel)
    try_volume(kernel, unfenced, root, unfenced=True)
    assert (unfenced.files, unfenced.why_not) == (DataPath.PASSED, "")


async def test_a_volume_of_which_nobody_knows_is_not_passed_through_yet(
    kernel: Kernel, tmp_path: Path, caplog: pytest.LogCaptureFixture, files: Files
) -> None:
    """Its disk may be away for a while."""
    kernel.has_fence = None
    made, root = mounted(kernel), volume(tmp_path)
    made.begun.set()
    ways = Passthrough(made, has_fence=kernel.stops_writers, try_again_s=0.01)
    assert ways.opened(handle(inode(files.object("a")))) == (IoMode.CACHED, 0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ways.try_volumes, [root])
        await trio.sleep(0.05)
        assert (made.files, told(caplog)) == ("", [])
        kernel.has_fence = True
    assert made.files == DataPath.PASSED
    assert ways.opened(handle(inode(files.object("b")))) == (IoMode.PASSED, 9)


def test_one_volume_does_not_keep_the_others_from_it(kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, root, other = mounted(kernel), volume(tmp_path), tmp_path / "other"
    other.mkdir()
    for refusal, tried in ((errno.ELOOP, root), (0, volume(other))):
        kernel.refusal = refusal
        with monkeypatch.context() as patched:
            on_device = SimpleNamespace(st_dev=refusal, st_mode=stat.S_IFREG)
            patched.setattr(os, "fstat", lambda _descriptor, found=on_device: found)
            try_volume(kernel, made, tried)
    assert (made.files, made.why_not) == (DataPath.PARTLY_PASSED, f"{root}: the volume is on a stacked file system")


@pytest.mark.parametrize(
    ("error", "files", "words"),
    [(errno.EPERM, DataPath.FALLBACK, "CAP_SYS_ADMIN"), (errno.EMFILE, "", "some files go through the mount process")],
)
def test_other_refusals_are_said_once(
    kernel: Kernel, tmp_path: Path, caplog: pytest.LogCaptureFixture, error: int, files: str, words: str
) -> None:
    kernel.refusal = error
    made = mounted(kernel)
    with (tmp_path / "object").open("w") as file:
        assert [made.open_backing(file.fileno(), 1) for _ in range(3)] == [0, 0, 0]
    (line,) = told(caplog)
    assert words in line
    assert made.files == files


def test_an_id_that_the_kernel_does_not_take_back_hurts_nobody(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    made = mounted(kernel)
    kernel.refusal = errno.ENOENT
    made.close_backing(3)
    assert "backing id 3" in told(caplog)[0]


def lacks_nothing(_kernel: Kernel) -> None:
    return


def lacks_libfuse(kernel: Kernel) -> None:
    kernel.device = -1


def lacks_pyfuse3(kernel: Kernel) -> None:
    kernel.offered = kernel.granted = 0


def lacks_linux_6_9(kernel: Kernel) -> None:
    kernel.granted = int(InitFlag.DIRECT_IO_ALLOW_MMAP)


LOCAL = "locks of this mount's files hold on this server only"


@pytest.mark.parametrize(
    ("lack", "wanted", "why", "is_local"),
    [
        (lacks_nothing, InitFlag.DIRECT_IO_ALLOW_MMAP, "it is turned off in the configuration", False),
        (lacks_libfuse, ALL, "this libfuse is not known to the extension", True),
        (lacks_pyfuse3, ALL, "this pyfuse3 is not known to the extension", True),
        (lacks_linux_6_9, ALL, "this kernel cannot do it (Linux 6.9 and later can)", False),
    ],
)
def test_what_is_missing_is_said_once(
    kernel: Kernel, tmp_path: Path, caplog: pytest.LogCaptureFixture, lack: Any, wanted: InitFlag, why: str, is_local: bool
) -> None:
    lack(kernel)
    made = mounted(kernel, wanted)
    for _ in range(2):
        try_volume(kernel, made, volume(tmp_path))
        assert (made.files, made.why_not) == (DataPath.FALLBACK, why)
    assert told(caplog) == [f"files go through the mount process: {why}", *([f"{LOCAL}: {why}"] if is_local else [])]
    assert len(made.problems) == is_local
    assert made.answerer == (Answerer.PYTHON if is_local else Answerer.EXTENSION)
    assert kernel.asked == []


def test_nothing_is_asked_of_an_extension_that_is_not_there(
    kernel: Kernel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = mounted(None)
    why = "the extension fusefs.kernel._channel was not built"
    try_volume(kernel, made, volume(tmp_path))
    made.will_open(1, OpenFlag.DIRECT_IO)
    made.watch_flush(1, True)
    assert not made.kills_set_id(1)
    assert (made.files, made.why_not, made.granted) == (DataPath.FALLBACK, why, InitFlag(0))
    assert made.answerer == Answerer.PYTHON
    assert told(caplog) == [f"files go through the mount process: {why}", f"{LOCAL}: {why}"]
    assert kernel.asked == []


def test_who_answers_is_known_when_the_kernel_has_begun(kernel: Kernel) -> None:
    made = mounted(kernel)
    assert made.answerer == ""
    made.begun.set()
    assert made.answerer == Answerer.EXTENSION


def test_a_pyfuse3_that_is_not_known_is_found_out_by_who_asks_who_answers(kernel: Kernel) -> None:
    lacks_pyfuse3(kernel)
    made = mounted(kernel)
    made.begun.set()
    assert made.answerer == Answerer.PYTHON
    assert len(made.problems) == 1


async def test_volumes_are_tried_once_the_kernel_has_begun_until_they_are_there(kernel: Kernel, tmp_path: Path) -> None:
    made = mounted(kernel)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Passthrough(made, has_fence=kernel.stops_writers).try_volumes, [str(tmp_path)])
        await trio.sleep(0.05)
        assert kernel.asked == []
        made.begun.set()
        volume(tmp_path)
    assert made.files == DataPath.PASSED
