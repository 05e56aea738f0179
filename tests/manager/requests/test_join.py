"""One-time tokens: good once, for one server, until they expire; and, for the machine that used one, a minute longer."""

from functools import partial
from typing import Any

import msgspec
import pytest
from sqlalchemy import delete, func, insert, select, update

from cluster.clock import file_time_ns
from cluster.errors import ProtocolError, Refused
from cluster.invitations import digest_of, new_token
from cluster.messages import PROTOCOL, Elsewhere, Join, Joined
from manager.catalog.schema import invitations, servers
from manager.catalog.store import Transaction
from manager.requests.connection import Connection
from manager.requests.join import REPEAT_S, check_join, check_shared, joined
from manager.term import Term
from tests.manager.office import Office, in_office

MINUTE_NS = 60 * 10**9
SHARED = "postgresql+psycopg://godwit:pw@10.0.0.9/godwit"


def request(token: str, server: str = "s4", manager: str = "10.0.0.4:7400", machine: bytes = b"machine 4") -> Join:
    return Join(PROTOCOL, token, server, manager, machine)


async def invite(office: Office, server: str = "s4", valid_ns: int = MINUTE_NS) -> str:
    token = new_token()
    values = {"digest": digest_of(token), "server": server, "expires_ns": file_time_ns() + valid_ns}
    await office.store.write(lambda tx: tx.execute(insert(invitations), values).rowcount)
    return token


async def ask(office: Office, join: Join) -> Joined:
    """As a machine that has not said `Hello`, to a manager whose catalog others can reach."""
    assert office.term is not None
    office.term.config = msgspec.structs.replace(
        office.term.config, manager=msgspec.structs.replace(office.term.config.manager, database=SHARED)
    )

    async def send(_reply: Any, _body: Any) -> None:
        raise AssertionError("managers answer once")

    reply = await Connection(office, "test").handle(join, b"", send)
    assert isinstance(reply, Joined)
    return reply


async def refusal(office: Office, join: Join) -> str:
    with pytest.raises(Refused) as refused:
        await ask(office, join)
    return str(refused.value)


async def test_a_token_is_good_once_for_its_server(office: Office) -> None:
    token = await invite(office)
    assert "is for s4, not for s5" in await refusal(office, request(token, server="s5"))
    got = await ask(office, request(token))
    assert office.term is not None
    assert (got.cluster, got.secret, got.database) == ("test", office.term.config.secret, SHARED)
    assert got.managers[-1] == "10.0.0.4:7400"
    other = "it was used, taken back by a newer one, or mistyped"
    assert other in await refusal(office, request(token, machine=b"another machine"))
    assert other in await refusal(office, request(new_token()))
    assert other in await refusal(office, request(""))


async def test_a_lost_reply_does_not_lock_the_server_out(office: Office) -> None:
    token = await invite(office)
    first = await ask(office, request(token))
    assert await ask(office, request(token)) == first
    assert await ask(office, request(token)) == first
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


async def test_the_address_of_another_server_is_refused_and_the_token_stays_good(office: Office) -> None:
    for server in ("s2", "s4"):
        await office.store.write(partial(_add_server, server=server, manager=f"10.0.0.{server[1]}:7400"))
    token = await invite(office)
    assert "10.0.0.2:7400 is the address of s2" in await refusal(office, request(token, manager="10.0.0.2:7400"))
    got = await ask(office, request(token))
    assert got.managers[-2:] == ["10.0.0.2:7400", "10.0.0.4:7400"]


def _add_server(tx: Transaction, server: str, manager: str) -> None:
    tx.execute(insert(servers), {"server": server, "manager": manager})


def test_malformed_requests_are_refused() -> None:
    with pytest.raises(ProtocolError, match="upgrade"):
        check_join(msgspec.structs.replace(request("token"), protocol=PROTOCOL + 1))
    for field, value in (("token", "x" * 300), ("server", "s" * 300), ("manager", "h" * 300 + ":1"), ("machine", b"x" * 300)):
        with pytest.raises(ProtocolError, match="malformed"):
            check_join(msgspec.structs.replace(request("token"), **{field: value}))
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
def test_a_catalog_that_others_cannot_reach_is_joined_by_nobody(database: str, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        check_shared(database)


async def test_nobody_joins_a_catalog_in_a_file(sqlite_url: str) -> None:
    """It would make a catalog of its own and be the manager of that."""

    async with in_office(sqlite_url) as office:
        token = await invite(office)
        with pytest.raises(Refused, match="SQLite file"):
            await Connection(office, "test").handle(request(token), b"", _no_send)
        count = select(func.count()).select_from(invitations).where(invitations.c.digest == digest_of(token))
        assert await office.store.read(lambda connection: connection.execute(count).scalar_one()) == 1


async def _no_send(_reply: Any, _body: Any) -> None:
    raise AssertionError("managers answer once")


async def test_settings_that_must_agree_are_handed_over(sqlite_url: str) -> None:
    async with in_office(sqlite_url) as office:
        assert office.term is not None
        config = office.term.config
        manager = msgspec.structs.replace(config.manager, term_s=3.5, access_s=20.0)
        mount = msgspec.structs.replace(config.mount, renew_s=4.0, commit_s=1.0)
        got = joined(msgspec.structs.replace(config, manager=manager, mount=mount), [])
        assert got.manager | {"term_s": 3.5, "access_s": 20.0} == got.manager
        assert not got.manager.keys() & {"listen", "database"}
        assert got.mount == {"renew_s": 4.0}


async def test_a_candidate_without_the_office_says_who_has_it() -> None:
    class Other:
        term: Term | None = None

        def describe_manager(self) -> str:
            return "somebody else"

        def answer(self, asked: Any) -> Any:
            assert isinstance(asked, Join)
            return Elsewhere("10.0.0.1:7400")

    reply = await Connection(Other(), "test").handle(request("token"), b"", _no_send)
    assert reply == Elsewhere("10.0.0.1:7400")
