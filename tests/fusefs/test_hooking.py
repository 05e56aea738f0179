"""The extension with libfuses of several kinds: it is put in, or the mount goes on without it."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from fusefs import channel

SOURCE = Path(__file__).parent / "native" / "fake_libfuse.c"

# Loads what pyfuse3 would load, and calls what it would call, with a socket for the kernel's messages. Prints what receiving
# FUSE_INIT and FUSE_FALLOCATE returns, how many messages were handed over, whether the reply to FUSE_INIT asks for passthrough,
# and why files are not passed through.
PROGRAM = """
import ctypes, json, os, socket, struct, sys
from fusefs import channel

class Buffer(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("flags", ctypes.c_int), ("memory", ctypes.c_void_p)]

library, prepared, receives = sys.argv[1:]
wanted, taken, mount = channel.InitFlag.PASSTHROUGH, [], channel.Channel()
if prepared == "prepared":
    mount.prepare(wanted, [43], taken.append)
libfuse = ctypes.CDLL(library, mode=os.RTLD_LOCAL)
pyfuse3 = ctypes.CDLL(None) if receives == "by its name" else libfuse
kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
session, buffer = ctypes.c_int(device.fileno()), Buffer()

def receive(opcode, unique, body):
    kernel.send(struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, 1, 0, 0, 1, 0, 0) + body)
    return pyfuse3.fuse_session_receive_buf(ctypes.byref(session), ctypes.byref(buffer))

result = ctypes.CDLL(None).fuse_session_mount(ctypes.byref(session), b"/mnt")
assert ctypes.c_int.in_dll(libfuse, "mounted").value == (result == 0)
if result != 0:
    sys.exit("it is not mounted")
os.open("/dev/fuse", os.O_RDWR)  # for the channel to find
mount.mounted()
init = receive(26, 2, struct.pack("<IIIII", 7, 45, 0, 1 << 30, wanted >> 32) + bytes(44))
message = struct.pack("<IiQ", 80, 0, 2) + struct.pack("<II", 7, 45) + bytes(56)
libfuse.reply(device.fileno(), message, len(message))
asks = int.from_bytes(kernel.recv(100)[48:52], "little") << 32 == wanted
fallocate = receive(43, 4, bytes(32))
assert asks == (wanted in mount.granted)
print(json.dumps([init, fallocate, len(taken), asks, mount.why_not]))
"""
INIT_BYTES, FALLOCATE_BYTES = 104, 72
HOOKED = [INIT_BYTES, -errno.EINTR, 1, True, ""]
LEFT_ALONE = [INIT_BYTES, FALLOCATE_BYTES, 0, False]
NO_LIBFUSE, NO_PYFUSE3 = "this libfuse is not known to the extension", "this pyfuse3 is not known to the extension"
BY_NAME, OTHERWISE = "by its name", "otherwise"

pytestmark = pytest.mark.skipif(channel.load() is None, reason="the extension was not built: is there a compiler?")


@pytest.mark.parametrize(
    ("name", "build", "receives", "expected"),
    [
        pytest.param("libfuse3.so.3", [], BY_NAME, HOOKED, id="until 3.16"),
        pytest.param("libfuse3.so.4", [], BY_NAME, HOOKED, id="since 3.17"),
        pytest.param("libfuse3.so.4", ["-Wl,-z,relro,-z,now"], BY_NAME, HOOKED, id="all slots are read-only"),
        pytest.param("libfuse3.so.4", ["-Wl,-z,norelro,-z,lazy"], BY_NAME, HOOKED, id="slots are filled late"),
        pytest.param("libfuse3.so.4", ["-fno-plt"], BY_NAME, HOOKED, id="slots are beside the data"),
        pytest.param("libfuse3.so.5", ["-DWRITES_OTHERWISE"], BY_NAME, [*LEFT_ALONE, NO_LIBFUSE], id="it writes otherwise"),
        pytest.param("libfuse3.so.4", [], OTHERWISE, [*LEFT_ALONE, NO_PYFUSE3], id="pyfuse3 receives otherwise"),
    ],
)
def test_what_is_found_in_libfuse(tmp_path: Path, name: str, build: list[str], receives: str, expected: list[object]) -> None:
    done = mount(tmp_path / name, build, "prepared", receives)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected
    assert done.stderr == (f"files go through the mount process: {expected[-1]}\n" if expected[-1] else "")


def test_nothing_is_changed_for_a_session_of_somebody_else(tmp_path: Path) -> None:
    done = mount(tmp_path / "libfuse3.so.4", [], "not prepared", BY_NAME)
    assert json.loads(done.stdout)[:4] == LEFT_ALONE


def test_without_a_libfuse_nothing_is_mounted(tmp_path: Path) -> None:
    done = mount(tmp_path / "libother.so", [], "prepared", BY_NAME)
    assert (done.returncode, done.stderr) == (1, "it is not mounted\n")


def mount(library: Path, build: list[str], prepared: str, receives: str) -> subprocess.CompletedProcess[str]:
    """Runs the program with a libfuse built for it."""
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", *build, str(SOURCE), "-o", str(library)], check=True)
    command = [sys.executable, "-c", PROGRAM, str(library), prepared, receives]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
