"""Peak resident memory of an epoch on stored features of 1,000, 10,000 and 100,000 films, each in a process of its own.

    python benchmarks/memory.py

The stored features are sparse files of zeros: how much of a store a process holds is measured, not what it says.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

FILMS = (1_000, 10_000, 100_000)
#: Its features are the whole 7 x 7 x 512 map: 50 KB a film.
HEAD = "linear"


def epoch(films: int) -> None:
    import numpy as np

    from vgg16_xray.config import load_recipe
    from vgg16_xray.learn.engines import choose
    from vgg16_xray.learn.featurestore import SHARD, StoredFeatures
    from vgg16_xray.learn.fit import TrainingData, fit
    from vgg16_xray.learn.vgg16 import build

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = StoredFeatures([shard(folder, start, films) for start in range(0, films, SHARD)], where=folder)
        rows = np.random.default_rng(0).permutation(films)
        cut = films * 9 // 10
        recipe = load_recipe("fast", epochs=1, head=HEAD)
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


def shard(folder: Path, start: int, films: int) -> np.ndarray:
    import numpy as np

    from vgg16_xray.learn.featurestore import SHARD
    from vgg16_xray.learn.vgg16 import feature_shape

    channels, height, width = feature_shape("head", head=HEAD)
    shape = (min(SHARD, films - start), height, width, channels)
    file = folder / f"{start}.npy"
    np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=shape)
    return np.lib.format.open_memmap(file, mode="r")


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
