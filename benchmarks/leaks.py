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


def draw(count: int) -> np.ndarray:
    """(N, SIZE, SIZE) uint8: what is common to all, a third as much of what is a film's own, and grain."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    noise = rng.normal(size=(DIRECTIONS + 1, SIZE, SIZE)).astype(np.float32)
    shapes = sum(gaussian_filter(noise, sigma, axes=(1, 2), mode="wrap") * sigma for sigma in (4, 8, 16, 32))
    shapes = (shapes / shapes.std(axis=(1, 2), keepdims=True)).reshape(DIRECTIONS + 1, -1)
    grain = rng.normal(scale=4, size=8 * SIZE * SIZE).round().astype(np.int8)
    films = np.empty((count, SIZE, SIZE), np.uint8)
    for number in range(count):
        own = rng.normal(size=DIRECTIONS).astype(np.float32) / 3 / np.float32(DIRECTIONS**0.5)
        start = int(rng.integers(7 * SIZE * SIZE))
        film = 128 + 45 * (shapes[0] + own @ shapes[1:]) + grain[start : start + SIZE * SIZE]
        films[number] = film.clip(0, 255).reshape(SIZE, SIZE)
    return films


def whole(count: int) -> None:
    """Search so many films, and print what it took."""
    films = draw(count)
    started, spent = time.monotonic(), time.process_time()
    near_copies.find_pairs(films.__getitem__, count)
    seconds, cpu = time.monotonic() - started, time.process_time() - spent
    load = os.getloadavg()[1]
    print(
        f"{count:,} films, {os.cpu_count()} cores, load {load:.1f}: {seconds:.0f} s on the clock, {cpu:.0f} s of CPU\n"
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
