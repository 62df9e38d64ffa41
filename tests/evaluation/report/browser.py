"""A page in headless Chromium, by the pipe of its DevTools protocol: what it logs, how wide it is, how it looks."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
    "--no-first-run",
]
_LOOK = """({
    inner: innerWidth, scroll: document.documentElement.scrollWidth,
    wide: [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, svg')
        && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80)),
    empty: [...document.querySelectorAll('svg, img')].filter(e => e.getBoundingClientRect().height < 20).length,
    svgs: document.querySelectorAll('svg').length, title: document.title,
})"""


def chromium() -> str | None:
    """The program, where there is one."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


@dataclass
class Page:
    """What a page turned out to be at one width."""

    inner: int
    """Pixels of the window; `scroll`: of the document."""
    scroll: int
    wide: list[str]
    """Elements that stick out of the window, but for tables in their own boxes."""
    empty: int
    """Pictures without any height."""
    svgs: int
    title: str
    messages: list[str] = field(default_factory=list)
    """Errors and warnings of scripts, of styles and of what is not loaded."""
    requests: list[str] = field(default_factory=list)
    """What the page asked for beside itself."""


class _DevTools:
    def __init__(self, reader: Any, writer: Any) -> None:
        self._reader, self._writer = reader, writer
        self._number, self._session, self._unread = 0, None, b""
        self.events: list[dict[str, Any]] = []

    def attach(self) -> None:
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        self._writer.write(json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode())
        self._writer.write(b"\0")
        self._writer.flush()
        while (answer := self._read()).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def wait_for(self, method: str) -> None:
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._read())

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._unread:
            more = self._reader.read1(2**16)
            assert more, "the browser has ended"
            self._unread += more
        text, _, self._unread = self._unread.partition(b"\0")
        return json.loads(text)


@contextmanager
def _browser(profile: Path) -> Iterator[_DevTools]:
    program = chromium()
    assert program is not None
    commands, answers = os.pipe(), os.pipe()
    # The browser reads commands from descriptor 3 and writes answers to 4.
    redirect = f'exec "$@" 3<&{commands[0]} 4>&{answers[1]}'
    process = subprocess.Popen(
        ["bash", "-c", redirect, "browser", program, *_FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}"],
        pass_fds=(commands[0], answers[1]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands[0])
    os.close(answers[1])
    with os.fdopen(answers[0], "rb") as reader, os.fdopen(commands[1], "wb") as writer:
        tools = _DevTools(reader, writer)
        yield tools
        tools.call("Browser.close")
    process.wait(30)


def open_page(file: Path, width: int, profile: Path, picture: Path | None = None, *, dark: bool = False) -> Page:
    """Open a file in a window of some width.

    Args:
        profile: a folder for the browser.
        picture: PNG of the whole page to write.
        dark: as on a device with dark colours.
    """
    with _browser(profile) as tools:
        tools.attach()
        for domain in ("Page", "Runtime", "Log", "Network"):
            tools.call(f"{domain}.enable")
        tools.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tools.call("Emulation.setEmulatedMedia", features=[scheme])
        tools.call("Page.navigate", url=file.resolve().as_uri())
        tools.wait_for("Page.loadEventFired")
        found = tools.call("Runtime.evaluate", expression=_LOOK, returnByValue=True)["result"]["value"]
        if picture is not None:
            shot = tools.call("Page.captureScreenshot", captureBeyondViewport=True)
            picture.write_bytes(base64.b64decode(shot["data"]))
        page = Page(**found)
        for event in tools.events:
            params = event.get("params", {})
            if event.get("method") == "Log.entryAdded":
                page.messages.append(params["entry"]["text"])
            elif event.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                page.messages.append(json.dumps(params))
            elif event.get("method") == "Network.requestWillBeSent":
                page.requests.append(params["request"]["url"])
        page.requests = [url for url in page.requests if url not in (file.resolve().as_uri(), "data:,")]
    return page
