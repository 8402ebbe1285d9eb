"""Which difference between runs is real: two or more runs on the same films.

Films are paired by what they show, the hash of their pixels; names, folders and the order of rows may differ. Only
films count that every run predicted without having seen them, each once, however many copies of it a run has: the test
films of a run with a single split, and all films of a run of folds, each predicted by the model that never saw it. A
film that the model which predicts it was trained on, or chosen by, flatters that run and is left out; so is a film of a
patient (of a group, in any of the runs) with such films.

Every run is measured on the same bootstrap replicates of the paired films, drawn by group, so that what is hard for all
runs cancels out in their difference. The first run is what the others are compared with.

A difference is called "better" or "worse" where all of this holds, and "no difference shown" otherwise:

- the percentile interval of the difference does not hold 0;
- the runs differ in the answers for at least :func:`fewest_differing` films that the figure looks at: with fewer, an
  exact test could not find anything either, and a bootstrap is too sure of itself;
- for shares of films (accuracy, sensitivity): the exact test of McNemar (*Psychometrika* 12, 1947) on the films that
  one run alone names rightly finds it too. It takes films for independent, which films of one patient are not;
- for the other figures of answers (balanced accuracy, F1, macro F1): an exchange test finds it too. If the runs were
  equally good, it would not matter which of two answers came from which; so the answers of whole groups are exchanged,
  in every way or in as many drawn ones as there are replicates, and p is the share that differs as much (Noreen,
  *Computer-Intensive Methods for Testing Hypotheses*, 1989; for F1: Yeh, COLING 2000);
- with more than two runs: the p-values hold after the correction of Holm (*Scandinavian Journal of Statistics* 6, 1979)
  for as many comparisons as there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vgg16_xray import RESEARCH_USE_ONLY
from vgg16_xray.errors import UserError
from vgg16_xray.files import read_json
from vgg16_xray.films.split import TEST, TRAIN, VALIDATION, group_films, sides_of_fold
from vgg16_xray.rundir import FoldsDir, RunDir, key_of, read_config
from vgg16_xray.trust.intervals import CHUNK_WEIGHTS
from vgg16_xray.trust.metrics import OVERALL, PER_CLASS, Replicated, answer_figures, replicated, with_intervals

if TYPE_CHECKING:
    import pandas as pd

FIGURES = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "log_loss")
CLASS_FIGURES = ("sensitivity", "f1")
#: Of these, less is better.
LESS_IS_BETTER = frozenset({"log_loss"})
BETTER, WORSE, NOT_SHOWN = "better", "worse", "no difference shown"
#: Tests beside the bootstrap, and what they are called.
EXACT_TESTS = {"mcnemar": "McNemar", "exchange": "exchange test"}
#: Step whose stamp says that the folds of a run are finished.
FOLDS_STEP = "folds"
#: Exchanged answers whose difference is so close to the one found are as far apart.
ROUNDING = 1e-12

#: Fewest films that are compared: below that not even a run that is right twice as often could be told apart.
FEWEST_FILMS = 20
#: Fewer groups than this make percentile intervals visibly too narrow (Cameron, Gelbach and Miller, 2008).
FEW_GROUPS = 30
#: predictions.csv holds six decimals: what stands there as 0 was at most half of the last of them.
DECIMALS = 6
HALF_A_UNIT = 0.5 * 10.0**-DECIMALS


def compare(runs: Sequence[RunDir], *, replicates: int = 2000, seed: int = 1234, level: float = 0.95) -> dict[str, Any]:
    """Compare runs with the first of them, on the films that all of them predicted unseen.

    Args:
        runs: Two or more runs whose step 6, or whose folds, are done; all different. Of a run that has both, the folds.
        replicates: Bootstrap replicates, at least 1.
        seed: Seed of the bootstrap.
        level: Confidence level of the intervals, above 0 and below 1; 1 - `level` is what p-values are held against.

    Returns:
        What JSON can hold:

        - ``research_use_only``; ``labels``: the classes, in the order of the first run.
        - ``films``: ``paired``, their ``groups``, how many of these hold several films (``groups_of_several``), films
          of each class (``support``), and ``left_out``: a list of ``{"reason", "leak", "films", "first"}``; each film
          that some run predicted unseen and that was not paired stands under one reason. A leak is a test film of
          a run with a single split on which another model was trained.
        - ``runs``: for each its ``name``, ``path``, ``recipe``, ``train_from``, ``seed``, ``folds`` (how many; None
          for a single split), ``checkpoints`` (SHA-256 of its models), ``films`` that it predicted unseen (different
          pictures), ``copies``, and on the paired films ``overall`` and ``per_class`` figures ``{"value", "low",
          "high"}``, see :func:`vgg16_xray.trust.metrics.evaluate`.
        - ``comparisons``: for each run but the first ``run``, ``against``, ``overall`` and ``per_class``: for each
          figure the ``difference`` (this run less the first) with ``low`` and ``high``, ``p`` (bootstrap, two-sided)
          and ``p_holm``, the ``replicates_left_out`` that do not define it, ``differing`` (films on which the answers
          differ; None where a figure is of probabilities), ``mcnemar`` (``only_first``, ``only_this``: films that one
          run alone names rightly; ``p``, ``p_holm``) for shares of films, ``exchange`` (``groups`` whose answers
          differ; ``p``, ``p_holm``) for the other figures of answers, each else None, ``verdict`` and ``why``: what
          else speaks against a difference whose interval does not hold 0. A difference that no replicate moves has
          no interval.
        - ``intervals``: ``method``, ``replicates``, ``level``, ``seed``, ``comparisons``.
        - ``notes``: sentences on what these figures do not say.

    Raises:
        UserError: Fewer than two runs, the same run twice, a run without a test, other classes, a damaged file, or
            fewer than :data:`FEWEST_FILMS` films that can be paired.
    """
    tested = _read_all(runs)
    labels = tested[0].labels
    paired = _pair(tested)
    not_logged = _log_reading(runs, tested)
    alpha = 1 - level
    found = [
        replicated(
            truth=paired.truth,
            probabilities=probabilities,
            labels=labels,
            groups=paired.groups,
            replicates=replicates,
            seed=seed,
            # Rounding and the floor each move a probability by at most half a unit.
            row_tolerance=2 * HALF_A_UNIT * (len(labels) + 1),
        )
        for probabilities in paired.probabilities
    ]
    answers = [probabilities.argmax(axis=1) for probabilities in paired.probabilities]
    compared = [
        _Comparison(found[0], figures, paired, answers[0], answer, level, replicates, seed).figures()
        for figures, answer in zip(found[1:], answers[1:], strict=True)
    ]
    for class_, name in compared[0]:
        _correct_and_judge([figures[class_, name] for figures in compared], name, alpha)
    films = {
        "paired": len(paired.truth),
        "groups": len(set(paired.groups)),
        "groups_of_several": sum(n > 1 for n in Counter(paired.groups).values()),
        "support": {label: int(n) for label, n in zip(labels, found[0].support, strict=True)},
        "left_out": paired.left_out,
    }
    return {
        "research_use_only": RESEARCH_USE_ONLY,
        "labels": list(labels),
        "films": films,
        "runs": [run.about | _own(figures, labels, level) for run, figures in zip(tested, found, strict=True)],
        "comparisons": [
            {
                "run": run.name,
                "against": tested[0].name,
                "overall": {name: figures[None, name] for name in FIGURES},
                "per_class": {
                    label: {name: figures[k, name] for name in CLASS_FIGURES} for k, label in enumerate(labels)
                },
            }
            for run, figures in zip(tested[1:], compared, strict=True)
        ],
        "intervals": {
            "method": "paired percentile bootstrap over groups",
            "replicates": replicates,
            "level": level,
            "seed": seed,
            "comparisons": len(compared),
        },
        "notes": [*_notes(tested, films, level=level), *not_logged],
    }


def mcnemar(only_first: int, only_this: int) -> float:
    """Two-sided p-value of McNemar's exact test: a fair coin for each film that one run alone names rightly.

    Args:
        only_first: Films that the first run names rightly and the other does not.
        only_this: The other way round.
    """
    from scipy.stats import binomtest

    if only_first + only_this == 0:
        return 1.0
    return float(binomtest(only_this, only_first + only_this, 0.5).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the smallest p times m, the next times m - 1, ..., never falling, at most 1.

    Args:
        p_values: m p-values, in any order; the result is in the same.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, least = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - place) * p_values[i]))
        corrected[i] = least
    return corrected


def fewest_differing(alpha: float) -> int:
    """Fewest films on which answers must differ for an exact test to reach `alpha`: 6 for 0.05, as 2 / 2**6 = 0.031."""
    return int(np.ceil(np.log2(2 / alpha)))


# -- files in


@dataclass(frozen=True)
class _Tested:
    """A run and what it said of every film; row i of everything is row i of the manifest."""

    name: str
    about: dict[str, Any]
    labels: tuple[str, ...]
    folds: int | None
    #: pixels_sha256, label, group, shown, and place: the side of the single split, or the fold.
    films: pd.DataFrame
    probabilities: NDArray[np.float64]  # (N, K), in the order of the first run's labels

    def sides(self, places: Collection[Any], *, of: Any) -> set[str]:
        """On which sides films at these places stand for the model that predicts the film at the place `of`."""
        if self.folds is None or of is None:
            return set(places) if self.folds is None else set()
        return set(sides_of_fold(list(places), number=of, folds=self.folds))


def _read_all(runs: Sequence[RunDir]) -> list[_Tested]:
    if len(runs) < 2:
        raise UserError(f"runs: must be two or more, found {len(runs)}")
    places: dict[Path, Path] = {}
    for run in runs:
        if (place := run.path.resolve()) in places:
            raise UserError(f"{run.path}: must be given once, found it again as {places[place]}")
        places[place] = run.path
    names = [run.path.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.path) for run in runs]
    tested: list[_Tested] = []
    for run, name in zip(runs, names, strict=True):
        tested.append(_read(run, name, like=tested[0] if tested else None))
    return tested


def _read(run: RunDir, name: str, *, like: _Tested | None) -> _Tested:
    import pandas as pd

    measured, of_folds = _measured(run)
    figures = measured["pooled"] if of_folds else measured
    file = FoldsDir(run.path).numbers if of_folds else run.test
    labels = figures.get("labels") if isinstance(figures, dict) else None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels) or len(labels) < 2:
        raise UserError(f"{file}: must name the classes under 'labels', found {labels}")
    if like is not None:
        if set(labels) != set(like.labels):
            raise UserError(
                f"{run.path}: must have the classes of {like.about['path']} ({', '.join(like.labels)}), "
                f"found {', '.join(labels)}",
                hint="the classes of a run are named by --map",
            )
        labels = list(like.labels)
    wanted = ["path", "collection", "label", "split", "group", "pixels_sha256"]
    try:
        films = pd.read_parquet(run.require(run.manifest, made_by="preprocess DATA --out"), columns=wanted)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{run.manifest}: must be a whole Parquet table, found {error}") from error
    said_in = FoldsDir(run.path).table if of_folds else run.predictions
    said = _predictions(run.require(said_in, made_by="test"), labels, of_folds=of_folds)
    keys = ["path", "collection", "label"] if of_folds else ["path", "collection", "label", "split"]
    others = len(said) != len(films) or any(list(said[key]) != list(films[key]) for key in keys)
    if of_folds and not others:
        # The films of which names stayed and pixels did not, and folds that were dealt anew.
        dealt = key_of(list(films["pixels_sha256"]), list(films["label"]), said["fold"].tolist())
        others = dealt != measured["films"]["fingerprint"]
    if others:
        again = f"run again with --folds {measured['folds']}" if of_folds else f"run: vgg16-xray test {run.path}"
        raise UserError(
            f"{said_in}: must hold the films of {run.manifest.name} in their order, found others",
            hint=f"delete it and {again}",
        )
    place = said["fold"] if of_folds else films["split"]
    films = films.assign(shown=films["collection"] + "/" + films["path"], place=list(place))
    hashes = films["pixels_sha256"] if of_folds else films.loc[films["split"] == TEST, "pixels_sha256"]
    # What the run is told to do next may be another recipe than that of the folds.
    config = read_config(FoldsDir(run.path).fold(1) if of_folds else run)
    recipe = config.get("recipe", {})
    about = {
        "name": name,
        "path": str(run.path),
        "recipe": str(recipe.get("name", "")),
        "train_from": str(recipe.get("train_from", "")),
        "seed": config.get("run", {}).get("seed"),
        "folds": measured["folds"] if of_folds else None,
        "checkpoints": _checkpoints(measured),
        "films": int(hashes.nunique()),
        "copies": int(hashes.duplicated().sum()),
    }
    return _Tested(name, about, tuple(labels), about["folds"], films, _probabilities(said_in, said, labels))


def checkpoints(run: RunDir) -> list[str]:
    """SHA-256 of the models by which :func:`compare` knows a run: that of its test, or those of its folds.

    Raises:
        UserError: The run has neither.
    """
    return _checkpoints(_measured(run)[0])


def _checkpoints(measured: Mapping[str, Any]) -> list[str]:
    models = measured.get("each", [measured])
    return [str(model.get("checkpoint_sha256", "")) for model in models]


def _measured(run: RunDir) -> tuple[dict[str, Any], bool]:
    """What ``folds.json`` holds, or ``test.json``; and whether it is that of folds."""
    of_folds = FoldsDir(run.path)
    if FOLDS_STEP in run.stamps() and of_folds.numbers.exists():
        found = read_json(of_folds.numbers)
        wanted = {"folds": int, "pooled": dict, "films": dict, "each": list}
        if not isinstance(found, dict) or not all(isinstance(found.get(key), kind) for key, kind in wanted.items()):
            raise UserError(f"{of_folds.numbers}: must be as the folds wrote it, found other JSON")
        return found, True
    if of_folds.begun() and "test" not in run.stamps():
        raise UserError(
            f"{run.path}: all folds must be finished first, found some that are not",
            hint="the command that began them goes on with them",
        )
    run.require_step("test", made_by="test")
    found = read_json(run.require(run.test, made_by="test"))
    return (found if isinstance(found, dict) else {}), False


def _predictions(file: Path, labels: Sequence[str], *, of_folds: bool) -> pd.DataFrame:
    import pandas as pd

    texts = dict.fromkeys(("path", "collection", "label", "split", "prediction"), str)
    numbers: dict[str, type] = {f"p_{label}": float for label in labels} | ({"fold": int} if of_folds else {})
    try:
        return pd.read_csv(file, dtype={**texts, **numbers}, usecols=[*texts, *numbers], keep_default_na=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file}: must be a table with the columns {', '.join([*texts, *numbers])}, found {error}"
        ) from error


def _probabilities(file: Path, said: pd.DataFrame, labels: Sequence[str]) -> NDArray[np.float64]:
    """(N, K) as they are written, but none below half a unit, and the largest where the run's answer is."""
    written = said[[f"p_{label}" for label in labels]].to_numpy(dtype=np.float64)
    tolerance = HALF_A_UNIT * (len(labels) + 1)
    wrong = ~np.isfinite(written).all(axis=1) | (written < 0).any(axis=1) | (abs(written.sum(axis=1) - 1) > tolerance)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise UserError(
            f"{file}: probabilities must be 0 or more and add up to 1, "
            f"found {written[row].tolist()} for {said['path'].iloc[row]}"
        )
    # A true class that is written as 0 would cost 36 in the log loss, which the model did not say.
    probabilities = np.maximum(written, HALF_A_UNIT)
    number = {label: k for k, label in enumerate(labels)}
    answer = np.array([number.get(label, -1) for label in said["prediction"]])
    rows = np.flatnonzero(probabilities.argmax(axis=1) != answer)
    most = probabilities[rows].max(axis=1)
    if (answer < 0).any() or (probabilities[rows, answer[rows]] < most).any():
        raise UserError(f"{file}: the prediction must be the most probable class, found another")
    # Two classes that rounding made equal: the run's answer was by the unrounded ones.
    probabilities[rows, answer[rows]] = most + HALF_A_UNIT / 10
    return probabilities


