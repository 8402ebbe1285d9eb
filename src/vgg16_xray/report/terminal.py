"""What the steps found, said in a few lines on standard output."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from vgg16_xray import RESEARCH_USE_ONLY
from vgg16_xray.errors import visible
from vgg16_xray.films.split import SPLITS, TEST
from vgg16_xray.progress import clock
from vgg16_xray.rundir import FoldsDir, read_config

if TYPE_CHECKING:
    from vgg16_xray.bundle.classify import Prediction
    from vgg16_xray.bundle.export import Exported
    from vgg16_xray.learn.engines import Engine
    from vgg16_xray.learn.vgg16 import Layer
    from vgg16_xray.rundir import RunDir
    from vgg16_xray.steps.download import Downloaded
    from vgg16_xray.steps.initialise import Initialised
    from vgg16_xray.steps.preprocess import Preprocessed
    from vgg16_xray.steps.train import Trained

#: Columns of a table that goes into a file or a pipe.
WIDTH = 160


def console() -> Console:
    """Standard output as it is now: colours only on a terminal, and elsewhere no line broken for want of width."""
    return _console(soft_wrap=True, width=None if sys.stdout.isatty() else WIDTH)


def _console(**options: Any) -> Console:
    # A class, a folder or a film may be called "[b]" or ":lung:"; it is shown as it is called.
    return Console(highlight=False, markup=False, emoji=False, **options)


def say_preprocessed(done: Preprocessed, run: RunDir) -> None:
    """Films by class and side, and what was left out."""
    again = " (done before)" if done.already_done else ""
    table = Table(title=f"preprocess{again}: {done.films:,} films", title_justify="left")
    table.add_column("class")
    for side in SPLITS:
        table.add_column(side, justify="right")
    for label in sorted({label for label, _ in done.counts}):
        table.add_row(label, *(f"{done.counts.get((label, side), 0):,}" for side in SPLITS))
    console().print(table)
    say_of_data(run)


def say_of_data(run: RunDir, *, unused: bool = True) -> None:
    """What step 2 noted of the data: tables that were not used (where `unused`), copies, files that were left out."""
    data = read_config(run)["data"]
    for note in (*(data.get("unused", ()) if unused else ()), *data.get("notes", ())):
        console().print(f"note: {note}")
    if data.get("quarantined"):
        console().print(f"{data['quarantined']:,} files left out, with the reasons in {run.quarantine}")


def say_initialised(done: Initialised, *, layers: bool = False) -> None:
    """The network in a line, or its whole layer table."""
    if layers:
        from vgg16_xray.learn.vgg16 import published_parameters

        table = Table(title="layers", title_justify="left")
        for column, justify in (("layer", "left"), ("kind", "left"), ("output", "left"), ("parameters", "right")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        table.add_column("trainable")
        for layer in done.layers:
            table.add_row(
                layer.name,
                layer.kind,
                " x ".join(map(str, layer.shape)),
                f"{layer.parameters:,}" if layer.parameters else "",
                "yes" if layer.trainable else "",
            )
        console().print(table)
        console().print(f"as published, with the head vgg and 1000 classes: {published_parameters():,} parameters")
    console().print(
        f"initialise: recipe {done.recipe.name}; {parameters(done.layers, base=True):,} parameters in the base, "
        f"{parameters(done.layers):,} in all, {parameters(done.layers, trainable=True):,} trainable"
    )
    console().print(f"weights: {done.weights}")
    _say_engine(done.engine, all_raced=layers)
    console().print(f"device: {done.device.name}, {done.device.reason}")
    for note in done.notes:
        console().print(f"note: {note}")


def _say_engine(engine: Engine, *, all_raced: bool) -> None:
    measured = ""
    if engine.films_per_second is not None and engine.error is not None:
        measured = f"; {engine.films_per_second:.1f} films a second, error against float32 {engine.error:.1e}"
    console().print(f"engine: {engine.name}, {engine.reason}{measured}")
    for line in engine.raced if all_raced else ():
        console().print(f"  {line}")


def parameters(layers: tuple[Layer, ...], *, base: bool = False, trainable: bool = False) -> int:
    """Number of parameters, in the base alone, or of those that are trained."""
    return sum(
        layer.parameters
        for layer in layers
        if (layer.name.startswith("features.") or not base) and (layer.trainable or not trainable)
    )


def say_trained(done: Trained, run: RunDir) -> None:
    """Only that it was done before; epochs say themselves while they run."""
    if done.already_done:
        console().print(f"train (done before): {len(done.history)} epochs, see {run.history}")


def say_measured(what: str, measured: Mapping[str, Any], *, table: bool = True) -> None:
    """Figures with their intervals, and for the test a table of the classes, where it is wanted."""
    overall = measured["overall"]
    console().print(
        f"{what}: {measured['images']:,} films, epoch {measured['epoch']}; accuracy {figure(overall['accuracy'])}, "
        f"balanced accuracy {figure(overall['balanced_accuracy'])}, macro-F1 {figure(overall['macro_f1'])}, "
        f"macro AUROC {figure(overall['macro_auroc'])}"
    )
    if what == "test" and table:
        _say_classes("test films, 95 % intervals", measured)
        calibration = measured["calibration"]
        _say_calibration(calibration, f"temperature {calibration['temperature']:.3f}")
        console().print(RESEARCH_USE_ONLY)


def _say_calibration(calibration: Mapping[str, Any], by: str) -> None:
    before, after, sets = calibration["score"], calibration["probability"], calibration["conformal"][0]
    console().print(
        f"calibrated with {by}: ECE {figure(before['ece'])} before, "
        f"{figure(after['ece'])} after ({after['ece_by_chance']['mean']:.3f} by chance alone); sets of "
        f"{figure(sets['size'])} classes hold the truth for {figure(sets['coverage'])}, "
        f"promised {1 - sets['alpha']:g}"
    )


def _say_classes(title: str, measured: Mapping[str, Any]) -> None:
    table = Table(title=title, title_justify="left")
    names = ("sensitivity", "specificity", "precision", "f1", "auroc")
    for column in ("class", "films", *names):
        table.add_column(column, justify="left" if column == "class" else "right")
    for label, values in measured["per_class"].items():
        table.add_row(label, str(values["support"]), *(figure(values[name]) for name in names))
    console().print(table)


def say_folds(found: Mapping[str, Any], run: RunDir) -> None:
    """A row a fold, their mean, and all films together, each predicted by the model that never saw it."""
    names = {
        "accuracy": "accuracy",
        "balanced_accuracy": "balanced accuracy",
        "macro_f1": "macro-F1",
        "macro_auroc": "macro AUROC",
    }
    pooled, over = found["pooled"], found["over_folds"]
    table = Table(title=f"{found['folds']} folds, 95 % intervals", title_justify="left")
    for column in ("fold", "films", "epoch", *names.values()):
        table.add_column(column, justify="left" if column == "fold" else "right")
    for fold in found["each"]:
        figures = (figure(fold["overall"][name]) for name in names)
        table.add_row(str(fold["fold"]), f"{fold['films'][TEST]:,}", str(fold["epoch"]), *figures)
    table.add_section()
    table.add_row("mean", "", "", *(figure({**over[name], "value": over[name]["mean"]}) for name in names))
    table.add_row("sd", "", "", *("–" if over[name]["sd"] is None else f"{over[name]['sd']:.3f}" for name in names))
    table.add_row("pooled", f"{pooled['images']:,}", "", *(figure(pooled["overall"][name]) for name in names))
    console().print(table)
    _say_classes("all films, each predicted by the model that never saw it, 95 % intervals", pooled)
    _say_calibration(pooled["calibration"], "a temperature a fold")
    of_class = zip(pooled["labels"], pooled["calibration"]["conformal"][0]["per_class"], strict=True)
    console().print("of each class: " + ", ".join(f"{label} {figure(held)}" for label, held in of_class if held))
    if found["seeds"]:
        _say_spread(found["seeds"], "the folds")
    for note in found["notes"]:
        console().print(f"note: {note}")
    console().print(f"figures: {FoldsDir(run.path).numbers}; predictions: {FoldsDir(run.path).table}")
    console().print(RESEARCH_USE_ONLY)


def say_seeds(found: Mapping[str, Any], run: RunDir) -> None:
    """How far the training's seed alone moves the test figures."""
    _say_spread(found["spread"], "the split")
    console().print(f"figures: {FoldsDir(run.path).seeds}")


