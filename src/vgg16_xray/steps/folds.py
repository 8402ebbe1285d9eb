"""Folds and seeds: every film predicted by a model that never saw it, and how far the seed alone moves a figure.

A fold, or another seed, is an ordinary run directory below the run, with the same films and pixels, so that steps 4 to
6 do there what they always do. This module lays them out, and afterwards puts their figures together in
``folds.json`` and ``folds.csv``, or ``seeds.json``.
"""

from __future__ import annotations

import math
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vgg16_xray import RESEARCH_USE_ONLY
from vgg16_xray.errors import UserError
from vgg16_xray.files import read_json, saying_why_not_written, whole_file, write_json, write_text
from vgg16_xray.films.split import SPLITS, TEST, conflicts, fold_films, sides_of_fold
from vgg16_xray.rundir import FoldsDir, RunDir, key_of, read_config, sha256_of, update_config
from vgg16_xray.steps.initialise import Plan, read_plan
from vgg16_xray.steps.preprocess import fingerprint, read_manifest
from vgg16_xray.steps.train import targets_of

if TYPE_CHECKING:
    import pandas as pd

STEP = "folds"
STEP_SEEDS = "seeds"
#: Raised when the same folds would leave other files than before.
VERSION = 4
#: Figures of which the spread over seeds is told.
SPREAD = ("accuracy", "macro_f1")
#: predictions.csv holds six decimals: what stands there as 0 was at most half of the last of them.
HALF_A_UNIT = 0.5e-6
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Member:
    """One training among several."""

    run: RunDir
    #: From 1; None where the run has the single split.
    fold: int | None
    #: Seed of the training; the split has its own.
    seed: int
    #: What it is, for people.
    words: str


# -- laying out


def lay_out_folds(run: RunDir, *, folds: int, seeds: int = 1) -> list[Member]:
    """Make a run directory for each fold and seed, ready for step 4; those that are there already stay as they are.

    Args:
        run: A run with steps 2 and 3 finished.
        folds: K, see :func:`vgg16_xray.films.split.fold_films`.
        seeds: How many seeds of the training; the folds are the same for all.

    Returns:
        K members for each seed, the first seed first.

    Raises:
        UserError: A step before has not finished, a class has too few groups, or the disk is full.
    """
    plan, manifest = read_plan(run), read_manifest(run)
    fold_of = _fold_of(run, manifest, folds)
    members = []
    for seed in _training_seeds(plan, seeds):
        for number in range(1, folds + 1):
            member = FoldsDir(run.path).fold(number, seed=None if seed == plan.seed else seed)
            after = number % folds + 1
            _derive(
                run,
                member,
                manifest.assign(split=sides_of_fold(fold_of, number=number, folds=folds)),
                seed=seed,
                folds=folds,
                words=f"fold {number} of {folds} is the test, fold {after} the validation, by group, "
                f"seed {read_config(run)['run']['seed']}",
            )
            words = f"fold {number} of {folds}" + (f", training seed {seed}" if seeds > 1 else "")
            members.append(Member(run=member, fold=number, seed=seed, words=words))
    return members


def lay_out_seeds(run: RunDir, *, seeds: int) -> list[Member]:
    """Make a run directory for each further seed of the training; the first is the run itself, and so is the split.

    Raises:
        UserError: A step before has not finished, or the disk is full.
    """
    plan, manifest = read_plan(run), read_manifest(run)
    first, *others = _training_seeds(plan, seeds)
    members = [Member(run=run, fold=None, seed=first, words=f"training seed {first}")]
    for seed in others:
        member = FoldsDir(run.path).seed(seed)
        _derive(run, member, manifest, seed=seed, words=read_config(run)["data"]["split"])
        members.append(Member(run=member, fold=None, seed=seed, words=f"training seed {seed}"))
    return members


def refuse_too_many(run: RunDir, folds: int) -> None:
    """Refuse folds that the films of a run cannot be dealt to, before anything says that they were asked for.

    Raises:
        UserError: A class has fewer groups than there are folds.
    """
    _fold_of(run, read_manifest(run), folds)