def _log_reading(runs: Sequence[RunDir], tested: Sequence[_Tested]) -> list[str]:
    """Log in each run that what it said of its test films is looked at; returns a note on those that are closed."""
    closed = []
    for run, found in zip(runs, tested, strict=True):
        try:
            run.note_reading(" ".join(found.about["checkpoints"]))
        except UserError:
            closed.append(found.name)
    if not closed:
        return []
    return [
        f"This reading of the test films could not be logged, for nothing can be written there: {', '.join(closed)}."
    ]


# -- pairs


@dataclass(frozen=True)
class _Paired:
    """The N films that are compared, in the order of their hashes."""

    truth: NDArray[np.int64]  # (N,) index into the labels
    groups: list[str]  # (N,) what any run's groups connect
    probabilities: list[NDArray[np.float64]]  # a run each, (N, K)
    left_out: list[dict[str, Any]]


def _pair(tested: Sequence[_Tested]) -> _Paired:
    row_of: list[dict[str, int]] = [{} for _ in tested]
    place_of: list[dict[str, Any]] = [{} for _ in tested]
    places: list[dict[str, set[Any]]] = [{} for _ in tested]
    labels: dict[str, set[str]] = {}
    candidates: dict[str, str] = {}  # films that any run predicted unseen, and the first name of each
    tests: set[str] = set()  # of runs with a single split
    for i, run in enumerate(tested):
        columns = (run.films[name] for name in ("pixels_sha256", "place", "label", "shown"))
        for row, (film, place, label, shown) in enumerate(zip(*columns, strict=True)):
            row_of[i].setdefault(film, row)
            place_of[i].setdefault(film, place)
            places[i].setdefault(film, set()).add(place)
            labels.setdefault(film, set()).add(label)
            if run.folds is not None or place == TEST:
                candidates.setdefault(film, shown)
            if run.folds is None and place == TEST:
                tests.add(film)
    group_of = _united_groups(tested)
    group_places: list[dict[str, set[Any]]] = [{} for _ in tested]
    for i in range(len(tested)):
        for film, found in places[i].items():
            group_places[i].setdefault(group_of[film], set()).update(found)
    names = [run.name for run in tested]
    reasons: dict[tuple[int, str, bool], list[str]] = {}
    films = []
    for film, shown in candidates.items():
        own, of_group = (
            [
                run.sides(known.get(of, ()), of=of_film.get(film))
                for run, known, of_film in zip(tested, where, place_of, strict=True)
            ]
            for where, of in ((places, film), (group_places, group_of[film]))
        )
        why = _why_left_out(
            names,
            own,
            of_group,
            has=[film in rows for rows in row_of],
            tested=film in tests,
            contradicted=len(labels[film]) > 1,
        )
        if why is None:
            films.append(film)
        else:
            reasons.setdefault(why, []).append(shown)
    left_out = [
        {"reason": reason, "leak": leak, "films": len(shown), "first": shown[0]}
        for (_, reason, leak), shown in sorted(reasons.items())
    ]
    if len(films) < FEWEST_FILMS:
        others = "; ".join(f"{entry['films']:,} {entry['reason']}, the first {entry['first']}" for entry in left_out)
        raise UserError(
            f"{', '.join(run.about['path'] for run in tested)}: must have at least {FEWEST_FILMS} {_of_what(tested)} "
            f"in common, found {len(films)}{f'; left out: {others}' if others else ''}"
        )
    films.sort()
    number = {label: k for k, label in enumerate(tested[0].labels)}
    first = tested[0].films["label"].tolist()
    return _Paired(
        truth=np.array([number[first[row_of[0][film]]] for film in films], dtype=np.int64),
        groups=[group_of[film] for film in films],
        probabilities=[run.probabilities[[row_of[i][film] for film in films]] for i, run in enumerate(tested)],
        left_out=left_out,
    )


