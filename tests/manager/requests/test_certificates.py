"""A certificate is renewed for exactly the process that asks."""

import math
from typing import Any

import msgspec
import pytest

from cluster.errors import Refused
from cluster.messages import Certified, GetServer, Ping, RenewCertificate
from cluster.trust.authority import certified, new_key, own_certificate, request_for
from cluster.trust.identity import Identity, Peer, Role
from manager.requests.connection import Connection
from tests.manager.office import Office
from tests.support.trust import authority, peer


async def _no_send(_reply: Any, _body: Any) -> None:
    raise AssertionError("managers answer once")


async def ask(office: Office, who: Peer, request: bytes | None = None) -> Certified:
    renewal = RenewCertificate(request_for(new_key()) if request is None else request)
    connection = Connection(office, "test", who)
    assert connection.at_once(renewal) is None
    reply = await connection.handle(renewal, b"", _no_send)
    assert isinstance(reply, Certified)
    return reply


@pytest.mark.parametrize("role", Role)
async def test_it_names_who_asks(office: Office, role: Role) -> None:
    who = Peer("10.0.0.7:1", Identity("test", "s7", role, 5))
    key = new_key()
    got = await ask(office, who, request_for(key))
    found = own_certificate(got.certificate)
    assert certified(found) == who.identity
    assert found.public_key() == key.public_key()
    assert got.authorities == authority().pem


async def test_who_has_none_or_asks_for_rubbish_is_refused(office: Office) -> None:
    with pytest.raises(Refused, match="without a certificate"):
        await ask(office, Peer("10.0.0.7:1"))
    for rubbish in (b"", b"x" * 100, b"x" * 5000):
        with pytest.raises(Refused, match="request to sign"):
            await ask(office, peer("s1", "agent"), rubbish)


async def test_how_long_it_is_good_is_configured(office: Office) -> None:
    assert office.term is not None
    manager = msgspec.structs.replace(office.term.config.manager, certificate_s=3600.0)
    office.term.config = msgspec.structs.replace(office.term.config, manager=manager)
    found = own_certificate((await ask(office, peer("s1", "mount"))).certificate)
    assert (found.not_valid_after_utc - found.not_valid_before_utc).total_seconds() == pytest.approx(86400 + 3600)


async def test_one_that_was_not_renewed_is_a_problem_of_its_server(office: Office) -> None:
    agent = await office.peer("s2", "agent")
    await agent.volume("u2")

    async def problems() -> list[str]:
        return (await office.admin.ask(GetServer("s2"))).info.problems

    assert await problems() == []
    session = office.state.sessions.of_server("s2", "agent")
    assert session is not None
    assert session.peer is not None
    session.peer = session.peer._replace(missed_s=0.0, ends_s=0.0)
    said = "the certificate of its {} ends in 0.0 days, and was not renewed: its log says why"
    assert await problems() == [said.format("agent")]
    assert office.term is not None
    for missed_s, expected in ((0.0, [said.format("agent"), said.format("manager")]), (math.inf, [said.format("agent")])):
        candidate = peer("s2", "manager")._replace(missed_s=missed_s, ends_s=missed_s)
        # An office is no candidate, and does not answer; but it has met it.
        with pytest.raises(AssertionError, match="is no candidate"):
            Connection(office, "test", candidate).at_once(Ping("test"))
        assert await problems() == expected
