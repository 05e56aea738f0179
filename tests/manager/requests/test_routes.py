"""The table of routes: every request has one row, and its handler is of the kind that the row says."""

import ast
import errno
import inspect
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import get_args

import pytest
import trio

from agent.serving.routes import ROUTES as AGENT_ROUTES
from cluster.errors import Refused
from cluster.messages import AGENT_UNION, MANAGER_UNION, PROTOCOL, Hello, ManagerRequest
from cluster.trust.identity import Peer, Role
from manager.requests import routes
from manager.requests.connection import Connection
from manager.requests.routes import ALL, CANDIDATE, NEWCOMER, ROUTES, Dispatch, Who
from tests.manager.office import in_office
from tests.support.trust import peer as peer_of

REQUESTS = get_args(MANAGER_UNION)
ASYNC = {Dispatch.ENTRY, Dispatch.PROVEN, Dispatch.AWAITED, Dispatch.STREAM}


def test_every_request_has_exactly_one_row() -> None:
    assert set(ROUTES) == set(REQUESTS)
    (table,) = (
        node.value
        for node in ast.parse(Path(routes.__file__).read_text()).body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "ROUTES"
    )
    assert isinstance(table, ast.Dict)
    assert len(table.keys) == len(REQUESTS)


@pytest.mark.parametrize("request_type", REQUESTS, ids=lambda kind: kind.__name__)
def test_the_handler_is_of_the_kind_that_the_row_says(request_type: type[ManagerRequest[object]]) -> None:
    route = ROUTES[request_type]
    assert inspect.iscoroutinefunction(route.handler) == (route.dispatch in ASYNC)
    given = {Dispatch.CANDIDATE: 2, Dispatch.ENTRY: 2, Dispatch.STREAM: 4}.get(route.dispatch, 3)
    assert len(inspect.signature(route.handler).parameters) == given
    assert route.first is None or (route.dispatch is Dispatch.AWAITED and not inspect.iscoroutinefunction(route.first))
    assert not route.grants or route.dispatch is Dispatch.READ


def test_who_has_no_session_can_ask_only_what_needs_none() -> None:
    for route in ROUTES.values():
        assert route.who
        assert route.dispatch in (Dispatch.CANDIDATE, Dispatch.ENTRY, Dispatch.PROVEN) or route.who <= ALL
        # Who has shown no certificate has nothing that it could be answered by.
        assert route.dispatch is not Dispatch.PROVEN or not route.who & NEWCOMER


@pytest.mark.parametrize("role", sorted(ALL | CANDIDATE | NEWCOMER))
def test_a_request_of_a_wrong_role_is_refused_before_it_is_looked_at(
    sqlite_url: str, role: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with in_office(sqlite_url) as office:
            who = Peer("127.0.0.1:1") if role == Who.NEWCOMER else peer_of("s1", role)
            connection = Connection(office, "test", who)
            if role in ALL:
                await connection.handle(Hello(PROTOCOL, "test", "s1", role, 1), b"", nobody)
            wrong = [kind for kind, route in ROUTES.items() if role not in route.who]
            assert len(wrong) > 20
            for kind in wrong:
                caplog.clear()
                request = kind(*(None for _field in kind.__struct_fields__))  # nothing of it may be read
                with pytest.raises(Refused, match=kind.__name__) as refusal:
                    connection.at_once(request)
                assert refusal.value.errno == errno.EPERM
                with pytest.raises(Refused, match=kind.__name__):
                    await connection.handle(request, b"", nobody)
                named = [record.getMessage() for record in caplog.records if f"asked {kind.__name__}," in record.getMessage()]
                assert len(named) == 1
                assert "at 127.0.0.1:1" in named[0] or named[0].startswith("refused 127.0.0.1:1")

    trio.run(main)


async def nobody(_reply: object, _body: object) -> None:
    raise AssertionError("nothing is sent to who may not ask")


def requests_by_role(rows: Iterable[tuple[str, Collection[str]]], roles: Sequence[str]) -> str:
    """A table in Markdown of who may ask what, for docs/security.md."""
    asked: dict[tuple[str, ...], list[str]] = {}
    for kind, who in rows:
        asked.setdefault(tuple(role for role in roles if role in who), []).append(f"`{kind}`")
    return "".join(f"| {', '.join(kinds)} | {', '.join(who)} |\n" for who, kinds in asked.items())


def test_the_document_says_who_may_ask_what() -> None:
    document = (Path(__file__).resolve().parents[3] / "docs/security.md").read_text()
    of_managers = [(kind.__name__, route.who) for kind, route in ROUTES.items()]
    of_agents = [(kind.__name__, who) for kind, who in AGENT_ROUTES.items()]
    for rows, roles in ((of_managers, list(Who)), (of_agents, list(Role))):
        table = requests_by_role(rows, roles)
        assert f"|---|---|\n{table}\n" in document, table


def test_every_request_to_an_agent_has_a_row() -> None:
    assert set(AGENT_ROUTES) == set(get_args(AGENT_UNION))
