"""How often 95 % intervals hold the truth, where the truth is known: docs/calibration.md.

    python scripts/measure_intervals.py [--repeats 1000] [--films 300]

Draws so many films of three classes, of patients with one to three films that resemble each other, from a known
distribution, measures them as every step does, and counts how often the interval holds the figure of the whole
distribution (of 400,000 films). Beside it how often the interval lies wholly above or below.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np

from vgg16_xray.trust import calibrate
from vgg16_xray.trust.intervals import auroc_interval
from vgg16_xray.trust.metrics import evaluate

LABELS = ("a", "b", "c")
#: Shares of the classes, and how far a film of a class leans to it, in logits.
SHARES, LEANS = np.array([0.55, 0.3, 0.15]), 1.6
#: Standard deviation of what a patient's films have in common, and of what is each film's own.
OF_PATIENT, OF_FILM = 0.7, 1.0


def drawn(films: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(N,) true classes, (N, 3) probabilities, and the patients, one to three films each."""
    sizes = random.integers(1, 4, size=films)
    patient = np.repeat(np.arange(films), sizes)[:films]
    truth = random.choice(3, size=films, p=SHARES)[patient]
    common = random.normal(scale=OF_PATIENT, size=(films, 3))[patient]
    logits = LEANS * np.eye(3)[truth] + common + random.normal(scale=OF_FILM, size=(films, 3)) + np.log(SHARES)
    return truth, calibrate.softmax(logits), [f"patient {i}" for i in patient]


def measured(films: int, random: np.random.Generator, *, replicates: int) -> dict[str, Mapping[str, Any]]:
    """Figure -> ``value``, ``low``, ``high``."""
    truth, p, groups = drawn(films, random)
    found = evaluate(truth=truth, probabilities=p, labels=LABELS, groups=groups, replicates=replicates, seed=1)
    names = {f"{name}, all": figure for name, figure in found["overall"].items()}
    for name in ("sensitivity", "specificity", "precision", "f1", "auroc", "average_precision"):
        names |= {f"{name}, {label}": found["per_class"][label][name] for label in (LABELS[0], LABELS[2])}
    for k in (0, 2):
        area = auroc_interval(truth == k, p[:, k], groups, level=0.95)
        if area:
            names[f"auroc (DeLong), {LABELS[k]}"] = dict(zip(("value", "low", "high"), area, strict=True))
    probability = calibrate.measure(p, truth, groups, replicates=replicates, seed=1)
    return names | {name: probability[name] for name in ("brier", "log_loss")}


def coverage(
    repeats: int, films: int, *, replicates: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float, float]]:
    """Figure -> share of intervals that hold the truth, that lie above it, that lie below it."""
    random = np.random.default_rng(seed)
    truth = {name: figure["value"] for name, figure in measured(400_000, random, replicates=1).items()}
    held: dict[str, list[tuple[bool, bool]]] = {name: [] for name in truth}
    for _ in range(repeats):
        for name, figure in measured(films, random, replicates=replicates).items():
            if figure["low"] is not None:
                held[name].append((truth[name] < figure["low"], truth[name] > figure["high"]))
    return {
        name: (
            1 - float(np.sum(off)) / len(off),
            float(np.mean([a for a, _ in off])),
            float(np.mean([b for _, b in off])),
        )
        for name, off in held.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1000)
    parser.add_argument("--films", type=int, default=300)
    asked = parser.parse_args()
    print(f"{asked.repeats} times {asked.films} films; 95 % intervals, 1,000 replicates\n")
    print("| figure | hold the truth | lie above it | lie below it |\n|---|---|---|---|")
    for name, (held, above, below) in coverage(asked.repeats, asked.films).items():
        print(f"| {name} | {held:.3f} | {above:.3f} | {below:.3f} |")


if __name__ == "__main__":
    main()
