"""Crop, antialiased resize and flip with Pillow's filter, for one sample on the CPU or for a batch on the device.

On the device, the resize is two batched matrix products, first horizontal and then vertical, with one weight matrix per
sample. As in Pillow, each product is rounded to whole numbers. Some values are rounded differently, because Pillow
computes with fixed-point numbers. The weights are the triangle filter of Pillow's antialiased BILINEAR, whose
half-width is max(scale, 1). Weights outside of the crop are dropped, and the other weights are normalised to sum 1
(Pillow, src/libImaging/Resample.c). Crop coordinates are floats, and remain exact for images decoded at a reduced size.

On the CPU, torch's uint8 kernel resizes one sample at a time, in the thread that decoded it. The kernel is several
times faster than Pillow, and differs from Pillow by at most one grey level. cv2.resize does not antialias.
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

#: Number of pixels that are gathered at a time on the device. It limits the index tensor to 64 MB.
CHUNK_PIXELS = 8_000_000


def cut_on_cpu(image: np.ndarray, views: Views, row: int, denominator: int, out: np.ndarray) -> None:
    """Write the sample of ``row`` to ``out``, (S, S, 4) uint8. The fourth channel has no meaning.

    ``image`` is the stored image at 1/``denominator`` of its size, as (h, w, 4) uint8. Rows below the crop can be
    missing. If the sample is only a window of the resized crop, ``image`` must have all rows.
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
        # Only Pillow accepts a box with fractions of pixels. Rounding the box to whole pixels shifts edges visibly.
        ratio = float(denominator)
        box = (left / ratio, top / ratio, min(right / ratio, image.shape[1]), min(bottom / ratio, image.shape[0]))
        size = image.shape[1], image.shape[0]
        whole = Image.frombuffer("RGBX", size, np.ascontiguousarray(image), "raw", "RGBX", 0, 1)
        corner = tuple(views.corners[row].tolist())
        window = np.asarray(resized_window(whole, box, (width, height), corner, views.side))
    _copy(window, out, bool(views.flips[row]))


def _resize(pixels: np.ndarray, out: np.ndarray, flip: bool) -> None:
    """Resize (h, w, 4) uint8 ``pixels`` to the size of ``out`` with antialiasing. If ``flip``, mirror them first."""
    if pixels.shape == out.shape:
        _copy(pixels, out, flip)
        return
    # numpy copies the pixels to contiguous memory, because torch would start threads for this copy. The memory is
    # reused, because an allocation takes as much time as the resize.
    source = scratch("crop", pixels.size).reshape(pixels.shape)
    _copy(pixels, source, flip)
    upsample_into(_nchw(source), out.shape[:2], False, None, None, out=_nchw(out))


def _copy(pixels: np.ndarray, out: np.ndarray, flip: bool) -> None:
    if flip:
        out.view(np.uint32)[:] = pixels.view(np.uint32)[:, ::-1]  # one pixel is one 32-bit word
    else:
        out[:] = pixels


def _nchw(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)


class DeviceGeometry:
    """Crop and resize the images of one batch on a device. The images are stored one after another in one buffer."""

    def __init__(self, views: Views, starts: np.ndarray, pitches: np.ndarray, denominators: np.ndarray) -> None:
        """``starts``: (n,) buffer indices of the images' first pixels. ``pitches``: (n,) widths of decoded images."""
        ratio = denominators[:, None].astype(np.float64)
        boxes = views.boxes / ratio
        # all pixels that the box covers, also those that it covers only in part
        low, high = np.floor(boxes[:, :2]).astype(np.int64), np.ceil(boxes[:, 2:]).astype(np.int64)
        high[:, 1] = np.minimum(high[:, 1], -(-views.last_rows() // denominators))
        self.side = views.side
        self.count = len(views)
        self.extents = high - low
        # All values are in one table, so that one asynchronous copy is enough. A synchronous copy lasts until the
        # device has done all queued work. Integers are exact in float64.
        columns = (
            (boxes[:, 2:] - boxes[:, :2]) / views.resized,
            boxes[:, :2] - low,
            views.corners,
            self.extents,
            (starts + low[:, 1] * pitches + low[:, 0])[:, None],
            pitches[:, None],
            views.flips[:, None],
        )
        self.table = torch.from_numpy(np.concatenate([part.astype(np.float64) for part in columns], axis=1))

    def __call__(self, packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return (n, S, S, 3) whole numbers from 0 to 255 as ``dtype``. ``packed``: uint8 buffer with RGB pixels."""
        pixels = packed.view(-1, 3)
        out = torch.empty((self.count, self.side, self.side, 3), dtype=dtype, device=packed.device)
        table = to_device(self.table, packed.device)
        width, height = self.extents.max(axis=0).tolist()
        step = max(1, CHUNK_PIXELS // max(1, width * height))
        for start in range(0, self.count, step):
            rows = slice(start, start + step)
            size = self.extents[rows].max(axis=0).tolist()
            out[rows] = self._cut(pixels, table[rows], size[0], size[1], dtype)
        return out

    def _cut(
        self, pixels: torch.Tensor, table: torch.Tensor, width: int, height: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return the (n, S, S, 3) samples for the rows of ``table``. Crops are at most ``width`` x ``height``."""
        device = pixels.device
        scales, origins = table[:, 0:2].float(), table[:, 2:4].float()
        corners, extents, whole = table[:, 4:6].long(), table[:, 6:8].long(), table[:, 8:].long()
        firsts, pitches, flips = whole[:, 0], whole[:, 1], whole[:, 2:] > 0
        x = torch.arange(width, device=device).minimum(extents[:, :1] - 1)  # (n, w); pixels beyond a box have weight 0
        y = torch.arange(height, device=device).minimum(extents[:, 1:] - 1)
        where = (firsts[:, None] + y * pitches[:, None])[:, :, None] + x[:, None, :]
        n = len(where)
        images = pixels[where.view(-1)].view(n, height, width, 3)
        targets = torch.arange(self.side, device=device).expand(n, -1)
        # A flip mirrors the window, so its weights are in reverse order.
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
    """Return the (n, S, length) float32 weights of all input pixels for each output pixel, along one axis."""
    scale, origin, corner, extent = (part[:, None, None] for part in views)
    source = torch.arange(length, device=target.device)
    centre = origin + (target[:, :, None] + corner + 0.5) * scale
    weights = 1.0 - ((source + 0.5 - centre) / scale.clamp(min=1.0)).abs()
    weights = weights.clamp_(min=0.0) * (source < extent)
    return weights / weights.sum(dim=2, keepdim=True)
