"""Which signals end a program's waiting, and what becomes of its request then."""

import errno
import signal
import threading

import pytest
import trio
import trio.testing

from cluster.errors import Refused
from cluster.rpc.waiters import check_wanted, current_waiter, while_wanted
from fusefs.caching.changes import note_change
from fusefs.kernel.interrupts import Interrupts, is_unanswered
from fusefs.kernel.signals import ENDING_S, OTHERS_S, Signals, ends_waiting, signals_of
from fusefs.kernel.stream import Whose

NEVER = 1e9


def bits(*signals: signal.Signals) -> int:
    return sum(1 << number - 1 for number in signals)


@pytest.mark.parametrize(
    ("signals", "after_s"),
    [
        pytest.param(Signals(bits(signal.SIGKILL), -1, 0, 0), 0.0, id="killed"),
        pytest.param(Signals(bits(signal.SIGTERM), 0, 0, 0), 0.0, id="ends it"),
        pytest.param(Signals(bits(signal.SIGSEGV), 0, 0, 0), 0.0, id="ends it with a core file"),
        pytest.param(Signals(bits(signal.SIGALRM), 0, 0, 0), 0.0, id="a timer that ends it"),
        pytest.param(Signals(bits(signal.SIGINT), 0, 0, bits(signal.SIGINT)), ENDING_S, id="wants it to end"),
        pytest.param(Signals(bits(signal.SIGALRM), 0, 0, bits(signal.SIGALRM)), OTHERS_S, id="a timer that it handles"),
        pytest.param(Signals(bits(signal.SIGCHLD), 0, 0, bits(signal.SIGCHLD)), OTHERS_S, id="a child's end that it handles"),
        pytest.param(Signals(bits(signal.SIGCHLD, signal.SIGTSTP), 0, 0, 0), NEVER, id="harmless"),
        pytest.param(Signals(bits(signal.SIGTERM), bits(signal.SIGTERM), 0, 0), NEVER, id="blocked"),
        pytest.param(Signals(bits(signal.SIGINT), 0, bits(signal.SIGINT), 0), NEVER, id="ignored"),
        pytest.param(Signals(0, 0, 0, 0), NEVER, id="none any more"),
        pytest.param(None, ENDING_S, id="of another PID namespace"),
    ],
)
def test_when_a_signal_ends_the_waiting(signals: Signals | None, after_s: float) -> None:
    for waited_s in (0.0, ENDING_S - 0.01, ENDING_S, OTHERS_S - 0.01, OTHERS_S, 1e6):
        assert ends_waiting(signals, waited_s) == (waited_s >= after_s), waited_s


def test_the_signals_of_a_thread_are_seen() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR2)
        reply = signals_of(threading.get_native_id())
        assert reply is not None
        assert reply.pending & reply.blocked & bits(signal.SIGUSR2)
        signal.sigwait([signal.SIGUSR2])
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert signals_of(2**22 + 1) is None


class Stream:
    """Requests of threads that cannot be seen. `waiting`: those without an answer."""

    def __init__(self, *waiting: int) -> None:
        self.waiting = set(waiting)
        self.abandoned: list[int] = []

    def whose(self, unique: int) -> Whose | None:
        return Whose(14, 0, unique * 10) if unique in self.waiting else None

    def abandon(self, unique: int) -> bool:
        self.abandoned.append(unique)
        self.waiting.discard(unique)
        return True


Forgotten = list[tuple[set[int], set[tuple[int, bytes]]]]


class Kernel:
    """What it is told to forget."""

    def __init__(self) -> None:
        self.forgotten: Forgotten = []

    async def forget(self, inodes: set[int], names: set[tuple[int, bytes]]) -> None:
        self.forgotten.append((inodes, names))


@pytest.mark.usefixtures("autojump_clock")
async def test_what_has_not_begun_ends_and_has_its_own_answer() -> None:
    stream, kernel = Stream(1), Kernel()
    async with trio.open_nursery() as nursery:
        interrupts = Interrupts(stream, nursery, kernel.forget)
        interrupts.begin(1)
        interrupts.came(1)
        with while_wanted():
            await trio.sleep_forever()
        with pytest.raises(Refused) as caught:
            check_wanted()
        assert caught.value.errno == errno.EINTR
        assert trio.current_time() >= ENDING_S
        stream.waiting.clear()
        interrupts.end(1)
        assert current_waiter() is None
        check_wanted()
    assert (stream.abandoned, kernel.forgotten) == ([], [])


@pytest.mark.usefixtures("autojump_clock")
async def test_what_was_sent_goes_on_and_the_kernel_forgets_what_it_missed() -> None:
    stream, kernel = Stream(1, 2), Kernel()
    async with trio.open_nursery() as nursery:
        interrupts = Interrupts(stream, nursery, kernel.forget)

        async def create() -> None:
            interrupts.begin(1)
            note_change((7,), {})
            await trio.sleep(5)
            assert is_unanswered()
            note_change((8, 9), {(3, b"new"): 8})
            interrupts.end(1)

        async def other() -> None:
            interrupts.begin(2)
            await trio.sleep(5)
            assert not is_unanswered()
            interrupts.end(2)

        nursery.start_soon(create)
        nursery.start_soon(other)
        await trio.testing.wait_all_tasks_blocked()
        interrupts.came(1)
    assert stream.abandoned == [1]
    assert kernel.forgotten == [({7, 8, 9, 10}, {(3, b"new")})]


@pytest.mark.usefixtures("autojump_clock")
async def test_what_is_answered_meanwhile_is_left_alone() -> None:
    stream = Stream(1)
    async with trio.open_nursery() as nursery:
        interrupts = Interrupts(stream, nursery, Kernel().forget)
        waiter = interrupts.begin(1)
        interrupts.came(1)
        await trio.sleep(ENDING_S / 2)
        stream.waiting.clear()
        interrupts.end(1)
    assert not waiter.ended
    assert stream.abandoned == []
