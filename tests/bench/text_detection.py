"""The cleaner's detector against RapidOCR's default call, and what the line of known text is good for.

    python tests/bench/text_detection.py --images DIR [--samples 40] [--rounds 3] [--device cuda] [--json FILE]

One process, one thread, ways in turn on each poster; medians over rounds. --device is where our network runs. Recall
is the share of the text area that a way covers: of the area that the referee finds (a copy of 1152 pixels, low
thresholds), and of words that are drawn onto posters without text, at known places. "False" is the share of pictures
without text that a way takes for text.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shards.clean.verify import RefereeOptions, text_area
from shards.errors import UserError
from shards.inputs.images import BadImage, ImageOptions, decode
from shards.storage.endings import is_image_name
from shards.text.db_detector import DBDetector
from shards.text.detector import DetectorOptions
from shards.text.inpaint import surround
from shards.text.masks import MaskOptions, text_mask
from shards.text.opencv import cv2
from shards.text.pipeline import remove_text

WORDS = ("MIDNIGHT", "The Long Way", "2049", "Part Two", "from the makers of", "LOVE", "Écran", "coming soon")
Way = Callable[[np.ndarray], np.ndarray]
"""(h, w, 3) uint8 RGB → (h, w) bool: the area taken for text."""


def rapidocr_ways() -> dict[str, Way]:
    """RapidOCR as it comes, and its detection alone."""
    from rapidocr import RapidOCR

    threads = {"EngineConfig.onnxruntime.intra_op_num_threads": 1, "Global.log_level": "error"}
    engine: Any = RapidOCR(params=threads)
    logging.getLogger("RapidOCR").setLevel(logging.ERROR)

    def area(image: np.ndarray, everything: bool) -> np.ndarray:
        # Said each time: the engine remembers what the last call left out.
        found = engine(np.ascontiguousarray(image[..., ::-1]), use_det=True, use_cls=everything, use_rec=everything)
        mask = np.zeros(image.shape[:2], np.uint8)
        for box in () if found.boxes is None else found.boxes:
            cv2().fillPoly(mask, [np.rint(box).astype(np.int32)], 1)
        return mask.astype(bool)

    return {"rapidocr": lambda image: area(image, True), "rapidocr, detection alone": lambda image: area(image, False)}


def our_ways(device: str) -> dict[str, Way]:
    """Each of the cleaner's looks, and the first one without the line of known text."""
    options = DetectorOptions()
    with_line, without = (
        DBDetector(DetectorOptions(reference_strip=anchor, device=device)) for anchor in (True, False)
    )
    ways: dict[str, Way] = {}
    for number, sides in enumerate(options.scales):
        name = f"ours, look {','.join(map(str, sides))}"
        ways[name] = lambda image, n=number: text_mask(with_line.detect(image, n), image.shape[:2])  # type: ignore[misc]
        ways[f"{name}, no line"] = lambda image, n=number: text_mask(without.detect(image, n), image.shape[:2])  # type: ignore[misc]
    return ways


