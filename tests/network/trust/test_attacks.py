"""Each way in that was found while ports trusted whoever connected, tried on a network that runs: refused, logged, harmless.

The network is a lab, and then one of machines that were set up by the operators' guide.
"""

import errno
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import trio

from cli.commands.join import ask_to_join, request_to_join
from cluster.clock import file_time_ns
from cluster.config import credentials_of
from cluster.decoding import Decode, from_msgpack
from cluster.errors import GodwitError, ProtocolError, Refused, TokenRefused, Unavailable
from cluster.leases import WRITE, LeaseKeys, LeaseToken
from cluster.messages import (
    MANAGER_UNION,
    PROTOCOL,
    ROOT_INO,
    AddServer,
    Apply,
    AskCatalog,
    AskHearing,
    AskOffice,
    Create,
    CreateObject,
    Data,
    GetStatus,
    Hello,
    Joined,
    ListVolumes,
    MakeRoom,
    Open,
    Ping,
    Pong,
    ReadObject,
    RegisterVolumes,
    Request,
    SetPolicy,
    StepDown,
    TakeInodes,
    VolumeState,
)
from cluster.rpc.connection import connect
from cluster.rpc.serving import Handler, Replies, listen
from cluster.rpc.session import ManagerSession
from cluster.rpc.wire import A_MANAGER, parse_address
from cluster.trust.authority import Authority, new_key
from cluster.trust.credentials import Credentials
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role
from cluster.trust.issue import issue
from cluster.trust.tokens import JoinToken, new_secret, parse_token
from lab.lab import Lab
from tests.agent.network import free_address
from tests.conftest import watching
from tests.support.attacked import Attacked, hello, of_lab, of_machines
from tests.support.conditions import wait_until
from tests.support.trust import answer_to

TIMEOUT_S = 5.0
SUID_FILE = b"attack"
HOUR_S = 3600.0


def forged(
    path: Path, authority: Authority, cluster: str, server: str, role: Role, *, believes: bytes = b"", **options: Any
) -> Credentials:
    """Credentials that *authority* has signed for that name; they believe *believes*, so that only the other end refuses."""
    folder = TrustFolder(path)
    issue(folder, authority, cluster, server, roles=[role], **options)
    if believes:
        folder.write_authorities(believes)
    return Credentials(folder, role)


def create(name: bytes, ino: int, mode: int) -> Apply:
    return Apply(1, 1, [Create(ROOT_INO, name, ino, stat.S_IFREG | mode, 0, 0, 0, file_time_ns())])


@pytest.fixture(scope="module", params=["by_default", "provisioned"])
def attacked(request: pytest.FixtureRequest) -> Attacked:
    """The session's lab, and then the machines that the guide's commands have made a network of."""
    found = request.getfixturevalue(request.param)
    return of_lab(found) if isinstance(found, Lab) else of_machines(found)


@pytest.fixture(autouse=True)
def unharmed(attacked: Attacked) -> Iterator[None]:
    """Whatever was tried, the network works as before, and nothing of it is there."""
    with watching(attacked.quiet, (b"",)), watching(attacked.logs):
        yield
    for server in attacked.servers:
        assert SUID_FILE.decode() not in os.listdir(attacked.mount(server))
    path = attacked.mount("s1") / f"unharmed-{time.monotonic_ns()}"
    path.write_bytes(b"content")
    assert (attacked.mount("s2") / path.name).read_bytes() == b"content"
    path.unlink()


# ------------------------------------------------------------------------------------------------ without a certificate

OF_STRANGERS: list[Request[Any]] = [
    Ping("x"),
    AskHearing("x", 1),
    AskCatalog("x"),
    AskOffice("x"),
    Hello(PROTOCOL, "x", "s1", "mount", 1),
    create(SUID_FILE, 77, 0o4755),
    TakeInodes(100),
    RegisterVolumes("192.0.2.1:7401", [VolumeState("u9", "/srv", 1 << 50, 1 << 50, "disk")]),
    StepDown(1),
    SetPolicy(ROOT_INO, 1, 1),
    GetStatus(),
]


@pytest.mark.parametrize("request_", OF_STRANGERS, ids=lambda request: type(request).__name__)
def test_who_has_no_certificate_may_not_even_ask_who_is_there(attacked: Attacked, request_: Request[Any]) -> None:
    with pytest.raises(Refused, match="somebody without a certificate") as refusal:
        answer_to(attacked.manager.manager.listen, attacked.newcomer, request_)
    assert refusal.value.errno == errno.EPERM


