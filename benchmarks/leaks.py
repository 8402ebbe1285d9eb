"""What the search for near-copies costs, by the number of films: python benchmarks/leaks.py [--films N] [--most N].

First all of it, on so many films; then candidates alone, which are what grows with the number of films, on drawn
descriptors (no films of that number are at hand): the index of all is built, and so many films are looked up in it, 68
views each, as `trust.near_copies` does. The films are smooth pictures of 40 directions with a grain of their own: as
alike as chests are, so that many have to be laid over each other, and quicker to draw.
"""

from __future__ import annotations

import argparse
import os
import time

import numpy as np

from vgg16_xray.films.decode import SIZE
from vgg16_xray.trust import near_copies

LOOKED_UP, DIRECTIONS = 128, 40


class Films:
    """Any number of films, each drawn when it is asked for."""

    def __init__(self) -> None:
        from scipy.ndimage import gaussian_filter

        rng = np.random.default_rng(0)
        noise = rng.normal(size=(DIRECTIONS + 1, SIZE, SIZE)).astype(np.float32)
        shapes = sum(gaussian_filter(noise, sigma, axes=(1, 2), mode="wrap") * sigma for sigma in (4, 8, 16, 32))
        self._shapes = (shapes / shapes.std(axis=(1, 2), keepdims=True)).reshape(DIRECTIONS + 1, -1)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """(B,) -> (B, SIZE, SIZE) uint8."""
        rngs = [np.random.default_rng([1, row]) for row in rows.tolist()]
        # What is common to all, and half as much of what is a film's own.
        mixed = np.stack([np.r_[1, rng.normal(size=DIRECTIONS) / 2 / DIRECTIONS**0.5] for rng in rngs])
        grain = np.stack([rng.normal(size=SIZE * SIZE) for rng in rngs]).astype(np.float32)
        films = 128 + 45 * (mixed.astype(np.float32) @ self._shapes) + 4 * grain
        return films.clip(0, 255).astype(np.uint8).reshape(len(rows), SIZE, SIZE)


def whole(count: int) -> None:
    """Search so many films, and print what it took."""
    films = Films()
    drawn = time.process_time()
    films(np.arange(LOOKED_UP))
    drawing = (time.process_time() - drawn) / LOOKED_UP
    started, spent = time.monotonic(), time.process_time()
    near_copies.find_pairs(films, count)
    seconds, cpu = time.monotonic() - started, time.process_time() - spent
    print(
        f"{count:,} films, {os.cpu_count()} cores, load {os.getloadavg()[1]:.1f}: {seconds:.0f} s on the clock, "
        f"{cpu:.0f} s of CPU, of which {drawing * count:.0f} s or more drew the films\n",
        flush=True,
    )


def candidates(most: int) -> None:
    """Print a row a size."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(DIRECTIONS, near_copies._KEPT.sum())).astype(np.float32)
    shape = (LOOKED_UP, near_copies.SIDE, near_copies.SIDE)
    contrast = (rng.normal(size=shape) * 40).clip(-125, 125).astype(np.int8)
    print("| films | index built, CPU s | looked up, CPU ms a film | all films, CPU min |\n|---|---|---|---|")
    for films in (n for n in (5_000, 10_000, 20_000, 50_000, 100_000, 200_000) if n <= most):
        described = rng.normal(size=(films, DIRECTIONS)).astype(np.float32) @ directions
        described += rng.normal(size=described.shape).astype(np.float32)
        described /= np.linalg.norm(described, axis=1, keepdims=True)
        started = time.process_time()
        every = np.arange(films)
        searched = near_copies._Searched(near_copies._index(described), every, described, every)
        built = time.process_time()
        near_copies._nearest(searched, np.arange(LOOKED_UP), contrast)
        looked_up = time.process_time()
        each = (looked_up - built) / LOOKED_UP
        print(
            f"| {films:,} | {built - started:.1f} | {1000 * each:.1f} | {(built - started + each * films) / 60:.1f} |",
            flush=True,
        )


def main() -> None:
    """Both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=20_000)
    parser.add_argument("--most", type=int, default=200_000)
    asked = parser.parse_args()
    if asked.films:
        whole(asked.films)
    candidates(asked.most)


if __name__ == "__main__":
    main()
