"""The systemd units: right for this installation, whatever the paths are called, and accepted by systemd."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from cli.commands.units import UNITS, make_units, mount_units, program
from cli.unit_limits import database_paths
from cluster.config import ServerConfig, dump_config, parse_config
from cluster.errors import Refused
from tests.support.runner import godwit

CONFIG = parse_config(
    b"""
cluster = "here"
server = "s1"
managers = ["10.0.0.1:7400"]
[manager]
listen = "10.0.0.1:7400"
database = "sqlite:////tmp/catalog.db"
[agent]
listen = "10.0.0.1:7401"
volumes = ["/srv/one", "/srv/two words"]
[mount]
mountpoint = "/mnt/100% mine"
""",
    "the test",
)


def units(config: ServerConfig = CONFIG) -> dict[str, str]:
    return make_units(config, Path("/etc/godwit/godwit.toml"), ["/opt/godwit/bin/godwit"])


def test_paths_are_quoted_as_systemd_wants_them() -> None:
    made = units()
    mount = made["godwit-mount.service"]
    assert "ExecStart=/opt/godwit/bin/godwit run mount --config /etc/godwit/godwit.toml $GODWIT_OPTIONS\n" in mount
    assert "RequiresMountsFor=/var/lib/godwit/state /etc/godwit/trust /mnt\n" in mount
    assert '-- "/mnt/100%% mine"\n' in mount
    assert "RequiresMountsFor=/var/lib/godwit/state /etc/godwit/trust\n" in made["godwit-agent.service"]


def settings(unit: str) -> dict[str, list[str]]:
    """The values of every setting of a unit's text, in order."""
    found: dict[str, list[str]] = {}
    for line in unit.splitlines():
        name, is_setting, value = line.partition("=")
        if is_setting and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def of_part(part: str, config: ServerConfig = CONFIG, **changes: object) -> dict[str, list[str]]:
    return settings(units(with_values(config, part, **changes))[f"godwit-{part}.service"])


def with_values(config: ServerConfig, section: str, **changes: object) -> ServerConfig:
    return msgspec.structs.replace(config, **{section: msgspec.structs.replace(getattr(config, section), **changes)})


POSTGRES = with_values(CONFIG, "manager", database="postgresql+psycopg://godwit:secret@10.0.0.9/godwit")


@pytest.mark.parametrize(
    ("part", "capabilities"),
    [
        ("manager", {"CAP_SYS_NICE"}),
        ("agent", {"CAP_LINUX_IMMUTABLE", "CAP_DAC_OVERRIDE", "CAP_SYS_NICE"}),
        ("mount", {"CAP_SYS_ADMIN", "CAP_LINUX_IMMUTABLE", "CAP_DAC_OVERRIDE"}),
    ],
)
def test_a_part_has_few_capabilities_and_cannot_get_more(part: str, capabilities: set[str]) -> None:
    found = of_part(part)
    assert [set(value.split()) for value in found["CapabilityBoundingSet"]] == [capabilities]
    assert found["NoNewPrivileges"] == ["yes"]
    assert found["SystemCallFilter"][0].startswith("@system-service"), "only what is listed is permitted"
    assert ("@mount" in found["SystemCallFilter"][0].split()) == (part == "mount")
    assert found["SystemCallArchitectures"] == ["native"]
    assert found["RestrictAddressFamilies"] == ["AF_INET AF_INET6 AF_UNIX"]
    for name in ("MemoryDenyWriteExecute", "RestrictNamespaces", "LockPersonality", "ProtectClock"):
        assert found[name] == ["yes"], name


def test_libfuse_may_become_whom_it_is() -> None:
    """That of Debian 13 does before it has mount(8) note a mount; it would go on in two processes otherwise."""
    assert of_part("mount")["SystemCallFilter"][-1] == "setuid"


