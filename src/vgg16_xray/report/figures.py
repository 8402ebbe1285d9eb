"""The pictures of a run: one function a picture, one PNG each, the same bytes from the same files.

Every function reads files of the run directory and writes into :attr:`RunDir.figures`. Colours are Okabe and Ito's
(2008), which stay apart for colour-blind readers; a class has the same colour in every picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg16_xray import RESEARCH_USE_ONLY
from vgg16_xray.errors import UserError
from vgg16_xray.files import read_json, whole_file
from vgg16_xray.films.split import SPLITS, TEST, TRAIN
from vgg16_xray.rundir import RunDir

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont

#: Okabe and Ito 2008, their yellow replaced by grey: it does not show on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
#: Classes beyond the palette's length repeat its colours with another line.
LINES = ("-", "--", ":")
SPLIT_COLOURS = {"train": "#31506E", "validation": "#8DB4D6", "test": "#E69F00"}
INK, FAINT, GRID = "#1F2933", "#616E7C", "#E1E6EB"
#: The same on a contact sheet, where only greys and the classes' colours exist.
SHEET_INK, SHEET_FAINT = "#222222", "#6B6B6B"
#: Dots an inch of a chart: 9 inches wide make 1,440 dots, sharp on a dense screen.
DPI = 160
#: matplotlib brings this font along, so the same text has the same dots on every machine.
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.parse_math": False,  # a class may be called "$x$"
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9AA5B1",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "figure.facecolor": "white",
}
#: Most dots that all films of a contact sheet have together, so that the page stays light.
SHEET_DOTS = 700_000
#: Grey levels of a contact sheet's films: enough for the eye, and half the bytes of 256.
SHEET_GREYS = 112


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A picture of the report and the words that go with it."""

    file: str
    title: str
    #: Says what is to be seen, for those who do not see it; the numbers stand in the page's tables.
    alt: str
    #: One sentence on how to read it.
    reading: str
    #: Whether it shows films, whose greys no page may change.
    of_films: bool = False


PICTURES: Mapping[str, Picture] = {
    picture.file.removesuffix(".png"): picture
    for picture in (
        Picture(
            file="images_per_class.png",
            title="Films per class",
            alt="Bar chart: how many films each class has, each bar divided into training, validation, test.",
            reading="A short bar is a class of which little was seen: trust its figures less; read their intervals.",
        ),
        Picture(
            file="preview.png",
            title="A few films of each class",
            alt="Contact sheet: a row a class, a few training films in each, as the model sees them: 224 x 224, grey.",
            reading="Look for what a model could use instead of the lungs: letters, borders, cables, brightness, age.",
            of_films=True,
        ),
        Picture(
            file="curves.png",
            title="Loss and accuracy",
            alt="Two line charts over the epochs: loss and accuracy, training against validation, best epoch marked.",
            reading="Where training goes on getting better and validation does not, the model learns by heart; "
            "training is measured while films are changed and parts left out, so it may well lie below validation.",
        ),
        Picture(
            file="confusion.png",
            title="Confusion matrix",
            alt="Two matrices of true class against predicted class on the test films: counts, and shares of each row.",
            reading="A row is what a class's films were taken for: right answers on the diagonal, 100 % in each row.",
        ),
        Picture(
            file="per_class.png",
            title="Sensitivity, specificity and F1",
            alt="Dot chart: sensitivity, specificity and F1 of each class on the test films with their intervals.",
            reading="Two classes whose lines overlap widely were not told apart in quality by this many films.",
        ),
        Picture(
            file="roc.png",
            title="ROC curves",
            alt="ROC curves on the test films, one for each class against all others, and the diagonal of chance.",
            reading="The further into the upper left corner, the better a class is ranked; the diagonal is guessing.",
        ),
        Picture(
            file="precision_recall.png",
            title="Precision-recall curves",
            alt="Precision-recall curves on the test films, each class against all others, with its prevalence.",
            reading="A curve should lie far above its dotted line, the share of its class, which guessing reaches.",
        ),
        Picture(
            file="reliability.png",
            title="How sure, and how often right",
            alt="Two charts: the share of test films that are right against their score and against their calibrated "
            "probability, in bins with exact intervals, the diagonal of perfect calibration, and the films a bin.",
            reading="Dots below the diagonal: the model is too sure there; a bin with few films says little.",
        ),
        Picture(
            file="worst_mistakes.png",
            title="Worst mistakes",
            alt="Contact sheet: the test films that the model got wrong with the most confidence, true and said class.",
            reading="Look whether the film, the label or the model is wrong: all three happen.",
            of_films=True,
        ),
    )
}


