"""Charts of the page itself: drawn as SVG in the page's colours, every point with the words that it stands for.

The PNGs of :mod:`vgg16_xray.report.figures` are what a run leaves for papers and slides; these are what a reader points
at. The page's script shows a point's words beside the pointer, and with the arrow keys for those who have none; without
a script they are titles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from math import ceil, floor, log10
from typing import TYPE_CHECKING, Any

from vgg16_xray.films.split import TEST
from vgg16_xray.report.figures import PALETTE, PICTURES, best_epoch, class_colours, has_interval

if TYPE_CHECKING:
    import pandas as pd
    from markupsafe import Markup

    from vgg16_xray.rundir import RunDir

#: Size of a chart's area for data, and its margins, in units of the SVG.
WIDE, HIGH = 460, 300
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 34, 46
#: Points of a curve with words: more cannot be pointed at.
MOST_POINTS = 60


@dataclass(frozen=True)
class Series:
    """A line of points, each with its words."""

    name: str
    colour: str
    #: (x, y, words)
    points: Sequence[tuple[float, float, str]]
    #: Whether a line joins the points, and whether it is a staircase.
    line: bool = True
    steps: bool = False
    #: (x, low, high) a point, or none.
    bars: Sequence[tuple[float, float, float]] = field(default_factory=tuple)
    dots: bool = True
    #: Radius of each point, or one for all.
    radii: Sequence[float] = ()
    #: A y at which a dotted line stands.
    level: float | None = None


@dataclass(frozen=True)
class Chart:
    """A chart for the page."""

    title: str
    #: One sentence on how to read it.
    reading: str
    #: An SVG each, side by side.
    panels: Sequence[Markup]


def panel(
    series: Sequence[Series],
    *,
    title: str,
    x: str,
    y: str,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    diagonal: bool = False,
    mark: float | None = None,
) -> Markup:
    """One set of axes with lines of points.

    Args:
        series: What is drawn; the legend names those with a name.
        title: Above it.
        x: What the x axis says, with its unit.
        y: What the y axis says.
        x_range: Lowest and highest x.
        y_range: Lowest and highest y.
        diagonal: Draw the line on which x is y.
        mark: An x at which a line stands.
    """
    from markupsafe import Markup

    def at(value: float, other: float) -> tuple[float, float]:
        across = (value - x_range[0]) / ((x_range[1] - x_range[0]) or 1)
        up = (other - y_range[0]) / ((y_range[1] - y_range[0]) or 1)
        return LEFT + WIDE * min(max(across, 0.0), 1.0), TOP + HIGH * (1 - min(max(up, 0.0), 1.0))

    legend = [one for one in series if one.name]
    height = TOP + HIGH + BOTTOM + 20 * len(legend)
    parts = [
        f'<svg class="chart" viewBox="0 0 {LEFT + WIDE + RIGHT} {height}" role="img" tabindex="0" '
        f'aria-label="{escape(title)}">',
        f'<text class="title" x="{LEFT}" y="18">{escape(title)}</text>',
    ]
    for value in _ticks(*y_range):
        _, top = at(x_range[0], value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + WIDE}" y1="{top:.1f}" y2="{top:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 7}" y="{top + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in _ticks(*x_range):
        left, _ = at(value, y_range[0])
        parts.append(f'<line class="grid" y1="{TOP}" y2="{TOP + HIGH}" x1="{left:.1f}" x2="{left:.1f}"/>')
        parts.append(f'<text class="tick" x="{left:.1f}" y="{TOP + HIGH + 17}" text-anchor="middle">{value:g}</text>')
    parts.append(
        f'<text class="axis" x="{LEFT + WIDE / 2}" y="{TOP + HIGH + 37}" text-anchor="middle">{escape(x)}</text>'
    )
    turned = f'transform="translate(14 {TOP + HIGH / 2}) rotate(-90)"'
    parts.append(f'<text class="axis" {turned} text-anchor="middle">{escape(y)}</text>')
    if diagonal:
        (x1, y1), (x2, y2) = at(0, 0), at(1, 1)
        parts.append(f'<line class="rule" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    if mark is not None:
        left, _ = at(mark, y_range[0])
        parts.append(f'<line class="rule" x1="{left:.1f}" x2="{left:.1f}" y1="{TOP}" y2="{TOP + HIGH}"/>')
    for one in series:
        parts += _drawn(one, at)
    for row, one in enumerate(legend):
        top = TOP + HIGH + BOTTOM + 14 + 20 * row
        parts.append(f'<circle cx="{LEFT + 5}" cy="{top - 4}" r="5" fill="{one.colour}"/>')
        parts.append(f'<text class="tick" x="{LEFT + 16}" y="{top}">{escape(one.name)}</text>')
    return Markup("".join([*parts, "</svg>"]))


def _drawn(one: Series, at: Any) -> list[str]:
    parts = []
    if one.level is not None:
        (left, top), (right, _) = at(0, one.level), at(1, one.level)
        place = f'x1="{left:.1f}" x2="{right:.1f}" y1="{top:.1f}" y2="{top:.1f}"'
        parts.append(f'<line class="level" {place} stroke="{one.colour}"/>')
    for x, low, high in one.bars:
        (left, top), (_, bottom) = at(x, high), at(x, low)
        place = f'x1="{left:.1f}" x2="{left:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"'
        parts.append(f'<line class="bar" {place} stroke="{one.colour}"/>')
    places = [at(x, y) for x, y, _ in one.points]
    if one.line and places:
        path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
        for (_, before), (left, top) in pairwise(places):
            path += f"L{left:.1f} {before:.1f}L{left:.1f} {top:.1f}" if one.steps else f"L{left:.1f} {top:.1f}"
        parts.append(f'<path class="curve" d="{path}" stroke="{one.colour}"/>')
    spoken = _spread([i for i, (_, _, words) in enumerate(one.points) if words])
    for i in spoken:
        left, top = places[i]
        words, radius = escape(one.points[i][2]), one.radii[i] if one.radii else 4.0
        parts.append(
            f'<circle class="point{"" if one.dots else " hidden"}" cx="{left:.1f}" cy="{top:.1f}" r="{radius:.1f}" '
            f'fill="{one.colour}" data-words="{words}"><title>{words}</title></circle>'
        )
    return parts


def _spread(places: Sequence[int]) -> list[int]:
    """At most :data:`MOST_POINTS` of them, the first and the last among them."""
    if len(places) <= MOST_POINTS:
        return list(places)
    step = (len(places) - 1) / (MOST_POINTS - 1)
    return [places[round(i * step)] for i in range(MOST_POINTS)]


def _ticks(low: float, high: float) -> list[float]:
    """Some five round values from `low` to `high`."""
    wanted = (high - low) / 5
    power = 10.0 ** floor(log10(wanted))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= wanted * (1 - 1e-9))
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [round(i * step, 6) for i in range(first, last + 1)]


# -- the charts of a run


def charts_of(run: RunDir, test: Mapping[str, Any] | None, history: Sequence[Mapping[str, Any]]) -> dict[str, Chart]:
    """Charts by the names of the pictures that they stand for; what the run does not have yet is missing.

    Args:
        run: Its ``predictions.csv`` is read.
        test: What ``test.json`` holds.
        history: A row an epoch.
    """
    from vgg16_xray.report.figures import read_predictions

    found = {}
    if history:
        found["curves"] = _chart(
            "curves", _curves(history, best_epoch(run)), more=" The dotted line is the best epoch."
        )
    if test and run.predictions.exists():
        predictions = read_predictions(run)
        predictions = predictions[predictions["split"] == TEST]
        found["roc"] = _chart("roc", [_roc(test, predictions)])
        found["precision_recall"] = _chart("precision_recall", [_precision_recall(test, predictions)])
    if test and test.get("calibration"):
        sizes = " The larger a dot, the more films it stands for."
        found["reliability"] = _chart("reliability", _reliability(test["calibration"]), more=sizes)
    return found


def _chart(name: str, panels: Sequence[Markup], *, more: str = "") -> Chart:
    picture = PICTURES[name]
    return Chart(picture.title, f"{picture.reading}{more}", panels)


def _curves(history: Sequence[Mapping[str, Any]], best: int | None) -> list[Markup]:
    panels = []
    epochs = [float(row["epoch"]) for row in history]
    for what in ("loss", "accuracy"):
        series = []
        for side, name, colour in (("train", "training", PALETTE[0]), ("validation", "validation", PALETTE[1])):
            points = [
                (
                    float(row["epoch"]),
                    float(row[f"{side}_{what}"]),
                    f"epoch {row['epoch']:g}{' (best)' if row['epoch'] == best else ''}, {name}: {what} "
                    f"{row[f'{side}_{what}']:.4f}",
                )
                for row in history
                if row.get(f"{side}_{what}") is not None
            ]
            series.append(Series(name, colour, points))
        values = [y for one in series for _, y, _ in one.points] or [0.0, 1.0]
        low, high = (0.0, max(values) * 1.05) if what == "loss" else (min(values) - 0.02, min(1.0, max(values) + 0.02))
        panels.append(
            panel(
                series,
                title=what.capitalize(),
                x="epoch",
                y=what,
                x_range=(min(epochs) - 0.4, max(epochs) + 0.4),
                y_range=(low, high or 1.0),
                mark=None if best is None else float(best),
            )
        )
    return panels


def _of_class(
    test: Mapping[str, Any], predictions: pd.DataFrame, key: str, short: str
) -> list[tuple[str, str, Any, Any]]:
    """(legend, colour, truth, score) of each class that has films of both kinds."""
    found = []
    for label, colour in class_colours(test["labels"]).items():
        truth = (predictions["label"] == label).to_numpy()
        figure = test["per_class"][label][key]
        if f"p_{label}" not in predictions or not 0 < truth.sum() < len(truth) or figure["value"] is None:
            continue
        bounds = f" ({figure['low']:.3f}–{figure['high']:.3f})" if has_interval(figure) else ""
        name = f"{label}: {short} {figure['value']:.3f}{bounds}"
        found.append((name, colour, truth, predictions[f"p_{label}"].to_numpy(dtype=float)))
    return found


def _roc(test: Mapping[str, Any], predictions: pd.DataFrame) -> Markup:
    from sklearn.metrics import roc_curve

    series = []
    for name, colour, truth, score in _of_class(test, predictions, "auroc", "AUROC"):
        false, true, thresholds = roc_curve(truth, score, drop_intermediate=True)
        label = name.partition(":")[0]
        points = [
            (float(x), float(y), f"{label}, score of {t:.3f} or more: sensitivity {y:.3f}, specificity {1 - x:.3f}")
            if t <= 1
            else (float(x), float(y), "")
            for x, y, t in zip(false, true, thresholds, strict=True)
        ]
        series.append(Series(name, colour, points, dots=False))
    return panel(
        series,
        title="ROC, each class against all others",
        x="1 − specificity: share of the other classes' films taken for it",
        y="sensitivity",
        x_range=(0, 1),
        y_range=(0, 1),
        diagonal=True,
    )


def _precision_recall(test: Mapping[str, Any], predictions: pd.DataFrame) -> Markup:
    from sklearn.metrics import precision_recall_curve

    series = []
    for name, colour, truth, score in _of_class(test, predictions, "average_precision", "AP"):
        precision, recall, thresholds = precision_recall_curve(truth, score, drop_intermediate=True)
        label = name.partition(":")[0]
        # From few films to all; the last point of the library stands for none.
        points = [
            (float(r), float(p), f"{label}, score of {t:.3f} or more: recall {r:.3f}, precision {p:.3f}")
            for r, p, t in zip(recall[-2::-1], precision[-2::-1], thresholds[::-1], strict=True)
        ]
        series.append(Series(name, colour, points, dots=False, steps=True, level=float(truth.mean())))
    return panel(
        series,
        title="Precision and recall, each class against all others",
        x="recall (sensitivity): share of the class's films found",
        y="precision",
        x_range=(0, 1),
        y_range=(0, 1),
    )


def _reliability(calibration: Mapping[str, Any]) -> list[Markup]:
    panels = []
    for side, title in (("score", "Score"), ("probability", "Probability")):
        bins = [row for row in calibration[side]["bins"] if row["films"]]
        points = [
            (
                row["confidence"],
                row["right"]["value"],
                f"{row['films']:,} films with {side} {row['from']:.2f} to {row['to']:.2f}: on average "
                f"{row['confidence']:.3f}, right {row['right']['value']:.3f} "
                f"({row['right']['low']:.3f}–{row['right']['high']:.3f})",
            )
            for row in bins
        ]
        bars = [(row["confidence"], row["right"]["low"], row["right"]["high"]) for row in bins]
        most = max(row["films"] for row in bins)
        radii = [2.5 + 6.5 * (row["films"] / most) ** 0.5 for row in bins]
        panels.append(
            panel(
                [Series("", PALETTE[0], points, line=False, bars=bars, radii=radii)],
                title=f"{title}: ECE {calibration[side]['ece']['value']:.3f}",
                x=f"largest {side} of a film",
                y="share that is right",
                x_range=(0, 1),
                y_range=(0, 1),
                diagonal=True,
            )
        )
    return panels
