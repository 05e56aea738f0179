"""CPython's own tests of its file operations, with their temporary directory and working directory on a mount."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.modes import both_modes
from tests.support.running import run

pytestmark = pytest.mark.programs

MODULES = (
    "test_os",
    "test_posix",
    "test_shutil",
    "test_tempfile",
    "test_pathlib",
    "test_mailbox",
    "test_zipfile",
    "test_tarfile",
    "test_sqlite3",
    "test_mmap",
    "test_fileio",
)


# 28 variations of one test, which take a minute in both modes: paths of 60 names, again and again. One of them is run.
LEFT_OUT = {
    "test_tarfile": (
        "*.NoneInfoExtractTests_FullyTrusted.*",
        "*.NoneInfoExtractTests_Tar.*",
        "*.NoneInfoExtractTests_Default.*",
        "*.NoneInfoExtractTests_Data.test_extractall_none_[gmu]*",
    ),
}


@functools.cache
def interpreters() -> list[str]:
    """The Python interpreters here that have the `test` package, this one's own first."""
    candidates = (os.path.realpath(sys.executable), "/usr/bin/python3", "/usr/local/bin/python3")
    found = [python for python in dict.fromkeys(candidates) if os.path.exists(python) and has(python, "test.libregrtest.cmdline")]
    if not found:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        pytest.fail(f"no interpreter here has the package test: apt-get install libpython{version}-testsuite, or ./dev setup")
    return found


def has(python: str, module: str) -> bool:
    parent = module.rpartition(".")[0]
    code = f"import importlib.util as u, sys; sys.exit(not (u.find_spec({parent!r}) and u.find_spec({module!r})))"
    return subprocess.run([python, "-I", "-c", code], capture_output=True, check=False).returncode == 0


def interpreter(module: str) -> str:
    """The first interpreter that has the tests of *module*."""
    for python in interpreters():
        if has(python, f"test.{module}"):
            return python
    pytest.skip(f"{interpreters()[0]} has the package test without {module} (Debian's leaves test_sqlite3 out)")


@both_modes
@pytest.mark.parametrize("module", MODULES)
def test_cpython(directory: Path, module: str) -> None:
    ignored = [argument for pattern in LEFT_OUT.get(module, ()) for argument in ("--ignore", pattern)]
    argv = [interpreter(module), "-m", "test", "--tempdir", directory, "-v", "--timeout", 230, *ignored, module]
    said = run(argv, cwd=directory, env={"TMPDIR": str(directory)})
    ran = sum(int(count) for count in re.findall(r"^Ran (\d+) tests? in", said, re.MULTILINE))
    assert ran > 0, said
