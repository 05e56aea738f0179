"""A lab of its own, with the real parts: up, faults, down, and nothing left behind."""

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from cluster.config import LogConfig, dump_config, parse_config
from cluster.errors import Refused
from cluster.journal import JOURNALS, Journal, journal_owner
from cluster.messages import NamesPolicy
from cluster.volume.fence import fence, lift
from lab import network
from lab.lab import Lab
from lab.launch import NotReady
from lab.mounts import answers, is_fuse_mount, mounts_below
from lab.registry import REGISTRY, register, registered, tag_of, unregister
from lab.state import PARTS, read_state
from tests.support.conditions import wait_until
from tests.support.runner import godwit_process as godwit
from tests.support.runner import heed_interrupts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and mounts need root")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab.create(tmp_path_factory.mktemp("a lab") / "root", servers=2, volumes=2)
    try:
        made.up(names=NamesPolicy.THROUGH)
        yield made
    finally:
        made.down(purge=True)


def remains(root: Path) -> list[object]:
    """What the machine still has of a lab."""
    tag = tag_of(root)
    ours = f"--config {root}/|lab.supervisor {root}$"
    processes = subprocess.run(["pgrep", "--full", ours], capture_output=True, text=True, check=False).stdout
    interface = Path(f"/sys/class/net/gw{tag}")
    return [
        *network.namespaces(tag),
        *mounts_below(root),
        *processes.split(),
        *([interface] if interface.exists() else []),
        *([root] if root in registered() else []),
        *REGISTRY.glob(f"{tag}.*"),
    ]


def connect(lab: Lab, source: str, target: str) -> bool:
    """Whether *source* reaches the agent of *target*."""
    host, _colon, port = lab.config(target).agent.listen.rpartition(":")
    script = f"import socket; socket.create_connection(({host!r}, {port}), timeout=1)"
    return lab.run(source, [sys.executable, "-c", script], capture_output=True, check=False).returncode == 0


def test_every_mount_shows_one_namespace(lab: Lab) -> None:
    (lab.mount("s1") / "hello").write_bytes(b"hello from s1")
    assert (lab.mount("s2") / "hello").read_bytes() == b"hello from s1"
    assert lab.volume("s1", 2).is_dir()
    assert all(lab.is_running(server, part) for server in lab.servers for part in PARTS)


def test_the_roots_policy_says_how_names_are_changed(lab: Lab) -> None:
    done = godwit("policy", "show", "--root", str(lab.root), "--json", str(lab.mount("s2")))
    assert json.loads(done.stdout)["policy"] == {
        "ino": 1,
        "path": "/",
        "copies": 2,
        "sync_copies": 0,
        "names": "through",
        "names_path": "/",
        "servers": 2,
    }


def test_a_running_lab_is_refused_a_second_time(lab: Lab) -> None:
    for command in (("lab", "up"), ("lab", "up", "--servers", "5")):
        done = godwit(*command, "--root", str(lab.root))
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
    with pytest.raises(Refused, match="is up already"):
        lab.up()
    assert answers(lab.mount("s1"), 10)


def test_a_server_is_cut_off_and_mended(lab: Lab) -> None:
    assert connect(lab, "s1", "s2")
    lab.cut("s2")
    try:
        assert lab.is_cut("s2")
        assert not lab.is_cut("s1")
        assert not connect(lab, "s1", "s2")
        assert not connect(lab, "s2", "s1")
    finally:
        lab.mend("s2")
    assert not lab.is_cut("s2")
    assert connect(lab, "s1", "s2")
    assert connect(lab, "s2", "s1")


def test_a_killed_mount_is_replaced(lab: Lab) -> None:
    before = lab.pid("s2", "mount")
    lab.kill("s2", "mount")
    assert not lab.is_running("s2", "mount")
    assert lab.is_running("s2", "agent")
    assert is_fuse_mount(lab.mount("s2"))
    with pytest.raises(OSError) as raised:  # noqa: PT011 - which of two is a matter of when the process has quite ended
        os.listdir(lab.mount("s2"))
    assert raised.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    with pytest.raises(Refused, match="s2 mount is not running"):
        lab.kill("s2", "mount")
    lab.start("s2", "mount")
    assert lab.pid("s2", "mount") != before
    assert [mounted.path for mounted in mounts_below(lab.mount("s2"))] == [lab.mount("s2")]
    os.listdir(lab.mount("s2"))


