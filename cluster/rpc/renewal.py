"""Each process has its certificate renewed by the manager, for a new key: when two thirds of its life are over, and when another
authority signs. Each certificate is shown to the manager once, so that it knows who has followed.
"""

import logging
import time
from collections.abc import Awaitable, Callable

import trio

from cluster.errors import GodwitError, Refused, error_text
from cluster.faults import faults
from cluster.messages import Certified, Done, RenewCertificate, ShowCertificate
from cluster.rpc.connection import ask_once
from cluster.trust.authority import certified, new_key, own_certificate, request_for
from cluster.trust.credentials import Credentials
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role

log = logging.getLogger(__name__)

LOOK_S = 2.0  # between looks at the files and the clock, which may have been set
RETRY_PART = 30  # of the life of a certificate: after so much of it another attempt is made
RETRY_MAX_S = 60.0
CERTIFY_S = 15.0  # for the manager to sign
LATER_PART = 12  # of the life of a certificate: after so much of it an agent does what its process has not done
LATER_MAX_S = 60.0

Ask = Callable[[RenewCertificate], Awaitable[Certified]]
Show = Callable[[ShowCertificate], Awaitable[Done]]


async def renewal_loop(credentials: Credentials, ask: Ask, show: Show) -> None:
    """Renews and shows for ever. *ask* has the manager sign for this very process; *show* shows it over a new connection."""
    upkeep = Upkeep(credentials, ask, show)
    while True:
        await trio.sleep(await upkeep.look())


async def stand_in_loop(folder: TrustFolder, role: Role, manager: Callable[[], str]) -> None:
    """As `renewal_loop`, by the agent: for commands, which nobody may type for a year, and for a mount that does not run.

    For that it is later than it would be itself, and only does what is still to be done then. *manager*: where it is now.
    """
    upkeep: Upkeep | None = None
    while True:
        left_s = LOOK_S
        # It may come later: by `rejoin`, for one.
        if not folder.credential(role).exists():
            upkeep = None
        elif upkeep is None:
            upkeep = _stand_in(folder, role, manager)
        if upkeep is not None:
            left_s = await upkeep.look()
        await trio.sleep(left_s)


def _stand_in(folder: TrustFolder, role: Role, manager: Callable[[], str]) -> "Upkeep | None":
    try:
        credentials = Credentials(folder, role)
    except Refused as error:
        why = f"does not renew the certificate of the {role}: {error}"
        faults.note(log, f"no certificate of a {role}", why, level=logging.INFO)
        return None

    async def ask(request: RenewCertificate) -> Certified:
        return await ask_once(manager(), request, credentials, timeout_s=CERTIFY_S)

    async def show(request: ShowCertificate) -> Done:
        return await ask_once(manager(), request, credentials, timeout_s=CERTIFY_S)

    return Upkeep(credentials, ask, show, later=role is not Role.ADMIN)


class Upkeep:
    """Keeps one certificate renewed and shown. *later*: its own process is given the time to do it first."""

    def __init__(self, credentials: Credentials, ask: Ask, show: Show, *, later: bool = False) -> None:
        self._credentials = credentials
        self._ask = ask
        self._show = show
        self._later = later
        self._shown = 0  # the generation of the credentials that was shown
        self._due: tuple[int, bool] = (0, False)  # the generation of which something is to be done, and whether it is to renew
        self._due_s = trio.current_time()  # since when that is so
        # Not at once: when a whole network starts, everybody is looking for the manager.
        self._show_again_s = self._due_s + LOOK_S
        self._show_retry_s = LOOK_S
        self._renew_again_s = self._due_s

    async def look(self) -> float:
        """Does what is due, and returns for how long nothing is. What fails is logged and done again later."""
        mine = self._credentials
        mine.refresh()
        left_s = mine.renewed_from_s - time.time()
        if left_s <= 0 and self._is_time_for(renewal=True):
            await self._renew()
        elif self._shown != mine.generation and left_s > 0 and self._is_time_for(renewal=False):
            await self._show_it()
        return min(LOOK_S, left_s if left_s > 0 else self._retry_s)

    @property
    def _retry_s(self) -> float:
        mine = self._credentials
        return min((mine.ends_s - mine.issued_s) / RETRY_PART, RETRY_MAX_S)

    def _is_time_for(self, *, renewal: bool) -> bool:
        now, mine = trio.current_time(), self._credentials
        if self._due != (mine.generation, renewal):
            self._due, self._due_s = (mine.generation, renewal), now
        wait_s = min((mine.ends_s - mine.issued_s) / LATER_PART, LATER_MAX_S) if self._later else 0.0
        return now >= max(self._due_s + wait_s, self._renew_again_s if renewal else self._show_again_s)

    async def _renew(self) -> None:
        mine = self._credentials
        try:
            await renew(mine, self._ask)
            if mine.is_superseded:
                raise Refused("the manager has signed with another authority than it says")
        except (GodwitError, OSError) as error:
            faults.note(log, "certificate not renewed", f"the certificate of {mine.identity} is not renewed: {error_text(error)}")
            # One that is only superseded is good for long, but others wait for it.
            self._renew_again_s = trio.current_time() + (LOOK_S if mine.is_superseded else self._retry_s)
            return
        await self._show_it()

    async def _show_it(self) -> None:
        mine = self._credentials
        # Before the wait: what is loaded meanwhile is shown next.
        generation = mine.generation
        try:
            await self._show(ShowCertificate(mine.revision))
        except GodwitError as error:
            why = f"the certificate of {mine.identity} was not shown to the manager: {error}"
            faults.note(log, "certificate not shown", why, level=logging.INFO)
            self._show_again_s = trio.current_time() + self._show_retry_s
            self._show_retry_s = min(2 * self._show_retry_s, RETRY_MAX_S)
            return
        self._shown, self._show_retry_s = generation, LOOK_S


async def renew(credentials: Credentials, ask: Ask) -> None:
    """Gets a certificate for a new key, and uses it from now on. Raises `GodwitError` or `OSError`; then all is as it was."""
    identity, folder = credentials.identity, credentials.folder
    key = new_key()
    answer = await ask(RenewCertificate(request_for(key)))
    certificate = own_certificate(answer.certificate)
    if certified(certificate) != identity or certificate.public_key() != key.public_key():
        raise Refused(f"the manager has answered with a certificate of {certified(certificate)}")

    def write() -> None:
        # First: what the certificate is signed by is believed before it is shown.
        folder.write_authorities(answer.authorities)
        folder.write_credential(credentials.role, key, answer.certificate)

    await trio.to_thread.run_sync(write)
    credentials.reload()
    until = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(credentials.ends_s))
    log.info("has a new certificate of %s, until %s UTC", identity, until)
