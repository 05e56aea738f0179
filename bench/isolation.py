"""Runs a measurement in a process of its own, so that one that hangs in a dead mount can be killed and given up."""

import multiprocessing
import os
import signal
from contextlib import suppress
from multiprocessing.connection import Connection

import msgspec

from bench.processors import Reading
from bench.sample import Ground, Measure, Sample

KILL_PATIENCE_S = 5.0  # a process in a hung mount may outlive SIGKILL: it is left then


class MeasurementFailed(Exception):
    """A measurement ended without a figure; the text says why."""


class Measured(msgspec.Struct, frozen=True):
    """A sample, and what the meter of its ground has: seconds by part."""

    sample: Sample
    used: Reading  # while operations were counted
    settled_from: Reading  # what is used from here on comes later


class _Outcome(msgspec.Struct):
    measured: Measured | None
    error: str = ""


def measure_apart(measure: Measure, ground: Ground, timeout_s: float) -> Measured:
    """The sample with what it cost; raises `MeasurementFailed`. Whatever happens, the process and those it started are ended."""
    # fork: closures and the lab's objects need not be pickled.
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(measure, ground, sender), daemon=True)
    child.start()
    assert child.pid is not None
    with suppress(OSError):
        # In both processes: whoever comes first, the group is there before it is needed.
        os.setpgid(child.pid, child.pid)
    # Else the end of the child would be no end of file here.
    sender.close()
    try:
        if not receiver.poll(timeout_s):
            raise MeasurementFailed(f"not done after {timeout_s:g} s")
        outcome = msgspec.json.decode(receiver.recv_bytes(), type=_Outcome)
    except EOFError:
        raise MeasurementFailed("its process was killed") from None
    finally:
        with suppress(ProcessLookupError):
            # Programs that it started (`tar`, `git`) are in its group.
            os.killpg(child.pid, signal.SIGKILL)
        child.join(KILL_PATIENCE_S)
        receiver.close()
    if outcome.measured is None:
        raise MeasurementFailed(outcome.error)
    return outcome.measured


def _measure(measure: Measure, ground: Ground, sender: Connection) -> None:
    os.setpgid(0, 0)
    try:
        sample = measure(ground)
        outcome = _Outcome(Measured(sample, ground.meter.used, ground.meter.settled_from))
    except Exception as error:
        # As text: an exception of another process may have no way back.
        outcome = _Outcome(None, f"{type(error).__name__}: {error}")
    sender.send_bytes(msgspec.json.encode(outcome))
