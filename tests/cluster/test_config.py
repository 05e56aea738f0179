"""Configuration: what is wrong is refused with the key that is wrong."""

from pathlib import Path

import pytest

from cluster.config import dump_config, load_config, parse_config
from cluster.errors import Refused

GOOD = """
cluster = "home"
server = "s1"
managers = ["10.0.0.1:7000", "[::1]:7000"]

[manager]
listen = "10.0.0.1:7000"
database = "sqlite:////var/lib/godwit/catalog.db"

[agent]
listen = "10.0.0.1:7001"
volumes = ["/srv/a", "/srv/b"]
copies_at_once = 8

[mount]
mountpoint = "/mnt/godwit"
"""

WRONG = [
    ('cluster = "home"', 'cluster = ""', "cluster"),
    ('cluster = "home"', 'cluster = "a b"', "cluster"),
    ('server = "s1"', "server = 1", "server"),
    ('server = "s1"', 'server = "../s1"', "server"),
    ('server = "s1"', "", "server"),
    ('server = "s1"', 'server = "s1"\nsecret = "00"', "secret: this is of an older release.*operations.md"),
    ('listen = "10.0.0.1:7000"\n', "", "manager: a candidate needs both"),
    ('database = "sqlite:////var/lib/godwit/catalog.db"', "", "manager: a candidate needs both"),
    ('"10.0.0.1:7000", "[::1]:7000"', "", "managers"),
    ('"[::1]:7000"', '"nowhere"', r"managers\[1\]"),
    ('listen = "10.0.0.1:7000"', 'listen = "10.0.0.1"', r"manager\.listen"),
    ('listen = "10.0.0.1:7001"', 'listen = "10.0.0.1:99999"', r"agent\.listen"),
    ('"/srv/b"', '"srv/b"', r"agent\.volumes\[1\]"),
    ('"/mnt/godwit"', '"mnt"', r"mount\.mountpoint"),
    ("copies_at_once = 8", "copies_at_once = 0", "copies_at_once"),
    ("copies_at_once = 8", "copies_at_once = 65", "copies_at_once"),
    ("copies_at_once = 8", "trash_keep_s = -1.0", "trash_keep_s"),
    ("copies_at_once = 8", "trash_keep_s = 1e10", "trash_keep_s"),
    ("copies_at_once = 8", "report_s = 0", "report_s"),
    ("copies_at_once = 8", "copys_at_once = 8", "copys_at_once"),
    ("[mount]", "[mounts]", "mount"),
    ("[mount]", "[mount]\ncommit_s = inf", "commit_s"),
    ("[mount]", "[mount]\nrenew_s = 7.6", r"mount\.renew_s"),
    ("[agent]", "suspect_s = 601\n[agent]", r"manager\.suspect_s"),
    ("[mount]", "[metrics]\nlisten = '10.0.0.1'\n[mount]", r"metrics\.listen"),
    ("[mount]", "[metrics]\nlisten = '10.0.0.1:65534'\n[mount]", r"metrics\.listen.*65536.*3 processes"),
    ("[mount]", "[metrics]\nport = 1\n[mount]", "port"),
    ("[mount]", "[page]\nlisten = '10.0.0.1'\n[mount]", r"page\.listen"),
    ("[mount]", "[page]\ncertificate = 'page.pem'\n[mount]", r"page\.certificate.*absolute"),
    ("[mount]", "[page]\nkey = '/etc/page.key'\n[mount]", r"page\.key"),
    ("[mount]", "[mount", "not TOML"),
]


def test_a_good_configuration_is_read_and_written_back() -> None:
    config = parse_config(GOOD.encode(), "test")
    assert config.agent.volumes == ["/srv/a", "/srv/b"]
    assert config.agent.copies_at_once == 8
    assert parse_config(dump_config(config), "again") == config


@pytest.mark.parametrize(("good", "wrong", "key"), WRONG)
def test_what_is_wrong_is_named(good: str, wrong: str, key: str) -> None:
    assert good in GOOD
    with pytest.raises(Refused, match=key) as refusal:
        parse_config(GOOD.replace(good, wrong).encode(), "/etc/godwit/godwit.toml")
    assert str(refusal.value).startswith("/etc/godwit/godwit.toml")


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(Refused, match="not TOML"):
        parse_config(b"\xff\xfe\x00", "test")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot read the configuration"):
        load_config(tmp_path / "none.toml")
    path = tmp_path / "godwit.toml"
    path.write_text(GOOD)
    assert load_config(path).server == "s1"


def test_a_server_that_is_no_candidate_has_no_manager() -> None:
    text = GOOD.replace('listen = "10.0.0.1:7000"\n', "").replace('database = "sqlite:////var/lib/godwit/catalog.db"', "")
    config = parse_config(text.encode(), "test")
    assert not config.is_candidate
    assert parse_config(GOOD.encode(), "test").is_candidate
    assert parse_config(dump_config(config), "test") == config