@pytest.mark.parametrize("part", ["agent", "mount"])
def test_a_broken_disk_keeps_nothing_from_starting(part: str) -> None:
    """It is waited for, and done without if it does not come."""
    disks = r"srv.mount srv-one.mount srv-two\x20words.mount"
    found = of_part(part)
    assert disks in found["Wants"]
    assert disks in found["After"]
    assert "/srv" not in found["RequiresMountsFor"][0]


@pytest.mark.skipif(not shutil.which("systemd-escape"), reason="no systemd-escape: package systemd")
def test_the_units_of_disks_are_those_of_systemd() -> None:
    paths = ["/srv", "/.hidden/.one/a.b", "/srv/a-b_c:d.e/ö\x01\\%", "/mnt//twice/", "/1/2/3"]
    for path in paths:
        done = subprocess.run(["systemd-escape", "--path", "--suffix=mount", path], capture_output=True, text=True, check=True)
        assert mount_units([path])[-1] == done.stdout.strip()
    assert mount_units(["/srv/one", "/srv/two"]) == ["srv.mount", "srv-one.mount", "srv-two.mount"]


@pytest.mark.parametrize("part", ["manager", "agent", "mount"])
def test_systemd_is_told_when_a_part_serves_and_that_it_goes_on(part: str) -> None:
    found = of_part(part)
    assert (found["Type"], found["WatchdogSec"], found["Restart"]) == (["notify"], ["60"], ["on-failure"])
    assert "ExecStartPost" not in found, "the process itself knows"
    assert "AF_UNIX" in found["RestrictAddressFamilies"][0].split(), "systemd's socket is one"


@pytest.mark.parametrize("part", ["manager", "agent"])
def test_a_port_of_the_system_costs_a_capability(part: str) -> None:
    for port, has in ((700, True), (1023, True), (1024, False)):
        found = of_part(part, listen=f"10.0.0.1:{port}")
        assert ("CAP_NET_BIND_SERVICE" in found["CapabilityBoundingSet"][0].split()) == has, port


def test_manager_and_agent_can_write_to_what_is_theirs_alone() -> None:
    manager, agent = of_part("manager"), of_part("agent")
    for found in (manager, agent):
        assert found["ProtectSystem"] == ["strict"]
        for name in ("PrivateDevices", "ProtectKernelTunables", "ProtectKernelModules", "ProtectControlGroups"):
            assert found[name] == ["yes"], name
        assert found["ExecStartPre"] == [f"+{shutil.which('mkdir')} -p -m 0700 -- /var/lib/godwit/state"]
    # A directory that is missing is passed over (`-`), not an error.
    assert manager["ReadWritePaths"] == ["-/var/lib/godwit/state -/tmp -/etc/godwit/trust"]
    assert agent["ReadWritePaths"] == [
        '-/var/lib/godwit/state -/srv/one "-/srv/two words" -/etc/godwit/trust -/sys/fs/fuse/connections'
    ]
    assert (agent["RuntimeDirectory"], agent["RuntimeDirectoryPreserve"]) == (["godwit"], ["yes"])


@pytest.mark.parametrize(
    ("url", "catalog", "others"),
    [
        ("sqlite:////var/lib/godwit/catalog.db", "/var/lib/godwit/catalog.db", []),
        ("sqlite+pysqlite:////srv/a b.db?timeout=5", "/srv/a b.db", []),
        ("sqlite:///catalog.db", "/catalog.db", []),
        ("sqlite://", "", []),
        ("postgresql+psycopg://godwit:p%2Fw@db/godwit", "", []),
        (
            "postgresql+psycopg://godwit@/godwit?host=/run/postgresql&sslcert=%2Froot%2Fmine.crt",
            "",
            ["/run/postgresql", "/root/mine.crt"],
        ),
    ],
)
def test_the_paths_in_a_database_url_are_found(url: str, catalog: str, others: list[str]) -> None:
    assert database_paths(url) == (catalog, others)


