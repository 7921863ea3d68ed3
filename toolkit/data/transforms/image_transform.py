"""The model's preprocessing on the bytes of any image file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from toolkit.data.sources.errors import Undecodable
from toolkit.data.transforms.batch_transform import SquareCut
from toolkit.data.transforms.crops import eval_views
from toolkit.data.transforms.jpeg import decode_any, plain_jpeg
from toolkit.data.transforms.preprocessing import Preprocessing


@dataclass(frozen=True)
class RawTransform:
    """The model's preprocessing on the bytes of any image file."""

    preprocessing: Preprocessing

    def __call__(self, data: bytes) -> np.ndarray:
        """(S, S, 3) uint8. Raises ValueError with the reason in one line."""
        try:
            header = plain_jpeg(data)
            if header is not None:
                return self._cut((header.width, header.height)).square(0, memoryview(bytearray(data)))
            return self.square(decode_any(data))
        except Undecodable as bad:
            raise ValueError(str(bad)) from None

    def square(self, image: Image.Image) -> np.ndarray:
        """(S, S, 3) uint8 of a decoded RGB picture; as of its file, where that is no JPEG."""
        return self._cut(image.size).picture(0, image)

    def _cut(self, size: tuple[int, int]) -> SquareCut:
        ours, widths, heights = self.preprocessing, *(np.array([side]) for side in size)
        cut = SquareCut(eval_views(ours.image_size, ours.crop_pct, widths, heights, ours.fit))
        # No index vouches for these: a file that is cut, below what the model is shown, is cut all the same.
        cut.rows = heights
        return cut