def _united_groups(tested: Sequence[_Tested]) -> dict[str, str]:
    """Group of each film (hash): what is one group in any run is one; a run may know patients that another does not."""
    pixels = [film for run in tested for film in run.films["pixels_sha256"]]
    groups: list[str | None] = [f"{i}/{group}" for i, run in enumerate(tested) for group in run.films["group"]]
    return dict(zip(pixels, group_films(pixels, groups), strict=True))


def _of_what(tested: Sequence[_Tested]) -> str:
    return "test films" if all(run.folds is None for run in tested) else "films that were predicted unseen"


def _why_left_out(
    names: Sequence[str],
    own: Sequence[set[str]],
    of_group: Sequence[set[str]],
    *,
    has: Sequence[bool],
    tested: bool,
    contradicted: bool,
) -> tuple[int, str, bool] | None:
    """Why a film is not compared: (weight of the reason, the reason after a number of films, whether it is a leak).

    Args:
        names: Of the runs.
        own: The sides on which the film stands in each run.
        of_group: The sides on which films of its group stand.
        has: Whether each run has the film.
        tested: Whether it is a test film of a run with a single split.
        contradicted: Whether it has two labels.
    """
    weight = 0
    for side, word in ((TRAIN, "training"), (VALIDATION, "validation")):
        for found, reason in ((own, f"{word} films"), (of_group, f"of a patient (or group) with {word} films")):
            for name, here in zip(names, found, strict=True):
                if side in here:
                    return weight, f"{reason} of {name}", side == TRAIN and tested
            weight += 1
    for name, there in zip(names, has, strict=True):
        if not there:
            return weight, f"not among the films of {name}", False
    return (weight + 1, "with more than one label", False) if contradicted else None


