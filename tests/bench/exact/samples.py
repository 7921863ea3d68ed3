"""The samples of the tars, for the stacks that leave reading to their user or have a format of their own."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def read_tar(url: str) -> Iterator[tuple[bytes, int]]:
    """(JPEG, sample id) of every sample of one tar, in its order."""
    with tarfile.open(url) as tar:
        parts = {}
        for member in tar:
            stream = tar.extractfile(member)
            assert stream is not None, f"{url}: {member.name} is not a file"
            parts[member.name] = stream.read()
    for name, part in parts.items():
        if name.endswith(".jpg"):
            yield part, int(parts[name.replace(".jpg", ".cls")])


def read_tars(urls: list[str]) -> list[tuple[bytes, int]]:
    """All samples of several tars."""
    return [sample for url in urls for sample in read_tar(url)]


def pixels(jpeg: bytes) -> np.ndarray:
    """A decoded image, (height, width, 3)."""
    import numpy as np
    from PIL import Image

    return np.array(Image.open(BytesIO(jpeg)))