def test_keys_and_certificates_can_be_renewed_wherever_they_are() -> None:
    elsewhere = msgspec.structs.replace(POSTGRES, trust="/srv/keys of s1")
    for part in ("manager", "agent"):
        assert '"-/srv/keys of s1"' in of_part(part, elsewhere)["ReadWritePaths"][0]


def test_an_agent_cannot_read_the_keys_of_managers() -> None:
    hidden = of_part("agent", msgspec.structs.replace(CONFIG, trust="/srv/trust"))["InaccessiblePaths"]
    assert hidden == ["-/srv/trust/authority.pem -/srv/trust/master.key -/srv/trust/page.password -/srv/trust/manager.pem"]
    url = (
        "postgresql+psycopg://g@10.0.0.9/g?sslmode=verify-full&sslcert=/etc/godwit/db/client.pem&sslkey=/etc/godwit/db/client.key"
    )
    with_key = msgspec.structs.replace(CONFIG, manager=msgspec.structs.replace(CONFIG.manager, database=url))
    assert of_part("agent", with_key)["InaccessiblePaths"][0].endswith("/manager.pem -/etc/godwit/db/client.key")
    assert "InaccessiblePaths" not in of_part("manager")


def test_a_database_elsewhere_leaves_the_manager_only_its_state_to_write() -> None:
    manager = of_part("manager", database="postgresql+psycopg://godwit:secret@10.0.0.9/godwit")
    assert manager["ReadWritePaths"] == ["-/var/lib/godwit/state -/etc/godwit/trust"]
    assert manager["RequiresMountsFor"][0].split() == ["/var/lib/godwit/state", "/etc/godwit/trust"]


def test_a_directory_of_backups_can_be_written() -> None:
    elsewhere = with_values(CONFIG, "backup", directory="/backup/godwit")
    assert "-/backup/godwit " in of_part("manager", elsewhere)["ReadWritePaths"][0]


def test_homes_and_temporary_files_are_hidden_where_nothing_lies_in_them() -> None:
    for part in ("manager", "agent"):
        found = of_part(part, POSTGRES)
        assert (found["ProtectHome"], found["PrivateTmp"]) == (["tmpfs"], ["yes"]), part
    manager = of_part("manager", database="postgresql://db/godwit?sslrootcert=/root/db.crt")
    assert manager["ProtectHome"] == ["read-only"]
    assert of_part("manager")["PrivateTmp"] == ["no"], "the catalog is in /tmp"
    for volumes in (["/home/anna/vol"], ["/srv/one", "/root"], ["/srv/../home/vol"]):
        assert of_part("agent", POSTGRES, volumes=volumes)["ProtectHome"] == ["read-only"], volumes
    assert of_part("agent", POSTGRES, volumes=["/homes/vol"])["ProtectHome"] == ["tmpfs"]
    mounted = with_values(POSTGRES, "mount", mountpoint="/tmp/mnt")
    assert of_part("agent", mounted)["PrivateTmp"] == ["no"], "it sees the mount"
    assert of_part("manager", mounted)["PrivateTmp"] == ["yes"]


def test_an_installation_in_a_home_can_be_read(tmp_path: Path) -> None:
    for installed in ("/root/.pyenv/versions/3.11", "/home/me/godwit"):
        made = make_units(POSTGRES, Path("/etc/godwit/godwit.toml"), ["/opt/godwit/bin/godwit"], [installed])
        for part in ("manager", "agent"):
            assert settings(made[f"godwit-{part}.service"])["ProtectHome"] == ["read-only"]
    # A link that leads there.
    (tmp_path / "volume").symlink_to("/root")
    assert of_part("agent", POSTGRES, volumes=[str(tmp_path / "volume")])["ProtectHome"] == ["read-only"]


