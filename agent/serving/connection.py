"""One connection to an agent: who is there, what that role may ask, and whose tokens it may show."""

import logging
from typing import Any

from agent.asking import asked_by
from agent.serving.dataserver import DataServer
from agent.serving.routes import ROUTES
from cluster.clock import thread_s
from cluster.counters import counters, histogram
from cluster.messages import AgentRequest, Greeting
from cluster.rpc.serving import Handler, Replies
from cluster.trust.identity import Peer
from cluster.trust.refusals import check_name, refusal

log = logging.getLogger(__name__)

REQUEST_S = histogram(
    "godwit_agent_request_seconds", "How long the agent took for requests of mounts and other agents.", "request"
)

_seconds = counters.histograms(REQUEST_S)


class AgentConnection(Handler):
    """Hands to *data* what *peer* may ask."""

    def __init__(self, data: DataServer, peer: Peer) -> None:
        self._data = data
        self._peer = peer

    def greeted(self, greeting: Greeting) -> None:
        self._data.check_greeting(greeting)
        check_name(self._peer, greeting.server, greeting.role)

    def reply_bytes(self, request: AgentRequest[Any]) -> int:
        return self._data.reply_bytes(request)

    def at_once(self, request: AgentRequest[Any]) -> None:
        """Refuses what is nothing for who asks; everything else may have to wait for a disk."""
        identity, allowed = self._peer.identity, ROUTES[type(request)]
        if identity is None or identity.role not in allowed:
            raise refusal(log, self._peer, request, allowed)

    async def handle(self, request: Any, body: bytes, send: Replies) -> Any:
        identity = self._peer.identity
        assert identity is not None, "`at_once` has refused everybody else"
        asked_by(identity.server)
        began_s = thread_s()
        try:
            return await self._data.handle(request, body, send)
        finally:
            _seconds[type(request).__name__].observe(thread_s() - began_s)

    def closed(self) -> None:
        """Nothing is kept for a connection."""
