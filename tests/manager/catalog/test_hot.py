"""Statements for many keys, and with many parameters, on each database; and paths that are looked up together."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, String, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from cluster.messages import ROOT_INO
from manager.catalog.engines import make_engines
from manager.catalog.hot import KEYS, Hot, HotByKeys, HotDelete, HotInsert, HotUpdate
from manager.catalog.inodes import find_inode, find_inodes, path_of, paths_of
from manager.catalog.schema import counters, dentries, inodes, replicas

_ADD = Hot(insert(counters).values(name=bindparam("to_name"), value=bindparam("to_value")))
_SET = Hot(update(counters).where(counters.c.name == bindparam("b_name")).values(value=bindparam("to_value")))
_BY_NAMES = HotByKeys(lambda keys: select(counters.c.name, counters.c.value).where(counters.c.name.in_(keys)), String())


@pytest.fixture
def connection(url: str) -> Iterator[Connection]:
    writer, reader = make_engines(url)
    with writer.connect() as made:
        yield made
    writer.dispose()
    reader.dispose()


@pytest.mark.parametrize("count", [0, 1, KEYS - 1, KEYS, KEYS + 1, 3 * KEYS + 5])
def test_each_key_gives_its_row_once(connection: Connection, count: int) -> None:
    _ADD.run_many(connection, [{"to_name": f"n{number}", "to_value": number} for number in range(200)])
    _SET.run_many(connection, [{"b_name": f"n{number}", "to_value": -number} for number in range(count)])
    rows = _BY_NAMES.all(connection, [f"n{number}" for number in range(count)])
    assert sorted((row.name, row.value) for row in rows) == sorted((f"n{number}", -number) for number in range(count))
    assert _BY_NAMES.all(connection, [*[f"n{number}" for number in range(count)], "missing"]) != [] or not count


@pytest.mark.parametrize("together", [False, True])
def test_rows_are_added_changed_and_removed_by_several_keys(connection: Connection, together: bool) -> None:
    """One by one, or with many parameters at once, which is another statement on PostgreSQL."""

    def run(hot: HotInsert | HotUpdate | HotDelete, many: list[dict[str, Any]]) -> int:
        return hot.run_many(connection, many) if together else sum(hot.run(connection, one) for one in many)

    add = HotInsert(replicas, "ino", "volume", "version", "checksum")
    change = HotUpdate(replicas, ["ino", "volume"], ["version", "stamp_size", "checksum"], fault="odd")
    remove = HotDelete(replicas, "ino", "volume")
    keys = [(ino, volume) for ino in range(500, 560) for volume in (1, 2)]
    assert run(add, [{"ino": ino, "volume": volume, "version": 1, "checksum": b"\0a"} for ino, volume in keys]) == len(keys)
    values = {"to_version": 7, "to_checksum": b"\xff\0b"}
    sizes = {(500, 2): 2**40, (501, 1): None}
    assert run(change, [{"b_ino": i, "b_volume": v, "to_stamp_size": s, **values} for (i, v), s in sizes.items()]) == 2
    assert run(change, [{"b_ino": 500, "b_volume": 3, "to_stamp_size": 1, **values}]) == 0
    assert run(remove, [{"b_ino": ino, "b_volume": volume} for ino, volume in keys[4:]]) == len(keys) - 4
    assert run(remove, [{"b_ino": 500, "b_volume": 3}]) == 0
    rows = connection.execute(select(replicas).order_by(replicas.c.ino, replicas.c.volume)).all()
    assert [(r.ino, r.volume, r.version, r.stamp_size, bytes(r.checksum), r.fault) for r in rows] == [
        (500, 1, 1, None, b"\0a", ""),
        (500, 2, 7, 2**40, b"\xff\0b", "odd"),
        (501, 1, 7, None, b"\xff\0b", "odd"),
        (501, 2, 1, None, b"\0a", ""),
    ]
    assert run(add, []) == run(change, []) == run(remove, []) == 0


def test_errors_of_many_are_those_of_one(connection: Connection) -> None:
    with pytest.raises(IntegrityError):
        _ADD.run_many(connection, [{"to_name": "same", "to_value": 1}] * 2)


def test_paths_that_are_looked_up_together_are_the_same(connection: Connection) -> None:
    """Directories in directories, files with several names, and some whose directory has no name."""
    order = random.Random(5)
    directories = [ROOT_INO]
    rows = []
    for ino in range(100, 160):
        parent = order.choice(directories)
        # The first has no name itself, and so has nothing in it a path.
        if ino != 100:
            rows.append({"parent": parent, "name": b"d%d" % ino, "ino": ino, "cookie": ino})
        directories.append(ino)
    for ino in range(1000, 1100):
        parents = order.sample(directories, order.randint(0, 3))
        rows += [{"parent": parent, "name": b"f%d" % ino, "ino": ino, "cookie": ino * 100 + parent} for parent in parents]
    root = dict(connection.execute(select(inodes).where(inodes.c.ino == ROOT_INO)).one()._mapping)
    connection.execute(insert(inodes), [root | {"ino": ino} for ino in (*range(100, 160), *range(1000, 1100))])
    connection.execute(insert(dentries), rows)
    inos = {*range(1000, 1110), *range(100, 160), ROOT_INO}
    assert paths_of(connection, inos) == {ino: path_of(connection, ino) for ino in inos}
    assert find_inodes(connection, {ROOT_INO, 7777}) == {ROOT_INO: find_inode(connection, ROOT_INO)}
