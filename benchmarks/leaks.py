"""What the search for near-copies costs, by the number of films: python benchmarks/leaks.py [--most 200000].

Candidates dominate, and are measured here on drawn descriptors (no films of that number are at hand): the index of all
is built, and so many films are looked up in it, 68 views each, as `trust.near_copies` does. Laying films over each
other comes on top, at most eight pairs a film: `scripts/measure_leaks.py` and `audit leaks` say what that takes.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from vgg16_xray.trust import near_copies

LOOKED_UP = 128


def main() -> None:
    """Build, look up, print a row a size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=200_000)
    most = parser.parse_args().most
    rng = np.random.default_rng(0)
    # Films are alike: 40 directions hold most of what differs.
    directions = rng.normal(size=(40, near_copies._KEPT.sum())).astype(np.float32)
    contrast = (rng.normal(size=(LOOKED_UP, near_copies.SIDE, near_copies.SIDE)) * 40).clip(-125, 125).astype(np.int8)
    print("| films | index built, CPU s | looked up, CPU ms a film | all films, CPU min |\n|---|---|---|---|")
    for films in (n for n in (5_000, 10_000, 20_000, 50_000, 100_000, 200_000) if n <= most):
        described = rng.normal(size=(films, 40)).astype(np.float32) @ directions
        described += rng.normal(size=described.shape).astype(np.float32)
        described /= np.linalg.norm(described, axis=1, keepdims=True)
        started = time.process_time()
        index = near_copies._index(described)
        built = time.process_time()
        near_copies._nearest(index, np.arange(LOOKED_UP), contrast)
        looked_up = time.process_time()
        each = (looked_up - built) / LOOKED_UP
        print(
            f"| {films:,} | {built - started:.1f} | {1000 * each:.1f} | {(built - started + each * films) / 60:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
