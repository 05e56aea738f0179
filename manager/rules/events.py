"""Rules for what has no transaction of its own: when it is told that files are at risk, volumes full, or that it is over. Pure.

What was told last is in the catalog, so that another manager tells nothing twice.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cluster.events import EventKind
from manager.rules.placement import Place, has_room, reserve_bytes

RISK_S = 60.0  # a copy that is made sooner is no risk, and when nothing has waited for so long the risk is over
SOON_S = 10.0  # what waits longer is not on its way
TEN_TIMES = 10  # as many files at risk as were told: it is told again


@dataclass(frozen=True)
class Told:
    """What the newest events say."""

    at_risk: int = 0  # files
    damaged: bool = False
    full: frozenset[int] = frozenset()  # volumes
    catalog_fails: bool = False


@dataclass(frozen=True)
class View:
    """How it is now."""

    at_risk: int = 0  # files whose copies have waited for `RISK_S`
    is_safe: bool = True  # nothing has waited for `SOON_S`, for `RISK_S`
    damaged: int = 0  # replicas
    places: Mapping[int, Place] = field(default_factory=dict)  # volumes
    catalog_fails: bool = False


@dataclass(frozen=True)
class Change:
    """Something to be told."""

    kind: EventKind
    volume: int = 0
    count: int = 1


def changes(told: Told, view: View) -> list[Change]:
    """What is to be told."""
    found = [*_of_volumes(told, view.places.values())]
    if view.at_risk and (not told.at_risk or view.at_risk >= TEN_TIMES * told.at_risk):
        found.append(Change(EventKind.FILES_AT_RISK, count=view.at_risk))
    if told.at_risk and view.is_safe and not view.at_risk:
        found.append(Change(EventKind.FILES_SAFE))
    if told.damaged and not view.damaged:
        found.append(Change(EventKind.DAMAGE_MENDED))
    if view.catalog_fails != told.catalog_fails:
        found.append(Change(EventKind.CATALOG_FAULT if view.catalog_fails else EventKind.CATALOG_BACK))
    return found


def _of_volumes(told: Told, places: Iterable[Place]) -> Iterable[Change]:
    for place in places:
        # Of one that takes nothing for another reason it does not matter.
        if not place.up or not place.accepts:
            continue
        if place.volume not in told.full and not has_room(place, 0):
            yield Change(EventKind.VOLUME_FULL, place.volume)
        # Not at the same number: a volume that is filled and emptied around it would be told again and again.
        if place.volume in told.full and place.free_bytes >= 2 * reserve_bytes(place):
            yield Change(EventKind.VOLUME_ROOM, place.volume)