def test_a_whole_server_is_killed_and_started(lab: Lab) -> None:
    lab.kill("s2")
    assert not any(lab.is_running("s2", part) for part in PARTS)
    assert godwit("lab", "start", "s2", "--root", str(lab.root)).returncode == 0
    assert lab.is_running("s2")
    lab.start("s2")


def test_a_stopped_process_is_still_there(lab: Lab) -> None:
    assert godwit("lab", "kill", "s2", "agent", "--signal", "stop", "--root", str(lab.root)).returncode == 0
    try:
        assert lab.is_running("s2", "agent")
    finally:
        lab.kill("s2", "agent", signal.SIGCONT)


@pytest.mark.parametrize("part", PARTS)
def test_a_process_reads_its_configuration_again(lab: Lab, part: str) -> None:
    """At SIGHUP: the level of its log is in force at once, what is not is named, and a mistake changes nothing."""
    path, log = lab.config_path("s2"), lab.log("s2", part)
    before, pid = path.read_bytes(), lab.pid("s2", part)

    def reload(config: bytes, said: str) -> str:
        size = log.stat().st_size
        path.write_bytes(config)
        lab.kill("s2", part, signal.SIGHUP)
        wait_until(lambda: said in log.read_text()[size:], said)
        return log.read_text()[size:]

    config = parse_config(before, "")
    changed = msgspec.structs.replace(
        config, log=LogConfig("warning"), mount=msgspec.structs.replace(config.mount, commit_s=config.mount.commit_s + 1)
    )
    try:
        said = reload(dump_config(changed), "in force when this process is started again: mount.commit_s")
        assert "has read" not in said, "that is no warning"
        assert "ERROR" in reload(before + b"[colour]\n", "goes on with the configuration of before")
        assert "in force when" not in reload(before, "has read")
    finally:
        path.write_bytes(before)
    assert lab.pid("s2", part) == pid


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("servers show s", ["s1", "s2"]),
        ("servers show s1", ["s1"]),
        ("servers show x", []),
        ("migrate --from s2 --to s", ["s1", "s2"]),
        ("queue ls --server ", ["s1", "s2"]),
        ("lab cut ", ["s1", "s2"]),
    ],
)
def test_names_of_servers_are_completed(lab: Lab, line: str, found: list[str]) -> None:
    def complete(root: Path) -> list[str]:
        words = f"godwit {line}"
        index = str(words.count(" "))
        done = godwit(_GODWIT_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=index, GODWIT_ROOT=str(root))
        assert done.stderr == ""
        return done.stdout.split()

    assert complete(lab.root) == found
    assert complete(lab.root / "nothing here") == []


def test_commands_run_on_a_servers_network(lab: Lab) -> None:
    script = "ip -brief address; exit 7"
    done = godwit("lab", "exec", "s2", "--root", str(lab.root), "--", "sh", "-c", script)
    assert done.returncode == 7
    assert f"{lab.address('s2')}/24" in done.stdout
    assert str(lab.mount("s1")) in lab.run("s1", ["cat", "/proc/self/mountinfo"], capture_output=True, text=True).stdout.replace(
        "\\040", " "
    )


def test_logs_are_shown(lab: Lab) -> None:
    done = godwit("lab", "logs", "s2", "agent", "--root", str(lab.root))
    assert done.returncode == 0
    assert " s2 agent " in done.stdout
    assert "==> " in godwit("lab", "logs", "s2", "--root", str(lab.root)).stdout


