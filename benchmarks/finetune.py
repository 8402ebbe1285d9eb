"""An epoch of fine-tuning block 5, as recipe `default` does, against an epoch of Keras' frozen base, per film.

    python benchmarks/finetune.py --keras .venv-keras/bin/python [--train 128] [--validation 16]

In turn, training and validation together, on both sides. Ours reads stored features of drawn numbers: what a
convolution costs does not depend on what it reads. Making the real ones once is no part of an epoch.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from stored import fit_on_stored, store
from table import Row, hand_over, words
from timed import Keras

from films import deal
from vgg16_xray.config import load_recipe
from vgg16_xray.learn.engines import processor_features

ENGINES = ("torch-float32", "torch-bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keras", type=Path, required=True, help="a Python with TensorFlow")
    parser.add_argument("--train", type=int, default=128, help="films to train on")
    parser.add_argument("--validation", type=int, default=16, help="films to validate on")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    recipe = load_recipe("default", epochs=1)
    theirs: list[tuple[float, float]] = []
    ours: dict[str, list[tuple[float, float]]] = {engine: [] for engine in ENGINES}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "films"
        dealt = deal(folder, train=given.train, validation=given.validation)
        films = dealt.train + dealt.validation
        source = store(Path(name), films=films, recipe=recipe, zeros=False)
        with Keras(given.keras, folder, epochs=given.rounds + 1) as epoch:
            # The first epoch of each finds kernels and builds graphs, and does not count.
            for number in range(given.rounds + 1):
                theirs.append(((found := epoch())["seconds"], found["core_seconds"]))
                for engine, spent in ours.items():
                    worked = time.process_time()
                    row = fit_on_stored(source, recipe, films=films, validation=dealt.validation, engine=engine)
                    spent.append((row["seconds"], time.process_time() - worked))
                print(number, theirs[-1], {engine: spent[-1] for engine, spent in ours.items()}, flush=True)
    bf16 = processor_features() & {"avx512_bf16", "amx_bf16"}
    wall, core = (statistics.median(values) for values in zip(*theirs[1:], strict=True))
    rows = []
    for engine, aim in zip(ENGINES, ("≤ 0.30", "≤ 0.12" if bf16 else ""), strict=True):
        our_wall, our_core = (statistics.median(values) for values in zip(*ours[engine][1:], strict=True))
        rows.append(
            Row(
                what=f"fine-tuning epoch (block 5), a film, {engine}",
                ours=words(our_wall / dealt.train),
                against=words(wall / dealt.train),
                ratio=f"**{our_wall / wall:.2f}**",
                aim=aim,
            )
        )
        rows.append(
            Row(
                what="the same in core seconds",
                ours=words(our_core / dealt.train),
                against=words(core / dealt.train),
                ratio=f"{our_core / core:.2f}",
            )
        )
    hand_over(
        rows,
        [
            f"{dealt.train} films to train on and {dealt.validation} to validate, the median of {given.rounds} epochs "
            "in turn; a film's share is the epoch's seconds over its training films, on both sides."
        ],
    )


if __name__ == "__main__":
    main()
