"""The films of a benchmark: a stratified draw from real or drawn ones, laid out so that every system sees the same."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vgg16_xray.config import SEED
from vgg16_xray.films.dataset import scan
from vgg16_xray.films.decode import decode, pixels_sha256, to_square
from vgg16_xray.films.phantom import write_dataset
from vgg16_xray.films.split import TEST, TRAIN, VALIDATION, group_films, split_films
from vgg16_xray.trust.leaks import find_copies

#: Real radiographs beside the checkout; without them films are drawn.
REAL = Path(__file__).resolve().parents[2] / "shared" / "radiography"
TEST_FILMS = 12
#: Films that a class has at least.
LEAST = 6
FOLDERS = {TRAIN: "train", VALIDATION: "val", TEST: "test"}


@dataclass(frozen=True, kw_only=True)
class Dealt:
    """Films on three sides."""

    #: What they are.
    words: str
    train: int
    validation: int
    test: int


def deal(to: Path, *, train: int, validation: int) -> Dealt:
    """Copy films into ``to/{train,val,test}/<class>``, classes in their natural proportions.

    Patients and copies stay on one side. A dozen more are for the test side, without which nothing here is trained.
    """
    films = train + validation + TEST_FILMS
    if real := REAL.is_dir():
        data = REAL
    else:
        data = to.with_name("drawn")
        if not data.exists():
            write_dataset(data, films=films, seed=SEED, masks=False)
    found = scan([data])
    order = [found.films[i] for i in np.random.default_rng(SEED).permutation(len(found.films))]
    seen: Counter[str] = Counter()
    # Some of every class first, so that a small draw has them on all three sides; the sort is stable.
    order.sort(key=lambda film: seen.update([film.label]) or seen[film.label] > LEAST)
    rows = order[:films]
    files = [found.file_of(row) for row in rows]
    decoded = [decode(file) for file in files]
    pixels = [pixels_sha256(film) for film in decoded]
    squares = np.stack([to_square(film) for film in decoded])
    copies = [(pair.first, pair.second) for pair in find_copies(lambda i: squares[i], pixels) if pair.same]
    labels = [row.label for row in rows]
    groups = group_films(pixels, [row.patient_id for row in rows], copies=copies)
    sides = split_films(
        labels=labels, groups=groups, pixels=pixels, seed=SEED, validation=validation / films, test=TEST_FILMS / films
    )
    for file, label, side in zip(files, labels, sides, strict=True):
        folder = to / FOLDERS[side] / label
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / file.name)
    count = Counter(sides)
    classes = ", ".join(f"{n} {label}" for label, n in sorted(Counter(labels).items()))
    kind = "real" if real else "drawn"
    return Dealt(
        words=f"{count[TRAIN]} {kind} radiographs to train on, {count[VALIDATION]} to validate ({classes})",
        train=count[TRAIN],
        validation=count[VALIDATION],
        test=count[TEST],
    )
