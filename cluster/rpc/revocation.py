"""Who is not believed any more: managers tell it to every process, which keeps it for its next start."""

import logging
from collections.abc import Mapping

import trio

from cluster.errors import Refused, error_text
from cluster.faults import faults
from cluster.trust.credentials import Credentials
from cluster.trust.identity import merged

log = logging.getLogger(__name__)


async def heed(credentials: Credentials, revoked: Mapping[str, int]) -> None:
    """Believes nobody any more of an epoch below these; connections to them are closed at once.

    Nothing that was void becomes good again: a manager may have an older catalog.
    """
    known = credentials.revoked
    void = merged(known, revoked)
    if void != known:
        credentials.revoke(void)
        log.info("certificates that are void: %s", ", ".join(f"{name} before epoch {void[name]}" for name in sorted(void)))
        await keep(credentials, void)


async def keep(credentials: Credentials, revoked: Mapping[str, int]) -> None:
    """Has the server's processes find it when they start. A file that cannot be written is logged, nothing more."""
    try:
        await trio.to_thread.run_sync(credentials.folder.add_revoked, dict(revoked))
    except (OSError, Refused) as error:
        # People who may read their certificate cannot write here; the manager tells each process anyway.
        why = f"cannot keep which certificates are void: {error_text(error)}"
        faults.note(log, "void certificates not kept", why, level=logging.INFO)
