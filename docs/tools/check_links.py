"""Check the links of all Markdown files of the repository: `python docs/tools/check_links.py`.

A link to a file must lead to a file of the repository, and its anchor to a heading. Anchors are those that GitHub makes
from headings. An address on the web must have the form of one; no network is used.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]

_FENCE = re.compile(r"^ {0,3}(```+|~~~+).*?^ {0,3}\1`*[ \t]*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(
    r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^()\s<>]*(?:\([^()]*\)[^()\s<>]*)*)>?(?:\s+\"[^\"]*\")?\s*\)"
)
_REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s*<?(\S+?)>?\s*$", re.MULTILINE)
_HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*[ \t]*$", re.MULTILINE)
_HTML_ANCHOR = re.compile(r"<a\s+(?:name|id)=[\"']([^\"']+)[\"']")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:\d+)?", re.IGNORECASE)


def anchors(text: str) -> set[str]:
    """The anchors of a page, made from its headings as GitHub makes them."""
    text = _FENCE.sub("", text)
    found: set[str] = set(_HTML_ANCHOR.findall(text))
    seen: Counter[str] = Counter()
    for heading in _HEADING.findall(text):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)  # a link shows its text
        slug = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def links(text: str) -> list[str]:
    """The targets of a page's links and pictures. Code has none."""
    text = _CODE.sub("``", _FENCE.sub("", text))
    return [*_LINK.findall(text), *_REFERENCE.findall(text)]


def problem(page: Path, target: str, root: Path = ROOT) -> str | None:
    """What is wrong with a link of a page. None if it is right."""
    parts = urlsplit(target)
    if parts.scheme in ("http", "https"):
        return None if _HOST.fullmatch(parts.netloc) else "is not a valid web address"
    if parts.scheme == "mailto":
        return None
    if parts.scheme or target.startswith("/"):
        return "is not a relative path or a web address"
    path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
    if not path.is_relative_to(root.resolve()):
        return "leads out of the repository"
    if not path.exists():
        return "leads to a file that does not exist"
    if parts.fragment and path.suffix == ".md" and parts.fragment not in anchors(path.read_text(encoding="utf-8")):
        return "leads to a heading that does not exist"
    return None


def pages(root: Path = ROOT) -> list[Path]:
    """The Markdown files that git tracks or would track."""
    command = ["git", "-C", str(root), "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted({root / name for name in names if (root / name).exists()})


def problems(page: Path, root: Path = ROOT) -> list[str]:
    """One line per broken link of a page."""
    found = ((target, problem(page, target, root)) for target in links(page.read_text(encoding="utf-8")))
    return [f"{page.relative_to(root)}: the link {target} {wrong}" for target, wrong in found if wrong]


def main() -> int:
    """Print the broken links. Returns 1 if there are any."""
    checked = pages()
    found = [line for page in checked for line in problems(page)]
    print("\n".join(found) if found else f"the links of {len(checked)} pages are right")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
