"""A line of known text below every picture that a detector sees.

Detectors of this kind are trained on pictures that hold text. Shown one without any, they take the most striking thing
for it: on posters whose text had been painted out, PP-OCRv6 and v4 "found" faces and whole figures, up to a third of
the picture, with scores up to 0.88. With a line of real text below, the network has seen what text is, and these
findings go away (tests/bench/text_detection.py measures it, and what it costs in recall).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

WORDS = "The quick brown fox jumps over the lazy dog 1987 "
STRIDE = 32


def strip_height(side: int) -> int:
    """Rows of the strip for a picture of that short side: a tenth, in steps that networks take."""
    return max(STRIDE, round(side / 10 / STRIDE) * STRIDE)


@lru_cache(maxsize=64)
def reference_strip(width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: black words on white."""
    image = Image.new("RGB", (width, height), "white")
    font = ImageFont.load_default(height * 0.5)
    pen = ImageDraw.Draw(image)
    pen.text((height // 4, height // 2), WORDS * (1 + 4 * width // (height * len(WORDS))), "black", font, anchor="lm")
    pen.rectangle((width - height // 4, 0, width, height), "white")  # words do not run into the border
    pixels = np.array(image)
    pixels.flags.writeable = False
    return pixels
