"""`ListEvents`: what has happened."""

import errno
from functools import partial

from cluster.errors import refused
from cluster.events import Severity
from cluster.messages import Events, ListEvents
from manager.catalog.events import read_events
from manager.memory.sessions import Session
from manager.rules.limits import check_count
from manager.term import Term

LIST_MAX = 10_000
NAME_MAX = 63  # characters of a server or a kind


async def list_events(term: Term, _session: Session, request: ListEvents) -> Events:
    """The newest events, or the next ones after a number."""
    if request.severity and request.severity not in set(Severity):
        raise refused(errno.EINVAL, f"a severity is one of: {', '.join(Severity)}")
    for text in (request.server, request.kind):
        check_count(len(text), NAME_MAX, "characters")
        if "\0" in text:
            raise refused(errno.EINVAL, "no such name")
    ask = partial(
        read_events,
        after=request.after,
        since_ns=request.since_ns,
        server=request.server,
        kind=request.kind,
        severity=request.severity,
        limit=max(1, min(request.limit, LIST_MAX)),
    )
    found, newest = await term.store.read_slowly(ask)
    return Events(found, newest)
