"""A browser without a window, for tests of pages."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER, DRIVER = next(filter(None, map(shutil.which, NAMES)), ""), shutil.which("chromedriver") or ""
#: Why tests of pages are skipped here; empty if they can run.
LACKING = f"none of {', '.join(NAMES)}" if not BROWSER else "" if DRIVER else "no chromedriver (chromium-driver)"
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)  # fmt: skip

AXE = """
const [done] = arguments;
const why = (node) => [...node.any, ...node.all, ...node.none][0].message;
const fading = document.getAnimations().filter((one) => one.effect.getComputedTiming().endTime < Infinity);
Promise.allSettled(fading.map((one) => one.finished)).then(
  () => axe.run(document, { resultTypes: ["violations"], preload: false })
).then(({ violations }) => {
  const grave = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  done(grave.flatMap(({ impact, id, nodes }) => nodes.map(
    (node) => `${impact} ${id}: ${node.target.join(" ")}: ${why(node)}`)));
}, (error) => done([String(error)]));
"""


@contextmanager
def started(profile: Path) -> Iterator[Any]:
    """A WebDriver of a browser that reaches this machine only, and logs what it asks for."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for option in (*OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def axe(driver: Any) -> list[str]:
    """Serious and critical barriers that axe-core finds in what the page shows now, one line for each element."""
    driver.execute_script(files("selenium_axe_python").joinpath("axe-core/axe.min.js").read_text(encoding="utf-8"))
    driver.set_script_timeout(120)
    return driver.execute_async_script(AXE)


class Window:
    """One window that shows a file in any size, in light or dark colours, with the policy of the page."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, page: Path, width: int = 1280, height: int = 800, *, dark: bool = False) -> Window:
        """Show the page from its start, with its sections as they are at first."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        colours = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": [colours]})
        self.driver.get(page.as_uri())
        return self

    def unfold(self) -> Window:
        """Open all sections."""
        self.run("for (const part of document.querySelectorAll('details')) part.open = true")
        return self

    def run(self, script: str) -> Any:
        """What the body of a function returns."""
        return self.driver.execute_script(script)

    def headings(self) -> list[str]:
        """All headings of the page, also those in closed sections."""
        return self.run("return [...document.querySelectorAll('h1, h2, h3')].map((head) => head.textContent.trim())")

    def width(self) -> int:
        """Pixels from the left to the right end of what can be scrolled to."""
        return self.run("return document.documentElement.scrollWidth")

    def lowest(self, css: str) -> float:
        """Where the last of the elements ends, in pixels from the top of the screen."""
        ends = f"[...document.querySelectorAll({json.dumps(css)})].map((part) => part.getBoundingClientRect().bottom)"
        return self.run(f"return Math.max(...{ends})")

    def pixels(self) -> np.ndarray:
        """(height, width, 3) of the screen."""
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "optimizeForSpeed": True})
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB"))

    def pdf(self) -> bytes:
        """What the page prints."""
        return base64.b64decode(self.driver.execute_cdp_cmd("Page.printToPDF", {})["data"])

    def asked(self) -> list[str]:
        """Addresses of files that pages have asked for since the last call, without the pages themselves."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        urls = [one["request"]["url"] for one in sent if one["request"]["url"] != one["documentURL"]]
        return [url for url in urls if not url.startswith("data:")]


def printed_words(pdf: bytes) -> str:
    """The text of a PDF, with single spaces. The test is skipped if the machine has no pdftotext."""
    if shutil.which("pdftotext") is None:
        pytest.skip("no pdftotext (poppler-utils)")
    run = subprocess.run(["pdftotext", "-", "-"], input=pdf, capture_output=True, check=True)
    return " ".join(run.stdout.decode("utf-8").split())