def after_preprocess(run: RunDir) -> list[Path]:
    """Draw what is known after step 2.

    Returns:
        The files: ``images_per_class.png`` and ``preview.png``.
    """
    return [images_per_class(run), preview_grid(run)]


def after_test(run: RunDir) -> list[Path]:
    """Draw what is known after step 6.

    Returns:
        The files: curves, confusion matrix, figures per class, ROC, precision-recall, reliability, worst mistakes.
    """
    return [draw(run) for draw in (curves, confusion, per_class, roc, precision_recall, reliability, worst_mistakes)]


def class_colours(labels: Sequence[str]) -> dict[str, str]:
    """Colour of each class, by its place in the stored order."""
    return {label: PALETTE[k % len(PALETTE)] for k, label in enumerate(labels)}


def images_per_class(run: RunDir) -> Path:
    """Draw how many films each class has on each side of the split."""
    manifest = _manifest(run, "label", "split")
    labels = sorted(manifest["label"].unique())
    found = manifest.groupby(["label", "split"]).size().to_dict()
    counts = {side: [int(found.get((label, side), 0)) for label in labels] for side in SPLITS}
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    with _picture(run, "images_per_class", 9, 1.3 + 0.52 * len(labels)) as figure:
        axes = figure.subplots()
        left = [0] * len(labels)
        for side in SPLITS:
            axes.barh(range(len(labels)), counts[side], left=left, height=0.62, color=SPLIT_COLOURS[side], label=side)
            left = [a + b for a, b in zip(left, counts[side], strict=True)]
        for k, total in enumerate(totals):
            sides = " + ".join(f"{counts[side][k]:,}" for side in SPLITS)
            axes.annotate(f"{total:,}", (total, k), (6, 0), textcoords="offset points", va="bottom", weight="bold")
            axes.annotate(f"{sides}", (total, k), (6, -1), textcoords="offset points", va="top", size=7.5, color=FAINT)
        axes.set_yticks(range(len(labels)), [_short(label, 28) for label in labels], color=INK)
        axes.invert_yaxis()
        axes.set_xlim(0, max(totals) * 1.17)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("films")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper right", ncols=3)
    return _file(run, "images_per_class")


def preview_grid(run: RunDir) -> Path:
    """Draw a few films of each class: training films, in the order of their pixels' hash, copies left out."""
    manifest = _manifest(run, "label", "split", "pixels_sha256")
    labels = sorted(manifest["label"].unique())
    wide = 6 if len(labels) <= 6 else 8
    bands = []
    for label in labels:
        of_class = manifest[manifest["label"] == label]
        films = of_class[of_class["split"] == TRAIN]
        films = (films if len(films) else of_class).drop_duplicates("pixels_sha256").sort_values("pixels_sha256")
        cells = [_Cell(int(row)) for row in films.index[:wide]]
        bands.append(_Band(label, f"{len(of_class):,} films", label, cells))
    side = int(min(156, max(72, (SHEET_DOTS / (wide * len(labels))) ** 0.5)))
    return _sheet(run, "preview", bands, labels=labels, columns=wide, side=side)


def curves(run: RunDir) -> Path:
    """Draw loss and accuracy of every epoch, training and validation, with the best epoch marked."""
    import pandas as pd
    from matplotlib.ticker import MaxNLocator

    history = pd.read_csv(run.require(run.history, made_by="train"))
    best = best_epoch(run)
    with _picture(run, "curves", 9, 3.7) as figure:
        for axes, what in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for side, colour in (("train", PALETTE[0]), ("validation", PALETTE[1])):
                name = "training" if side == TRAIN else side
                few = {"marker": "o", "markersize": 3.5} if len(history) <= 40 else {}
                axes.plot(history["epoch"], history[f"{side}_{what}"], color=colour, label=name, linewidth=1.8, **few)
            at_best = history[history["epoch"] == best]
            if len(at_best):
                axes.axvline(best, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
                value = float(at_best[f"validation_{what}"].iloc[0])
                ring = {"markersize": 9, "markerfacecolor": "none", "markeredgecolor": INK}
                axes.plot([best], [value], "o", label=f"best epoch: {best}", **ring)
            axes.set_title(what.capitalize())
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.margins(x=0.04)
            if what == "loss":
                axes.set_ylim(bottom=0)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=3)
    return _file(run, "curves")


