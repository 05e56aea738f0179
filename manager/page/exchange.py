"""HTTP/1.1 (RFC 9112) over one secured connection: requests come, answers go, within bounds of bytes and time.

h11 has the grammar, the lengths of bodies and the order of things, and knows no sockets: what is left to do is to wait.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import NamedTuple

import h11
import trio

from cluster.rpc.wire import Wire

HEAD_BYTES = 16 * 1024  # of a request: browsers send all cookies of a host, whatever its port
BODY_BYTES = 4 * 1024
RECEIVE_BYTES = 16 * 1024
PATIENCE_S = 30.0  # for a request, from the answer before it to its last byte
FIRST_S = 5.0  # for the first one
REQUESTS_MAX = 1000  # over one connection


class Asked(NamedTuple):
    """A request."""

    method: str
    path: str  # without its query
    headers: Mapping[str, str]  # names in small letters; of several with one name the last, but all cookies
    body: bytes


class Answer(NamedTuple):
    """What is answered."""

    status: int
    body: bytes = b""
    kind: str = "text/plain; charset=utf-8"
    headers: Sequence[tuple[str, str]] = ()
    ends: bool = False  # the connection


class _Wrong(Exception):
    """A request that cannot be answered but with this status."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


async def converse(wire: Wire, answer: Callable[[Asked], Awaitable[Answer]], headers: Sequence[tuple[str, str]]) -> None:
    """Answers the requests that come over *wire* until it ends or time is up; *headers* are of every answer.

    Raises `Unavailable` where the connection breaks. Whatever is sent here ends the connection at most. The wire is the
    caller's to close.
    """
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES)
    for number in range(REQUESTS_MAX):
        with trio.move_on_after(PATIENCE_S if number else FIRST_S) as scope:
            try:
                asked = await _next_request(http, wire)
            except (h11.RemoteProtocolError, _Wrong) as error:
                status = error.status if isinstance(error, _Wrong) else error.error_status_hint
                await _send(http, wire, Answer(status, f"{error}\n".encode(), ends=True), headers)
                await wire.hang_up()
                return
        if scope.cancelled_caught or asked is None:
            return
        given = await answer(asked)
        ends = given.ends or number == REQUESTS_MAX - 1
        await _send(http, wire, given._replace(ends=ends), headers, is_head=asked.method == "HEAD")
        if http.our_state is not h11.DONE or http.their_state is not h11.DONE:
            await wire.hang_up()
            return
        http.start_next_cycle()


async def _next_request(http: h11.Connection, wire: Wire) -> Asked | None:
    """The next request as a whole; None at the end. Raises `h11.RemoteProtocolError` and `_Wrong`."""
    event = await _next_event(http, wire)
    if not isinstance(event, h11.Request):
        return None
    body = b""
    while isinstance(part := await _next_event(http, wire), h11.Data):
        body += bytes(part.data)
        if len(body) > BODY_BYTES:
            raise _Wrong(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"more than {BODY_BYTES} bytes")
    # h11 allows nothing but visible ASCII in the target.
    path = event.target.decode("ascii").partition("?")[0]
    return Asked(event.method.decode("ascii"), path, _headers(event), body)


def _headers(request: h11.Request) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in request.headers:
        key, text = name.decode("ascii"), value.decode("latin-1")
        found[key] = f"{found[key]}; {text}" if key == "cookie" and key in found else text
    return found


async def _next_event(http: h11.Connection, wire: Wire) -> object:
    while (event := http.next_event()) is h11.NEED_DATA:
        if http.they_are_waiting_for_100_continue:
            await wire.send(http.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        http.receive_data(await wire.receive(RECEIVE_BYTES))
    return event


async def _send(
    http: h11.Connection, wire: Wire, answer: Answer, headers: Sequence[tuple[str, str]], *, is_head: bool = False
) -> None:
    if http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
        return  # it has gone
    told = [*headers, *answer.headers]
    if answer.status != HTTPStatus.NO_CONTENT:
        told += [("Content-Type", answer.kind), ("Content-Length", str(len(answer.body)))]
    if answer.ends:
        told.append(("Connection", "close"))
    data = http.send(h11.Response(status_code=answer.status, headers=told)) or b""
    if answer.body and not is_head:
        data += http.send(h11.Data(data=answer.body)) or b""
    data += http.send(h11.EndOfMessage()) or b""
    # In one piece: as few records and packets as can be.
    await wire.send(data)
