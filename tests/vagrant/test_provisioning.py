"""The virtual machines' setup: their files are sound, and their scripts make a network of machines that are namespaces."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cli.commands.join import ask_to_join, request_to_join
from cluster.errors import GodwitError, Refused
from cluster.messages import ListUnknown, Ping
from cluster.trust.authority import new_key
from cluster.trust.credentials import Credentials
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role
from cluster.trust.tokens import parse_token
from tests.support.attacked import Attacked, of_machines
from tests.support.conditions import wait_until
from tests.support.guides import blocks
from tests.support.machines import PASSWORD, VAGRANT, Provisioned
from tests.support.trust import answer_to

SCRIPTS = sorted(VAGRANT.glob("*.sh"))


def test_there_are_scripts() -> None:
    assert [path.name for path in SCRIPTS] == ["database.sh", "first.sh", "further.sh", "install.sh"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound(script: Path) -> None:
    assert os.access(script, os.X_OK)
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_ruby_reads_the_vagrantfile() -> None:
    if shutil.which("ruby") is None:
        pytest.skip("no ruby here")
    done = subprocess.run(["ruby", "-wc", "Vagrantfile"], capture_output=True, text=True, check=False, cwd=VAGRANT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Syntax OK\n", "")


def test_vagrant_accepts_the_vagrantfile(tmp_path: Path) -> None:
    if shutil.which("vagrant") is None:
        pytest.skip("no vagrant here: package vagrant")
    for path in (VAGRANT / "Vagrantfile", *SCRIPTS):
        shutil.copy(path, tmp_path)
    environment = {**os.environ, "VAGRANT_HOME": str(tmp_path / "home"), "VAGRANT_CHECKPOINT_DISABLE": "1"}
    command = ["vagrant", "validate", "--ignore-provider"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    secret = tmp_path / ".vagrant" / "godwit-password"
    assert secret.stat().st_mode & 0o777 == 0o600
    assert len(secret.read_text()) == 32


# ------------------------------------------------------------------------------------------------ the steps themselves


def test_the_steps_end_with_mounted_servers(provisioned: Provisioned) -> None:
    provisioned.on("s1", "echo from s1 > /mnt/godwit/file")
    assert provisioned.on("s2", "cat /mnt/godwit/file") == "from s1\n"
    assert {"objects", "volume.toml"} <= set(provisioned.on("s2", "ls /srv/godwit").split())
    assert "s1" in provisioned.on("s2", "godwit servers ls")
    tokens = f"psql -At postgresql://godwit@{provisioned.address('db')}/handover -c 'SELECT count(*) FROM tokens'"
    assert provisioned.on("s1", tokens, PGPASSWORD=PASSWORD) == "0\n"
    for server, script in (("s1", "first.sh"), ("s2", "further.sh")):
        before = provisioned.on(server, "cat /etc/godwit/godwit.toml")
        provisioned.provision(server, script)
        assert provisioned.on(server, "cat /etc/godwit/godwit.toml") == before
    assert provisioned.on("s3", "cat /mnt/godwit/file") == "from s1\n"
    assert not Path("/mnt/godwit/file").exists()


def test_keys_in_wrong_hands_are_void(provisioned: Provisioned, tmp_path: Path) -> None:
    """The guide's commands for it. Not as an attack on any network: one server's processes are cut off for a moment."""
    (commands,) = [block for block in blocks("operations.md", "6. A server leaves") if block.startswith("godwit servers revoke")]
    attacked = of_machines(provisioned)
    victim = next(name for name in attacked.servers if name not in ("s1", attacked.manager.server))
    revoke, add, rejoin = commands.replace("s3", victim).splitlines()
    shutil.copytree(attacked.trust(victim).path, tmp_path / "stolen")
    assert not what_is_refused(attacked, victim, tmp_path / "stolen")
    provisioned.on("s1", revoke)
    wait_until(lambda: len(what_is_refused(attacked, victim, tmp_path / "stolen")) == 4, "nobody believes it", 10)
    (token,) = re.findall(r"GW1\.\S+", provisioned.on("s1", add.replace(victim, f"{victim} --candidate", 1)))
    provisioned.on(victim, rejoin, GODWIT_TOKEN=token)
    provisioned.on("s1", "echo after > /mnt/godwit/after")
    wait_until(lambda: provisioned.tried(victim, "cat /mnt/godwit/after").stdout == "after\n", "it is back", 30)
    assert len(what_is_refused(attacked, victim, tmp_path / "stolen")) == 4
    # Whoever has seen the token come by is too late.
    request = request_to_join(
        victim, attacked.configs[victim].manager.listen, parse_token(token), {role: new_key() for role in Role}
    )
    with pytest.raises(Refused, match="it was used"):
        ask_to_join([attacked.manager.manager.listen], parse_token(token), request, 10.0)


def what_is_refused(attacked: Attacked, victim: str, stolen: Path) -> list[str]:
    """What others say to whoever has its keys: to each role at a manager, and to a command at an agent."""
    said = []
    manager, agent = attacked.manager, attacked.configs["s1"].agent.listen
    for role, address in ((Role.AGENT, ""), (Role.MOUNT, ""), (Role.ADMIN, ""), (Role.ADMIN, agent)):
        request = ListUnknown() if address else Ping(manager.cluster)
        try:
            answer_to(address or manager.manager.listen, Credentials(TrustFolder(stolen), role), request)
        except GodwitError as error:
            if "was revoked" not in str(error):
                raise
            said.append(str(error))
    return said