def best_epoch(run: RunDir) -> int | None:
    """The epoch that step 5 chose; None before it did."""
    for file in (run.validation, run.test):
        if file.exists() and isinstance(chosen := read_json(file).get("epoch"), int):
            return chosen
    return None


def confusion(run: RunDir) -> Path:
    """Draw the test films' confusion matrix, in counts and in shares of each row."""
    import numpy as np

    test = _test(run)
    labels, counts = test["labels"], np.array(test["confusion"], dtype=float)
    rows = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, rows, out=np.zeros_like(counts), where=rows > 0)
    few = len(labels) <= 7
    side = max(3.2, 0.55 * len(labels) + 1.2) if few else 0.42 * len(labels) + 2.6
    with _picture(run, "confusion", *((2 * side + 2.2, side + 0.9) if few else (side + 2.6, 2 * side + 1.0))) as figure:
        panels = figure.subplots(1, 2, sharey=True) if few else figure.subplots(2, 1)
        for axes, kind in zip(panels, ("films", "share of each row"), strict=True):
            axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
            for i, j in np.ndindex(*counts.shape):
                share = 100 * shares[i, j]
                digits = 0 if share >= 99.95 or share == 0 or not few else 1
                text = f"{counts[i, j]:,.0f}" if kind == "films" else (f"{share:.{digits}f} %" if rows[i, 0] else "–")
                if counts[i, j] == 0 and not few:
                    text = "·" if rows[i, 0] else "–"
                axes.text(
                    j, i, text, ha="center", va="center", size=10 if len(labels) <= 5 else 7.5,
                    color="white" if shares[i, j] > 0.55 else FAINT if counts[i, j] == 0 else INK,
                    weight="bold" if i == j else "normal",
                )  # fmt: skip
            names = [_short(label, 20) for label in labels]
            axes.set_xticks(range(len(labels)), names, color=INK, ha="right", rotation_mode="anchor", rotation=30)
            axes.set_yticks(range(len(labels)), names, color=INK)
            axes.set_title("Counts" if kind == "films" else "Shares of each row")
            axes.set_xlabel("predicted class")
            axes.set_ylabel("true class" if axes is panels[0] or not few else "")
            axes.tick_params(length=0)
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
    return _file(run, "confusion")


def roc(run: RunDir) -> Path:
    """Draw a ROC curve for each class against all others, with the area under it and its interval."""
    from sklearn.metrics import roc_curve

    def line(axes: Axes, truth: NDArray[Any], score: NDArray[Any], style: dict[str, Any]) -> Any:
        if not 0 < truth.sum() < len(truth):
            return axes.plot([], [], **style)[0]
        false, true, _ = roc_curve(truth, score, drop_intermediate=True)
        return axes.plot(false, true, **style)[0]

    with _picture(run, "roc", 9, 5) as figure:
        axes = _one_vs_rest(run, figure, "auroc", "AUROC", line)
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":", zorder=1)
        axes.text(0.63, 0.6, "chance", va="top", size=8, color=FAINT, rotation=45)
        axes.set_xlabel("1 − specificity: share of the other classes' films taken for it")
        axes.set_ylabel("sensitivity: share of the class's films found")
    return _file(run, "roc")


def precision_recall(run: RunDir) -> Path:
    """Draw a precision-recall curve for each class against all others, with its average precision and interval."""
    from sklearn.metrics import precision_recall_curve

    def line(axes: Axes, truth: NDArray[Any], score: NDArray[Any], style: dict[str, Any]) -> Any:
        if not truth.any():
            return axes.plot([], [], **style)[0]
        precision, recall, _ = precision_recall_curve(truth, score, drop_intermediate=True)
        axes.axhline(truth.mean(), color=style["color"], linewidth=0.9, linestyle=":", zorder=1)
        # Average precision is the area under this staircase, not under straight lines between its corners.
        return axes.step(recall, precision, where="post", **style)[0]

    with _picture(run, "precision_recall", 9, 5) as figure:
        axes = _one_vs_rest(run, figure, "average_precision", "AP", line)
        axes.set_xlabel("recall (sensitivity): share of the class's films found")
        axes.set_ylabel("precision: share of the films taken for it that are it")
    return _file(run, "precision_recall")