@pytest.mark.parametrize("request_", [CreateObject(7, 1), ReadObject(7, 1, b"", 0, 1), MakeRoom("s1", 1, 0.0)])
def test_who_has_no_certificate_gets_nothing_of_an_agent(attacked: Attacked, request_: Request[Any]) -> None:
    with pytest.raises(Refused, match="somebody without a certificate"):
        answer_to(attacked.configs["s1"].agent.listen, attacked.newcomer, request_)
    attacked.assert_logged("agent", "refused", "which is for:")


def test_the_refusal_is_logged_with_the_address(attacked: Attacked) -> None:
    with pytest.raises(Refused):
        answer_to(attacked.manager.manager.listen, attacked.newcomer, GetStatus())
    attacked.assert_logged("manager", "refused 10.", "which is for:")


# --------------------------------------------------------------------------------------------------- with a wrong one


@pytest.mark.parametrize("part", ["manager", "agent"])
def test_another_networks_certificate_is_none(attacked: Attacked, tmp_path: Path, part: str) -> None:
    config = attacked.manager
    others = Authority.make(config.cluster)
    uninvited = forged(tmp_path, others, config.cluster, "s9", Role.AGENT, believes=attacked.authority.pem)
    address = config.manager.listen if part == "manager" else config.agent.listen
    requests: list[Request[Any]] = [
        hello(config, "s9", "agent"),
        RegisterVolumes("192.0.2.1:7401", [VolumeState("u9", "/srv", 1, 1, "disk")]),
    ]
    with pytest.raises(Unavailable):
        answer_to(address, uninvited, *requests)
    attacked.assert_logged(part, "refused 10.", "its certificate is not one of this network")
    assert {volume.server for volume in attacked.answer(ListVolumes()).volumes} == set(attacked.servers)


@pytest.mark.parametrize("part", ["manager", "agent"])
def test_an_expired_certificate_is_none(attacked: Attacked, tmp_path: Path, part: str) -> None:
    config = attacked.manager
    expired = forged(tmp_path, attacked.authority, config.cluster, "s1", Role.MOUNT, valid_s=-HOUR_S)
    with pytest.raises(Unavailable):
        answer_to(config.manager.listen if part == "manager" else config.agent.listen, expired, hello(config, "s1", "mount"))
    attacked.assert_logged(part, "refused 10.", "certificate has expired")


def test_a_certificate_of_another_cluster_of_the_same_authority_is_none(attacked: Attacked, tmp_path: Path) -> None:
    config = attacked.manager
    other = forged(tmp_path, attacked.authority, "another", "s1", Role.MOUNT)
    with pytest.raises(GodwitError):
        answer_to(config.manager.listen, other, hello(config, "s1", "mount"))
    attacked.assert_logged("manager", "refused 10.", "of cluster 'another'")


def test_nobody_is_a_client_that_believes_another_authority(attacked: Attacked, tmp_path: Path) -> None:
    """A man in the middle with a certificate of his own is not given a byte."""
    config = attacked.manager
    others = Authority.make(config.cluster)
    middle = forged(tmp_path / "middle", others, config.cluster, config.server, Role.MANAGER)
    mount = credentials_of(attacked.configs["s1"], Role.MOUNT)
    received: list[bytes] = []

    async def listener(stream: trio.SocketStream) -> None:
        secured = trio.SSLStream(stream, middle.serving, server_side=True, https_compatible=True)
        try:
            received.append(bytes(await secured.receive_some()))
        except trio.BrokenResourceError:
            received.append(b"")

    async def main() -> None:
        address = free_address()
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(parse_address(address)[1], host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, listener, listeners)
            with pytest.raises(Unavailable, match="not one of this network"):
                await connect(address, nursery, mount, A_MANAGER, timeout_s=TIMEOUT_S)
            while not received:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert received == [b""]


# ------------------------------------------------------------------------------------- with a right one, of another role


