"""Copy what runs found, without any film, into docs/results, compare them, and write the tables of all runs there.

python scripts/collect_results.py RUN [RUN ...]     each into docs/results/<recipe> or <recipe>-<K>-folds; two or more
                                                    are compared with the first, and those of folds among themselves
python scripts/collect_results.py                   the tables alone, from what lies in docs/results
"""

from __future__ import annotations

import csv
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vgg16_xray.errors import UserError
from vgg16_xray.files import read_json, write_json, write_text
from vgg16_xray.progress import clock
from vgg16_xray.report import comparison as words
from vgg16_xray.report import figures
from vgg16_xray.report.page import OVERALL_NAMES
from vgg16_xray.report.terminal import figure
from vgg16_xray.rundir import FoldsDir, RunDir, read_config
from vgg16_xray.trust.compare import compare

RESULTS = Path(__file__).parents[1] / "docs" / "results"
#: Figures that show no film: films of others are not ours to publish.
OF_TEST = ("confusion", "per_class", "roc", "precision_recall")
OF_TRAINING = ("images_per_class", "curves")
SHOWN = {
    "curves": "Loss and accuracy",
    "confusion": "Confusion matrix",
    "roc": "ROC curves",
    "precision_recall": "Precision-recall curves",
}
#: Runs of folds among themselves are compared on many more films than a single run has for its test.
COMPARISONS = ("comparison.json", "comparison-folds.json")
HEADLINE = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc")
INTRODUCTION = """\
Written by `python scripts/collect_results.py`. In brackets: 95 % intervals (percentile bootstrap over groups, 1,000
replicates). **Research use only. Not a medical device.**"""
FILMS = """\
The films: 9,143 frontal radiographs in the tree of the COVID-19 Radiography Database, whose classes come from different
hospitals and ages. A figure here says how well films of the *same* collections are told apart; how much of that is
disease and how much is the hospital, it cannot say. No film is shown here: they are not ours to publish.

*Out of fold*: every film is predicted by the one of the K models that saw neither it nor another film of its group, so
all films count. Near-copies stand on one side of the split, and films under two labels are only trained on
(docs/leaks.md). The GPU was shared with a dozen other trainings, the two cores with one, and features that an earlier
run had stored were not computed again. So durations are what it took then, not what it takes."""


# -- into docs/results


def collect(run: RunDir) -> None:
    config = read_config(run)
    of_folds = FoldsDir(run.path)
    if "folds" not in run.stamps():
        to = RunDir(RESULTS / config["recipe"]["name"])
        files = {file.name: file for file in (run.config, run.steps, run.history, run.validation, run.test)}
        pictures = dict.fromkeys((*OF_TRAINING, *OF_TEST), run.figures)
        _copy(files, pictures, to)
        return
    found = read_json(of_folds.numbers)
    # What the run was told to do last may be another recipe than that of the folds.
    if found["recipe"] != config["recipe"]["name"]:
        raise UserError(f"{run.config}: must have the recipe of the folds, {found['recipe']}, found another")
    to = RunDir(RESULTS / f"{found['recipe']}-{found['folds']}-folds")
    files = {file.name: file for file in (run.config, run.steps, of_folds.numbers)}
    for each in found["each"]:
        fold = RunDir(run.path / each["run"])
        files |= {f"{each['run']}/{file.name}": file for file in (fold.steps, fold.history)}
    with tempfile.TemporaryDirectory() as folder:
        # All films as one test: the table of the folds has the columns of predictions.csv.
        pooled = RunDir(Path(folder))
        write_json(pooled.test, found["pooled"])
        shutil.copyfile(of_folds.table, pooled.predictions)
        for name in OF_TEST:
            getattr(figures, name)(pooled)
        _copy(files, dict.fromkeys(OF_TEST, pooled.figures), to)


def _copy(files: Mapping[str, Path], pictures: Mapping[str, Path], to: RunDir) -> None:
    for name, file in files.items():
        (to.path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, to.path / name)
    to.figures.mkdir(exist_ok=True)
    for name, folder in pictures.items():
        shutil.copyfile(folder / f"{name}.png", to.figures / f"{name}.png")


