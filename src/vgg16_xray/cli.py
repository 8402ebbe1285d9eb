"""The command line: one thin command a step. Heavy imports live inside the commands, so that ``--help`` is instant."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from vgg16_xray import RESEARCH_USE_ONLY, __version__, progress, ranks
from vgg16_xray.config import SEED
from vgg16_xray.errors import EXIT_DONE, EXIT_INTERRUPTED, EXIT_SOME_FAILED, EXIT_UNUSABLE, UserError, one_line
from vgg16_xray.extras import require

if TYPE_CHECKING:
    from vgg16_xray.bundle.classify import Prediction
    from vgg16_xray.config import Recipe
    from vgg16_xray.pipeline import Finished
    from vgg16_xray.rundir import RunDir

#: Commands that several processes of a launcher carry out together, see :mod:`vgg16_xray.ranks`.
TOGETHER = ("run", "train", "validate", "test")
#: What typer raises for wrong usage: ``ClickException`` of the click that this typer was made with, which may be click
#: itself or typer's own copy of it.
WRONG_USAGE: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="vgg16-xray",
    help=f"Transfer learning with VGG16 on chest radiographs, in six steps. {RESEARCH_USE_ONLY}",
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Run = Annotated[Path, typer.Argument(help="Run directory.", show_default=False)]
Data = Annotated[
    list[Path],
    typer.Argument(
        help="DATA/<class>/*, DATA/<class>/images/*, DATA/{train,val,test}/<class>/*, or a CSV or Parquet table "
        "path,label.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Run directory to make or go on with.", show_default=False)]
Map = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="FOLDER=LABEL", help="Give a class another name; FOLDER= leaves it out. Repeatable."),
]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the split and of the training.")]
Resplit = Annotated[bool, typer.Option("--resplit", help="Make a new split where the data bring one.")]
RecipeName = Annotated[str, typer.Option("--recipe", help="default, light, fast, best, notebook, or a .toml file.")]
Like = Annotated[
    Path | None,
    typer.Option(
        "--like",
        help="A run: a film that it has, whatever its name and format are here, stays on its side.",
        show_default=False,
    ),
]
TrainFrom = Annotated[
    str | None,
    typer.Option("--train-from", help="head, block5, block4, block3, block2 or all; the recipe's by default."),
]
Head = Annotated[str | None, typer.Option("--head", help="linear, gap or vgg; the recipe's by default.")]
Epochs = Annotated[
    int | None, typer.Option("--epochs", min=1, help="The recipe's by default; more than a training had: it goes on.")
]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights", help="Weights of the base: safetensors, torchvision's .pth, Keras's notop.h5; default ours."
    ),
]
EngineName = Annotated[
    str,
    typer.Option(
        "--engine", help="auto, torch-bfloat16, torch-float32, onnx-float32, ncnn-float32 or onnx-int8 (coarser)."
    ),
]
DeviceName = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda or mps; auto takes the GPU that torch can use.")
]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with an interrupted training; refuse when there is none to go on with.")
]


AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, for programs.")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"vgg16-xray {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error; accepted anywhere.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress and no notes on standard error; accepted anywhere.")
    ] = False,
) -> None:
    """Options of every command."""


@app.command()
def demo(
    to: Annotated[Path, typer.Option("--to", help="Folder for the drawn films and the run.")] = Path("demo"),
    films: Annotated[int, typer.Option("--films", min=40, help="How many films to draw.")] = 400,
    seed: Seed = SEED,
) -> None:
    """The whole pipeline on drawn radiographs: minutes, no network.

    Example: vgg16-xray demo --to demo
    """
    require("train", purpose="vgg16-xray demo")
    from vgg16_xray.config import load_recipe
    from vgg16_xray.films.phantom import write_dataset
    from vgg16_xray.pipeline import run_all
    from vgg16_xray.rundir import RunDir

    drawn = to / f"films-{films}-{seed}"
    if not drawn.exists():
        write_dataset(drawn, films=films, seed=seed)
    finished = run_all([drawn], RunDir(to / "run"), load_recipe("fast"), seed=seed, command=_command())
    _say_finished(finished)


@app.command()
def download(
    to: Annotated[Path, typer.Option("--to", help="Folder for the dataset.")] = Path("radiography"),
    from_zip: Annotated[
        Path | None, typer.Option("--from-zip", help="A zip that you downloaded by hand; no network.")
    ] = None,
) -> None:
    """Step 1: the COVID-19 Radiography Database, from Kaggle, from a zip, or as it already lies there.

    Example: vgg16-xray download --from-zip archive.zip --to radiography
    """
    from vgg16_xray.report.terminal import say_downloaded
    from vgg16_xray.steps.download import download as download_step

    say_downloaded(download_step(to=to, from_zip=from_zip))


@app.command()
def run(
    data: Data,
    out: Out,
    *,
    recipe: RecipeName = "default",
    train_from: TrainFrom = None,
    head: Head = None,
    epochs: Epochs = None,
    mapping: Map = None,
    weights: Weights = None,
    engine: EngineName = "auto",
    device: DeviceName = "auto",
    seed: Seed = SEED,
    resplit: Resplit = False,
    like: Like = None,
    resume: Resume = False,
    folds: Annotated[
        int | None,
        typer.Option(
            "--folds",
            min=3,
            help="So many models in place of one: every film is predicted by one that never saw it or its patient.",
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Train with so many seeds on the same split, to see what a seed does.")
    ] = 1,
) -> None:
    """All steps; a second run does only what is missing or changed.

    Example: vgg16-xray run radiography --out runs/default
    """
    require("train", purpose="vgg16-xray run")
    from vgg16_xray.films.dataset import parse_mapping
    from vgg16_xray.pipeline import run_all
    from vgg16_xray.rundir import RunDir

    run_dir = RunDir(out)
    run_dir.require_ours(data)
    finished = run_all(
        data,
        run_dir,
        _recipe(recipe, train_from=train_from, head=head, epochs=epochs),
        mapping=parse_mapping(mapping or []),
        weights=weights,
        engine=engine,
        device=device,
        seed=seed,
        resplit=resplit,
        like=_existing(like) if like else None,
        resume=resume,
        folds=folds,
        seeds=seeds,
        command=_command(),
    )
    _say_finished(finished)


@app.command()
def preprocess(
    data: Data, out: Out, *, mapping: Map = None, seed: Seed = SEED, resplit: Resplit = False, like: Like = None
) -> None:
    """Step 2: decode, check, hash, compare, split and store every film.

    Example: vgg16-xray preprocess radiography --out runs/default
    """
    require("train", purpose="vgg16-xray preprocess")
    from vgg16_xray.films.dataset import parse_mapping
    from vgg16_xray.report.figures import after_preprocess
    from vgg16_xray.report.terminal import say_preprocessed
    from vgg16_xray.rundir import RunDir
    from vgg16_xray.steps.preprocess import preprocess as preprocess_step

    run_dir = RunDir(out)
    run_dir.require_ours(data)
    with run_dir.alone():
        done = preprocess_step(
            data,
            run_dir,
            mapping=parse_mapping(mapping or []),
            seed=seed,
            resplit=resplit,
            like=_existing(like) if like else None,
        )
        say_preprocessed(done, run_dir)
        after_preprocess(run_dir)


@app.command()
def init(
    run: Run,
    *,
    recipe: RecipeName = "default",
    train_from: TrainFrom = None,
    head: Head = None,
    epochs: Epochs = None,
    weights: Weights = None,
    engine: EngineName = "auto",
    device: DeviceName = "auto",
    seed: Seed = SEED,
) -> None:
    """Step 3: put the network together and show its layers, shapes, parameters, and what is trainable.

    Example: vgg16-xray init runs/default --recipe default
    """
    require("train", purpose="vgg16-xray init")
    from vgg16_xray.report.terminal import say_initialised
    from vgg16_xray.steps.initialise import initialise

    run_dir = _existing(run)
    with run_dir.alone():
        chosen = _recipe(recipe, train_from=train_from, head=head, epochs=epochs)
        say_initialised(
            initialise(run_dir, chosen, weights=weights, engine=engine, device=device, seed=seed), layers=True
        )


@app.command()
def train(run: Run, resume: Resume = False) -> None:
    """Step 4: fit the trainable part.

    Example: vgg16-xray train runs/default
    """
    require("train", purpose="vgg16-xray train")
    from vgg16_xray.report.terminal import say_trained
    from vgg16_xray.steps.train import train as train_step

    run_dir = _existing(run)
    with ranks.held_by_first(run_dir.alone()):
        say_trained(train_step(run_dir, resume=resume), run_dir)


@app.command()
def validate(run: Run) -> None:
    """Step 5: measure the best epoch on the validation films.

    Example: vgg16-xray validate runs/default
    """
    require("train", purpose="vgg16-xray validate")
    from vgg16_xray.report.terminal import say_measured
    from vgg16_xray.steps.validate import validate as validate_step

    run_dir = _existing(run)
    with ranks.held_by_first(run_dir.alone()):
        say_measured("validation", validate_step(run_dir))


@app.command()
def test(run: Run) -> None:
    """Step 6: measure the best epoch on the test films, once.

    Example: vgg16-xray test runs/default
    """
    require("train", purpose="vgg16-xray test")
    from vgg16_xray.report.figures import after_test
    from vgg16_xray.report.terminal import say_measured
    from vgg16_xray.steps.test import test as test_step

    run_dir = _existing(run)
    with ranks.held_by_first(run_dir.alone()):
        say_measured("test", test_step(run_dir))
        if ranks.first():
            after_test(run_dir)


@app.command()
def report(
    run: Run,
    against: Annotated[
        list[Path] | None,
        typer.Option("--against", metavar="RUN", help="Compare with this run, and show it from now on. Repeatable."),
    ] = None,
) -> None:
    """The run as one self-contained page, report.html.

    Example: vgg16-xray report runs/default --against runs/notebook
    """
    require("train", purpose="vgg16-xray report")
    from vgg16_xray.files import write_json
    from vgg16_xray.report.page import write_report
    from vgg16_xray.rundir import ComparisonDir
    from vgg16_xray.trust.compare import compare as compare_runs

    run_dir = _existing(run)
    with run_dir.alone():
        if against:
            write_json(ComparisonDir(run).numbers, compare_runs([run_dir, *(_existing(other) for other in against)]))
        typer.echo(f"report: {write_report(run_dir)}")


def _formats_of_compare() -> list[str]:
    from vgg16_xray.report.comparison import FORMATS

    return list(FORMATS)


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Two or more run directories; the others are compared with the first.", show_default=False),
    ],
    format_: Annotated[
        str, typer.Option("--format", help="table or json.", autocompletion=_formats_of_compare)
    ] = "table",
    json: AsJson = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for comparison.html and comparison.json too.")
    ] = None,
) -> None:
    """Runs, of folds too, side by side on the films that none had seen: which difference is real.

    Example: vgg16-xray compare runs/notebook runs/default --out runs/compared
    """
    require("train", purpose="vgg16-xray compare")
    from vgg16_xray.report.comparison import FORMATS, as_json, say_compared, write_comparison
    from vgg16_xray.rundir import ComparisonDir
    from vgg16_xray.trust.compare import compare as compare_runs

    format_ = "json" if json else format_
    if format_ not in FORMATS:
        raise UserError(f"--format: must be one of {', '.join(FORMATS)}, found '{format_}'")
    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"--out: must be a folder, found the file {out}")
    found = compare_runs([_existing(run) for run in runs])
    if format_ == "json":
        typer.echo(as_json(found), nl=False)
    else:
        say_compared(found)
    if out is not None:
        typer.echo(f"comparison: {write_comparison(found, ComparisonDir(out))}", err=format_ == "json")


@app.command()
def export(
    run: Run,
    to: Annotated[Path, typer.Option("--to", help="Folder of the bundle to make.", show_default=False)],
    elsewhere: Annotated[
        list[str] | None,
        typer.Option(
            "--elsewhere",
            metavar="NAME=FOLDER",
            help="Films of which the model knows no class: what it answers there stands in the card. Repeatable.",
        ),
    ] = None,
    refusal_rate: Annotated[
        float,
        typer.Option(
            "--refusal-rate",
            min=0,
            max=0.5,
            help="Share of the validation films that may be refused or abstained: the more, the fewer films of strange "
            "hospitals are answered wrongly.",
        ),
    ] = 0.05,
    json: AsJson = False,
) -> None:
    """A finished run as a bundle: ONNX in float32 and int8, calibrated, with its card; what predict and serve read.

    Example: vgg16-xray export runs/default --to bundle
    """
    require("train", purpose="vgg16-xray export")
    from vgg16_xray.bundle.export import export as export_run
    from vgg16_xray.report.terminal import say_exported

    run_dir, named = _existing(run), {}
    for pair in elsewhere or []:
        name, _, folder = pair.partition("=")
        if not name or not Path(folder).is_dir():
            raise UserError(f"--elsewhere: must be NAME=FOLDER, found '{pair}'")
        named[name] = Path(folder)
    with run_dir.alone():
        done = export_run(run_dir, to, elsewhere=named, refusal_rate=refusal_rate)
    if json:
        _say_json({"bundle": str(done.bundle.path), "figures": done.config.figures})
    else:
        say_exported(done)


@app.command()
def evaluate(  # noqa: PLR0917
    model: Annotated[
        Path, typer.Argument(help="A bundle, a run, or with --adapter any ONNX classifier.", show_default=False)
    ],
    data: Data,
    out: Annotated[Path, typer.Option("--out", help="Folder for page and numbers.", show_default=False)],
    mapping: Map = None,
    trained_on: Annotated[
        Path | None,
        typer.Option(
            "--trained-on",
            help="The run, or the folder of films, that the model was trained on: copies are taken out. A run and "
            "a bundle bring what is needed.",
        ),
    ] = None,
    prevalence: Annotated[
        list[float] | None,
        typer.Option("--prevalence", min=0, max=1, help="For predictive values. Repeatable; five by default."),
    ] = None,
    prior: Annotated[
        list[str] | None,
        typer.Option(
            "--prior",
            metavar="LABEL=SHARE",
            help="How common classes are there, or 'estimate': figures once more, with probabilities corrected to it.",
        ),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option("--adapter", help="What a foreign ONNX file wants and gives: a TOML file, see docs/external.md."),
    ] = None,
    json: AsJson = False,
) -> None:
    """External test: a model on somebody else's films, its own taken out first; drop, subgroups, calibration, refusal.

    Example: vgg16-xray evaluate bundle elsewhere --map Tuberculosis= --out external
    """
    require("train", purpose="vgg16-xray evaluate")
    from vgg16_xray.evaluate import evaluate as evaluate_model
    from vgg16_xray.films.dataset import parse_mapping
    from vgg16_xray.report.external import say_evaluation
    from vgg16_xray.rundir import EvaluationDir
    from vgg16_xray.trust.operating import PREVALENCES

    found = evaluate_model(
        model,
        data,
        out,
        mapping=parse_mapping(mapping or []),
        trained_on=trained_on,
        prevalences=prevalence or PREVALENCES,
        prior=prior or (),
        adapter=adapter,
    )
    if json:
        _say_json(found)
    else:
        say_evaluation(found, EvaluationDir(out).page)


@app.command()
def heat(
    data: Annotated[
        Path,
        typer.Argument(
            help="Films with masks: metadata.csv with image,mask, or images/ beside opacities/ and lungs/.",
            show_default=False,
        ),
    ],
    *,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="A bundle, or a run; the model in the package by default.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="Folder for heat.json; of a run the run itself, whose report shows it.", show_default=False
        ),
    ] = None,
    trained_on: Annotated[
        list[Path] | None,
        typer.Option(
            "--trained-on",
            metavar="RUN|DATA",
            help="Of a bundle: the run, or the folders of films, that it learned from; films that are among them are "
            "taken out. Repeatable.",
        ),
    ] = None,
    opacities: Annotated[str, typer.Option(help="Bits of a mask that say opacity.")] = "16,32",
    lungs: Annotated[str, typer.Option(help="Bits of a mask that say lung: right, left.")] = "1,2",
    healthy: Annotated[
        str | None,
        typer.Option(help="The class that is no disease; by default Normal, if the model has it.", show_default=False),
    ] = None,
    random: Annotated[int, typer.Option(min=1, max=100, help="Networks with random weights to compare with.")] = 5,
    card: Annotated[bool, typer.Option("--card", help="Write the figures into the card of the bundle.")] = False,
    json: AsJson = False,
) -> None:
    """Does the heat map look where the disease is? Against drawn opacities and lungs, chance and random weights.

    Example: vgg16-xray heat segmented --trained-on radiography
    """
    require("train", purpose="vgg16-xray heat")
    from vgg16_xray.films.masks import LUNGS, OPACITIES, parse_flags
    from vgg16_xray.heat import heat as measure_heat
    from vgg16_xray.heat import left_in
    from vgg16_xray.report.heat import say_heat

    if out is not None and out.exists() and not out.is_dir():
        raise UserError(f"--out: must be a folder, found the file {out}")
    found = measure_heat(
        model,
        data,
        out=out,
        trained_on=trained_on or (),
        flags={
            OPACITIES: parse_flags(opacities, option="--opacities"),
            LUNGS: parse_flags(lungs, option="--lungs"),
        },
        healthy=healthy,
        random=random,
        into_card=card,
    )
    if json:
        _say_json(found)
    else:
        say_heat(found, left_in(model, out))


@app.command()
def recalibrate(
    bundle: Annotated[Path, typer.Argument(help="A bundle.", show_default=False)],
    data: Data,
    to: Annotated[Path, typer.Option("--to", help="Folder of the bundle to make.", show_default=False)],
    *,
    mapping: Map = None,
    trained_on: Annotated[
        Path | None,
        typer.Option("--trained-on", help="The run, or the folder of films, that the model was trained on."),
    ] = None,
    prior: Annotated[
        list[str] | None,
        typer.Option(
            "--prior",
            metavar="LABEL=SHARE",
            help="How common classes are at the site, where its films do not say it. Repeatable.",
        ),
    ] = None,
    refusal_rate: Annotated[
        float | None,
        typer.Option(
            "--refusal-rate", min=0, max=0.5, help="Share of the site's films that may be refused or abstained."
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Fit a bundle's probabilities, prevalence and thresholds to a site's labelled films, at least 20 of each class.

    The network stays as it is. Cross-validated, with before and after; the site's films that the model was trained on
    are taken out first.

    Example: vgg16-xray recalibrate bundle our-films --to our-bundle
    """
    require("train", purpose="vgg16-xray recalibrate")
    from vgg16_xray.films.dataset import parse_mapping
    from vgg16_xray.recalibrate import recalibrate as recalibrate_bundle
    from vgg16_xray.report.external import say_recalibrated

    done = recalibrate_bundle(
        bundle,
        data,
        to,
        mapping=parse_mapping(mapping or []),
        trained_on=trained_on,
        prior=prior or (),
        refusal_rate=refusal_rate,
    )
    if json:
        _say_json({"bundle": str(to), "films": done.films, "recalibrated": done.config.recalibrated})
    else:
        say_recalibrated(to, done.films, done.config.recalibrated or {})


