"""URLs of databases as people give them, and the secrets that may be in one. None of the errors shows what was given."""

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from cluster.errors import Refused

# Not with what was given, which may have a password in a place where nobody looks for one.
NO_URL = "what was given is not the URL of a database: one looks like postgresql+psycopg://user@host/name"
# libpq's: the password of the user, and that of the file with the client's key
SECRET_OPTIONS = ("password", "sslpassword")


def parse_url(text: str) -> URL:
    """The URL; raises `Refused` if it is none."""
    try:
        return make_url(text)
    except (ArgumentError, ValueError):  # of a port that is no number
        raise Refused(NO_URL) from None


def has_secret(text: str) -> bool:
    """Whether whoever reads the URL has a password; raises `Refused` if it is none."""
    url = parse_url(text)
    return url.password is not None or any(name in url.query for name in SECRET_OPTIONS)


def shown(url: URL) -> str:
    """The URL as everybody may read it: in logs, errors, and what `godwit status` says."""
    hidden = {name: "***" for name in SECRET_OPTIONS if name in url.query}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def with_password(text: str, password: str) -> str:
    """The URL with the user's password in it; raises `Refused` if it is none."""
    return parse_url(text).set(password=password).render_as_string(hide_password=False)
