"""How fast numbers grow that only ever grow, and begin anew with each process. Pure, but for the clock that the caller gives."""

from collections import deque
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

WINDOW_S = 6.0  # numbers come once a second, and are asked for at other times: shorter ones would jump


class Rates(Generic[K]):
    """Rates of the last seconds, from what was counted at each look."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, Mapping[K, float]]] = deque()  # (monotonic, numbers), the oldest first

    def add(self, now: float, numbers: Mapping[K, float]) -> dict[K, float]:
        """Takes what is counted *now*, and gives what it is in a second. Of what was not there before nothing is known."""
        # A process that has begun anew counts from zero: what was before it says nothing about it.
        before = self._looks[-1][1] if self._looks else {}
        fallen = {key for key, number in numbers.items() if number < before.get(key, 0.0)}
        if fallen:
            self._looks = deque(
                (at, {key: number for key, number in known.items() if key not in fallen}) for at, known in self._looks
            )
        self._looks.append((now, dict(numbers)))
        while len(self._looks) > 2 and now - self._looks[1][0] >= WINDOW_S:
            self._looks.popleft()
        return {key: rate for key in numbers if (rate := self._rate(key)) is not None}

    def _rate(self, key: K) -> float | None:
        first = next((at, known[key]) for at, known in self._looks if key in known)
        last = self._looks[-1]
        seconds = last[0] - first[0]
        return (last[1][key] - first[1]) / seconds if seconds > 0 else None
