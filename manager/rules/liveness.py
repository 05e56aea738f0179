"""Rules from a server's reports, or their absence, to what follows. Pure: times in, events out.

Silence of `suspect_s` is noted and changes nothing about copies; silence of `down_s` starts healing. A server that is down has
returned when it was heard for `suspect_s` without a gap as long: one that comes and goes does not make files move.
"""

from dataclasses import dataclass, replace

from cluster.membership import Event, ServerState, Standing

TICK_S = 0.5  # how often the manager looks what time has brought


@dataclass(frozen=True)
class Delays:
    """After which silence a server is suspect, and down, in seconds."""

    suspect_s: float
    down_s: float


@dataclass(frozen=True)
class Hearing:
    """When a server was last heard, and since when without a gap. Monotonic seconds; `-inf`: not by this manager."""

    heard_s: float
    steady_s: float

    def heard(self, now: float, delays: Delays) -> "Hearing":
        """After another report; one that is older than the last changes nothing."""
        if now <= self.heard_s:
            return self
        if now - self.heard_s > delays.suspect_s:
            return Hearing(now, now)
        return replace(self, heard_s=now)


def first_hearing(standing: Standing, started: float) -> Hearing:
    """What a manager begins with: silence counts from its own start, and who was down must be heard first."""
    if standing.state is ServerState.DOWN:
        return Hearing(float("-inf"), float("-inf"))
    return Hearing(started, started)


def is_reachable(hearing: Hearing, now: float, delays: Delays) -> bool:
    """Whether the server's agent was heard just now."""
    return now - hearing.heard_s <= delays.suspect_s


def event_now(standing: Standing, hearing: Hearing, now: float, delays: Delays) -> Event | None:
    """What has happened to a server that belongs to the network; None while a return is not certain yet."""
    silent_s = now - hearing.heard_s
    if silent_s > delays.down_s:
        return Event.SILENT_TOO_LONG
    if silent_s > delays.suspect_s:
        return Event.SILENT
    if standing.state is ServerState.DOWN and now - hearing.steady_s < delays.suspect_s:
        return None
    return Event.HEARD
