"""The package of this machine's release, in a fresh root of it: installed, used, upgraded, removed, purged. Without a network."""

import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.conditions import wait_until
from tests.support.fresh_roots import FreshRoot, need_fresh_roots

CHECKOUT = Path(__file__, "../../..").resolve()
PYTHON = Path("/usr/bin/python3").resolve().name  # what the package of this release depends on
NEEDED = [PYTHON, "fuse3", "mount"]  # packages that it depends on; what they need comes with them
INIT = "godwit init --cluster here --server s1 --address 127.0.0.1 --volume /srv/godwit --mountpoint /mnt/godwit"


class Prepared(NamedTuple):
    """A root with nothing of Godwit in it but the packages' files, in /."""

    root: FreshRoot
    first: str  # their paths in it
    second: str


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    release = need_fresh_roots()
    folder = tmp_path_factory.mktemp("package")
    root = FreshRoot(folder / "root", release)
    # Side by side: both wait for the network and for disks.
    building = subprocess.Popen(
        [str(CHECKOUT / "dev"), "package", "--only", "deb", "--output", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        root.bootstrap(NEEDED)
        said, _nothing = building.communicate()
        assert building.returncode == 0, said[-3000:]
        (package,) = folder.glob("*.deb")
        (folder / "root/first.deb").write_bytes(package.read_bytes())
        make_newer(package, folder / "root/second.deb", folder / "unpacked")
        root.boot()
        yield Prepared(root, "/first.deb", "/second.deb")
    finally:
        building.kill()
        root.end()


def make_newer(package: Path, newer: Path, folder: Path) -> None:
    """The same package with the next revision, and a line more in a file of it."""
    subprocess.run(["dpkg-deb", "--raw-extract", str(package), str(folder)], check=True)
    control = folder / "DEBIAN/control"
    text = control.read_text()
    assert "-1+deb" in text
    control.write_text(text.replace("-1+deb", "-2+deb"))
    with open(folder / "usr/share/doc/godwit/README.md", "a") as readme:
        readme.write("a newer one\n")
    done = subprocess.run(["dpkg-deb", "--build", "-Znone", str(folder), str(newer)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def of_godwit(root: FreshRoot) -> set[str]:
    """All paths with the name in them on the root's disk, but for what is below one of them, and what is dpkg's own."""
    found = root.on("find / -xdev -path /var/lib/dpkg -prune -o -name '*godwit*' -print -prune")
    return set(found.split())


def pid(root: FreshRoot, part: str) -> str:
    return root.path(f"/run/played/godwit-{part}.service").read_text()


def is_mounted(root: FreshRoot) -> bool:
    return root.tried("findmnt --types fuse.godwit /mnt/godwit").returncode == 0


def mount_has_ended(root: FreshRoot) -> bool:
    return "run\0mount" not in root.on("cat /proc/[0-9]*/cmdline 2>/dev/null || true")


@pytest.mark.timeout(900)  # two thirds of it make the package and the root, which a busy machine takes its time for
def test_it_is_installed_used_upgraded_removed_and_purged(prepared: Prepared) -> None:
    """One story, since every step needs those before it."""
    root = prepared.root
    install(prepared)
    become_a_server(root)
    upgrade(prepared)
    unmount(root)
    mount_without_systemd(root)
    remove_and_return(prepared)
    purge(root)


def install(prepared: Prepared) -> None:
    root = prepared.root
    assert of_godwit(root) == set()
    root.on(f"apt-get install -y {prepared.first}")
    assert root.on("dpkg --verify godwit") == "", "a file is not as it was packed"
    assert root.on("godwit --version").startswith("godwit ")
    assert "Usage: godwit" in root.on("godwit --help")
    assert "init" in root.on("_GODWIT_COMPLETE=complete_bash COMP_WORDS='godwit in' COMP_CWORD=1 godwit")
    for shell, path in {"bash": "bash-completion/completions/godwit", "zsh": "zsh/vendor-completions/_godwit"}.items():
        assert "_GODWIT_COMPLETE=complete_" + shell in root.path(f"/usr/share/{path}").read_text()
    assert "\\-\\-volume" in root.on("zcat /usr/share/man/man1/godwit-init.1.gz")
    assert "alembic" in root.path("/usr/share/doc/godwit/copyright").read_text()
    done = root.tried("mount -t godwit godwit:here /mnt")
    assert (done.returncode, done.stderr) == (
        1,
        "mount.godwit: cannot read the configuration /etc/godwit/godwit.toml: No such file or directory\n",
    )


def become_a_server(root: FreshRoot) -> None:
    """The steps of the operators' guide."""
    root.on(INIT)
    root.on("godwit units --install && systemctl enable --now godwit.target")
    root.on("godwit policy set /mnt/godwit --copies 1")  # there is one server
    root.on("godwit status")
    root.on("echo content >/mnt/godwit/file && sync /mnt/godwit/file")


def upgrade(prepared: Prepared) -> None:
    """A program writes meanwhile, and meets no error; the mount's process is the same."""
    root = prepared.root
    before = {part: pid(root, part) for part in ("manager", "agent", "mount")}
    loop = "exec >/mnt/godwit/log; for n in $(seq 100000); do echo $n || exit; sleep 0.01; [ ! -e /stop ] || exit 0; done; exit 1"
    root.on(f"(bash -c {shlex.quote(loop)} 2>/loop.errors; echo $? >/loop.code) </dev/null >/dev/null 2>&1 &")
    said = root.on(f"apt-get install -y {prepared.second}")
    assert "the mount goes on with the release of before" in said, said
    root.on("godwit status")
    root.on("touch /stop")
    wait_until(lambda: root.path("/loop.code").exists() and root.path("/loop.code").read_text() != "", "the program ends")
    assert (root.path("/loop.code").read_text(), root.path("/loop.errors").read_text()) == ("0\n", "")
    lines = root.on("cat /mnt/godwit/log").split()
    assert lines == [str(number + 1) for number in range(len(lines))]
    assert len(lines) > 50
    after = {part: pid(root, part) for part in before}
    assert {part for part in before if after[part] != before[part]} == {"manager", "agent"}
    assert root.path("/usr/share/doc/godwit/README.md").read_text().endswith("a newer one\n")


def unmount(root: FreshRoot) -> None:
    """`umount`, and with --lazy while a program uses it; by a line of fstab it is there again."""
    root.path("/etc/fstab").write_text("godwit:here /mnt/godwit godwit _netdev,nofail,x-systemd.requires=x.service 0 0\n")
    root.on("mount -a")  # is mounted
    mounted = pid(root, "mount")
    root.on("umount /mnt/godwit")
    wait_until(lambda: mount_has_ended(root), "the process of the mount ends")
    assert root.tried("echo lost >/mnt/godwit/beneath").returncode != 0
    root.on("mount /mnt/godwit")
    assert pid(root, "mount") != mounted
    assert root.on("cat /mnt/godwit/file") == "content\n"
    assert root.tried("umount /mnt/godwit && mount -o ro /mnt/godwit").stderr == (
        "mount.godwit: the option ro is not supported: see mount.godwit(8)\n"
    )
    root.on("mount -a")
    used = "exec 9>>/mnt/godwit/file 8</mnt/godwit/file; umount --lazy /mnt/godwit && echo more >&9 && cat <&8"
    assert root.on(used) == "content\nmore\n"
    assert not is_mounted(root)
    wait_until(lambda: mount_has_ended(root), "the process of the mount ends")


def mount_without_systemd(root: FreshRoot) -> None:
    root.on("rmdir /run/systemd/system")
    root.on("mount /mnt/godwit")
    assert root.on("cat /mnt/godwit/file") == "content\nmore\n"
    root.on("umount /mnt/godwit")
    wait_until(lambda: mount_has_ended(root), "the process of the mount ends")
    root.on("mkdir /run/systemd/system && systemctl start godwit.target")


def remove_and_return(prepared: Prepared) -> None:
    """Data, configuration and keys stay; with the package everything is there again."""
    root = prepared.root
    root.on("apt-get remove -y godwit")
    assert not is_mounted(root)
    assert "godwit\0run" not in root.on("cat /proc/[0-9]*/cmdline 2>/dev/null || true")
    link = "/etc/systemd/system/multi-user.target.wants/godwit.target"
    assert of_godwit(root) == {"/etc/default/godwit", "/etc/godwit", "/srv/godwit", "/var/lib/godwit", "/mnt/godwit", link}
    assert root.path("/etc/godwit/trust/authority.pem").exists()
    root.on(f"apt-get install -y {prepared.second}")
    root.on("systemctl start godwit.target")
    assert root.on("cat /mnt/godwit/file") == "content\nmore\n"


def purge(root: FreshRoot) -> None:
    """Configuration goes, what is of files stays."""
    said = root.on("apt-get purge -y godwit")
    assert "/var/lib/godwit stays" in said
    assert of_godwit(root) == {"/srv/godwit", "/var/lib/godwit", "/mnt/godwit"}
    assert "content\nmore\n" in root.on("cat $(find /srv/godwit/objects -type f)")
    assert root.tried("dpkg --status godwit").returncode == 1