def test_the_mount_is_in_the_machines_own_mount_namespace() -> None:
    # What systemd.exec(5) says to need one (and what implies it): a mount made in it would be seen by nobody else.
    of_own = re.compile(
        "ProtectSystem|ProtectHome|PrivateTmp|PrivateDevices|PrivateMounts|PrivateIPC|PrivateUsers|ProtectKernel.*|ProtectProc|ProcSubset"
        "|ProtectControlGroups|(ReadWrite|ReadOnly|Inaccessible|Exec|NoExec|Bind|BindReadOnly)Paths|TemporaryFileSystem|MountFlags"
        "|Root.*|.*Images?|DynamicUser|NetworkNamespacePath|JoinsNamespaceOf|LogNamespace|.*Directory"
    )
    assert [name for name in of_part("mount") if of_own.fullmatch(name)] == []


def test_objects_can_be_opened_without_waiting_for_a_disk() -> None:
    # RestrictSUIDSGID has openat2(2) answered with ENOSYS.
    for part in ("agent", "mount"):
        assert "RestrictSUIDSGID" not in of_part(part)


def test_a_path_that_cannot_stand_in_a_unit_is_refused() -> None:
    mount = msgspec.structs.replace(CONFIG.mount, mountpoint="/mnt/a\nb")
    with pytest.raises(Refused, match="cannot stand in a unit"):
        units(msgspec.structs.replace(CONFIG, mount=mount))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze: package systemd")
def test_systemd_accepts_them(tmp_path: Path) -> None:
    plain = msgspec.structs.replace(CONFIG, mount=msgspec.structs.replace(CONFIG.mount, mountpoint=str(tmp_path / "a mount")))
    for name, text in make_units(plain, tmp_path / "godwit.toml", program()).items():
        (tmp_path / name).write_text(text)
    paths = [str(tmp_path / name) for name in UNITS]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *paths], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "godwit" in line]
    assert ours == []


def test_they_are_shown_and_installed(tmp_path: Path) -> None:
    config = tmp_path / "godwit.toml"
    config.write_bytes(dump_config(CONFIG))
    shown = godwit("units", "--config", str(config))
    assert shown.returncode == 0, shown.stderr
    assert "ExecStart=" in shown.stdout
    folder = tmp_path / "system"
    folder.mkdir()
    (folder / UNITS[0]).write_text("older")
    for _ in range(2):
        done = godwit("units", "--install", "--config", str(config), "--directory", str(folder))
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == sorted(UNITS)
    for name in UNITS:
        text = (folder / name).read_text()
        assert text in shown.stdout
        assert "older" not in text
        assert (folder / name).stat().st_mode & 0o777 == 0o644


def test_the_installed_program_is_the_one_that_asked() -> None:
    assert os.access(program()[0], os.X_OK)
    done = subprocess.run([*program(), "--help"], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.startswith("Usage: godwit")


def test_the_agent_leaves_the_certificate_of_commands_to_the_group_that_administers() -> None:
    assert settings(units()["godwit-agent.service"])["SupplementaryGroups"] == [""]
    agent = settings(units(msgspec.structs.replace(CONFIG, admin_group="operators"))["godwit-agent.service"])
    assert agent["SupplementaryGroups"] == ["operators"]
    assert agent["SystemCallFilter"][-1] == "@chown"


def test_the_page_may_be_at_a_port_of_root_and_has_a_key_that_the_agent_cannot_read() -> None:
    config = with_values(POSTGRES, "page", listen="10.0.0.1:443", certificate="/etc/godwit/page/page.pem", key="/root/page.key")
    manager, agent = of_part("manager", config), of_part("agent", config)
    assert "CAP_NET_BIND_SERVICE" in manager["CapabilityBoundingSet"][0].split()
    assert "CAP_NET_BIND_SERVICE" not in agent["CapabilityBoundingSet"][0].split()
    assert manager["ProtectHome"] == ["read-only"]
    hidden = {"-/etc/godwit/page/page.pem", "-/root/page.key", "-/etc/godwit/trust/page.password"}
    assert hidden <= {*" ".join(agent["InaccessiblePaths"]).split()}