def _say_spread(spread: Mapping[str, Any], same: str) -> None:
    seeds = spread["training_seeds"]
    parts = [
        f"{name} {spread[key]['mean']:.3f}, sd {spread[key]['sd']:.3f}, from {spread[key]['min']:.3f} to "
        f"{spread[key]['max']:.3f}"
        for name, key in (("accuracy", "accuracy"), ("macro-F1", "macro_f1"))
    ]
    console().print(f"{len(seeds)} training seeds ({', '.join(map(str, seeds))}), {same} the same: {'; '.join(parts)}")


def figure(value: Mapping[str, float | None]) -> str:
    """``0.913 (0.894-0.931)``; without the interval where there is none, a dash where there is no figure."""
    if value["value"] is None:
        return "–"
    if value["low"] is None or value["high"] is None or value["low"] == value["high"]:
        return f"{value['value']:.3f}"
    return f"{value['value']:.3f} ({value['low']:.3f}–{value['high']:.3f})"


def counted(number: int, noun: str) -> str:
    """``1 film``, ``2 films``, ``1,200 films``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def signed_number(value: float) -> str:
    """``+0.012``, ``−0.003``, ``0.000``."""
    text = f"{abs(value):.3f}"
    return text if float(text) == 0 else f"{'+' if value > 0 else '−'}{text}"


def signed(difference: Mapping[str, float | None]) -> str:
    """``−0.120 (−0.160 to −0.080)``."""
    if difference["value"] is None:
        return "not defined"
    low, high = difference["low"], difference["high"]
    bounds = "" if low is None or high is None else f" ({signed_number(low)} to {signed_number(high)})"
    return f"{signed_number(difference['value'])}{bounds}"


def say_downloaded(done: Downloaded) -> None:
    """Where the dataset lies, how it came, and how many films it has."""
    counts = ", ".join(f"{label} {count:,}" for label, count in done.counts.items())
    console().print(
        f"download: {done.folder} ({done.came}{f', version {done.version}' if done.version else ''}): {counts}"
    )
    for warning in done.warnings:
        console().print(f"warning: {warning}")


def say_exported(done: Exported) -> None:
    """What int8 costs, and where the bundle lies."""
    found = done.config.figures["int8_against_float32"]
    console().print(
        f"int8 against float32 on {found['films']:,} validation films: same answer for {found['agreement']:.1%}, "
        f"macro-F1 {found['macro_f1']['int8']:.3f} against {found['macro_f1']['float32']:.3f}, "
        f"a probability differs by at most {found['worst_probability_difference']:.3f}"
    )
    sizes = ", ".join(f"{name} {file.stat().st_size / 1e6:.0f} MB" for name, file in done.bundle.graphs().items())
    console().print(f"bundle: {done.bundle.path} ({sizes}), in {clock(done.seconds)}")


def predictions_as_text(predictions: Sequence[Prediction], *, labels: Sequence[str], colours: bool) -> str:
    """A table for people, in which a name gives the terminal no orders.

    Where the probabilities of all classes would take more than half of the width, the predicted one's stands alone.

    Args:
        predictions: The answers, in their order.
        labels: (K,) the classes, a column of probabilities each.
        colours: Whether colours are wanted where the terminal has them.
    """
    on_terminal = colours and sys.stdout.isatty()
    text = io.StringIO()
    out = _console(file=text, force_terminal=on_terminal, no_color=not colours, width=None if on_terminal else WIDTH)
    columns = [visible(label) for label in labels]
    all_fit = sum(cell_len(label) + 3 for label in columns) <= out.width // 2
    table = Table(title=RESEARCH_USE_ONLY, title_justify="left", caption_justify="left")
    table.add_column("film", overflow="fold")
    table.add_column("prediction", overflow="fold")
    for label in columns if all_fit else ["probability"]:
        table.add_column(label, justify="right", no_wrap=True)
    if reasons := any(row.reason for row in predictions):
        table.add_column("reason", overflow="fold")
    for row in predictions:
        values = row.probabilities.values() if all_fit else [row.confidence] if row.confidence is not None else []
        p = [f"{value:.3f}" for value in values] or ["–"] * (len(columns) if all_fit else 1)
        table.add_row(visible(row.path), visible(_said(row)), *p, *([visible(row.reason)] if reasons else []))
    if not all_fit:
        table.caption = "all probabilities: --format csv or json"
    out.print(table)
    return text.getvalue()


def _said(row: Prediction) -> str:
    if row.prediction is None:
        return row.answer
    # What is no film is of no class.
    others = () if row.answer == "refused" else (label for label in row.set or () if label != row.prediction)
    said = " or ".join([row.prediction, *others])
    return said if row.answer == "answered" else f"({said}) {row.answer}"
