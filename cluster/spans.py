"""Ranges of bytes that one owner has locked: setting, ending and comparing them as POSIX says.

A list of spans is sorted, and no two of them overlap or touch each other with the same kind: `normal`. All functions take and
give such lists, and change nothing.
"""

from collections.abc import Iterable, Iterator

from cluster.messages import LockSpan


def normal(spans: Iterable[LockSpan]) -> list[LockSpan]:
    """Spans that do not overlap, sorted, and neighbours of one kind made one."""
    result: list[LockSpan] = []
    for span in sorted(spans, key=lambda one: one.start):
        last = result[-1] if result else None
        if last is not None and last.write == span.write and last.end + 1 == span.start:
            result[-1] = LockSpan(last.start, span.end, span.write)
        else:
            result.append(span)
    return result


def without(spans: list[LockSpan], start: int, end: int) -> list[LockSpan]:
    """What is left when everything from *start* to *end* is unlocked."""
    result: list[LockSpan] = []
    for span in spans:
        if span.end < start or span.start > end:
            result.append(span)
            continue
        if span.start < start:
            result.append(LockSpan(span.start, start - 1, span.write))
        if span.end > end:
            result.append(LockSpan(end + 1, span.end, span.write))
    return result


def with_span(spans: list[LockSpan], new: LockSpan) -> list[LockSpan]:
    """*new* in the place of whatever was locked of its range."""
    return normal([*without(spans, new.start, new.end), new])


def within(spans: list[LockSpan], start: int, end: int) -> list[LockSpan]:
    """The parts that lie between *start* and *end*."""
    return [
        LockSpan(max(span.start, start), min(span.end, end), span.write)
        for span in spans
        if span.end >= start and span.start <= end
    ]


def common(spans: list[LockSpan], others: list[LockSpan]) -> list[LockSpan]:
    """What both have locked; for writing only where both have it so."""
    return normal(_common(spans, others))


def _common(spans: list[LockSpan], others: list[LockSpan]) -> Iterator[LockSpan]:
    first = second = 0
    while first < len(spans) and second < len(others):
        one, other = spans[first], others[second]
        start, end = max(one.start, other.start), min(one.end, other.end)
        if start <= end:
            yield LockSpan(start, end, one.write and other.write)
        if one.end < other.end:
            first += 1
        else:
            second += 1


def covers(spans: list[LockSpan], wanted: LockSpan) -> bool:
    """Whether all of *wanted* is locked, and for writing if it is to be."""
    at = wanted.start
    for span in within(spans, wanted.start, wanted.end):
        if span.start != at or (wanted.write and not span.write):
            return False
        at = span.end + 1
    return at > wanted.end


def conflict(spans: list[LockSpan], wanted: LockSpan) -> LockSpan | None:
    """The first of another owner's spans that excludes *wanted*."""
    for span in spans:
        if excludes(span, wanted):
            return span
    return None


def excludes(one: LockSpan, other: LockSpan) -> bool:
    """Whether two owners cannot have both."""
    return (one.write or other.write) and one.start <= other.end and other.start <= one.end