@app.command()
def check(
    bundle: Annotated[
        Path | None, typer.Argument(help="A bundle; by default the model in the package.", show_default=False)
    ] = None,
    json: AsJson = False,
) -> None:
    """Check a bundle: hashes, graphs, and the answers that its golden films must get.

    Example: vgg16-xray check bundle
    """
    from vgg16_xray.bundle.classify import check as check_bundle
    from vgg16_xray.bundle.format import BundleDir

    folder = bundle or BundleDir.packaged().path
    found = check_bundle(folder)
    if json:
        _say_json({"bundle": str(folder), "whole": True, "largest_difference": found})
        return
    for precision, off in found.items():
        typer.echo(f"{precision}: golden films answered as written, within {off:.1e}")
    typer.echo(f"{folder}: whole")


def _formats_of_predict() -> list[str]:
    from vgg16_xray.predict import FORMATS

    return list(FORMATS)


@app.command()
def predict(
    images: Annotated[
        list[str],
        typer.Argument(
            help="Films, folders of films, patterns, or - for a film on standard input. What is named twice is "
            "answered twice.",
            show_default=False,
        ),
    ],
    *,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="A bundle, or a run; the model in the package by default.", show_default=False),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="table, json, jsonl or csv; by default what the name of --out ends with, else table.",
            show_default=False,
            autocompletion=_formats_of_predict,
        ),
    ] = None,
    json: AsJson = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            readable=False,
            help="Write there and not to standard output: into a file when all is answered, into a pipe or device at "
            "once.",
        ),
    ] = None,
    precision: Annotated[
        str, typer.Option("--precision", help="Of a bundle: int8, float32, or auto, which is int8 where there is one.")
    ] = "auto",
    explain: Annotated[
        Path | None, typer.Option("--explain", metavar="DIR", help="Draw where on each film the answer comes from.")
    ] = None,
    engine: EngineName = "auto",
) -> None:
    """Predict films, a row a film, in the order in which they were named.

    Example: vgg16-xray predict film.png folder --format csv --out answers.csv
    """
    from vgg16_xray.predict import (
        FORMATS,
        ROWS,
        checked_out,
        draw_answer,
        images_in,
        keep_films,
        open_model,
        opened,
        places_of,
        write_answers,
    )

    if format_ is None:
        named = out.suffix.lower().removeprefix(".") if out is not None else ""
        format_ = named if named in FORMATS else "table"
    format_ = "json" if json else format_
    if format_ not in FORMATS:
        raise UserError(f"--format: must be one of {', '.join(FORMATS)}, found '{format_}'")
    out, films = checked_out(out), images_in(images)
    places = places_of(films)
    if out is not None:
        keep_films(out, places, option="--out")
    answering = open_model(model, engine=engine, precision=precision)
    if explain is not None and not answering.explains:
        raise UserError("--explain: must have a bundle whose head is linear, found a model without heat maps")
    for note in answering.notes:
        _note(f"note: {note}")
    started = time.monotonic()

    def answered(quiet: bool) -> Iterator[Prediction]:
        stream = answering.stream(films, explain=explain is not None, quiet=quiet)
        for number, answer in enumerate(stream, start=1):
            if explain is not None and answer.heat is not None:
                drawn = explain / f"{number:04d}-{Path(answer.path).stem}.png"
                keep_films(drawn, places, option="--explain")
                draw_answer(films[number - 1], answer, drawn)
            yield answer

    def shift_of(answers: Sequence[Prediction]) -> dict[str, Any] | None:
        # One film has no company to be like or unlike.
        return answering.shift_of(answers) if len(films) > 1 else None

    with opened(out) as stream:
        # Rows that come on the screen are progress enough.
        answers = write_answers(
            answered(quiet=format_ in ROWS and stream.isatty()),
            stream,
            format_,
            films=len(films),
            labels=answering.labels,
            model=model,
            shift_of=shift_of,
        )
    took = time.monotonic() - started
    if format_ in ROWS or out is not None:
        typer.echo(RESEARCH_USE_ONLY, err=True)
        shift = shift_of(answers)
        _note(f"note: {shift['words']}" if shift else None)
    if len(films) > 1:
        _note(f"{len(films):,} films in {took:.1f} s, {len(films) / took:.1f} films/s")
    if failed := sum(answer.answer == "error" for answer in answers):
        typer.echo(f"{failed} of {len(answers)} files could not be read; the reasons stand in their rows", err=True)
        raise typer.Exit(EXIT_SOME_FAILED)


