"""How often the audit's verdict is right on drawn films whose truth is known; resumable, a line a set.

    python scripts/calibrate_verdict.py --to calibration.jsonl --minutes 5     # again and again until it says: all done
    python scripts/calibrate_verdict.py --to calibration.jsonl --table         # the table of docs/audit.md

Every set has 160 films of four classes. Clean sets differ by the opacity alone. A shortcut is planted on all films of
one class (full strength) or on a half of them, chosen at random. A leak is a share of all films that stand in the test
a second time, republished (cropped, padded, mirrored, windowed, encoded, ...: one kind or several, drawn at random),
under another name and no patient, while the first is in training; it has to be found as `preprocess` finds it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from vgg16_xray.films.decode import pixels_sha256, to_square
from vgg16_xray.films.phantom import CLASSES, SHORTCUTS, draw, plant
from vgg16_xray.films.republished import KINDS, republish
from vgg16_xray.films.split import TEST, TRAIN, split_films
from vgg16_xray.steps.audit import leaks_between
from vgg16_xray.trust.leaks import contents, find_copies
from vgg16_xray.trust.shortcuts import CORNERS, ERASED, FRAME, WHOLE, measure
from vgg16_xray.trust.verdict import CARE, NONE, STOP, judge

SEEDS, FILMS, SIZE = 20, 160, 224
LEAKS, HALF = (0.01, 0.05), 0.5
RUNGS = (FRAME, CORNERS, ERASED, WHOLE)


def cases() -> list[tuple[int, str, float]]:
    """(seed, what is planted, how much of it); what has to be flagged, or must not be, first."""
    of_seed: list[tuple[str, float]] = [("clean", 0.0)]
    of_seed += [(name, share) for name in SHORTCUTS for share in (1.0, HALF)]
    of_seed += [("leak", share) for share in LEAKS]
    every = [(seed, name, share) for seed in range(SEEDS) for name, share in of_seed]
    return sorted(every, key=lambda case: case[2] == HALF)


class Drawn:
    """The films of one seed, drawn once for all cases."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        self.seed = seed
        self.labels = [label for label in CLASSES for _ in range(FILMS // len(CLASSES))]
        patients: list[int] = []
        films: list[int] = []
        for label in CLASSES:
            left = FILMS // len(CLASSES)
            while left:
                of_patient = min(int(rng.integers(1, 3)), left)
                patients += [(patients[-1] if patients else 0) + 1] * of_patient
                films += range(of_patient)
                left -= of_patient
            assert len(patients) == len(films), label
        self.groups = [f"P{patient:05d}" for patient in patients]
        drawn = [
            draw(label, seed=seed, patient=patient, film=film, size=SIZE)
            for label, patient, film in zip(self.labels, patients, films, strict=True)
        ]
        self.pixels = np.stack([phantom.pixels for phantom in drawn])
        self.lungs = np.stack([phantom.lungs for phantom in drawn])
        self._patients, self._films = patients, films

    def planted(self, name: str, share: float) -> tuple[np.ndarray, np.ndarray]:
        """(films, lungs) with a shortcut on a share of the first class."""
        pixels, lungs = self.pixels.copy(), self.lungs.copy()
        rng = np.random.default_rng([self.seed, 2, SHORTCUTS.index(name)])
        first = [i for i, label in enumerate(self.labels) if label == CLASSES[0]]
        if name == "age":
            chosen = {patient for patient in sorted({self._patients[i] for i in first}) if rng.random() < share}
            for i in first:
                if self._patients[i] in chosen:
                    child = draw(
                        CLASSES[0],
                        seed=self.seed,
                        patient=self._patients[i],
                        film=self._films[i],
                        size=SIZE,
                        child=True,
                    )
                    pixels[i], lungs[i] = child.pixels, child.lungs
        else:
            for i in first:
                if rng.random() < share:
                    pixels[i] = plant(name, pixels[i])
        return pixels, lungs


def judge_shortcut(drawn: Drawn, name: str, share: float) -> dict[str, Any]:
    """The verdict over the ladder; over leaks too where nothing is planted."""
    pixels, lungs = (drawn.pixels, drawn.lungs) if name == "clean" else drawn.planted(name, share)
    ladder = {
        rung.key: measure(rung, pixels, drawn.labels, drawn.groups, seed=drawn.seed, lungs=lungs) for rung in RUNGS
    }
    leaks = {"films": {"films": FILMS}, "leaks": leaks_of(drawn, 0)} if name == "clean" else {}
    verdict = judge(leaks | {"ladder": ladder})
    return {
        "verdict": verdict.verdict,
        "rules": [reason.rule for reason in verdict.reasons],
        "ladder": {
            key: {name: rung[name] for name in ("macro_f1", "skill", "skill_low", "chance", "p")}
            for key, rung in ladder.items()
        },
    }


def leaks_of(drawn: Drawn, share: float) -> dict[str, Any]:
    """What is found of near-copies of so many training films, planted in the test."""
    pixels = [pixels_sha256(film) for film in drawn.pixels]
    sides = split_films(labels=drawn.labels, groups=drawn.groups, pixels=pixels, seed=drawn.seed)
    trained = [i for i, side in enumerate(sides) if side == TRAIN]
    rng, kinds = np.random.default_rng([drawn.seed, 3]), list(KINDS)
    copied = rng.choice(trained, size=round(share * FILMS), replace=False)
    changed = [to_square(republish(drawn.pixels[i], str(rng.choice(kinds)), rng), SIZE) for i in copied]
    films = np.concatenate([drawn.pixels, *(film[None] for film in changed)])
    hashes = pixels + [pixels_sha256(film) for film in changed]
    return leaks_between(
        contents(hashes, find_copies(films.__getitem__, hashes)),
        labels=drawn.labels + [drawn.labels[i] for i in copied],
        groups=drawn.groups + [""] * len(copied),
        sides=sides + [TEST] * len(copied),
    )


def judge_leak(drawn: Drawn, share: float) -> dict[str, Any]:
    """The verdict over leaks alone."""
    leaks, copied = leaks_of(drawn, share), round(share * FILMS)
    verdict = judge({"films": {"films": FILMS + copied}, "leaks": leaks})
    return {
        "verdict": verdict.verdict,
        "rules": [reason.rule for reason in verdict.reasons],
        "copies": copied,
        "found": leaks["test_films_leaked"],
    }


def table(lines: list[dict[str, Any]]) -> str:
    """Rates by case, as Markdown."""
    of: dict[tuple[str, float], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        of[line["planted"], line["share"]].append(line)
    out = [f"| planted | strength | sets | {STOP} | {CARE} | {NONE} | flagged |", "|---|---|---|---|---|---|---|"]
    for name, share in dict.fromkeys((name, share) for _, name, share in cases()):
        found = Counter(line["verdict"] for line in of[name, share])
        n = len(of[name, share])
        strength = "–" if name == "clean" else f"{share:.0%}"
        out.append(
            f"| {name} | {strength} | {n} | {found[STOP]} | {found[CARE]} | {found[NONE]} | "
            f"{(n - found[NONE]) / n:.0%} |"
            if n
            else f"| {name} | {strength} | 0 | | | | |"
        )
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--only", help="clean, leak, or a shortcut")
    parser.add_argument("--without", help="what to leave for later")
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    lines = [json.loads(line) for line in asked.to.read_text("utf-8").splitlines()] if asked.to.exists() else []
    if asked.table:
        print(table(lines))
        return
    done = {(line["seed"], line["planted"], line["share"]) for line in lines}
    todo = [case for case in cases() if case not in done and case[1] != asked.without and asked.only in (None, case[1])]
    until = time.monotonic() + 60 * asked.minutes
    drawn: Drawn | None = None
    for seed, name, share in todo:
        if time.monotonic() > until:
            print(f"{len(todo)} sets were left; go on with the same command")
            return
        if drawn is None or drawn.seed != seed:
            drawn = Drawn(seed)
        found = judge_leak(drawn, share) if name == "leak" else judge_shortcut(drawn, name, share)
        with asked.to.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"seed": seed, "planted": name, "share": share, **found}) + "\n")
        print(seed, name, share, found["verdict"], flush=True)
    print("all done")


if __name__ == "__main__":
    main()
