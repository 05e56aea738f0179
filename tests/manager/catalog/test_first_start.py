"""What a new network's tables are made in, and what they are not made in."""

import pytest

from cluster.errors import Refused
from manager.catalog.first_start import prepare_catalog
from tests.manager.databases import Postgres


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_that_cannot_hold_every_name_is_refused(postgres_url: str, postgres: Postgres, encoding: str) -> None:
    """Names of servers, paths and what people are told are text: it would fail one day, in one of them."""
    made = postgres.new_database(f"template0 ENCODING {encoding} LC_COLLATE 'C' LC_CTYPE 'C'")
    told = f"is encoded as {encoding}, .*createdb --template template0 --encoding UTF8"
    with made as url, pytest.raises(Refused, match=told):
        prepare_catalog(url)
    prepare_catalog(postgres_url)
