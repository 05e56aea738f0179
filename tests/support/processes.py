"""Python code in processes of its own, for what one process cannot do with itself."""

import subprocess
import sys
from collections.abc import Sequence

TIMEOUT_S = 60


def start(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Starts *code*, with *arguments* in `sys.argv[1:]`."""
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(processes: Sequence[subprocess.Popen[bytes]], timeout_s: float = TIMEOUT_S) -> list[bytes]:
    """Waits for all; what each of them printed. Fails if one of them did."""
    said = []
    for process in processes:
        output, errors = process.communicate(timeout=timeout_s)
        assert process.returncode == 0, errors.decode(errors="replace")
        said.append(output)
    return said


def together(code: str, *argument_lists: Sequence[object], timeout_s: float = TIMEOUT_S) -> list[bytes]:
    """Runs *code* once for each list of arguments, all at once: `ready()` in it returns when all have come so far."""
    prelude = "import os, sys\ndef ready():\n    os.write(1, b'.'); os.read(0, 1)\n"
    processes = [start(prelude + code, *arguments) for arguments in argument_lists]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.read(1) == b".", finish([process])
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(b".")
        process.stdin.flush()
    return finish(processes, timeout_s)
