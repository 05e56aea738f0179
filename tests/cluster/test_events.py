"""Kinds of events: each is declared once, can be said, and is in the document."""

import re
from pathlib import Path

import msgspec
import pytest

from cluster.events import GROUPS, KINDS, EventKind, Severity, sentence, table
from cluster.messages import EventRow

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/events.md"
ROW = EventRow(7, 1, 1, 1, "info", "office-taken", "s2", 0, {"term": 4, "before": "s1"})


def said(kind: str, count: int = 1, volume: int = 0, **fields: int | str) -> str:
    return sentence(msgspec.structs.replace(ROW, kind=kind, count=count, volume=volume, fields=fields))


def test_every_kind_has_a_row_that_fits_its_columns() -> None:
    assert list(KINDS) == list(EventKind)
    assert max(map(len, EventKind)) <= 24
    assert max(map(len, Severity)) <= 8
    assert {kind.partition("-")[0] for kind in EventKind} == set(GROUPS)
    assert not set(GROUPS) & set(EventKind)


def test_the_document_has_the_table() -> None:
    assert table() in DOCUMENT.read_text(), table()


@pytest.mark.parametrize("kind", EventKind)
def test_every_sentence_is_one_without_a_full_stop(kind: EventKind) -> None:
    text = KINDS[kind].sentence
    assert re.fullmatch(r"[^.]+", text), text
    names = re.findall(r"\{(\w+)", text)
    filled = said(kind, 3, 2, **{name: "x" for name in names if name not in ("server", "volume", "count")})
    assert not re.search(r"[?{}\[\]|]", filled), filled
    assert not KINDS[kind].help.endswith(".")


def test_what_is_empty_is_left_out() -> None:
    assert sentence(ROW) == "s2 takes the manager's office, term 4: s1 had not given it up"
    assert said("office-taken", term=4, before="") == "s2 takes the manager's office, term 4"
    assert said("migration-started", migration=3, source="s1", target="") == "migration 3 begins: from s1"


def test_numbers_have_their_nouns() -> None:
    assert said("files-at-risk", 1) == "1 file has fewer copies than the policy wants"
    assert said("files-at-risk", 12) == "12 files have fewer copies than the policy wants"


def test_what_others_have_written_does_not_command_the_terminal_or_the_sentence() -> None:
    assert said("server-problem", problem="\x1b[31m{server} [x]\n") == r"s2: \x1b[31m{server} [x]\n"


def test_a_kind_of_a_later_release_is_shown_as_it_is() -> None:
    assert said("server-dances", volume=2, with_="s3") == "server-dances: count 1, server s2, volume 2, with_ s3"
