"""Draw a small set of synthetic movie posters, to try the whole pipeline offline.

Each genre of a poster usually adds its own objects to the picture. Palette and title depend only loosely on the genres.
Some posters have an object of another genre. So no model can always be right.

The last ten rows of the CSV are bad on purpose. The ids of six rows name the fault: ``bad_zero_bytes`` (an empty file),
``bad_truncated`` (a JPEG that stops after 40 % of its bytes), ``bad_not_an_image`` (a text file named .jpg),
``bad_missing_file`` (no file), ``bad_no_genres`` (genre ``[]``) and ``bad_unparsable_genre`` (genre
``['Drama', 'Roman``). The next row repeats the first id, ``p00000``. The last three rows, ``copy_of_p00001`` to
``copy_of_p00003``, are near-duplicates: copies in another JPEG quality and size with the same genres.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shards.errors import UserError
from shards.storage.files import atomic_write

Color = tuple[int, ...]  # RGB or RGBA
Points = Sequence[tuple[float, float]]

W, H = 800, 1200  # size of the drawing in pixels; the drawing is shrunk later, which makes its edges smooth
#: Genre -> weight in the random choice of genres. Some genres are rare, as in real sets.
GENRES = {"Drama": 45, "Comedy": 26, "Romance": 19, "Horror": 14, "Sci-Fi": 9.5, "Western": 5.5, "War": 3.5}
#: Genre -> four colours: the top of the sky, the bottom of the sky, silhouettes, and the title.
PALETTES: dict[str, tuple[Color, Color, Color, Color]] = {
    "Drama": ((74, 84, 104), (196, 182, 164), (34, 36, 46), (246, 238, 222)),
    "Comedy": ((84, 190, 236), (255, 232, 130), (120, 52, 122), (255, 246, 120)),
    "Romance": ((250, 190, 180), (216, 92, 126), (112, 22, 62), (255, 240, 240)),
    "Horror": ((12, 12, 22), (74, 22, 30), (4, 4, 8), (248, 92, 76)),
    "Sci-Fi": ((8, 10, 44), (52, 64, 140), (8, 10, 28), (150, 240, 250)),
    "Western": ((122, 50, 60), (252, 172, 84), (62, 24, 22), (255, 222, 160)),
    "War": ((96, 102, 74), (182, 172, 132), (36, 40, 28), (236, 226, 190)),
}
WORDS = {  # genre -> first words / last words of titles
    "Drama": "Silent Broken Distant Winter / Letters Daughter House Promise",
    "Comedy": "Crazy Lucky Awkward Double / Weekend Holiday Neighbors Wedding",
    "Romance": "Tender Parisian Endless Summer / Hearts Kiss Roses Serenade",
    "Horror": "Crimson Haunted Buried Hollow / Scream Asylum Curse Grave",
    "Sci-Fi": "Stellar Quantum Orbital Neon / Horizon Signal Colony Android",
    "Western": "Lonesome Dusty Outlaw Wild / Canyon Sheriff Gulch Saddle",
    "War": "Iron Fallen Burning Last / Brigade Bridge Squadron Front",
}
CREW = ("ADA MOREAU", "IVO LIND", "JUNE OKAFOR", "TOMAS VALE", "MINA SATO", "REX CALLOWAY", "LENA BRANDT")
CIRCLE = [(math.cos(t), math.sin(t)) for t in np.linspace(0, 2 * math.pi, 41).tolist()]
RING = [(1.9 * a, 0.53 * b) for a, b in CIRCLE[:21]] + [(1.4 * a, 0.39 * b) for a, b in CIRCLE[20::-1]]
HEART = [(s**3, (8 * c**4 + 8 * c**3 + 2 * c**2 - 19 * c - 4) / 16) for c, s in CIRCLE]
EYE = [(0.25, 0.3), (0.45, 0), (1.5, -0.55), (1.3, 0.2), (0.8, 0.45)]
WING = [(0, -1), (0.1, -0.8), (0.1, -0.4), (1, -0.1), (1, 0.1), (0.1, 0.1), (0.1, 0.6), (0.4, 0.9), (0, 0.8)]
PLANE = WING + [(-a, b) for a, b in reversed(WING)]


class Painter:
    """Draws one poster. The unit of coordinates is the poster's width: x is from 0 to 1, y from 0 (top) to 1.5."""

    def __init__(self, rng: random.Random, top: Color, bottom: Color, ink: Color) -> None:
        self.rng, self.span, self.ink = rng, rng.uniform, ink
        sky = np.linspace(self.vary(top), self.vary(bottom), H).astype(np.uint8)[:, None]
        self.image = Image.fromarray(sky).resize((W, H), Image.Resampling.NEAREST)
        self.pen = ImageDraw.Draw(self.image, "RGBA")  # so that translucent colours blend with the pixels below
        self.free = rng.sample((0.24, 0.5, 0.76), 3)

    def spot(self) -> float:
        """Return an x coordinate for the next large object. The first three objects stand side by side."""
        return (self.free.pop() if self.free else self.span(0.15, 0.85)) + self.span(-0.07, 0.07)

    def vary(self, color: Color, by: int = 24) -> Color:
        return tuple(min(255, max(0, c + self.rng.randint(-by, by))) for c in color)

    def disc(self, x: float, y: float, r: float, fill: Color, flat: float = 1.0) -> None:
        self.pen.ellipse([k * W for k in (x - r, y - r * flat, x + r, y + r * flat)], fill=fill)

    def shape(self, form: Points, fill: Color, x: float, y: float, size: float = 1, turn: float = 0) -> None:
        """Draw a polygon, scaled by ``size``, turned clockwise by ``turn`` radians and moved to (x, y)."""
        c, s = math.cos(turn) * size, math.sin(turn) * size
        self.pen.polygon([((x + a * c - b * s) * W, (y + a * s + b * c) * W) for a, b in form], fill=fill)

    def tube(self, points: Points, width: float, fill: Color) -> None:
        """Draw a thick line with round ends and joints."""
        self.pen.line([(x * W, y * W) for x, y in points], fill=fill, width=max(1, round(width * W)))
        for x, y in points:
            self.disc(x, y, width / 2, fill)

    def ground(self, y: float, fill: Color, rough: float) -> None:
        """Fill the picture below a bumpy horizon."""
        self.shape([*((k / 8, self.span(-rough, rough)) for k in range(9)), (1, 1), (0, 1)], fill, 0, y)

    def sunset(self) -> None:
        x, y, r = self.spot(), self.span(0.65, 0.9), self.span(0.18, 0.3)
        for k, alpha in ((1.9, 50), (1.55, 50), (1.25, 50), (1, 255)):
            self.disc(x, y, r * k, (*self.vary((255, 210, 94), 20), alpha))

    def desert(self) -> None:
        y = self.span(0.9, 1.05)
        for _ in range(self.rng.randint(1, 3)):  # hills with flat tops
            x, w, h = self.span(0, 1), self.span(0.1, 0.24), self.span(0.1, 0.3)
            self.shape([(-w, 0.1), (-w * 0.7, -h), (w * 0.6, -h), (w, 0.1)], self.vary((150, 66, 44)), x, y)
        self.ground(y, self.vary((206, 122, 60)), 0.008)
        self.ground(y + 0.16, self.vary((150, 78, 42)), 0.02)

    def cactus(self) -> None:
        for _ in range(self.rng.randint(1, 2)):
            x, y, s = self.spot(), self.span(1.12, 1.25), self.span(0.36, 0.6)
            fill = self.vary((36, 84, 52)) if self.rng.random() < 0.6 else self.ink
            self.tube([(x, y), (x, y - s)], s * 0.19, fill)
            for side in (-1, 1):
                arm, low = x + side * s * 0.3, y - s * self.span(0.3, 0.6)
                self.tube([(x, low), (arm, low), (arm, low - s * 0.32)], s * 0.12, fill)

    def stars(self) -> None:
        for _ in range(self.rng.randint(40, 140)):
            tint = self.rng.choice(((255, 255, 255), (190, 220, 255), (255, 236, 190)))
            self.disc(self.rng.random(), self.span(0, 1.15), 0.002 + 0.01 * self.rng.random() ** 2, tint)

    def planet(self) -> None:
        x, y, r, turn = self.spot(), self.span(0.25, 0.75), self.span(0.12, 0.24), self.span(-0.6, 0.6)
        body = self.vary(self.rng.choice(((226, 130, 90), (110, 180, 220), (170, 120, 210), (120, 200, 150))))
        ring = tuple((v + 510) // 3 for v in body)
        self.shape(RING, ring, x, y, r, turn + math.pi)  # the far half of the ring, behind the planet
        self.disc(x, y, r, body)
        self.disc(x - r * 0.16, y - r * 0.16, r * 0.78, (255, 255, 255, 34))
        self.shape(RING, ring, x, y, r, turn)

    def moonlit_tree(self) -> None:
        x = self.spot()
        self.disc(x, self.span(0.3, 0.5), self.span(0.15, 0.23), self.vary((226, 222, 196)))

        def grow(x: float, y: float, turn: float, length: float) -> None:
            tip = x + length * math.sin(turn), y - length * math.cos(turn)
            self.tube([(x, y), tip], length**1.3 * 0.19, self.ink)
            for side in (-1, 1) if length > 0.06 else ():
                grow(*tip, turn + side * self.span(0.25, 0.75), length * self.span(0.6, 0.78))

        grow(x + self.span(-0.15, 0.15), 1.3, self.span(-0.15, 0.15), 0.36)

    def eyes(self) -> None:
        for _ in range(self.rng.randint(1, 3)):
            x, y, s = self.span(0.15, 0.85), self.span(0.3, 1.05), self.span(0.05, 0.1)
            glow = self.vary(self.rng.choice(((250, 220, 60), (240, 70, 40))))
            self.disc(x, y, s * 2.2, (0, 0, 0, 170), 0.6)
            for side in (-1, 1):
                self.shape([(side * a, b) for a, b in EYE], glow, x, y, s)
                self.disc(x + side * s * 0.9, y, s * 0.17, (10, 0, 0), 1.5)

    def drips(self) -> None:
        red = self.vary((156, 10, 16))
        for x in (k / 20 for k in range(21)):
            self.tube([(x, -0.05), (x, self.span(0.04, 0.42) ** 1.3)], self.span(0.03, 0.085), red)

    def hearts(self) -> None:
        for k in range(self.rng.randint(5, 13)):
            x, y, s = self.span(0.05, 0.95), self.span(0.1, 1.2), self.span(0.025, 0.08)
            if k == 0 and self.rng.random() < 0.7:
                x, s = self.spot(), self.span(0.15, 0.26)
            fill = self.vary(self.rng.choice(((226, 40, 80), (255, 130, 160), (190, 20, 60))))
            self.shape(HEART, (*fill, self.rng.randint(190, 255)), x, y, s, self.span(-0.4, 0.4))

    def smiley(self) -> None:
        x, y, r = self.spot(), self.span(0.5, 0.9), self.span(0.15, 0.26)
        self.disc(x, y, r, self.vary((255, 214, 50)))
        mouth = (x - r * 0.62, y - r * 0.5, x + r * 0.62, y + r * 0.64)
        self.pen.chord([k * W for k in mouth], 0, 180, fill=(120, 30, 30))
        for side in (-1, 1):
            self.disc(x + side * r * 0.36, y - r * 0.24, r * 0.11, (60, 34, 20), 1.6)

    def confetti(self) -> None:
        for _ in range(self.rng.randint(35, 90)):
            tint = self.rng.choice(((240, 60, 90), (50, 170, 240), (250, 220, 40), (70, 200, 90)))
            x, y, s = self.rng.random(), self.span(0, 1.3), self.span(0.012, 0.024)
            self.shape([(-1, -0.5), (1, -0.5), (1, 0.5), (-1, 0.5)], tint, x, y, s, self.span(0, math.pi))

    def smoke(self) -> None:
        x, y, drift = self.rng.random(), self.span(0.95, 1.15), self.span(-0.02, 0.02)
        for k in range(26):
            self.disc(x + drift * k + self.span(-0.04, 0.04), y - 0.034 * k, 0.04 + k / 200, (60, 58, 54, 40))

    def planes(self) -> None:
        x, y, s, turn = self.spot(), self.span(0.2, 0.55), self.span(0.07, 0.15), self.span(-0.9, 0.9)
        for k in range(self.rng.randint(2, 5)):  # the planes fly in the form of a V
            side = (k + 1) // 2 * (-1) ** k * s * 1.9
            self.shape(PLANE, self.ink, x + side, y + abs(side) * 0.6, s * self.span(0.85, 1.1), turn)

    def portrait(self) -> None:
        x, y, r, hair = self.spot(), self.span(0.5, 0.75), self.span(0.14, 0.2), self.rng.choice((1, 1.25))
        light = (x + self.rng.choice((-0.016, 0.016)), self.vary((214, 190, 160), 40))  # a lit edge on one side
        for at, fill in (light, (x, self.vary(self.ink, 12))):
            self.disc(at, y, r, fill, 1.25)
            self.disc(at, y + r * (hair - 1) * 1.5, r * hair, fill, 1.2)
            self.tube([(at, y), (at, y + 2.2 * r)], r * 0.95, fill)
            self.disc(at, y + 3.4 * r, r * 2.1, fill, 0.85)
            self.shape([(-2.1, 3.4), (2.1, 3.4), (2.3, 9), (-2.3, 9)], fill, at, y, r)

    def hills(self) -> None:
        self.ground(self.span(0.95, 1.15), self.vary(self.ink, 40), 0.07)

    def lamps(self) -> None:
        for _ in range(self.rng.randint(1, 5)):
            x, y, r = self.rng.random(), self.span(0.1, 1.1), self.span(0.03, 0.2)
            self.disc(x, y, r, self.vary((200, 180, 160), 50))

    def lettering(self, title: str, color: Color) -> None:
        """Draw the title in one or two lines that are as wide as the poster, and the credits on a dark bottom."""
        for k in range(29):
            self.pen.rectangle((0, H - 14 * k, W, H - 14 * k + 13), fill=(*self.ink, 230 - 8 * k))
        y = self.rng.choice((H * 0.13, H * 0.79))
        for line in title.upper().rsplit(" ", 1):
            size = min(140, int(W * 88 / _font(100).getlength(line)))
            self.pen.text((W / 2, y), line, color, _font(size), "mm", stroke_width=5, stroke_fill=self.ink)
            y += 108
        credits = "WITH {}   AND {}   BY {}\nA PAPER LANTERN PICTURE".format(*self.rng.sample(CREW, 3))
        self.pen.text((W / 2, H * 0.962), credits, (210, 206, 198), _font(22), "mm", align="center")


#: (method, genre, probability) of each object, from back to front. The genre "" stands for any genre.
LAYERS: list[tuple[Callable[[Painter], None], str, float]] = [
    (Painter.stars, "Sci-Fi", 0.85), (Painter.lamps, "", 0.25), (Painter.sunset, "Western", 0.75),
    (Painter.planet, "Sci-Fi", 0.8), (Painter.planes, "War", 0.85), (Painter.moonlit_tree, "Horror", 0.6),
    (Painter.hills, "", 0.25), (Painter.desert, "Western", 0.75), (Painter.smoke, "War", 0.75),
    (Painter.portrait, "Drama", 0.9), (Painter.cactus, "Western", 0.75), (Painter.eyes, "Horror", 0.6),
    (Painter.smiley, "Comedy", 0.7), (Painter.hearts, "Romance", 0.92), (Painter.confetti, "Comedy", 0.75),
    (Painter.drips, "Horror", 0.65),
]  # fmt: skip


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)  # a font inside Pillow, so nothing is downloaded


