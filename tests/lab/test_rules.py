"""The lab's rules: which subnet, which roots, whose processes, what is mounted."""

import os
import signal
import subprocess
import sys
import threading
import time
from ipaddress import IPv4Network
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import Refused
from cluster.mounted import Mounted, parse_mountinfo
from cluster.volume.layout import VolumeLayout
from lab import processes
from lab.lab import Lab
from lab.network import SUBNETS, Network, choose_subnet, subnet_number
from lab.registry import locked, tag_of
from lab.state import LabState, host_numbers, new_state, read_state, server_config, write_state
from tests.support.conditions import wait_until
from tests.support.leaderless import leaderless

TAGS = st.integers(0, 2**32 - 1).map(lambda number: f"{number:08x}")
NETWORK = Network("0123abcd", "10.77.3.0/24")


# ------------------------------------------------------------------------------------------------------- subnets


@given(TAGS, st.sets(st.integers(0, SUBNETS - 1), max_size=20))
def test_a_free_subnet_is_chosen(tag: str, taken: set[int]) -> None:
    routes = [subnet_number(index) for index in taken]
    chosen = choose_subnet(tag, routes)
    assert chosen.prefixlen == 24
    assert chosen.subnet_of(IPv4Network("10.0.0.0/8"))
    assert not any(chosen.overlaps(route) for route in routes)
    assert choose_subnet(tag, routes) == chosen


def test_a_lab_keeps_its_subnet_unless_it_is_taken() -> None:
    first = choose_subnet("00000007", [])
    assert first == subnet_number(7)
    assert choose_subnet("00000007", [first]) == subnet_number(8)


def test_a_wide_route_is_only_avoided_while_something_else_is_free() -> None:
    assert choose_subnet("00000000", [IPv4Network("10.64.0.0/10")]) == subnet_number(0)
    half = IPv4Network("10.64.0.0/11")
    assert not choose_subnet("00000000", [half]).overlaps(half)


def test_no_free_subnet_is_said() -> None:
    narrow = [IPv4Network(f"10.{octet}.0.0/16") for octet in range(64, 128)]
    with pytest.raises(Refused, match="no free subnet"):
        choose_subnet("00000000", narrow)


@given(st.text(min_size=1))
def test_names_in_the_kernel_fit(root: str) -> None:
    network = Network(tag_of(Path("/" + root.replace("\0", "").encode("utf-8", "replace").decode())), "10.64.0.0/24")
    assert len(network.interface) <= 15
    assert network.address(254) == "10.64.0.254"


# --------------------------------------------------------------------------------------------------------- state


def test_the_state_file_is_read_back(tmp_path: Path) -> None:
    state = msgspec.structs.replace(
        new_state(2, 3, None, {"mount": {"commit_s": 1.5}}),
        network=NETWORK,
        processes={"s1/agent": processes.ProcessId(1, 2, "boot")},
    )
    write_state(tmp_path, state)
    assert read_state(tmp_path) == state


def test_a_database_with_a_password_is_for_its_owner_only(tmp_path: Path) -> None:
    write_state(tmp_path, new_state(1, 1, "postgresql+psycopg://user:secret@10.0.0.1/godwit", {}))
    assert (tmp_path / "lab.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("servers", "volumes"), [(0, 1), (65, 1), (1, -1), (1, 17)])
def test_senseless_sizes_are_refused(servers: int, volumes: int) -> None:
    with pytest.raises(Refused, match=str(servers if volumes == 1 else volumes)):
        new_state(servers, volumes, None, {})


def test_a_bare_word_that_is_no_database_is_refused() -> None:
    with pytest.raises(Refused, match="is neither sqlite nor postgresql") as refused:
        new_state(1, 1, "a-password", {})
    assert "a-password" not in str(refused.value)
    assert new_state(1, 1, "sqlite", {}).database is None


def test_an_own_database_has_a_host_and_a_password_of_its_own(tmp_path: Path) -> None:
    state = new_state(2, 1, "postgresql", {})
    assert host_numbers(state) == {"s1": 1, "s2": 2, "db": 253}
    assert host_numbers(new_state(1, 1, None, {})) == {"s1": 1}
    assert new_state(2, 1, "postgresql", {}).password != state.password
    url = server_config(tmp_path, state, NETWORK, "s1").manager.database
    assert url == f"postgresql+psycopg://godwit:{state.password}@10.77.3.253:5432/godwit"


def test_a_damaged_state_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "lab.json").write_text('{"cluster": 7}')
    with pytest.raises(Refused, match=r"lab\.json is damaged"):
        read_state(tmp_path)


def test_servers_know_all_candidates_and_overrides_are_laid_over(tmp_path: Path) -> None:
    state = new_state(2, 1, None, {"agent": {"trash_keep_s": 0}})
    config = server_config(tmp_path, state, NETWORK, "s2")
    assert config.managers == ["10.77.3.1:7400", "10.77.3.2:7400"]
    assert config.agent.listen == "10.77.3.2:7401"
    assert config.agent.volumes == [f"{tmp_path}/s2/vol1"]
    assert config.agent.trash_keep_s == 0
    assert config.manager.database == f"sqlite:///{tmp_path}/catalog/catalog.db"


def test_a_wrong_override_is_named(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="comit_s"):
        Lab.create(tmp_path / "lab", overrides={"mount": {"comit_s": 1}})


