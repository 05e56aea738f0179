"""One-time tokens: good once, for one server, until they expire; and, for the keys that used one, a minute longer."""

from functools import cache, partial
from typing import Any

import msgspec
import pytest
from sqlalchemy import delete, func, insert, select, update

from cluster.clock import file_time_ns
from cluster.errors import ProtocolError, Refused
from cluster.messages import PROTOCOL, AddServer, AskAuthority, Authorities, Elsewhere, Join, Joined
from cluster.trust.authority import Authority, certified, new_key, own_certificate, request_for
from cluster.trust.identity import Identity, Peer, Role
from cluster.trust.tokens import digest_of, new_secret, parse_token
from manager.catalog.schema import epochs, invitations, servers
from manager.catalog.store import Transaction
from manager.requests.connection import Connection
from manager.requests.join import REPEAT_S, Invited, check_join, check_shared, joined
from manager.term import Term
from tests.manager.office import Office, in_office
from tests.support.trust import MASTER, authority

MINUTE_NS = 60 * 10**9
SHARED = "postgresql+psycopg://godwit:pw@10.0.0.9/godwit"


@cache
def requests_of(machine: str) -> dict[str, bytes]:
    """What a machine has made keys for."""
    return {role: request_for(new_key()) for role in Role}


def request(secret: str, server: str = "s4", manager: str = "10.0.0.4:7400", machine: str = "machine 4") -> Join:
    return Join(PROTOCOL, secret, server, manager, requests_of(machine))


async def invite(office: Office, server: str = "s4", valid_ns: int = MINUTE_NS, *, candidate: bool = True, epoch: int = 1) -> str:
    secret = new_secret()
    values = {
        "digest": digest_of(secret),
        "server": server,
        "expires_ns": file_time_ns() + valid_ns,
        "candidate": int(candidate),
        "epoch": epoch,
    }
    await office.store.write(lambda tx: tx.execute(insert(invitations), values).rowcount)
    return secret


def share(office: Office) -> None:
    """As if others could reach the catalog."""
    assert office.term is not None
    manager = msgspec.structs.replace(office.term.config.manager, database=SHARED)
    office.term.config = msgspec.structs.replace(office.term.config, manager=manager)


async def ask(office: Office, join: Join) -> Joined:
    """As a machine that has not said `Hello`, to a manager whose catalog others can reach."""
    share(office)
    reply = await Connection(office, "test", Peer("127.0.0.1:1")).handle(join, b"", _no_send)
    assert isinstance(reply, Joined)
    return reply


async def refusal(office: Office, join: Join) -> str:
    with pytest.raises(Refused) as refused:
        await ask(office, join)
    return str(refused.value)


def named(got: Joined) -> dict[str, Identity]:
    """Whom the certificates name."""
    return {role: certified(own_certificate(pem)) for role, pem in got.certificates.items()}


async def test_a_token_is_good_once_for_its_server(office: Office) -> None:
    token = await invite(office)
    assert "is for s4, not for s5" in await refusal(office, request(token, server="s5"))
    got = await ask(office, request(token))
    assert (got.cluster, got.database, got.master) == ("test", SHARED, MASTER)
    assert Authority.load(got.authority).pin == authority().pin
    assert got.authorities == authority().pem
    assert got.managers[-1] == "10.0.0.4:7400"
    assert named(got) == {role: Identity("test", "s4", role, 1) for role in Role}
    other = "it was used, taken back by a newer one, or mistyped"
    assert other in await refusal(office, request(token, machine="another machine"))
    assert other in await refusal(office, request(new_secret()))
    assert other in await refusal(office, request(""))


async def test_only_a_candidate_gets_what_a_manager_needs(office: Office) -> None:
    token = await invite(office, candidate=False)
    got = await ask(office, request(token))
    assert (got.database, got.authority, got.master) == ("", b"", b"")
    assert "10.0.0.4:7400" not in got.managers
    assert set(named(got)) == {Role.AGENT, Role.MOUNT, Role.ADMIN}
    encoded = msgspec.msgpack.encode(got)
    assert MASTER not in encoded
    assert b"PRIVATE" not in encoded
    assert b"postgresql" not in encoded


