"""Stored features of drawn numbers or zeros, and an epoch on them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from vgg16_xray.config import Recipe
from vgg16_xray.learn.engines import choose
from vgg16_xray.learn.featurestore import SHARD, StoredFeatures
from vgg16_xray.learn.fit import TrainingData, fit
from vgg16_xray.learn.vgg16 import SIZE, build, feature_shape
from vgg16_xray.learn.weights import side_seen

LABELS = ("a", "b", "c", "d")


def store(folder: Path, *, films: int, recipe: Recipe, zeros: bool) -> StoredFeatures:
    """Features of films at the recipe's cut: half of them zero, as behind a ReLU, or a sparse file of zeros alone."""
    side = side_seen(recipe.preprocessing, SIZE)
    channels, height, width = feature_shape(recipe.train_from, side, head=recipe.head, blocks=recipe.blocks)
    rng = np.random.default_rng(0)
    shards = []
    for start in range(0, films, SHARD):
        file, shape = folder / f"{start}.npy", (min(SHARD, films - start), height, width, channels)
        values = np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=shape)
        if not zeros:
            values[:] = rng.standard_normal(shape, dtype=np.float32).clip(min=0)
        shards.append(np.lib.format.open_memmap(file, mode="r"))
    return StoredFeatures(shards, where=folder)


def fit_on_stored(
    source: StoredFeatures, recipe: Recipe, *, films: int, validation: int, engine: str
) -> dict[str, float]:
    """Fit a new model on the first films, validate it on the last `validation`, and return the history's last row."""
    rows = np.arange(films)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return fit(
            build(classes=len(LABELS), head=recipe.head, dropout=recipe.dropout, blocks=recipe.blocks),
            TrainingData(
                targets=rows % len(LABELS),
                train=rows[:-validation],
                validation=rows[-validation:],
                train_features=lambda _: source,
                validation_features=source,
            ),
            recipe,
            labels=LABELS,
            size=SIZE,
            seed=0,
            key="benchmark",
            engine=choose(engine),
            last=folder / "last.safetensors",
            best=folder / "best.safetensors",
            history=folder / "history.csv",
        )[-1]
