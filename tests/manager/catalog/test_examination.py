"""What a database says of itself, on each engine."""

import pytest
from sqlalchemy import make_url

from cluster.errors import Refused, Unavailable
from manager.catalog.engines import make_engines
from manager.catalog.examination import SETTINGS, examine


def test_it_is_what_it_says(url: str) -> None:
    found = examine(url)
    assert found.revision == found.newest == "0015"
    assert found.answered_s >= 0
    if make_url(url).get_backend_name() == "sqlite":
        assert found.file == make_url(url).database
        assert found.settings == {"journal_mode": "wal"}
    else:
        assert found.file == ""
        assert found.settings == found.settings | {"encoding": "UTF8", "standby": "false"}
        assert {*SETTINGS, "encoding", "standby"} == set(found.settings)


def test_it_is_looked_at_while_somebody_writes(url: str) -> None:
    writer, reader = make_engines(url)
    try:
        with writer.begin() as connection:
            connection.exec_driver_sql("UPDATE office SET term = term + 1")
            assert examine(url).revision
    finally:
        writer.dispose()
        reader.dispose()


@pytest.mark.parametrize("wrong", ["postgresql+psycopg://u:hunter2@127.0.0.1:1/g", "sqlite:////nowhere/catalog.db"])
def test_one_that_is_away(wrong: str) -> None:
    with pytest.raises(Unavailable) as error:
        examine(wrong)
    assert "hunter2" not in str(error.value)


def test_what_is_no_url() -> None:
    with pytest.raises(Refused):
        examine("hunter2")
