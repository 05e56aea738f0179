"""The table of routes: every request has one row, and its handler is of the kind that the row says."""

import ast
import inspect
from pathlib import Path
from typing import get_args

import pytest
import trio

from cluster.errors import ProtocolError
from cluster.messages import MANAGER_UNION, ManagerRequest
from manager.requests import routes
from manager.requests.routes import ALL, ROUTES, Dispatch
from tests.manager.office import in_office

REQUESTS = get_args(MANAGER_UNION)
ASYNC = {Dispatch.ENTRY, Dispatch.AWAITED, Dispatch.STREAM}


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
        assert route.dispatch in (Dispatch.CANDIDATE, Dispatch.ENTRY) or route.who <= ALL


@pytest.mark.parametrize("role", sorted(ALL))
def test_a_request_of_a_wrong_role_is_refused_before_it_is_looked_at(sqlite_url: str, role: str) -> None:
    async def main() -> None:
        async with in_office(sqlite_url) as office:
            peer = await office.peer("s1", role)
            wrong = [kind for kind, route in ROUTES.items() if role not in route.who and route.who & ALL]
            assert len(wrong) > 20
            for kind in wrong:
                if ROUTES[kind].dispatch is Dispatch.CANDIDATE:
                    continue  # it is answered without a session
                request = kind(*(None for _field in kind.__struct_fields__))  # nothing of it may be read
                with pytest.raises(ProtocolError, match=kind.__name__):
                    await peer.connection.handle(request, b"", nobody)

    trio.run(main)


async def nobody(_reply: object, _body: object) -> None:
    raise AssertionError("nothing is sent to who may not ask")
