"""When the catalog is backed up. Pure; in seconds."""

FIRST_S = 60.0  # after the beginning of a term, at most
LOOK_MAX_S = 30.0  # between looks at how old the newest backup is


def is_due(age_s: float | None, every_s: float) -> bool:
    """Whether one is to be made; *age_s*: of the newest, if there is one. One from the future says that the clock was set."""
    return age_s is None or not 0 <= age_s < every_s


def look_s(every_s: float) -> float:
    """How long to wait between looks."""
    return min(LOOK_MAX_S, every_s / 4)