def write_comparisons(runs: Sequence[RunDir]) -> None:
    of_folds = [run for run in runs if "folds" in run.stamps()]
    for name, chosen in zip(COMPARISONS, (runs, of_folds), strict=True):
        if len(chosen) > 1:
            found = compare(chosen)
            for entry in found["films"]["left_out"]:
                del entry["first"]  # the name of a film
            write_json(RESULTS / name, found)


# -- out of docs/results


def measured_of(run: RunDir) -> dict[str, Any]:
    """What ``test.json`` holds, or the folds' figures on all films."""
    numbers = FoldsDir(run.path).numbers
    return dict(read_json(numbers)["pooled"] if numbers.exists() else read_json(run.test))


def title(recipe: str, folds: int | None) -> str:
    return f"{recipe}, {folds} folds" if folds else recipe


def title_of(run: RunDir) -> str:
    numbers = FoldsDir(run.path).numbers
    return title(read_config(run)["recipe"]["name"], read_json(numbers)["folds"] if numbers.exists() else None)


def machine_of(config: Mapping[str, Any]) -> str:
    """The GPU where one was used, and the processor."""
    gpu = "" if config["device"]["name"] == "cpu" else f"{config['device']['reason']}; "
    return f"{gpu}{config['machine']['words']}"


def row_of(run: RunDir) -> dict[str, Any]:
    config, measured = read_config(run), measured_of(run)
    of_folds = FoldsDir(run.path).numbers.exists()
    trainings = [RunDir(folder) for folder in sorted((run.path / "folds").iterdir())] if of_folds else [run]
    steps = [run.stamps(), *(training.stamps() for training in trainings if of_folds)]
    return {
        "run": title_of(run),
        "films": f"{measured['images']:,}, {'out of fold' if of_folds else 'the test'}",
        "machine": f"{machine_of(config).split(', avx')[0].split(', amx')[0]}, {config['engine']['name']}",
        "training, h:mm:ss": clock(sum(training.stamps()["train"]["seconds"] for training in trainings)),
        "all steps": clock(sum(stamp["seconds"] for stamps in steps for stamp in stamps.values())),
    } | {OVERALL_NAMES[name]: figure(measured["overall"][name]) for name in HEADLINE}


def classes_of(run: RunDir) -> list[dict[str, Any]]:
    return [
        {"class": label, "films": f"{values['support']:,}"}
        | {name: figure(values[name]) for name in ("sensitivity", "specificity", "precision", "f1", "auroc")}
        for label, values in measured_of(run)["per_class"].items()
    ]


def confusion_of(run: RunDir) -> list[dict[str, Any]]:
    measured = measured_of(run)
    labels = measured["labels"]
    return [
        {"true class": label} | {f"taken for {said}": f"{n:,}" for said, n in zip(labels, row, strict=True)}
        for label, row in zip(labels, measured["confusion"], strict=True)
    ]


def calibration_of(run: RunDir) -> list[str]:
    """Whether the probabilities hold, and a row a kind of sets with what they promise and hold."""
    measured = measured_of(run)
    found = measured["calibration"]
    ece = {side: figure(found[side]["ece"]) for side in ("score", "probability")}
    by = "a temperature a fold" if "temperatures" in found else f"temperature {found['temperature']:.3f}"
    rows = [
        {
            f"sets promised to hold {1 - sets['alpha']:g}": f"{sets['score'].upper()}, "
            f"{'a threshold a class' if sets['by_class'] else 'one threshold'}",
            "hold the truth": figure(sets["coverage"]),
        }
        | {label: figure(held) for label, held in zip(measured["labels"], sets["per_class"], strict=True) if held}
        | {"classes in a set": figure(sets["size"]), "empty": figure(sets["empty"])}
        for sets in found["conformal"]
    ]
    words = f"Calibrated on validation films ({by}): ECE {ece['score']} before, {ece['probability']} after; "
    chance = f"perfect probabilities of as many films would show {found['probability']['ece_by_chance']['mean']:.3f}."
    return [words + chance, table(rows)]