# -- differences


@dataclass(frozen=True)
class _Comparison:
    """One run against the first, film by film and replicate by replicate."""

    first: Replicated
    this: Replicated
    films: _Paired
    first_answer: NDArray[np.int64]
    this_answer: NDArray[np.int64]
    level: float
    replicates: int
    seed: int

    def figures(self) -> dict[tuple[int | None, str], dict[str, Any]]:
        """Each figure by (class or None, name), not judged yet."""
        truth = self.films.truth
        first_right, this_right = self.first_answer == truth, self.this_answer == truth
        changed = int((self.first_answer != self.this_answer).sum())
        everything = np.ones(len(truth), dtype=bool)
        exchanged = self._exchanged()
        result: dict[tuple[int | None, str], dict[str, Any]] = {}
        overall = self._differences(
            OVERALL, self.this.overall - self.first.overall, self.this.overall_drawn - self.first.overall_drawn
        )
        differing = {
            "accuracy": int((first_right != this_right).sum()),
            "balanced_accuracy": int((first_right != this_right).sum()),
            "macro_f1": changed,
        }
        for name in FIGURES:
            exact = _discordant(first_right, this_right, everything) if name == "accuracy" else None
            result[None, name] = overall[name] | {
                "differing": differing.get(name),
                "mcnemar": exact,
                "exchange": exchanged.get((None, name)),
            }
        for k in range(len(self.first.support)):
            of_class = self._differences(
                PER_CLASS,
                self.this.per_class[k] - self.first.per_class[k],
                self.this.per_class_drawn[:, k] - self.first.per_class_drawn[:, k],
            )
            here = truth == k
            for name in CLASS_FIGURES:
                if name == "sensitivity":
                    exact = _discordant(first_right, this_right, here)
                    count = exact["only_first"] + exact["only_this"]
                else:
                    exact = None
                    count = int(((self.first_answer == k) != (self.this_answer == k)).sum())
                result[k, name] = of_class[name] | {
                    "differing": count,
                    "mcnemar": exact,
                    "exchange": exchanged.get((k, name)),
                }
        return result

    def _exchanged(self) -> dict[tuple[int | None, str], dict[str, Any]]:
        """The exchange test of balanced accuracy, macro F1 and each class's F1."""
        classes = len(self.first.support)
        # (G, K, K): what the first run's confusion matrix gains where a group's answers are exchanged.
        groups, number = np.unique(np.array(self.films.groups), return_inverse=True)
        gain = np.zeros((len(groups), classes, classes))
        np.add.at(gain, (number, self.films.truth, self.this_answer), 1)
        np.add.at(gain, (number, self.films.truth, self.first_answer), -1)
        gain = gain[gain.any(axis=(1, 2))]
        drawn = [
            self._answer_differences(moved)
            for moved in _exchanges(gain.reshape(-1, classes**2), replicates=self.replicates, seed=self.seed)
        ]
        found = self._answer_differences(np.zeros((1, classes**2)))
        # Of drawn exchanges the one that was found is one more (Davison and Hinkley, 1997, section 4.2).
        more = 0 if 2 ** len(gain) <= self.replicates else 1
        result: dict[tuple[int | None, str], dict[str, Any]] = {}
        for of, here in found.items():
            values = np.concatenate([differences[of] for differences in drawn])
            as_far = int((abs(values) >= abs(here[0]) - ROUNDING).sum())
            p = None if np.isnan(here[0]) else (as_far + more) / (len(values) + more)
            result[of] = {"groups": len(gain), "p": p}
        return result

    def _answer_differences(self, moved: NDArray[np.float64]) -> dict[tuple[int | None, str], NDArray[np.float64]]:
        """Differences (C,) after the first run gained and this one lost `moved` (C, K * K) films."""
        moved = moved.reshape(-1, *self.first.confusion.shape)
        first, this = answer_figures(self.first.confusion + moved), answer_figures(self.this.confusion - moved)
        f1, here = this.f1 - first.f1, self.first.support > 0
        result: dict[tuple[int | None, str], NDArray[np.float64]] = {(k, "f1"): f1[:, k] for k in range(f1.shape[1])}
        result[None, "macro_f1"] = f1[:, here].mean(axis=1)
        result[None, "balanced_accuracy"] = (this.sensitivity - first.sensitivity)[:, here].mean(axis=1)
        return result

    def _differences(
        self, names: Sequence[str], point: NDArray[np.float64], drawn: NDArray[np.float64]
    ) -> dict[str, dict[str, Any]]:
        found = with_intervals(names, point, drawn, self.level)
        return {
            name: {
                "difference": figure["value"],
                "low": figure["low"],
                "high": figure["high"],
                "p": _bootstrap_p(drawn[:, i]) if figure["value"] is not None else None,
                "replicates_left_out": found.left_out.get(name, 0),
            }
            for i, (name, figure) in enumerate(found.figures.items())
        }


