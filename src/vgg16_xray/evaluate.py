"""External testing: a model on somebody else's films, its own training films taken out first, by name."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vgg16_xray import RESEARCH_USE_ONLY, __version__
from vgg16_xray.bundle.adapter import Adapter, Foreign, Function, OfFunction, read_adapter
from vgg16_xray.bundle.classify import BATCH, Classifier, Outputs
from vgg16_xray.bundle.format import BundleConfig, read_own_films
from vgg16_xray.errors import UnreadableFilm, UserError
from vgg16_xray.files import read_json, require_writable, write_json
from vgg16_xray.films.dataset import METADATA, Dataset, FilmRow, scan
from vgg16_xray.films.decode import SIZE, decode, pixels_sha256, to_square
from vgg16_xray.films.identity import identity_of, name_patients
from vgg16_xray.films.tables import read_csv
from vgg16_xray.predict import open_model
from vgg16_xray.progress import progress
from vgg16_xray.rundir import EvaluationDir, RunDir
from vgg16_xray.steps.own_films import own_films, own_films_of_run, remembered
from vgg16_xray.trust import calibrate
from vgg16_xray.trust.operating import PREVALENCES
from vgg16_xray.trust.prevalence import parse_prior, shares_of

#: Columns of a metadata file that are no subgroups.
NO_SUBGROUPS = frozenset({"path", "label", "patient_id", "split", "mask"})
#: A column with more values than this names films, not groups of them.
MOST_VALUES = 30


@dataclass(frozen=True)
class Film:
    """A film elsewhere, and what the model says of it."""

    row: FilmRow
    #: Of the decoded pixels.
    sha256: str
    #: (224, 224) uint8.
    square: np.ndarray
    #: (K,) float64.
    probabilities: np.ndarray
    answer: str
    #: (K,) and (E,) of a bundle; None of other models.
    logits: np.ndarray | None = None
    embedding: np.ndarray | None = None

    @property
    def name(self) -> str:
        """Collection and path."""
        return f"{self.row.collection}/{self.row.path}"

    @property
    def group(self) -> str:
        """The patient where known, else what the film shows."""
        return f"patient {self.row.collection} {self.row.patient_id}" if self.row.patient_id else f"film {self.sha256}"


@dataclass(frozen=True)
class Gathered:
    """A model's answers for somebody else's films."""

    dataset: Dataset
    #: Those that count.
    films: list[Film]
    #: What was left out: ``found``, ``unreadable``, ``of_unknown_classes``, ``own``, ``looked_for_own``, ``measured``.
    about: dict[str, Any]


def evaluate(
    model: Path | Function,
    data: Sequence[Path],
    out: Path,
    *,
    mapping: Mapping[str, str] | None = None,
    trained_on: Path | None = None,
    prevalences: Sequence[float] = PREVALENCES,
    prior: Sequence[str] = (),
    adapter: Path | Adapter | None = None,
    labels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measure a model on films that are not its own; leaves ``evaluation.json`` and ``evaluation.html`` in `out`.

    Args:
        model: A bundle; a run; with `adapter` any ONNX classifier; with `labels` a function: films (H, W) uint8 ->
            (B, K) probabilities.
        data: Folders or tables of films; one class is enough.
        out: Where the page and the numbers go.
        mapping: ``{folder: label}``; a label may be one of the model's.
        trained_on: The run, or the folder of films, that the model was trained on: copies of its films are taken out.
            By default `model` where that is a run, and what the bundle keeps of them where it is a bundle.
        prevalences: For predictive values.
        prior: How common the classes are there, ``LABEL=SHARE``, or ``estimate``: the model is measured once more with
            its probabilities corrected for that.
        adapter: What a foreign ONNX file wants and gives, see :class:`vgg16_xray.bundle.adapter.Adapter`.
        labels: The classes of a function, in the order of its columns.

    Returns:
        What ``evaluation.json`` holds, see :func:`vgg16_xray.trust.external.measure`.

    Raises:
        UserError: No film is left of a class that the model knows.
    """
    from vgg16_xray.report.external import write_evaluation
    from vgg16_xray.trust import external, shift

    answering = _open(model, adapter, labels)
    require_writable(out)
    gathered = gather(answering, data, model=model, mapping=mapping, trained_on=trained_on)
    internal, validated, source = _own_figures(answering, model)
    mix = _mix(answering, validated, prior)
    films = gathered.films
    if not isinstance(answering, Classifier) and validated is not None:
        # A run answers with scores, a bundle with probabilities.
        temperature = validated["calibration"]["temperature"]
        films = [
            replace(f, probabilities=calibrate.softmax(calibrate.logits_of(f.probabilities), temperature))
            for f in films
        ]
    refusal = answering.config.refusal if isinstance(answering, Classifier) else None
    shifted = None
    if refusal is not None and refusal.get("shift") is not None:
        shifted = shift.test(refusal["shift"], np.stack([f.embedding for f in films if f.embedding is not None]))
    found = {
        "research_use_only": RESEARCH_USE_ONLY,
        "version": __version__,
        "model": str(model) if isinstance(model, Path) else getattr(model, "__name__", "a function"),
        "data": [str(folder) for folder in data],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "calibrated": isinstance(answering, Classifier) or validated is not None,
        "refuses": refusal is not None,
        "internal": source,
        "films": gathered.about,
        "shift": shifted,
        **external.measure(
            truth=np.array([answering.labels.index(film.row.label) for film in films]),
            probabilities=np.stack([film.probabilities for film in films]),
            labels=answering.labels,
            groups=[film.group for film in films],
            answers=[film.answer for film in films],
            columns=_columns(gathered.dataset, [film.row for film in films]),
            internal=internal,
            validated=validated,
            prevalences=prevalences,
            calibrated_on=mix[0],
            prior=mix[1],
        ),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json(EvaluationDir(out).numbers, found)
    write_evaluation(EvaluationDir(out).page, found)
    return found


def gather(
    answering: Any,
    data: Sequence[Path],
    *,
    model: Path | Function,
    mapping: Mapping[str, str] | None = None,
    trained_on: Path | None = None,
) -> Gathered:
    """A model's answers for somebody else's films, its own taken out.

    Args:
        answering: What :func:`vgg16_xray.predict.open_model` gave, or what has ``labels`` and ``probabilities``.
        data: See :func:`evaluate`, as for the others.
        model: Where `answering` was opened.
        mapping: ``{folder: label}``.
        trained_on: Where its films are.

    Raises:
        UserError: No film is left of a class that the model knows.
    """
    look_up = _own_films_of(answering, model, trained_on)
    dataset = scan(data, mapping=mapping, without_splits=True, least_classes=1)
    unknown = Counter(film.label for film in dataset.films if film.label not in answering.labels)
    wanted = [film for film in dataset.films if film.label in answering.labels]
    if not wanted:
        raise UserError(
            f"{data[0]}: must hold films of {', '.join(answering.labels)}, found {', '.join(sorted(unknown))}",
            hint="--map FOLDER=LABEL says which class a folder is",
        )
    films, broken = _answer(answering, dataset, wanted)
    overlap = look_up(films) if look_up else []
    own = {entry["film"] for entry in overlap}
    kept = [film for film in films if film.name not in own]
    if not kept:
        found = f"{len(overlap)} that it was, and " if overlap else ""
        raise UserError(
            f"{data[0]}: must hold films that can be read and that the model was not trained on, "
            f"found {found}{len(broken)} that cannot be read"
        )
    about = {
        "found": len(dataset.films),
        "unreadable": broken,
        "of_unknown_classes": dict(unknown),
        "own": overlap,
        "looked_for_own": look_up is not None,
        "measured": len(kept),
    }
    return Gathered(dataset, kept, about)


def _open(model: Path | Function, adapter: Path | Adapter | None, labels: Sequence[str] | None) -> Any:
    """What answers for films.

    Raises:
        UserError: What a foreign model needs is missing, or stands where it is not needed.
    """
    if not isinstance(model, Path):
        if labels is None or adapter is not None:
            raise UserError("labels: must name the classes of a function, without an adapter, found none or both")
        return OfFunction(model, labels)
    if labels is not None:
        raise UserError(f"labels: must be given for a function alone, found them for {model}")
    if adapter is not None:
        return Foreign(model, read_adapter(adapter) if isinstance(adapter, Path) else adapter)
    if model.is_file() and model.suffix == ".onnx":
        raise UserError(
            f"{model}: must come with --adapter FILE, found none",
            hint="it says what the network wants and gives; see docs/external.md",
        )
    return open_model(model)


def _own_figures(answering: Any, model: Path | Function) -> tuple[dict[str, Any] | None, dict[str, Any] | None, str]:
    """The model's internal test, its validation, and whose they are."""
    if isinstance(answering, Classifier):
        figures = answering.config.figures
        tested, validated = figures.get("test"), figures.get("validation")
        if answering.config.recalibrated is not None:
            thresholds = answering.config.recalibrated["operating"]
            validated = {"calibration": {"conformal": [answering.config.conformal]}, "operating": thresholds}
        return tested, validated if validated and "calibration" in validated else None, "the bundle's internal test"
    run = RunDir(model) if isinstance(model, Path) else None
    if run is not None and run.test.exists() and run.validation.exists():
        validated = read_json(run.validation)
        # A run that an older version validated was not calibrated.
        return (
            read_json(run.test),
            validated if "calibration" in validated else None,
            f"the internal test of {run.path}",
        )
    return None, None, ""


def calibrated_shares(config: BundleConfig) -> np.ndarray | None:
    """(K,) shares of the classes on the films on which a bundle's probabilities were calibrated; None: not known."""
    if config.recalibrated is not None:
        return np.array([config.recalibrated["prior"][label] for label in config.labels])
    films = config.trained_on.get("films", {}).get("validation")
    return shares_of(films, config.labels) if films else None


def _mix(
    answering: Any, validated: Mapping[str, Any] | None, prior: Sequence[str]
) -> tuple[np.ndarray | None, np.ndarray | str | None]:
    """Shares of the classes where the model was calibrated, and those that the reader wants it corrected to."""
    if isinstance(answering, Classifier):
        shares = calibrated_shares(answering.config)
    else:
        films = {label: of["support"] for label, of in validated["per_class"].items()} if validated else None
        shares = shares_of(films, answering.labels) if films else None
    if not prior:
        return shares, None
    if shares is None:
        raise UserError("--prior: must have a model that says on what it was calibrated, found one that does not")
    if "estimate" in prior:
        if len(prior) > 1:
            raise UserError(f"--prior: must be 'estimate' alone, or shares, found {' '.join(prior)}")
        return shares, "estimate"
    return shares, parse_prior(prior, answering.labels, shares)


def _answer(answering: Any, dataset: Dataset, rows: Sequence[FilmRow]) -> tuple[list[Film], list[dict[str, str]]]:
    """Answers for the films, and those that cannot be read."""
    films: list[Film] = []
    broken: list[dict[str, str]] = []
    with progress("films", total=len(rows)) as bar:
        for start in range(0, len(rows), BATCH):
            batch: list[tuple[FilmRow, np.ndarray]] = []
            for row in rows[start : start + BATCH]:
                try:
                    batch.append((row, decode(dataset.file_of(row))))
                except UnreadableFilm as error:
                    broken.append({"film": f"{row.collection}/{row.path}", "reason": str(error)})
            if batch:
                films += _answered(answering, batch)
            bar.advance(min(BATCH, len(rows) - start))
    of_files = [identity_of(dataset.file_of(film.row)) for film in films]
    named, _ = name_patients([film.row for film in films], of_files)
    return [replace(film, row=row) for film, row in zip(films, named, strict=True)], broken


def _answered(answering: Any, batch: Sequence[tuple[FilmRow, np.ndarray]]) -> list[Film]:
    pixels = [film for _, film in batch]
    parts: Any
    if isinstance(answering, Classifier):
        outputs = answering.predict_arrays(pixels, feature_map=False)
        answers = [
            answering.judged(row.path, film, Outputs(*(part[i] for part in outputs))).answer
            for i, (row, film) in enumerate(batch)
        ]
        parts = (outputs.probabilities, answers, outputs.logits, outputs.embedding)
    else:
        parts = (answering.probabilities(pixels), ["answered"] * len(batch), *[[None] * len(batch)] * 2)
    return [
        Film(
            row, pixels_sha256(film), to_square(film, SIZE), np.asarray(p, dtype=np.float64), answer, logits, embedding
        )
        for (row, film), p, answer, logits, embedding in zip(batch, *parts, strict=True)
    ]


#: Which of the films are the model's own: ``film``, ``own``, ``split``, ``exact``.
_LookUp = Callable[[Sequence[Film]], list[dict[str, Any]]]


def _own_films_of(answering: Any, model: Path | Function, trained_on: Path | None) -> _LookUp | None:
    """How the model's own films are found, before anything is computed; None where nobody has them."""
    where = trained_on or model
    run = RunDir(where) if isinstance(where, Path) else None
    if run is not None and run.manifest.exists() and run.pixels.exists():
        return lambda films: own_films_of_run(run).among(*_asked(films))
    if trained_on is not None:
        scan([trained_on], without_splits=True, least_classes=1)  # refuses what cannot be used

        def look_up(films: Sequence[Film]) -> list[dict[str, Any]]:
            with own_films([trained_on]) as own:
                return own.among(*_asked(films))

        return look_up
    kept = read_own_films(answering.bundle, answering.config) if isinstance(answering, Classifier) else None
    return None if kept is None else lambda films: remembered(kept, *_asked(films))


def _asked(films: Sequence[Film]) -> tuple[list[str], list[str], list[np.ndarray]]:
    """Names, hashes and pixels."""
    return [film.name for film in films], [film.sha256 for film in films], [film.square for film in films]


def _columns(dataset: Dataset, rows: Sequence[FilmRow]) -> dict[str, list[str]]:
    """Every column of the metadata with few values, and the source."""
    said: dict[tuple[str, str], dict[str, str]] = {}
    for collection, base in dataset.collections.items():
        file = base / METADATA
        if file.exists():
            for line in read_csv(file)[0]:
                said[collection, line.get("path", "")] = line
    names = {"source", *(name for line in said.values() for name in line if name)} - NO_SUBGROUPS
    columns = {name: [said.get((row.collection, row.path), {}).get(name, "") for row in rows] for name in sorted(names)}
    columns["source"] = [row.source or value for row, value in zip(rows, columns["source"], strict=True)]
    return {name: values for name, values in columns.items() if 1 <= len({v for v in values if v}) <= MOST_VALUES}
