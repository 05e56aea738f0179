"""Who may look at the page, what it is answered with, and what becomes of whatever else is sent there."""

import random
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache, partial
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import msgspec
import pytest
import trio

from cluster.config import PageConfig, ServerConfig
from cluster.durable import replace_file
from cluster.faults import faults
from cluster.trust.credentials import Credentials
from cluster.trust.folder import TrustFolder
from cluster.trust.identity import Role
from cluster.trust.issue import issue_to_candidate
from cluster.trust.password import dump, keep
from manager.page.exchange import BODY_BYTES, FIRST_S, HEAD_BYTES, PATIENCE_S
from manager.page.listener import CONNECTIONS_PER_ADDRESS, serve_page
from manager.page.visitors import SESSION_S, TRIES_OF_ADDRESS
from tests.manager.office import in_office
from tests.manager.page.browsing import PASSWORD, Browser, page_config, served
from tests.support.clocks import skip
from tests.support.trust import MASTER, authority, credentials, raw, trust_of

FILES = files("manager.page") / "files"
ADMIN = credentials("s2", "admin")
RECEIVE = 65536


@pytest.fixture
def password() -> Iterator[Path]:
    """The file with the password of s1's page."""
    path = TrustFolder(trust_of("s1")).page_password
    replace_file(path, kept())
    yield path
    path.unlink(missing_ok=True)


@cache
def kept() -> bytes:
    """What is kept of the password: to make it takes time."""
    return dump(keep(PASSWORD))


@asynccontextmanager
async def page(url: str, settings: ServerConfig | None = None) -> AsyncIterator[str]:
    """The page of a manager in office, by its address."""
    async with in_office(url) as office, served(office, settings or page_config(url)) as address:
        yield address


async def test_who_has_no_certificate_gives_the_password(sqlite_url: str, password: Path) -> None:
    async with page(sqlite_url) as address:
        browser = Browser(address)
        denied = await browser.get("/network.json")
        assert (denied.status, denied.json["password"]) == (401, True)
        wrong = await browser.log_in(PASSWORD[:-1])
        assert (wrong.status, wrong.json["why"], browser.cookie) == (401, "that is not the password", "")
        assert (await browser.get("/network.json")).status == 401
        right = await browser.log_in(PASSWORD)
        assert (right.status, right.body) == (204, b"")
        assert {"Secure", "HttpOnly", "SameSite=Strict", "Path=/"} <= {*right.headers["set-cookie"].split("; ")}
        shown = await browser.get("/network.json")
        assert (shown.status, shown.json["password"], shown.json["network"]["term"]) == (200, True, 1)
        stolen = Browser(address)
        stolen.cookie = browser.cookie[:-1] + ("a" if browser.cookie[-1] != "a" else "b")
        assert (await stolen.get("/network.json")).status == 401
        assert (await browser.ask("POST", "/logout")).status == 204
        stolen.cookie = right.headers["set-cookie"].partition(";")[0]
        assert (await stolen.get("/network.json")).status == 401


async def test_a_session_ends_in_time_and_with_the_password(sqlite_url: str, password: Path) -> None:
    async with page(sqlite_url) as address:
        browser = Browser(address)
        await browser.log_in(PASSWORD)
        await skip(SESSION_S - 60)
        assert (await browser.get("/network.json")).status == 200
        await skip(120)
        assert (await browser.get("/network.json")).status == 401
        await browser.log_in(PASSWORD)
        assert (await browser.get("/network.json")).status == 200
        replace_file(password, dump(keep(PASSWORD)))  # the same, set anew
        assert (await browser.get("/network.json")).status == 401
        password.unlink()
        denied = await browser.get("/network.json")
        assert (denied.status, denied.json["password"]) == (401, False)
        assert (await browser.log_in(PASSWORD)).status == 403


async def test_passwords_are_tried_at_a_rate(sqlite_url: str, password: Path) -> None:
    async with page(sqlite_url) as address:
        browser = Browser(address)
        wrong = [(await browser.log_in(f"wrong password {number}")).status for number in range(TRIES_OF_ADDRESS)]
        assert wrong == [401] * TRIES_OF_ADDRESS
        denied = await browser.log_in(PASSWORD)
        assert denied.status == 429
        assert browser.cookie == ""
        await skip(float(denied.headers["retry-after"]))
        assert (await browser.log_in(PASSWORD)).status == 204


async def test_a_damaged_password_file_lets_nobody_in(sqlite_url: str, password: Path) -> None:
    good = password.read_bytes()
    async with page(sqlite_url) as address:
        for content in (b"", b"{}", b"\xff", good.replace(b"scrypt", b"plain!"), good[:60] + b'"}'):
            replace_file(password, content)
            browser = Browser(address)
            assert (await browser.log_in(PASSWORD)).status == 403
            assert (await browser.log_in("")).status == 403
            assert (await Browser(address, ADMIN).get("/network.json")).status == 200
    assert faults.unexpected_errors == 0


