"""What costs nothing while leases last: names and attributes that were seen before are answered by the kernel or the mount.

Counted by the mounts themselves (`godwit servers show`). The access time is so long that no timer fires during a test.
"""

import errno
import math
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fusefs.content.peers import REFRESH_S
from fusefs.content.settling import GATHER_S, SYNCED_S, TOGETHER_MAX
from lab.lab import Lab
from lab.mounts import answers, detach
from tests.conftest import fresh
from tests.support.conditions import godwit, wait_for_copies, wait_for_replicas, wait_until

ACCESS_S = 600.0
OVERRIDES = {"manager": {"access_s": ACCESS_S}, "mount": {"renew_s": ACCESS_S / 2}}
FILES = 1000
FILES_LISTED = 300
SYNCS = 400
MADE = 300
CHANGES = 20
HOLD_AGAIN_S = 5.0  # where the policy forbids it
OPENED = 3  # requests to open and close a directory
MEBIBYTES = 16
PASSES = 20
ON_THE_WAY = 20  # requests that a first pass may need besides one for each file: directories on the way, the mount's own
HEARTBEAT_S = 1.6  # within which a mount has told its counts anew
SETTLING_S = 30.0


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab.create(tmp_path_factory.mktemp("caching") / "lab", overrides=OVERRIDES)
    try:
        lab.up()
        yield lab
    finally:
        lab.down(purge=True)


@pytest.fixture(scope="module")
def tree(lab: Lab) -> str:
    """The name of a directory with a thousand files."""
    return made_by_s1(lab, FILES).name


def made_by_s1(lab: Lab, files: int) -> Path:
    """A directory of small files, finished and copied; nobody else has looked at it."""
    made = fresh(lab.mount("s1"))
    for number in range(files):
        (made / f"{number:04}").write_bytes(b"%d" % number)
    wait_for_copies(lab)
    wait_for_replicas(lab, str(made / f"{files - 1:04}"), 2)
    return made


@dataclass(frozen=True)
class Counted:
    """What a mount has been asked, and has asked, since its start; read at *at_s*."""

    kernel: int
    manager: int
    at_s: float


@dataclass(frozen=True)
class Cost:
    """What came of some work: requests of the kernel, and of the mount to the manager besides what it asks by its timer."""

    kernel: int
    manager: int
    seconds: float = field(default=0.0, compare=False)  # that the work took


NOTHING = Cost(0, 0)


class Meter:
    """Measures what work costs a mount of which nobody else wants anything."""

    def __init__(self, lab: Lab, server: str) -> None:
        self._lab = lab
        self._server = server
        self._before = self._settled()

    def cost(self, work: Callable[[], object]) -> Cost:
        """What *work* makes the kernel ask the mount, and it ask the manager."""
        began_s = time.monotonic()
        work()
        seconds = time.monotonic() - began_s
        before, after = self._before, self._settled()
        by_timer = math.ceil((after.at_s - before.at_s + HEARTBEAT_S) / REFRESH_S)
        self._before = after
        return Cost(after.kernel - before.kernel, max(0, after.manager - before.manager - by_timer), seconds)

    def _settled(self) -> Counted:
        """The counts once the mount has told all of them."""
        deadline = time.monotonic() + SETTLING_S
        before = None
        while (now := self._told()).kernel != before:
            assert time.monotonic() < deadline, f"the mount of {self._server} does not come to rest"
            before = now.kernel
            time.sleep(HEARTBEAT_S)
        return now

    def _told(self) -> Counted:
        counts = godwit(self._lab, "servers", "show", self._server)["server"]["counts"]
        return Counted(counts["kernel_requests"], counts["manager_requests"], time.monotonic())


def repeated(work: Callable[[], None], count: int) -> Callable[[], None]:
    def work_all() -> None:
        for _ in range(count):
            work()

    return work_all


def stat_all(folder: Path) -> None:
    for number in range(FILES):
        assert stat.S_ISREG(os.stat(f"{folder}/{number:04}").st_mode)


def miss_all(folder: Path) -> None:
    for number in range(FILES):
        with pytest.raises(FileNotFoundError):
            os.stat(f"{folder}/{number:04}.absent")


