"""The extension with libfuses of several kinds: it is put in, or the mount goes on without it."""

import errno
import json
import os
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from fusefs.kernel import stream

NATIVE = Path(__file__).parents[3] / "fusefs" / "kernel" / "native"
SOURCE = Path(__file__).parent / "native" / "fake_libfuse.c"

# Loads what pyfuse3 would load, and calls what it would call, with a socket for the kernel's messages.
MOUNTED = """
import ctypes, json, os, random, socket, struct, sys
from fusefs.kernel import stream as channel

class Buffer(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("flags", ctypes.c_int), ("memory", ctypes.c_void_p), ("descriptor", ctypes.c_int)]

library, prepared, receives = sys.argv[1:4]
wanted, taken, dropped, mount = channel.InitFlag.PASSTHROUGH, [], [], channel.Channel()
on_request = taken.append
if prepared == "prepared":
    mount.prepare(wanted, [25, 43], lambda message: on_request(message), lambda *what: dropped.append(what))
libfuse = ctypes.CDLL(library, mode=os.RTLD_LOCAL)
pyfuse3 = ctypes.CDLL(None) if receives == "by its name" else libfuse
kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
session, buffer = ctypes.c_int(device.fileno()), Buffer()

def received(message):
    kernel.send(message)
    return pyfuse3.fuse_session_receive_buf(ctypes.byref(session), ctypes.byref(buffer))

def request(opcode, unique, body, ino=1):
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, ino, 0, 0, 1, 0, 0) + body

def reply(message):
    libfuse.reply(device.fileno(), message, len(message))

result = ctypes.CDLL(None).fuse_session_mount(ctypes.byref(session), b"/mnt")
assert ctypes.c_int.in_dll(libfuse, "mounted").value == (result == 0)
if result != 0:
    sys.exit("it is not mounted")
os.open("/dev/fuse", os.O_RDWR)  # for the channel to find
mount.mounted()
init = received(request(26, 2, struct.pack("<IIIII", 7, 45, 0, 1 << 30, wanted >> 32) + bytes(44)))
"""

# Prints what receiving FUSE_INIT and FUSE_FALLOCATE returns, how many messages were handed over, whether the reply to FUSE_INIT
# asks for passthrough, and why files are not passed through.
TELL = """
reply(struct.pack("<IiQ", 80, 0, 2) + struct.pack("<II", 7, 45) + bytes(56))
asks = int.from_bytes(kernel.recv(100)[48:52], "little") << 32 == wanted
fallocate = received(request(43, 4, bytes(32)))
assert asks == (wanted in mount.granted)
print(json.dumps([init, fallocate, len(taken), asks, mount.why_not]))
"""

# Sends messages of all kinds, also some that no kernel sends; Python takes them, leaves them to libfuse, or fails.
SEND_MUCH = """
rng = random.Random(4)
kernel.setblocking(False)

def on_request(message):
    what = rng.random()
    if what < 0.1:
        raise ValueError("a mistake in Python")
    return what < 0.6

for unique in range(4, 8000, 2):
    opcode = rng.choice((1, 14, 16, 16, 25, 27, 35, 36, 43, 63, 64, 4096, 1 << 31))
    body = rng.randbytes(rng.choice((0, 1, 7, 8, 39, 40, 64, 4056, 8000)))
    message = request(opcode, unique, struct.pack("<Q", unique - 2) + body if rng.random() < 0.3 else body, rng.randrange(20))
    if rng.random() < 0.1:
        message = message[: rng.randrange(1, len(message) + 1)]
    count = received(message)
    assert count in (len(message), -4), (count, len(message))
    if count > 0 and buffer.flags & 2:
        os.close(buffer.descriptor)
    handle = rng.randrange(50)
    mount.will_open(handle, channel.OpenFlag(rng.choice((1, 8, 128))), rng.randrange(3), directory=rng.random() < 0.5)
    mount.watch_flush(rng.randrange(20), rng.random() < 0.5)
    mount.kills_set_id(rng.randrange(20))
    waits = mount.whose(unique)
    if rng.random() < 0.2:
        assert channel.load().abandon(unique) == (waits is not None)
    answer = struct.pack("<IiQQII", 32, 0, unique, handle, 0, 0)
    reply(answer[: rng.randrange(1, len(answer) + 1)] if rng.random() < 0.1 else answer)
    try:
        while True:
            kernel.recv(10000)
    except BlockingIOError:
        pass
"""
INIT_BYTES, FALLOCATE_BYTES = 104, 72
HOOKED = [INIT_BYTES, -errno.EINTR, 1, True, ""]
LEFT_ALONE = [INIT_BYTES, FALLOCATE_BYTES, 0, False]
NO_LIBFUSE, NO_PYFUSE3 = "this libfuse is not known to the extension", "this pyfuse3 is not known to the extension"
BY_NAME, OTHERWISE = "by its name", "otherwise"