async def test_the_keys_are_certified_that_were_asked_for(office: Office) -> None:
    keys = {role: new_key() for role in Role}
    asked = Join(PROTOCOL, await invite(office), "s4", "10.0.0.4:7400", {role: request_for(key) for role, key in keys.items()})
    got = await ask(office, asked)
    for role, key in keys.items():
        assert own_certificate(got.certificates[role]).public_key() == key.public_key()


async def test_a_lost_reply_does_not_lock_the_server_out(office: Office) -> None:
    token = await invite(office, epoch=3)
    first = await ask(office, request(token))
    for _ in range(2):
        again = await ask(office, request(token))
        assert named(again) == named(first)
        assert (again.database, again.managers) == (first.database, first.managers)
    await office.store.write(_all_older_by(int(REPEAT_S * 1e9)))
    assert "has expired" in await refusal(office, request(token))


def _all_older_by(ns: int) -> Any:
    def work(tx: Transaction) -> None:
        tx.execute(update(invitations).values(expires_ns=invitations.c.expires_ns - ns))

    return work


async def test_an_expired_token_says_so_and_goes_in_the_end(office: Office) -> None:
    expired = await invite(office, "s5", valid_ns=-1)
    assert "has expired: get a new one with godwit servers add s5" in await refusal(office, request(expired, "s5"))
    await office.store.write(_all_older_by(86400 * 10**9))
    await ask(office, request(await invite(office)))
    count = select(func.count()).select_from(invitations)
    assert await office.store.read(lambda connection: connection.execute(count).scalar_one()) == 1


async def test_a_newer_invitation_takes_the_repeat_back(office: Office) -> None:
    token = await invite(office)
    await ask(office, request(token))
    await office.store.write(lambda tx: tx.execute(delete(invitations).where(invitations.c.server == "s4")).rowcount)
    assert "taken back" in await refusal(office, request(token))


async def test_what_cannot_be_signed_uses_no_token_up(office: Office) -> None:
    token = await invite(office)
    good = request(token)
    for bad in (b"", b"rubbish", good.requests["agent"][:-1] + b"x", b"x" * 5000):
        await refusal(office, msgspec.structs.replace(good, requests={**good.requests, "agent": bad}))
    await ask(office, good)


async def test_the_address_of_another_server_is_refused_and_the_token_stays_good(office: Office) -> None:
    for server in ("s2", "s4"):
        await office.store.write(partial(_add_server, server=server, manager=f"10.0.0.{server[1]}:7400"))
    token = await invite(office)
    assert "10.0.0.2:7400 is the address of s2" in await refusal(office, request(token, manager="10.0.0.2:7400"))
    got = await ask(office, request(token))
    assert got.managers[-2:] == ["10.0.0.2:7400", "10.0.0.4:7400"]


def _add_server(tx: Transaction, server: str, manager: str) -> None:
    tx.execute(insert(servers), {"server": server, "manager": manager})


async def test_a_command_makes_tokens_of_both_kinds(office: Office) -> None:
    share(office)
    for candidate in (False, True):
        added = await office.admin.ask(AddServer("s4", 60.0, candidate))
        token = parse_token(added.token)
        assert token.pin == authority().pin
        assert bool((await ask(office, request(token.secret))).authority) == candidate


async def test_a_server_that_has_its_configuration_stays_what_it_is(office: Office) -> None:
    none, candidate = await invite(office, "s4", candidate=False), await invite(office, "s5")
    again = msgspec.structs.replace(request(none), again=True)
    assert "is a candidate by its configuration" in await refusal(office, again)
    assert (await ask(office, msgspec.structs.replace(again, manager=""))).authority == b""
    again = msgspec.structs.replace(request(candidate, "s5"), again=True)
    assert "is not by its configuration" in await refusal(office, msgspec.structs.replace(again, manager=""))
    assert (await ask(office, again)).authority != b""