@pytest.mark.parametrize(
    ("role", "request_"),
    [
        (Role.AGENT, create(SUID_FILE, 77, 0o4755)),
        (Role.ADMIN, create(SUID_FILE, 77, 0o4755)),
        (Role.AGENT, TakeInodes(10)),
        (Role.MOUNT, SetPolicy(ROOT_INO, 1, 1)),
        (Role.MOUNT, StepDown(1)),
        (Role.MOUNT, RegisterVolumes("192.0.2.1:7401", [])),
        (Role.ADMIN, Open(ROOT_INO, True, 1)),
        (Role.MANAGER, GetStatus()),
    ],
)
def test_a_role_may_not_do_what_another_may(attacked: Attacked, role: Role, request_: Request[Any]) -> None:
    config = attacked.manager
    who = credentials_of(config, role)
    first = [hello(config, config.server, role)] if role is Role.ADMIN else []
    with pytest.raises(GodwitError, match=r"which is for:|before Hello") as refusal:
        answer_to(config.manager.listen, who, *first, request_)
    assert not isinstance(refusal.value, Unavailable)


@pytest.mark.parametrize("said", ["s1", "s3", "nobody"])
def test_nobody_says_hello_in_anothers_name(attacked: Attacked, said: str) -> None:
    config = attacked.manager
    with pytest.raises(ProtocolError, match="says that it is"):
        answer_to(config.manager.listen, credentials_of(attacked.configs["s2"], Role.MOUNT), hello(config, said, "mount"))
    with pytest.raises(ProtocolError, match="says that it is"):
        answer_to(config.manager.listen, credentials_of(attacked.configs["s2"], Role.MOUNT), hello(config, "s2", "agent"))
    for server in attacked.servers:
        os.listdir(attacked.mount(server))  # not unmounted


class Impostor(Handler):
    """Says that it is in office, to whoever asks."""

    def at_once(self, request: Any) -> Any:
        return Pong("s2", 10_000, True, "10.0.0.1:7400")

    async def handle(self, request: Any, body: bytes, send: Replies) -> Any:
        raise AssertionError(f"somebody believed it, and asked {request}")

    def closed(self) -> None:
        return


@pytest.mark.parametrize("role", [Role.AGENT, Role.MOUNT, Role.ADMIN])
def test_a_pong_makes_nobody_the_manager_who_is_no_candidate(attacked: Attacked, role: Role) -> None:
    config = attacked.manager
    who, mount = credentials_of(attacked.configs["s2"], role), credentials_of(attacked.configs["s1"], Role.ADMIN)

    async def main() -> str:
        address = free_address()
        decoder: Decode[Any] = from_msgpack(MANAGER_UNION)
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: listen(address, decoder, lambda _: Impostor(), who, task_status=task_status))
            session = ManagerSession(managers=[address, config.manager.listen], credentials=mount)
            nursery.start_soon(session.run)
            status = await session.call(GetStatus(), timeout_s=10.0)
            nursery.cancel_scope.cancel()
        return status.manager

    assert trio.run(main) == config.server


# ------------------------------------------------------------------------------------------------------- lease tokens

YEARS_S = 1e9


class Kept(NamedTuple):
    """Content at s1 that others must not see without a token."""

    ino: int
    volume: int
    term: int  # of the manager


@pytest.fixture
def kept(attacked: Attacked) -> Iterator[Kept]:
    path = attacked.mount("s1") / f"secret-{time.monotonic_ns()}"
    path.write_bytes(b"content")
    # Dirty: the home's content is still that of its writer.
    wait_until(lambda: not attacked.where(path).node.dirty, "it is committed", 20)
    home = next(row for row in attacked.where(path).replicas if row.home)
    assert home.server == "s1"
    yield Kept(path.stat().st_ino, home.volume, attacked.answer(GetStatus()).term)
    path.unlink()


def shown_by(attacked: Attacked, server: str, role: Role, kept: Kept, **changes: Any) -> Any:
    """What the agent of s1 answers to *server*, which shows a token of s3's as a manager makes them, but for *changes*."""
    address = attacked.configs["s1"].agent.listen
    made = LeaseToken(1, kept.ino, WRITE, "s3", kept.volume, address, 1, 1, kept.term, 60.0, YEARS_S, checked_by="s1")
    sealed = LeaseKeys(attacked.trust().read_master()).seal(msgspec.structs.replace(made, **changes))
    return answer_to(address, credentials_of(attacked.configs[server], role), ReadObject(kept.ino, kept.volume, sealed, 0, 7))