def reliability(run: RunDir) -> Path:
    """Draw how often films are right against how sure the model is, before and after calibration, with counts."""
    if (found := _test(run).get("calibration")) is None:
        raise UserError(
            f"{run.test}: must be of this version, found one without calibration",
            hint=f"run: vgg16-xray test {run.path}",
        )
    with _picture(run, "reliability", 9, 4.9) as figure:
        grid = figure.subplots(2, 2, sharex=True, height_ratios=(4, 1))
        for column, (side, title) in enumerate((("score", "Score"), ("probability", "Probability"))):
            bins = [row for row in found[side]["bins"] if row["films"]]
            axes, counts = grid[0][column], grid[1][column]
            axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=":", zorder=1)
            for row in bins:
                axes.plot(
                    [row["confidence"]] * 2, [row["right"]["low"], row["right"]["high"]], color=PALETTE[0], alpha=0.5
                )
            axes.plot([r["confidence"] for r in bins], [r["right"]["value"] for r in bins], "o", color=PALETTE[0])
            axes.set_ylim(0, 1.03)
            axes.set_xlim(0, 1)
            axes.set_title(f"{title}: ECE {found[side]['ece']['value']:.3f}")
            counts.bar(
                [row["from"] for row in bins],
                [row["films"] for row in bins],
                width=[row["to"] - row["from"] for row in bins],
                align="edge",
                color=PALETTE[6],
            )
            counts.set_yscale("log")
            counts.set_xlabel(f"largest {side} of a film")
            axes.set_ylabel("" if column else "share that is right")
            counts.set_ylabel("" if column else "films")
    return _file(run, "reliability")


def per_class(run: RunDir) -> Path:
    """Draw sensitivity, specificity and F1 of each class with their intervals."""
    test = _test(run)
    labels: list[str] = test["labels"]
    colours = class_colours(labels)
    names = {"sensitivity": "Sensitivity", "specificity": "Specificity", "f1": "F1"}
    figures = [test["per_class"][label][name] for name in names for label in labels]
    lowest = min((x for f in figures for x in (f["value"], f["low"]) if x is not None), default=0.0)
    with _picture(run, "per_class", 9, 1.3 + 0.36 * len(labels)) as figure:
        for axes, (name, title) in zip(figure.subplots(1, 3, sharey=True), names.items(), strict=True):
            for k, label in enumerate(labels):
                found = test["per_class"][label][name]
                if found["value"] is None:
                    axes.annotate("not defined", (1, k), va="center", ha="right", size=8, color=FAINT)
                    continue
                if has_interval(found):
                    axes.plot([found["low"], found["high"]], [k, k], color=colours[label], linewidth=2.4, alpha=0.55)
                axes.plot([found["value"]], [k], "o", color=colours[label], markersize=6.5)
            axes.set_title(title)
            axes.set_xlim(max(0.0, lowest - 0.04), 1.01)
            axes.set_ylim(len(labels) - 0.4, -0.6)
            axes.set_yticks(range(len(labels)), [_short(label, 24) for label in labels], color=INK)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
    return _file(run, "per_class")


