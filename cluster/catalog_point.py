"""The catalog that a server has seen, and how far it had come: refuses one that is empty, foreign or older.

A catalog has an identity, drawn when its tables are made, and a generation, raised when an operator has restored it. Within a
generation its term and the beat of its office only grow. Each process that decides over data keeps the highest point that it has
seen in a file of its server (`CatalogMemory`); `judge` compares that with what a database or a manager shows.
"""

import logging
from enum import Enum
from pathlib import Path

import msgspec

from cluster.decoding import Decode, Int64, from_json
from cluster.durable import read_file, replace_file
from cluster.errors import Malformed, Refused, error_text

log = logging.getLogger(__name__)


class CatalogPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How far a catalog has come. Points of one catalog are ordered by generation, term and beat."""

    catalog: str
    generation: Int64
    term: Int64
    beat: Int64 = 0

    @property
    def progress(self) -> tuple[int, int, int]:
        return self.generation, self.term, self.beat

    def __str__(self) -> str:
        return f"catalog {self.catalog}, generation {self.generation}, term {self.term}, beat {self.beat}"


_decode: Decode[CatalogPoint] = from_json(CatalogPoint)


class Verdict(Enum):
    """What a catalog is to a server that remembers a point."""

    GOOD = "the same catalog, not older"
    FOREIGN = "another catalog"
    OLDER = "the same catalog, as it was before"


def judge(remembered: CatalogPoint | None, found: CatalogPoint) -> Verdict:
    """Whether *found* may be worked with by who remembers a point; who remembers none takes any."""
    if remembered is None:
        return Verdict.GOOD
    if found.catalog != remembered.catalog:
        return Verdict.FOREIGN
    return Verdict.OLDER if found.progress < remembered.progress else Verdict.GOOD


def later(one: CatalogPoint | None, other: CatalogPoint | None) -> CatalogPoint | None:
    """The point that has come further, of one catalog."""
    if one is None or other is None:
        return one or other
    return max(one, other, key=lambda point: point.progress)


def refusal(remembered: CatalogPoint, found: CatalogPoint, whose: str) -> Refused | None:
    """The error for a catalog that must not be worked with, which says what was found and how to go on; None for a good one.

    *whose*: who remembers, for the message.
    """
    verdict = judge(remembered, found)
    if verdict is Verdict.GOOD:
        return None
    if verdict is Verdict.FOREIGN:
        return Refused(
            f"the database holds another network's catalog ({found}), and {whose} has worked with {remembered}. Nothing was "
            "changed. Mend manager.database in the configuration, or bring the right catalog back: godwit db restore FILE"
        )
    return Refused(
        f"the catalog is older than what {whose} has seen: it is {found}, and was {remembered}. Nothing was changed. Bring a "
        "newer one back (godwit db restore FILE), or, if there is none, go on with this one: godwit db accept-rollback"
    )


class CatalogMemory:
    """The highest point that one process of a server has seen, in a file that is replaced as a whole and synced. Blocks."""

    def __init__(self, state: str | Path, role: str) -> None:
        self.path = Path(state) / f"catalog-{role}.json"
        self.point: CatalogPoint | None = None
        self._written: CatalogPoint | None = None

    def load(self) -> CatalogPoint | None:
        """What was remembered last; None for a server that has seen no catalog. Raises `Refused` for a file that is damaged."""
        try:
            self.point = self._written = _decode(read_file(self.path))
        except (FileNotFoundError, NotADirectoryError):
            self.point = self._written = None
        except (OSError, Malformed) as error:
            why = error_text(error, with_file=False)
            raise Refused(
                f"{self.path} cannot be read ({why}): it says which catalog this server has worked with. If the file is damaged, "
                "compare godwit manager show of the other servers, then remove it"
            ) from error
        return self.point

    def check(self, found: CatalogPoint, whose: str) -> None:
        """Takes note of a point, in memory; raises `Refused` for a catalog that must not be worked with."""
        if self.point is not None and (error := refusal(self.point, found, whose)) is not None:
            raise error
        self.point = found

    def save(self, point: CatalogPoint | None) -> None:
        """Makes a point durable if it is news; the catalog must have it durably itself. A disk that refuses it is logged."""
        if point is None or point == self._written:
            return
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace_file(self.path, msgspec.json.encode(point))
        except OSError as error:
            log.warning("cannot remember the catalog's point in %s: %s", self.path, error_text(error, with_file=False))
        else:
            self._written = point


def remembered(state: str | Path) -> CatalogPoint | None:
    """The highest point that any process of the server with this state directory has seen; raises `Refused` for damaged files."""
    manager, agent = (CatalogMemory(state, role).load() for role in ("manager", "agent"))
    return later(manager, agent)
