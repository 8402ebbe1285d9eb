"""What a run and its bundle promise, measured on the run's own test films, in one table: which hold, which do not.

    python scripts/measure_promises.py RUN BUNDLE [--films 1500]

ECE after calibration (at most 0.02), conformal sets (within two points of 0.9, all films and each class), false
refusals (within two points of the stated rate), and pictures that are no films (AUROC at least 0.99; films/nonfilms.py
draws them or makes them of the test films, with another seed than the bundle's). A share that its exact interval does
not tell from what is promised is said to be so. The bundle answers: it carries what is promised. Each
reading is logged in the run. Films are the stored ones, 224 x 224.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from vgg16_xray.bundle.classify import BATCH, Classifier
from vgg16_xray.films.nonfilms import make
from vgg16_xray.films.split import TEST
from vgg16_xray.films.store import ArrayStore
from vgg16_xray.progress import progress
from vgg16_xray.rundir import RunDir
from vgg16_xray.steps.preprocess import read_manifest
from vgg16_xray.trust import calibrate
from vgg16_xray.trust.intervals import auroc_interval, exact_interval
from vgg16_xray.trust.refuse import look, verdicts

#: The promises, and how far from them is still kept.
ECE, NEAR, AUROC = 0.02, 0.02, 0.99
#: Pictures of each kind that is no film, and the seed that draws them.
EACH, SEED = 20, 77


def answered(classifier: Classifier, films: list[np.ndarray], what: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(N, K) probabilities, (N, E) embeddings, and what was answered."""
    p, e, answers = [], [], []
    with progress(what, total=len(films)) as bar:
        for start in range(0, len(films), BATCH):
            batch = films[start : start + BATCH]
            outputs = classifier.predict_arrays(batch, feature_map=False)
            p.append(outputs.probabilities)
            e.append(outputs.embedding)
            answers += [
                classifier.judged("", film, type(outputs)(*(part[i] for part in outputs))).answer
                for i, film in enumerate(batch)
            ]
            bar.advance(len(batch))
    return np.concatenate(p).astype(np.float64), np.concatenate(e).astype(np.float64), answers


def row(name: str, figure: tuple[float, float, float], wanted: str, *, holds: bool, fits: bool) -> None:
    """A line of the table; `fits`: whether the interval reaches what is promised."""
    value, low, high = figure
    interval = "no interval: all on one side" if np.isnan(low) else f"{low:.4f}–{high:.4f}"
    said = "holds" if holds else "does not hold" if not fits else "does not hold, but cannot be told from it"
    print(f"| {name} | {value:.4f} ({interval}) | {wanted} | {said} |")


def share(name: str, hits: int, films: int, wanted: float) -> None:
    low, high = exact_interval(hits, films, level=0.95)
    value = hits / films
    close = abs(value - wanted) <= NEAR + 1e-9
    reaches = low <= wanted + NEAR and high >= wanted - NEAR
    row(f"{name}, {films:,} films", (value, low, high), f"{wanted:g} ± {NEAR:g}", holds=close, fits=reaches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--films", type=int, default=1500, help="test films at most")
    asked = parser.parse_args()
    run, classifier = RunDir(asked.run), Classifier.load(asked.bundle)
    config, labels = classifier.config, classifier.labels
    manifest, pixels = read_manifest(run), ArrayStore(run.pixels)
    run.note_reading(config.checkpoint_sha256)
    rows = np.flatnonzero((manifest["split"] == TEST).to_numpy())
    rows = np.sort(np.random.default_rng(SEED).permutation(rows)[: asked.films])
    truth = np.array([labels.index(label) for label in manifest["label"].iloc[rows]])
    groups = manifest["group"].iloc[rows].tolist()
    films = list(pixels.take(rows))
    p, embeddings, answers = answered(classifier, films, "test films")
    print(f"{len(films):,} test films of {run.path}, bundle {asked.bundle} in {classifier.precision}; 95 % intervals\n")
    print("| what | found | promised | |\n|---|---|---|---|")
    ece = calibrate.measure(p, truth, groups)["ece"]
    bounds = ece["value"], ece["low"], ece["high"]
    row("ECE after calibration", bounds, f"at most {ECE:g}", holds=ece["value"] <= ECE, fits=ece["low"] <= ECE)
    if config.conformal is not None:
        wanted = 1 - float(config.conformal["alpha"])
        held = calibrate.conformal_sets(config.conformal, p)[np.arange(len(truth)), truth]
        share("sets hold the truth", int(held.sum()), len(held), wanted)
        for k, label in enumerate(labels):
            of = truth == k
            if of.any():
                fitted = config.conformal["films"][k]
                name = f"sets hold the truth, {label} (fitted on {fitted:,})"
                share(name, int(held[of].sum()), int(of.sum()), wanted)
    if config.refusal is not None:
        given = np.array(answers)
        share("refused or abstained", int(np.sum(given != "answered")), len(given), float(config.refusal["rate"]))
        for k, label in enumerate(labels):
            of = truth == k
            if of.any():
                hits, of_class = int(np.sum(given[of] != "answered")), int(of.sum())
                low, high = exact_interval(hits, of_class, level=0.95)
                figure = f"{hits / of_class:.4f} ({low:.4f}–{high:.4f})"
                print(f"| refused or abstained, {label}, {of_class:,} films | {figure} | – | |")
        pictures, kinds, _ = make(films, each=EACH, seed=SEED)
        _, of_pictures, of_answers = answered(classifier, pictures, "pictures that are no films")
        scores = [
            verdicts(config.refusal["film"], np.stack([look(one) for one in of]), e)[:, 0]
            for of, e in ((films, embeddings), (pictures, of_pictures))
        ]
        is_film = np.r_[np.ones(len(films), bool), np.zeros(len(pictures), bool)]
        both, names = np.concatenate(scores), [str(i) for i in range(len(is_film))]
        area = auroc_interval(is_film, both, names, level=0.95)
        # None: every film above every picture, or none at all.
        value, low, high = area or (float(scores[0].min() > scores[1].max()), np.nan, np.nan)
        name = f"films against {len(pictures)} pictures that are none, AUROC"
        row(name, (value, low, high), f"at least {AUROC:g}", holds=value >= AUROC, fits=bool(high >= AUROC))
        for kind in dict.fromkeys(kinds):
            of = np.array([one == kind for one in kinds])
            found = np.mean(np.array(of_answers)[of] == "refused")
            print(f"| refused: {kind}, {int(of.sum())} pictures | {found:.3f} | – | |")


if __name__ == "__main__":
    main()
