"""Every link of every Markdown page leads to a file and a heading; the checker finds broken links."""

from __future__ import annotations

import re
from pathlib import Path

import check_links
import pytest

PAGES = check_links.pages()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(check_links.ROOT)))
def test_every_link_leads_somewhere(page: Path):
    assert check_links.problems(page) == []


@pytest.mark.parametrize(
    ("link", "wrong"),
    [
        ("[a](b.md)", None),
        ("[a](b.md#two-words)", None),
        ("[a](b.md#two-words-1)", None),
        ("[a](#here)", None),
        ("[a](https://example.org/x)", None),
        ("`[a](none.md)`", None),
        ("[a](none.md)", "a file that does not exist"),
        ("![a](none.png)", "a file that does not exist"),
        ("[a](b.md#two)", "a heading that does not exist"),
        ("[a](#there)", "a heading that does not exist"),
        ("[a](../../x.md)", "out of the repository"),
        ("[a](/b.md)", "not a relative path"),
        ("[a](https:///x)", "not a valid web address"),
        ("[`code`](none.md)", "a file that does not exist"),
        ("[a]: none.md", "a file that does not exist"),
    ],
)
def test_a_broken_link_is_found(link: str, wrong: str | None, tmp_path: Path):
    (tmp_path / "b.md").write_text("# B\n\n## Two `words`\n\n```\n## Two\n```\n\n## Two words\n")
    (tmp_path / "a.md").write_text(f"# Here\n\n{link}\n")
    found = check_links.problems(tmp_path / "a.md", tmp_path)
    assert len(found) == (0 if wrong is None else 1)
    assert wrong is None or wrong in found[0]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_module_that_a_page_names_exists(page: Path):
    """Names of the repository's own files, such as `toolkit/metrics/registry.py`."""
    named = re.findall(
        r"`((?:toolkit|shards|launch|tests|configs|docs)/[\w/.]*\.(?:py|yaml|md|xz|json))", page.read_text()
    )
    assert [name for name in named if not (check_links.ROOT / name).exists()] == []
