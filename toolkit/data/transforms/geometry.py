"""Crop, antialiased resize and flip: per sample on the CPU, or batched on the device. Pillow's filter in both.

On the device the resize is two batched matrix products with one weight matrix per sample and direction, rounded to
whole grey levels after each as Pillow does (horizontal first), so that the result differs from Pillow's only where
arithmetic precision tips a rounding. Weights are the triangle filter of Pillow's antialiased BILINEAR: half-width
max(scale, 1), taps outside of the box dropped, the rest normalised to one (Pillow, src/libImaging/Resample.c).
Boxes are floating point, so a box on an image that was decoded at 1/2 keeps its exact place.

On the CPU torch's uint8 kernel does the same for one sample at a time, in the thread that decoded it; it is several
times faster than Pillow and within one grey level of it. cv2.resize would be faster still, but it does not antialias.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from toolkit.data.sources.thread_buffer import scratch
from toolkit.data.transforms.crops import Views
from toolkit.data.transforms.preprocessing import MOST_RESIZED, resized_window
from toolkit.device.compat import upsample_into
from toolkit.device.transfer import to_device

#: Pixels gathered at a time on the device; bounds the index tensor to 64 MB.
CHUNK_PIXELS = 8_000_000


def cut_on_cpu(image: np.ndarray, views: Views, row: int, denominator: int, out: np.ndarray) -> None:
    """Write sample ``row`` of ``views`` to ``out`` (S, S, 4) uint8, of which the fourth channel means nothing.

    ``image`` is (h, w, 4) uint8, the stored image at 1/``denominator``; rows beyond the view may be missing if the
    window is the whole resized box. Pixels of four bytes are resized and mirrored faster than pixels of three.
    """
    left, top, right, bottom = views.boxes[row].tolist()
    width, height = views.resized[row].tolist()
    if denominator == 1 and width * height <= MOST_RESIZED:
        if (width, height) == (views.side, views.side):
            _resize(image[top:bottom, left:right], out, bool(views.flips[row]))
            return
        resized = scratch("resized", height * width * 4).reshape(height, width, 4)
        _resize(image[top:bottom, left:right], resized, False)
        x, y = views.corners[row].tolist()
        window = resized[y : y + views.side, x : x + views.side]
    else:
        # Pillow alone takes a box of fractions of pixels: rounding it to the small grid shifts edges visibly.
        ratio = float(denominator)
        box = (left / ratio, top / ratio, min(right / ratio, image.shape[1]), min(bottom / ratio, image.shape[0]))
        size = image.shape[1], image.shape[0]
        whole = Image.frombuffer("RGBX", size, np.ascontiguousarray(image), "raw", "RGBX", 0, 1)
        corner = tuple(views.corners[row].tolist())
        window = np.asarray(resized_window(whole, box, (width, height), corner, views.side))
    _copy(window, out, bool(views.flips[row]))


def _resize(pixels: np.ndarray, out: np.ndarray, flip: bool) -> None:
    """Resize (h, w, 4) uint8 to the size of ``out``, antialiased, mirrored before if ``flip``."""
    if pixels.shape == out.shape:
        _copy(pixels, out, flip)
        return
    # Contiguous by numpy's hand (torch would start threads of its own for it), and from memory that is there already
    # into memory that is there already: fresh memory for every image costs as much as the resize.
    source = scratch("crop", pixels.size).reshape(pixels.shape)
    _copy(pixels, source, flip)
    upsample_into(_nchw(source), out.shape[:2], False, None, None, out=_nchw(out))


def _copy(pixels: np.ndarray, out: np.ndarray, flip: bool) -> None:
    if flip:
        out.view(np.uint32)[:] = pixels.view(np.uint32)[:, ::-1]  # a pixel is a word
    else:
        out[:] = pixels


def _nchw(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)


class DeviceGeometry:
    """The views of packed images, cut on a device. Made on the CPU, once per batch."""

    def __init__(self, views: Views, starts: np.ndarray, pitches: np.ndarray, denominators: np.ndarray) -> None:
        """``starts`` (n,) is each image's first pixel in the packed memory, ``pitches`` (n,) its width there."""
        ratio = denominators[:, None].astype(np.float64)
        boxes = views.boxes / ratio
        # whole pixels that any tap may touch: a partly covered pixel at an edge belongs to the box
        low, high = np.floor(boxes[:, :2]).astype(np.int64), np.ceil(boxes[:, 2:]).astype(np.int64)
        high[:, 1] = np.minimum(high[:, 1], -(-views.last_rows() // denominators))
        self.side = views.side
        self.count = len(views)
        self.extents = high - low
        # One table that goes to the device in one piece: a copy that the host waits for would have it wait for all that
        # the device still has to do. Whole numbers stay whole in float64.
        columns = (
            (boxes[:, 2:] - boxes[:, :2]) / views.resized,
            boxes[:, :2] - low,
            views.corners,
            self.extents,
            (starts + low[:, 1] * pitches + low[:, 0])[:, None],
            pitches[:, None],
            views.flips[:, None],
        )
        self.facts = torch.from_numpy(np.concatenate([part.astype(np.float64) for part in columns], axis=1))

    def __call__(self, packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Packed (bytes,) uint8 RGB pixels → (n, S, S, 3) whole grey levels of ``dtype``, on packed's device."""
        pixels = packed.view(-1, 3)
        out = torch.empty((self.count, self.side, self.side, 3), dtype=dtype, device=packed.device)
        facts = to_device(self.facts, packed.device)
        width, height = self.extents.max(axis=0).tolist()
        step = max(1, CHUNK_PIXELS // max(1, width * height))
        for start in range(0, self.count, step):
            rows = slice(start, start + step)
            size = self.extents[rows].max(axis=0).tolist()
            out[rows] = self._cut(pixels, facts[rows], size[0], size[1], dtype)
        return out

    def _cut(
        self, pixels: torch.Tensor, facts: torch.Tensor, width: int, height: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """(n, S, S, 3) samples of some rows of the table; no box is wider or higher than ``width`` and ``height``."""
        device = pixels.device
        scales, origins = facts[:, 0:2].float(), facts[:, 2:4].float()
        corners, extents, whole = facts[:, 4:6].long(), facts[:, 6:8].long(), facts[:, 8:].long()
        firsts, pitches, flips = whole[:, 0], whole[:, 1], whole[:, 2:] > 0
        x = torch.arange(width, device=device).minimum(extents[:, :1] - 1)  # (n, w): weights beyond are zero
        y = torch.arange(height, device=device).minimum(extents[:, 1:] - 1)
        where = (firsts[:, None] + y * pitches[:, None])[:, :, None] + x[:, None, :]
        n = len(where)
        images = pixels[where.view(-1)].view(n, height, width, 3)
        targets = torch.arange(self.side, device=device).expand(n, -1)
        # The flip mirrors the window: its weights in reverse order.
        mirrored = torch.where(flips, self.side - 1 - targets, targets)
        across, down = (
            _weights(target, length, *(part[:, axis] for part in (scales, origins, corners, extents))).to(dtype)
            for axis, target, length in ((0, mirrored, width), (1, targets, height))
        )
        # (n, h*3, w) x (n, w, S), then (n, S, h) x (n, h, 3*S)
        planes = images.permute(0, 1, 3, 2).to(dtype).reshape(n, height * 3, width)
        half = torch.bmm(planes, across.transpose(1, 2)).round_().view(n, height, 3 * self.side)
        levels = torch.bmm(down, half).round_().clamp_(0, 255)
        return levels.view(n, self.side, 3, self.side).permute(0, 1, 3, 2)


def _weights(target: torch.Tensor, length: int, *views: torch.Tensor) -> torch.Tensor:
    """(n, S, length) float32 filter weights of one direction, for (n, S) output pixels and four (n,) facts of views."""
    scale, origin, corner, extent = (part[:, None, None] for part in views)
    source = torch.arange(length, device=target.device)
    centre = origin + (target[:, :, None] + corner + 0.5) * scale
    weights = 1.0 - ((source + 0.5 - centre) / scale.clamp(min=1.0)).abs()
    weights = weights.clamp_(min=0.0) * (source < extent)
    return weights / weights.sum(dim=2, keepdim=True)