@app.command()
def serve(
    *,
    model: Annotated[
        Path | None, typer.Option("--model", help="A bundle; by default the one in the package.", show_default=False)
    ] = None,
    precision: Annotated[str, typer.Option("--precision", help="auto, int8 or float32.")] = "auto",
    host: Annotated[str, typer.Option("--host", help="0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0 takes a free one.")] = 8000,
    workers: Annotated[int, typer.Option("--workers", help="Processes that share the port.")] = 1,
    batch: Annotated[int, typer.Option("--batch", help="Films that go through the network together at most.")] = 8,
    queue: Annotated[int, typer.Option("--queue", help="Requests in the house at most; the next gets 503.")] = 256,
    max_mb: Annotated[float, typer.Option("--max-mb", help="A request's body at most, MB.")] = 64.0,
    max_pixels: Annotated[int, typer.Option("--max-pixels", help="A film's pixels at most.")] = 30_000_000,
    max_films: Annotated[int, typer.Option("--max-films", help="Films in a request at most.")] = 64,
    max_request_pixels: Annotated[
        int, typer.Option("--max-request-pixels", help="Pixels of all films in a request at most.")
    ] = 300_000_000,
    seconds: Annotated[float, typer.Option("--seconds", help="For a body to arrive, and for its answer.")] = 30.0,
    grace: Annotated[float, typer.Option("--grace", help="Seconds to finish what was accepted, after SIGTERM.")] = 60.0,
    cors: Annotated[
        list[str] | None, typer.Option("--cors", metavar="ORIGIN", help="Pages that may call it. Repeatable.")
    ] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Whether the page is served at /.")] = True,
) -> None:
    """The model over HTTP, and the page that runs it in a browser.

    Where VGG16_XRAY_TOKEN is set, clients must send it as their bearer token.

    Example: vgg16-xray serve --model bundle --port 8000
    """
    require("serve", purpose="vgg16-xray serve")
    from vgg16_xray.serve.run import serve as serve_until_told
    from vgg16_xray.serve.settings import Settings, token_of_environment

    typer.echo(RESEARCH_USE_ONLY, err=True)
    serve_until_told(
        Settings(
            model=model,
            precision=precision,
            host=host,
            port=port,
            workers=workers,
            batch=batch,
            queue=queue,
            max_mb=max_mb,
            max_pixels=max_pixels,
            max_films=max_films,
            max_request_pixels=max_request_pixels,
            seconds=seconds,
            grace=grace,
            origins=tuple(cors or ()),
            page=page,
            token=token_of_environment(),
        )
    )


