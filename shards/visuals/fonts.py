"""Find fonts that have the characters of names in any script.

The search uses the list of installed fonts of matplotlib. DejaVu Sans, which is a part of matplotlib, has Latin, Greek,
Cyrillic, Arabic and other letters. Other scripts need a font of the machine. Texts from right to left are not turned.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from shards.errors import some

log = logging.getLogger(__name__)

#: Font that has a picture for every character, which shows only the block of the character.
LAST_RESORT = "Last Resort"


@dataclass(frozen=True)
class Fonts:
    """Fonts for some texts. The first one is always DejaVu Sans."""

    files: tuple[Path, ...]
    families: tuple[str, ...]
    missing: str
    """Characters that no font of this machine has."""


def find_fonts(texts: Iterable[str]) -> Fonts:
    """Return the fewest fonts that have the characters of ``texts``, as far as this machine has such fonts."""
    from matplotlib.font_manager import findfont, fontManager

    first = Path(findfont("DejaVu Sans"))
    files, families = [first], ["DejaVu Sans"]
    wanted = {character for text in texts for character in text if character.isprintable() and not character.isspace()}
    wanted -= characters_of(first)
    others = sorted({(entry.fname, entry.name) for entry in fontManager.ttflist}) if wanted else []
    others = [(file, family) for file, family in others if LAST_RESORT not in family]
    while wanted and others:
        file, family = max(others, key=lambda font: len(wanted & characters_of(Path(font[0]))))
        found = wanted & characters_of(Path(file))
        if not found:
            break
        wanted -= found
        files.append(Path(file))
        families.append(family)
    return Fonts(tuple(files), tuple(families), "".join(sorted(wanted)))


@cache
def characters_of(file: Path | str) -> frozenset[str]:
    """Return the characters that a font file has. A file that cannot be read has none."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(map(chr, FT2Font(str(file)).get_charmap()))
    except (OSError, RuntimeError):  # a broken font of the machine must not end a report
        return frozenset()


def warn_of_missing(fonts: Fonts, what: str) -> None:
    """Log a warning if the fonts of this machine lack characters. ``what``: the pictures that need the characters."""
    if fonts.missing:
        shown = some([f"{character!r} (U+{ord(character):04X})" for character in fonts.missing], 3)
        log.warning(
            "%s cannot show %d characters of the names, such as %s: no font of this machine has them; install fonts, "
            "such as the Debian packages fonts-noto-core and fonts-noto-cjk",
            what, len(fonts.missing), shown,
        )  # fmt: skip