def _exchanges(gain: NDArray[np.float64], *, replicates: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """What all exchanged groups gain together: of all ways to choose them, where those are few, or of drawn ones.

    Args:
        gain: (G, M) of each group.
        replicates: Most rows in all.
        seed: Of the draw.

    Yields:
        (C, M).
    """
    ways, generator = 2 ** len(gain), np.random.default_rng(seed)
    rows, step = min(ways, replicates), max(1, CHUNK_WEIGHTS // max(1, len(gain)))
    for start in range(0, rows, step):
        count = min(step, rows - start)
        if ways <= replicates:
            chosen = np.arange(start, start + count)[:, None] >> np.arange(len(gain)) & 1
        else:
            chosen = generator.integers(2, size=(count, len(gain)))
        yield chosen.astype(np.float64) @ gain  # exact: whole numbers far below 2**53


def _discordant(first: NDArray[np.bool_], this: NDArray[np.bool_], films: NDArray[np.bool_]) -> dict[str, Any]:
    only_first, only_this = int((first & ~this & films).sum()), int((this & ~first & films).sum())
    return {"only_first": only_first, "only_this": only_this, "p": mcnemar(only_first, only_this)}


def _bootstrap_p(drawn: NDArray[np.float64]) -> float | None:
    """Two-sided p-value that belongs to the percentile interval: it is below alpha where that does not hold 0.

    The replicates on the rarer side of 0, twice, with one added to numerator and denominator so that it is never 0
    (Davison and Hinkley, 1997, section 4.2).
    """
    drawn = drawn[~np.isnan(drawn)]
    if drawn.size == 0:
        return None
    fewer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    return min(1.0, 2 * (fewer + 1) / (drawn.size + 1))


def _correct_and_judge(figures: Sequence[dict[str, Any]], name: str, alpha: float) -> None:
    """Add ``p_holm`` over the comparisons of one figure, ``verdict`` and ``why``."""
    for holder in (figures, *([figure[test] for figure in figures] for test in EXACT_TESTS)):
        defined = [entry for entry in holder if entry is not None and entry["p"] is not None]
        for entry in holder:
            if entry is not None:
                entry["p_holm"] = None
        for entry, corrected in zip(defined, holm([entry["p"] for entry in defined]), strict=True):
            entry["p_holm"] = corrected
    for figure in figures:
        figure["verdict"], figure["why"] = _judge(figure, name, alpha, comparisons=len(figures))


def _judge(figure: Mapping[str, Any], name: str, alpha: float, *, comparisons: int) -> tuple[str, str]:
    difference, low, high = figure["difference"], figure["low"], figure["high"]
    if difference is None or figure["p"] is None:
        return NOT_SHOWN, "not defined on these films"
    if low is None or low <= 0 <= high:
        return NOT_SHOWN, "no replicate differed" if low is None and difference else ""
    tests = {words: figure[test] for test, words in EXACT_TESTS.items() if figure[test] is not None}
    failed = [f"{words} p = {test['p']:.2g}" for words, test in tests.items() if test["p"] > alpha]
    if figure["differing"] is not None and figure["differing"] < fewest_differing(alpha):
        return NOT_SHOWN, f"only {figure['differing']} films differ"
    if failed:
        return NOT_SHOWN, failed[0]
    if any(test["p_holm"] > alpha for test in (figure, *tests.values())):
        return NOT_SHOWN, f"not after correction for {comparisons} comparisons" if comparisons > 1 else "too close"
    return (BETTER if (low > 0) != (name in LESS_IS_BETTER) else WORSE), ""


def _own(found: Replicated, labels: Sequence[str], level: float) -> dict[str, Any]:
    """A run's own figures on the paired films."""
    overall = with_intervals(OVERALL, found.overall, found.overall_drawn, level, trials=found.trials).figures
    per_class = {}
    for k, label in enumerate(labels):
        figures = with_intervals(
            PER_CLASS, found.per_class[k], found.per_class_drawn[:, k], level, trials=found.trials_per_class[k]
        ).figures
        per_class[label] = {name: figures[name] for name in CLASS_FIGURES}
    return {"overall": {name: overall[name] for name in FIGURES}, "per_class": per_class}


def _notes(tested: Sequence[_Tested], films: Mapping[str, Any], *, level: float) -> list[str]:
    notes = []
    if films["groups_of_several"]:
        notes.append(
            f"McNemar's test takes films for independent, but {films['groups_of_several']:,} of {films['groups']:,} "
            "groups (patients) hold more than one film: its p-values may be too small. The intervals draw whole groups."
        )
    else:
        notes.append(
            "McNemar's test takes films for independent. No two of these films are known to be of one patient, which "
            "is not the same where patients are unknown."
        )
    if films["groups"] < FEW_GROUPS:
        notes.append(f"{films['groups']} groups are few: intervals from fewer than {FEW_GROUPS} are too narrow.")
    if empty := [label for label, n in films["support"].items() if n == 0]:
        notes.append(f"No paired film is of {', '.join(empty)}: macro figures are means over the other classes.")
    if rare := [f"{label} ({n})" for label, n in films["support"].items() if 0 < n < FEWEST_FILMS]:
        notes.append(
            f"Few paired films are of {', '.join(rare)}: the class's own figures, and the macro figures and balanced "
            "accuracy in which it weighs as much as any other, hang on these few."
        )
    if copies := [f"{run.about['copies']:,} of {run.name}" for run in tested if run.about["copies"]]:
        notes.append(f"Films that are exact copies of another are counted once: {', '.join(copies)}.")
    taught = [
        # The same films in the same folds are the same training films, whatever a fold is called.
        frozenset(run.films.groupby("place")["pixels_sha256"].agg(frozenset))
        if run.folds
        else frozenset(run.films.loc[run.films["place"] == TRAIN, "pixels_sha256"])
        for run in tested
    ]
    if any(films_of_run != taught[0] for films_of_run in taught):
        notes.append(
            "The runs were not trained on the same films: a difference may come from the films as well as from the "
            "recipe."
        )
    if of_folds := [run.name for run in tested if run.folds]:
        notes.append(
            f"Every film of {', '.join(of_folds)} was predicted by the fold's model that never saw it. The models of "
            "the folds share training films, which the intervals do not hold, and AUROC ranks films by the "
            "probabilities of different models."
        )
    notes.append(
        f"A run is one training{', or one a fold' if of_folds else ''}. Another seed would move its figures too, and "
        f"the {100 * level:g} % intervals, which are about other films of the same kind, do not hold that."
    )
    looked_at = len(FIGURES) + len(CLASS_FIGURES) * len(tested[0].labels)
    notes.append(
        f"{looked_at} figures are compared; of those without a true difference, about one in {round(1 / (1 - level))} "
        "shows one by chance. Decide beforehand which figure counts; whoever picks a run by these figures needs other "
        "films to say how good it is."
    )
    return notes
