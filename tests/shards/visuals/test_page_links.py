"""Pages of one model that are beside each other link each other, whichever is written first."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

import pytest
from html_tools import HtmlReader

from shards.visuals.links import page_of, write_page
from shards.visuals.templates import ENVIRONMENT

PAGE = """{% extends "shards.visuals/page.html" %}{% block title %}page{% endblock %}{% block style %}{% endblock %}
{% block content %}<p>{{ words }}</p>{% endblock %}"""
A, B, CLEANED = "ab" * 32, "cd" * 32, "0123456789abcdef"


def write(page: Path, kind: str, *subjects: str, words: str = "words") -> Path:
    write_page(page, ENVIRONMENT.from_string(PAGE).render(page_of=page_of(kind, *subjects), words=words))
    return page


def links(page: Path) -> dict[str, Path]:
    """Name of each link → the file to which its address leads."""
    text = page.read_text(encoding="utf-8")
    reader = HtmlReader(text)
    addresses = [str(attributes["href"]) for attributes in reader.all("a")]
    names = text.partition("<!--links-->")[2].partition("<!--/links-->")[0].split("</a>")[:-1]
    assert len(names) == len(addresses) and not any(":" in address for address in addresses)
    files = [Path(os.path.normpath(page.parent / unquote(address))) for address in addresses]
    assert all(file.is_file() for file in files)
    return {name.rpartition(">")[2]: file for name, file in zip(names, files, strict=True)}


@pytest.fixture
def tmp_path(tmp_path: Path) -> Path:
    """A folder whose parent has no pages of other tests."""
    inner = tmp_path / "of" / "ours"
    inner.mkdir(parents=True)
    return inner


def test_both_directions_and_only_what_is_of_the_same_model(tmp_path: Path):
    report = write(tmp_path / "report" / "index.html", "Report", A)
    assert links(report) == {} and "Also of this run" not in report.read_text()
    audit = write(tmp_path / "audit" / "audit.html", "Audit", A, CLEANED)
    other = write(tmp_path / "other" / "index.html", "Report", B)
    comparison = write(tmp_path / "comparison" / "index.html", "Comparison", B, A)
    sheet = write(tmp_path / "cleaned-sheet" / "contact_sheet.html", "Cleaning", CLEANED)
    demo = write(tmp_path / "index.html", "Demo", A)
    write(tmp_path / "far" / "away" / "from" / "index.html", "Report", A)
    assert links(report) == {"Demo": demo, "Comparison": comparison, "Audit": audit}
    assert links(audit) == {"Demo": demo, "Report": report, "Comparison": comparison, "Cleaning": sheet}
    assert links(other) == {"Comparison": comparison}
    assert links(comparison) == {"Demo": demo, "Report report": report, "Report other": other, "Audit": audit}
    assert links(sheet) == {"Audit": audit}
    assert links(demo) == {"Report": report, "Comparison": comparison, "Audit": audit}


def test_a_page_that_is_gone_or_is_of_another_model_now_gets_no_link(tmp_path: Path):
    report = write(tmp_path / "report" / "index.html", "Report", A)
    audit = write(tmp_path / "audit" / "audit.html", "Audit", A)
    assert links(report) == {"Audit": audit}
    write(report, "Report", B)
    write(audit, "Audit", A)
    assert links(audit) == links(report) == {}


def test_names_of_folders_are_escaped_and_strange_files_are_left_alone(tmp_path: Path):
    first = write(tmp_path / 'a&b "c" #1?<i>%20' / "index.html", "Report", A, words="<!--links-->")
    second = write(tmp_path / "javascript:alert(1)" / "index.html", "Report", A)
    third = write(tmp_path / "plain" / "index.html", "Report", A)
    names = {"Report a&amp;b &#34;c&#34; #1?&lt;i&gt;%20": first, "Report javascript:alert(1)": second}
    assert links(third) == names and not HtmlReader(third.read_text()).all("i")
    foreign = tmp_path / "foreign" / "index.html"
    foreign.parent.mkdir()
    foreign.write_bytes(b'\xff<meta name="page-of" content="Report ' + A.encode() + b'">')
    os.mkfifo(tmp_path / "audit.html")
    (tmp_path / "loop").symlink_to(tmp_path / "plain")
    before = foreign.read_bytes()
    write(third, "Report", A)
    assert links(third) == names | {"Report foreign": foreign} and foreign.read_bytes() == before


def test_a_page_that_cannot_be_changed_is_named(tmp_path: Path, monkeypatch, caplog):
    report = write(tmp_path / "report" / "index.html", "Report", A)
    before = report.read_bytes()

    def full(source: object, target: object, replace=os.replace) -> None:
        if Path(str(target)).parent == report.parent:
            raise OSError(28, "No space left on device")
        replace(str(source), str(target))

    monkeypatch.setattr(os, "replace", full)
    audit = write(tmp_path / "audit" / "audit.html", "Audit", A)
    assert links(audit) == {"Report": report} and report.read_bytes() == before
    assert f"the links of {report} could not be updated" in caplog.text and "No space left" in caplog.text
    assert {path.name for path in report.parent.iterdir()} == {"index.html"}
