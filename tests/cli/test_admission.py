"""Who joins shows the secret of its token to a manager of the pinned authority, and to nobody else."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from cli.commands.join import join_with_keys, seek_admission
from cluster.decoding import from_msgpack
from cluster.errors import Refused, Unavailable
from cluster.messages import MANAGER_UNION, PROTOCOL, AskAuthority, Authorities, Elsewhere, Join, Joined
from cluster.rpc.serving import Handler, listen
from cluster.trust.authority import Authority, new_key, request_for
from cluster.trust.believed import listing
from cluster.trust.credentials import Credentials
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Peer, Role
from cluster.trust.issue import issue_to_candidate
from cluster.trust.tokens import JoinToken, new_secret
from tests.agent.network import free_address
from tests.support.trust import authority, credentials

JOINED = Joined("test", ["a:1"], {}, b"", {}, {})


class Candidate(Handler):
    """Answers as managers do, or as somebody who would like to be taken for one."""

    def __init__(self, pem: bytes, answer: Joined | Elsewhere = JOINED) -> None:
        self.asked: list[Any] = []
        self._pem = pem
        self._answer = answer

    def to(self, _peer: Peer) -> "Candidate":
        return self

    async def handle(self, request: Any, _body: bytes, _send: Any) -> Any:
        raise AssertionError(f"{request} was answered at once")

    def closed(self) -> None:
        return

    def at_once(self, request: Any) -> Any:
        self.asked.append(request)
        return Authorities(self._pem) if isinstance(request, AskAuthority) else self._answer


@pytest.fixture
def stranger(tmp_path: Path) -> Credentials:
    """A manager of another network that calls itself the same."""
    folder = TrustFolder(tmp_path / "stranger")
    issue_to_candidate(folder, "test", "s1")
    return Credentials(folder, Role.MANAGER)


@pytest.fixture
def token() -> JoinToken:
    return JoinToken(authority().pin, new_secret())


async def seek(token: JoinToken, *there: tuple[Candidate, Credentials], timeout_s: float = 10.0) -> Joined:
    """Asks those who are there, in this order."""
    addresses = [free_address() for _ in there]
    async with trio.open_nursery() as nursery:
        for address, (candidate, who) in zip(addresses, there, strict=True):
            await nursery.start(partial(listen, address, from_msgpack(MANAGER_UNION), candidate.to, who))
        requests: dict[str, bytes] = {role: request_for(new_key()) for role in Role}
        try:
            return await seek_admission(addresses, token, Join(PROTOCOL, token.secret, "s4", "a:1", requests), timeout_s)
        finally:
            nursery.cancel_scope.cancel()


def secrets_in(candidate: Candidate) -> list[Any]:
    return [request for request in candidate.asked if not isinstance(request, AskAuthority)]


async def test_the_manager_of_the_pinned_authority_is_told(token: JoinToken) -> None:
    other = Candidate(authority().pem, Elsewhere("127.0.0.1:1"))
    # One of its authorities has the pinned key: a newer one may be there beside it.
    manager = Candidate(Authority.make("test", 2).pem + authority().pem)
    assert await seek(token, (other, credentials("s2", "manager")), (manager, credentials("s1", "manager"))) == JOINED
    (join,) = secrets_in(manager)
    assert join.secret == token.secret


async def test_a_token_of_the_authority_before_is_refused_with_what_to_do(token: JoinToken) -> None:
    """Managers have certificates of the next one by then, or will in a moment."""
    manager = Candidate(listing(2, [Authority.make("test", 2).pem, authority().pem]))
    with pytest.raises(Refused, match=r"replaced its certificate authority since .* get a new one with godwit servers add"):
        await _unwrapped(seek(token, (manager, credentials("s1", "manager"))))
    assert secrets_in(manager) == []
    # One that is not to sign yet changes nothing.
    introduced = Candidate(listing(1, [authority().pem, Authority.make("test", 2).pem]))
    assert await seek(token, (introduced, credentials("s1", "manager"))) == JOINED


async def test_another_authority_is_refused_and_hears_nothing_of_the_secret(token: JoinToken, stranger: Credentials) -> None:
    impostor = Candidate(stranger.authorities)
    with pytest.raises(Refused, match=r"another key.*The token was not shown to it") as refused:
        await _unwrapped(seek(token, (impostor, stranger)))
    assert token.secret not in str(refused.value)
    assert impostor.asked == [AskAuthority()]


async def test_the_pinned_certificate_alone_proves_nothing(token: JoinToken, stranger: Credentials) -> None:
    """Everybody can have it: only who is certified by its key is told the secret."""
    impostor = Candidate(authority().pem)
    with pytest.raises(Unavailable, match="its certificate is not one of this network"):
        await _unwrapped(seek(token, (impostor, stranger), timeout_s=1.0))
    assert secrets_in(impostor) == []


async def test_an_agent_is_no_manager(token: JoinToken) -> None:
    """Who has broken into a server has its agent's certificate, which serves others."""
    impostor = Candidate(authority().pem)
    with pytest.raises(Unavailable, match="the agent of s3, not a manager"):
        await _unwrapped(seek(token, (impostor, credentials("s3", "agent")), timeout_s=1.0))
    assert secrets_in(impostor) == []


@pytest.mark.parametrize("pem", [b"", b"rubbish", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
async def test_an_answer_that_is_no_authority_is_refused(token: JoinToken, pem: bytes) -> None:
    impostor = Candidate(pem)
    with pytest.raises(Refused, match="no certificates"):
        await _unwrapped(seek(token, (impostor, credentials("s1", "manager"))))
    assert secrets_in(impostor) == []


async def _unwrapped(work: Any) -> Any:
    """Without the groups of the nursery in which those who answer run."""
    try:
        return await work
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def test_keys_stay_for_a_repeat_unless_the_manager_has_refused(tmp_path: Path) -> None:
    folder = TrustFolder(tmp_path / "trust")
    seen = []

    def ask(error: Exception | None) -> Any:
        def asked(keys: Any) -> Joined:
            seen.append({role: key.private_numbers() for role, key in keys.items()})
            if error is not None:
                raise error
            return JOINED

        return asked

    with pytest.raises(Refused):
        join_with_keys(folder, ask(Refused("used")))
    assert not folder.path.exists()
    with pytest.raises(Unavailable):
        join_with_keys(folder, ask(Unavailable("silent")))
    assert folder.credential(Role.AGENT).stat().st_mode & 0o777 == 0o600
    with pytest.raises(Refused):
        join_with_keys(folder, ask(Refused("used")))
    join_with_keys(folder, ask(None))
    assert seen[0] != seen[1] == seen[2] == seen[3]