def folds_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a figure: all films together, and how far the folds lie apart."""
    rows = []
    for name, over in found["over_folds"].items():
        values = [fold["overall"][name]["value"] for fold in found["each"]]
        rows.append(
            {
                "figure": OVERALL_NAMES[name],
                "all films (bootstrap)": figure(found["pooled"]["overall"][name]),
                "mean of the folds (t interval)": figure({**over, "value": over["mean"]}),
                "standard deviation": f"{over['sd']:.3f}",
            }
            | {f"fold {fold['fold']}": f"{value:.3f}" for fold, value in zip(found["each"], values, strict=True)}
        )
    return rows


def how_trained(run: RunDir) -> str:
    """Command, machine, and which epochs answered."""
    config, numbers = read_config(run), FoldsDir(run.path).numbers
    if numbers.exists():
        found = read_json(numbers)
        parts = [
            f"fold {f['fold']} epoch {f['epoch']} of {_epochs(RunDir(run.path / f['run']))}" for f in found["each"]
        ]
        parts.append(f"each model learned from {found['folds'] - 2} of {found['folds']} folds, one chose its epoch")
    else:
        accuracy = read_json(run.validation)["overall"]["accuracy"]
        parts = [f"epoch {read_json(run.test)['epoch']} of {_epochs(run)}", f"validation accuracy {figure(accuracy)}"]
    return (
        f"{config['recipe']['description']}\n\nCommand: `{config['run']['command']}`  \n"
        f"Machine: {machine_of(config)}; engine {config['engine']['name']}, with other work beside it.  \n"
        f"Chosen by {OVERALL_NAMES[config['recipe']['select']]} on validation: {'; '.join(parts)}."
    )


def _epochs(run: RunDir) -> int:
    with run.history.open(encoding="utf-8") as file:
        return len(list(csv.DictReader(file)))


def compared(found: Mapping[str, Any]) -> list[str]:
    """Which films, and for each run but the first a row a figure."""
    names = [title(run["recipe"], run["folds"]) for run in found["runs"]]
    films = found["films"]
    parts = [f"On {films['paired']:,} films in {films['groups']:,} groups, which none of the models had seen."]
    parts += [f"Left out: {entry['films']:,} {entry['reason']}." for entry in films["left_out"]]
    for name, run, comparison in zip(names[1:], found["runs"][1:], found["comparisons"], strict=True):
        rows = [
            {
                "figure": words.name_of(label, key),
                names[0]: figure(words.entry_of(found["runs"][0], label, key)),
                name: figure(words.entry_of(run, label, key)),
                "difference": words.difference_of(entry),
                "verdict": words.verdict_of(entry),
            }
            for label, key, entry in words.rows_of(comparison)
        ]
        parts += [f"**{name}** against **{names[0]}**:", table(rows)]
    return parts


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(map(str, row.values())) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    given = [RunDir(Path(argument)) for argument in sys.argv[1:]]
    for run in given:
        collect(run)
    write_comparisons(given)
    runs = [RunDir(folder) for folder in sorted(RESULTS.iterdir()) if RunDir(folder).config.exists()]
    overview = table([row_of(run) for run in runs])
    parts = ["# Results on real radiographs", INTRODUCTION, overview, FILMS]
    for run in runs:
        parts += [f"## {title_of(run)}", how_trained(run)]
        if FoldsDir(run.path).numbers.exists():
            found = read_json(FoldsDir(run.path).numbers)
            parts += [table(folds_of(found)), "\n".join(f"- {note}" for note in found["notes"])]
        pictures = "\n".join(
            f"![{heading}]({run.path.name}/figures/{name}.png)"
            for name, heading in SHOWN.items()
            if (run.figures / f"{name}.png").exists()
        )
        parts += [table(classes_of(run)), table(confusion_of(run)), *calibration_of(run), pictures]
    for name in COMPARISONS:
        if (RESULTS / name).exists():
            heading = "Compared" if name == COMPARISONS[0] else "The runs of folds compared on all films"
            parts += [f"## {heading}", *compared(read_json(RESULTS / name))]
    write_text(RESULTS / "README.md", "\n\n".join(parts) + "\n")
    print(overview)


if __name__ == "__main__":
    main()
