"""The picture of a report in README.md: ``python -m tests.picture`` takes it anew, in Chromium.

The report is that of the tests' journal, whose figures are invented; the page says so where the device's name is.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import msgspec
from playwright.sync_api import sync_playwright

from griffin_kernels.records import DeviceRecord
from reports.build import write_report
from tests import ROOT, journals
from tests.browsing import ARGUMENTS

PICTURE = ROOT / "docs" / "report.png"
SIZE = {"width": 1100, "height": 640}


def example(folder: Path) -> Path:
    """A report of invented figures, of a device whose name says so."""
    run, *lines = journals.records()
    named = DeviceRecord(journals.DEVICE.validity | {"name": "Example GPU, invented figures"}, {})
    lines = [msgspec.structs.replace(run, device=named), *lines]
    return write_report(journals.write(folder / "journal.jsonl", lines), folder / "report.html")


def take(picture: Path) -> None:
    """Draw the first screen of the example into ``picture`` (PNG)."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        sys.exit("no Chromium on PATH; install it (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = browser.new_page(viewport=SIZE, color_scheme="light")  # type: ignore[arg-type]
        page.goto(example(Path(folder)).as_uri())
        page.wait_for_timeout(1000)  # until the charts near the screen are drawn
        page.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    take(PICTURE)
