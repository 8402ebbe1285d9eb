"""All six steps in a row. Each finds out for itself what is done; what is done is not done again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg16_xray import __version__, ranks
from vgg16_xray.config import SEED, Recipe
from vgg16_xray.errors import UserError
from vgg16_xray.files import read_json
from vgg16_xray.rundir import AuditDir, ComparisonDir, FoldsDir, RunDir, key_of, read_config, sha256_of, update_config

if TYPE_CHECKING:
    from vgg16_xray.steps.folds import Member

REPORT = "report"
#: Pictures that need no test.
AFTER_PREPROCESS = ("images_per_class", "preview")


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a whole run ends with."""

    #: What ``test.json`` holds; None where folds were made in place of the single split.
    test: Mapping[str, Any] | None
    #: What ``folds.json`` holds, where folds were made.
    folds: Mapping[str, Any] | None
    report: Path


def run_all(
    data: Sequence[Path],
    run: RunDir,
    recipe: Recipe,
    *,
    mapping: Mapping[str, str] | None = None,
    weights: Path | None = None,
    engine: str = "auto",
    device: str = "auto",
    seed: int = SEED,
    resplit: bool = False,
    like: RunDir | None = None,
    resume: bool = False,
    folds: int | None = None,
    seeds: int = 1,
    command: str = "",
) -> Finished:
    """All steps, an audit of the films, and the report; several ranks do so together, see :mod:`.ranks`.

    Args:
        data: Folders or tables of films, see :mod:`vgg16_xray.films.dataset`.
        run: Where everything is left.
        recipe: How to train.
        mapping: ``{folder: label}``.
        weights: Weights of the base; None takes the packaged ones.
        engine: A name of :data:`vgg16_xray.learn.engines.ENGINES`.
        device: A name of :data:`vgg16_xray.learn.devices.DEVICES`.
        seed: Seed of the split and of the training.
        resplit: Make a new split even where the data bring one.
        like: Another run, whose films stay on their sides.
        resume: Refuse to begin a new training.
        folds: Train a model for each of so many folds in place of the single split, see :mod:`.steps.folds`.
        seeds: Train everything with so many seeds; the split stays the same.
        command: What the user typed; stored in ``run.toml``.

    Raises:
        UserError: Unusable input, see the steps. What was finished before stays.
    """
    from vgg16_xray.report.audit import say_audited
    from vgg16_xray.report.figures import PICTURES, after_preprocess
    from vgg16_xray.report.terminal import (
        console,
        say_folds,
        say_initialised,
        say_measured,
        say_preprocessed,
        say_seeds,
        say_trained,
    )
    from vgg16_xray.steps.folds import collect_seeds, lay_out_seeds, refuse_too_many
    from vgg16_xray.steps.initialise import initialise
    from vgg16_xray.steps.preprocess import preprocess
    from vgg16_xray.steps.test import test
    from vgg16_xray.steps.train import train
    from vgg16_xray.steps.validate import validate

    if resume:
        _refuse_to_resume(run, recipe, folds=folds, seed=seed)

    def prepare() -> None:
        preprocessed = preprocess(data, run, mapping=mapping, seed=seed, resplit=resplit, like=like)
        say_preprocessed(preprocessed, run)
        if not preprocessed.already_done or not run.figures.exists():
            after_preprocess(run)
        if folds:
            refuse_too_many(run, folds)
            console().print(f"{folds} folds of all films are made in place of this split")
        initialised = initialise(
            run, recipe, weights=weights, engine=engine, device=device, seed=seed, resume=resume and not folds
        )
        asked = {"command": command, "version": __version__}
        if asked.items() - read_config(run)["run"].items():
            update_config(run, run=asked)
        say_initialised(initialised)

    with ranks.held_by_first(run.alone()):
        ranks.by_first(prepare, lambda: None)
        tested = found = None
        if folds:
            found = _run_folds(run, folds=folds, seeds=seeds, resume=resume)
            if ranks.first():
                say_folds(found, run)
        else:
            say_trained(train(run, resume=resume), run)
            say_measured("validation", validate(run))
            tested = test(run)
            say_measured("test", tested)
            if seeds > 1:
                members = ranks.first_then_others(lambda: lay_out_seeds(run, seeds=seeds))
                _run_members(members[1:], resume=False)
                if ranks.first():
                    say_seeds(collect_seeds(run, members), run)
        if not ranks.first():
            return Finished(test=tested, folds=found, report=run.report)
        audited = _audited(run)
        _report(run, pictures=AFTER_PREPROCESS if folds else tuple(PICTURES))
        if audited:
            say_audited(audited)
        return Finished(test=tested, folds=found, report=run.report)


