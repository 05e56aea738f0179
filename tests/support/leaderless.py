"""A process that was killed and has not ended: its first thread has, another has not."""

import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

PROGRAM = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
ctypes.CDLL(None).syscall(ctypes.c_long({exit}), 0)
"""
SYS_EXIT = {"x86_64": 60, "aarch64": 93}  # of one thread alone


@contextmanager
def leaderless() -> Iterator[int]:
    """The process's number; its first thread ends in a moment."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM.format(exit=SYS_EXIT[platform.machine()])])
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()
