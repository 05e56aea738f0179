"""PostgreSQL with client certificates, as docs/security.md says: its commands, typed on machines, end in a network that runs."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.conditions import wait_until
from tests.support.guides import blocks
from tests.support.machines import Machines, need_machines

NUMBERS = {"db": 9, "s1": 1, "s2": 2, "s3": 3}  # as in the guides
URL = "postgresql://godwit@10.0.0.9/godwit?sslmode=verify-full&sslrootcert=/etc/godwit/db/authority.pem"
WITH_KEY = f"{URL}&sslcert=/etc/godwit/db/client.pem&sslkey=/etc/godwit/db/client.key"


DATABASE, REQUEST, SIGNATURE, CERTIFICATE, FIRST_SERVER = blocks("security.md", "PostgreSQL with client certificates")
(INVITATION,) = blocks("operations.md", "4. Inviting a server")
(JOINING,) = blocks("operations.md", "5. Joining")
BACKUP, VERIFY, STOP, RESTORE, START, _REBUILD = blocks("operations.md", "9. Backups")


class Guided(Machines):
    """Machines on which somebody types what a page says, with the machines' addresses in the place of the page's."""

    def type(self, name: str, block: str, given: str = "", **others: str) -> str:
        """*others*: further words of the page, and what is typed in their place."""
        return self.on(name, f"set -e\n{self.here(block, **others)}", given)

    def here(self, text: str, **others: str) -> str:
        for word, other in others.items():
            text = re.sub(rf"\b{re.escape(word)}\b", other, text)
        text = text.replace("10.0.0.0/24", self.network.subnet).replace("/15/", f"/{self.postgres}/")
        return re.sub(r"\b10\.0\.0\.(\d+)\b", lambda found: self.network.address(int(found[1])), text)

    def make_candidate(self, name: str) -> None:
        """Step 2, which is written for s1."""
        for where, block in ((name, REQUEST), ("db", SIGNATURE), (name, CERTIFICATE)):
            self.type(where, block, s1=name)

    def let_join(self, name: str, block: str) -> str:
        """Steps 4 and 5 of the guide, which are written for s2: what the last commands say."""
        (token,) = re.findall(r"GW1\.\S+", self.type("s1", INVITATION, s2=name))
        there = {"s2": name, "10.0.0.2": f"10.0.0.{NUMBERS[name]}"}
        return self.type(name, f"export GODWIT_TOKEN={token}\n{block}", **there)

    def said_by_database(self, url: str, password: str = "") -> str:
        """What it says to s1, which asks for 1; fails the test if that is answered."""
        done = self.tried("s1", f'psql -At -c "SELECT 1" "{self.here(url)}"', PGPASSWORD=password)
        assert done.returncode == 2, done
        return done.stderr


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guided]:
    """Two candidates, made as the pages say; s3 is a machine on which nothing was typed yet."""
    need_machines()
    made = Guided(tmp_path_factory.mktemp("certificates"), NUMBERS)
    try:
        made.boot()
        made.type("db", DATABASE)
        made.make_candidate("s1")
        made.type("s1", FIRST_SERVER)
        made.make_candidate("s2")
        assert "names files that are not here" not in made.let_join("s2", JOINING)
        yield made
    finally:
        made.end()


def test_two_candidates_share_files(machines: Guided) -> None:
    machines.on("s1", "echo from s1 > /mnt/godwit/file")
    assert machines.on("s2", "cat /mnt/godwit/file") == "from s1\n"
    assert "password" not in machines.on("s2", "cat /etc/godwit/godwit.toml")
    assert (
        machines.on("s2", f'psql -At -c "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()" "{machines.here(WITH_KEY)}"')
        == "t\n"
    )
    # The other takes the office over: it reaches the database, too.
    machines.on("s1", "systemctl stop godwit-manager")
    wait_until(lambda: "s2*" in machines.tried("s2", "godwit servers ls").stdout, "s2 is the manager", 30)
    machines.on("s1", "systemctl start godwit-manager")
    machines.on("s1", "echo again >> /mnt/godwit/file")
    assert machines.on("s2", "cat /mnt/godwit/file") == "from s1\nagain\n"


def test_the_database_takes_nobody_else(machines: Guided, tmp_path: Path) -> None:
    postgres = "runuser -u postgres -- psql -v ON_ERROR_STOP=1"
    machines.on("db", f"{postgres} -c \"ALTER ROLE godwit PASSWORD 'known'\"")
    assert "connection requires a valid client certificate" in machines.said_by_database(URL)
    assert "connection requires a valid client certificate" in machines.said_by_database(URL, "known")
    assert "no pg_hba.conf entry" in machines.said_by_database("postgresql://godwit@10.0.0.9/godwit?sslmode=disable", "known")
    assert "no pg_hba.conf entry" in machines.said_by_database(WITH_KEY.replace("9/godwit", "9/postgres"), "known")
    # Of this authority, for somebody else; of another authority.
    make = "openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    machines.on("s1", f"{make} -subj /CN=other -keyout {tmp_path}/other.key -out {tmp_path}/other.csr")
    sign = "openssl x509 -req -CA /etc/ssl/godwit/authority.pem -CAkey /etc/ssl/godwit/authority.key -CAcreateserial"
    machines.on("db", f"{sign} -in {tmp_path}/other.csr -out {tmp_path}/other.pem")
    machines.on("s1", f"{make} -x509 -subj /CN=godwit -keyout {tmp_path}/own.key -out {tmp_path}/own.pem")
    assert 'certificate authentication failed for user "godwit"' in machines.said_by_database(
        f"{URL}&sslcert={tmp_path}/other.pem&sslkey={tmp_path}/other.key", "known"
    )
    assert "unknown ca" in machines.said_by_database(f"{URL}&sslcert={tmp_path}/own.pem&sslkey={tmp_path}/own.key", "known")
    assert machines.on("s1", f'psql -At -c "SELECT 1" "{machines.here(WITH_KEY)}"') == "1\n"


def test_who_joins_is_told_which_files_the_url_names(machines: Guided) -> None:
    (join, *_) = JOINING.split("godwit units")
    joined = machines.let_join("s3", join)
    assert "The database's URL names files that are not here yet" in joined
    for name in ("authority.pem", "client.pem", "client.key"):
        assert f"/etc/godwit/db/{name}" in joined


def test_backups_are_made_and_brought_back(machines: Guided, tmp_path: Path) -> None:
    machines.on("s1", "echo kept > /mnt/godwit/kept; sync /mnt/godwit/kept; sync -f /mnt/godwit")
    machines.type("s1", BACKUP, root=f"{tmp_path}"[1:])
    assert "good" in machines.type("s1", VERIFY, root=f"{tmp_path}"[1:])
    for name in ("s1", "s2"):
        machines.type(name, STOP)
    machines.type("s1", RESTORE, "y\n", root=f"{tmp_path}"[1:])
    for name in ("s1", "s2"):
        machines.type(name, START)
    wait_until(lambda: machines.tried("s2", "cat /mnt/godwit/kept").stdout == "kept\n", "the network goes on", 60)


def test_a_new_authority_keeps_out_whoever_has_an_old_key(machines: Guided, tmp_path: Path) -> None:
    """The last one: a thief has the files of s1."""
    machines.on("s1", f"cp -r /etc/godwit/db {tmp_path}/stolen; rm -r /etc/godwit/db")
    machines.on("s2", "rm -r /etc/godwit/db")
    machines.on("db", "rm -r /etc/ssl/godwit")
    repeated = [command for command in re.split(r"(?<!\\)\n", DATABASE) if re.match(r"mkdir|cd|openssl|install", command)]
    machines.type("db", "\n".join([*repeated, "systemctl restart postgresql"]))
    for name in ("s1", "s2"):
        machines.make_candidate(name)
    for name in ("s1", "s2"):
        machines.on(name, "systemctl stop godwit-manager; systemctl start godwit-manager")
    assert machines.on("s1", f'psql -At -c "SELECT 1" "{machines.here(WITH_KEY)}"') == "1\n"
    stolen = WITH_KEY.replace("client.", f"{tmp_path}/stolen/client.").replace(f"/etc/godwit/db/{tmp_path}", f"{tmp_path}")
    # The new authority has the old one's name, but another key.
    assert "alert decrypt error" in machines.said_by_database(stolen)
    wait_until(lambda: machines.tried("s2", "echo new >> /mnt/godwit/file").returncode == 0, "the network goes on", 60)
