"""The machine on which the doctor runs: its kernel, what Godwit needs of it, and the Godwit that is installed."""

import ctypes
import importlib
import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from cli.diagnosis.checks import Check, Field, Verdict
from cluster.clock import is_in_step
from cluster.errors import error_text
from cluster.release import RELEASE

PASSED_FROM = (6, 9)  # files can be passed through
NAMES_FROM = (6, 16)  # the kernel keeps names for as long as a lease lasts
DEVICE = "/dev/fuse"
EXTENSION = "fusefs.kernel._channel"
LIBRARIES = ("libfuse3.so.3", "libfuse3.so.4")  # the latter since libfuse 3.17


def examine_machine() -> list[Check]:
    """All checks of the machine. Blocks for some milliseconds."""
    return [
        judge_release(RELEASE, platform.python_version()),
        judge_kernel(os.uname().release),
        judge_device(_why_not(_open_device), is_root=os.geteuid() == 0),
        judge_fuse(version_of("pyfuse3"), libfuse_version()),
        judge_extension(_why_not(lambda: importlib.import_module(EXTENSION))),
        judge_clock(is_in_step()),
        *judge_user(os.geteuid()),
    ]


def judge_release(release: str, python: str) -> Check:
    return _check("godwit", Verdict.OK, f"{release}, Python {python}")


def judge_kernel(release: str) -> Check:
    """What this kernel brings; *release* as uname(2) has it."""
    found = tuple(int(number) for number in re.findall(r"\d+", release)[:2])
    if found < PASSED_FROM:
        text = f"Linux {release} does not pass files through to their disks: mounts read and write them"
        return _check("kernel", Verdict.NOTE, text, "install Linux 6.9 or later if that is too slow (docs/passthrough.md)")
    if found < NAMES_FROM:
        return _check("kernel", Verdict.OK, f"Linux {release} passes files through; 6.16 and later also keep names longer")
    return _check("kernel", Verdict.OK, f"Linux {release} passes files through, and keeps names")


def judge_device(why_not: str, *, is_root: bool) -> Check:
    """*why_not* the kernel's FUSE can be opened; empty: it can."""
    if why_not and not is_root and os.path.exists(DEVICE):
        return _check(DEVICE, Verdict.NOTE, f"not looked at: {why_not}", "run godwit doctor as root")
    if why_not:
        advice = "modprobe fuse; in a container: give it the device"
        return _check(DEVICE, Verdict.FAILURE, f"nothing can be mounted: {why_not}", advice)
    return _check(DEVICE, Verdict.OK, "it can be opened")


def judge_fuse(pyfuse3: str, libfuse: str) -> Check:
    """The versions of both; empty where there is none."""
    missing = [name for name, found in (("pyfuse3", pyfuse3), (LIBRARIES[0], libfuse)) if not found]
    if missing:
        advice = "install it anew, with its dependencies (Debian: libfuse3-3 or libfuse3-4)"
        return _check("fuse", Verdict.FAILURE, f"{' and '.join(missing)} cannot be loaded: nothing can be mounted", advice)
    return _check("fuse", Verdict.OK, f"pyfuse3 {pyfuse3}, libfuse {libfuse}")


def judge_extension(why_not: str) -> Check:
    """*why_not* Godwit's C extension can be loaded; empty: it can."""
    if why_not:
        text = (
            "the C extension cannot be loaded: mounts are slow, pass no files through, and have locks exclude no processes of "
            f"other servers ({why_not})"
        )
        return _check(
            "extension", Verdict.WARNING, text, "install Godwit with a C compiler and libfuse3-dev, or from its package"
        )
    return _check("extension", Verdict.OK, "the C extension can be loaded")


def judge_clock(in_step: bool | None) -> Check:
    """Whether something keeps the clock right. Nothing is decided by it: it is what files are stamped with."""
    if in_step is None:
        return _check("clock", Verdict.NOTE, "the kernel does not tell whether something keeps it right")
    if not in_step:
        advice = "install chrony or systemd-timesyncd: times of files are those of the server that writes them"
        return _check("clock", Verdict.NOTE, "nothing keeps it right", advice)
    return _check("clock", Verdict.OK, "something keeps it right")


def judge_user(user: int) -> Iterator[Check]:
    """What somebody who is not root does not see."""
    if user != 0:
        yield _check("user", Verdict.NOTE, "not root: disks, keys and the catalog are not looked at", "run godwit doctor as root")


def _check(subject: str, verdict: Verdict, text: str, advice: str = "") -> Check:
    return Check(Field.MACHINE, subject, verdict, text, advice)


def _open_device() -> None:
    # The kernel loads its module for who opens it.
    os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))


def version_of(package: str) -> str:
    """The version of an installed Python package; empty if it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def libfuse_version() -> str:
    """The version of libfuse, asked of the library itself; empty if it cannot be loaded."""
    for name in LIBRARIES:
        with suppress(OSError, AttributeError):
            tell = ctypes.CDLL(name).fuse_pkgversion
            tell.restype = ctypes.c_char_p
            return bytes(tell()).decode("ascii", "replace")
    return ""


def _why_not(load: Callable[[], object]) -> str:
    try:
        load()
    except Exception as error:  # whatever is wrong with it is told
        return error_text(error) or type(error).__name__
    return ""
