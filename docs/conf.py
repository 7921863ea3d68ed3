"""The configuration of the site: Sphinx with MyST, which reads Markdown by the rules that GitHub has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

project = "poster-toolkit"
author = "the contributors of poster-toolkit"
html_title = project

extensions = ["myst_parser"]
exclude_patterns = ["tools"]
# Anchors of headings are those of GitHub, down to ####.
myst_heading_anchors = 4
# A block of code without a language is plain text.
highlight_language = "none"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False

#: The sections of the site and the order of their pages. A page that is not listed comes last in its section.
SECTIONS = {
    "get-started": ("Get started", ["install", "demo", "your-posters", "your-data"]),
    "guides": (
        "Guides",
        [
            "download", "remove-text", "build-shards", "train", "cached-features", "thresholds", "evaluate", "predict",
            "use-predictions", "app", "audit", "export", "customise", "extend", "python", "loader", "loader-adaptors",
        ],
    ),
    "scale": ("Scale", ["several-gpus", "nodes-and-slurm", "shards-at-urls", "dask", "fsdp"]),
    "concepts": (
        "Concepts",
        [
            "shard-format", "exact-epochs", "determinism-and-resume", "loader", "losses-and-sampling", "decisions",
            "text-removal",
        ],
    ),
    "reference": (
        "Reference",
        ["command-line", "configuration", "file-formats", "exit-codes", "error-codes", "python", "trust", "glossary"],
    ),
    "results": (
        "Results",
        ["recipes", "timm", "loader", "prediction", "growth", "mission", "duplicates", "text-removal"],
    ),
    "contribute": (
        "Contribute",
        ["architecture", "where-to-change", "style", "testing", "compatibility", "repaired-faults"],
    ),
}  # fmt: skip


def add_navigation(app: Any, name: str, source: list[str]) -> None:
    """Append the tables of contents to the home page. In index.md they would look broken on GitHub."""
    if name != "index":
        return
    for folder, (caption, order) in SECTIONS.items():
        pages = sorted(
            (path.stem for path in Path(app.srcdir, folder).glob("*.md")),
            key=lambda page: (order.index(page) if page in order else len(order), page),
        )
        if pages:
            listed = "\n".join(f"{folder}/{page}" for page in pages)
            source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n"


def setup(app: Any) -> None:
    """Register the hook above."""
    app.connect("source-read", add_navigation)
