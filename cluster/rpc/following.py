"""Which authorities are believed: managers tell it to every process, which writes it down for all of its server."""

import logging

import trio

from cluster.errors import Refused, error_text
from cluster.faults import faults
from cluster.trust.believed import revision_of
from cluster.trust.credentials import Credentials

log = logging.getLogger(__name__)


async def follow(credentials: Credentials, text: bytes) -> None:
    """Believes the authorities of this list, and no others, unless a newer one is known. A file that cannot be written is
    logged, nothing more: people who may read their certificate cannot write here, and their server's agent does."""
    if not text or revision_of(text) <= credentials.revision:
        return
    try:
        await trio.to_thread.run_sync(credentials.folder.write_authorities, text)
    except (OSError, Refused) as error:
        why = f"cannot keep which authorities are believed: {error_text(error)}"
        faults.note(log, "authorities not kept", why, level=logging.INFO)
        return
    credentials.refresh()
