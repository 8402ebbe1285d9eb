"""The feature store: a batch from its shards against one file of the same rows, and what verifying a store costs.

    python benchmarks/features.py [--films 2048]

Both read from the page cache; ratios of medians, the two in turn.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from vgg16_xray.films.store import ArrayStore
from vgg16_xray.learn.features import FeatureSource
from vgg16_xray.learn.featurestore import SHARD, StoredFeatures

#: (h, w, C) of a film.
SHAPES = {"head, pooled": (1, 1, 1024), "head": (7, 7, 512), "block5": (14, 14, 512)}
BATCH, TIMES = 32, 200


class OneFile:
    """What the store was before it had shards."""

    def __init__(self, path: Path) -> None:
        self._store = ArrayStore(path)

    def take(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self._store.take(rows)).permute(0, 3, 1, 2).float()


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compare(folder: Path, name: str, shape: tuple[int, int, int], films: int) -> None:
    values = np.random.default_rng(0).random((films, *shape), dtype=np.float32).astype(np.float16)
    folder.mkdir()
    np.save(folder / "one.npy", values)
    shards = []
    for start in range(0, films, SHARD):
        np.save(folder / f"{start}.npy", values[start : start + SHARD])
        shards.append(np.lib.format.open_memmap(folder / f"{start}.npy", mode="r"))
    del values
    one: FeatureSource = OneFile(folder / "one.npy")
    sharded: FeatureSource = StoredFeatures(shards, where=folder)
    rng = np.random.default_rng(1)
    spent: dict[str, list[float]] = {"one": [], "sharded": []}
    for _ in range(TIMES):
        rows = rng.integers(0, films, BATCH)
        spent["one"].append(seconds(lambda rows=rows: one.take(rows)))  # type: ignore[misc]
        spent["sharded"].append(seconds(lambda rows=rows: sharded.take(rows)))  # type: ignore[misc]
        assert torch.equal(one.take(rows), sharded.take(rows))
    before, now = (statistics.median(spent[key]) for key in ("one", "sharded"))
    print(f"| {name} | {before * 1e6:.0f} | {now * 1e6:.0f} | {now / before:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--films", type=int, default=2048, help="films in each store")
    films = parser.parse_args().films
    with tempfile.TemporaryDirectory() as name:
        print(f"A batch of {BATCH} random films of {films:,}, shards of {SHARD}; microseconds.\n")
        print("| cut | one file | shards | shards / one file |\n| --- | --- | --- | --- |")
        for cut, shape in SHAPES.items():
            compare(Path(name) / cut, cut, shape, films)
    block = np.random.default_rng(0).bytes(256 * 1024 * 1024)
    crc32, blake2b = (
        statistics.median(seconds(work) for _ in range(5))
        for work in (lambda: zlib.crc32(block), lambda: hashlib.blake2b(block))
    )
    print(
        f"\nVerifying: CRC-32 {len(block) / crc32 / 1e9:.2f} GB/s, BLAKE2b {len(block) / blake2b / 1e9:.2f} GB/s, "
        f"ratio {blake2b / crc32:.1f}."
    )


if __name__ == "__main__":
    main()
