"""Two drawings made by code, so that they cannot say what the code does not: the six steps, and VGG16.

Names of files come from :class:`RunDir`, layers and parameters from the module itself. The drawings have a ground of
their own and are legible on a dark page too. To write them anew::

    python -m vgg16_xray.report.drawings docs/figures
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from vgg16_xray.files import write_text
from vgg16_xray.rundir import RunDir

GROUND, INK, FAINT, GUIDE = "#FFFFFF", "#1F2933", "#5B6875", "#DDE3E8"
STEP, STEP_WASH, AFTER, AFTER_WASH = "#0B6E6E", "#E3F1EF", "#5B6875", "#F1F3F5"
#: Blocks 1 to 5, ever darker; pools; heads.
BLOCK_COLOURS = ("#CFE5F5", "#A9D0EC", "#7FB6DE", "#5499CB", "#2F7AB3")
POOL, HEAD = "#E69F00", "#0B6E6E"
WIDTH = 1160
_MONO = 'font-family="Menlo, Consolas, DejaVu Sans Mono, monospace"'


# -- SVG as text


def _text(
    x: float, y: float, words: str, *, size: float = 13, colour: str = INK, anchor: str = "start", extra: str = ""
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}" text-anchor="{anchor}"'
        f"{' ' + extra if extra else ''}>{escape(words)}</text>"
    )


def _rectangle(
    x: float, y: float, width: float, height: float, *, fill: str, stroke: str = "none", r: float = 0
) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{r:g}" fill="{fill}" stroke="{stroke}"/>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, *, colour: str, width: float = 1.5, extra: str = "") -> str:
    return (
        f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}" stroke-width="{width:g}"'
        f"{' ' + extra if extra else ''}/>"
    )


def _arrow(x1: float, y: float, x2: float, *, colour: str = FAINT) -> str:
    head = f'<path d="M{x2:g} {y:g} l-7 -4 v8 z" fill="{colour}"/>'
    return _line(x1, y, x2 - 6, y, colour=colour) + head


def _drawing(title: str, description: str, height: float, parts: Sequence[str]) -> str:
    """A whole SVG file: what it shows in words, a ground, the parts."""
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
            f'height="{height:g}" role="img" aria-labelledby="title desc" '
            'font-family="Helvetica, Arial, Liberation Sans, sans-serif">',
            f'<title id="title">{escape(title)}</title>',
            f'<desc id="desc">{escape(description)}</desc>',
            _rectangle(0.5, 0.5, WIDTH - 1, height - 1, fill=GROUND, stroke=GUIDE, r=14),
            *parts,
            "</svg>\n",
        )
    )


# -- the six steps


@dataclass(frozen=True)
class Column:
    """A step, or what comes after the six."""

    key: str
    name: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Lane:
    """A file: a property of :class:`RunDir`, who writes it and who reads it."""

    file: str
    writers: tuple[str, ...]
    readers: tuple[str, ...] = ()


COLUMNS = (
    Column("download", "Download", ("the dataset, whole", "or not at all")),
    Column("preprocess", "Preprocess", ("decode, check,", "split, store")),
    Column("initialise", "Initialise", ("ImageNet's VGG16", "and a new head")),
    Column("train", "Train", ("fit what is", "trainable")),
    Column("validate", "Validate", ("measure the", "best epoch")),
    Column("test", "Test", ("measure once, on", "unseen films")),
    Column("report", "Report", ("all of it on", "one page")),
    Column("predict", "Predict", ("films from", "elsewhere")),
)
LANES = (
    Lane("config", ("preprocess", "initialise"), ("train", "validate", "test", "report")),
    Lane("manifest", ("preprocess",), ("train", "validate", "test", "report")),
    Lane("pixels", ("preprocess",), ("train", "validate", "test")),
    Lane("split", ("preprocess",)),
    Lane("quarantine", ("preprocess",), ("report",)),
    Lane("leaks", ("preprocess",), ("report",)),
    Lane("pairs", ("preprocess",)),
    Lane("layers", ("initialise",), ("report",)),
    Lane("last", ("train",)),
    Lane("best", ("train",), ("validate", "test", "predict")),
    Lane("history", ("train",), ("validate", "report")),
    Lane("validation", ("validate",), ("test", "report")),
    Lane("test", ("test",), ("report",)),
    Lane("readings", ("test",), ("report",)),
    Lane("predictions", ("test",), ("report",)),
    Lane("figures", ("preprocess", "test"), ("report",)),
    Lane("steps", ("preprocess", "initialise", "train", "validate", "test"), ("report",)),
    Lane("leaks_page", ("report",)),
    Lane("report", ("report",)),
)


#: What runs share lies outside them: the features, written and read behind the row of this file.
CACHED, CACHED_BEHIND = "features in the cache", "layers"


def name_of(file: str) -> str:
    """How a property of :class:`RunDir` is spelled below the run directory; a folder ends in a slash."""
    root = Path("run")
    path: Path = getattr(RunDir(root), file)
    return path.relative_to(root).as_posix() + ("" if path.suffix else "/")


def six_steps() -> str:
    """Draw the six steps and the files that pass between them.

    Returns:
        SVG.
    """
    rows = [("DATA/<class>/…", Lane("", ("download",), ("preprocess",)))]
    for lane in LANES:
        rows.append((name_of(lane.file), lane))
        if lane.file == CACHED_BEHIND:
            rows.append((CACHED, Lane("", ("train",), ("validate", "test"))))
    left, column, card_top, card_high, lane_high = 30, (WIDTH - 60) / len(COLUMNS), 30, 128, 37
    middle = {step.key: left + column * (k + 0.5) for k, step in enumerate(COLUMNS)}
    top = card_top + card_high + 34
    bottom = top + lane_high * len(rows) - 4
    parts = [
        _line(x, card_top + card_high, x, bottom - 12, colour=GUIDE, width=1.5, extra='stroke-dasharray="2 5"')
        for x in middle.values()
    ]
    for k, step in enumerate(COLUMNS):
        numbered = k < 6
        ink, wash = (STEP, STEP_WASH) if numbered else (AFTER, AFTER_WASH)
        x = middle[step.key]
        parts.append(_rectangle(x - column / 2 + 6, card_top, column - 12, card_high, fill=wash, stroke=ink, r=10))
        sign = str(k + 1) if numbered else "+"
        parts.append(_text(x, card_top + 36, sign, size=27, colour=ink, anchor="middle", extra='font-weight="bold"'))
        parts.append(_text(x, card_top + 64, step.name, size=17, anchor="middle", extra='font-weight="bold"'))
        parts += [
            _text(x, card_top + 90 + 17 * i, line, colour=FAINT, anchor="middle") for i, line in enumerate(step.lines)
        ]
        if 0 < k < 6:
            edge = left + column * k
            parts.append(f'<path d="M{edge - 4:g} {card_top + card_high / 2 - 6:g} l9 6 l-9 6 z" fill="{STEP}"/>')
    for row, (name, lane) in enumerate(rows):
        parts += _lane(name, lane, middle, top + row * lane_high)
    legend = bottom + 12
    parts += [
        f'<circle cx="{left + 14}" cy="{legend - 5:g}" r="6" fill="{STEP}"/>',
        _text(left + 28, legend, "writes", colour=FAINT),
        f'<circle cx="{left + 100}" cy="{legend - 5:g}" r="5.5" fill="{GROUND}" stroke="{STEP}" stroke-width="2"/>',
        _text(left + 114, legend, "reads", colour=FAINT),
        _text(WIDTH - left - 8, legend, "Each step can be run, killed and resumed alone.", colour=FAINT, anchor="end"),
    ]
    words = "; ".join(
        f"{name} is written by {' and '.join(lane.writers)}"
        + (f" and read by {', '.join(lane.readers)}" if lane.readers else "")
        for name, lane in rows
    )
    return _drawing("The six steps and the files that pass between them", f"{words}.", legend + 24, parts)


def _lane(name: str, lane: Lane, middle: dict[str, float], y: float) -> list[str]:
    places = [middle[key] for key in (*lane.writers, *lane.readers)]
    # The ground's colour around the letters keeps the dotted guides from running through them.
    halo = f'stroke="{GROUND}" stroke-width="5" paint-order="stroke" {_MONO}'
    parts = [_text(min(places) + 9, y - 9, name, extra=halo)]
    if len(places) > 1:
        parts.append(_line(min(places), y, max(places), y, colour=STEP, width=2))
    parts += [
        f'<circle cx="{middle[key]:g}" cy="{y:g}" r="5.5" fill="{GROUND}" stroke="{STEP}" stroke-width="2"/>'
        for key in lane.readers
    ]
    parts += [f'<circle cx="{middle[key]:g}" cy="{y:g}" r="6" fill="{STEP}"/>' for key in lane.writers]
    return parts


# -- VGG16


def vgg16() -> str:
    """Draw VGG16 as the module is built: blocks, feature maps, pools, parameters, heads.

    Returns:
        SVG.
    """
    import torch

    from vgg16_xray.learn.heads import HEADS
    from vgg16_xray.learn.vgg16 import BLOCKS, CUTS, SIZE, Layer, build, layer_table, published_parameters

    def table(head: str, classes: int) -> list[Layer]:
        with torch.device("meta"):  # shapes without values: the widest head has 103 million of them
            model = build(classes=classes, head=head, dropout=0.5)
        return layer_table(model, "all")

    heads = {head: table(head, 4) for head in HEADS}
    base = [layer for layer in next(iter(heads.values())) if layer.name.startswith("features.")]
    blocks: list[list[Layer]] = [[]]
    for layer in base:
        blocks[-1].append(layer)
        if layer.kind == "MaxPool2d":
            blocks.append([])
    blocks.pop()
    in_base = sum(layer.parameters for layer in base)
    cut_names = {BLOCKS.index(cut): name for name, cut in CUTS.items()}

    ground = 268
    parts = [
        _text(30, 44, "VGG16, configuration D", size=20, extra='font-weight="bold"'),
        _text(
            30, 68, f"{sum(layer.kind == 'Conv2d' for layer in base)} convolutions 3 × 3, each with a ReLU; "
            f"a 2 × 2 maximum pool ends each of the {len(blocks)} blocks; {in_base:,} parameters in the base",
            colour=FAINT, size=14,
        ),
    ]  # fmt: skip
    column, first = 204, 152
    parts += _slab(58, ground, SIZE, 5, "#B8C0C8")
    parts += _label(30, ground + 28, "a film", (f"{SIZE} × {SIZE} × 3",), "start")
    for k, block in enumerate(blocks):
        start = x = float(first + column * k)
        for layer in block:
            if layer.kind == "ReLU":
                continue
            pool = layer.kind == "MaxPool2d"
            wide = 5 if pool else 6 + layer.shape[0] / 512 * 24
            x += 0.7 * DEPTH * _high(2 * layer.shape[1]) if pool else 0
            parts += _slab(x, ground, layer.shape[1], wide, POOL if pool else BLOCK_COLOURS[k])
            x += wide + 9
        if k + 1 < len(blocks):
            parts.append(_arrow(x + DEPTH * _high(block[-1].shape[1]), ground - 14, first + column * (k + 1) - 10))
        convolutions = [layer for layer in block if layer.kind == "Conv2d"]
        channels, side = convolutions[-1].shape[0], convolutions[-1].shape[1]
        parts += _label(
            start,
            ground + 28,
            f"block {k + 1}",
            (
                f"{len(convolutions)} × conv 3×3, {channels}",
                f"{side} × {side} × {channels}",
                f"{sum(layer.parameters for layer in block):,}",
                f"pool → {block[-1].shape[1]} × {block[-1].shape[2]}",
            ),
            "start",
        )
        parts.append(_text(start, ground + 130, f"--train-from {cut_names[k]}", size=11.5, colour=HEAD, extra=_MONO))
    for down, words in ((86, "parameters"), (106, "after the pool"), (130, "to train from here")):
        parts.append(_text(30, ground + down, words, colour=FAINT))
    top = ground + 182
    parts.append(_line(30, top - 30, WIDTH - 30, top - 30, colour=GUIDE))
    channels, *sides = base[-1].shape
    parts.append(
        _text(30, top, f"Three heads on {channels} × {sides[0]} × {sides[1]}", size=17, extra='font-weight="bold"')
        + _text(WIDTH - 30, top, "parameters with four classes", colour=FAINT, anchor="end")
    )
    for row, (head, layers) in enumerate(heads.items()):
        parts += _head(head, [layer for layer in layers if layer.name.startswith("classifier")], top + 24 + 56 * row)
    last = top + 24 + 56 * len(heads) + 22
    parts.append(
        _text(
            30,
            last,
            f"As published, with the head vgg and 1,000 classes: {published_parameters():,} parameters.",
            colour=FAINT,
        )
    )
    description = "; ".join(
        f"block {k + 1}: {sum(layer.kind == 'Conv2d' for layer in block)} convolutions "
        f"with {block[-1].shape[0]} channels, then a pool to {block[-1].shape[1]} x {block[-1].shape[2]}"
        for k, block in enumerate(blocks)
    )
    return _drawing("VGG16, drawn from the module", f"{description}. Heads: {', '.join(heads)}.", last + 24, parts)


#: How far a slab goes back, as a share of its height.
DEPTH = 0.26


def _high(side: int) -> float:
    return 165 * (side / 224) ** 0.5


def _slab(x: float, ground: float, side: int, wide: float, colour: str) -> list[str]:
    """A feature map as a slab: its height goes with the root of its side, its width with the channels."""
    high = _high(side)
    dx, dy = DEPTH * high, -0.15 * high
    top = ground - high
    edge = 'stroke="#33475B" stroke-width="0.8" stroke-linejoin="round"'
    side_face = f"M{x + wide:g} {top:.1f} l{dx:.1f} {dy:.1f} v{high:.1f} l{-dx:.1f} {-dy:.1f} z"
    return [
        f'<path d="M{x:g} {top:.1f} l{dx:.1f} {dy:.1f} h{wide:g} l{-dx:.1f} {-dy:.1f} z" fill="{colour}" {edge}/>',
        f'<path d="{side_face}" fill="{colour}" {edge}/>',
        f'<path d="{side_face}" fill="#000" fill-opacity="0.16"/>',
        f'<path d="M{x:g} {top:.1f} h{wide:g} v{high:.1f} h{-wide:g} z" fill="{colour}" {edge}/>',
    ]


def _label(x: float, y: float, name: str, lines: Sequence[str], anchor: str) -> list[str]:
    parts = [_text(x, y, name, size=14.5, anchor=anchor, extra='font-weight="bold"')]
    return parts + [_text(x, y + 20 * (i + 1) - 2, line, anchor=anchor) for i, line in enumerate(lines)]


def _head(head: str, layers: Sequence[object], y: float) -> list[str]:
    """A head as a row of boxes; activations and dropout stand in the box of the layer before them."""
    from vgg16_xray.learn.vgg16 import Layer

    boxes: list[tuple[list[str], str]] = []
    total = 0
    for layer in layers:
        assert isinstance(layer, Layer)
        total += layer.parameters
        kind = "".join(f" {c.lower()}" if c.isupper() else c for c in layer.kind).strip().replace("re l u", "ReLU")
        if layer.kind in {"ReLU", "Dropout"} and boxes:
            boxes[-1][0].append(kind)
        else:
            boxes.append(([kind], " × ".join(f"{n:,}" for n in layer.shape)))
    parts = [_text(30, y + 25, head, size=15, colour=HEAD, extra=f'font-weight="bold" {_MONO}')]
    x = 130.0
    for kinds, shape in boxes:
        words = " + ".join(kinds)
        wide = max(120, 7.2 * max(len(words), len(shape)) + 26)
        parts.append(_arrow(x - 28, y + 20, x - 2))
        parts.append(_rectangle(x, y, wide, 42, fill=STEP_WASH, stroke=HEAD, r=8))
        parts.append(_text(x + wide / 2, y + 17, words, size=13, anchor="middle"))
        parts.append(_text(x + wide / 2, y + 34, shape, size=13, anchor="middle", extra='font-weight="bold"'))
        x += wide + 32
    parts.append(_text(WIDTH - 30, y + 25, f"{total:,}", size=14, anchor="end", extra='font-weight="bold"'))
    return parts


DRAWINGS = {"six_steps.svg": six_steps, "vgg16.svg": vgg16}


def write_drawings(folder: Path) -> list[Path]:
    """Write both drawings into a folder.

    Returns:
        Their paths.
    """
    for name, draw in DRAWINGS.items():
        write_text(folder / name, draw())
    return [folder / name for name in DRAWINGS]


if __name__ == "__main__":
    for written in write_drawings(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/figures")):
        print(written)
