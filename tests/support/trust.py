"""Certificates for tests: one authority for a run of tests, and a folder for each server that is asked for."""

import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import trio

from cluster.errors import GodwitError
from cluster.messages import Request
from cluster.rpc.connection import connect
from cluster.rpc.wire import ANYBODY, parse_address
from cluster.trust.authority import CERTIFICATE_S, Authority
from cluster.trust.credentials import Credentials, Newcomer
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Identity, Peer, Role
from cluster.trust.issue import issue_to_candidate

CLUSTER = "test"
TIMEOUT_S = 5.0  # of each question of `answer_to`
MASTER = bytes.fromhex("5e" * 32)


@cache
def authority() -> Authority:
    return Authority.make(CLUSTER)


@cache
def _base() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="godwit-trust-")


@cache
def trust_of(server: str, cluster: str = CLUSTER) -> str:
    """The folder with the certificates of all roles of a server."""
    folder = TrustFolder(Path(_base().name) / cluster / server)
    issue_to_candidate(folder, cluster, server, authority(), MASTER)
    return str(folder.path)


@cache
def credentials(server: str, role: str, cluster: str = CLUSTER) -> Credentials:
    """What a process of that server and role has."""
    return Credentials(TrustFolder(trust_of(server, cluster)), Role(role))


def peer(server: str, role: str, cluster: str = CLUSTER) -> Peer:
    """Who has proved to be that process."""
    return Peer("127.0.0.1:1", Identity(cluster, server, Role(role), 1), time.time() + CERTIFICATE_S, authority=1)


async def raw(address: str, who: Credentials | None = None) -> trio.SSLStream[trio.SocketStream]:
    """A secured connection over which a test sends bytes of its own. If *who* is None it shows no certificate."""
    asking = Newcomer(authority().pem.decode()).asking if who is None else who.asking
    stream = await trio.open_tcp_stream(*parse_address(address))
    secured = trio.SSLStream(stream, asking, https_compatible=True)
    await secured.do_handshake()
    return secured


def answer_to(address: str, who: Credentials, *requests: Request[Any], body: bytes = b"") -> Any:
    """What is answered to the last of these requests; raises what it is refused with."""

    async def ask() -> Any:
        async with trio.open_nursery() as nursery:
            answer: Any = None
            try:
                channel = await connect(address, nursery, who, ANYBODY, timeout_s=TIMEOUT_S)
                for request in requests:
                    sent = body if request is requests[-1] else b""
                    answer = await channel.call(request, timeout_s=TIMEOUT_S, body=sent)
            except GodwitError as error:
                answer = error
            nursery.cancel_scope.cancel()
        return answer

    answer = trio.run(ask)
    if isinstance(answer, GodwitError):
        raise answer
    return answer