def worst_mistakes(run: RunDir) -> Path:
    """Draw the test films that the model got wrong with the most confidence."""
    manifest = _manifest(run, "path", "collection")
    predictions = read_predictions(run)
    labels: list[str] = _test(run)["labels"]
    wrong = predictions[(predictions["split"] == TEST) & (predictions["prediction"] != predictions["label"])]
    wrong = wrong.sort_values(["confidence", "collection", "path"], ascending=[False, True, True]).head(15)
    row_of = {key: i for i, key in enumerate(zip(manifest["collection"], manifest["path"], strict=True))}
    cells = []
    for film in wrong.itertuples():
        key = (film.collection, film.path)
        if key not in row_of:
            raise UserError(f"{run.predictions}: must name films of {run.manifest.name}, found {film.path}")
        cells.append(
            _Cell(
                row_of[key],
                ((f"true: {film.label}", str(film.label)), (f"said: {film.prediction}", str(film.prediction))),
                f"{100 * float(film.confidence):.1f} %  {Path(str(film.path)).name}",  # type: ignore[arg-type]
            )
        )
    title = f"The {len(cells)} most confident mistakes on the test films" if cells else "No mistakes on the test films"
    bands = [_Band(title, RESEARCH_USE_ONLY, None, cells[i : i + 5]) for i in range(0, max(1, len(cells)), 5)]
    return _sheet(run, "worst_mistakes", bands, labels=labels, columns=5, side=184)


def has_interval(figure: Mapping[str, float | None]) -> bool:
    """Whether a figure has an interval worth showing: equal bounds mean that the bootstrap saw no spread."""
    return figure.get("low") is not None and figure.get("low") != figure.get("high")


# -- files in


def _manifest(run: RunDir, *columns: str) -> pd.DataFrame:
    import pandas as pd

    return pd.read_parquet(run.require(run.manifest, made_by="preprocess"), columns=list(columns))


def read_predictions(run: RunDir) -> pd.DataFrame:
    """predictions.csv with names as they are written: a class may be called NA or 007."""
    import pandas as pd

    texts = dict.fromkeys(("path", "collection", "label", "split", "patient_id", "source", "prediction"), str)
    file = run.require(run.predictions, made_by="test")
    return pd.read_csv(file, dtype=texts, keep_default_na=False, na_values={"confidence": [""]})


def _test(run: RunDir) -> dict[str, Any]:
    return dict(read_json(run.require(run.test, made_by="test")))


def _file(run: RunDir, name: str) -> Path:
    return run.figures / PICTURES[name].file


# -- charts


@contextmanager
def _picture(run: RunDir, name: str, width: float, height: float) -> Iterator[Figure]:
    """Yield an empty figure (inches); write it when the block ends."""
    import warnings

    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a class in a script that the font lacks is drawn as boxes
        matplotlib.rcdefaults()  # the user's own matplotlibrc must not change the bytes
        matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        yield figure
        with whole_file(_file(run, name)) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None}, pil_kwargs={"optimize": True})


def _one_vs_rest(
    run: RunDir,
    figure: Figure,
    key: str,
    short: str,
    line: Callable[[Axes, NDArray[Any], NDArray[Any], dict[str, Any]], Any],
) -> Axes:
    """Draw a curve for each class on the test films, and a legend with the figure `key` and its interval."""
    test = _test(run)
    predictions = read_predictions(run)
    predictions = predictions[predictions["split"] == TEST]
    labels: list[str] = test["labels"]
    colours = class_colours(labels)
    axes = figure.subplots()
    lines, texts = [], []
    for k, label in enumerate(labels):
        if f"p_{label}" not in predictions:
            raise UserError(f"{run.predictions}: must have a column 'p_{label}', found none")
        style = {"color": colours[label], "linestyle": LINES[k // len(PALETTE) % len(LINES)], "linewidth": 1.9}
        truth = (predictions["label"] == label).to_numpy()
        lines.append(line(axes, truth, predictions[f"p_{label}"].to_numpy(dtype=float), style))
        found = test["per_class"][label][key]
        value = f"{short} {found['value']:.3f}" if found["value"] is not None else f"{short} not defined"
        bounds = f"  ({found['low']:.3f}–{found['high']:.3f})" if has_interval(found) else ""
        texts.append(f"{_short(label, 30)}\n{value}{bounds}")
    legend = figure.legend(
        lines,
        [f"class {k}" for k in range(len(labels))],  # a label that begins with _ would be dropped
        loc="outside right center",
        labelspacing=0.9 if len(labels) <= 8 else 0.35,
        title=f"{round(100 * test['intervals']['level'])} % intervals",
        alignment="left",
    )
    for text, label in zip(legend.get_texts(), texts, strict=True):
        text.set_text(label)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.02)
    axes.set_aspect("equal")
    return axes


def _short(text: str, most: int) -> str:
    """Text on one line of at most `most` signs, its middle left out: both ends of a film's name tell films apart."""
    text = " ".join(text.split())
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - half]}…{text[-half:]}"


