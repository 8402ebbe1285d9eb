"""Step 4: the trainable part is fitted; what the frozen part yields is computed once.

Reads ``run.toml``, ``manifest.parquet``, ``pixels.npy``. Leaves ``history.csv`` and ``checkpoints/``, and features
in the cache that all runs share.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vgg16_xray import ranks
from vgg16_xray.errors import UserError
from vgg16_xray.files import saying_why_not_written
from vgg16_xray.films.split import TRAIN, VALIDATION
from vgg16_xray.films.store import ArrayStore
from vgg16_xray.learn.augment import Augment
from vgg16_xray.learn.devices import Streamed, place, put, rows_on
from vgg16_xray.learn.engines import FrozenPart
from vgg16_xray.learn.features import NEVER_STORED, ComputedFeatures, FeatureSource
from vgg16_xray.learn.probe import Probe
from vgg16_xray.rundir import CacheDir, RunDir, key_of, read_config
from vgg16_xray.steps.initialise import Plan, assemble, read_plan, refuse_to_resume
from vgg16_xray.steps.preprocess import VERSION as PREPROCESS_VERSION
from vgg16_xray.steps.preprocess import check_sides, read_manifest

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from vgg16_xray.learn.featurestore import StoredFeatures
    from vgg16_xray.learn.vgg16 import VGG16

STEP = "train"
#: Added to the number of a view before it seeds a draw, so that view 1 is not what epoch 1 would have drawn.
VIEW_DRAW = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What step 4 made."""

    history: list[dict[str, float]]
    already_done: bool


def train(run: RunDir, *, resume: bool = False) -> Trained:
    """Fit the model that ``run.toml`` describes; go on where an interrupted training of the same stopped.

    Args:
        run: A run with steps 2 and 3 finished.
        resume: Refuse to begin anew: there must be something to go on from.

    Raises:
        UserError: A step before has not finished, there is nothing to resume, the disk is full.
    """
    started = time.monotonic()
    plan = read_plan(run)
    outputs = [run.best, run.last, run.history]
    if ranks.agree(run.is_done(STEP, plan.key, outputs)):
        return Trained(history=read_history(run.history), already_done=True)
    manifest = read_manifest(run)
    check_sides(manifest)
    ranks.by_first(lambda: _make_way(run, plan, resume=resume), lambda: None)
    pixels = open_pixels(run, manifest)
    model = assemble(
        plan.recipe, classes=len(plan.labels), weights=plan.weights, seed=plan.seed, sha256=plan.weights_sha256
    )
    place(model, plan.device.torch)
    features = Features(run, plan, model, pixels, manifest)

    from vgg16_xray.learn.fit import TrainingData, fit

    data = TrainingData(
        targets=targets_of(manifest, plan),
        train=rows_of(manifest, TRAIN),
        validation=rows_of(manifest, VALIDATION),
        train_features=features.for_training(),
        validation_features=features.as_they_are(),
        sources=sources_of(manifest),
    )
    before_fitting = time.monotonic() - started
    history = fit(
        model,
        data,
        plan.recipe,
        labels=plan.labels,
        size=plan.size,
        seed=plan.seed,
        key=plan.key,
        engine=plan.engine,
        last=run.last,
        best=run.best,
        history=run.history,
        probe=features.probe(),
        cycles=plan.cycles,
        continues=plan.continues,
    )
    # The epochs of interrupted calls count: each row of the history knows how long its epoch took.
    seconds = before_fitting + sum(row["seconds"] for row in history)
    ranks.by_first(lambda: run.stamp(STEP, plan.key, seconds=seconds), lambda: None)
    return Trained(history=history, already_done=False)