async def test_an_administrators_certificate_is_enough(sqlite_url: str) -> None:
    async with page(sqlite_url) as address:
        shown = await Browser(address, ADMIN).get("/network.json")
        assert (shown.status, shown.json["password"]) == (200, False)
        assert shown.json["network"]["servers"] == []


async def test_certificates_of_other_roles_are_refused(sqlite_url: str, password: Path) -> None:
    async with page(sqlite_url) as address:
        for role in (Role.MANAGER, Role.AGENT, Role.MOUNT):
            browser = Browser(address, credentials("s2", role))
            for path in ("/", "/page.js", "/network.json"):
                refused = await browser.get(path)
                assert refused.status == 403
                assert f"not for the {role} of s2" in refused.body.decode()
            assert (await browser.log_in(PASSWORD)).status == 403


async def test_who_was_revoked_is_refused_and_cut_off(sqlite_url: str, tmp_path: Path) -> None:
    issue_to_candidate(TrustFolder(tmp_path / "s3"), "test", "s3", authority(), MASTER)
    admin = Credentials(TrustFolder(tmp_path / "s3"), Role.ADMIN)
    manager = credentials("s1", "manager")
    async with page(sqlite_url) as address:
        stream = await raw(address, admin)
        await stream.send_all(b"GET /network.json HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await stream.receive_some(RECEIVE)).startswith(b"HTTP/1.1 200")
        try:
            manager.revoke({"s3": 5})
            with trio.fail_after(5):
                assert await ended(stream)
            refused = await Browser(address, admin).get("/")
            assert (refused.status, b"revoked" in refused.body) == (403, True)
        finally:
            manager.revoke({})
        await trio.aclose_forcefully(stream)


async def test_every_answer_forbids_what_the_page_does_not_need(sqlite_url: str) -> None:
    async with page(sqlite_url) as address:
        browser = Browser(address, ADMIN)
        for path, status in (("/", 200), ("/page.css", 200), ("/page.js", 200), ("/network.json", 200), ("/none", 404)):
            answer = await browser.get(path)
            assert answer.status == status
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["content-length"] == str(len(answer.body))


class _Names(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name for name, _ in attrs}
        self.inline += [name for name in names if name.startswith("on") or name == "style"]
        if tag == "style" or (tag == "script" and "src" not in names):
            self.inline.append(tag)


def test_the_page_has_nothing_from_outside_and_no_markup_of_data() -> None:
    for name in ("page.html", "page.css", "page.js"):
        text = (FILES / name).read_text()
        assert "://" not in text, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), name
    parser = _Names()
    parser.feed((FILES / "page.html").read_text())
    assert parser.inline == []


ODD = [
    ("HEAD", "/", b"", 200),
    ("HEAD", "/network.json", b"", 200),
    ("GET", "/?x=1", b"", 200),
    ("GET", "/network.json?_=1", b"", 200),
    ("GET", "/../../etc/passwd", b"", 404),
    ("GET", "/page.css/", b"", 404),
    ("GET", "/%2e%2e/page.html", b"", 404),
    ("GET", "//", b"", 404),
    ("OPTIONS", "*", b"", 404),
    ("POST", "/", b"x", 405),
    ("DELETE", "/network.json", b"", 405),
    ("GET", "/login", b"", 405),
    ("POST", "/login", b"password=x", 415),
    ("CONNECT", "example.org:443", b"", 404),
]


async def test_whatever_is_asked_is_answered(sqlite_url: str) -> None:
    async with page(sqlite_url) as address:
        for method, path, body, status in ODD:
            answer = await Browser(address, ADMIN).ask(method, path, body)
            assert (method, path, answer.status) == (method, path, status)
            assert bool(answer.body) is (method != "HEAD")


BODIES = [b"", b"{", b"[]", b'{"password": 1}', b'{"password": "\\ud800"}', b"\xff" * 20, b'{"pass": "' + b"x" * 1000 + b'"}']


async def test_odd_passwords_are_no_errors_of_ours(sqlite_url: str, password: Path) -> None:
    async with page(sqlite_url) as address:
        for body in BODIES:
            answer = await Browser(address).ask("POST", "/login", body, Content_Type="application/json")
            assert (body, answer.status) == (body, 400)
        assert (await Browser(address).log_in("\udcff")).status == 401  # no text, but a password like others
        assert (await Browser(address).log_in("x" * 2000)).status == 401
        assert faults.unexpected_errors == 0


