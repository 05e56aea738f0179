"""A mount with one deliberate defect, to show that the checker finds it: the real program, with one collaborator replaced.

    python -m tests.coherence.broken VARIANT --config FILE

The defects are made where the mount meets the manager's messages and the kernel, so that they depend on nothing inside of it.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio

import fusefs.main
import fusefs.mount
from cli.commands.run import run_part
from cluster.errors import GodwitError
from cluster.messages import Grant, Recall, RecallDone, Request
from cluster.rpc.session import ManagerSession

R = TypeVar("R")

OBEY_LATE_S = 0.5
SLOW_S = 1.5
ANSWER_TIMEOUT_S = 5.0
NOTIFY_INC_EPOCH = 8
NOTIFICATION_BYTES = 16


def recall_not_awaited() -> None:
    """A recall is answered when it comes, and obeyed later: whoever changes something does not wait for the caches."""

    class Hasty(ManagerSession):
        def __init__(self, **settings: Any) -> None:
            obey = settings.pop("on_recall", None)
            super().__init__(**settings, on_recall=obey and partial(self._answer, obey))

        def _answer(self, obey: Callable[[Recall], None], recall: Recall) -> None:
            trio.lowlevel.spawn_system_task(self._answer_first, obey, recall)

        async def _answer_first(self, obey: Callable[[Recall], None], recall: Recall) -> None:
            try:
                await self.call(RecallDone([recall.number]), timeout_s=ANSWER_TIMEOUT_S)
            except GodwitError:
                return  # the manager waits this one out
            await trio.sleep(OBEY_LATE_S)
            obey(recall)

    put_in_place(Hasty)


def kernel_not_invalidated() -> None:
    """A recall takes everything from the mount, but nothing from the kernel."""
    import pyfuse3

    write = os.write

    def write_but_no_epoch(descriptor: int, data: bytes) -> int:
        is_epoch = len(data) == NOTIFICATION_BYTES and int.from_bytes(data[4:8], sys.byteorder) == NOTIFY_INC_EPOCH
        return len(data) if is_epoch else write(descriptor, data)

    def forget_nothing(*_what: object, **_how: object) -> None:
        """In the place of both invalidations."""

    os.write = write_but_no_epoch  # type: ignore[assignment]
    pyfuse3.invalidate_inode = forget_nothing
    pyfuse3.invalidate_entry = forget_nothing
    pyfuse3.invalidate_entry_async = forget_nothing


def slow() -> None:
    """No defect: answers that grant come late, while there is a file *CONFIG*.slow. A right mount loses only time by that."""
    put_in_place(_delayed(late=False))


def deadline_after_the_reply() -> None:
    """The access time is counted from when the (slow) answer comes, and not from before it was asked for."""
    put_in_place(_delayed(late=True))


def _delayed(*, late: bool) -> type[ManagerSession]:
    flag = slow_flag(Path(sys.argv[sys.argv.index("--config") + 1]))

    class Delayed(ManagerSession):
        async def call(self, request: Request[R], *, timeout_s: float) -> R:
            asked_s = trio.current_time()
            reply: Any = await super().call(request, timeout_s=timeout_s)
            grant: Grant | None = getattr(reply, "grant", None)
            if grant is None:
                return reply  # type: ignore[no-any-return]
            if flag.exists():
                await trio.sleep(SLOW_S)
            if late:
                longer_s = grant.access_s + trio.current_time() - asked_s
                reply = msgspec.structs.replace(reply, grant=msgspec.structs.replace(grant, access_s=longer_s))
            return reply  # type: ignore[no-any-return]

    return Delayed


def put_in_place(session: type[ManagerSession]) -> None:
    """The mount is put together with this class instead of its own."""
    assert "ManagerSession" in vars(fusefs.mount)
    vars(fusefs.mount)["ManagerSession"] = session


def slow_flag(config: Path) -> Path:
    """While it exists, the mount with this configuration is slow."""
    return config.with_suffix(".slow")


VARIANTS: dict[str, Callable[[], None]] = {
    "recall-not-awaited": recall_not_awaited,
    "kernel-not-invalidated": kernel_not_invalidated,
    "deadline-after-the-reply": deadline_after_the_reply,
    "slow": slow,
}

if __name__ == "__main__":
    VARIANTS[sys.argv[1]]()
    run_part("mount", fusefs.main.run_mount, Path(sys.argv[sys.argv.index("--config") + 1]), "INFO")