class Features:
    """What the frozen part of a run's model yields for its films.

    Args:
        run: What its ``run.toml`` says of the weights goes into the words of a store.
        plan: What the run does.
        model: The network, as initialised or as trained: its frozen part is the same. On the plan's device.
        pixels: The films.
        manifest: A row a film.
    """

    def __init__(self, run: RunDir, plan: Plan, model: VGG16, pixels: ArrayStore, manifest: pd.DataFrame) -> None:
        from vgg16_xray.learn.vgg16 import split_at

        prefix, _ = split_at(model, plan.recipe.train_from)
        self._frozen = FrozenPart(prefix, preprocessing=plan.recipe.preprocessing, engine=plan.engine)
        self._plan, self._films = plan, len(manifest)
        computes = plan.recipe.train_from in NEVER_STORED or (
            plan.recipe.augmentation.changes and not plan.recipe.augmentation.views
        )
        # What is computed once is read once: only what is computed in every epoch is worth a GPU's memory.
        device = plan.device.torch
        self._pixels = rows_on(pixels, device) if computes else Streamed(pixels, device)
        self._weights = str(read_config(run)["weights"].get("origin", ""))
        self._train = rows_of(manifest, TRAIN)
        self._of_pixels = key_of(list(manifest["pixels_sha256"]), plan.size, PREPROCESS_VERSION)

    def probe(self) -> Probe:
        """What tells later whether a model gets the features that it was trained on."""
        return Probe.of(self._frozen, size=self._plan.size)

    def say_if_others_than(self, probe: Probe | None, *, where: Path, trained_with: str) -> None:
        """Say in one line where these are not the features that a model was trained on.

        Raises:
            UserError: They are so far from them that answers would mean nothing.
        """
        if probe and (line := probe.check(self._frozen, where=where, trained_with=trained_with)):
            print(f"note: {line}", flush=True)

    def as_they_are(self) -> FeatureSource:
        """Features of every film, nothing changed."""
        return self._view(0)

    def for_training(self) -> Callable[[int], FeatureSource]:
        """Features of the training films in an epoch, changed as the recipe says."""
        augmentation, seed = self._plan.recipe.augmentation, self._plan.seed
        if not augmentation.changes:
            unchanged = self.as_they_are()
            return lambda epoch: unchanged
        if augmentation.views == 0 or self._plan.recipe.train_from in NEVER_STORED:
            return lambda epoch: ComputedFeatures(
                self._frozen, self._pixels, change=Augment(augmentation, seed=seed, draw=epoch)
            )
        views = [self._view(number) for number in range(augmentation.views + 1)]
        return lambda epoch: _OneOfViews(views, seed=seed, epoch=epoch)

    def _view(self, number: int) -> FeatureSource:
        """Features of view `number`; 0 is every film as it is, the others are films changed, for training alone."""
        plan, recipe = self._plan, self._plan.recipe
        change, drawn, view = None, None, "as they are"
        if number:
            change = Augment(recipe.augmentation, seed=plan.seed, draw=VIEW_DRAW + number)
            # How many views there are changes none of them.
            bounds = {name: value for name, value in recipe.as_dict()["augmentation"].items() if name != "views"}
            drawn, view = [bounds, plan.seed, number], f"view {number}"
        source = ComputedFeatures(self._frozen, self._pixels, change=change)
        if recipe.train_from in NEVER_STORED:
            return source
        # All films, also those that another fold trains on: the key knows no split, so that folds share a store.
        stored = self._store(source, drawn, view)
        return stored.only(self._train) if number else stored

    def _store(self, source: FeatureSource, drawn: object, view: str) -> StoredFeatures:
        import torch

        from vgg16_xray.learn.featurestore import VERSION, store_features
        from vgg16_xray.learn.vgg16 import feature_shape, is_pooled
        from vgg16_xray.learn.weights import side_seen

        plan, recipe = self._plan, self._plan.recipe
        side = side_seen(recipe.preprocessing, plan.size)
        shape = feature_shape(recipe.train_from, side, head=recipe.head, blocks=recipe.blocks)
        cut = recipe.train_from
        # Another torch may round otherwise, and the store outlives an upgrade.
        of_network = [plan.weights_sha256, plan.engine.name, recipe.preprocessing, str(torch.__version__)]
        if is_pooled(recipe.train_from, recipe.head):
            cut += " (pooled)" if recipe.blocks == 5 else f" (pooled, {recipe.blocks} blocks)"
            of_network.append(str(recipe.blocks))  # the shape does not tell
        if plan.device.name != "cpu":
            of_network.append(plan.device.name)  # sums in another order
        key = key_of(VERSION, self._of_pixels, of_network, shape, drawn)
        channels, height, width = shape
        return store_features(
            source,
            films=self._films,
            shape=shape,
            store=CacheDir.of_user().store(f"{re.sub(r'[^a-z0-9]+', '-', cut).strip('-')}-{key}"),
            words={
                "what": f"{self._films:,} films {view} at {cut}, {height} x {width} x {channels}, {plan.engine.name}, "
                f"pixels as '{recipe.preprocessing}'",
                "cut": cut,
                "view": view if drawn is None else {view: drawn},
                "weights": self._weights,
                "weights_sha256": plan.weights_sha256,
                "engine": plan.engine.name,
                "preprocessing": recipe.preprocessing,
                "torch": str(torch.__version__),
            },
            title=f"features at {cut}, films {view}",
            device=plan.device.torch,
        )


