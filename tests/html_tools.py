"""Pages in tests: a reader that complains of tags that do not match, and text that must stay text."""

from __future__ import annotations

from html.parser import HTMLParser

from shards.visuals.templates import SCRIPT

#: What users may call a genre or a file: tags, quotes, characters that turn the text around or ring a bell.
HOSTILE = '<script>alert(\'x\')</script>&amp;" onload="x" \u202egnp.\u2066\u0007'
VOID = {"meta", "img", "br", "hr", "input", "link"}


class HtmlReader(HTMLParser):
    """Collects what is in a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def assert_text_only(page: str, hostile: str, times: int = 1) -> None:
    """The hostile words are shown as they are, at least so often, and made no tag and no attribute."""
    reader = HtmlReader(page)
    assert "".join(reader.text).count(hostile) >= times
    assert len(reader.all("script")) == page.count(f"<script>{SCRIPT}</script>") <= 1
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
