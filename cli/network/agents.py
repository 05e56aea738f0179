"""Asks agents directly, each over a connection of its own; the manager says where they are."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio
import typer

from cli import exits
from cli.display.render import as_shown
from cli.network.ask import ask
from cli.network.target import Target
from cluster.errors import GodwitError, Refused, Unavailable
from cluster.messages import ListVolumes, Request
from cluster.rpc.connection import Channel, connect
from cluster.rpc.wire import AgentAt

CONNECT_TIMEOUT_S = 5.0  # connecting is quick or hopeless; only the answer may take long

Take = Callable[[str, Any], None]
"""Takes a reply of a server's agent."""


def addresses_of(target: Target, timeout_s: float, servers: Sequence[str]) -> dict[str, str]:
    """Where the agents of these servers are (of all, if none is named); raises `Refused` for one that has no volumes."""
    listing = ask(target, timeout_s, ListVolumes())
    # Agents are found by their volumes: all volumes of a server have the address of its agent.
    known = {volume.server: volume.address for volume in sorted(listing.volumes, key=lambda volume: volume.server)}
    for server in servers:
        if server not in known:
            there = ", ".join(known) or "none"
            raise Refused(f"there is no server {as_shown(server.encode())!r} with volumes; there are: {there}")
    # Each once, in the order of the command line.
    return {server: known[server] for server in (dict.fromkeys(servers) or known)}


def ask_agents(
    target: Target,
    addresses: Mapping[str, str],
    request_for: Callable[[str], Request[Any]],
    end: type,
    take: Take,
    timeout_s: float,
) -> dict[str, Any]:
    """Has all these servers' agents answer side by side; hands over their replies, but for the last of each, of type *end*.

    Returns that by server; a `GodwitError` in its place is what went wrong, `Unavailable` if nothing was said for *timeout_s*.
    """
    outcomes: dict[str, Any] = {}

    async def converse(server: str, address: str) -> None:
        outcomes[server] = await _converse(target, server, address, request_for(server), end, take, timeout_s)

    async def all_of_them() -> None:
        async with trio.open_nursery() as nursery:
            for server, address in addresses.items():
                nursery.start_soon(converse, server, address)

    try:
        trio.run(all_of_them)
    except* KeyboardInterrupt:
        # trio wraps it in a group. What was shown so far stays; there is no result.
        outcomes.clear()
    if not outcomes and addresses:
        raise typer.Exit(exits.INTERRUPTED)
    return outcomes


def ask_agent(target: Target, server: str, address: str, request: Request[Any], end: type, take: Take, timeout_s: float) -> Any:
    """As `ask_agents`, of one; raises what went wrong."""
    outcome = ask_agents(target, {server: address}, lambda _server: request, end, take, timeout_s)[server]
    if isinstance(outcome, GodwitError):
        raise outcome
    return outcome


async def _converse(
    target: Target, server: str, address: str, request: Request[Any], end: type, take: Take, timeout_s: float
) -> Any:
    outcome: Any
    async with trio.open_nursery() as nursery:
        try:
            channel = await connect(
                address,
                nursery,
                target.credentials,
                AgentAt(server, address).party,
                timeout_s=min(timeout_s, CONNECT_TIMEOUT_S),
            )
            outcome = await _replies(server, channel, request, end, take, timeout_s)
        except GodwitError as error:
            outcome = error
        # The connection's receiver runs in this nursery, and ends with nothing else.
        nursery.cancel_scope.cancel()
    return outcome


async def _replies(server: str, channel: Channel, request: Request[Any], end: type, take: Take, timeout_s: float) -> Any:
    async with channel.open_stream(request) as replies:
        while True:
            # For each reply anew: a check of terabytes takes hours, and says something every few seconds.
            with trio.move_on_after(timeout_s):
                reply = (await anext(replies)).reply
                if isinstance(reply, end):
                    return reply
                take(server, reply)
                continue
            raise Unavailable(f"the agent of {server} at {channel.peer} said nothing for {timeout_s:g} s")