@pytest.mark.parametrize(("server", "look"), [("s2", stat_all), ("s3", miss_all)], ids=["present", "absent"])
def test_names_that_were_looked_up_once_are_answered_by_the_kernel(
    lab: Lab, tree: str, server: str, look: Callable[[Path], None]
) -> None:
    folder = lab.mount(server) / tree

    def again() -> None:
        for _ in range(PASSES):
            look(folder)

    meter = Meter(lab, server)
    first = meter.cost(lambda: look(folder))
    assert FILES <= first.kernel <= FILES + ON_THE_WAY
    assert first.manager <= FILES + ON_THE_WAY
    assert meter.cost(again) == NOTHING


def test_the_kernel_answers_even_while_the_mount_is_stopped(lab: Lab, tree: str) -> None:
    """So nothing was asked that nobody counted."""
    folder = lab.mount("s2") / tree
    code = """
import os, sys
folder, files = sys.argv[1], int(sys.argv[2])
for number in range(files):
    os.stat(f"{folder}/{number:04}")
    assert not os.path.lexists(f"{folder}/{number:04}.missing")
"""
    command = [sys.executable, "-c", code, str(folder), str(FILES)]
    subprocess.run(command, check=True, timeout=60)
    lab.kill("s2", "mount", signal.SIGSTOP)
    with subprocess.Popen(command) as looking:
        try:
            assert looking.wait(10) == 0
        finally:
            lab.kill("s2", "mount", signal.SIGCONT)


def test_a_second_long_listing_asks_the_manager_nothing(lab: Lab) -> None:
    folder = lab.mount("s3") / made_by_s1(lab, FILES_LISTED).name

    def list_long() -> None:
        names = os.listdir(folder)
        assert len(names) == FILES_LISTED
        for name in names:
            os.lstat(folder / name)

    def list_again() -> None:
        for _ in range(PASSES):
            list_long()

    list_long()
    cost = Meter(lab, "s3").cost(list_again)
    assert cost.manager == 0
    assert cost.kernel <= PASSES * OPENED, "the kernel has kept the listing, and all that is in it"


@pytest.mark.parametrize("change", ["link", "chmod", "utime"])
def test_what_was_just_changed_here_is_asked_for_again(lab: Lab, change: str) -> None:
    """Attributes in the answer to the change the kernel would believe even if a recall had come in between."""
    made = made_by_s1(lab, PASSES)
    paths = [made / f"{number:04}" for number in range(PASSES)]
    changes: dict[str, Callable[[Path], None]] = {
        "link": lambda path: os.link(path, f"{path}.new"),
        "chmod": lambda path: os.chmod(path, 0o600),
        "utime": lambda path: os.utime(path, (1, 1)),
    }

    def told_again() -> float:
        time.sleep(HEARTBEAT_S)
        metrics = godwit(lab, "servers", "show", "s1")["server"]["metrics"]["mount"]
        return float(metrics["godwit_names_told_again_total"] + metrics["godwit_kernel_requests_total"])

    for path in paths:
        os.stat(path)
        changes[change](path)
    before = told_again()
    for path in paths:
        os.stat(path)
    assert PASSES <= told_again() - before <= PASSES + ON_THE_WAY


def test_attributes_that_no_file_has_are_asked_of_nobody(lab: Lab) -> None:
    """As `ls -l` asks of each file whether it has an access list, a label, capabilities."""
    made = made_by_s1(lab, FILES_LISTED)
    folder = lab.mount("s3") / made.name
    names = sorted(os.listdir(folder))

    def ask() -> None:
        for name in names:
            assert os.listxattr(folder / name) == []
            for attribute in ("user.tag", "security.capability", "system.posix_acl_access"):
                with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
                    os.getxattr(folder / name, attribute)

    ask()
    assert Meter(lab, "s3").cost(ask).manager == 0
    for path in (made / names[0], folder / names[1]):
        os.setxattr(path, "user.tag", b"value")
    for name, present in zip(names, (True, True, False), strict=False):
        for server in ("s1", "s2", "s3"):
            assert os.listxattr(lab.mount(server) / made.name / name) == ["user.tag"] * present
    os.removexattr(made / names[1], "user.tag")
    assert os.listxattr(folder / names[1]) == []


def test_a_mount_that_reads_and_writes_itself_is_asked_for_a_mebibyte_at_a_time(fallback: Lab) -> None:
    """By programs that ask for less, too: that is what write-back and read-ahead are for."""
    path, pages = fresh(fallback.mount("s1")) / "large", os.urandom(4096)
    meter = Meter(fallback, "s1")

    def write() -> None:
        with path.open("wb", buffering=1 << 20) as file:
            for _ in range(MEBIBYTES * 256):
                file.write(pages)

    def read() -> None:
        with path.open("rb", buffering=4096) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while file.read(4096):
                pass

    def write_and_read() -> None:
        write()
        read()

    assert meter.cost(write_and_read).kernel < 3 * MEBIBYTES
    there = fallback.mount("s2") / path.parent.name / path.name
    assert Meter(fallback, "s2").cost(there.read_bytes).kernel < 1.5 * MEBIBYTES


