"""External testing: a model on somebody else's films, its own training films taken out first, by name."""

from __future__ import annotations

import csv
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vgg16_xray import RESEARCH_USE_ONLY, __version__
from vgg16_xray.bundle.classify import BATCH, Classifier
from vgg16_xray.errors import UnreadableFilm, UserError
from vgg16_xray.files import read_json, write_json
from vgg16_xray.films.dataset import METADATA, Dataset, FilmRow, scan
from vgg16_xray.films.decode import SIZE, decode, pixels_sha256, to_square
from vgg16_xray.films.identity import identity_of, name_patients
from vgg16_xray.predict import open_model
from vgg16_xray.progress import progress
from vgg16_xray.rundir import EvaluationDir, RunDir
from vgg16_xray.trust import calibrate
from vgg16_xray.trust.operating import PREVALENCES

#: Columns of a metadata file that are no subgroups.
NO_SUBGROUPS = frozenset({"path", "label", "patient_id", "split", "mask"})
#: A column with more values than this names films, not groups of them.
MOST_VALUES = 30


@dataclass(frozen=True)
class _Film:
    row: FilmRow
    sha256: str
    square: np.ndarray
    probabilities: np.ndarray
    answer: str
    embedding: np.ndarray | None


def evaluate(
    model: Path,
    data: Sequence[Path],
    out: Path,
    *,
    mapping: Mapping[str, str] | None = None,
    trained_on: Path | None = None,
    prevalences: Sequence[float] = PREVALENCES,
) -> dict[str, Any]:
    """Measure a model on films that are not its own; leaves ``evaluation.json`` and ``evaluation.html`` in `out`.

    Args:
        model: A bundle or a run.
        data: Folders or tables of films; one class is enough.
        out: Where the page and the numbers go.
        mapping: ``{folder: label}``; a label may be one of the model's.
        trained_on: The run whose films are looked for among these; by default `model` where that is a run.
        prevalences: For predictive values.

    Returns:
        What ``evaluation.json`` holds, see :func:`vgg16_xray.trust.external.measure`.

    Raises:
        UserError: No film is left of a class that the model knows.
    """
    from vgg16_xray.report.external import write_evaluation
    from vgg16_xray.trust import external, shift

    answering = open_model(model)
    run = RunDir(trained_on or model)
    knows_its_films = run.manifest.exists() and run.pixels.exists()
    internal, validated, source = _own_figures(answering, run)
    dataset = scan(data, mapping=mapping, without_splits=True, least_classes=1)
    unknown = Counter(film.label for film in dataset.films if film.label not in answering.labels)
    wanted = [film for film in dataset.films if film.label in answering.labels]
    if not wanted:
        raise UserError(
            f"{data[0]}: must hold films of {', '.join(answering.labels)}, found {', '.join(sorted(unknown))}",
            hint="--map FOLDER=LABEL says which class a folder is",
        )
    films, broken = _answer(answering, dataset, wanted)
    if not isinstance(answering, Classifier) and validated is not None:
        # A run answers with scores, a bundle with probabilities.
        temperature = validated["calibration"]["temperature"]
        films = [
            _Film(
                f.row,
                f.sha256,
                f.square,
                calibrate.softmax(calibrate.logits_of(f.probabilities), temperature),
                f.answer,
                f.embedding,
            )
            for f in films
        ]
    overlap = _overlap(films, run) if knows_its_films else []
    own = {entry["film"] for entry in overlap}
    kept = [film for film in films if _named(film.row) not in own]
    if not kept:
        raise UserError(f"{data[0]}: must hold films that the model was not trained on, found none")
    refusal = answering.config.refusal if isinstance(answering, Classifier) else None
    shifted = None
    if refusal is not None and refusal.get("shift") is not None:
        shifted = shift.test(refusal["shift"], np.stack([f.embedding for f in kept if f.embedding is not None]))
    found = {
        "research_use_only": RESEARCH_USE_ONLY,
        "version": __version__,
        "model": str(model),
        "data": [str(folder) for folder in data],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "calibrated": isinstance(answering, Classifier) or validated is not None,
        "refuses": refusal is not None,
        "internal": source,
        "films": {
            "found": len(dataset.films),
            "unreadable": broken,
            "of_unknown_classes": dict(unknown),
            "own": overlap,
            "looked_for_own": knows_its_films,
            "measured": len(kept),
        },
        "shift": shifted,
        **external.measure(
            truth=np.array([answering.labels.index(film.row.label) for film in kept]),
            probabilities=np.stack([film.probabilities for film in kept]),
            labels=answering.labels,
            groups=_groups(kept),
            answers=[film.answer for film in kept],
            columns=_columns(dataset, [film.row for film in kept]),
            internal=internal,
            validated=validated,
            prevalences=prevalences,
        ),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(EvaluationDir(out).numbers, found)
    write_evaluation(EvaluationDir(out).page, found)
    return found


def _named(row: FilmRow) -> str:
    return f"{row.collection}/{row.path}"


def _groups(films: Sequence[_Film]) -> list[str]:
    """The patient where known, else what the film shows."""
    return [f"patient {f.row.collection} {f.row.patient_id}" if f.row.patient_id else f"film {f.sha256}" for f in films]


def _own_figures(answering: Any, run: RunDir) -> tuple[dict[str, Any] | None, dict[str, Any] | None, str]:
    """The model's internal test, its validation, and whose they are."""
    if isinstance(answering, Classifier):
        figures = answering.config.figures
        tested, validated = figures.get("test"), figures.get("validation")
        return tested, validated if validated and "calibration" in validated else None, "the bundle's internal test"
    if run.test.exists() and run.validation.exists():
        validated = read_json(run.validation)
        # A run that an older version validated was not calibrated.
        return (
            read_json(run.test),
            validated if "calibration" in validated else None,
            f"the internal test of {run.path}",
        )
    return None, None, ""


def _answer(answering: Any, dataset: Dataset, rows: Sequence[FilmRow]) -> tuple[list[_Film], list[dict[str, str]]]:
    """Answers for the films, and those that cannot be read."""
    films: list[_Film] = []
    broken: list[dict[str, str]] = []
    with progress("films", total=len(rows)) as bar:
        for start in range(0, len(rows), BATCH):
            batch: list[tuple[FilmRow, np.ndarray]] = []
            for row in rows[start : start + BATCH]:
                try:
                    batch.append((row, decode(dataset.file_of(row))))
                except UnreadableFilm as error:
                    broken.append({"film": _named(row), "reason": str(error)})
            if batch:
                films += _answered(answering, batch)
            bar.advance(min(BATCH, len(rows) - start))
    of_files = [identity_of(dataset.file_of(film.row)) for film in films]
    named, _ = name_patients([film.row for film in films], of_files)
    return [replace(film, row=row) for film, row in zip(films, named, strict=True)], broken


def _answered(answering: Any, batch: Sequence[tuple[FilmRow, np.ndarray]]) -> list[_Film]:
    pixels = [film for _, film in batch]
    if isinstance(answering, Classifier):
        outputs = answering.predict_arrays(pixels, feature_map=False)
        answers = [
            answering.judged(row.path, film, type(outputs)(*(part[i] for part in outputs))).answer
            for i, (row, film) in enumerate(batch)
        ]
        probabilities, embeddings = outputs.probabilities, list(outputs.embedding)
    else:
        probabilities, answers, embeddings = (
            answering.probabilities(pixels),
            ["answered"] * len(batch),
            [None] * len(batch),
        )
    return [
        _Film(row, pixels_sha256(film), to_square(film, SIZE), np.asarray(p, dtype=np.float64), answer, embedding)
        for (row, film), p, answer, embedding in zip(batch, probabilities, answers, embeddings, strict=True)
    ]


def _overlap(films: Sequence[_Film], run: RunDir) -> list[dict[str, Any]]:
    """Which of the films the run has, exactly or as near-copies: ``film``, ``own``, ``split``, ``exact``."""
    import pandas as pd

    from vgg16_xray.films.store import ArrayStore
    from vgg16_xray.trust.leaks import find_copies

    manifest, store = pd.read_parquet(run.manifest), ArrayStore(run.pixels)
    own, row_of = len(manifest), {sha256: row for row, sha256 in reversed([*enumerate(manifest["pixels_sha256"])])}
    found = {film.sha256: (row_of[film.sha256], True) for film in films if film.sha256 in row_of}
    # Near-copies are looked for among the others: a film that is found already is not compared with the rest.
    others = list({film.sha256: film for film in films if film.sha256 not in found}.values())

    def squares(rows: np.ndarray) -> np.ndarray:
        return np.stack([store.take(np.array([i]))[0] if i < own else others[i - own].square for i in rows.tolist()])

    if others:
        hashes = [*manifest["pixels_sha256"], *(film.sha256 for film in others)]
        for pair in find_copies(squares, hashes, first_of_second=own):
            if pair.same:
                first, second = sorted((pair.first, pair.second))
                found.setdefault(hashes[second], (first, False))
    entries = []
    for film in films:
        if film.sha256 in found:
            row, exact = found[film.sha256]
            mine = manifest.iloc[row]
            entries.append(
                {
                    "film": _named(film.row),
                    "own": f"{mine['collection']}/{mine['path']}",
                    "split": str(mine["split"]),
                    "exact": exact,
                }
            )
    return entries


def _columns(dataset: Dataset, rows: Sequence[FilmRow]) -> dict[str, list[str]]:
    """Every column of the metadata with few values, and the source."""
    said: dict[tuple[str, str], dict[str, str]] = {}
    for collection, base in dataset.collections.items():
        file = base / METADATA
        if file.exists():
            with file.open(encoding="utf-8-sig", newline="") as text:
                for line in csv.DictReader(text):
                    said[collection, str(line.get("path") or "").strip()] = line
    names = {"source", *(name for line in said.values() for name in line if name)} - NO_SUBGROUPS
    columns = {
        name: [str((said.get((row.collection, row.path)) or {}).get(name) or "").strip() for row in rows]
        for name in sorted(names)
    }
    columns["source"] = [row.source or value for row, value in zip(rows, columns["source"], strict=True)]
    return {name: values for name, values in columns.items() if 1 <= len({v for v in values if v}) <= MOST_VALUES}
