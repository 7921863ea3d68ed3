"""A browser without a window, for tests of pages."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), "")


def browse(work: Path, page: Path, *options: str) -> str:
    """Open a page without a window and without a name server; what the browser prints."""
    run = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
         "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=10000",
         f"--user-data-dir={work / 'profile'}", *options, page.as_uri()],
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


def framed(work: Path, page: Path, *widths: int, height: int = 600, head: str = "") -> Path:
    """A page with the page in frames: a window of chromium is never narrower than 500 pixels."""
    look = f"height:{height}px;border:0;display:block"
    frames = "".join(f'<iframe src="{page.as_uri()}" style="width:{w}px;{look}"></iframe>' for w in widths)
    (work / "frames.html").write_text(f'<title></title>{head}<body style="margin:0">{frames}')
    return work / "frames.html"


def with_probe(page: Path, work: Path, script: str) -> Path:
    """A copy of the page that also runs ``script``, which the policy of the page would not allow."""
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text(encoding="utf-8"))
    (work / "probe.html").write_text(html.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    return work / "probe.html"