def draw_poster(seed: int, index: int, shrink: int = 4) -> tuple[Image.Image, tuple[str, int, str]]:
    """Return the picture and (title, year, genre) of one poster. The result does not depend on the size of the set."""
    rng = random.Random(f"{seed}/{index}")
    # Each of the first posters has another main genre, so that a small set has all genres.
    names = list(GENRES)
    genres = [names[index]] if index < len(names) else rng.choices(names, list(GENRES.values()))
    for _ in range(rng.choices((0, 1, 2), (50, 37, 13))[0]):
        others = [genre for genre in names if genre not in genres]
        genres += rng.choices(others, [GENRES[genre] for genre in others])
    top, bottom, ink, color = PALETTES[genres[0] if rng.random() < 0.85 else rng.choice(names)]
    painter = Painter(rng, top, rng.choice((bottom, PALETTES[genres[-1]][1])), ink)
    stray = rng.choice(names) if rng.random() < 0.12 else ""
    for paint, genre, chance in LAYERS:
        if rng.random() < (chance if genre in ("", *genres) else chance / 2 if genre == stray else 0):
            paint(painter)
    first, last = (WORDS[rng.choice((*genres, rng.choice(names)))].split(" / ")[k] for k in (0, 1))
    title = f"{rng.choice(('The ', 'My ', '', '', ''))}{rng.choice(first.split())} {rng.choice(last.split())}"
    painter.lettering(title, color)
    pixels = np.asarray(painter.image.reduce(shrink), np.float32)
    grain = np.random.default_rng(rng.getrandbits(64)).standard_normal((*pixels.shape[:2], 1), np.float32)
    pixels = pixels * [rng.uniform(0.85, 1.08) for _ in "rgb"] + grain * rng.uniform(3, 11)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return image, (title, rng.randint(1950, 2024), str(genres))


