"""A candidate's own certificate: who renews it, which others are void, and whom this server believes.

Other processes learn that in their sessions with the manager. A candidate has none: it asks whoever is in office, itself
perhaps, and reads the catalog.
"""

import logging
from collections.abc import Callable

import trio

from cluster.config import ServerConfig
from cluster.errors import Refused, error_text
from cluster.faults import faults
from cluster.messages import Certified, Done, RenewCertificate, ShowCertificate
from cluster.rpc.connection import ask_once
from cluster.rpc.renewal import renewal_loop
from cluster.rpc.revocation import heed, keep
from cluster.trust.credentials import Credentials
from cluster.trust.folder import TrustFolder
from cluster.trust.sealing import unseal
from manager.changes.authorities import Believed
from manager.requests.certificates import certify, write_shown
from manager.term import Term

log = logging.getLogger(__name__)

CERTIFY_S = 5.0  # for the manager to sign


class OwnCertificate:
    """Keeps it, and what belongs to it, as the network has it."""

    def __init__(
        self, config: ServerConfig, credentials: Credentials, serving: Callable[[], Term | None], holder: Callable[[], str]
    ) -> None:
        """*serving*: the term in which the candidate answers. *holder*: the address of who is in office; raises `Unavailable`."""
        self._config = config  # of this server
        self._credentials = credentials  # of its manager
        self._serving = serving
        self._holder = holder
        self._revoked: dict[str, int] = {}  # which certificates are void, as it was looked up last
        self._signs = 0  # the authority of which this server has the key; 0: not looked up yet

    async def renewal_loop(self) -> None:
        """Has it renewed before it ends, and shows it, for ever."""
        await renewal_loop(self._credentials, self._certified, self._shown)

    async def _certified(self, request: RenewCertificate) -> Certified:
        """Who is in office signs for itself."""
        if (term := self._serving()) is not None:
            return await certify(term, self._credentials.identity, request.request)
        return await ask_once(self._holder(), request, self._credentials, timeout_s=CERTIFY_S)

    async def _shown(self, request: ShowCertificate) -> Done:
        """Who is in office shows itself nothing, and knows."""
        mine = self._credentials
        if (term := self._serving()) is None:
            return await ask_once(self._holder(), request, mine, timeout_s=CERTIFY_S)
        await write_shown(term, mine.identity, mine.authority, mine.ends_s, request.revision)
        return Done()

    async def heed(self, revoked: dict[str, int]) -> None:
        """Believes no void certificate: *revoked* has the least epoch that is believed of servers."""
        if revoked != self._revoked:
            self._revoked = revoked
            await heed(self._credentials, revoked)
            # The manager has heeded it in the transaction: what is left is to keep it.
            await keep(self._credentials, revoked)

    async def follow(self, believed: Believed) -> None:
        """Has this server's files say what the catalog says of authorities: it may have to sign tomorrow."""
        known = self._credentials.revision
        # Older: the files say what is true (`manager.changes.authorities.reconcile`).
        if not believed.rows or believed.revision < known:
            return
        signing = believed.signing.number
        # Another process of this server may have written the list, but not the key.
        if believed.revision == known and signing == self._signs:
            return
        try:
            await trio.to_thread.run_sync(keep_authorities, self._config, believed)
        except (OSError, Refused) as error:
            faults.note(log, "authorities not kept", f"cannot take over the authorities of the catalog: {error_text(error)}")
            return
        self._signs = signing
        self._credentials.refresh()


def keep_authorities(config: ServerConfig, believed: Believed) -> None:
    """Writes what a candidate has to have of them. Reads and writes files: for a thread. Raises `OSError` or `Refused`."""
    folder, row = TrustFolder(config.trust), believed.signing
    if folder.read_authority().pem != row.certificate:
        # First: the list says by its revision that this was done.
        folder.write_authority(unseal(row.sealed, row.certificate, row.number, folder.read_master(), config.cluster))
    folder.write_authorities(believed.text)
