"""How many planted near-copies are found, and how many pairs of different films are taken for one: docs/leaks.md.

    python scripts/measure_leaks.py --work DIR [--patients 5000] [--copies 1200] [--other-days 300]

Draws films of so many patients, a second film of some on another day, and copies of every kind that is promised; lays
all over each other as `preprocess` does, and prints the table. What is drawn is kept in DIR, so a killed run goes on.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from vgg16_xray.films.decode import SIZE, to_square
from vgg16_xray.films.phantom import CLASSES, draw
from vgg16_xray.films.republished import KINDS, republish
from vgg16_xray.progress import progress
from vgg16_xray.trust.near_copies import DETAIL, RESIDUAL, find_pairs

SEED, PART = 2026, 250


def drawn(job: tuple[int, int, int]) -> np.ndarray:
    """(F, SIZE, SIZE) uint8: one film each of patients first..last-1 on a day."""
    first, last, day = job
    patients = range(first, last)
    return np.stack([draw(CLASSES[n % 4], seed=SEED, patient=n, film=day, size=SIZE).pixels for n in patients])


def draw_all(work: Path, patients: int, day: int) -> np.ndarray:
    """Draw what is not there yet."""
    jobs = [(first, min(first + PART, patients), day) for first in range(0, patients, PART)]
    files = [work / f"{day}-{first}-{last}.npy" for first, last, _ in jobs]
    todo = [(job, file) for job, file in zip(jobs, files, strict=True) if not file.exists()]
    with ProcessPoolExecutor(os.cpu_count()) as pool, progress("draw", total=len(todo), unit="parts") as bar:
        for (_, file), films in zip(todo, pool.map(drawn, [job for job, _ in todo]), strict=True):
            np.save(file.with_suffix(".tmp.npy"), films)
            file.with_suffix(".tmp.npy").replace(file)
            bar.advance()
    return np.concatenate([np.load(file) for file in files])


def main() -> None:
    """Draw, plant, look, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--patients", type=int, default=5000)
    parser.add_argument("--copies", type=int, default=1200)
    parser.add_argument("--other-days", type=int, default=300)
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    first = draw_all(asked.work, asked.patients, 0)
    second = draw_all(asked.work, asked.other_days, 1)
    rng, kinds = np.random.default_rng(SEED), list(KINDS)
    of = rng.permutation(asked.patients)[: asked.copies]
    kind = [kinds[n % len(kinds)] for n in range(len(of))]
    copies = [to_square(republish(first[film], name, rng)) for film, name in zip(of, kind, strict=True)]
    films = np.concatenate([first, second, np.stack(copies)])
    patient = [*range(asked.patients), *range(asked.other_days), *of.tolist()]
    shows = [*range(asked.patients), *range(asked.patients, len(first) + len(second)), *of.tolist()]
    started, spent = time.monotonic(), time.process_time()
    pairs = find_pairs(films.__getitem__, len(films))
    seconds, cpu = time.monotonic() - started, time.process_time() - spent
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    wrong: Counter[str] = Counter()
    nearest: dict[str, float] = {}
    for pair in pairs:
        i, j = pair.first, pair.second
        if shows[i] == shows[j]:
            if pair.same:
                found[kind[j - len(first) - len(second)]].append((pair.detail, pair.residual))
            continue
        which = "one patient, another day" if patient[i] == patient[j] else "different patients"
        wrong[which] += pair.same
        nearest[which] = min(nearest.get(which, 9.0), pair.residual)
    print(f"{len(films):,} films: {seconds:.0f} s on the clock, {cpu:.0f} s of CPU; {len(pairs):,} pairs worth a look")
    print(f"taken for one film: detail {DETAIL} and above, residual {RESIDUAL} and below\n")
    print("| kind | planted | found | share | lowest detail | highest residual |\n|---|---|---|---|---|---|")
    planted = Counter(kind)
    for name in kinds:
        scores = np.array(found[name] or [(np.nan, np.nan)])
        print(
            f"| {name} | {planted[name]} | {len(found[name])} | {len(found[name]) / planted[name]:.1%} "
            f"| {scores[:, 0].min():.3f} | {scores[:, 1].max():.4f} |"
        )
    total = sum(map(len, found.values()))
    print(f"| all | {len(of)} | {total} | {total / len(of):.2%} | | |\n")
    for which in ("different patients", "one patient, another day"):
        print(f"{which}: {wrong[which]} taken for one film; lowest residual {nearest.get(which, float('nan')):.4f}")


if __name__ == "__main__":
    main()