def _audited(run: RunDir) -> dict[str, Any] | None:
    """The audit of the run's films and its page; None, said in a line, where there are too few to judge by."""
    from vgg16_xray.report.audit import write_audit_page
    from vgg16_xray.report.leaks import write_leaks_page
    from vgg16_xray.report.terminal import console
    from vgg16_xray.steps.audit import TooFewFilms, audit, read_audit

    found = read_audit(run)
    if found is None or not found["fresh"] or not AuditDir(run.path).page.exists():
        try:
            found = audit(run)
        except TooFewFilms as error:
            console().print(f"the films were not audited: {error}")
            return None
        write_audit_page(run, found)
        if run.leaks.exists():
            write_leaks_page(run.leaks_page, read_json(run.leaks), pixels=run.pixels)
    return found


def _report(run: RunDir, *, pictures: Sequence[str]) -> None:
    """Pictures and page, where they are not there or tell of something else."""
    from vgg16_xray.report.figures import PICTURES, after_preprocess, after_test
    from vgg16_xray.report.page import write_report

    drawn = [run.figures / PICTURES[name].file for name in pictures]
    key = _key_of_report(run)
    if not run.is_done(REPORT, key, [run.report, *drawn]):
        started = time.monotonic()
        after_preprocess(run)
        if tuple(pictures) != AFTER_PREPROCESS:
            after_test(run)
        write_report(run)
        run.stamp(REPORT, key, seconds=time.monotonic() - started)


def _run_folds(run: RunDir, *, folds: int, seeds: int, resume: bool) -> dict[str, Any]:
    from vgg16_xray.steps.folds import collect_folds, lay_out_folds, withdraw_if_others

    members = ranks.first_then_others(lambda: lay_out_folds(run, folds=folds, seeds=seeds))
    ranks.by_first(lambda: withdraw_if_others(run, members), lambda: None)
    _run_members(members, resume=resume)
    return ranks.by_first(
        lambda: collect_folds(run, members, folds=folds), lambda: dict(read_json(FoldsDir(run.path).numbers))
    )


def _run_members(members: Sequence[Member], *, resume: bool) -> None:
    """Steps 4 to 6 in each; `resume` refuses to replace a training that was begun otherwise."""
    from vgg16_xray.report.terminal import console, say_measured, say_trained
    from vgg16_xray.steps.test import test
    from vgg16_xray.steps.train import train
    from vgg16_xray.steps.validate import validate

    for member in members:
        console().print(f"{member.words}, in {member.run.path}")
        with ranks.held_by_first(member.run.alone()):
            say_trained(train(member.run, resume=ranks.agree(resume and member.run.last.exists())), member.run)
            say_measured("validation", validate(member.run))
            say_measured("test", test(member.run), table=False)


def _refuse_to_resume(run: RunDir, recipe: Recipe, *, folds: int | None, seed: int) -> None:
    """Refuse ``--resume`` before anything is written where there is nothing to go on with."""
    if not folds:
        if not run.last.exists():
            raise UserError(f"{run.path}: --resume needs a training that was interrupted, found none")
        return
    if not FoldsDir(run.path).begun():
        raise UserError(f"{run.path}: --resume needs a training of a fold that was interrupted, found none")
    if folds != (dealt := read_config(FoldsDir(run.path).fold(1))["data"].get("folds", folds)):
        raise UserError(
            f"{run.path}: --resume needs as many folds as were begun, {dealt}, found --folds {folds}",
            hint="without --resume new trainings begin and the old ones are set aside",
        )
    config = read_config(run)
    before, asked = config.get("recipe", {}), recipe.as_dict()
    more = {"epochs": max(before.get("epochs", 0), recipe.epochs)}
    if before | more != asked or config.get("training", {}).get("seed") != seed:
        raise UserError(
            f"{run.path}: --resume needs interrupted folds of the same recipe and seed, found those of others",
            hint="without --resume new trainings begin and the old ones are set aside",
        )


def _key_of_report(run: RunDir) -> str:
    """Tells everything that the report and its figures depend on."""
    stamps = {step: stamp["key"] for step, stamp in run.stamps().items() if step != REPORT}
    compared = ComparisonDir(run.path).numbers
    comparison = sha256_of(compared) if compared.exists() else None
    # An upgrade may change what the page looks like and keep the version.
    templates = sorted((Path(__file__).parent / "report" / "templates").iterdir())
    return key_of(__version__, [sha256_of(file) for file in templates], comparison, stamps, read_config(run))