def draw_poster_set(folder: Path, count: int = 600, seed: int = 0) -> Path:
    """Draw ``count`` good posters and the ten bad rows that the module's docstring lists. Return the path of the CSV.

    Write ``folder/images/{id}.jpg`` (every 25th file is a .png) and ``folder/metadata.csv`` with the columns
    ``poster_id,title,year,genre``. A genre cell is the text of a list, such as ``"['Horror', 'Sci-Fi']"``. Most images
    have 200x300 pixels, every seventh has 400x600. The same seed, Pillow and NumPy give the same bytes. A set of 600
    begins with the posters of a set of 60. Raises UserError if ``count`` is under 7.
    """
    if count < len(GENRES):
        raise UserError("option-value", f"a demo set needs at least {len(GENRES)} posters, one per genre, not {count}")
    (images := folder / "images").mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, str, int, str]] = []
    for index in range(count):
        image, fields = draw_poster(seed, index, 2 if index % 7 == 3 else 4)
        image.save(images / f"p{index:05d}.{'png' if index % 25 == 24 else 'jpg'}", quality=88)
        rows.append((f"p{index:05d}", *fields))
    texts = {"no_genres": "[]", "unparsable_genre": "['Drama', 'Roman"}
    for k, flaw in enumerate(("zero_bytes", "truncated", "not_an_image", "missing_file", *texts), start=1):
        image, (title, year, genre) = draw_poster(seed, -k)
        image.save(images / f"bad_{flaw}.jpg", quality=88)
        rows.append((f"bad_{flaw}", title, year, texts.get(flaw, genre)))
    whole = (images / "bad_truncated.jpg").read_bytes()
    (images / "bad_truncated.jpg").write_bytes(whole[: len(whole) * 2 // 5])
    (images / "bad_zero_bytes.jpg").write_bytes(b"")
    (images / "bad_not_an_image.jpg").write_bytes(b"Not a poster: just a note that was saved as .jpg.\n")
    (images / "bad_missing_file.jpg").unlink()
    rows.append(rows[0])
    for (name, *_), quality, scale in zip(rows[1:4], (60, 75, 50), (0.9, 1.25, 0.8), strict=True):
        with Image.open(images / f"{name}.jpg") as original:
            copy = original.resize((round(original.width * scale), round(original.height * scale)))
        copy.save(images / f"copy_of_{name}.jpg", quality=quality)
    rows += [(f"copy_of_{name}", title, year, genre) for name, title, year, genre in rows[1:4]]
    # The CSV is written last and atomically. So if it exists, all its images are complete.
    with atomic_write(folder / "metadata.csv", "w") as stream:
        csv.writer(stream, lineterminator="\n").writerows([("poster_id", "title", "year", "genre"), *rows])
    return folder / "metadata.csv"