def withdraw_if_others(run: RunDir, members: Sequence[Member]) -> None:
    """Withdraw the stamp of ``folds.json`` before the model of any fold is exchanged."""
    if any(_trained_key(member.run) != read_plan(member.run).key for member in members):
        run.unstamp(STEP)


def _trained_key(run: RunDir) -> str | None:
    key: str | None = run.stamps().get("train", {}).get("key")
    return key


def _training_seeds(plan: Plan, seeds: int) -> list[int]:
    return [(plan.seed + number) % 2**32 for number in range(seeds)]


def _fold_of(run: RunDir, manifest: pd.DataFrame, folds: int) -> list[int]:
    return fold_films(
        labels=list(manifest["label"]),
        groups=list(manifest["group"]),
        folds=folds,
        seed=read_config(run)["run"]["seed"],
    )


def _derive(
    run: RunDir, into: RunDir, manifest: pd.DataFrame, *, seed: int, words: str, folds: int | None = None
) -> None:
    """Make `into` what steps 2 and 3 would have left for this split and training seed; pixels are linked, not copied.

    Links are relative, so that the run may be moved with all that is below it.
    """
    started = time.monotonic()
    config = read_config(run)
    sections: dict[str, dict[str, Any]] = {
        "run": {name: config["run"][name] for name in ("seed", "size")},
        "data": config["data"]
        | {"fingerprint": fingerprint(manifest), "split": words}
        | ({"folds": folds} if folds else {}),
        "recipe": config["recipe"],
        "training": config["training"] | {"seed": seed},
        "weights": config["weights"],
        "engine": config["engine"],
        "device": config["device"],
    }
    key = key_of(VERSION, sections)
    outputs = [into.manifest, into.split, into.pixels, into.config, into.layers]
    if into.is_done("preprocess", key, outputs) and into.is_done("initialise", key, outputs):
        return
    with saying_why_not_written(into.path):
        into.path.mkdir(parents=True, exist_ok=True)
        into.unstamp("preprocess")
        into.unstamp("initialise")
        _link(into.pixels, run.pixels)
    with whole_file(into.manifest) as temporary:
        manifest.to_parquet(temporary, index=False)
    table = manifest[["collection", "path", "label", "group", "split"]]
    write_text(into.split, table.to_csv(index=False, lineterminator="\n"))
    write_json(into.layers, read_json(run.layers))
    update_config(into, **sections, machine=config.get("machine", {}))
    into.stamp("preprocess", key, seconds=0.0)
    into.stamp("initialise", key, seconds=time.monotonic() - started)


def _link(link: Path, to: Path) -> None:
    """Make `link` a relative link, in place of another or of a file that was copied there."""
    target = os.path.relpath(to, link.parent)
    if link.is_symlink() and str(link.readlink()) == target:
        return
    temporary = link.with_name(f".{link.name}.{secrets.token_hex(4)}.tmp")
    temporary.symlink_to(target)
    temporary.replace(link)


# -- putting together