# -- contact sheets, put together dot by dot: a film is shown at its own dots, not interpolated twice


@dataclass(frozen=True)
class _Cell:
    """A film, the class of each line below it, and a last line."""

    row: int
    lines: tuple[tuple[str, str], ...] = ()
    note: str = ""


@dataclass(frozen=True)
class _Band:
    """A row of films under a heading."""

    heading: str
    aside: str
    label: str | None
    cells: list[_Cell]


def font(size: int, *, bold: bool = False) -> FreeTypeFont:
    """DejaVu Sans, as matplotlib brings it along."""
    import matplotlib
    from PIL import ImageFont

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf"
    return ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)


def fit(of: FreeTypeFont, text: str, width: int) -> str:
    """The text, its middle left out until it is at most `width` dots wide."""
    most = len(text)
    while most > 3 and of.getlength(_short(text, most)) > width:
        most -= 1
    return _short(text, max(3, most))


def _sheet(run: RunDir, name: str, bands: list[_Band], *, labels: Sequence[str], columns: int, side: int) -> Path:
    """Draw bands of films and write them as a palette image: greys, and the classes' colours."""
    import numpy as np
    from PIL import Image, ImageDraw

    pixels = np.load(run.require(run.pixels, made_by="preprocess"), mmap_mode="r", allow_pickle=False)
    colours = class_colours(labels)
    small, bold = font(12), font(14, bold=True)
    gap, line = 8, 17
    lines = max((len(cell.lines) + bool(cell.note) for band in bands for cell in band.cells), default=0)
    cell_high = side + lines * line + (10 if lines else 0)
    # Bands that go on under the same heading show it once.
    headed = [i == 0 or band.heading != bands[i - 1].heading for i, band in enumerate(bands)]
    width = columns * (side + gap) + gap
    height = gap + sum((26 if head else 0) + cell_high + gap for head in headed)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    top = gap
    for band, head in zip(bands, headed, strict=True):
        if head:
            left = gap
            if band.label is not None:
                draw.rectangle((left, top + 3, left + 11, top + 14), fill=colours[band.label])
                left += 19
            aside = fit(small, band.aside, width // 2)
            heading = fit(bold, band.heading, int(width - left - small.getlength(aside) - 2 * gap))
            draw.text((left, top), heading, font=bold, fill=SHEET_INK)
            draw.text((left + bold.getlength(heading) + 10, top + 2), aside, font=small, fill=SHEET_FAINT)
            top += 26
        for k, cell in enumerate(band.cells):
            left = gap + k * (side + gap)
            film = Image.fromarray(np.array(pixels[cell.row])).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(film, (left, top))
            below = top + side + 5
            for text, label in cell.lines:
                draw.rectangle((left, below + 3, left + 8, below + 11), fill=colours.get(label, SHEET_FAINT))
                draw.text((left + 13, below), fit(small, text, side - 13), font=small, fill=SHEET_INK)
                below += line
            if cell.note:
                draw.text((left, below), fit(small, cell.note, side), font=small, fill=SHEET_FAINT)
        top += cell_high + gap
    with whole_file(_file(run, name)) as temporary:
        _few_colours(sheet, [colours[label] for label in labels]).save(temporary, format="PNG", optimize=True)
    return _file(run, name)


def _few_colours(sheet: Image, colours: Sequence[str]) -> Image:
    """The sheet with a palette of greys and the given colours, which are all that it holds besides greys."""
    import numpy as np
    from PIL import Image, ImageColor

    dots = np.asarray(sheet).astype(np.int32)
    index = (dots[..., 0] * (SHEET_GREYS - 1) + 127) // 255
    palette = [value for k in range(SHEET_GREYS) for value in [round(k * 255 / (SHEET_GREYS - 1))] * 3]
    for k, colour in enumerate(dict.fromkeys(colours)):
        red, green, blue = ImageColor.getrgb(colour)[:3]
        if not red == green == blue:
            index[(dots == (red, green, blue)).all(axis=2)] = SHEET_GREYS + k
        palette += [red, green, blue]
    few = Image.fromarray(index.astype(np.uint8), "P")
    few.putpalette(palette)
    return few
