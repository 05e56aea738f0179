#!/usr/bin/python3
"""Plays systemctl(1) for Godwit's units: starts what they say, waits as they say. Nothing is started again by itself.

The environment may say where it keeps what it knows (PLAYED), and the parts' logs (LOGS); POSTGRES is the version of a database.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

UNITS = (Path("/etc/systemd/system"), Path("/usr/lib/systemd/system"))
STATE = Path(os.environ.get("PLAYED", "/run/played"))  # for each unit: its process's number
LOGS = Path(os.environ.get("LOGS", STATE))
PATIENCE_S = 60.0
PARTS = [f"godwit-{part}.service" for part in ("manager", "agent", "mount")]


def settings(unit: str) -> dict[str, list[str]]:
    """The values of every setting of a unit."""
    text = next(folder / unit for folder in UNITS if (folder / unit).exists()).read_text()
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            name, _equals, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def shell(value: str) -> str:
    return value.replace("$$", "$").replace("%%", "%")


def environment(found: dict[str, list[str]]) -> dict[str, str]:
    pairs = [value.strip('"').replace("%%", "%").partition("=") for value in found.get("Environment", [])]
    return {**os.environ, **{name: value for name, _equals, value in pairs}}


def running(unit: str) -> int | None:
    """The number of its process."""
    try:
        pid = int((STATE / unit).read_text())
        return pid if b"godwit" in Path(f"/proc/{pid}/cmdline").read_bytes() else None
    except OSError:
        return None


def run_all(found: dict[str, list[str]], setting: str, about: dict[str, str]) -> None:
    for value in found.get(setting, []):
        may_fail = value.startswith("-")
        done = subprocess.run(["bash", "-c", shell(value.lstrip("-+"))], env=about, check=False, timeout=PATIENCE_S)
        if done.returncode != 0 and not may_fail:
            sys.exit(f"{setting} failed: {value}")


def start(unit: str) -> None:
    if running(unit):
        return
    found = settings(unit)
    about = environment(found)
    run_all(found, "ExecStartPre", about)
    told = STATE / f"{unit}.socket"
    told.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening, open(LOGS / f"{part_of(unit)}.log", "ab") as log:
        listening.bind(str(told))
        listening.settimeout(0.2)
        about["NOTIFY_SOCKET"] = str(told)
        command = ["bash", "-c", f"exec {shell(found['ExecStart'][0])}"]
        process = subprocess.Popen(command, env=about, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        (STATE / unit).write_text(str(process.pid))
        if found["Type"] == ["notify"]:
            wait_until_ready(unit, listening, process)
    run_all(found, "ExecStartPost", {**about, "MAINPID": str(process.pid)})


def part_of(unit: str) -> str:
    return unit.removeprefix("godwit-").removesuffix(".service")


def wait_until_ready(unit: str, listening: socket.socket, process: "subprocess.Popen[bytes]") -> None:
    """Returns when the process says that it is ready; ends the program if it ends instead, or takes too long."""
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if b"READY=1" in listening.recv(4096).split(b"\n"):
                return
        except TimeoutError:
            continue
    sys.exit(f"{unit} did not become ready")


def stop(unit: str) -> None:
    pid = running(unit)
    if pid is None:
        return
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE_S
    while running(unit) and time.monotonic() < deadline:
        time.sleep(0.05)
    found = settings(unit)
    run_all(found, "ExecStopPost", environment(found))


def main(words: list[str]) -> int | str:
    if words == ["restart", "postgresql"]:
        return subprocess.run(["pg_ctlcluster", os.environ["POSTGRES"], "main", "restart", "-m", "fast"], check=False).returncode
    STATE.mkdir(exist_ok=True)
    words = [word for word in words if word not in ("--quiet", "-q")]
    verb, units = words[0], [re.sub(r"^godwit-(\w+)$", r"godwit-\1.service", word) for word in words[1:] if word != "--now"]
    parts = [part for unit in units for part in (PARTS if unit == "godwit.target" else [unit])]
    if verb == "daemon-reload" or (verb, units) == ("is-active", ["sysinit.target"]):
        return 0
    if verb == "is-active":
        return 0 if all(running(part) for part in parts) else 3
    if verb == "enable":
        Path("/etc/systemd/system/multi-user.target.wants").mkdir(exist_ok=True)
        link = Path("/etc/systemd/system/multi-user.target.wants/godwit.target")
        link.unlink(missing_ok=True)
        link.symlink_to("/etc/systemd/system/godwit.target")
        verb = "start"
    if verb == "try-restart":
        parts = [part for part in parts if running(part)]
    if verb in ("stop", "restart", "try-restart"):
        for part in reversed(parts):
            stop(part)
    if verb in ("start", "restart", "try-restart"):
        for part in parts:
            start(part)
    return 0 if verb in ("start", "stop", "restart", "try-restart") else f"nobody has told what systemctl {words} does"


sys.exit(main(sys.argv[1:]))
