"""What placement would have queued for a file."""

from typing import Any

from manager.rules.placement import Action, lay_out


def place(**question: Any) -> list[Action]:
    """The actions of the layout."""
    return list(lay_out(**question).actions)
