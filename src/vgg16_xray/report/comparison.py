"""A comparison of runs, told to people: a table in the terminal, and one self-contained page with one picture.

The page asks the network for nothing and runs no script. Names of runs and classes are escaped by the template engine.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg16_xray import RESEARCH_USE_ONLY, __version__
from vgg16_xray.files import write_json, write_text
from vgg16_xray.report.figures import DPI, FAINT, GRID, INK, PALETTE, STYLE, has_interval
from vgg16_xray.report.inline import inlined
from vgg16_xray.report.page import OVERALL_MEANINGS, OVERALL_NAMES, PER_CLASS_NAMES, template
from vgg16_xray.report.terminal import console, figure, signed_number
from vgg16_xray.rundir import ComparisonDir
from vgg16_xray.trust.compare import BETTER, CLASS_FIGURES, FIGURES, LESS_IS_BETTER, NOT_SHOWN, WORSE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("table", "json")


def as_json(found: Mapping[str, Any]) -> str:
    """What :func:`vgg16_xray.trust.compare.compare` found, as one JSON object."""
    return json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def say_compared(found: Mapping[str, Any]) -> None:
    """A table for each run but the first, which films were paired, and what the figures do not say."""
    from rich.table import Table

    out = console()
    films = found["films"]
    out.print(f"compare: {_paired_words(found)}")
    for entry in films["left_out"]:
        out.print(f"left out{' (leak)' if entry['leak'] else ''}: {_left_out_words(entry)}")
    level = _percents(found["intervals"]["level"])
    first = found["runs"][0]
    for run, comparison in zip(found["runs"][1:], found["comparisons"], strict=True):
        title = f"{run['name']} against {first['name']}: {films['paired']:,} films, {level} intervals"
        table = Table(title=title, title_justify="left")
        table.add_column("figure")
        for column in (first["name"], run["name"], "difference"):
            table.add_column(column, justify="right")
        table.add_column("verdict")
        for label, name, of_run in rows_of(comparison):
            table.add_row(
                name_of(label, name),
                figure(entry_of(first, label, name)),
                figure(entry_of(run, label, name)),
                difference_of(of_run),
                verdict_of(of_run),
                end_section=name == "log_loss",
            )
        out.print(table)
        out.print(mcnemar_words(comparison))
    for note in found["notes"]:
        out.print(f"note: {note}")
    out.print(RESEARCH_USE_ONLY)


def write_comparison(found: Mapping[str, Any], out: ComparisonDir) -> Path:
    """Write the page and the numbers.

    Args:
        found: See :func:`vgg16_xray.trust.compare.compare`.
        out: Its folder is made if missing.

    Returns:
        The page.

    Raises:
        UserError: The folder cannot be written.
    """
    from markupsafe import Markup

    filters: dict[str, Callable[..., str]] = {
        "difference": lambda entry: "–" if entry["difference"] is None else signed_number(entry["difference"]),
        "bounds": _bounds,
        "p": _p,
    }
    picture = forest(found)
    page = template("comparison.html.j2", filters).render(
        found=found,
        first=found["runs"][0],
        compared=[
            {
                "run": run,
                "comparison": comparison,
                "summary": _summary(comparison),
                "rows": [_row(found["runs"][0], run, *row) for row in rows_of(comparison)],
                "mcnemar": mcnemar_words(comparison),
            }
            for run, comparison in zip(found["runs"][1:], found["comparisons"], strict=True)
        ],
        paired=_paired_words(found),
        left_out=[(entry["leak"], _left_out_words(entry)) for entry in found["films"]["left_out"]],
        overall_names={name: OVERALL_NAMES[name] for name in FIGURES},
        level=_percents(found["intervals"]["level"]),
        # The package's own style sheet, and nothing else, is not escaped.
        css=Markup((Path(__file__).parent / "templates" / "report.css").read_text("utf-8")),
        picture=inlined(picture),
        numbers=out.numbers.name,
        package_version=__version__,
        research_use_only=RESEARCH_USE_ONLY,
    )
    write_json(out.numbers, dict(found))
    write_text(out.page, page)
    return out.page


def forest(found: Mapping[str, Any]) -> bytes:
    """Draw every difference to the first run with its interval; right of the line is better.

    Returns:
        A PNG; the same comparison gives the same bytes.
    """
    import warnings

    import matplotlib
    from matplotlib.figure import Figure

    runs = [comparison["run"] for comparison in found["comparisons"]]
    rows = [(label, name) for label, name, _ in rows_of(found["comparisons"][0]) if name not in LESS_IS_BETTER]
    turned = [(None, name) for name in FIGURES if name in LESS_IS_BETTER]
    high = 0.16 + 0.17 * max(1, len(runs))  # inches a row
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # a name in a script that the font lacks is drawn as boxes
        matplotlib.rcdefaults()  # the user's own matplotlibrc must not change the bytes
        matplotlib.rcParams.update(STYLE)  # type: ignore[arg-type]
        drawing = Figure(figsize=(9, 2.1 + high * (len(rows) + len(turned))), dpi=DPI, layout="constrained")
        upper, lower = drawing.subplots(2, 1, height_ratios=[len(rows) + 0.6, len(turned) + 0.6])
        _forest(upper, found, rows)
        _forest(lower, found, turned)
        lower.invert_xaxis()
        upper.set_title(f"Difference to {_short(found['runs'][0]['name'], 50)}")
        upper.set_xlabel("difference; right of the line is better")
        lower.set_xlabel("difference, axis turned round: less is better")
        handles = [
            upper.plot([], [], "o", color=PALETTE[i % len(PALETTE)], markersize=6.5)[0] for i in range(len(runs))
        ]
        handles.append(upper.plot([], [], "o", color=FAINT, markerfacecolor="white", markersize=6.5)[0])
        legend = drawing.legend(handles, [f"run {i}" for i in range(len(handles))], loc="outside upper right", ncols=3)
        for text, name in zip(legend.get_texts(), [*runs, NOT_SHOWN], strict=True):
            text.set_text(_short(name, 26))  # set here: a label that begins with _ would be dropped
        target = io.BytesIO()
        drawing.savefig(target, format="png", dpi=DPI, metadata={"Software": None}, pil_kwargs={"optimize": True})
    return target.getvalue()


def _forest(axes: Axes, found: Mapping[str, Any], rows: Sequence[tuple[str | None, str]]) -> None:
    several = len(found["comparisons"])
    for k, (label, name) in enumerate(rows):
        for i, comparison in enumerate(found["comparisons"]):
            entry = entry_of(comparison, label, name)
            height = k + (i - (several - 1) / 2) * 0.5 / max(1, several - 1)
            colour = PALETTE[i % len(PALETTE)]
            if entry["difference"] is None:
                continue
            if has_interval(entry):
                axes.plot([entry["low"], entry["high"]], [height, height], color=colour, linewidth=2.4, alpha=0.55)
            fill = "white" if entry["verdict"] == NOT_SHOWN else colour
            axes.plot([entry["difference"]], [height], "o", color=colour, markerfacecolor=fill, markersize=6.5)
    for k in range(1, len(rows)):
        axes.axhline(k - 0.5, color=GRID, linewidth=0.8, zorder=1)
    axes.axvline(0, color=INK, linewidth=1.1, zorder=1)
    axes.margins(x=0.06)
    bounds = axes.get_xlim()
    axes.set_xlim(min(bounds[0], -0.01), max(bounds[1], 0.01))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [_short(name_of(label, name), 36) for label, name in rows], color=INK)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


# -- words and numbers


def _short(text: str, most: int) -> str:
    """Text on one line of at most `most` signs, its middle left out."""
    text = " ".join(text.split())
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[: most - 1 - half]}…{text[-half:]}"


def rows_of(comparison: Mapping[str, Any]) -> Iterator[tuple[str | None, str, Mapping[str, Any]]]:
    """(class or None, figure, its entry): the overall figures, then those of each class."""
    for name in FIGURES:
        yield None, name, comparison["overall"][name]
    for name in CLASS_FIGURES:
        for label, figures in comparison["per_class"].items():
            yield label, name, figures[name]


def entry_of(holder: Mapping[str, Any], label: str | None, name: str) -> Mapping[str, Any]:
    """A figure of a run or of a comparison: an overall one where `label` is None, else that of the class."""
    found: Mapping[str, Any] = (holder["overall"] if label is None else holder["per_class"][label])[name]
    return found


def name_of(label: str | None, name: str) -> str:
    """What a figure is called: ``Macro F1``, ``Sensitivity, COVID``."""
    return OVERALL_NAMES[name] if label is None else f"{PER_CLASS_NAMES[name]}, {label}"


def _row(
    first: Mapping[str, Any], run: Mapping[str, Any], label: str | None, name: str, entry: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "label": label,
        "name": name_of(label, name),
        "meaning": OVERALL_MEANINGS[name] if label is None else "",
        "first": entry_of(first, label, name),
        "this": entry_of(run, label, name),
        "entry": entry,
        "verdict": entry["verdict"],
        "why": entry["why"],
    }


def _bounds(entry: Mapping[str, Any]) -> str:
    return f"{signed_number(entry['low'])} to {signed_number(entry['high'])}" if has_interval(entry) else ""


def difference_of(entry: Mapping[str, Any]) -> str:
    """``+0.012 (+0.003 to +0.021)``, or a dash where there is none."""
    if entry["difference"] is None:
        return "–"
    return signed_number(entry["difference"]) + (f" ({bounds})" if (bounds := _bounds(entry)) else "")


def verdict_of(entry: Mapping[str, Any]) -> str:
    """The verdict, and what speaks against the interval."""
    return f"{entry['verdict']} ({entry['why']})" if entry["why"] else str(entry["verdict"])


def _p(value: float | None) -> str:
    """A p-value as it is written: two digits, never 0."""
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def _percents(level: float) -> str:
    return f"{100 * level:g} %"


def _paired_words(found: Mapping[str, Any]) -> str:
    """How many films, which, and how many not."""
    films = found["films"]
    left_out = sum(entry["films"] for entry in films["left_out"])
    single = [run["name"] for run in found["runs"] if not run["folds"]]
    of_folds = [f"{run['name']} ({run['folds']} folds)" for run in found["runs"] if run["folds"]]
    which = f"; test films of {', '.join(single)}" if single and of_folds else ""
    which += f"; each predicted by a model that never saw it in {', '.join(of_folds)}" if of_folds else ""
    return (
        f"{films['paired']:,} {'films' if of_folds else 'test films'} in {films['groups']:,} groups are paired by "
        f"their pixels{which}{';' if which else ','} {f'{left_out:,} are left out' if left_out else 'none is left out'}"
    )


def _left_out_words(entry: Mapping[str, Any]) -> str:
    return f"{entry['films']:,} {entry['reason']}, the first {entry['first']}"


def mcnemar_words(comparison: Mapping[str, Any]) -> str:
    """The exact test of McNemar on the accuracy, in a sentence."""
    exact = comparison["overall"]["accuracy"]["mcnemar"]
    corrected = f", {_p(exact['p_holm'])} after Holm's correction" if exact["p_holm"] != exact["p"] else ""
    return (
        f"accuracy: {exact['only_this']:,} films are right in {comparison['run']} alone, {exact['only_first']:,} in "
        f"{comparison['against']} alone; McNemar's exact test, which takes films for independent: "
        f"p {_equals(exact['p'])}{corrected}"
    )


def _equals(p: float) -> str:
    text = _p(p)
    return text if text.startswith("<") else f"= {text}"


def _summary(comparison: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(verdict, figures) in the order better, worse, no difference shown; without empty ones."""
    found: dict[str, list[str]] = {BETTER: [], WORSE: [], NOT_SHOWN: []}
    for label, name, entry in rows_of(comparison):
        found[entry["verdict"]].append(name_of(label, name))
    return [(verdict, names) for verdict, names in found.items() if names]
