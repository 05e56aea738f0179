"""A browser without a screen: Debian's chromium, driven over its debugging pipe (Chrome DevTools Protocol, one JSON object after
the other, each ended by a zero byte)."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.readable import is_readable

PROGRAM = shutil.which("chromium")
WHY_NOT = "no chromium: apt-get install chromium (more than 100 MB, so CI goes without)"
ANSWER_S = 60.0  # a busy machine starts it slowly
FLAGS = (
    "--headless",
    "--no-sandbox",  # which refuses to run as root
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--ignore-certificate-errors",  # it does not know the network's authority
    "--remote-debugging-pipe",
)


class Chromium:
    """One page of a browser."""

    def __init__(self, to: int, of: int) -> None:
        self.events: list[dict[str, Any]] = []  # that have come
        self._to, self._of = to, of
        self._number = 0
        self._left = b""
        self._session: str | None = None
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of one command."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline_s = time.monotonic() + ANSWER_S
        while True:
            told = self._next(deadline_s)
            if told.get("id") == self._number:
                assert "error" not in told, (method, told["error"])
                result: dict[str, Any] = told["result"]
                return result
            self.events.append(told)

    def _next(self, deadline_s: float) -> dict[str, Any]:
        while b"\0" not in self._left:
            assert is_readable(self._of, max(0.0, deadline_s - time.monotonic())), "chromium does not answer"
            data = os.read(self._of, 1 << 20)
            assert data, "chromium has ended"
            self._left += data
        message, _, self._left = self._left.partition(b"\0")
        told: dict[str, Any] = json.loads(message)
        return told

    def open(self, url: str) -> None:
        self.do("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression of JavaScript, awaited if it is a promise."""
        told = self.do("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def show(self, width: int, height: int, *, scale: float = 1.0, mobile: bool = False, dark: bool = False) -> None:
        """Has the page on a screen of that size, in pixels of CSS."""
        self.do("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.do("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> None:
        """Writes what is on the screen to a file (PNG)."""
        path.write_bytes(base64.b64decode(self.do("Page.captureScreenshot", format="png")["data"]))

    def complaints(self) -> list[str]:
        """What the browser has found wrong: errors of scripts, and what the page's own policy forbids. Not that it was told to
        log in."""
        self.evaluate("0")  # what was under way has come
        found = [event for event in self.events if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")]
        told = [json.dumps(event["params"]) for event in found]
        return [text for text in told if "status of 401" not in text]

    def asked(self) -> set[str]:
        """The addresses that were asked for."""
        return {event["params"]["request"]["url"] for event in self.events if event.get("method") == "Network.requestWillBeSent"}


@contextmanager
def chromium(folder: Path) -> Iterator[Chromium]:
    """A browser that is ended at the end; its profile and its log are in *folder*."""
    assert PROGRAM is not None, WHY_NOT
    their_in, to = os.pipe()
    of, their_out = os.pipe()
    # It wants them as its descriptors 3 and 4.
    script = f'exec "$@" 3<&{their_in} 4>&{their_out}'
    command = ["bash", "-c", script, "chromium", PROGRAM, *FLAGS, f"--user-data-dir={folder}/profile", "about:blank"]
    with (folder / "chromium.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(their_in, their_out))
    os.close(their_in)
    os.close(their_out)
    try:
        yield Chromium(to, of)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(to)
        os.close(of)
