"""Fresh roots of a release of Debian, made by debootstrap, each with namespaces of its own: no network, no processes of others.

systemd is played there by a program that starts what the units say, and waits as the units say: packages' scripts, the units'
command lines, the processes and the mounts are real.
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

COMMAND_S = 120.0  # that any one may take
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
# What a root is until its first process ends: $1 is its folder. The shell there takes care of orphans that have ended.
MAKE = r"""
root=$1
mount --bind "$root" "$root" && cd "$root" || exit 1
mount --rbind /dev dev && mount -t proc proc proc && mount -t tmpfs tmpfs run && mount --rbind /sys sys || exit 1
ip link set lo up || exit 1
mkdir -p run/systemd/system
exec chroot . /bin/bash -c 'cd /; echo made; exec >/dev/null; trap : CHLD; while :; do sleep infinity & wait; done'
"""
SYSTEMCTL = Path(__file__).with_name("played_systemd.py")


class FreshRoot:
    """One root, by its release; `end` leaves nothing."""

    def __init__(self, folder: Path, release: str) -> None:
        self.folder = folder
        self.release = release
        self._holder: subprocess.Popen[str] | None = None

    def bootstrap(self, packages: list[str]) -> None:
        """Makes it, with further *packages* beside the smallest system."""
        include = f"--include={','.join(packages)}"
        command = ["debootstrap", "--variant=minbase", include, self.release, str(self.folder), MIRROR]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr}"

    def boot(self) -> None:
        """Its namespaces, in which nothing runs."""
        systemctl = self.folder / "usr/bin/systemctl"  # where apt-get has packages look, too
        (python,) = (self.folder / "usr/bin").glob("python3.[0-9][0-9]")
        systemctl.write_text(SYSTEMCTL.read_text().replace("/usr/bin/python3", f"/usr/bin/{python.name}", 1))
        systemctl.chmod(0o755)
        apart = ["unshare", "--mount", "--propagation=private", "--net", "--pid", "--fork", "--kill-child", "--"]
        holder = subprocess.Popen(
            [*apart, "bash", "-c", MAKE, "bash", str(self.folder)], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._holder = holder
        assert holder.stdout is not None
        assert holder.stdout.readline() == "made\n"

    @property
    def first_pid(self) -> int:
        """Of its first process, as this one counts."""
        assert self._holder is not None
        return int(Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text())

    def path(self, path: str) -> Path:
        """A path in it as this process reaches it, mounts included."""
        return Path(f"/proc/{self.first_pid}/root{path}")

    def tried(self, command: str) -> subprocess.CompletedProcess[str]:
        """A command line typed in it."""
        inside = ["nsenter", f"--target={self.first_pid}", "--mount", "--net", "--pid", "--root"]
        about = ["/usr/bin/env", "--chdir=/", "-i", "HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"]
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        words = [*inside, "--", *about, path, "bash", "-c", command]
        return subprocess.run(words, capture_output=True, text=True, timeout=COMMAND_S, check=False, stdin=subprocess.DEVNULL)

    def on(self, command: str) -> str:
        """The same: what it prints, on both streams; fails the test if the command fails."""
        done = self.tried(command)
        logs = "\n".join(f"{path.name}:\n{path.read_text()[-3000:]}" for path in self.path("/run/played").glob("*.log"))
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}\n{logs}"
        return done.stdout + done.stderr

    def end(self) -> None:
        if self._holder is not None:
            # All processes of its namespace end with its first, and its mounts with them.
            if self._holder.poll() is None:
                os.kill(self.first_pid, signal.SIGKILL)
            self._holder.wait()
        # Mount points and fenced objects are immutable.
        subprocess.run(["chattr", "-R", "-f", "-i", str(self.folder / "mnt"), str(self.folder / "srv")], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def need_fresh_roots() -> str:
    """The release of this machine; skips the test where there can be no roots of it."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("roots and mounts need root and /dev/fuse")
    about = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    if about.get("ID") != "debian":
        pytest.skip("this machine is not Debian: its packages would not fit a root of Debian's")
    return about["VERSION_CODENAME"]
