"""A report in a browser, watched: what it says on the console and what it asks the network for."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Watched:
    """An open page and everything it said or asked for."""

    page: Page
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def silent(self, report: Path) -> bool:
        local = [url for url in self.asked if not url.startswith(("data:", "blob:"))]
        assert self.said == []
        assert local == [report.as_uri()]
        return True


def opened(browser: Browser, report: Path, width: int = 1280, scheme: str = "light") -> Watched:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    page.set_default_timeout(15_000)
    watched = Watched(page)
    page.on("console", lambda message: watched.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: watched.said.append(f"error: {error}"))
    page.on("request", lambda request: watched.asked.append(request.url.split("#")[0]))
    page.goto(report.as_uri())
    page.locator(".chart").first.scroll_into_view_if_needed()
    page.wait_for_selector(".chart[data-drawn]")
    return watched


def wait_until(page: Page, condition: str) -> None:
    """Poll from outside: the page's own policy forbids playwright's waiting, which evaluates text within it."""
    deadline = time.monotonic() + 15
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, f"never became true: {condition}"
        page.wait_for_timeout(50)
