"""All six steps in a row. Each finds out for itself what is done; what is done is not done again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vgg16_xray import __version__
from vgg16_xray.config import SEED, Recipe
from vgg16_xray.errors import UserError
from vgg16_xray.rundir import RunDir, key_of, read_config, update_config

REPORT = "report"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a whole run ends with."""

    #: What ``test.json`` holds.
    test: Mapping[str, Any]
    report: Path


def run_all(
    data: Sequence[Path],
    run: RunDir,
    recipe: Recipe,
    *,
    mapping: Mapping[str, str] | None = None,
    weights: Path | None = None,
    engine: str = "auto",
    seed: int = SEED,
    resplit: bool = False,
    resume: bool = False,
    command: str = "",
) -> Finished:
    """Preprocess, initialise, train, validate, test and report.

    Args:
        data: Folders or tables of films, see :mod:`vgg16_xray.films.dataset`.
        run: Where everything is left.
        recipe: How to train.
        mapping: ``{folder: label}``.
        weights: Weights of the base; None takes the packaged ones.
        engine: A name of :data:`vgg16_xray.learn.engines.ENGINES`.
        seed: Seed of the split and of the training.
        resplit: Make a new split even where the data bring one.
        resume: Refuse to begin a new training.
        command: What the user typed; stored in ``run.toml``.

    Raises:
        UserError: Unusable input, see the steps. What was finished before stays.
    """
    from vgg16_xray.report.figures import PICTURES, after_preprocess, after_test
    from vgg16_xray.report.page import write_report
    from vgg16_xray.report.terminal import say_initialised, say_measured, say_preprocessed, say_trained
    from vgg16_xray.steps.initialise import initialise
    from vgg16_xray.steps.preprocess import preprocess
    from vgg16_xray.steps.test import test
    from vgg16_xray.steps.train import train
    from vgg16_xray.steps.validate import validate

    if resume and not run.last.exists():
        raise UserError(f"{run.path}: --resume needs a training that was interrupted, found none")
    with run.alone():
        preprocessed = preprocess(data, run, mapping=mapping, seed=seed, resplit=resplit)
        say_preprocessed(preprocessed, run)
        if not preprocessed.already_done or not run.figures.exists():
            after_preprocess(run)
        initialised = initialise(run, recipe, weights=weights, engine=engine, seed=seed, resume=resume)
        asked = {"command": command, "version": __version__}
        if asked.items() - read_config(run)["run"].items():
            update_config(run, run=asked)
        say_initialised(initialised)
        say_trained(train(run, resume=resume), run)
        say_measured("validation", validate(run))
        tested = test(run)
        say_measured("test", tested)
        key, pictures = _key_of_report(run), [run.figures / picture.file for picture in PICTURES.values()]
        if not run.is_done(REPORT, key, [run.report, *pictures]):
            started = time.monotonic()
            after_preprocess(run)
            after_test(run)
            write_report(run)
            run.stamp(REPORT, key, seconds=time.monotonic() - started)
        return Finished(test=tested, report=run.report)


def _key_of_report(run: RunDir) -> str:
    """Tells everything that the report and its figures depend on."""
    stamps = {step: stamp["key"] for step, stamp in run.stamps().items() if step != REPORT}
    return key_of(__version__, stamps, read_config(run))