class _OneOfViews:
    """Takes one of several stored views of each film, drawn by (seed, epoch, film)."""

    def __init__(self, views: list[FeatureSource], *, seed: int, epoch: int) -> None:
        self._views, self._seed, self._epoch = views, seed, epoch

    def take(self, rows: np.ndarray) -> torch.Tensor:
        """See :class:`vgg16_xray.learn.features.FeatureSource`."""
        import torch

        drawn = np.array(
            [np.random.default_rng([self._seed, self._epoch, int(row)]).integers(len(self._views)) for row in rows]
        )
        places = [np.flatnonzero(drawn == number) for number in range(len(self._views))]
        parts = [view.take(rows[at]) for view, at in zip(self._views, places, strict=True) if len(at)]
        back = np.argsort(np.concatenate(places), kind="stable")
        return torch.cat(parts)[put(back, parts[0].device)]


def open_pixels(run: RunDir, manifest: pd.DataFrame) -> ArrayStore:
    """Open the pixel store and check that it belongs to the manifest.

    Raises:
        UserError: It is missing, or has another number of films.
    """
    pixels = ArrayStore(run.require(run.pixels, made_by="preprocess DATA --out"))
    if len(pixels) != len(manifest) or pixels.dtype != np.uint8:
        raise UserError(
            f"{run.pixels}: must hold {len(manifest)} films of uint8, found {len(pixels)} of {pixels.dtype}"
        )
    return pixels


def targets_of(manifest: pd.DataFrame, plan: Plan) -> np.ndarray:
    """(N,) int64: class of every film, in the stored order of the labels."""
    return manifest["label"].map({label: i for i, label in enumerate(plan.labels)}).to_numpy(dtype=np.int64)


def sources_of(manifest: pd.DataFrame) -> np.ndarray:
    """(N,) int64: source of every film, numbered in order of their names; films of unknown source share a number."""
    _, numbers = np.unique(manifest["source"].fillna("").to_numpy(dtype=str), return_inverse=True)
    return numbers.ravel().astype(np.int64)


def rows_of(manifest: pd.DataFrame, side: str) -> np.ndarray:
    """(n,) int64, ascending: rows of the films on one side of the split."""
    return np.flatnonzero((manifest["split"] == side).to_numpy())


def read_history(path: Path) -> list[dict[str, float]]:
    """The rows of ``history.csv``."""
    import pandas as pd

    return [{str(k): float(v) for k, v in row.items()} for row in pd.read_csv(path).to_dict("records")]


def _make_way(run: RunDir, plan: Plan, *, resume: bool) -> None:
    if resume:
        refuse_to_resume(run, plan)
    # Until this training has finished, nobody takes what lies there for its result.
    run.unstamp(STEP)
    _set_others_aside(run, plan)


def _set_others_aside(run: RunDir, plan: Plan) -> None:
    """Move what another training left out of the way; nothing that was computed is deleted."""
    from vgg16_xray.learn.checkpoint import load_header

    if not run.last.exists():
        return
    try:
        header = load_header(run.last)
    except UserError as error:
        raise UserError(
            error.message,
            hint=f"delete or move it, and 'vgg16-xray train {run.path}' begins anew; the features are kept",
        ) from error
    if header.get("key") in {plan.key, *plan.continues} and (run.best.exists() or not header.get("history")):
        return
    # The state goes last: a move that is interrupted is found again by it, and goes on.
    files = [run.history, run.best, run.validation, run.test, run.predictions, run.last]
    files = [file for file in files if file.exists()]
    name = str(header.get("key", "unknown"))
    places = (run.path / "superseded" / (f"{name}-{number}" if number > 1 else name) for number in itertools.count(1))
    aside = next(place for place in places if not any((place / file.name).exists() for file in files))
    with saying_why_not_written(aside):
        aside.mkdir(parents=True, exist_ok=True)
        for file in files:
            file.replace(aside / file.name)
    print(f"{run.path}: another training was here; it is kept in {aside}")
