"""Rules for the condition and standing of a volume, from what agents report about its disk. Pure.

A disk that is away, or silent, may be back in a moment, as a server may: it stops counting after `down_s`. One that gives errors,
or takes no writes, is left soon. A disk that was out counts again when it was good for a while, so that one that comes and goes
does not make files move.
"""

from dataclasses import dataclass

from cluster.membership import VolumeCondition, VolumeStanding
from manager.rules.liveness import Delays

_LEFT_SOON = frozenset({VolumeCondition.READ_ONLY, VolumeCondition.FAILING})  # after `suspect_s`; all others after `down_s`


@dataclass(frozen=True)
class Health:
    """How a disk is, and since when it is good, or not (monotonic seconds)."""

    condition: VolumeCondition
    since_s: float

    @property
    def is_good(self) -> bool:
        return self.condition is VolumeCondition.GOOD


def first_health(standing: VolumeStanding, started: float) -> Health:
    """What a manager begins with: what has been out must be reported first."""
    condition = VolumeCondition.GOOD if standing is VolumeStanding.IN else VolumeCondition.AWAY
    return Health(condition, started)


def after(health: Health, condition: VolumeCondition, now: float) -> Health:
    """After another report."""
    if condition is health.condition:
        return health
    turned = health.is_good != (condition is VolumeCondition.GOOD)
    return Health(condition, now if turned else health.since_s)


def standing_now(standing: VolumeStanding, health: Health, now: float, delays: Delays) -> VolumeStanding:
    """The standing that a volume has by now, if its server is heard."""
    lasted_s = now - health.since_s
    if health.is_good:
        return standing if lasted_s < delays.suspect_s else VolumeStanding.IN
    if standing is VolumeStanding.LOST:
        return standing
    delay_s = delays.suspect_s if health.condition in _LEFT_SOON else delays.down_s
    return standing if lasted_s < delay_s else VolumeStanding.OUT


def condition_of(reported: str) -> VolumeCondition:
    """The condition of this name; one that is not known, of a later release, takes nothing new."""
    try:
        return VolumeCondition(reported)
    except ValueError:
        return VolumeCondition.FAILING
