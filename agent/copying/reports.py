"""Brings reports of attempts to the manager, many in one request, and keeps them until it has taken them."""

import logging
from collections.abc import Sequence

import trio

from cluster.errors import GodwitError, Unavailable
from cluster.faults import faults
from cluster.messages import ReportTasks, TaskReport
from cluster.rpc.session import ManagerSession

log = logging.getLogger(__name__)

GATHER_S = 0.1  # that a report may be late, for requests of many
BATCH = 256  # reports in one request
MANAGER_TIMEOUT_S = 15.0  # for one attempt to deliver; there is no limit to their number
RETRY_S = 0.5  # between attempts while no manager is in office


class Reporter:
    """`deliver` returns when the manager has the report; the number of reports is bounded by who calls it."""

    def __init__(self, session: ManagerSession) -> None:
        self._session = session
        # not yet sent; with the last of a call the event that is waited for
        self._waiting: list[tuple[TaskReport, trio.Event | None]] = []
        self._first = trio.Event()  # there is something to send; made anew when all was taken
        self._full = trio.Event()  # no use in gathering any longer

    async def deliver(self, reports: Sequence[TaskReport], at_most: int) -> None:
        """*at_most* reports can be waiting at the moment: when all have come there is nothing to gather."""
        if not reports:
            return
        delivered = trio.Event()
        # Sent in their order: who waits for the last has waited for all.
        self._waiting += [(report, None) for report in reports[:-1]]
        self._waiting.append((reports[-1], delivered))
        self._first.set()
        # With one task held there is nobody to wait for: a lone copy is not slowed down by GATHER_S.
        if len(self._waiting) >= min(BATCH, at_most):
            self._full.set()
        await delivered.wait()

    async def run(self) -> None:
        """Sends batches until cancelled."""
        while True:
            await self._first.wait()
            with trio.move_on_after(GATHER_S):
                await self._full.wait()
            # In one step with the events below: a report that comes while we send finds them as they must be.
            batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
            if not self._waiting:
                self._first = trio.Event()
            if len(self._waiting) < BATCH:
                self._full = trio.Event()
            await self._send([report for report, _ in batch])
            # Also for those that the manager refused: who waits lets go of the claim, which runs out.
            for _, delivered in batch:
                if delivered is not None:
                    delivered.set()

    async def _send(self, reports: list[TaskReport]) -> None:
        while True:
            try:
                await self._session.call(ReportTasks(reports), timeout_s=MANAGER_TIMEOUT_S)
                return
            except Unavailable as error:
                log.warning("%d reports wait for the manager: %s", len(reports), error)
                await trio.sleep(RETRY_S)
            except GodwitError as error:
                # Their claims run out and the tasks are tried again: the copies are there then and are confirmed.
                log.error("the manager did not take %d reports: %s", len(reports), error)
                return
            except Exception as error:
                faults.unexpected(log, f"with {len(reports)} reports", error)
                return
