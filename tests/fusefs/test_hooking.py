"""The extension with libfuses of several kinds: it is put in, or the mount goes on without it."""

import subprocess
import sys
from pathlib import Path

import pytest

from fusefs import channel

SOURCE = Path(__file__).parent / "native" / "fake_libfuse.c"
DESCRIPTOR = 9

# Loads what pyfuse3 would load, and calls what it would call; prints what it returns, whether libfuse mounted, the size of what
# it was given to read and write with, and the descriptor of the session that the extension knows.
PROGRAM = f"""
import ctypes, os, sys
from fusefs import channel
import fusefs._channel as extension
if sys.argv[2] == "prepared":
    channel.Channel().prepare(channel.InitFlag.PASSTHROUGH, [], print)
libfuse = ctypes.CDLL(sys.argv[1], mode=os.RTLD_LOCAL)
ctypes.c_int.in_dll(libfuse, "answer").value = int(sys.argv[3])
session = ctypes.c_int({DESCRIPTOR})
result = ctypes.CDLL(None).fuse_session_mount(ctypes.byref(session), b"/mnt")
given = ctypes.c_size_t.in_dll(libfuse, "given_size").value
print(result, ctypes.c_int.in_dll(libfuse, "mounted").value, given, extension.state()[0])
"""
POINTERS = 4 * 8

pytestmark = pytest.mark.skipif(channel.load() is None, reason="the extension was not built: is there a compiler?")


@pytest.mark.parametrize(
    ("name", "has", "prepared", "answer", "expected"),
    [
        pytest.param("libfuse3.so.3", ["CUSTOM_IO"], "prepared", 0, (0, 1, POINTERS, DESCRIPTOR), id="3.14 to 3.16"),
        pytest.param("libfuse3.so.4", ["CUSTOM_IO_317"], "prepared", 0, (0, 1, POINTERS, DESCRIPTOR), id="3.17 and later"),
        pytest.param("libfuse3.so.4", ["CUSTOM_IO", "CUSTOM_IO_317"], "prepared", 0, (0, 1, POINTERS, DESCRIPTOR), id="both"),
        pytest.param("libfuse3.so.3", [], "prepared", 0, (0, 1, 0, -1), id="an older one"),
        pytest.param("libfuse3.so.3", ["CUSTOM_IO"], "prepared", -22, (0, 1, POINTERS, -1), id="one that refuses"),
        pytest.param("libfuse3.so.3", ["CUSTOM_IO"], "not prepared", 0, (0, 1, 0, -1), id="nobody wants it"),
        pytest.param("libother.so", ["CUSTOM_IO"], "prepared", 0, (-1, 0, 0, -1), id="no libfuse"),
    ],
)
def test_what_is_found_in_libfuse(
    tmp_path: Path, name: str, has: list[str], prepared: str, answer: int, expected: tuple[int, int, int, int]
) -> None:
    library = tmp_path / name
    defined = [f"-D{feature}" for feature in has]
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wall", "-Wextra", *defined, str(SOURCE), "-o", str(library)], check=True)
    command = [sys.executable, "-c", PROGRAM, str(library), prepared, str(answer)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert tuple(map(int, done.stdout.split())) == expected