def test_the_network_answers_the_command_line(lab: Lab) -> None:
    root = str(lab.root)
    for command in (("servers", "ls"), ("queue", "ls"), ("policy", "ls"), ("where", str(lab.mount("s2")))):
        done = godwit(*command, "--root", root)
        assert (done.returncode, done.stderr) == (0, ""), command
        done = godwit(*command, "--json", "--root", root)
        assert done.stdout.startswith("{"), command
    missing = godwit("where", str(lab.mount("s2") / "nothing here"), GODWIT_ROOT=root)
    assert (missing.returncode, missing.stderr) == (1, f"godwit: {lab.mount('s2')}/nothing here: No such file or directory\n")
    assert godwit("queue", "show", "999999", "--root", root).returncode == 1


def test_a_policy_is_set_shown_and_taken_away(lab: Lab) -> None:
    root = str(lab.root)
    folder = lab.mount("s1") / "policy"
    (folder / "below").mkdir(parents=True)
    done = godwit("policy", "set", str(folder), "--copies", "1", "--root", root)
    assert (done.returncode, done.stderr) == (0, "")
    done = godwit("policy", "set", str(folder), "--copies", "7", "--root", root, "--json")
    assert done.stderr.startswith("godwit: 7 copies are wanted, and 2 servers have volumes")
    assert json.loads(done.stdout)["policy"]["servers"] == 2
    assert godwit("policy", "set", str(folder), "--copies", "1", "--root", root).returncode == 0
    shown = godwit("policy", "show", str(folder / "below"), "--root", root).stdout
    assert "copies       1\n" in shown
    assert "/policy\n" in shown
    assert "/policy" in godwit("policy", "ls", "--root", root).stdout
    assert godwit("policy", "set", str(folder), "--inherit", "--root", root).returncode == 0
    assert "/policy\n" not in godwit("policy", "show", str(folder / "below"), "--root", root).stdout


def test_nothing_lands_beneath_a_mount_that_starts(lab: Lab) -> None:
    """Whoever writes all the time gets errors until the mount is there: what is acknowledged is on the network."""
    lab.kill("s2", "mount")
    stop = threading.Event()
    acknowledged: list[str] = []

    def write_all_the_time() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            with suppress(OSError):
                descriptor = os.open(lab.mount("s2") / f"beneath-{number}", os.O_WRONLY | os.O_CREAT)
                try:
                    os.write(descriptor, b"x")
                    os.fsync(descriptor)
                    acknowledged.append(f"beneath-{number}")
                finally:
                    os.close(descriptor)

    writer = threading.Thread(target=write_all_the_time)
    writer.start()
    try:
        lab.start("s2", "mount")
        wait_until(lambda: acknowledged, "the mount takes files", 20)
    finally:
        stop.set()
        writer.join()
    there = {path.name for path in lab.mount("s1").glob("beneath-*")}
    assert set(acknowledged) <= there
    for path in lab.mount("s1").glob("beneath-*"):
        path.unlink()


# ------------------------------------------------------------------------------------------- labs of their own


def test_down_leaves_nothing_but_the_data_and_up_goes_on_with_it(tmp_path: Path) -> None:
    lab = Lab.create(tmp_path / "lab", servers=1)
    try:
        lab.up()
        (lab.mount("s1") / "kept").write_bytes(b"kept")
        held = os.open(lab.mount("s1"), os.O_RDONLY)
        lab.down()
        os.close(held)
        assert remains(lab.root) == []
        lab.up()
        assert (lab.mount("s1") / "kept").read_bytes() == b"kept"
        crash(lab, [part for part in PARTS if part != "manager"])
        lab.up()
        assert (lab.mount("s1") / "kept").read_bytes() == b"kept"
        crash(lab, PARTS)
    finally:
        lab.down(purge=True)
    assert remains(lab.root) == []
    assert not lab.root.exists()
    lab.root.parent.rmdir()


def crash(lab: Lab, parts: Sequence[str]) -> None:
    """Kills the supervisor and parts of s1, and tells nobody."""
    supervisor = lab.supervisor()
    assert supervisor is not None
    for pid in (supervisor, *(lab.pid("s1", part) for part in parts)):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(lab.is_running("s1", part) for part in parts), "they end", 20)


