"""A real Chromium for the tests, driven by the DevTools protocol over a pipe: no driver program, no port, no further package.

https://chromedevtools.github.io/devtools-protocol/; with `--remote-debugging-pipe` the browser reads commands from file
descriptor 3 and answers on 4, each message a JSON text that ends with a zero byte.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SECONDS = 60
"""How long an answer may take; a browser on a machine full of other tests is slow to start."""

_WITH_PIPES_AT_3_AND_4 = (
    "import fcntl, os, sys\n"
    "commands, answers = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])\n"
    "os.dup2(commands, 3); os.dup2(answers, 4)\n"
    "os.execvp(sys.argv[3], sys.argv[3:])\n"
)


class Browser:
    """A headless Chromium with a profile of its own."""

    def __init__(self, program: str, profile: str) -> None:
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", _WITH_PIPES_AT_3_AND_4, str(read_commands), str(write_answers), program),
                *("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                *("--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"),
                *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", "about:blank"),
            ],
            pass_fds=(read_commands, write_answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_answers)
        self._received = b""
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, *, session: str | None = None, **parameters: Any) -> Any:
        """Send a command and wait for its result; events that arrive meanwhile are kept in `events`."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(time.monotonic() + SECONDS)
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def wait_for(self, event: str, session: str) -> None:
        """Wait until an event has come."""
        deadline = time.monotonic() + SECONDS
        while not any(e.get("method") == event and e.get("sessionId") == session for e in self.events):
            self.events.append(self._next(deadline))

    def close(self) -> None:
        """End the browser, politely at first."""
        with contextlib.suppress(AssertionError, OSError):
            self.send("Browser.close")
        os.close(self._commands)
        os.close(self._answers)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _next(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"Chromium did not answer within {SECONDS} s"
            more = os.read(self._answers, 2**16)
            assert more, f"Chromium has ended, with exit code {self._process.wait()}"
            self._received += more
        text, _, self._received = self._received.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


class Page:
    """One tab."""

    def __init__(self, browser: Browser, *, width: int, height: int, dark: bool, scripts: bool, phone: bool) -> None:
        self._browser = browser
        self._target = browser.send("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.send("Target.attachToTarget", targetId=self._target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        self._scripts = scripts
        self.colour_scheme("dark" if dark else "light")

    def send(self, method: str, **parameters: Any) -> Any:
        """Send a command to this tab."""
        return self._browser.send(method, session=self._session, **parameters)

    def colour_scheme(self, name: str) -> None:
        """What prefers-color-scheme says."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])
        self._drawn()

    def open(self, path: Path) -> None:
        """Load a file and wait until it is there."""
        self.send("Page.navigate", url=path.as_uri())
        self._browser.wait_for("Page.loadEventFired", self._session)
        self._drawn()

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def point_at(self, selector: str) -> None:
        """Move the mouse to the middle of the first element that fits, scrolled into view."""
        x, y = self._middle(selector)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        """Click on the first element that fits."""
        x, y = self._middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def tap(self, selector: str) -> None:
        """Touch the first element that fits."""
        x, y = self._middle(selector)
        self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key: str) -> None:
        """Press and release a key: "Tab", "Enter", "ArrowRight", ..."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        text = {"text": "\r"} if key == "Enter" else {}
        named = {"key": key, "code": key, "windowsVirtualKeyCode": codes.get(key, 0)}
        self.send("Input.dispatchKeyEvent", type="keyDown", **named, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **named)

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the window, or of the whole page."""
        image = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(image["data"]))

    @property
    def requests(self) -> list[str]:
        """Every address that the page has asked for."""
        return [e["params"]["request"]["url"] for e in self._events("Network.requestWillBeSent")]

    @property
    def complaints(self) -> list[str]:
        """What stands in the console as a warning or an error, exceptions and refusals of the security policy included."""
        said = [
            str([argument.get("value", argument.get("description")) for argument in e["params"]["args"]])
            for e in self._events("Runtime.consoleAPICalled")
            if e["params"]["type"] in ("error", "warning", "assert")
        ]
        thrown = [str(e["params"]["exceptionDetails"]) for e in self._events("Runtime.exceptionThrown")]
        logged = [
            e["params"]["entry"]["text"]
            for e in self._events("Log.entryAdded")
            if e["params"]["entry"]["level"] in ("error", "warning")
        ]
        return said + thrown + logged

    def close(self) -> None:
        """Close the tab."""
        self._browser.send("Target.closeTarget", targetId=self._target)
        self._browser.events.clear()

    def _drawn(self) -> None:
        """Wait until what has changed is drawn, and the events of it are over."""
        if self._scripts:
            self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def _events(self, method: str) -> list[dict[str, Any]]:
        self.run("0")  # what was sent before this answer has come
        return [e for e in self._browser.events if e.get("method") == method and e.get("sessionId") == self._session]

    def _middle(self, selector: str) -> tuple[float, float]:
        box = self.run(
            f"(async () => {{ const it = document.querySelector({json.dumps(selector)}); if (!it) return null;"
            "it.scrollIntoView({ block: 'center', inline: 'center' });"
            "await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));"  # scroll events are late
            "const b = it.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        assert box is not None, f"nothing on the page fits {selector}"
        return box[0], box[1]


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """A browser. Where Chromium is not installed the test is skipped; in CI it fails, as CI installs it."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("Chromium is not installed; .ci/install_packages installs it")
        pytest.skip("Chromium is not installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def page(
    browser: Browser,
    path: Path,
    *,
    width: int = 1280,
    height: int = 900,
    dark: bool = False,
    scripts: bool = True,
    phone: bool = False,
) -> Iterator[Page]:
    """A tab with a file loaded."""
    tab = Page(browser, width=width, height=height, dark=dark, scripts=scripts, phone=phone)
    try:
        tab.open(path)
        yield tab
    finally:
        tab.close()