# --------------------------------------------------------------------------------------------------------- roots


def test_a_new_lab_formats_its_volumes(tmp_path: Path) -> None:
    lab = Lab.create(tmp_path / "lab", servers=2, volumes=2)
    assert VolumeLayout(lab.volume("s2", 2)).identity().server == "s2"
    assert Lab.load(tmp_path / "lab").servers == ["s1", "s2"]


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(Refused, match=r"contains thesis\.tex"):
        Lab.create(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_prepared_volumes_are_accepted_if_they_are_empty(tmp_path: Path) -> None:
    (tmp_path / "s1/vol1/lost+found").mkdir(parents=True)
    Lab.create(tmp_path, servers=1)
    other = tmp_path / "other"
    (other / "s1/vol1").mkdir(parents=True)
    (other / "s1/vol1/data").touch()
    with pytest.raises(Refused, match="contains s1/vol1/data"):
        Lab.create(other, servers=1)


def test_a_second_lab_on_a_root_is_refused(tmp_path: Path) -> None:
    Lab.create(tmp_path, servers=1)
    with pytest.raises(Refused, match="holds a lab already"):
        Lab.create(tmp_path, servers=1)


def test_a_root_that_cannot_stand_in_a_url_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="plainer name"):
        Lab.create(tmp_path / "what?")


def test_a_folder_that_is_no_lab_says_what_to_try(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="godwit lab up --root"):
        Lab.load(tmp_path)


def test_unknown_servers_and_parts_are_named(tmp_path: Path) -> None:
    lab = Lab.create(tmp_path / "lab", servers=2)
    with pytest.raises(Refused, match="no server 's3', it has s1, s2"):
        lab.mount("s3")
    with pytest.raises(Refused, match="'mont' is not mount, agent, manager or all"):
        lab.is_running("s1", "mont")


def test_a_lab_that_is_down_says_so(tmp_path: Path) -> None:
    lab = Lab.create(tmp_path / "lab", servers=1)
    assert not lab.is_running("s1")
    with pytest.raises(Refused, match="is down"):
        lab.address("s1")


# ----------------------------------------------------------------------------------------------------- processes


def test_a_process_is_started_apart_and_ended(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "import os, sys, time; print(os.getsid(0) == os.getpid(), flush=True); time.sleep(600)"
    process = processes.spawn([sys.executable, "-c", script], log, dict(os.environ))
    deadline = time.monotonic() + 20
    while not log.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert log.read_text() == "True\n"
    assert processes.is_alive(process)
    assert processes.end([process], 10) == []
    assert not processes.is_alive(process)
    assert not os.path.exists(f"/proc/{process.pid}")


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
    process = processes.spawn([sys.executable, "-c", script], log, dict(os.environ))
    deadline = time.monotonic() + 20
    while not log.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert processes.end([process], 0.2) == []
    assert not processes.is_alive(process)


def test_a_reused_number_is_another_process() -> None:
    """A state file names a process by number, start and boot: a stranger with its number is neither seen nor signalled."""
    with subprocess.Popen(["sleep", "600"]) as stranger:
        identity = processes.identify(stranger.pid)
        assert identity is not None
        for old in (
            msgspec.structs.replace(identity, started=identity.started - 1),
            msgspec.structs.replace(identity, boot="another"),
        ):
            assert not processes.is_alive(old)
            assert processes.end([old], 0.1) == []
        assert stranger.poll() is None
        assert processes.is_alive(identity)
        stranger.kill()


def test_a_zombie_of_somebody_else_is_not_alive() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", "import os, sys, time; pid = os.fork() or os._exit(0); print(pid, flush=True); time.sleep(600)"],
        stdout=subprocess.PIPE,
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        identity = processes.identify(pid)
        assert identity is not None
        assert processes.wait_gone(identity, 10)
        parent.kill()


def test_a_process_is_alive_until_its_last_thread_has_ended() -> None:
    with leaderless() as pid:
        process = processes.identify(pid)
        assert process is not None
        wait_until(lambda: ") Z " in Path(f"/proc/{pid}/stat").read_text(), "its first thread has ended", 20)
        assert processes.is_alive(process)
        os.kill(pid, signal.SIGKILL)
        assert processes.wait_gone(process, 20)


# -------------------------------------------------------------------------------------------------------- mounts


def test_mountinfo_is_read_with_its_escapes() -> None:
    text = (
        b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        b"90 22 0:50 / /srv/my\\040lab/s1/mnt rw,nosuid - fuse.godwit godwit:lab rw,user_id=0\n"
    )
    assert parse_mountinfo(text) == [
        Mounted(Path("/"), "ext4", "/dev/vda", "254:0"),
        Mounted(Path("/srv/my lab/s1/mnt"), "fuse.godwit", "godwit:lab", "0:50"),
    ]


def test_the_state_struct_refuses_unknown_keys() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"cluster": "x", "servers": 1, "volumes": 1, "colour": "red"}', type=LabState)


# --------------------------------------------------------------------------------------------------------- locks


def test_a_lock_that_its_holder_deletes_still_excludes(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    inside: list[int] = []
    most = 0

    def work() -> None:
        nonlocal most
        for _ in range(20):
            with locked(path, "the test"):
                inside.append(1)
                most = max(most, len(inside))
                inside.pop()
                path.unlink()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == 1
    assert not path.exists()