def test_an_fsync_asks_the_manager_only_for_what_is_not_durable_yet(lab: Lab) -> None:
    """Content is durable at the home. Commits follow, and names and attributes are asked for when somebody has changed one."""
    path = fresh(lab.mount("s1")) / "journal"
    with path.open("ab", buffering=0) as file:

        def sync() -> None:
            os.fsync(file.fileno())

        def append_and_sync() -> None:
            file.write(b"a record\n")
            sync()

        append_and_sync()
        meter = Meter(lab, "s1")
        began = time.monotonic()
        appended = meter.cost(repeated(append_and_sync, SYNCS))
        assert appended.manager <= 2 + (time.monotonic() - began) / SYNCED_S
        elsewhere = lab.mount("s2") / path.parent.name / path.name

        def change_there_and_sync() -> None:
            elsewhere.chmod(0o600)
            sync()

        def change_here_and_sync() -> None:
            path.chmod(0o640)
            sync()

        assert meter.cost(repeated(change_there_and_sync, CHANGES)).manager > CHANGES / 2
        assert meter.cost(repeated(change_here_and_sync, CHANGES)).manager > CHANGES * 3 / 2
        path.stat()
        sync()
        assert meter.cost(repeated(sync, SYNCS)).manager <= 2
    wait_for_copies(lab)
    assert godwit(lab, "where", str(path))["size"] == (SYNCS + 1) * len(b"a record\n")


def test_what_is_made_in_a_directory_of_ones_own_takes_one_question_each(lab: Lab) -> None:
    """Nobody has to be asked whether a name is taken, or what the directory has become."""
    parent = fresh(lab.mount("s1"))
    godwit(lab, "policy", "set", str(parent), "--names", "through")
    path = parent / "own"
    path.mkdir()
    meter = Meter(lab, "s1")

    def make() -> None:
        for number in range(MADE):
            with (path / str(number)).open("x"):
                pass

    def remake() -> None:
        for number in range(MADE):
            (path / str(number)).unlink()
            assert not (path / str(number)).exists()
            with (path / str(number)).open("x"):
                pass

    def settling(cost: Cost) -> float:
        """What was closed within a moment is committed in a few transactions, and then said to be closed."""
        asked_to_hold = cost.seconds / HOLD_AGAIN_S + 1
        return MADE / TOGETHER_MAX + 2 * (cost.seconds / GATHER_S + 1) + asked_to_hold

    made = meter.cost(make)
    assert MADE <= made.manager <= MADE + settling(made) + ON_THE_WAY
    remade = meter.cost(remake)
    assert remade.manager <= 3 * MADE + settling(remade)
    (lab.mount("s2") / path.parent.name / path.name / "1").unlink()
    assert not (path / "1").exists()
    assert sorted(os.listdir(path)) == sorted({str(number) for number in range(MADE)} - {"1"})


def test_who_reads_files_again_soon_asks_the_manager_nothing(lab: Lab, tree: str) -> None:
    """The pages are the kernel's while the version is the same, and the manager believes the file to be open for a while."""
    folder = lab.mount("s2") / tree

    def read_some() -> None:
        for number in range(100):
            assert (folder / f"{number:04}").read_bytes() == b"%d" % number

    read_some()
    meter = Meter(lab, "s2")
    assert meter.cost(repeated(read_some, 5)).manager <= 100 + 25, "once for each, and a few times to say that they are closed"


def test_what_another_server_changes_is_asked_anew_and_nothing_else(lab: Lab) -> None:
    """The recall takes one directory and one file; all others stay cached."""
    made = fresh(lab.mount("s1"))
    for name in ("changed", "same"):
        (made / name).mkdir()
        for number in range(100):
            (made / name / f"{number}").write_bytes(b"old")
    wait_for_copies(lab)
    wait_for_replicas(lab, str(made / "same" / "99"), 2)
    seen = lab.mount("s2") / made.name

    def look(name: str) -> None:
        for number in range(100):
            os.stat(seen / name / f"{number}")

    for name in ("changed", "same"):
        look(name)
    meter = Meter(lab, "s2")
    recalls = _recalls(lab, "s2")
    (made / "changed" / "new").write_bytes(b"new")
    (made / "changed" / "0").write_bytes(b"newer")
    assert (seen / "changed" / "new").read_bytes() == b"new"
    assert os.stat(seen / "changed" / "0").st_size == 5
    assert meter.cost(lambda: look("changed")).kernel > 0
    assert _recalls(lab, "s2") > recalls
    assert meter.cost(lambda: look("same")) == NOTHING


