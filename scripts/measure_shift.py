"""How often the shift test finds films of another hospital, and how often it flags the model's own: docs/refusal.md.

    python scripts/measure_shift.py BUNDLE --in-domain RUN --foreign NAME=FOLDER... [--folders 200] [--films 10 20 50]

In-domain folders are drawn from the run's test films, foreign ones from the folder, no film twice in one.
The power stands with its exact 95 % interval; folders overlap, so the interval is a rough one. A folder that the model
learned from is not foreign.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from vgg16_xray.bundle.classify import BATCH, Classifier
from vgg16_xray.films.dataset import may_be_film
from vgg16_xray.films.decode import decode
from vgg16_xray.films.split import TEST
from vgg16_xray.films.store import ArrayStore
from vgg16_xray.progress import progress
from vgg16_xray.rundir import RunDir
from vgg16_xray.steps.preprocess import read_manifest
from vgg16_xray.trust import shift
from vgg16_xray.trust.intervals import exact_interval


def embeddings(classifier: Classifier, films: list[np.ndarray], what: str) -> np.ndarray:
    found = []
    with progress(what, total=len(films)) as bar:
        for start in range(0, len(films), BATCH):
            batch = films[start : start + BATCH]
            found.append(classifier.predict_arrays(batch, feature_map=False).embedding)
            bar.advance(len(batch))
    return np.concatenate(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--in-domain", type=Path, required=True)
    parser.add_argument("--foreign", nargs="*", default=[])
    parser.add_argument("--folders", type=int, default=200)
    parser.add_argument("--films", type=int, nargs="+", default=[10, 20, 50])
    parser.add_argument("--most", type=int, default=400, help="films of each folder that are looked at")
    asked = parser.parse_args()
    classifier = Classifier.load(asked.bundle)
    known = (classifier.config.refusal or {})["shift"]
    run = RunDir(asked.in_domain)
    rows = np.flatnonzero((read_manifest(run)["split"] == TEST).to_numpy())
    # Films lie class by class: the first of them would be of one class.
    rows = np.sort(np.random.default_rng(0).permutation(rows)[: asked.most])
    sets = {"in-domain": embeddings(classifier, list(ArrayStore(run.pixels).take(rows)), "in-domain")}
    for pair in asked.foreign:
        name, _, folder = pair.partition("=")
        files = [file for file in sorted(Path(folder).rglob("*")) if file.is_file() and may_be_film(file)]
        files = [files[i] for i in np.random.default_rng(0).permutation(len(files))[: asked.most]]
        sets[name] = embeddings(classifier, [decode(file) for file in files], name)
    print(f"flagged at p = {shift.ALPHA}; stated rate {shift.RATE}; {asked.folders} folders each\n")
    print(f"| films in the folder | {' | '.join(f'{name} ({len(of)} films)' for name, of in sets.items())} |")
    print("|---" * (len(sets) + 1) + "|")
    random = np.random.default_rng(1)
    for films in asked.films:
        cells = []
        for of in sets.values():
            if len(of) < films:
                cells.append("too few")
                continue
            flags = [
                shift.test(known, of[random.permutation(len(of))[:films]], permutations=399)["shifted"]
                for _ in range(asked.folders)
            ]
            low, high = exact_interval(int(np.sum(flags)), len(flags), level=0.95)
            cells.append(f"{np.mean(flags):.3f} ({low:.3f}–{high:.3f})")
        print(f"| {films} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