def drawn(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The picture with some words on it, straight and rotated, and (h, w) bool where they are."""
    picture = Image.fromarray(image)
    truth = Image.new("L", picture.size)
    for _ in range(4):
        words = WORDS[rng.integers(len(WORDS))]
        size = float(rng.choice([0.035, 0.06, 0.1, 0.16])) * picture.width
        font = ImageFont.load_default(size)
        left, top, right, bottom = font.getbbox(words)
        label = Image.new("L", (int(right - left) + 6, int(bottom - top) + 6))
        ImageDraw.Draw(label).text((3 - left, 3 - top), words, 255, font)
        angle = float(rng.choice([0, 0, 0, -20, 20, 90]))
        turned = label.rotate(angle, expand=True, resample=Image.Resampling.BILINEAR)
        box = Image.new("L", label.size, 255).rotate(angle, expand=True)
        if turned.width >= picture.width or turned.height >= picture.height:
            continue
        at = (int(rng.integers(picture.width - turned.width)), int(rng.integers(picture.height - turned.height)))
        dark = np.asarray(picture.crop((*at, at[0] + turned.width, at[1] + turned.height)).convert("L")).mean() > 128
        picture.paste((20, 20, 30) if dark else (245, 240, 220), at, turned)
        truth.paste(255, at, box)
    return np.asarray(picture), np.asarray(truth) > 127


def batch_seconds(detector: DBDetector, rounds: int) -> dict[str, float]:
    """Median seconds an image of the network alone, 1, 4 and 8 images a call."""
    session, seconds = detector._session, {1: [], 4: [], 8: []}  # type: ignore[var-annotated]
    name = session.get_inputs()[0].name
    rng = np.random.default_rng(0)
    for _ in range(rounds + 1):
        for count, taken in seconds.items():
            pixels = rng.random((count, 3, 640, 448), dtype=np.float32)
            started = time.perf_counter()
            session.run(None, {name: pixels})
            taken.append((time.perf_counter() - started) / count)
    return {str(count): statistics.median(taken[1:]) for count, taken in seconds.items()}


def measure(images: list[np.ndarray], rounds: int, device: str) -> dict[str, Any]:
    """Every figure."""
    ways = rapidocr_ways() | our_ways(device)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    masks: dict[str, list[np.ndarray]] = {}
    for turn in range(rounds):
        masks = {name: [] for name in ways}
        for image in images:
            for name, way in ways.items():
                started = time.perf_counter()
                masks[name].append(way(image))
                if turn or rounds == 1:
                    seconds[name].append(time.perf_counter() - started)
    referee = [text_area(image, RefereeOptions()) for image in images]
    detector = DBDetector(DetectorOptions(device=device))
    empty = [remove_text(image, detector, surround, MaskOptions()).image for image in images]
    rng = np.random.default_rng(0)
    lettered = [drawn(image, rng) for image in empty]
    total = sum(int(mask.sum()) for mask in referee)
    total_drawn = sum(int(truth.sum()) for _, truth in lettered)
    default = statistics.median(seconds["rapidocr"])
    figures = {}
    for name, way in ways.items():
        covered = sum(int((a & b).sum()) for a, b in zip(masks[name], referee, strict=True))
        covered_drawn = sum(int((way(image) & truth).sum()) for image, truth in lettered)
        figures[name] = {
            "seconds": statistics.median(seconds[name]),
            "faster_than_rapidocr": default / statistics.median(seconds[name]),
            "recall_referee": covered / total,
            "recall_drawn": covered_drawn / total_drawn,
            "false": float(np.mean([way(image).mean() for image in empty])),
        }
    return {
        "posters": len(images),
        "device": device,
        "ways": figures,
        "network_seconds_by_batch": batch_seconds(detector, rounds),
    }


def main() -> int:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="of our network (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if min(options.samples, options.rounds) < 1:
        print("error: --samples and --rounds must be at least 1", file=sys.stderr)
        return 2
    paths = sorted(p for p in options.images.rglob("*") if is_image_name(p.name))
    chosen = np.random.default_rng(0).permutation(len(paths))[: options.samples]
    images = []
    for number in chosen:
        try:
            images.append(np.asarray(decode(paths[number].read_bytes(), ImageOptions())))
        except BadImage as bad:
            print(f"warning: {paths[number]} is left out: {bad.reason} {bad.detail}", file=sys.stderr)
    if not images:
        print(f"error: no image in {options.images}", file=sys.stderr)
        return 2
    try:
        found = measure(images, options.rounds, options.device)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{found['posters']} posters, one thread; our network on {options.device}")
    print(f"{'':32} seconds  x rapidocr  recall: referee  drawn  false")
    for name, row in found["ways"].items():
        print(
            f"{name:32} {row['seconds']:7.3f} {row['faster_than_rapidocr']:10.2f} {row['recall_referee']:16.3f} "
            f"{row['recall_drawn']:6.3f} {row['false']:6.3f}"
        )
    batches = ", ".join(f"{n}: {s * 1e3:.0f} ms" for n, s in found["network_seconds_by_batch"].items())
    print(f"the network alone at 448x640, an image by images a call: {batches}")
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
