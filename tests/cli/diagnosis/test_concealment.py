"""Names and secrets go, what says something of Godwit stays."""

import itertools
import re
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.diagnosis.concealment import REMOVED, Concealer, own_words

DIGEST = re.compile(r"~[0-9a-f]{10}\b")
PLANTED = "Zwergpinguin"  # in no sentence of Godwit's


@pytest.fixture(scope="module")
def words() -> frozenset[str]:
    return own_words()


@pytest.fixture(scope="module")
def concealer(words: frozenset[str]) -> Concealer:
    return Concealer(
        b"key",
        words,
        kept=["s1", "s2", "db.example.org"],
        places=["/srv/godwit/vol1"],
        code=["/opt/godwit/lib"],
        mounts=["/mnt/shared"],
        secrets=["hunter2", "hunter2&more"],
    )


def shape(text: str) -> str:
    """The text with one sign for each digest."""
    return DIGEST.sub("~", text)


@pytest.mark.parametrize(
    ("told", "left"),
    [
        (
            "what this server alone had of inode 7 is kept as /a b/Zwergpinguin (2).txt",
            "what this server alone had of inode 7 is kept as /~/~",
        ),
        ("inode 7 on volume 3 is fenced: Operation not permitted", "inode 7 on volume 3 is fenced: Operation not permitted"),
        ("no answer of s2 at db.example.org:7401 within 10 s", "no answer of s2 at db.example.org:7401 within 10 s"),
        ("/mnt/shared/Zwergpinguin/plan: Permission denied", "/mnt/shared/~/~: Permission denied"),
        ("/srv/godwit/vol1/objects/0/7: Input/output error", "/srv/godwit/vol1/objects/0/7: Input/output error"),
        ("/srv/godwit/vol1/objects/Zwergpinguin: Input/output error", "/srv/godwit/vol1/objects/~: Input/output error"),
        ("/srv/godwit/vol10/Zwergpinguin: No such file or directory", "/~/~/~/~: No such file or directory"),
        (
            '  File "/opt/godwit/lib/trio/_core/_run.py", line 7, in run',
            '  File "/opt/godwit/lib/trio/_core/_run.py", line 7, in run',
        ),
        ("there is no server 's2' with volumes", "there is no server 's2' with volumes"),
        ("unknown policy 'volume' of b'volume'", "unknown policy '~' of b'~'"),
        ("the server's volume's disk", "the server's volume's disk"),
        ("2026-12-01T07:28:14.123 WARNING s1 agent: 3 tasks", "2026-12-01T07:28:14.123 WARNING s1 agent: 3 tasks"),
        ("postgresql+psycopg://godwit:hunter2@db.example.org/godwit", f"postgresql+psycopg://{REMOVED}@db.example.org/godwit"),
        ("password=hunter2&more hunter2", f"password={REMOVED} {REMOVED}"),
        ("token GW1.0a1b2c.d3e4f5 was used", f"token {REMOVED} was used"),
        ("Zwergpinguin", "~"),
    ],
)
def test_what_is_left_of_a_line(concealer: Concealer, told: str, left: str) -> None:
    assert shape(concealer.text(told)) == left


def test_what_is_equal_stays_equal(concealer: Concealer, words: frozenset[str]) -> None:
    text = concealer.text(f"{PLANTED} {PLANTED} other{PLANTED}")
    assert len(set(DIGEST.findall(text))) == 2
    assert concealer.path(f"/a/{PLANTED}").split("/")[2] == concealer.text(PLANTED)
    assert Concealer(b"another", words).text(PLANTED) != concealer.text(PLANTED)


def test_values_of_json(concealer: Concealer) -> None:
    value = {
        "server": "s1",
        "path": "/volume/copies",
        "paths": ["/srv/godwit/vol1", "/error"],
        "error": f"no room for {PLANTED}",
        PLANTED: 1,
        "counts": {"unsent": 3, "lost": None, "held_s": 1.5, "ok": True},
    }
    concealed = concealer.value(value)
    assert isinstance(concealed, dict)
    assert shape(str(concealed)) == str(
        {
            "server": "s1",
            "path": "/~/~",
            "paths": ["/srv/godwit/vol1", "/~"],
            "error": "no room for ~",
            "~": 1,
            "counts": {"unsent": 3, "lost": None, "held_s": 1.5, "ok": True},
        }
    )


NAMES = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=20)
AROUND = [
    ("is kept as ", ""),
    ("inode 7, ", ": Permission denied"),
    ("no room for '", "' on volume 3"),
    ('cannot read "', '", trying on'),
    ("\n", "\n"),
    ("(", ")"),
]


def lines_with(name: str) -> Iterator[str]:
    for (before, after), form in itertools.product(AROUND, (name, f"/{name}", f"/some/{name}/more", f"/mnt/shared/{name}")):
        yield before + form + after


@settings(max_examples=40)
@given(NAMES, NAMES)
def test_no_name_comes_through(concealer: Concealer, before: str, after: str) -> None:
    for line in lines_with(f"{before} {PLANTED}{after}"):
        assert PLANTED not in concealer.text(line)
        assert PLANTED not in str(concealer.value({"message": line, "path": line, line: line}))


def test_the_words_are_those_of_sentences(words: frozenset[str]) -> None:
    assert {"within", "fenced", "denied", "enospc", "sigterm", "valueerror", "passthrough"} <= words
    assert PLANTED.lower() not in words
    assert 1000 < len(words) < 30_000
