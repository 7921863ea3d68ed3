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

import math

import numpy as np
import torch
from PIL import Image

from toolkit.data.sources.thread_buffer import scratch
from toolkit.data.transforms.crops import Views
from toolkit.data.transforms.preprocessing import MOST_RESIZED, resized_window
from toolkit.device.compat import upsample_into
from toolkit.device.constants import pixel_centres, whole_numbers
from toolkit.device.transfer import to_device_together

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
        scales = ((boxes[:, 2:] - boxes[:, :2]) / views.resized).astype(np.float32)
        # A flip mirrors the window: pixel t of the sample is pixel side - 1 - t of the window.
        signs = np.stack([np.where(views.flips, -1.0, 1.0), np.ones(self.count)], axis=1)
        offsets = views.corners + 0.5 + (signs < 0) * (self.side - 1)
        reals = (scales, boxes[:, :2] - low, np.maximum(scales, 1.0), signs, offsets, self.extents)
        self.reals = np.stack(reals, axis=1).astype(np.float32)
        """(n, 6, 2): values of each image, horizontal and vertical."""
        firsts = starts + low[:, 1] * pitches + low[:, 0]
        self.integers = np.concatenate([self.extents - 1, firsts[:, None], pitches[:, None]], axis=1)
        """(n, 4): the last column and row of the crop, the index of its first pixel, and the pitch."""

    def __call__(self, packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return (n, S, S, 3) whole numbers from 0 to 255 as ``dtype``. ``packed``: uint8 buffer with RGB pixels."""
        pixels = packed.view(-1, 3)
        out = torch.empty((self.count, self.side, self.side, 3), dtype=dtype, device=packed.device)
        # One asynchronous copy. A synchronous copy lasts until the device has done all queued work.
        reals, integers = to_device_together(packed.device, self.reals, self.integers)
        width, height = self.extents.max(axis=0).tolist()
        step = max(1, CHUNK_PIXELS // max(1, width * height))
        for start in range(0, self.count, step):
            rows = slice(start, start + step)
            size = self.extents[rows].max(axis=0).tolist()
            self._cut(pixels, reals[rows], integers[rows], size, out[rows])
        return out

    def _cut(
        self, pixels: torch.Tensor, reals: torch.Tensor, integers: torch.Tensor, size: list[int], out: torch.Tensor
    ) -> None:
        """Write samples to ``out`` (n, S, S, 3). ``reals`` and ``integers`` are their rows of the tables.

        size: the largest width and height of these crops.
        """
        n, (width, height), side = len(out), size, self.side
        places, middles = whole_numbers(max(width, height, side), out.device), pixel_centres(max(size), out.device)
        firsts, pitches = integers[:, 2:3], integers[:, 3:4]
        columns, lines = places[:width].minimum(integers[:, 0:1]), places[:height].minimum(integers[:, 1:2])
        lines = torch.addcmul(firsts, lines, pitches)  # pixels beyond a crop have weight 0
        images = pixels[(lines[:, :, None] + columns[:, None, :]).view(-1)].view(n, height, width, 3)
        scales, origins, reaches, signs, offsets, extents = reals[..., None].unbind(dim=1)
        # (n, 2, S): the place of each pixel of the sample in the crop. The first product and sum are exact.
        centres = torch.addcmul(offsets, places[:side], signs).mul_(scales).add_(origins)
        # (n, 2, length): the middle of each pixel of the crop. An infinite distance gives pixels beyond it weight 0.
        sources = torch.where(middles < extents, middles, math.inf)
        across, down = (
            _weights(sources[:, axis, :length], centres[:, axis], reaches[:, axis], out.dtype)
            for axis, length in enumerate(size)
        )
        # (n, h*3, w) x (n, w, S), then (n, S, h) x (n, h, 3*S)
        planes = torch.empty((n, height, 3, width), dtype=out.dtype, device=out.device)
        planes.copy_(images.permute(0, 1, 3, 2))
        half = torch.bmm(planes.view(n, height * 3, width), across.transpose(1, 2)).round_()
        levels = torch.bmm(down, half.view(n, height, 3 * side)).round_()
        torch.clamp(levels.view(n, side, 3, side).permute(0, 1, 3, 2), 0, 255, out=out)


def _weights(sources: torch.Tensor, centres: torch.Tensor, reach: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the (n, S, length) weights of all input pixels for each output pixel, along one axis.

    sources: (n, length) places of the input pixels. centres: (n, S) places of the output pixels. reach: (n, 1).
    """
    weights = (sources[:, None, :] - centres[:, :, None]).div_(reach[:, :, None]).abs_()
    weights = torch.rsub(weights, 1.0).clamp_(min=0.0)
    out = torch.empty(weights.shape, dtype=dtype, device=weights.device)
    return torch.div(weights, weights.sum(dim=2, keepdim=True), out=out)