TOO_MUCH = [
    (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"x" * (2 * HEAD_BYTES) + b"\r\n\r\n", b"HTTP/1.1 431"),
    (b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n" + b"x" * (BODY_BYTES + 1), b"HTTP/1.1 413"),
    (
        b"POST /login HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n" + b"x" * 5000 + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 413",
    ),
    (b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", b"HTTP/1.1 400"),
    (b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", b"HTTP/1.1 400"),
    (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 400"),
    (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 400"),
    (b"\x16\x03\x01\x02\x00\x01\x00", b"HTTP/1.1 400"),
]


async def test_what_is_too_much_or_no_request_is_refused(sqlite_url: str) -> None:
    async with page(sqlite_url) as address:
        for data, answer in TOO_MUCH:
            assert (await Browser(address).send(data)).startswith(answer), data[:80]
            assert (await Browser(address).get("/")).status == 200
        assert faults.unexpected_errors == 0


async def test_random_bytes_end_a_connection_at_most(sqlite_url: str) -> None:
    """Requests that are cut off, changed, and made up."""
    chance = random.Random(17)
    good = (
        b"POST /login HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n" + b'{"password":"x"}'
    )
    async with page(sqlite_url) as address:

        async def send(data: bytes) -> None:
            stream = await raw(address)
            await stream.send_all(data)
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            for number in range(60):
                data = bytearray(good[: chance.randrange(len(good))] if number % 3 else chance.randbytes(300))
                for _ in range(chance.randrange(4)):
                    if data:
                        data[chance.randrange(len(data))] = chance.randrange(256)
                nursery.start_soon(send, bytes(data))
                if not number % 10:
                    await trio.sleep(0.3)
        assert (await Browser(address).get("/")).status == 200
        assert faults.unexpected_errors == 0


async def test_one_connection_is_used_for_many_requests_until_nobody_asks(sqlite_url: str) -> None:
    request = b"GET /page.css HTTP/1.1\r\nHost: x\r\n\r\n"
    async with page(sqlite_url) as address:
        stream = await raw(address)
        for _ in range(5):
            await stream.send_all(request)
            head = await stream.receive_some(RECEIVE)
            assert head.startswith(b"HTTP/1.1 200")
            left = int(re.findall(rb"Content-Length: (\d+)", head)[0]) - len(head.partition(b"\r\n\r\n")[2])
            while left:
                left -= len(await stream.receive_some(left))
        await skip(PATIENCE_S + 1)
        assert await ended(stream)


async def test_who_says_nothing_is_hung_up_on(sqlite_url: str) -> None:
    async with page(sqlite_url) as address:
        slow = await raw(address)
        await slow.send_all(b"GET / HT")
        while True:
            # The other end may have ended its handshake later than this one.
            await skip(FIRST_S + 1)
            with trio.move_on_after(1):
                assert await ended(slow)
                break


async def test_one_address_has_some_connections(sqlite_url: str) -> None:
    async with page(sqlite_url) as address, AsyncExitStack() as stack:
        for _ in range(CONNECTIONS_PER_ADDRESS):
            stream = await raw(address)
            stack.push_async_callback(partial(trio.aclose_forcefully, stream))
        with pytest.raises(trio.BrokenResourceError):
            await raw(address)


async def ended(stream: trio.SSLStream[trio.SocketStream]) -> bool:
    """Whether the other end has closed a connection."""
    try:
        return await stream.receive_some(RECEIVE) == b""
    except trio.BrokenResourceError:
        return True


async def test_it_may_show_a_certificate_of_its_own(sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Here that of another server: what browsers verify is not known to tests."""
    other = TrustFolder(trust_of("s2")).credential(Role.MANAGER)
    file = tmp_path / "page.pem"
    file.write_bytes(other.read_bytes())
    settings = page_config(sqlite_url, certificate=str(file))
    async with page(sqlite_url, settings) as address:
        stream = await raw(address)
        shown = dict(stream.getpeercert())
        assert ("URI", "godwit://test/s2/manager?epoch=1") in shown["subjectAltName"]
        await trio.aclose_forcefully(stream)
        assert (await Browser(address, ADMIN).get("/network.json")).status == 200
        assert (await Browser(address, credentials("s2", "mount")).get("/network.json")).status == 403
        file.write_text("nothing")
        assert (await Browser(address, ADMIN).get("/network.json")).status == 200
    assert any("cannot be used" in record.getMessage() for record in caplog.records)


async def test_without_an_address_nothing_is_served(sqlite_url: str) -> None:
    settings = page_config(sqlite_url)
    async with in_office(sqlite_url) as office:
        with trio.fail_after(5):
            await serve_page(msgspec.structs.replace(settings, page=PageConfig()), credentials("s1", "manager"), office)
