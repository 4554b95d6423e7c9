"""A real browser, told what to do over its DevTools pipe: pages at any width, how soon they show, what is in them.

with Browser() as browser:
    page = browser.page(390, 844, dark=True)
    page.open("http://127.0.0.1:8080/")
    page.first_paint()                       # seconds after the navigation began
    page.value("document.title")
    page.screenshot()                        # PNG
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from types import TracebackType
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 60.0
#: The ends of the pipe, as `--remote-debugging-pipe` has them.
_READS, _WRITES = 3, 4


class Browser:
    """One process; ``call`` is one command of the DevTools protocol."""

    def __init__(self) -> None:
        assert PROGRAM is not None
        self._profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        theirs_in, self._write = os.pipe()
        self._read, theirs_out = os.pipe()
        # Above the numbers that they get there, so that none is overwritten before it is copied.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (theirs_in, theirs_out)]
        self._process = subprocess.Popen(
            [PROGRAM, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=lambda: _take(*ends),
        )
        for end in (theirs_in, theirs_out, *ends):
            os.close(end)
        self._numbers = itertools.count(1)
        self._buffer = b""
        self.events: list[dict[str, Any]] = []

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
        self._profile.cleanup()

    def page(self, width: int, height: int, *, dark: bool = False) -> Page:
        """A new page of that many CSS pixels."""
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self, session)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        page.call("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", {"features": [scheme]})
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable", {})
        return page

    def call(self, method: str, params: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        number = next(self._numbers)
        body = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self._write, json.dumps(body).encode() + b"\0")
        while (answer := self.next_message()).get("id") != number:
            self.events.append(answer)
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def next_message(self) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self._read, 1 << 20) if ready else b""
            assert piece, "the browser does not answer"
            self._buffer += piece
        raw, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(raw)
        return message


def _take(reads: int, writes: int) -> None:
    """In the browser's process, before it is one; what is copied is inherited."""
    os.dup2(reads, _READS)
    os.dup2(writes, _WRITES)


class Page:
    """One page of a browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self._session = session

    def call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        return self._browser.call(method, params, self._session)

    def open(self, url: str) -> None:
        """Go there, and wait until it has loaded."""
        self._browser.events.clear()
        self.call("Page.navigate", {"url": url})
        while not any(event.get("method") == "Page.loadEventFired" for event in self._browser.events):
            self._browser.events.append(self._browser.next_message())

    def value(self, expression: str) -> Any:
        """Of an expression of JavaScript in the page; a promise is awaited."""
        asked = {"expression": expression, "awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", asked)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def first_paint(self) -> float:
        """Seconds from the beginning of the navigation to its first contentful paint."""
        observed = (
            "new Promise(done => new PerformanceObserver(list => {"
            " const found = list.getEntriesByName('first-contentful-paint')[0]; if (found) done(found.startTime)"
            "}).observe({type: 'paint', buffered: true}))"
        )
        return float(self.value(observed)) / 1000

    def complaints(self) -> list[str]:
        """What the browser has logged of the page since it was opened: errors, and breaches of its policy."""
        told = (event for event in self._browser.events if event.get("method") == "Log.entryAdded")
        return [event["params"]["entry"]["text"] for event in told]

    def screenshot(self) -> bytes:
        """What is to be seen, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", {"format": "png"})["data"])
