"""How often the whole audit speaks on real films in which there is nothing to find: labels dealt by a coin.

    python scripts/calibrate_on_coins.py NAME=FOLDER... [--sets 20] [--films 300]

Every set is a random draw from the films of one hospital, half of them called A and half B by chance, each film a
patient of its own. Whatever the audit says of such a set is a false alarm.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from vgg16_xray.predict import films_in
from vgg16_xray.rundir import RunDir
from vgg16_xray.steps.audit import audit_data
from vgg16_xray.trust.verdict import CARE, NONE, STOP


def lay_out(to: Path, films: list[Path], *, seed: int, count: int) -> Path:
    """Copy a draw of films and write the table that deals their labels."""
    rng = np.random.default_rng(seed)
    drawn = [films[i] for i in rng.choice(len(films), size=min(count, len(films)), replace=False)]
    labels = rng.permutation(np.arange(len(drawn)) % 2)
    to.mkdir()
    with (to / "films.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "patient_id"))
        for number, (film, label) in enumerate(zip(drawn, labels, strict=True)):
            shutil.copyfile(film, to / f"{number:04d}{film.suffix}")
            rows.writerow((f"{number:04d}{film.suffix}", "AB"[label], f"P{number:04d}"))
    return to / "films.csv"


def main() -> None:
    """Print a row a hospital."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hospitals", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--films", type=int, default=300)
    asked = parser.parse_args()
    head = ["films of", "films a set", "sets", STOP, CARE, NONE, "rules that spoke"]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}", flush=True)
    for hospital in asked.hospitals:
        name, _, folder = hospital.partition("=")
        films = [film for film in films_in([Path(folder)]) if isinstance(film, Path)]
        verdicts: Counter[str] = Counter()
        rules: Counter[str] = Counter()
        for seed in range(asked.sets):
            with tempfile.TemporaryDirectory() as scratch:
                data = lay_out(Path(scratch) / "films", films, seed=seed, count=asked.films)
                found = audit_data([data], RunDir(Path(scratch) / "audit"))
            verdicts[found["verdict"]] += 1
            rules.update(reason["rule"] for reason in found["reasons"])
        spoke = ", ".join(f"{rule} {n}" for rule, n in rules.most_common()) or "none"
        row = [name, min(asked.films, len(films)), asked.sets, *(verdicts[one] for one in (STOP, CARE, NONE)), spoke]
        print(f"| {' | '.join(map(str, row))} |", flush=True)


if __name__ == "__main__":
    main()
