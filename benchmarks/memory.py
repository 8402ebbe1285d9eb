"""Peak resident memory of an epoch on stored features of 1,000, 10,000 and 100,000 films, each in a process of its own.

    python benchmarks/memory.py

The stored features are sparse files of zeros: what is measured is how much of a store a process holds, not what it says.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

FILMS = (1_000, 10_000, 100_000)


def epoch(films: int) -> None:
    import numpy as np

    from vgg16_xray.config import load_recipe
    from vgg16_xray.learn.engines import choose
    from vgg16_xray.learn.features import StoredFeatures
    from vgg16_xray.learn.fit import TrainingData, fit
    from vgg16_xray.learn.vgg16 import build, feature_shape

    channels, height, width = feature_shape("head")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.lib.format.open_memmap(
            folder / "features.npy", mode="w+", dtype=np.float16, shape=(films, height, width, channels)
        )
        source = StoredFeatures(folder / "features.npy", np.arange(films))
        rows = np.random.default_rng(0).permutation(films)
        cut = films * 9 // 10
        recipe = load_recipe("fast", epochs=1)
        fit(
            build(classes=4, head=recipe.head, dropout=recipe.dropout),
            TrainingData(
                targets=np.arange(films) % 4,
                train=rows[:cut],
                validation=rows[cut:],
                train_features=lambda _: source,
                validation_features=source,
            ),
            recipe,
            labels=("a", "b", "c", "d"),
            size=224,
            seed=0,
            key="benchmark",
            engine=choose(),
            last=folder / "last.safetensors",
            best=folder / "best.safetensors",
            history=folder / "history.csv",
        )


def peak_mb() -> float:
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    if len(sys.argv) > 1:
        epoch(int(sys.argv[1]))
        print(f"{peak_mb():.0f}")
        return
    print("| films | peak resident memory, MB |\n| --- | --- |")
    for films in FILMS:
        done = subprocess.run([sys.executable, __file__, str(films)], check=True, capture_output=True, text=True)
        print(f"| {films:,} | {done.stdout.split()[-1]} |", flush=True)


if __name__ == "__main__":
    main()
