"""Convert a decoded image to a square of uint8 RGB pixels with Pillow. This is the slow reference implementation.

jpeg.py, crops.py and geometry.py compute the same pixels faster. Tests compare them with this module. A model folder
contains the values of ``Preprocessing``, so that prediction and evaluation use the same pixels as validation.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from toolkit.data.transforms.crops import resized_size

BILINEAR = Image.Resampling.BILINEAR  # in Pillow this filter antialiases, like torchvision's with antialias=True
#: If a resized image has more pixels than this, only the part that becomes the sample is computed.
MOST_RESIZED = 16_000_000
#: Number of images that are normalised at a time on a CPU.
CPU_IMAGES = 8
Box = tuple[int, int, int, int]
FloatBox = tuple[float, float, float, float]
Size = tuple[int, int]
#: Values of ``Preprocessing.fit``.
FITS = ("crop", "stretch")


@dataclass(frozen=True)
class Preprocessing:
    """The evaluation transform and the normalisation of a model."""

    image_size: int
    crop_pct: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: str = "crop"
    """crop: use the central square with side ``crop_pct`` x short side. stretch: resize the whole image to a square."""

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}, not {self.fit!r}")

    def square(self, image: Image.Image) -> np.ndarray:
        """Return the (S, S, 3) uint8 square of a decoded RGB image.

        torchvision gives the same pixels with Resize(S / crop_pct) and CenterCrop(S), or Resize((S, S)) for "stretch".
        """
        if self.fit == "stretch":
            return stretch(image, self.image_size)
        return center_crop(image, self.image_size, self.crop_pct)

    def view(self, width: int, height: int) -> Box:
        """Return the part of an image that the model gets: left, top, right, bottom in pixels of the image."""
        if self.fit == "stretch":
            return 0, 0, width, height
        return view_box(width, height, self.image_size, self.crop_pct)

    def normalize(self, images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return normalised (n, 3, S, S) images in channels_last memory, from (n, S, S, 3) RGB values from 0 to 255."""
        mean, std = (_grey_levels(tuple(part), images.device) for part in (self.mean, self.std))
        # On a CPU, a few images at a time fit into the caches, which is four times as fast as a whole batch at a time.
        out = torch.empty(images.shape, dtype=dtype, device=images.device)
        step = CPU_IMAGES if images.device.type == "cpu" else max(1, len(images))
        for start in range(0, len(images), step):
            torch.div(images[start : start + step] - mean, std, out=out[start : start + step])
        return out.permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=64)
def _grey_levels(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return (3,) ``values`` x 255 on the device. The cache avoids one slow copy per batch."""
    with torch.inference_mode(False):  # training cannot use an inference tensor
        return torch.tensor(values, device=device) * 255.0


def center_crop(image: Image.Image, size: int, crop_pct: float) -> np.ndarray:
    """Resize the short side to ``size / crop_pct``, with torchvision's rounding, and take the central square."""
    width, height = map(int, resized_size(*image.size, size, crop_pct))
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return np.asarray(resized_window(image, (0, 0, *image.size), (width, height), (left, top), size))


def resized_window(image: Image.Image, box: FloatBox, size: Size, corner: Size, side: int) -> Image.Image:
    """Resize ``box`` of the image to ``size``. Return the square with side ``side`` and upper left ``corner``.

    If ``size`` is large (up to 4 billion pixels), only the square and a few pixels around the square are computed.
    """
    if size[0] * size[1] <= MOST_RESIZED:
        return image.resize(size, BILINEAR, box=box).crop((*corner, corner[0] + side, corner[1] + side))
    scales = [(box[axis + 2] - box[axis]) / size[axis] for axis in (0, 1)]
    # Pillow's filter uses no pixels outside of its box, so the box gets two pixels more on each side.
    low = [max(0, corner[axis] - 2) for axis in (0, 1)]
    high = [min(size[axis], corner[axis] + side + 2) for axis in (0, 1)]
    part = [box[axis] + edge[axis] * scales[axis] for edge in (low, high) for axis in (0, 1)]
    part = [min(part[k], box[k % 2 + 2]) for k in range(4)]
    small = image.resize((high[0] - low[0], high[1] - low[1]), BILINEAR, box=tuple(part))  # type: ignore[arg-type]
    left, top = corner[0] - low[0], corner[1] - low[1]
    return small.crop((left, top, left + side, top + side))


def stretch(image: Image.Image, size: int) -> np.ndarray:
    """Resize the whole image to (size, size), like timm's crop_mode "squash" with crop_pct 1."""
    return np.asarray(image.resize((size, size), BILINEAR))


def view_box(width: int, height: int, image_size: int, crop_pct: float) -> Box:
    """Return left, top, right, bottom of the part that `center_crop` keeps, in pixels of the image."""
    scale = max(image_size, round(image_size / crop_pct)) / min(width, height)
    half = image_size / scale / 2.0
    left, top = max(0, round(width / 2.0 - half)), max(0, round(height / 2.0 - half))
    return left, top, min(width, round(width / 2.0 + half)), min(height, round(height / 2.0 + half))