async def test_the_epoch_of_the_certificates_is_noted(office: Office) -> None:
    await ask(office, request(await invite(office, epoch=4)))
    query = select(epochs.c.epoch, epochs.c.least).where(epochs.c.server == "s4")
    assert await office.store.read(lambda connection: tuple(connection.execute(query).one())) == (4, 1)


def test_malformed_requests_are_refused() -> None:
    with pytest.raises(ProtocolError, match="upgrade"):
        check_join(msgspec.structs.replace(request("token"), protocol=PROTOCOL + 1))
    for field, value in (("secret", "x" * 300), ("server", "s" * 300), ("manager", "h" * 300 + ":1")):
        with pytest.raises(ProtocolError, match="malformed"):
            check_join(msgspec.structs.replace(request("token"), **{field: value}))
    good = requests_of("machine 4")
    for requests in ({}, {**good, "king": b""}, {role: asked for role, asked in good.items() if role != "agent"}):
        with pytest.raises(ProtocolError, match="asks for certificates of"):
            check_join(msgspec.structs.replace(request("token"), requests=requests))
    with pytest.raises(Refused, match="not an address"):
        check_join(request("token", manager="10.0.0.4"))


@pytest.mark.parametrize(
    ("database", "reason"),
    [
        ("sqlite:////var/lib/godwit/catalog.db", "SQLite file"),
        ("postgresql+psycopg://godwit@/godwit?host=/run/postgresql", "no host"),
        ("postgresql+psycopg://godwit@localhost/godwit", "no host"),
        ("postgresql+psycopg://godwit@127.0.0.1:5432/godwit", "no host"),
    ],
)
def test_a_catalog_that_others_cannot_reach_has_no_further_candidate(database: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        check_shared(database)


async def test_no_candidate_joins_a_catalog_in_a_file(sqlite_url: str) -> None:
    """It would make a catalog of its own and be the manager of that. A server that is none needs no database."""

    async with in_office(sqlite_url) as office:
        with pytest.raises(Refused, match="SQLite file"):
            await office.admin.ask(AddServer("s4", 60.0, candidate=True))
        token = await invite(office)
        with pytest.raises(Refused, match="SQLite file"):
            await Connection(office, "test", Peer("127.0.0.1:1")).handle(request(token), b"", _no_send)
        count = select(func.count()).select_from(invitations).where(invitations.c.digest == digest_of(token))
        assert await office.store.read(lambda connection: connection.execute(count).scalar_one()) == 1
        token = parse_token((await office.admin.ask(AddServer("s4"))).token).secret
        got = await Connection(office, "test", Peer("127.0.0.1:1")).handle(request(token), b"", _no_send)
        assert got.database == ""


async def _no_send(_reply: Any, _body: Any) -> None:
    raise AssertionError("managers answer once")


async def test_settings_that_must_agree_are_handed_over(sqlite_url: str) -> None:
    async with in_office(sqlite_url) as office:
        assert office.term is not None
        config = office.term.config
        manager = msgspec.structs.replace(config.manager, term_s=3.5, access_s=20.0)
        mount = msgspec.structs.replace(config.mount, renew_s=4.0, commit_s=1.0)
        changed = msgspec.structs.replace(config, manager=manager, mount=mount)
        got = joined(changed, authority(), authority().pem, request("token"), Invited(False, 1, []))
        assert got.manager | {"term_s": 3.5, "access_s": 20.0} == got.manager
        assert not got.manager.keys() & {"listen", "database"}
        assert got.mount == {"renew_s": 4.0}


async def test_a_candidate_without_the_office_says_who_has_it_and_who_certified_it() -> None:
    class Other:
        term: Term | None = None

        def describe_manager(self) -> str:
            return "somebody else"

        def answer(self, asked: Any) -> Any:
            return Elsewhere("10.0.0.1:7400") if isinstance(asked, Join) else Authorities(b"PEM")

    connection = Connection(Other(), "test", Peer("127.0.0.1:1"))
    assert await connection.handle(request("token"), b"", _no_send) == Elsewhere("10.0.0.1:7400")
    assert connection.at_once(AskAuthority()) == Authorities(b"PEM")
