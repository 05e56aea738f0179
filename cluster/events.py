"""What can happen in a network that people are told of: each kind once, how grave it is, and how it is said.

The catalog keeps what happened as a kind and fields; the sentence is made by whoever shows it, so that all releases of the past
are told in the words of today, and programs have the fields. In a sentence stand fields in braces; `{count:file has|files have}`
is a number with what it counts, and what is in brackets is left out if one of its fields is empty or missing.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from cluster.decoding import printable
from cluster.messages import EventRow


class Severity(StrEnum):
    """How much somebody has to care, the least first."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def or_worse(self) -> tuple["Severity", ...]:
        """This one and all that are worse."""
        ordered = tuple(Severity)
        return ordered[ordered.index(self) :]


class EventKind(StrEnum):
    """What happened. The first word is the group."""

    OFFICE_TAKEN = "office-taken"
    OFFICE_LEFT = "office-left"
    SERVER_JOINED = "server-joined"
    SERVER_READMITTED = "server-readmitted"
    SERVER_DOWN = "server-down"
    SERVER_BACK = "server-back"
    SERVER_DRAINING = "server-draining"
    SERVER_UNDRAINED = "server-undrained"
    SERVER_LOST = "server-lost"
    SERVER_LEFT = "server-left"
    SERVER_REVOKED = "server-revoked"
    SERVER_PROBLEM = "server-problem"
    VOLUME_ADDED = "volume-added"
    VOLUME_OUT = "volume-out"
    VOLUME_BACK = "volume-back"
    VOLUME_LOST = "volume-lost"
    VOLUME_REMOVED = "volume-removed"
    VOLUME_FULL = "volume-full"
    VOLUME_ROOM = "volume-room"
    FILES_AT_RISK = "files-at-risk"
    FILES_SAFE = "files-safe"
    DAMAGE_FOUND = "damage-found"
    DAMAGE_MENDED = "damage-mended"
    OBJECTS_SET_ASIDE = "objects-set-aside"
    RECORDS_LOST = "records-lost"
    CATALOG_FAULT = "catalog-fault"
    CATALOG_BACK = "catalog-back"
    CATALOG_BACKED_UP = "catalog-backed-up"
    CATALOG_NOT_BACKED_UP = "catalog-not-backed-up"
    MIGRATION_STARTED = "migration-started"
    MIGRATION_PAUSED = "migration-paused"
    MIGRATION_RESUMED = "migration-resumed"
    MIGRATION_DONE = "migration-done"
    MIGRATION_FAILED = "migration-failed"
    MIGRATION_CANCELLED = "migration-cancelled"
    AUTHORITY_INTRODUCED = "authority-introduced"
    AUTHORITY_SIGNS = "authority-signs"
    AUTHORITY_ALONE = "authority-alone"
    POLICY_CHANGED = "policy-changed"


class Kind(NamedTuple):
    """What is known of a kind."""

    severity: Severity
    help: str  # when there is such an event, for docs/events.md
    sentence: str


_I, _W, _E = Severity

