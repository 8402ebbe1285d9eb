"""Pictures that are no upright frontal chest films, drawn or made from films: what a refusal is fitted against.

Each kind is a function of a random generator and, where it needs one, a film. None of them claims to be exhaustive:
whether a refusal knows kinds that it was not fitted against is measured by leaving each of them out in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

#: What a picture is taken for. Only the first is answered.
FILM, TURNED, INVERTED, PHOTOGRAPHED, OTHER = VERDICTS = ("film", "turned", "inverted", "photographed", "other")
#: Side of the pictures that are drawn from nothing.
SIDE = 256


def _array(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"))


def _scaled(values: np.ndarray) -> np.ndarray:
    """Floats as (H, W) uint8 from their smallest to their largest."""
    low, high = float(values.min()), float(values.max())
    return np.round((values - low) / max(high - low, 1e-9) * 255).astype(np.uint8)


def _smooth(random: np.random.Generator, exponent: float) -> np.ndarray:
    """Noise whose amplitude falls with the frequency to the power of `exponent`: 0 white, 1 as in photographs."""
    y, x = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None]
    falling = np.maximum(np.hypot(y, x), 1 / SIDE) ** -exponent
    phases = np.exp(2j * np.pi * random.random(falling.shape))
    return np.asarray(np.fft.irfft2(falling * phases, (SIDE, SIDE)))


# -- made from a film


def turned(film: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A film that lies on its side or stands on its head."""
    way = int(random.integers(4))
    return np.ascontiguousarray(film[::-1] if way == 3 else np.rot90(film, 1 + way))


def inverted(film: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A negative: air white, bones black."""
    return np.asarray(255 - film, dtype=np.uint8)


def photographed(film: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A telephone's photograph of a film on a monitor or a light box: tilted, framed, unevenly lit, with moiré."""
    side = SIDE
    shown = Image.fromarray(film).resize((side, side), Image.Resampling.BILINEAR)
    values = np.asarray(shown, dtype=np.float64)
    y, x = np.mgrid[0:side, 0:side] / side
    for _ in range(random.integers(1, 4)):  # the monitor's grid against the sensor's
        angle, waves = random.uniform(0, np.pi), random.uniform(15, 90)
        bend = random.uniform(-6, 6) * (x - 0.5) ** 2 + random.uniform(-6, 6) * (y - 0.5) ** 2
        phase = 2 * np.pi * (waves * (x * np.cos(angle) + y * np.sin(angle)) + bend)
        values = values * (1 + random.uniform(0.02, 0.12) * np.sin(phase))
    if random.random() < 0.5:  # a lamp or a window in the glass
        spot = np.exp(-((x - random.random()) ** 2 + (y - random.random()) ** 2) / random.uniform(0.005, 0.06))
        values += random.uniform(40, 150) * spot
    values = values * random.uniform(0.6, 1) + random.uniform(0, 60)
    shown = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    # A room, a wall or the black of the light box around it.
    around = random.uniform(0, 255) + random.uniform(0, 40) * _smooth(random, 1.5) / 0.05
    canvas = Image.fromarray(np.clip(around, 0, 255).astype(np.uint8))
    bezel = random.integers(0, 14)
    margin = random.uniform(-0.04, 0.2, size=8) * side  # below 0: the picture is cut, and no frame is seen
    corners = np.array(
        [
            (margin[0], margin[1]),
            (side - margin[2], margin[3]),
            (side - margin[4], side - margin[5]),
            (margin[6], side - margin[7]),
        ]
    )
    if bezel:
        middle = corners.mean(axis=0)
        out = middle + (corners - middle) * (1 + 2 * bezel / side)
        ImageDraw.Draw(canvas).polygon([tuple(p) for p in out], fill=int(random.integers(0, 256)))
    coefficients = _perspective(corners, side)
    tilted = shown.transform((side, side), Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR)
    inside = Image.new("L", (side, side), 255).transform((side, side), Image.Transform.PERSPECTIVE, coefficients)
    canvas.paste(tilted, mask=inside)
    canvas = canvas.filter(ImageFilter.GaussianBlur(float(random.uniform(0, 1.2))))
    lit = np.asarray(canvas) * (1 - random.uniform(0, 0.5) * np.hypot(x - 0.5, y - 0.5))
    return np.clip(lit + random.normal(0, random.uniform(1, 7), lit.shape), 0, 255).astype(np.uint8)


def _perspective(corners: np.ndarray, side: int) -> list[float]:
    """Eight numbers of PIL's transform that show a square picture inside `corners` (4, 2), clockwise from the left."""
    rows, wanted = [], []
    for (x, y), (u, v) in zip(corners, ((0, 0), (side, 0), (side, side), (0, side)), strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        wanted += [u, v]
    return [float(value) for value in np.linalg.solve(np.array(rows), np.array(wanted))]


# -- drawn from nothing


def noise(random: np.random.Generator) -> np.ndarray:
    """White or smooth noise, stripes, chess boards, ramps."""
    kind = random.integers(4)
    if kind < 2:
        return _scaled(_smooth(random, (0.0, 0.5, 1.0, 1.8)[random.integers(4)]))
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    angle, waves = random.uniform(0, np.pi), random.uniform(0.3, 25)
    wave = np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)) + random.uniform(0, 6))
    other = np.sin(2 * np.pi * waves * (y * np.cos(angle) - x * np.sin(angle)))
    values = np.sign(wave * other) if kind == 2 else wave
    return _scaled(values + random.uniform(0, 0.4) * random.normal(size=values.shape))