pytestmark = pytest.mark.skipif(stream.load() is None, reason="the extension was not built: is there a compiler?")


@pytest.mark.parametrize(
    ("name", "options", "receives", "expected"),
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
def test_what_is_found_in_libfuse(tmp_path: Path, name: str, options: list[str], receives: str, expected: list[object]) -> None:
    done = mount(tmp_path / name, options, "prepared", receives)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected
    lacks = ("files go through the mount process", "locks of this mount's files hold on this server only")
    assert done.stderr == ("".join(f"{what}: {expected[-1]}\n" for what in lacks) if expected[-1] else "")


def test_nothing_is_changed_for_a_session_of_somebody_else(tmp_path: Path) -> None:
    done = mount(tmp_path / "libfuse3.so.4", [], "not prepared", BY_NAME)
    assert json.loads(done.stdout)[:4] == LEFT_ALONE


def test_without_a_libfuse_nothing_is_mounted(tmp_path: Path) -> None:
    done = mount(tmp_path / "libother.so", [], "prepared", BY_NAME)
    assert (done.returncode, done.stderr) == (1, "it is not mounted\n")


def test_a_request_that_python_fails_to_take_is_answered(tmp_path: Path) -> None:
    script = """
def on_request(message):
    raise ValueError("a mistake in Python")

result = received(request(43, 4, bytes(32)))
print(json.dumps([result, kernel.recv(100).hex()]))
"""
    done = mount(tmp_path / "libfuse3.so.4", [], "prepared", BY_NAME, script)
    assert json.loads(done.stdout) == [-errno.EINTR, struct.pack("<IiQ", 16, -errno.EIO, 4).hex()]
    assert "a mistake in Python" in done.stderr


def test_what_was_opened_for_nobody_is_told(tmp_path: Path) -> None:
    script = """
for opcode, unique in ((14, 4), (27, 6), (14, 8)):
    received(request(opcode, unique, bytes(16), unique))
waits = mount.whose(6)
abandoned = [channel.load().abandon(unique) for unique in (4, 6, 4, 10)]
for unique in (4, 6, 8):
    reply(struct.pack("<IiQQII", 32, 0, unique, unique + 100, 0, 0))
answered = struct.unpack_from("<IiQ", kernel.recv(100))
print(json.dumps([mount.passed(), waits, abandoned, dropped, answered, mount.whose(6)]))
"""
    done = mount(tmp_path / "libfuse3.so.4", [], "prepared", BY_NAME, script)
    assert done.returncode == 0, done.stderr
    abandoned, dropped = [True, True, False, False], [[False, 104], [True, 106]]
    assert json.loads(done.stdout) == [8, [27, 1, 6], abandoned, dropped, [32, 0, 8], None]


@pytest.mark.search
def test_the_whole_extension_bears_any_messages(tmp_path: Path) -> None:
    """Under AddressSanitizer and UndefinedBehaviorSanitizer, in a Python that is not built for them."""
    extension = tmp_path / "_channel.so"
    include = f"-I{sysconfig.get_paths()['include']}"
    sanitize = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    build(extension, [*sanitize, "-std=c11", "-D_GNU_SOURCE", "-fvisibility=hidden", include], *sorted(NATIVE.glob("*.c")))
    libraries = (
        subprocess.check_output(["gcc", f"-print-file-name=lib{name}.so"], text=True).strip() for name in ("asan", "ubsan")
    )
    told = {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0", "GODWIT_CHANNEL": str(extension)}
    done = mount(tmp_path / "libfuse3.so.4", [], "prepared", BY_NAME, SEND_MUCH, TAKE_EXTENSION, told)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "a mistake in Python" in done.stderr


# Loads another build of the extension than the one that is installed.
TAKE_EXTENSION = """
import importlib.util, os, sys
before = sys.getdlopenflags()
sys.setdlopenflags(before | os.RTLD_GLOBAL)
spec = importlib.util.spec_from_file_location("fusefs.kernel._channel", os.environ["GODWIT_CHANNEL"])
sys.modules["fusefs.kernel._channel"] = importlib.util.module_from_spec(spec)
sys.setdlopenflags(before)
"""


def mount(
    library: Path,
    options: list[str],
    prepared: str,
    receives: str,
    script: str = TELL,
    first: str = "",
    told: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[str]:
    """Runs a script on what is mounted, with a libfuse built for it."""
    build(library, ["-O2", *options], SOURCE)
    command = [sys.executable, "-c", first + MOUNTED + script, str(library), prepared, receives]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **told})


def build(library: Path, options: list[str], *sources: Path) -> None:
    subprocess.run(["gcc", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", *options, *sources, "-o", library], check=True)