@app.command()
def page(
    to: Annotated[Path, typer.Option("--to", help="Folder to write.", show_default=False)],
    model: Annotated[
        Path | None, typer.Option("--model", help="A bundle; by default the one in the package.", show_default=False)
    ] = None,
) -> None:
    """The page with its model as static files: it runs wholly in the reader's browser, no film leaves the computer.

    Example: vgg16-xray page --to site && python -m http.server --directory site
    """
    from vgg16_xray.bundle.format import BundleDir
    from vgg16_xray.serve.page import write_page

    written = write_page(to, BundleDir(model) if model is not None else BundleDir.packaged())
    typer.echo(f"page: {written}, to be served by any web server: python -m http.server --directory {to}")


class _WithoutName(TyperGroup):
    """A group whose first command may go without its name: ``audit DATA`` is ``audit all DATA``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # A shell that completes asks what may follow nothing: the commands.
        named = ctx.resilient_parsing if not args else args[0] in self.commands or args[0] == "--help"
        if not named:
            args = [next(iter(self.commands)), *args]
        return super().parse_args(ctx, args)


audit = typer.Typer(
    name="audit",
    cls=_WithoutName,
    rich_markup_mode=None,
    help="Can a number that was measured on these films be believed? Films or a run; all of it by default.\n\n"
    "Example: vgg16-xray audit radiography",
)
app.add_typer(audit)
Audited = Annotated[
    list[Path], typer.Argument(help="A run directory, or folders and tables of films.", show_default=False)
]
AuditOut = Annotated[
    Path | None,
    typer.Option("--out", help="For films: folder to make or go on with; <name>-audit by default.", show_default=False),
]


@audit.command("all")
def audit_all(what: Audited, out: AuditOut = None, mapping: Map = None) -> None:
    """Leaks, shortcuts, sources, labels: the verdict with its reasons, audit.json and audit.html.

    Example: vgg16-xray audit radiography
    """
    require("train", purpose="vgg16-xray audit")
    from vgg16_xray.files import read_json
    from vgg16_xray.report.audit import say_audited, write_audit_page
    from vgg16_xray.report.leaks import write_leaks_page
    from vgg16_xray.report.terminal import say_of_data
    from vgg16_xray.steps.audit import audit as audit_run
    from vgg16_xray.steps.audit import audit_data

    run_dir, is_run = _audited(what, out)
    with run_dir.alone():
        found = audit_run(run_dir) if is_run else audit_data(what, run_dir, mapping=_mapping(mapping))
        say_audited(found)
        say_of_data(run_dir, unused=False)
        typer.echo(f"audit: {write_audit_page(run_dir, found)}")
        if run_dir.leaks.exists():
            leaks = write_leaks_page(run_dir.leaks_page, read_json(run_dir.leaks), pixels=run_dir.pixels)
            typer.echo(f"the same film again, pairs side by side: {leaks}")


@audit.command("leaks")
def audit_leaks(what: Audited, out: AuditOut = None, mapping: Map = None) -> None:
    """The same film again, though resized, cropped, mirrored, inverted: pairs to look at, and films under two labels.

    Example: vgg16-xray audit leaks radiography elsewhere
    """
    require("train", purpose="vgg16-xray audit leaks")
    from vgg16_xray.files import read_json
    from vgg16_xray.report.leaks import say_leaks, write_leaks_page
    from vgg16_xray.steps.audit_leaks import audit_leaks as audit_films

    run_dir, is_run = _audited(what, out)
    with run_dir.alone():
        if is_run:
            found, pixels = (
                dict(read_json(run_dir.require(run_dir.leaks, made_by="preprocess DATA --out"))),
                run_dir.pixels,
            )
        else:
            found, pixels = audit_films(what, run_dir, mapping=_mapping(mapping))
        say_leaks(found)
        typer.echo(f"pairs side by side: {write_leaks_page(run_dir.leaks_page, found, pixels=pixels)}")


@audit.command("shortcuts")
def audit_shortcuts(what: Audited, out: AuditOut = None, mapping: Map = None) -> None:
    """The ladder alone: how far one comes on inputs from which the disease has been removed.

    Example: vgg16-xray audit shortcuts runs/default
    """
    require("train", purpose="vgg16-xray audit shortcuts")
    from vgg16_xray.report.audit import say_ladder
    from vgg16_xray.report.terminal import say_of_data
    from vgg16_xray.rundir import AuditDir
    from vgg16_xray.steps.audit import audit as audit_run
    from vgg16_xray.steps.audit import audit_data

    run_dir, is_run = _audited(what, out)
    with run_dir.alone():
        say_ladder(
            audit_run(run_dir, only_ladder=True)
            if is_run
            else audit_data(what, run_dir, mapping=_mapping(mapping), only_ladder=True)
        )
        say_of_data(run_dir)
    whole = f"vgg16-xray audit {' '.join(map(str, what))}{f' --out {out}' if out else ''}"
    typer.echo(f"all figures, a file a rung: {AuditDir(run_dir.path).part('ladder.*')} (verdict and page: {whole})")


def _audited(what: list[Path], out: Path | None) -> tuple[RunDir, bool]:
    """Where the audit is left, and whether it is a run that was there."""
    from vgg16_xray.rundir import RunDir

    if len(what) == 1 and RunDir(what[0]).manifest.exists():
        if out is not None:
            raise UserError(f"--out: must be left out where a run is audited, found {out}")
        return RunDir(what[0]), True
    run_dir = RunDir(out or Path(f"{what[0].resolve().stem}-audit"))
    run_dir.require_ours(what)
    return run_dir, False


def _mapping(pairs: list[str] | None) -> dict[str, str]:
    from vgg16_xray.films.dataset import parse_mapping

    return parse_mapping(pairs or [])


cache = typer.Typer(name="cache", invoke_without_command=True, rich_markup_mode=None)
app.add_typer(cache)


@cache.callback()
def list_cache(context: typer.Context) -> None:
    """Features that runs share: what is stored, how large it is, when it was used last.

    Example: vgg16-xray cache clear --older-than 30
    """
    if context.invoked_subcommand is not None:
        return
    from vgg16_xray.files import size_in_words
    from vgg16_xray.learn.featurestore import stored
    from vgg16_xray.rundir import CacheDir

    folder = CacheDir.of_user()
    found = stored(folder)
    for one in found:
        typer.echo(str(one))
    typer.echo(f"{folder.path}: {_stores(len(found))}, {size_in_words(sum(one.bytes for one in found))}")


@cache.command("clear")
def clear_cache(
    older_than: Annotated[
        float, typer.Option("--older-than", metavar="DAYS", min=0, help="Only what was not used for so many days.")
    ] = 0.0,
) -> None:
    """Remove stored features; a run that needs them computes them again.

    Example: vgg16-xray cache clear --older-than 30
    """
    from vgg16_xray.files import size_in_words
    from vgg16_xray.learn.featurestore import clear
    from vgg16_xray.rundir import CacheDir

    folder = CacheDir.of_user()
    removed, in_use = clear(folder, older_than_days=older_than)
    for one in removed:
        typer.echo(f"removed {one}")
    for one in in_use:
        typer.echo(f"left, for a process is making it: {one}", err=True)
    typer.echo(f"{folder.path}: {_stores(len(removed))} removed, {size_in_words(sum(one.bytes for one in removed))}")


def _stores(count: int) -> str:
    return f"{count:,} store{'' if count == 1 else 's'}"


def _note(text: str | None) -> None:
    """Something good to know, where there is something, on standard error."""
    if text and not progress.silent:
        typer.echo(text, err=True)


def _say_json(value: Any) -> None:
    from json import dumps

    typer.echo(dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def _existing(run: Path) -> RunDir:
    """The run directory; one that is misspelt is not made."""
    from vgg16_xray.rundir import RunDir

    if not run.is_dir():
        raise UserError(f"{run}: must be a run directory, found {'a file' if run.exists() else 'none'}")
    return RunDir(run)


def _recipe(name: str, *, train_from: str | None, head: str | None, epochs: int | None) -> Recipe:
    from vgg16_xray.config import load_recipe

    return load_recipe(name, train_from=train_from, head=head, epochs=epochs)


def _command() -> str:
    import shlex

    return shlex.join(["vgg16-xray", *sys.argv[1:]])


def _say_finished(finished: Finished) -> None:
    from vgg16_xray.report.terminal import figure

    if finished.folds is not None:
        typer.echo(f"out-of-fold accuracy {figure(finished.folds['pooled']['overall']['accuracy'])}")
    if finished.test is not None:
        typer.echo(f"test accuracy {figure(finished.test['overall']['accuracy'])}")
    typer.echo(f"report: {finished.report}")


def main() -> None:
    """Run the command line: one line for an error, a traceback only with ``--debug``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that knows no dash between two bounds must not end what took an hour to compute.
            stream.reconfigure(errors="backslashreplace")
    code = _run(sys.argv[1:])
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        # The disk behind it is full, which was said; Python would say it once more, and change the exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if ranks.size() > 1:
        # After an error: threads that wait for a rank which is gone would not let the process end.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    here = arguments.index("--") if "--" in arguments else len(arguments)
    debug, progress.silent = (option in arguments[:here] for option in ("--debug", "--quiet"))
    arguments = [option for option in arguments[:here] if option not in ("--debug", "--quiet")] + arguments[here:]
    try:
        with _together(arguments):
            code = int(app(arguments or ["--help"], standalone_mode=False) or EXIT_DONE)
    except UserError as error:
        if debug:
            raise
        ranks.say_once(f"vgg16-xray: {error}")
        return error.exit_code
    except WRONG_USAGE as error:
        ranks.say_once(f"vgg16-xray: {_wrong_usage(error)}; --help shows how")
        return EXIT_UNUSABLE
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except ranks.Terminated:
        ranks.say_once(
            "vgg16-xray: stopped by the launcher, as when another process of this run is gone; what was saved is kept, "
            "and the same command goes on from there, with any number of processes"
        )
        return ranks.EXIT_TERMINATED
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            where = error.filename or "standard output"
            ranks.say_once(f"vgg16-xray: {one_line(str(where))}: cannot be written ({error.strerror})")
            return EXIT_UNUSABLE
        ranks.say_once(
            f"vgg16-xray: unexpected {type(error).__name__}: {one_line(str(error))}; "
            "what is finished is kept; --debug shows where, please report it"
        )
        return EXIT_UNUSABLE
    if code == EXIT_INTERRUPTED:
        ranks.say_once("vgg16-xray: interrupted; what is finished is kept, and the same command goes on from there")
    return code


def _together(arguments: list[str]) -> contextlib.AbstractContextManager[None]:
    """Join the processes that a launcher started, where the command is one that they carry out together."""
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    if (count := ranks.launched()) > 1 and command not in TOGETHER:
        raise UserError(
            f"vgg16-xray {command}: must be started once, found {count} processes of a launcher",
            hint=f"several processes share {', '.join(TOGETHER)}",
        )
    return ranks.joined()


def _wrong_usage(error: Any) -> str:
    """What typer says, on one line; where it had pydantic check a value, with what was found, which it leaves out."""
    text = one_line(error.format_message()).rstrip(".")
    return ", ".join([text, *(f"found '{found['input']}'" for found in getattr(error.__cause__, "errors", list)())])


if __name__ == "__main__":
    main()
