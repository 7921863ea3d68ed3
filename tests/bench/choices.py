"""Why the loader decodes and resizes as it does: each choice against what it was chosen over.

    python tests/bench/choices.py --images DIR [--samples 400] [--width 256] [--rounds 5]

Threads on all cores work on the same posters (scaled to --width, JPEG q90), ways in turn; medians over rounds. Decoding
is compared by images/s relative to decoding the whole image, resizing by microseconds an image and by the mean
difference to Pillow of the worst image. nvidia-nvimgcodec and opencv-python-headless take part where they are
installed.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image

from shards.executors.local import available_cores
from shards.storage.endings import is_image_name
from toolkit.config.schema import DataConfig
from toolkit.data.sources.thread_buffer import scratch
from toolkit.data.transforms.crops import Views, train_views
from toolkit.data.transforms.geometry import cut_on_cpu
from toolkit.data.transforms.jpeg import decode_rows

SIDE = 224
OURS = "ours, into memory that is there"
Way = Callable[[int], Any]


def encode(path: Path, width: int, **options: Any) -> bytes | None:
    """The poster at ``width``, quality 90; None, with a line on it, if it cannot be read."""
    try:
        image = Image.open(path).convert("RGB")
    except OSError as error:
        print(f"warning: {path} is left out: {error}", file=sys.stderr)
        return None
    image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90, **options)
    return out.getvalue()


def decoders(files: list[bytes], views: Views) -> dict[str, Way]:
    """Ways to get at the pixels of a crop."""
    ones = np.ones(len(files), dtype=np.int64)
    rows = views.decoded_rows(ones).tolist()
    widths, heights = views.widths.tolist(), views.heights.tolist()
    room = max(w * h * 3 for w, h in zip(widths, heights, strict=True))
    ways: dict[str, Way] = {
        "simplejpeg, whole image": lambda k: simplejpeg.decode_jpeg(files[k], buffer=scratch("whole", room)),
        "ours, rows up to the crop's last": lambda k: decode_rows(
            memoryview(bytearray(files[k])), widths[k], heights[k], rows[k], 1, scratch("rows", room)
        ),
    }
    squares = np.zeros((len(files), SIDE, SIDE, 4), dtype=np.uint8)

    def cut(k: int) -> None:
        """All that a thread of the loader does for a row on the CPU, without the loader."""
        data = memoryview(bytearray(files[k]))
        image = decode_rows(data, widths[k], heights[k], rows[k], 1, scratch("rows4", room * 4 // 3), channels=4)
        cut_on_cpu(image, views, k, 1, squares[k])

    ways["ours, rows, crop and resize"] = cut
    if find_spec("nvidia") and find_spec("nvidia.nvimgcodec"):
        from nvidia import nvimgcodec as nv

        options = ":fancy_upsampling=1 :fast_idct=0"
        backends = [nv.Backend(nv.BackendKind.CPU_ONLY)]
        own = threading.local()  # a decoder is not for several threads at a time

        def region(k: int) -> np.ndarray:
            left, top, right, bottom = views.boxes[k].tolist()
            stream = nv.CodeStream(files[k]).get_sub_code_stream(0, nv.Region([top, left], [bottom, right]))
            if not hasattr(own, "decoder"):
                own.decoder = nv.Decoder(device_id=-99999, max_num_cpu_threads=1, backends=backends, options=options)
            return np.asarray(own.decoder.decode(stream))

        ways["nvimgcodec, region of the crop"] = region
    return ways


def resizers(images: list[np.ndarray], views: Views) -> tuple[dict[str, Way], Callable[[str], np.ndarray]]:
    """Ways from a decoded image to a square, and what a way left behind: name → (n, S, S, 3)."""
    boxes = views.boxes.tolist()
    out = np.zeros((len(images), SIDE, SIDE, 3), dtype=np.uint8)
    words = np.zeros((len(images), SIDE, SIDE, 4), dtype=np.uint8)  # ours takes and gives four bytes a pixel
    padded = [np.concatenate([image, image[..., :1]], axis=2) for image in images]

    def crop(k: int) -> np.ndarray:
        left, top, right, bottom = boxes[k]
        return images[k][top:bottom, left:right]

    def pillow(k: int) -> None:
        out[k] = np.asarray(Image.fromarray(crop(k)).resize((SIDE, SIDE), Image.Resampling.BILINEAR))

    def interpolate(k: int) -> None:
        tensor = torch.from_numpy(crop(k)).permute(2, 0, 1)[None]
        sized = torch.nn.functional.interpolate(tensor, (SIDE, SIDE), mode="bilinear", antialias=True)
        torch.from_numpy(out[k]).copy_(sized[0].permute(1, 2, 0))

    ways: dict[str, Way] = {
        "Pillow": pillow,
        OURS: lambda k: cut_on_cpu(padded[k], views, k, 1, words[k]),
        "torch interpolate(antialias=True)": interpolate,
    }
    if find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)
        ways["cv2.resize INTER_LINEAR"] = lambda k: cv2.resize(crop(k), (SIDE, SIDE), dst=out[k])
    return ways, lambda way: words[..., :3] if way == OURS else out


def compare(ways: dict[str, Way], count: int, rounds: int, pool: ThreadPoolExecutor, threads: int) -> dict[str, float]:
    """Median seconds an image and thread of each way."""

    def work(way: Way, first: int) -> None:
        for k in range(first, count, threads):
            way(k)

    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            for future in [pool.submit(work, way, first) for first in range(threads)]:
                future.result()
            seconds[name].append((time.perf_counter() - started) * threads / count)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first is warm-up


def main() -> int:
    """Parse, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if min(options.samples, options.width, options.rounds) < 1:
        print("error: --samples, --width and --rounds must be at least 1", file=sys.stderr)
        return 2
    paths = sorted(p for p in options.images.rglob("*") if is_image_name(p.name))[: options.samples]
    if not paths:
        print(f"error: no image in {options.images}", file=sys.stderr)
        return 2
    threads = available_cores()
    config = DataConfig(image_size=SIDE, flip=0.0)
    with ThreadPoolExecutor(threads) as pool:
        for name, extra in (("plain", {}), ("restart markers after each row of blocks", {"restart_marker_rows": 1})):
            files = [data for path in paths if (data := encode(path, options.width, **extra))]
            if not files:
                print(f"error: no readable image in {options.images}", file=sys.stderr)
                return 2
            images = [np.asarray(Image.open(io.BytesIO(data))) for data in files]
            heights, widths = (np.array([i.shape[axis] for i in images]) for axis in (0, 1))
            views = train_views(config, 0, 0, np.arange(len(files)), widths, heights)
            found = compare(decoders(files, views), len(files), options.rounds, pool, threads)
            whole = found["simplejpeg, whole image"]
            print(f"decoding, {name}: {len(files)} posters {options.width} wide, {threads} threads")
            for way, seconds in found.items():
                print(f"  {way:36} {whole / seconds:5.2f} of whole-image decoding ({1e6 * seconds:.0f} us)")
        ways, result = resizers([np.array(image) for image in images], views)
        found = compare(ways, len(files), options.rounds, pool, threads)
        for k in range(len(files)):
            ways["Pillow"](k)
        reference = result("Pillow").astype(np.float32)
        print("crop and resize")
        for way, seconds in found.items():
            for k in range(len(files)):
                ways[way](k)
            worst = np.abs(result(way) - reference).mean(axis=(1, 2, 3)).max()
            print(f"  {way:36} {1e6 * seconds:5.0f} us, worst image {worst:.2f} grey levels from Pillow")
    return 0


if __name__ == "__main__":
    sys.exit(main())