def test_a_part_that_ends_at_once_takes_the_lab_down_and_shows_its_log(tmp_path: Path) -> None:
    lab = Lab.create(tmp_path / "lab", servers=1, overrides={"manager": {"listen": "192.0.2.1:7400"}})
    with pytest.raises(NotReady, match=r"s1 manager[^\n]*\n    "):
        lab.up()
    assert remains(lab.root) == []
    lab.down(purge=True)


def test_a_database_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    lab = Lab.create(tmp_path / "lab", servers=1, overrides={"manager": {"database": "sqlite:////proc/no/catalog.db"}})
    with pytest.raises(NotReady, match=r"the catalog was not made: .*cannot open the database sqlite:////proc/no/catalog.db"):
        lab.up()
    assert not lab.is_up()
    lab.down(purge=True)


def test_a_purged_lab_leaves_no_journal(tmp_path: Path) -> None:
    lab = Lab.create(tmp_path / "lab", servers=1)
    owner = journal_owner(read_state(lab.root).cluster, "s1")
    Journal(owner, 77, str(tmp_path)).close(empty=False)
    other = Journal(f"not-{owner}", 77, str(tmp_path))
    try:
        lab.down()
        assert (JOURNALS / f"{owner}:77").exists()
        lab.down(purge=True)
        assert not (JOURNALS / f"{owner}:77").exists()
        assert other.path.exists()
    finally:
        other.close(empty=True)


def test_an_interrupted_up_cleans_up(tmp_path: Path) -> None:
    root = tmp_path / "lab"
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            interrupt_up(root, number)
            assert remains(root) == []
    finally:
        Lab.load(root).down(purge=True)


def interrupt_up(root: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-bb", "-m", "cli.main", "lab", "up", "--servers", "2", "--root", str(root)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=heed_interrupts) as process:
        log = root / "s1" / "log" / "manager.log"
        deadline = time.monotonic() + 30
        while not log.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        process.wait(60)
        assert process.returncode not in (0, None)
    log.unlink()


def test_down_finds_a_lab_whose_folder_is_gone(tmp_path: Path) -> None:
    lab = Lab.create(tmp_path / "lab", servers=1)
    lab.up()
    (lab.root / "lab.json").unlink()
    done = godwit("lab", "down", "--root", str(lab.root))
    assert done.returncode == 0, done.stderr
    assert remains(lab.root) == []


def test_down_leaves_nothing_when_its_folder_cannot_be_written_to(tmp_path: Path) -> None:
    lab = Lab.create(tmp_path / "lab", servers=1)
    try:
        lab.up()
        descriptor = os.open(lab.root, os.O_RDONLY)
        try:
            assert fence(descriptor)
            lab.down()
            assert remains(lab.root) == []
        finally:
            lift(descriptor)
            os.close(descriptor)
    finally:
        lab.down(purge=True)
    assert not lab.root.exists()


def test_nothing_is_deleted_below_a_foreign_mount(tmp_path: Path) -> None:
    disk = tmp_path / "lab" / "s1" / "vol1"
    disk.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], check=True)
    try:
        lab = Lab.create(tmp_path / "lab", servers=1)
        with pytest.raises(Refused, match=f"unmount {disk} first"):
            lab.down(purge=True)
        assert (disk / "volume.toml").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    lab.down(purge=True)
    assert not lab.root.exists()


def test_a_lab_that_cannot_be_read_hides_no_other(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "lab.json").write_text('{"servers": 3}')
    register(tmp_path)
    try:
        listed = godwit("lab", "ls")
        assert listed.returncode == 0, listed.stderr
        (line,) = [line for line in listed.stdout.splitlines() if line.startswith(f"{tmp_path} ")]
        assert "cannot be read" in line
        assert str(lab.root) in listed.stdout
        found = json.loads(godwit("lab", "ls", "--json").stdout)
        assert str(lab.root) in [each["root"] for each in found["labs"]]
        (damaged,) = [each for each in found["damaged"] if each["root"] == str(tmp_path)]
        assert "lab.json" in damaged["problem"]
    finally:
        unregister(tmp_path)