_WORDS = (
    *("File", "Edit", "View", "Help", "Settings", "patient", "report", "the", "of", "and", "value", "error", "2026"),
    *(
        "January",
        "table",
        "index",
        "search",
        "download",
        "function",
        "return",
        "17:45",
        "100 %",
        "name",
        "chest",
        "lung",
    ),
)


def _lines(draw: ImageDraw.ImageDraw, random: np.random.Generator, box: tuple[int, int, int, int], ink: int) -> None:
    left, top, right, bottom = box
    size = int(random.integers(7, 17))
    font = ImageFont.load_default(size)
    y = top
    while y < bottom - size:
        words = " ".join(random.choice(np.array(_WORDS), size=random.integers(1, 14)))
        draw.text((left, y), words[: max(1, (right - left) // max(4, size // 2))], fill=ink, font=font)
        y += int(size * random.uniform(1.1, 2.2))


def text(random: np.random.Generator) -> np.ndarray:
    """A page of text, or a screenshot: windows, bars, buttons."""
    paper, ink = (int(random.integers(180, 256)), int(random.integers(0, 90)))
    if random.random() < 0.35:
        paper, ink = ink, paper
    image = Image.new("L", (SIDE, SIDE), paper)
    draw = ImageDraw.Draw(image)
    if random.random() < 0.5:
        _lines(draw, random, (int(random.integers(4, 40)), int(random.integers(4, 40)), SIDE - 8, SIDE - 8), ink)
        return _array(image)
    for _ in range(random.integers(2, 7)):
        x0, y0 = (int(v) for v in random.integers(0, SIDE - 40, size=2))
        x1, y1 = (min(SIDE, v + int(random.integers(30, 200))) for v in (x0, y0))
        fill, bar = (int(v) for v in random.integers(0, 256, size=2))
        draw.rectangle((x0, y0, x1, y1), fill=fill, outline=ink)
        draw.rectangle((x0, y0, x1, y0 + 14), fill=bar)
        _lines(draw, random, (x0 + 4, y0 + 18, x1 - 4, y1), ink if abs(ink - fill) > 80 else 255 - fill)
    return _array(image)


def drawing(random: np.random.Generator) -> np.ndarray:
    """Line drawings, charts, logos: ellipses, curves and polygons on a plain ground."""
    paper = (255, 255, 240, 0, int(random.integers(0, 256)))[random.integers(5)]
    image = Image.new("L", (SIDE, SIDE), paper)
    draw = ImageDraw.Draw(image)
    for _ in range(random.integers(2, 14)):
        ink = int(random.integers(0, 256))
        box = np.sort(random.integers(0, SIDE, size=(2, 2)), axis=0)
        corners = (int(box[0, 0]), int(box[0, 1]), int(box[1, 0]) + 2, int(box[1, 1]) + 2)
        shape, fill = random.integers(4), ink if random.random() < 0.5 else None
        if shape == 0:
            draw.ellipse(corners, outline=ink, fill=fill, width=int(random.integers(1, 6)))
        elif shape == 1:
            draw.rectangle(corners, outline=ink, fill=fill, width=int(random.integers(1, 6)))
        elif shape == 2:
            xs = np.linspace(0, SIDE, int(random.integers(3, 60)))
            ys = SIDE / 2 + np.cumsum(random.normal(0, 18, size=len(xs)))
            draw.line([*zip(xs.tolist(), ys.tolist(), strict=True)], fill=ink, width=int(random.integers(1, 5)))
        else:
            draw.polygon([(int(x), int(y)) for x, y in random.integers(0, SIDE, size=(5, 2))], outline=ink, fill=fill)
    return _array(image)


def scene(random: np.random.Generator) -> np.ndarray:
    """What photographs are like to a network: things that hide each other, each with a texture (dead leaves)."""
    canvas = np.full((SIDE, SIDE), random.uniform(0, 255))
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    textures = [_smooth(random, e) for e in random.uniform(0.6, 1.6, size=4)]
    for _ in range(random.integers(10, 50)):
        radius = min(120.0, 8 / random.random() ** 0.7)
        cx, cy = random.uniform(0, SIDE, size=2)
        stretch, angle = random.uniform(0.4, 1), random.uniform(0, np.pi)
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = ((y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)) / stretch
        inside = (np.maximum(abs(u), abs(v)) if random.random() < 0.4 else np.hypot(u, v)) < radius
        texture = textures[random.integers(4)]
        shade = random.uniform(-60, 60) * (u / radius)
        canvas = np.where(
            inside, random.uniform(0, 255) + shade + random.uniform(0, 40) * texture / texture.std(), canvas
        )
    image = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    return _array(image.filter(ImageFilter.GaussianBlur(float(random.uniform(0, 1.5)))))


def slice_of_ct(random: np.random.Generator) -> np.ndarray:
    """An axial slice as a CT or MR scanner shows it: an oval body on black, two holes or none, a spine, a table."""
    scale = 2
    side = SIDE * scale
    image = Image.new("L", (side, side), int(random.integers(0, 12)))
    draw = ImageDraw.Draw(image)

    def oval(cx: float, cy: float, rx: float, ry: float, fill: float) -> None:
        draw.ellipse(
            ((cx - rx) * side, (cy - ry) * side, (cx + rx) * side, (cy + ry) * side), fill=int(np.clip(fill, 0, 255))
        )

    rx, ry = random.uniform(0.3, 0.47), random.uniform(0.22, 0.4)
    cy, tissue = random.uniform(0.46, 0.54), random.uniform(90, 190)
    oval(0.5, cy, rx, ry, tissue * random.uniform(0.5, 1.3))
    rim = random.uniform(0.85, 0.96)
    oval(0.5, cy, rx * rim, ry * rim, tissue)
    if (organs := random.integers(3)) == 0:  # chest
        air = random.uniform(0, 60)
        for way in (-1, 1):
            oval(0.5 + way * rx * 0.47, cy, rx * random.uniform(0.3, 0.4), ry * random.uniform(0.5, 0.72), air)
        wide, high = rx * random.uniform(0.2, 0.32), ry * random.uniform(0.25, 0.4)
        oval(0.5 - 0.1 * rx, cy - 0.15 * ry, wide, high, tissue * 1.15)
    elif organs == 1:  # abdomen
        oval(0.5 - 0.4 * rx, cy - 0.1 * ry, rx * 0.45, ry * 0.6, tissue * 1.2)
        for _ in range(random.integers(3, 9)):
            (dx, dy), (wide, high) = random.uniform(-0.6, 0.6, size=2), random.uniform(0.03, 0.08, size=2)
            oval(0.5 + dx * rx, cy + dy * ry, wide, high, tissue * random.uniform(0.3, 1.6))
    else:  # head
        oval(0.5, cy, rx * 0.8, ry * 0.86, random.uniform(200, 255))
        oval(0.5, cy, rx * 0.72, ry * 0.78, tissue * 0.8)
        for way in (-1, 1):
            oval(0.5 + way * 0.12 * rx, cy, 0.07 * rx, 0.25 * ry, tissue * random.uniform(0.2, 1.3))
    if organs < 2:
        oval(0.5, cy + 0.68 * ry, 0.14 * rx, 0.16 * ry, 235)
        for angle in np.linspace(0, 2 * np.pi, 14, endpoint=False):
            oval(0.5 + 0.86 * rx * np.cos(angle), cy + 0.86 * ry * np.sin(angle), 0.05 * rx, 0.035 * ry, 225)
    if random.random() < 0.6:
        draw.arc(
            (0.1 * side, 0.5 * side, 0.9 * side, 0.97 * side), 20, 160, fill=int(random.integers(70, 180)), width=6
        )
    values = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float64)
    values += random.uniform(0, 14) * (values > 15) * random.normal(size=values.shape)
    values += random.uniform(0, 18) * _smooth(random, 1.2) / 0.02 * (values > 15) * 0.2
    return np.clip(values, 0, 255).astype(np.uint8)


def lateral(random: np.random.Generator) -> np.ndarray:
    """A chest from the side, roughly: one lung field between sternum and a spine that runs along one edge."""
    scale = 2
    side = SIDE * scale
    image = Image.new("L", (side, side), int(random.integers(0, 40)))
    draw = ImageDraw.Draw(image)

    def shape(points: Sequence[tuple[float, float]], fill: float) -> None:
        draw.polygon([(x * side, y * side) for x, y in points], fill=int(np.clip(fill, 0, 255)))

    w = random.uniform(-0.04, 0.04, size=12)
    tissue = random.uniform(120, 190)
    shape(
        [(0.2 + w[0], 0), (0.72 + w[1], 0), (0.9 + w[2], 0.35), (0.88 + w[3], 1), (0.08 + w[4], 1), (0.1 + w[5], 0.4)],
        tissue,
    )
    lung = [(0.4 + w[6], 0.1), (0.62 + w[7], 0.13), (0.72 + w[8], 0.4), (0.74 + w[9], 0.72), (0.5, 0.64 + w[10])]
    shape([*lung, (0.24 + w[11], 0.74), (0.2, 0.42)], tissue * random.uniform(0.35, 0.6))
    heart = random.uniform(0.1, 0.15)
    draw.ellipse(
        ((0.36 - heart) * side, 0.45 * side, (0.38 + heart) * side, 0.74 * side), fill=int(min(255, tissue * 1.1))
    )
    for y in np.arange(0.06, 1, random.uniform(0.06, 0.08)):  # vertebrae
        x = 0.72 + 0.09 * np.sin(2.4 * y) + w[1]
        draw.rectangle(
            ((x - 0.05) * side, y * side, (x + 0.04) * side, (y + 0.045) * side), fill=int(min(255, tissue * 1.25))
        )
    for y in np.arange(0.1, 0.7, 0.07):  # ribs
        draw.arc((0.2 * side, y * side, 0.8 * side, (y + 0.2) * side), 190, 350, fill=int(tissue), width=4)
    image = image.filter(ImageFilter.GaussianBlur(random.uniform(3, 9)))
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    values = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float64)
    values += random.uniform(5, 25) * _smooth(random, 1.3) / 0.03 * 0.3 + random.normal(
        0, random.uniform(1, 6), values.shape
    )
    return np.clip(values, 0, 255).astype(np.uint8)


#: Kind made from a film -> (function, what it should be taken for).
FROM_FILMS: Mapping[str, tuple[Callable[[np.ndarray, np.random.Generator], np.ndarray], str]] = MappingProxyType(
    {"turned": (turned, TURNED), "inverted": (inverted, INVERTED), "photographed": (photographed, PHOTOGRAPHED)}
)
#: Kind drawn from nothing -> function; all of them are to be taken for :data:`OTHER`.
DRAWN: Mapping[str, Callable[[np.random.Generator], np.ndarray]] = MappingProxyType(
    {"noise": noise, "text": text, "drawing": drawing, "scene": scene, "slice_of_ct": slice_of_ct, "lateral": lateral}
)


def make(films: Sequence[np.ndarray], *, each: int, seed: int) -> tuple[list[np.ndarray], list[str], list[str]]:
    """Make pictures of every kind.

    Args:
        films: (H, W) uint8 each, upright frontal chest films that the kinds of :data:`FROM_FILMS` are made from.
        each: How many of each kind.
        seed: The same films and seed give the same pictures.

    Returns:
        Pictures (H, W) uint8, their kinds, and what each should be taken for (:data:`VERDICTS`).
    """
    random = np.random.default_rng(seed)
    pictures, kinds, verdicts = [], [], []
    for kind, (change, verdict) in FROM_FILMS.items():
        pictures += [change(films[i], random) for i in random.integers(len(films), size=each)]
        kinds += [kind] * each
        verdicts += [verdict] * each
    for kind, draw in DRAWN.items():
        pictures += [draw(random) for _ in range(each)]
        kinds += [kind] * each
        verdicts += [OTHER] * each
    return pictures, kinds, verdicts