def _recalls(lab: Lab, server: str) -> int:
    recalls: int = godwit(lab, "servers", "show", server)["server"]["counts"]["recalls"]
    return recalls


@pytest.mark.parametrize("change", ["chmod", "unlink", "rename", "create", "rewrite"])
def test_a_change_is_seen_at_once_by_who_has_all_of_it_cached(lab: Lab, change: str) -> None:
    """With this access time nothing but a recall can make it seen."""
    made = fresh(lab.mount("s1"))
    (made / "file").write_bytes(b"old")
    wait_for_replicas(lab, str(made / "file"), 2)
    for server in ("s2", "s3"):
        seen = lab.mount(server) / made.name
        assert os.listdir(seen) == ["file"]
        assert (seen / "file").read_bytes() == b"old"
        assert _errno(seen / "other") == errno.ENOENT
    match change:
        case "chmod":
            (made / "file").chmod(0o600)
        case "unlink":
            (made / "file").unlink()
        case "rename":
            (made / "file").rename(made / "other")
        case "create":
            (made / "other").write_bytes(b"other")
        case "rewrite":
            (made / "file").write_bytes(b"new")
    for server in ("s2", "s3"):
        seen = lab.mount(server) / made.name
        assert (_errno(seen / "file") == errno.ENOENT) == (change in ("unlink", "rename"))
        assert (_errno(seen / "other") == errno.ENOENT) == (change not in ("rename", "create"))
        assert sorted(os.listdir(seen)) == sorted(os.listdir(made))
        if change == "chmod":
            assert stat.S_IMODE(os.stat(seen / "file").st_mode) == 0o600
        if change == "rewrite":
            assert (seen / "file").read_bytes() == b"new"


def _errno(path: Path) -> int:
    try:
        os.stat(path)
    except OSError as error:
        return error.errno or 0
    return 0


# ------------------------------------------------------------------------------------------------------- the bound

CACHED_MAX = 50
SMALL_MOUNT = f"""
import functools, pathlib, sys
import cli.commands.run, fusefs.caching.cache, fusefs.main

limits = fusefs.caching.cache.CacheLimits(cached_max={CACHED_MAX})
run_mount = functools.partial(fusefs.main.run_mount, limits=limits)
cli.commands.run.run_part("mount", run_mount, pathlib.Path(sys.argv[1]), "INFO")
"""


@pytest.fixture
def small_mount(lab: Lab) -> Iterator[Path]:
    """The mount point of s2, whose mount holds but a few inodes for caching."""
    lab.kill("s2", "mount", signal.SIGTERM)
    detach(lab.mount("s2"))
    argv = [sys.executable, "-bb", "-c", SMALL_MOUNT, str(lab.config_path("s2"))]
    process = subprocess.Popen(lab.command("s2", argv))
    try:
        wait_until(lambda: answers(lab.mount("s2"), 5.0), "the mount answers", 30)
        yield lab.mount("s2")
    finally:
        process.terminate()
        process.wait(30)
        detach(lab.mount("s2"))
        lab.start("s2", "mount")


def test_what_was_granted_longest_ago_is_given_back(lab: Lab, small_mount: Path) -> None:
    """A mount never holds much more than its bound, and what it gave back is as right as everything else."""
    made = made_by_s1(lab, 10 * CACHED_MAX)
    seen = small_mount / made.name
    given_back = godwit(lab, "leases", "ls")["given_back"]
    for path in sorted(made.iterdir()):
        assert os.stat(seen / path.name).st_size == path.stat().st_size
    wait_until(lambda: godwit(lab, "leases", "ls", "--server", "s2")["total"] <= CACHED_MAX, "the bound is kept")
    assert godwit(lab, "leases", "ls")["given_back"] >= given_back + 9 * CACHED_MAX
    for path in sorted(made.iterdir())[::20]:
        path.write_bytes(b"changed")
        assert os.stat(seen / path.name).st_size == len(b"changed")
