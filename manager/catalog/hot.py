"""Statements that run for nearly every request, without what SQLAlchemy does around each execution.

A `Hot` statement is an ordinary SQLAlchemy Core statement, compiled once for each dialect; after that it goes straight to the
driver. On SQLite that is 5 µs instead of 17. Parameters are given by name, all of them; values must be of the driver's own
types (integers, texts, bytes). Errors of the driver are raised as SQLAlchemy's.
"""

from collections import namedtuple
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Executable,
    Table,
    bindparam,
    cast,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement
from sqlalchemy.types import TypeEngine


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

    def run_many(self, connection: Connection, many: Sequence[Mapping[str, Any]]) -> int:
        """Executes it with each of *many* parameters; the number of rows that were changed."""
        if not many:
            return 0
        compiled = self._compiled_for(connection)
        arguments = [self._arguments(compiled, parameters) for parameters in many]
        cursor = self._cursor(connection, compiled, arguments, many=True)
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
        compiled = self._compiled_for(connection)
        return self._cursor(connection, compiled, self._arguments(compiled, parameters)), compiled

    def _compiled_for(self, connection: Connection) -> _Compiled:
        compiled = self._compiled.get(connection.dialect.name)
        if compiled is None:
            compiled = self._compiled[connection.dialect.name] = _Compiled(self._statement, connection)
        return compiled

    @staticmethod
    def _arguments(compiled: _Compiled, parameters: Mapping[str, Any]) -> Any:
        if compiled.defaults:
            parameters = {**compiled.defaults, **parameters}
        return parameters if compiled.order is None else [parameters[name] for name in compiled.order]

    @staticmethod
    def _cursor(connection: Connection, compiled: _Compiled, arguments: Any, *, many: bool = False) -> Any:
        driver = connection.dialect.dbapi
        assert driver is not None
        try:
            cursor = connection.connection.cursor()
            (cursor.executemany if many else cursor.execute)(compiled.text, arguments)
        except driver.Error as error:
            raise _as_sqlalchemy(compiled.text, arguments, error, connection) from error
        return cursor

    def _fetch(self, connection: Connection, fetch: Callable[[], Any]) -> Any:
        """What *fetch* returns: reading rows may meet a bad disk as well."""
        driver = connection.dialect.dbapi
        assert driver is not None
        try:
            return fetch()
        except driver.Error as error:
            raise _as_sqlalchemy(str(self._statement), None, error, connection) from error


class _HotOfArrays(Hot):
    """A statement that changes rows; with many parameters it is on PostgreSQL one with an array for each.

    Executed once for each of them, it would cost a hundred of these that many turns of the server.
    """

    def __init__(self, statement: Executable, of_arrays: Executable, names: Sequence[str]) -> None:
        super().__init__(statement)
        self._of_arrays = Hot(of_arrays)
        self._names = names

    def run_many(self, connection: Connection, many: Sequence[Mapping[str, Any]]) -> int:
        """As `Hot.run_many`; no two of *many* may be for one row."""
        if connection.dialect.name != "postgresql" or not many:
            return super().run_many(connection, many)
        return self._of_arrays.run(connection, {name: [row[name] for row in many] for name in self._names})


def _elements(table: Table, names: Mapping[str, str]) -> list[ColumnElement[Any]]:
    """What is in the arrays of these parameters, which are for these columns."""
    return [func.unnest(cast(bindparam(name), ARRAY(table.c[column].type))).label(name) for name, column in names.items()]


class HotInsert(_HotOfArrays):
    """Adds rows to a table, of which these columns are given."""

    def __init__(self, table: Table, *names: str) -> None:
        of_arrays = insert(table).from_select(list(names), select(*_elements(table, dict(zip(names, names, strict=True)))))
        super().__init__(insert(table).values({name: bindparam(name) for name in names}), of_arrays, names)


class HotUpdate(_HotOfArrays):
    """Changes rows that have these values in the columns *keys*, parameters with `b_` before the name.

    *columns* get parameters with `to_` before the name, and *constants* what they say.
    """

    def __init__(self, table: Table, keys: Sequence[str], columns: Sequence[str], **constants: Any) -> None:
        names = {f"b_{key}": key for key in keys} | {f"to_{column}": column for column in columns}
        one = update(table).where(*(table.c[key] == bindparam(f"b_{key}") for key in keys))
        given = select(*_elements(table, names)).subquery("given")
        many = update(table).where(*(table.c[key] == given.c[f"b_{key}"] for key in keys))
        super().__init__(
            one.values({column: bindparam(f"to_{column}") for column in columns} | constants),
            many.values({column: given.c[f"to_{column}"] for column in columns} | constants),
            list(names),
        )


class HotDelete(_HotOfArrays):
    """Removes rows that have these values in the columns *keys*, parameters with `b_` before the name."""

    def __init__(self, table: Table, *keys: str) -> None:
        names = {f"b_{key}": key for key in keys}
        given = select(*_elements(table, names)).subquery("given")
        super().__init__(
            delete(table).where(*(table.c[key] == bindparam(name) for name, key in names.items())),
            delete(table).where(*(table.c[key] == given.c[name] for name, key in names.items())),
            list(names),
        )


KEYS = 32  # in one statement


class HotByKeys:
    """A query for the rows of many keys, of which `KEYS` go into one statement, on PostgreSQL all.

    *with_keys* makes it, from what stands for the keys, such as `lambda keys: select(inodes).where(inodes.c.ino.in_(keys))`.
    """

    def __init__(self, with_keys: Callable[[Any], Executable], of: TypeEngine[Any] | None = None) -> None:
        """*of* is the type of the keys, if they are no numbers."""
        # One text, however many keys there are: it is compiled and prepared once.
        self._names = [f"key{number}" for number in range(KEYS)]
        self._hot = Hot(with_keys([bindparam(name) for name in self._names]))
        self._of_array = Hot(with_keys(select(func.unnest(cast(bindparam("keys"), ARRAY(of or BigInteger()))))))

    def all(self, connection: Connection, keys: Collection[Any]) -> list[Any]:
        """The rows of all keys, which are different, in no order."""
        found: list[Any] = []
        listed = list(keys)
        if listed and connection.dialect.name == "postgresql":
            return self._of_array.all(connection, {"keys": listed})
        for start in range(0, len(listed), KEYS):
            some = listed[start : start + KEYS]
            # The rest is filled up with a key that is asked for anyway.
            some += some[-1:] * (KEYS - len(some))
            found += self._hot.all(connection, dict(zip(self._names, some, strict=True)))
        return found


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
