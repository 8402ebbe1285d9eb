"""Copy what a run found, without any film, into docs/results, and write the table of all runs there.

python scripts/collect_results.py RUN [RUN ...]     each into docs/results/<recipe>
python scripts/collect_results.py                   the table alone, from what lies in docs/results
"""

from __future__ import annotations

import csv
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

from vgg16_xray.files import read_json, write_text
from vgg16_xray.progress import clock
from vgg16_xray.report.terminal import figure
from vgg16_xray.rundir import RunDir

RESULTS = Path(__file__).parents[1] / "docs" / "results"
#: Figures that show no film: films of others are not ours to publish.
FIGURES = ("images_per_class", "curves", "confusion", "per_class", "roc", "precision_recall")
INTRODUCTION = (
    """\
Written by `python scripts/collect_results.py`; every figure with its 95 % interval (percentile bootstrap over groups,
1,000 replicates). **Research use only. Not a medical device.**""",
    """\
The films: 9,143 frontal radiographs in the tree of the COVID-19 Radiography Database, whose classes come from different
hospitals and ages. A figure here says how well films of the *same* collections are told apart; how much of that is
disease and how much is the hospital, it cannot say. No film is shown here: they are not ours to publish.""",
)


def collect(run: RunDir) -> None:
    name = tomllib.loads(run.config.read_text("utf-8"))["recipe"]["name"]
    to = RunDir(RESULTS / name)
    to.figures.mkdir(parents=True, exist_ok=True)
    for source, target in (
        (run.config, to.config),
        (run.steps, to.steps),
        (run.history, to.history),
        (run.validation, to.validation),
        (run.test, to.test),
    ):
        shutil.copyfile(source, target)
    for picture in FIGURES:
        shutil.copyfile(run.figures / f"{picture}.png", to.figures / f"{picture}.png")


def row_of(run: RunDir) -> dict[str, Any]:
    config = tomllib.loads(run.config.read_text("utf-8"))
    stamps, test, validation = read_json(run.steps), read_json(run.test), read_json(run.validation)
    with run.history.open(encoding="utf-8") as file:
        epochs = list(csv.DictReader(file))
    return {
        "recipe": config["recipe"]["name"],
        "best epoch": f"{test['epoch']} of {len(epochs)}",
        "validation accuracy": figure(validation["overall"]["accuracy"]),
        "test accuracy": figure(test["overall"]["accuracy"]),
        "test balanced accuracy": figure(test["overall"]["balanced_accuracy"]),
        "test macro-F1": figure(test["overall"]["macro_f1"]),
        "test macro AUROC": figure(test["overall"]["macro_auroc"]),
        "all steps, h:mm:ss": clock(sum(stamp["seconds"] for stamp in stamps.values())),
    }


def classes_of(run: RunDir) -> list[dict[str, Any]]:
    test = read_json(run.test)
    return [
        {"class": label, "test films": values["support"]}
        | {name: figure(values[name]) for name in ("sensitivity", "specificity", "precision", "f1", "auroc")}
        for label, values in test["per_class"].items()
    ]


def table(rows: list[dict[str, Any]]) -> str:
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(map(str, row.values())) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    for argument in sys.argv[1:]:
        collect(RunDir(Path(argument)))
    runs = [RunDir(folder) for folder in sorted(RESULTS.iterdir()) if RunDir(folder).config.exists()]
    parts = [
        "# Results on real radiographs",
        *INTRODUCTION[:1],
        table([row_of(run) for run in runs]),
        *INTRODUCTION[1:],
    ]
    for run in runs:
        config = tomllib.loads(run.config.read_text("utf-8"))
        parts += [
            f"## {config['recipe']['name']}",
            f"{config['recipe']['description']}\n\nCommand: `{config['run']['command']}`  \n"
            f"Machine: {config['machine']['words']}; engine {config['engine']['name']}, with other work beside it.",
            table(classes_of(run)),
            f"![Loss and accuracy]({run.path.name}/figures/curves.png)\n"
            f"![Confusion matrix]({run.path.name}/figures/confusion.png)\n"
            f"![ROC curves]({run.path.name}/figures/roc.png)\n"
            f"![Precision-recall curves]({run.path.name}/figures/precision_recall.png)",
        ]
    write_text(RESULTS / "README.md", "\n\n".join(parts) + "\n")
    print(table([row_of(run) for run in runs]))


if __name__ == "__main__":
    main()
