"""What mount(8) may ask for: the options of a line in /etc/fstab, and whose mount it is."""

import getopt
from pathlib import Path

import msgspec
import pytest

from cli.mount_helper import Asked, check, choose_config, parse_arguments
from cluster.config import DEFAULT_CONFIG, ServerConfig, parse_config
from cluster.errors import Refused

CONFIG = parse_config(
    b"""
cluster = "here"
server = "s1"
managers = ["10.0.0.1:7400"]
[manager]
[agent]
listen = "10.0.0.1:7401"
[mount]
mountpoint = "/mnt/godwit"
""",
    "the test",
)


def asked(options: str = "rw", source: str = "godwit:here", mountpoint: str = "/mnt/godwit", *more: str) -> Asked:
    """As mount(8) calls it."""
    return parse_arguments([source, mountpoint, *more, "-o", options])


def refusal(wanted: Asked, config: ServerConfig = CONFIG) -> str:
    with pytest.raises(Refused) as raised:
        check(wanted, config, DEFAULT_CONFIG)
    return str(raised.value)


def test_the_arguments_of_mount_are_read() -> None:
    assert asked("rw,_netdev") == Asked("godwit:here", "/mnt/godwit", ["rw", "_netdev"])
    assert asked("rw", "godwit", "/mnt/godwit", "-sfnv", "-N", "1") == Asked("godwit", "/mnt/godwit", ["rw"], True, True)
    with pytest.raises(Refused, match="usage"):
        parse_arguments(["godwit"])
    with pytest.raises(getopt.GetoptError):
        parse_arguments(["godwit", "/mnt/godwit", "-x"])


def test_what_fstab_says_about_mounting_is_accepted() -> None:
    for options in (
        "defaults",
        "rw,_netdev,nofail,noauto",
        "rw,x-systemd.mount-timeout=60,comment=ours,user=anna",
        "nosuid,nodev",
    ):
        check(asked(options), CONFIG, DEFAULT_CONFIG)
    for source in ("godwit", "godwit:here", "/etc/godwit/godwit.toml"):
        check(asked(source=source), CONFIG, DEFAULT_CONFIG)


@pytest.mark.parametrize("option", ["ro", "remount", "noexec", "noatime", "bind", "suid", "dev", "nonsense", "sync"])
def test_what_nobody_would_keep_is_refused(option: str) -> None:
    assert refusal(asked(f"rw,{option}")) == f"the option {option} is not supported: see mount.godwit(8)"
    check(asked(f"rw,{option}", "godwit", "/mnt/godwit", "-s"), CONFIG, DEFAULT_CONFIG)


def test_rights_are_those_of_the_configuration() -> None:
    both = msgspec.structs.replace(CONFIG, mount=msgspec.structs.replace(CONFIG.mount, suid=True, dev=True))
    check(asked("suid,dev"), both, DEFAULT_CONFIG)
    assert "nosuid" in refusal(asked("rw,nosuid"), both)


def test_another_network_and_another_directory_are_refused() -> None:
    assert refusal(asked(source="godwit:there")) == (
        "godwit:there: this server is of the network here: its source is godwit:here"
    )
    assert "the mount point is /mnt/godwit" in refusal(asked(mountpoint="/mnt"))


def test_the_configuration_is_the_option_the_source_or_the_machines_own() -> None:
    assert choose_config(asked("rw,config=/srv/s1.toml", "/srv/s2.toml")) == Path("/srv/s1.toml")
    assert choose_config(asked(source="/srv/s2.toml")) == Path("/srv/s2.toml")
    assert choose_config(asked()) == DEFAULT_CONFIG
