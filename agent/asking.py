"""Which server a request comes from: what its connection has proved, for as long as the request's task runs.

Every request is answered by a task of its own (`cluster.rpc.serving`), and what that starts inherits this.
"""

from contextvars import ContextVar

_server: ContextVar[str] = ContextVar("asking server")


def asked_by(server: str) -> None:
    """From now on this task answers *server*."""
    _server.set(server)


def asking_server() -> str:
    """The server for which this task answers. Raises `LookupError` in one that answers nobody."""
    return _server.get()
