"""Runs the command line: in this process, or as a shell does in one of its own."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
from unittest import mock

import pytest

from cli.main import main

_one_command = threading.Lock()  # argv, environment and output are of the whole process


def godwit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The finished command, run in this process, since another one takes half a second of a processor to start.

    *environment* is laid over a clean one. What other programs print for the command is not in its output. Not for what may hang
    with a network or a disk, which nothing would end.
    """
    argv = ["godwit", *arguments]
    out, err = io.StringIO(), io.StringIO()
    with (
        _one_command,
        mock.patch.object(sys, "argv", argv),
        mock.patch.dict(os.environ, clean_environment(**environment), clear=True),
        mock.patch.object(os, "execvp", _refuse_exec),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = _exit_code()
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def _exit_code() -> int:
    with pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int), ended.value.code
    return ended.value.code


def _refuse_exec(file: str, _argv: list[str]) -> None:
    raise AssertionError(f"{file} would take the place of the tests: use godwit_process")


def godwit_process(*arguments: str, timeout_s: float = 60.0, **environment: str) -> subprocess.CompletedProcess[str]:
    """The finished command, run in a process of its own: for what a shell sees of it, and what it becomes."""
    return subprocess.run(
        [sys.executable, "-bb", "-m", "cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=clean_environment(**environment),
        check=False,
    )


def heed_interrupts() -> None:
    """For `preexec_fn`: who runs the tests in the background of a script has SIGINT ignored, which children would inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def clean_environment(**environment: str) -> dict[str, str]:
    """This process's, without what is said to Godwit in it, and with *environment* laid over it."""
    return {key: value for key, value in os.environ.items() if not key.startswith("GODWIT_")} | environment
