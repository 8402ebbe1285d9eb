"""A bundle in int8 against torch: python benchmarks/bundle.py [BUNDLE], the model in the package by default.

The same films, threads and process; all take turns in rounds, medians count. Then the command itself from a cold start:
a process, its imports, the model read, hashed and checked, one film.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from engines import THREADS, Clock
from PIL import Image
from table import Row, hand_over, words
from timed import timed

from vgg16_xray.bundle.classify import Classifier
from vgg16_xray.bundle.format import BundleDir
from vgg16_xray.learn.engines import VNNI, processor_features
from vgg16_xray.learn.runtimes import drawn_films
from vgg16_xray.learn.vgg16 import SIZE, build
from vgg16_xray.learn.weights import load_base, normalise

FILMS, ROUNDS, STARTS = 8, 7, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, default=BundleDir.packaged().path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    films = drawn_films(FILMS, seed=1, size=SIZE)
    classifiers = {
        name: Classifier.load(given.bundle, precision=name, threads=THREADS)
        for name in BundleDir(given.bundle).graphs()
    }
    network, weights = build(classes=4, head="gap", dropout=0.0).eval(), load_base()
    weights.put_into(network)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def eager(pixels: np.ndarray) -> None:
        with torch.no_grad():
            network(normalise(torch.from_numpy(pixels), weights.preprocessing))

    clock = Clock(
        {"torch": lambda: eager(films), "torch, one": lambda: eager(films[:1])}
        | {name: lambda one=one: one.predict_arrays(films, feature_map=False) for name, one in classifiers.items()}
        | {f"{name}, one": lambda one=one: one.predict_arrays(films[:1]) for name, one in classifiers.items()},
        rounds=given.rounds,
    )
    has_vnni = bool(VNNI & processor_features())
    rows = []
    for name in classifiers:
        for what, end, count in ((f"{FILMS} films together", "", FILMS), ("one film, its map too", ", one", 1)):
            wall, core = clock.medians(f"{name}{end}")
            wall_torch, core_torch = clock.medians(f"torch{end}")
            rows.append(
                Row(
                    what=f"bundle in {name}, {what}, a film: on the clock (on the cores)",
                    ours=f"{words(wall / count)} ({words(core / count)})",
                    against=f"{words(wall_torch / count)} ({words(core_torch / count)}), torch channels last, float32",
                    ratio=f"{wall_torch / wall:.1f} ({core_torch / core:.1f})",
                    aim=("≥ 4" if has_vnni else "≥ 2") if name == "int8" and not end else "",
                )
            )
    rows.append(_cold_start(given.bundle, films[0]))
    hand_over(rows)


def _cold_start(bundle: Path, film: np.ndarray) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "film.png"
        Image.fromarray(film).save(file)
        command = [sys.executable, "-m", "vgg16_xray", "predict", str(file), "--model", str(bundle)]
        found = [timed(command) for _ in range(STARTS + 1)][1:]
    wall, core = (statistics.median(values) for values in ([f.seconds for f in found], [f.core_seconds for f in found]))
    return Row(
        what="`vgg16-xray predict film.png`, a process from its start to its end: on the clock (on the cores)",
        ours=f"{words(wall)} ({words(core)})",
        aim="< 1.5 s",
    )


if __name__ == "__main__":
    main()