def test_a_lease_token_is_good_for_its_holder_only(attacked: Attacked, kept: Kept) -> None:
    assert isinstance(shown_by(attacked, "s3", Role.MOUNT, kept), Data)
    for thief, role in (("s2", Role.MOUNT), ("s2", Role.AGENT), ("s1", Role.AGENT)):
        with pytest.raises(TokenRefused, match=f"is s3's, not {thief}'s"):
            shown_by(attacked, thief, role, kept)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"issued_s": -YEARS_S}, "has expired"),
        ({"ino": 99}, "is for inode 99"),
        ({"checked_by": "s2"}, "not made by a manager of this cluster for this server"),
        ({"term": 9_999}, "of which this agent has not heard"),
    ],
    ids=["replayed later", "of another file", "of another agent", "of a term to come"],
)
def test_a_lease_token_that_is_not_this_one_now_is_none(
    attacked: Attacked, kept: Kept, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(TokenRefused, match=reason):
        shown_by(attacked, "s3", Role.MOUNT, kept, **changes)


# -------------------------------------------------------------------------------------------------------- join tokens

INVITED = "s9"  # nobody ever is that


def tried_to_join(attacked: Attacked, token: JoinToken, server: str = INVITED, address: str = "") -> Joined:
    """What a machine that has this token is given."""
    request = request_to_join(server, "", token, {role: new_key() for role in Role})
    return ask_to_join([address or attacked.manager.manager.listen], token, request, TIMEOUT_S)


def invitation(attacked: Attacked, expires_s: float = HOUR_S) -> JoinToken:
    return parse_token(attacked.answer(AddServer(INVITED, expires_s)).token)


def test_a_join_token_that_no_manager_made_is_none(attacked: Attacked) -> None:
    with pytest.raises(Refused, match="this token is not good"):
        tried_to_join(attacked, JoinToken(attacked.authority.pin, new_secret()))


def test_a_join_token_is_for_the_server_that_it_was_made_for(attacked: Attacked) -> None:
    with pytest.raises(Refused, match=f"this token is for {INVITED}, not for s8"):
        tried_to_join(attacked, invitation(attacked), "s8")


def test_a_join_token_that_has_expired_is_none(attacked: Attacked) -> None:
    token, over_ns = invitation(attacked, expires_s=1.0), file_time_ns() + int(1.0e9)
    wait_until(lambda: file_time_ns() > over_ns, "a second is over")
    with pytest.raises(Refused, match=r"this token (has expired|is not good)"):
        tried_to_join(attacked, token)


def test_a_join_token_is_shown_to_its_own_network_only(attacked: Attacked) -> None:
    token = invitation(attacked)
    with pytest.raises(Refused, match="its certificate authority has another key"):
        tried_to_join(attacked, JoinToken(Authority.make("other").pin, token.secret))


# ------------------------------------------------------------------------------------------------- a man in the middle


def test_a_connection_that_is_tampered_with_breaks_and_nothing_is_believed(attacked: Attacked) -> None:
    config = attacked.manager
    admin = credentials_of(config, Role.ADMIN)

    async def main() -> None:
        address = free_address()
        altered = trio.Event()

        async def relay(asker: trio.SocketStream) -> None:
            manager = await trio.open_tcp_stream(*parse_address(config.manager.listen))
            async with manager, trio.open_nursery() as both:
                both.start_soon(pump, asker, manager, both, False)
                both.start_soon(pump, manager, asker, both, True)

        async def pump(source: trio.SocketStream, target: trio.SocketStream, both: trio.Nursery, alters: bool) -> None:
            try:
                async for data in source:
                    if alters and altered.is_set():
                        data = data[:-1] + bytes([data[-1] ^ 1])
                    await target.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            both.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(parse_address(address)[1], host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, relay, listeners)
            channel = await connect(address, nursery, admin, A_MANAGER, timeout_s=TIMEOUT_S)
            await channel.call(hello(config, config.server, "admin"), timeout_s=TIMEOUT_S)
            assert (await channel.call(GetStatus(), timeout_s=TIMEOUT_S)).manager == config.server
            altered.set()
            with pytest.raises(Unavailable):
                await channel.call(GetStatus(), timeout_s=TIMEOUT_S)
            assert channel.broken.is_set()
            nursery.cancel_scope.cancel()

    trio.run(main)
