"""The page in a real browser, of a real network: idle, while files move, while servers are lost. GODWIT_SCREENSHOTS=1 draws the
pictures of the documentation anew."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.lab import Lab
from tests.support.chromium import PROGRAM, WHY_NOT, Chromium, chromium
from tests.support.conditions import godwit, wait_for_copies, wait_until
from tests.support.labs import lab_up
from tests.support.runner import godwit as command

pytestmark = [pytest.mark.skipif(PROGRAM is None, reason=WHY_NOT), pytest.mark.timeout(900)]

DOCS = Path(__file__).resolve().parents[2] / "docs"
TIMES = {"manager": {"term_s": 6.0, "suspect_s": 2.0, "down_s": 4.0}}  # the manager changes only when its server is killed
PASSWORD = "eleven days and nights"
WIDE, NARROW = (1280, 860), (390, 1240)  # that of a telephone, somewhat longer
SHOWN = ("page-loss.png", "page-migration.png", "page-migration-narrow.png")  # in the documentation
FILES = 3000  # that move: long enough to be looked at


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Servers that are down as soon as they are silent."""
    root = tmp_path_factory.mktemp("page")
    root.chmod(0o755)
    with lab_up(root / "lab", servers=3, volumes=1, overrides=TIMES) as made:
        yield made


class Looking:
    """Somebody who looks at the page of one server after the other."""

    def __init__(self, browser: Chromium, folder: Path) -> None:
        self.browser = browser
        self._folder = folder  # for pictures

    def open(self, url: str) -> None:
        self.browser.show(*WIDE)
        self.browser.open(url)
        self.until("document.getElementById('login')?.hidden === false", "the form for the password")

    def log_in(self, password: str) -> None:
        self.browser.evaluate(f"document.getElementById('password').value = '{password}'")
        self.browser.evaluate("document.querySelector('#login button').click()")

    def until(self, expression: str, what: str, timeout_s: float = 60.0) -> None:
        try:
            wait_until(lambda: self.browser.evaluate(expression), f"{what} in the browser", timeout_s)
        except AssertionError as error:
            raise AssertionError(
                f"{error}; it shows:\n{self.browser.evaluate('document.body.innerText')}\n{self.browser.complaints()}"
            ) from None

    def text(self, selector: str) -> str:
        return str(self.browser.evaluate(f"document.querySelector('{selector}').innerText"))

    def pictures(self, name: str) -> None:
        """Takes pictures as on a desk and on a telephone; on neither is anything beyond the edge."""
        for end, (width, height), scale, mobile, dark in (("", WIDE, 1.0, False, False), ("-narrow", NARROW, 1.25, True, False)):
            self.browser.show(width, height, scale=scale, mobile=mobile, dark=dark)
            self.fits(width)
            file = f"page-{name}{end}.png"
            path = (DOCS if file in SHOWN and os.environ.get("GODWIT_SCREENSHOTS") else self._folder) / file
            self.browser.picture(path)
            assert 5_000 < path.stat().st_size < 150_000
        self.browser.show(360, 640, mobile=True)
        self.fits(360)
        self.browser.show(*WIDE)

    def fits(self, width: int) -> None:
        assert self.browser.evaluate("document.documentElement.scrollWidth") <= width


def test_the_page_shows_the_network(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(PASSWORD + "\n"))
    assert command("page", "password", "--root", str(lab.root)).returncode == 0
    for folder, count in (("photos", 40), ("projects", FILES)):
        (lab.mount("s1") / folder).mkdir()
        for number in range(count):
            (lab.mount("s1") / folder / f"{number:04}").write_bytes(b"g" * 20_000)
    wait_for_copies(lab)
    chief = str(godwit(lab, "status")["manager"])
    pages = {server: f"https://{lab.config(server).page.listen}/" for server in lab.servers}
    with chromium(tmp_path) as browser:
        looking = Looking(browser, tmp_path)
        looking.open(pages[chief])
        looking.log_in("something else than that")
        looking.until("document.getElementById('refusal').textContent.startsWith('that is not')", "the refusal")
        looking.browser.show(*NARROW, scale=1.5, mobile=True)
        looking.fits(NARROW[0])
        looking.browser.picture(tmp_path / "login.png")
        looking.log_in(PASSWORD)
        looking.until("document.querySelectorAll('#servers tbody tr').length === 3", "three servers")
        looking.until("document.getElementById('health').innerText.startsWith('OK')", "OK")
        looking.until("document.querySelector('#servers tbody').innerText.includes('manager')", "who is the manager")
        looking.until("!document.querySelector('#servers td[data-label=\"Requests/s\"]').innerText.includes('–')", "rates")
        looking.pictures("idle")
        migrates(lab, looking)
        loses(lab, looking, next(server for server in lab.servers if server not in (chief, "s1")))
        complaints = browser.complaints()
        goes_on_elsewhere(lab, looking, chief, pages)
        assert complaints == []
        assert {url.split("/")[2] for url in browser.asked() if not url.startswith("data:")} <= {
            page.split("/")[2] for page in pages.values()
        }


def migrates(lab: Lab, looking: Looking) -> None:
    done = command("migrate", str(lab.mount("s1") / "projects"), "--from", "s1", "--to", "s3", "--root", str(lab.root))
    assert done.returncode == 0, done
    looking.until(
        "[...document.querySelectorAll('.migration progress')].some((bar) => bar.value > 0.1 && bar.value < 0.9)",
        "a migration on its way",
        120,
    )
    looking.until("document.querySelector('.migration').innerText.includes(' left')", "when it ends")
    looking.pictures("migration")
    looking.until("document.getElementById('migrations-section').hidden", "the end of the migration", 240)
    looking.until("document.getElementById('events').innerText.includes('is done')", "the event of its end")
    wait_for_copies(lab, 240)


def loses(lab: Lab, looking: Looking, server: str) -> None:
    lab.kill(server)
    looking.until("document.querySelector('.badge.bad')?.innerText === 'down'", "a server that is down")
    looking.until("!document.getElementById('at-risk-section').hidden", "files at risk")
    assert "ATTENTION" in looking.text("#health")
    looking.pictures("loss")
    lab.start(server)
    wait_until(lambda: {info["state"] for info in godwit(lab, "servers", "ls")["servers"]} == {"up"}, "all servers up again")
    looking.until("document.querySelectorAll('#servers .badge.good').length === 3", "that all servers are up")


def goes_on_elsewhere(lab: Lab, looking: Looking, chief: str, pages: dict[str, str]) -> None:
    """The server is lost that serves the page: it names others, one of which is the next manager or names it."""
    lab.kill(chief)
    looking.until("document.getElementById('notice').innerText.includes('has not answered')", "that nobody answers")
    links = looking.browser.evaluate("[...document.querySelectorAll('#notice a')].map((link) => link.href)")
    assert sorted(links) == sorted(page for server, page in pages.items() if server != chief)
    successor = wait_until(lambda: elected(lab, chief), "another manager")
    other = next(server for server in lab.servers if server not in (chief, successor))
    looking.open(pages[other])
    looking.log_in(PASSWORD)
    looking.until("document.querySelector('#notice a') !== null", "a link to the manager")
    assert f"the last one it saw is {successor}" in looking.text("#notice")
    looking.open(str(looking.browser.evaluate("document.querySelector('#notice a').href")))
    looking.log_in(PASSWORD)
    looking.until(f"document.getElementById('office').innerText.includes('manager {successor}')", "the next manager's page")


def elected(lab: Lab, before: str) -> str | None:
    manager = str(godwit(lab, "status")["manager"])
    return manager if manager != before else None