def collect_folds(run: RunDir, members: Sequence[Member], *, folds: int) -> dict[str, Any]:
    """Put the figures of finished folds together.

    Args:
        run: The run above them.
        members: As :func:`lay_out_folds` gave them, each with step 6 finished.
        folds: K.

    Returns:
        What ``folds.json`` holds:

        - ``pooled``: :func:`vgg16_xray.trust.metrics.evaluate` of every film, each predicted by the model that never
          saw it; ``calibration``: the same films by what was fitted for the models of their folds
          (:func:`vgg16_xray.trust.calibrate.test_folds`);
        - ``each``: a fold's films, epoch, checkpoint and overall figures, of the first seed;
        - ``models``: run and checkpoint of every model, of all folds and seeds, which together answer in ``predict``;
        - ``over_folds``: of each overall figure the mean, the standard deviation, and the 95 % t interval of the mean;
        - ``seeds``: the spread of the pooled figures over the training's seeds, or None where there is one;
        - ``films``, ``recipe``, ``notes``: on which films, of what, and what these figures do not say.

    Raises:
        UserError: A fold has not finished, or its predictions belong to other films.
    """
    started = time.monotonic()
    tests = [dict(read_json(member.run.require(member.run.test, made_by="test"))) for member in members]
    key = key_of(
        VERSION, folds, [(m.fold, m.seed, t["checkpoint_sha256"]) for m, t in zip(members, tests, strict=True)]
    )
    to = FoldsDir(run.path)
    if run.is_done(STEP, key, [to.numbers, to.table]):
        return dict(read_json(to.numbers))
    plan, manifest = read_plan(run), read_manifest(run)
    fold_of = _fold_of(run, manifest, folds)
    first = [member for member in members if member.seed == plan.seed]
    table = _out_of_fold(manifest, fold_of, first)
    pooled = _evaluate(manifest, plan, table) | {"calibration": _calibration(manifest, plan, table, first)}
    by_seed = [pooled] + [
        _evaluate(manifest, plan, _out_of_fold(manifest, fold_of, [m for m in members if m.seed == seed]), replicates=1)
        for seed in _training_seeds(plan, len(members) // folds)[1:]
    ]
    each = [
        {
            "fold": member.fold,
            "run": str(member.run.path.relative_to(run.path)),
            "training_seed": member.seed,
            "films": {side: int((read_manifest(member.run)["split"] == side).sum()) for side in SPLITS},
            "epoch": test["epoch"],
            "checkpoint_sha256": test["checkpoint_sha256"],
            "overall": test["overall"],
        }
        for member, test in zip(members, tests, strict=True)
        if member.seed == plan.seed
    ]
    found = {
        "research_use_only": RESEARCH_USE_ONLY,
        "folds": folds,
        "recipe": plan.recipe.name,
        "trained_as": trained_as(plan),
        "films": {
            "images": len(manifest),
            "groups": int(manifest["group"].nunique()),
            "support": {label: int((manifest["label"] == label).sum()) for label in plan.labels},
            "collections": sorted(set(manifest["collection"])),
            "fingerprint": key_of(list(manifest["pixels_sha256"]), list(manifest["label"]), fold_of),
        },
        "pooled": pooled,
        "each": each,
        "models": [
            {"run": str(member.run.path.relative_to(run.path)), "checkpoint_sha256": test["checkpoint_sha256"]}
            for member, test in zip(members, tests, strict=True)
        ],
        "over_folds": {
            name: mean_with_interval(
                [fold["overall"][name]["value"] for fold in each], most=math.inf if name == "log_loss" else 1.0
            )
            for name in pooled["overall"]
        },
        "seeds": spread(_training_seeds(plan, len(by_seed)), by_seed) if len(by_seed) > 1 else None,
        "notes": _notes(run, manifest),
    }
    run.unstamp(STEP)
    write_text(to.table, table.to_csv(index=False, lineterminator="\n"))
    write_json(to.numbers, found)
    run.stamp(STEP, key, seconds=time.monotonic() - started)
    return found


def collect_seeds(run: RunDir, members: Sequence[Member]) -> dict[str, Any]:
    """Put the test figures of several training seeds together.

    Args:
        run: The run above them.
        members: As :func:`lay_out_seeds` gave them, each with step 6 finished.

    Returns:
        What ``seeds.json`` holds: ``each`` seed's overall figures on the same test films, and the ``spread``.

    Raises:
        UserError: A seed has not finished.
    """
    started = time.monotonic()
    tests = [dict(read_json(member.run.require(member.run.test, made_by="test"))) for member in members]
    key = key_of(VERSION, [(m.seed, t["checkpoint_sha256"]) for m, t in zip(members, tests, strict=True)])
    to = FoldsDir(run.path)
    if run.is_done(STEP_SEEDS, key, [to.seeds]):
        return dict(read_json(to.seeds))
    plan = read_plan(run)
    found = {
        "research_use_only": RESEARCH_USE_ONLY,
        "recipe": plan.recipe.name,
        "trained_as": trained_as(plan),
        "images": tests[0]["images"],
        "each": [
            {
                "run": os.path.relpath(member.run.path, run.path),
                "training_seed": member.seed,
                "epoch": test["epoch"],
                "checkpoint_sha256": test["checkpoint_sha256"],
                "overall": test["overall"],
            }
            for member, test in zip(members, tests, strict=True)
        ],
        "spread": spread([member.seed for member in members], tests),
    }
    run.unstamp(STEP_SEEDS)
    write_json(to.seeds, found)
    run.stamp(STEP_SEEDS, key, seconds=time.monotonic() - started)
    return found


def trained_as(plan: Plan) -> str:
    """A key of how the models of all folds and seeds were trained: everything but the split's sides and the seed."""
    return key_of(plan.labels, plan.recipe.as_dict(), plan.size, plan.weights_sha256, plan.engine.name)


def finished_folds(run: RunDir) -> dict[str, Any] | None:
    """What ``folds.json`` holds, if the folds speak for the run.

    Returns:
        None where no folds are finished, and where the run has a single model that was trained otherwise than they.

    Raises:
        UserError: ``folds.json`` is damaged.
    """
    numbers = FoldsDir(run.path).numbers
    if STEP not in run.stamps() or not numbers.exists():
        return None
    found = read_json(numbers)
    try:
        as_then = found["trained_as"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{numbers}: must be as the folds wrote it, found {error!r}") from error
    return None if run.best.exists() and as_then != trained_as(read_plan(run)) else dict(found)


def ensemble(run: RunDir) -> list[Path]:
    """The models of the finished folds, of all seeds, which together are one model; empty where there are none.

    A run that has a single model too, and was trained otherwise since, is that single model.

    Raises:
        UserError: A model is missing, or is not the one that ``folds.json`` measured.
    """
    numbers = FoldsDir(run.path).numbers
    if (found := finished_folds(run)) is None:
        return []
    try:
        # Before there were several seeds in it, folds.json named a model a fold and nothing besides.
        models = found.get("models", found["each"])
        wanted = [(model["run"], model["checkpoint_sha256"]) for model in models]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{numbers}: must be as the folds wrote it, found {error!r}") from error
    files = [RunDir(run.path / name).best for name, _ in wanted]
    for model, (_, sha256) in zip(files, wanted, strict=True):
        if not model.exists() or sha256_of(model) != sha256:
            raise UserError(
                f"{model}: must be the model that {numbers.name} measured, found "
                f"{'another' if model.exists() else 'none'}",
                hint="run again with --folds, or name a fold's own folder",
            )
    return files


def mean_with_interval(values: Sequence[float | None], *, most: float = 1.0) -> dict[str, float | None]:
    """Mean and standard deviation (n - 1) of a figure over folds, and the 95 % t interval of the mean.

    Args:
        values: (K,) one value a fold, K at least 2; None where a fold does not define it, which leaves nothing to say.
        most: The figure lies between 0 and this; so does the interval, which few folds would make wider.
    """
    from scipy.stats import t

    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return dict.fromkeys(("mean", "sd", "low", "high"))
    mean, sd = float(np.mean(known)), float(np.std(known, ddof=1))
    half = float(t.ppf((1 + LEVEL) / 2, len(known) - 1)) * sd / len(known) ** 0.5
    return {"mean": mean, "sd": sd, "low": max(0.0, mean - half), "high": min(most, mean + half)}


def spread(seeds: Sequence[int], measured: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How far the seed of the training alone moves a figure on the same films.

    Args:
        seeds: (N,) training seeds, N at least 2.
        measured: (N,) results of :func:`vgg16_xray.trust.metrics.evaluate`.
    """
    found: dict[str, Any] = {"training_seeds": list(seeds)}
    for name in SPREAD:
        values = [one["overall"][name]["value"] for one in measured]
        found[name] = {
            "values": values,
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)),
            "min": min(values),
            "max": max(values),
        }
    return found


def _out_of_fold(manifest: pd.DataFrame, fold_of: Sequence[int], members: Sequence[Member]) -> pd.DataFrame:
    """``predictions.csv`` of the whole run, each row from the model that never saw the film, as text; and its fold."""
    import pandas as pd

    folds = np.asarray(fold_of)
    parts = []
    for member in members:
        file = member.run.require(member.run.predictions, made_by="test")
        said = pd.read_csv(file, dtype=str, keep_default_na=False)
        rows = np.flatnonzero(folds == member.fold)
        if (
            any(list(said[name]) != list(manifest[name]) for name in ("path", "collection", "label"))
            or set(said["split"].iloc[rows]) != {TEST}
            or (said["split"] == TEST).sum() != len(rows)
        ):
            raise UserError(f"{file}: must have the films and the test side of fold {member.fold}, found others")
        parts.append(said.iloc[rows].assign(fold=member.fold))
    return pd.concat(parts).sort_index()


def _probabilities(plan: Plan, table: pd.DataFrame) -> np.ndarray:
    """(N, K) the scores of ``predictions.csv``, whose largest is that of the answer, and none of which is 0."""
    # A true class that is written as 0 would cost 36 in the log loss, which the model did not say.
    probabilities = np.maximum(table[[f"p_{label}" for label in plan.labels]].to_numpy(dtype=np.float64), HALF_A_UNIT)
    answer = np.array([plan.labels.index(label) for label in table["prediction"]])
    # Two classes that rounding made equal: the model's answer was by the unrounded ones.
    rows = np.flatnonzero(probabilities.argmax(axis=1) != answer)
    probabilities[rows, answer[rows]] = probabilities[rows].max(axis=1) + HALF_A_UNIT / 10
    return np.asarray(probabilities / probabilities.sum(axis=1, keepdims=True))


def _evaluate(manifest: pd.DataFrame, plan: Plan, table: pd.DataFrame, *, replicates: int = 1000) -> dict[str, Any]:
    from vgg16_xray.trust.metrics import evaluate

    return evaluate(
        truth=targets_of(manifest, plan),
        probabilities=_probabilities(plan, table),
        labels=plan.labels,
        groups=list(manifest["group"]),
        replicates=replicates,
        seed=plan.seed,
        level=LEVEL,
    )


def _calibration(manifest: pd.DataFrame, plan: Plan, table: pd.DataFrame, members: Sequence[Member]) -> dict[str, Any]:
    from vgg16_xray.trust import calibrate

    validated = [member.run.require(member.run.validation, made_by="validate") for member in members]
    try:
        fitted = [read_json(file)["calibration"] for file in validated]
        return calibrate.test_folds(
            fitted,
            table["fold"].to_numpy() - 1,
            _probabilities(plan, table),
            targets_of(manifest, plan),
            list(manifest["group"]),
            seed=plan.seed,
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{validated[0].parent.parent}: must hold what step 5 wrote, found {error!r}") from error


def _notes(run: RunDir, manifest: pd.DataFrame) -> list[str]:
    notes = [
        "The models of the folds share training films, so their figures are not independent: the t "
        "interval over folds is a rough one (Bengio and Grandvalet 2004). The pooled intervals draw groups of films.",
        "The pooled AUROC and average precision rank films by the probabilities of different models.",
    ]
    if contradicted := conflicts(labels=list(manifest["label"]), pixels=list(manifest["content"])):
        notes.append(
            f"{len(contradicted)} films show what a film of another class shows; they are predicted and "
            "counted as any other, and of such films not all can be named rightly."
        )
    if read_config(run)["data"]["split"] == "given with the data":
        notes.append("The data bring a split of their own; the folds are made of all films and do not use it.")
    return notes
