"""One GPU: the share of its bf16 matrix rate that an epoch reaches with everything trained, and a frozen-base epoch.

    python benchmarks/gpu.py [--films 16930] [--epochs 2] [--batch 128]

Films are noise: a network takes as long over them. Each epoch is timed with all the work of `vgg16-xray train`
(augmentation, mixup, optimizer, average); the first of each, which compiles and chooses kernels, is not counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from vgg16_xray.config import Recipe, load_recipe
from vgg16_xray.films.store import ArrayStore, create_array
from vgg16_xray.learn.augment import Augment
from vgg16_xray.learn.devices import Resident, choose_device, place, rows_on
from vgg16_xray.learn.engines import Engine, FrozenPart, choose
from vgg16_xray.learn.features import ComputedFeatures
from vgg16_xray.learn.fit import TrainingData, _Loop
from vgg16_xray.learn.vgg16 import build, split_at

SIZE, CLASSES = 224, 4
#: Multiply-adds of the base for a film of 224 x 224, counted from its layers.
MULTIPLY_ADDS = 15.35e9
#: Forward, gradient of the activations, gradient of the weights.
PASSES = 3
#: Films of an epoch: four fifths of the COVID-19 Radiography Database's 21,165.
FILMS = 16_930


def seconds_an_epoch(recipe: Recipe, pixels: ArrayStore, engine: Engine, device: torch.device, epochs: int) -> float:
    """Median seconds of an epoch, the first left out."""
    model = build(classes=CLASSES, head=recipe.head, dropout=recipe.dropout, blocks=recipe.blocks)
    place(model, device)
    prefix, trainable = split_at(model, recipe.train_from)
    frozen = FrozenPart(prefix, preprocessing=recipe.preprocessing, engine=engine)
    rows = rows_on(pixels, device)
    print(f"films {'lie on the device' if isinstance(rows, Resident) else 'are sent'}", flush=True)
    data = TrainingData(
        targets=np.random.default_rng(0).integers(0, CLASSES, len(pixels)),
        train=np.arange(len(pixels)),
        validation=np.arange(0),
        train_features=lambda epoch: ComputedFeatures(
            frozen, rows, change=Augment(recipe.augmentation, seed=1, draw=epoch)
        ),
        validation_features=ComputedFeatures(frozen, rows),
    )
    loop = _Loop(
        trainable,
        data,
        recipe,
        classes=CLASSES,
        seed=1,
        key="",
        engine=engine,
        last=Path(),
        cycles=(recipe.epochs,),
    )
    spent = []
    for _ in range(1 + epochs):
        started = time.perf_counter()
        loop.learn()  # ends with a look at the sums, which waits for the device
        spent.append(time.perf_counter() - started)
        loop.epoch, loop.step = loop.epoch + 1, 0
    return statistics.median(spent[1:])


def matrix_rate(device: torch.device, dtype: torch.dtype, *, side: int = 8192, times: int = 20) -> float:
    """Multiply-adds a second of square matrices: what the card can do, measured."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(times):
        a @ b
    torch.cuda.synchronize(device)
    return side**3 * times / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--films", type=int, default=FILMS, help="films of an epoch")
    parser.add_argument("--epochs", type=int, default=2, help="epochs that are timed")
    parser.add_argument("--batch", type=int, help="films a step; the recipe's by default")
    given = parser.parse_args()
    chosen = choose_device()
    if chosen.name != "cuda":
        print(f"no CUDA card that torch can use ({chosen.reason}): nothing is measured")
        return
    device, engine = chosen.torch, choose(device="cuda")
    print(f"{chosen.reason}; {engine.name}, {engine.reason}; torch {torch.__version__}")
    rate = matrix_rate(device, engine.dtype)
    print(f"matrix rate, {engine.dtype}: {rate / 1e12:.0f} T multiply-adds/s")
    best = load_recipe("best", epochs=100, batch=given.batch)
    frozen = dataclasses.replace(load_recipe("notebook", epochs=100), preprocessing="caffe")
    with tempfile.TemporaryDirectory() as folder:
        rows = create_array(Path(folder) / "pixels.npy", shape=(given.films, SIZE, SIZE), dtype=np.uint8)
        for start in range(0, given.films, 1024):
            block = rows[start : start + 1024]
            block[:] = np.random.default_rng(start).integers(0, 256, block.shape, dtype=np.uint8)
        pixels = ArrayStore(Path(folder) / "pixels.npy")
        everything = seconds_an_epoch(dataclasses.replace(best, head_epochs=0), pixels, engine, device, given.epochs)
        share = given.films * PASSES * MULTIPLY_ADDS / everything / rate
        print(
            f"everything trained, {best.batch} films a step: {everything:.1f} s an epoch of {given.films:,} films, "
            f"{given.films / everything:,.0f} films/s, {share:.2f} of the matrix rate (aim: 0.50 or more)"
        )
        alone = seconds_an_epoch(frozen, pixels, engine, device, given.epochs)
        print(f"frozen base, films changed anew: {alone:.1f} s an epoch of {given.films:,} films (aim: seconds)")


if __name__ == "__main__":
    main()
