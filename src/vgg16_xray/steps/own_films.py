"""The films that a model learned from, and which films of somebody else's are among them: taken out before a test."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vgg16_xray.errors import UserError
from vgg16_xray.films.dataset import scan
from vgg16_xray.films.decode import SIZE
from vgg16_xray.films.store import ArrayStore
from vgg16_xray.rundir import RunDir
from vgg16_xray.trust.leaks import find_copies
from vgg16_xray.trust.near_copies import Films

#: The side of films that come without a split.
UNKNOWN_SIDE = "not known"


@dataclass(frozen=True)
class OwnFilms:
    """A model's own films: N of them."""

    #: Gives (B, 224, 224) uint8 for (B,) indices.
    films: Films
    #: (N,) hash of the decoded pixels.
    sha256: Sequence[str]
    #: (N,) collection and path.
    names: Sequence[str]
    #: (N,) side of the split, or :data:`UNKNOWN_SIDE`.
    sides: Sequence[str]

    def among(self, names: Sequence[str], sha256: Sequence[str], squares: Sequence[np.ndarray]) -> list[dict[str, Any]]:
        """Which of M other films are own ones, exactly or as near-copies (docs/leaks.md).

        Args:
            names: (M,) what to call them.
            sha256: (M,) hash of their decoded pixels.
            squares: (M,) of (224, 224) uint8.

        Returns:
            For each that is: ``film``, ``own``, ``split``, ``exact``.
        """
        row_of = {film: row for row, film in reversed([*enumerate(self.sha256)])}
        found = {film: (row_of[film], True) for film in sha256 if film in row_of}
        # Near-copies are looked for among the others: a film that is found already is not compared with the rest.
        others = list({film: i for i, film in enumerate(sha256) if film not in found}.values())
        own = len(self.sha256)

        def both(rows: np.ndarray) -> np.ndarray:
            return np.stack(
                [self.films(np.array([i]))[0] if i < own else squares[others[i - own]] for i in rows.tolist()]
            )

        if others:
            hashes = [*self.sha256, *(sha256[i] for i in others)]
            for pair in find_copies(both, hashes, first_of_second=own):
                if pair.same:
                    first, second = sorted((pair.first, pair.second))
                    found.setdefault(hashes[second], (first, False))
        return [
            {
                "film": name,
                "own": self.names[found[film][0]],
                "split": self.sides[found[film][0]],
                "exact": found[film][1],
            }
            for name, film in zip(names, sha256, strict=True)
            if film in found
        ]


def own_films_of_run(run: RunDir) -> OwnFilms:
    """The films of a run, on all sides of its split."""
    import pandas as pd

    table = pd.read_parquet(run.manifest)
    return OwnFilms(
        films=ArrayStore(run.pixels).take,
        sha256=table["pixels_sha256"].tolist(),
        names=[f"{one.collection}/{one.path}" for one in table.itertuples()],
        sides=table["split"].astype(str).tolist(),
    )


@contextmanager
def own_films(trained_on: Sequence[Path]) -> Iterator[OwnFilms]:
    """The films of a run, or of the folders or tables that a model learned from.

    Args:
        trained_on: One run with its ``manifest.parquet`` and ``pixels.npy``, or folders or tables of films, which are
            decoded into a temporary file while they are needed.

    Raises:
        UserError: It is neither.
    """
    from vgg16_xray.steps.preprocess import decode_all

    runs = [run for run in map(RunDir, trained_on) if run.manifest.exists()]
    if runs:
        if len(trained_on) > 1:
            raise UserError(f"--trained-on: must be one run, or folders of films, found {len(trained_on)} with a run")
        yield own_films_of_run(runs[0])
        return
    dataset = scan(trained_on, without_splits=True, least_classes=1)
    with tempfile.TemporaryDirectory(prefix="vgg16-xray-") as folder:
        pixels, films, _, _ = decode_all(dataset, RunDir(Path(folder)), key="own", size=SIZE)
        if not films:
            where = ", ".join(map(str, trained_on))
            raise UserError(f"--trained-on: must be a run or films that can be read, found none in {where}")
        yield OwnFilms(
            films=ArrayStore(pixels).take,
            sha256=[one.sha256 for one in films],
            names=[f"{one.film.collection}/{one.film.path}" for one in films],
            sides=[UNKNOWN_SIDE] * len(films),
        )


def remembered(
    known: np.ndarray, names: Sequence[str], sha256: Sequence[str], squares: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    """Which of M films are own ones by what a bundle keeps of these; arguments and result as :meth:`OwnFilms.among`.

    Args:
        known: Rows of :data:`vgg16_xray.trust.own_films.KNOWN`.
        names: (M,).
        sha256: (M,).
        squares: (M,).
    """
    from vgg16_xray.films.split import SPLITS
    from vgg16_xray.trust.own_films import find, name_of

    return [
        {
            "film": names[own.film],
            "own": name_of(known, own.row),
            "split": SPLITS[int(known["side"][own.row])],
            "exact": own.exact,
        }
        for own in find(known, squares, sha256)
    ]