KINDS: dict[EventKind, Kind] = {
    EventKind.OFFICE_TAKEN: Kind(
        _I,
        "a server takes the manager's office; `before` had it until then, if it had not given it up",
        "{server} takes the manager's office, term {term}[: {before} had not given it up]",
    ),
    EventKind.OFFICE_LEFT: Kind(
        _I, "a manager gives the office up: it ends, or was to step down", "{server} gives up the manager's office, term {term}"
    ),
    EventKind.SERVER_JOINED: Kind(_I, "a server introduces itself for the first time", "{server} has joined"),
    EventKind.SERVER_READMITTED: Kind(_I, "one that had left or was lost is taken back", "{server} is taken back"),
    EventKind.SERVER_DOWN: Kind(
        _E, "a server's agent was silent for `[manager] down_s`", "{server} is down: what is on it does not count any more"
    ),
    EventKind.SERVER_BACK: Kind(_I, "a server that was down is heard again", "{server} is back"),
    EventKind.SERVER_DRAINING: Kind(_I, "a server is to be emptied", "{server} is being drained"),
    EventKind.SERVER_UNDRAINED: Kind(_I, "that is taken back", "{server} is not drained any more"),
    EventKind.SERVER_LOST: Kind(
        _E, "somebody declares a server lost", "{server} was declared lost: its files fall back to what others have"
    ),
    EventKind.SERVER_LEFT: Kind(_I, "a server is removed", "{server} has left the network"),
    EventKind.SERVER_REVOKED: Kind(_W, "the certificates of a server are made void", "the certificates of {server} are void"),
    EventKind.SERVER_PROBLEM: Kind(
        _W,
        "a process of a server says what is wrong there, as in `godwit servers show` (journals of mounts that nobody took are "
        "among it): once a day for each `problem`",
        "{server}: {problem}",
    ),
    EventKind.VOLUME_ADDED: Kind(_I, "a volume is reported for the first time", "volume {volume} of {server} is new: {path}"),
    EventKind.VOLUME_OUT: Kind(
        _E,
        "a disk fails, takes no writes, does not answer or is away (`condition`), and what is on it stops counting",
        "volume {volume} of {server} does not count any more: its disk is {condition} ({path})",
    ),
    EventKind.VOLUME_BACK: Kind(_I, "it is good and counts again", "volume {volume} of {server} counts again"),
    EventKind.VOLUME_LOST: Kind(
        _E, "somebody declares a volume lost", "volume {volume} of {server} was declared lost: its files fall back"
    ),
    EventKind.VOLUME_REMOVED: Kind(_I, "a volume is forgotten", "volume {volume} of {server} was removed"),
    EventKind.VOLUME_FULL: Kind(
        _W, "no new copies have room on a volume", "volume {volume} of {server} is full ({path}): no new copies go there"
    ),
    EventKind.VOLUME_ROOM: Kind(
        _I, "twice as much is free again as is kept in reserve", "volume {volume} of {server} has room again"
    ),
    EventKind.FILES_AT_RISK: Kind(
        _W,
        "files (`count`) have had fewer copies than their policy wants for more than a minute; again if it is ten times as many",
        "{count:file has|files have} fewer copies than the policy wants",
    ),
    EventKind.FILES_SAFE: Kind(_I, "none has, any more", "all files have the copies that the policy wants"),
    EventKind.DAMAGE_FOUND: Kind(
        _E,
        "objects (`count`, of a volume within an hour) are not what the catalog says; `ino` is the first of them",
        "{count:object is|objects are} damaged on volume {volume} of {server}[; the first: inode {ino}: {fault}]",
    ),
    EventKind.DAMAGE_MENDED: Kind(_I, "no object is, any more", "nothing that should be current is damaged any more"),
    EventKind.OBJECTS_SET_ASIDE: Kind(
        _W,
        "objects (`count`) that the catalog does not know are moved to `unknown/`: see `godwit volumes unknown`",
        "{count:object|objects} that the catalog does not know were set aside on volume {volume} of {server}",
    ),
    EventKind.RECORDS_LOST: Kind(
        _E,
        "changes (`count`) that a mount had made by itself could not be applied as it made them",
        "{count:change|changes} of {server} could not be applied as made[; the first: {why}]",
    ),
    EventKind.CATALOG_FAULT: Kind(_E, "the disk of the catalog fails, or is full", "{fault}"),
    EventKind.CATALOG_BACK: Kind(_I, "it takes changes again", "the disk of the catalog takes changes again"),
    EventKind.CATALOG_BACKED_UP: Kind(
        _I, "the manager has backed the catalog up by itself", "{server} has backed the catalog up"
    ),
    EventKind.CATALOG_NOT_BACKED_UP: Kind(
        _W,
        "that failed (`problem`); told once a day, until it succeeds",
        "{server} could not back the catalog up: {problem}",
    ),
    EventKind.MIGRATION_STARTED: Kind(
        _I, "a migration or a drain begins", "migration {migration} begins: from {source}[ to {target}]"
    ),
    EventKind.MIGRATION_PAUSED: Kind(_I, "somebody pauses it", "migration {migration} is paused"),
    EventKind.MIGRATION_RESUMED: Kind(_I, "it goes on", "migration {migration} goes on"),
    EventKind.MIGRATION_DONE: Kind(_I, "everything has moved", "migration {migration} is done"),
    EventKind.MIGRATION_FAILED: Kind(
        _E, "some files could not be moved", "migration {migration} failed: some files could not be moved"
    ),
    EventKind.MIGRATION_CANCELLED: Kind(_I, "somebody cancels it", "migration {migration} is cancelled"),
    EventKind.AUTHORITY_INTRODUCED: Kind(
        _I, "a rotation of the certificate authority begins", "authority {authority} is made known: a rotation has begun"
    ),
    EventKind.AUTHORITY_SIGNS: Kind(_I, "all processes believe the new one", "authority {authority} signs from now on"),
    EventKind.AUTHORITY_ALONE: Kind(
        _I, "all have certificates of it: the rotation has ended", "only authority {authority} is believed from now on"
    ),
    EventKind.POLICY_CHANGED: Kind(
        _I, "somebody changes the policy of a directory", "the policy of {path} is now: {copies:copy|copies}, names {names}"
    ),
}

GROUPS = tuple(dict.fromkeys(kind.partition("-")[0] for kind in EventKind))


def sentence(row: EventRow) -> str:
    """What happened, in plain English and in one line that any terminal can show."""
    known = KINDS.get(row.kind)  # type: ignore[call-overload]
    given: dict[str, int | str] = {
        **row.fields,
        **{name: value for name, value in (("server", row.server), ("volume", row.volume), ("count", row.count)) if value},
    }
    if known is None:
        text = f"{row.kind}: " + ", ".join(f"{name} {value}" for name, value in sorted(given.items()))
    else:
        text = _filled(known.sentence, given)
    # Names and words of others are in it.
    return printable(text)


_FIELD = re.compile(r"\{(\w+)(?::([^|}]*)\|([^}]*))?\}")


def _filled(text: str, given: Mapping[str, int | str]) -> str:
    def optional(match: re.Match[str]) -> str:
        return match[1] if all(given.get(name) for name, _one, _many in _FIELD.findall(match[1])) else ""

    def value(match: re.Match[str]) -> str:
        found = given.get(match[1], "?")
        return f"{found} {match[2] if found == 1 else match[3]}" if match[2] is not None else str(found)

    # Brackets first: those in values mean themselves.
    return _FIELD.sub(value, re.sub(r"\[([^\]]*)\]", optional, text))


def table() -> str:
    """All kinds as a table in Markdown, for docs/events.md."""
    lines = ["| kind | severity | is when |", "|---|---|---|"]
    lines += [f"| `{kind}` | {known.severity} | {known.help} |" for kind, known in KINDS.items()]
    return "\n".join(lines) + "\n"
