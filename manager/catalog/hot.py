"""Statements that run for nearly every request, without what SQLAlchemy does around each execution.

A `Hot` statement is an ordinary SQLAlchemy Core statement, compiled once for each dialect; after that it goes straight to the
driver. On SQLite that is 5 µs instead of 17. Parameters are given by name, all of them; values must be of the driver's own
types (integers, texts, bytes). Errors of the driver are raised as SQLAlchemy's.
"""

from collections import namedtuple
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection, Executable
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement


class _Compiled:
    """The statement for one dialect: its text, the order of its parameters (None: by name), and the maker of its rows."""

    def __init__(self, statement: ClauseElement, connection: Connection) -> None:
        compiled = statement.compile(dialect=connection.dialect, compile_kwargs={"render_postcompile": True})
        assert isinstance(compiled, SQLCompiler)
        self.text = str(compiled)
        self.defaults = {name: value for name, value in compiled.params.items() if value is not None}
        # SQLite's driver is given values by position, psycopg by name.
        self.order: list[str] | None = list(compiled.positiontup or ()) if compiled.positional else None
        names = [column.name for column in getattr(statement, "selected_columns", ())]
        self.row: Callable[..., Any] | None = _row_maker(names) if names else None


def _row_maker(names: list[str]) -> Callable[..., Any]:
    make_class: Callable[..., Any] = namedtuple
    make: Callable[..., Any] = make_class("Row", names, rename=True)._make
    return make


class Hot:
    """A statement that is executed very often."""

    def __init__(self, statement: Executable) -> None:
        assert isinstance(statement, ClauseElement)
        self._statement = statement
        self._compiled: dict[str, _Compiled] = {}  # by the dialect's name

    def run(self, connection: Connection, parameters: Mapping[str, Any]) -> int:
        """Executes it; the number of rows that it changed."""
        cursor, _ = self._execute(connection, parameters)
        count: int = cursor.rowcount
        cursor.close()
        return count

    def one_or_none(self, connection: Connection, parameters: Mapping[str, Any]) -> Any:
        """The only row, or None if there is none."""
        cursor, compiled = self._execute(connection, parameters)
        found = self._fetch(connection, cursor.fetchone)
        cursor.close()
        return None if found is None or compiled.row is None else compiled.row(found)

    def all(self, connection: Connection, parameters: Mapping[str, Any]) -> list[Any]:
        """All rows."""
        cursor, compiled = self._execute(connection, parameters)
        rows = self._fetch(connection, cursor.fetchall)
        cursor.close()
        assert compiled.row is not None
        return [compiled.row(row) for row in rows]

    def _execute(self, connection: Connection, parameters: Mapping[str, Any]) -> tuple[Any, _Compiled]:
        compiled = self._compiled.get(connection.dialect.name)
        if compiled is None:
            compiled = self._compiled[connection.dialect.name] = _Compiled(self._statement, connection)
        if compiled.defaults:
            parameters = {**compiled.defaults, **parameters}
        arguments = parameters if compiled.order is None else [parameters[name] for name in compiled.order]
        driver = connection.dialect.dbapi
        assert driver is not None
        try:
            cursor = connection.connection.cursor()
            cursor.execute(compiled.text, arguments)
        except driver.Error as error:
            raise _as_sqlalchemy(compiled.text, arguments, error, connection) from error
        return cursor, compiled

    def _fetch(self, connection: Connection, fetch: Callable[[], Any]) -> Any:
        """What *fetch* returns: reading rows may meet a bad disk as well."""
        driver = connection.dialect.dbapi
        assert driver is not None
        try:
            return fetch()
        except driver.Error as error:
            raise _as_sqlalchemy(str(self._statement), None, error, connection) from error


def _as_sqlalchemy(text: str, arguments: Any, error: Any, connection: Connection) -> BaseException:
    driver = connection.dialect.dbapi
    assert driver is not None
    lost = connection.dialect.is_disconnect(error, connection.connection, None)
    if lost:
        connection.invalidate(error)  # or the pool would hand it out again
    wrapped: BaseException = DBAPIError.instance(
        text, arguments, error, driver.Error, connection_invalidated=lost, dialect=connection.dialect
    )
    return wrapped
