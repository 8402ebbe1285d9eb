"""The numbers that say how good a classifier is, each with an interval.

Everything is computed from weights of the films, so a bootstrap replicate is a row of weights and many replicates are
computed at once. scikit-learn would be called thousands of times for the same result; the tests hold these figures
to its figures.

A value that is not defined is None, never a 0 that looks like a finding:

======================= ============================== =====================================================
figure of a class       value                          None where
======================= ============================== =====================================================
precision               TP / (TP + FP)                 the class is never predicted
sensitivity             TP / (TP + FN)                 no film is of the class
specificity             TN / (TN + FP)                 every film is of the class
f1                      2 TP / (2 TP + FP + FN)        no film is of the class; 0 if it is never predicted
auroc                   area under the ROC curve       no film is of the class, or every film is
average_precision       sum of precision times rise    no film is of the class
                        of recall
======================= ============================== =====================================================

Each class is taken against all others. Macro figures are plain means over the classes that have films.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg16_xray.trust.intervals import bootstrap_weights, exact_interval, group_numbers, percentile_interval

OVERALL = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "macro_average_precision", "log_loss")
PER_CLASS = ("precision", "sensitivity", "specificity", "f1", "auroc", "average_precision")

#: How far a row of probabilities may be from adding up to 1.
ROW_TOLERANCE = 1e-6
#: Smallest probability that the log loss takes, so that one certain error is not infinite; as in scikit-learn.
SMALLEST_PROBABILITY = float(np.finfo(np.float64).eps)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def evaluate(
    *,
    truth: NDArray[Any],
    probabilities: NDArray[Any],
    labels: Sequence[str],
    groups: Sequence[str],
    replicates: int = 1000,
    seed: int = 1234,
    level: float = 0.95,
) -> dict[str, Any]:
    """Measure a classifier's predictions.

    The prediction for a film is its most probable class, the first of them in a tie. The order of the films does not
    matter: the same films in another order give the same result to the last bit.

    Args:
        truth: (N,) int, the index into `labels` of each film's true class; N at least 1.
        probabilities: (N, K) float, what the classifier gives each class; each row adds up to 1 within 1e-6.
        labels: K names of the classes, K at least 2, all different.
        groups: (N,) name of each film's group (its patient, or the film itself). Groups are drawn, not films.
        replicates: Bootstrap replicates, at least 1.
        seed: Seed of the bootstrap.
        level: Confidence level of the intervals, above 0 and below 1.

    Returns:
        What JSON can hold. A "figure" is ``{"value", "low", "high"}``, each a float or None:

        - ``images``, ``groups``: how many; ``labels``: as given.
        - ``overall``: a figure for each of :data:`OVERALL`.
        - ``per_class``: for each label its ``support`` (films of the class) and a figure for each of :data:`PER_CLASS`.
        - ``confusion``: K rows (truth) of K counts (prediction).
        - ``intervals``: ``method``, ``replicates``, ``level``, ``seed``, and ``left_out``: for figures that some
          replicates do not define (a replicate may miss all films of a rare class), how many were left out, as
          ``{"overall": {figure: count}, "per_class": {label: {figure: count}}}``; a figure that is not in it lost none.
          In the same shape ``exact``: figures whose interval is not the bootstrap's, and ``none``: figures without
          one; each with the reason.

        A macro figure is left out of a replicate that misses one of its classes, so that it always means the same
        classes. Where the replicates show no spread (all films right, or a single group) the bootstrap knows nothing:
        a share of films that is 0 or 1 then has the exact interval of Clopper and Pearson, a group counted as one
        trial, and any other figure has none.

    Raises:
        ValueError: An argument breaks its rule; the message names it, the rule and what was found.
    """
    labels, groups = list(labels), list(groups)
    found = replicated(
        truth=truth, probabilities=probabilities, labels=labels, groups=groups, replicates=replicates, seed=seed
    )
    overall = with_intervals(OVERALL, found.overall, found.overall_drawn, level, trials=found.trials)
    per_class = [
        with_intervals(
            PER_CLASS, found.per_class[k], found.per_class_drawn[:, k], level, trials=found.trials_per_class[k]
        )
        for k in range(len(labels))
    ]
    return {
        "images": len(truth),
        "groups": len(set(groups)),
        "labels": labels,
        "overall": overall.figures,
        "per_class": {
            label: {"support": int(found.support[k]), **per_class[k].figures} for k, label in enumerate(labels)
        },
        "confusion": found.confusion.tolist(),
        "intervals": {
            "method": "percentile bootstrap over groups",
            "replicates": replicates,
            "level": level,
            "seed": seed,
            **{
                what: {
                    "overall": getattr(overall, what),
                    "per_class": {
                        label: about
                        for label, of_class in zip(labels, per_class, strict=True)
                        if (about := getattr(of_class, what))
                    },
                }
                for what in ("left_out", "exact", "none")
            },
        },
    }


@dataclass(frozen=True)
class Replicated:
    """The figures of a classifier's predictions, and of R bootstrap replicates; NaN where not defined."""

    overall: Floats  # (6,) in the order of OVERALL
    per_class: Floats  # (K, 6) in the order of PER_CLASS
    overall_drawn: Floats  # (R, 6)
    per_class_drawn: Floats  # (R, K, 6)
    support: Ints  # (K,) films of each class
    confusion: Ints  # (K, K) truth, prediction
    trials: dict[str, int]  # groups that a share of films is a share of, by figure
    trials_per_class: list[dict[str, int]]  # (K,) the same of each class


def replicated(
    *,
    truth: NDArray[Any],
    probabilities: NDArray[Any],
    labels: Sequence[str],
    groups: Sequence[str],
    replicates: int,
    seed: int,
    row_tolerance: float = ROW_TOLERANCE,
) -> Replicated:
    """Measure a classifier's predictions, and measure them again in every bootstrap replicate.

    The same films in the same groups are drawn for every classifier: replicate r of one may be taken from replicate r
    of another, which is a paired bootstrap.

    Args:
        truth: See :func:`evaluate`, as for the others.
        probabilities: Each row adds up to 1 within `row_tolerance`.
        labels: K names.
        groups: (N,).
        replicates: R, at least 1.
        seed: Seed of the bootstrap.
        row_tolerance: More than the usual for probabilities that were rounded.

    Raises:
        ValueError: An argument breaks its rule.
    """
    labels, groups = list(labels), list(groups)
    truth, probabilities = _checked(truth, probabilities, labels, groups, row_tolerance)
    films, order = _Films.of(truth, probabilities, groups)
    point = _figures(films, np.ones((1, len(truth))))
    chunks = bootstrap_weights([groups[i] for i in order], replicates=replicates, seed=seed)
    parts = [_figures(films, weights) for weights in chunks]
    answer, of_group = probabilities.argmax(axis=1), group_numbers(groups)[0]
    return Replicated(
        overall=point.overall[0],
        per_class=point.per_class[0],
        overall_drawn=np.concatenate([part.overall for part in parts]),
        per_class_drawn=np.concatenate([part.per_class for part in parts]),
        support=films.support,
        confusion=point.confusion[0].astype(np.int64),
        trials={"accuracy": len(np.unique(of_group))},
        trials_per_class=[
            {
                "precision": len(np.unique(of_group[answer == k])),
                "sensitivity": len(np.unique(of_group[truth == k])),
                "specificity": len(np.unique(of_group[truth != k])),
            }
            for k in range(len(labels))
        ],
    )


def _checked(
    truth: NDArray[Any],
    probabilities: NDArray[Any],
    labels: list[str],
    groups: list[str],
    row_tolerance: float,
) -> tuple[Ints, Floats]:
    """The arrays as int64 and float64, or a ValueError."""
    truth, probabilities = np.asarray(truth), np.asarray(probabilities)
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise ValueError(f"labels: must be two or more different names, found {labels}")
    if truth.ndim != 1 or truth.size == 0:
        raise ValueError(f"truth: must have the shape (N,) with N at least 1, found {truth.shape}")
    if not np.issubdtype(truth.dtype, np.integer):
        raise ValueError(f"truth: must be whole numbers, found {truth.dtype}")
    if truth.min() < 0 or truth.max() >= len(labels):
        raise ValueError(f"truth: must be from 0 to {len(labels) - 1}, found {truth.min()} to {truth.max()}")
    shape = (len(truth), len(labels))
    if probabilities.shape != shape:
        raise ValueError(f"probabilities: must have the shape (films, labels) = {shape}, found {probabilities.shape}")
    if not np.issubdtype(probabilities.dtype, np.floating):
        raise ValueError(f"probabilities: must be floating-point numbers, found {probabilities.dtype}")
    probabilities = probabilities.astype(np.float64)
    if not np.isfinite(probabilities).all():
        raise ValueError(f"probabilities: must be finite, found {np.sum(~np.isfinite(probabilities))} that are not")
    if probabilities.min() < 0:
        raise ValueError(f"probabilities: must be 0 or more, found {probabilities.min()}")
    sums = probabilities.sum(axis=1)
    worst = int(np.argmax(np.abs(sums - 1)))
    if abs(sums[worst] - 1) > row_tolerance:
        raise ValueError(f"probabilities: each row must add up to 1 within {row_tolerance}, found {sums[worst]}")
    if len(groups) != len(truth):
        raise ValueError(f"groups: must name one group for each of {len(truth)} films, found {len(groups)}")
    return truth.astype(np.int64), probabilities


@dataclass(frozen=True)
class _Ranking:
    """One class against the others: the films from the highest score to the lowest, found once.

    Films of equal score form a block and are never told apart. Only blocks that hold a film of the class count.
    """

    order: Ints  # (N,) all films, highest score first
    positives: Ints  # (P,) films of the class, highest score first
    first: Ints  # (B,) where in `order` each block begins
    last: Ints  # (B,) where in `order` each block ends, that film included
    first_positive: Ints  # (B,) where in `positives` each block begins

    @staticmethod
    def of(is_class: NDArray[np.bool_], scores: Floats) -> _Ranking:
        order = np.argsort(-scores, kind="stable")
        ranked, ranked_is_class = scores[order], is_class[order]
        starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        ends = np.r_[starts[1:], len(ranked)] - 1
        block = np.cumsum(np.r_[True, ranked[1:] != ranked[:-1]]) - 1
        blocks, first_positive = np.unique(block[ranked_is_class], return_index=True)
        return _Ranking(order, order[ranked_is_class], starts[blocks], ends[blocks], first_positive)


@dataclass(frozen=True)
class _Films:
    """The films in an order that depends on nothing but themselves, and what every replicate needs of them."""

    classes: int  # K
    support: Ints  # (K,) films of each class
    cells: Ints  # (M,) cells of the confusion matrix (truth * K + prediction) that hold films
    cell_starts: Ints  # (M,) first film of each; the films lie cell by cell
    losses: Floats  # (N,) -log of the probability of the true class
    rankings: list[_Ranking | None]  # K; None for a class without films

    @staticmethod
    def of(truth: Ints, probabilities: Floats, groups: Sequence[str]) -> tuple[_Films, Ints]:
        """The films, and their order: (N,) places in the arguments."""
        classes = probabilities.shape[1]
        cell = truth * classes + probabilities.argmax(axis=1)
        # Sums of floats depend on the order of their terms in the last bit, so the order must be the films' own.
        order = np.lexsort((*probabilities.T, group_numbers(groups)[0], cell))
        truth, probabilities = truth[order], probabilities[order]
        cells, cell_starts = np.unique(cell[order], return_index=True)
        support = np.bincount(truth, minlength=classes)
        films = _Films(
            classes=classes,
            support=support,
            cells=cells,
            cell_starts=cell_starts,
            losses=-np.log(np.clip(probabilities[np.arange(len(truth)), truth], SMALLEST_PROBABILITY, 1.0)),
            rankings=[_Ranking.of(truth == k, probabilities[:, k]) if support[k] else None for k in range(classes)],
        )
        return films, order


@dataclass(frozen=True)
class _Figures:
    """Figures of C replicates; NaN where not defined."""

    overall: Floats  # (C, 6) in the order of OVERALL
    per_class: Floats  # (C, K, 6) in the order of PER_CLASS
    confusion: Floats  # (C, K, K)


def _figures(films: _Films, weights: Floats) -> _Figures:
    """Figures under C rows of weights (C, N), whole numbers."""
    cells = np.zeros((len(weights), films.classes**2))
    cells[:, films.cells] = np.add.reduceat(weights, films.cell_starts, axis=1)
    confusion = cells.reshape(-1, films.classes, films.classes)
    answers, total = answer_figures(confusion), confusion.sum(axis=(1, 2))
    auroc, average_precision = np.full_like(answers.f1, np.nan), np.full_like(answers.f1, np.nan)
    for k, ranking in enumerate(films.rankings):
        if ranking is not None:
            auroc[:, k], average_precision[:, k] = _ranking_figures(ranking, weights, total)
    with_films = films.support > 0
    macro = [
        figure[:, with_films].mean(axis=1) for figure in (answers.sensitivity, answers.f1, auroc, average_precision)
    ]
    # Not a matrix product: its last bit depends on how many threads the BLAS library takes.
    log_loss = (weights * films.losses).sum(axis=1) / total
    return _Figures(
        overall=np.stack([answers.accuracy, *macro, log_loss], axis=1),
        per_class=np.stack(
            [answers.precision, answers.sensitivity, answers.specificity, answers.f1, auroc, average_precision], axis=2
        ),
        confusion=confusion,
    )


@dataclass(frozen=True)
class AnswerFigures:
    """Figures of the answers alone, which the confusion matrix tells; NaN where not defined."""

    accuracy: Floats  # (C,)
    precision: Floats  # (C, K), as the following
    sensitivity: Floats
    specificity: Floats
    f1: Floats


def answer_figures(confusion: Floats) -> AnswerFigures:
    """Figures of C confusion matrices (C, K, K): films by truth and prediction."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    support, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    total = support.sum(axis=1, keepdims=True)
    return AnswerFigures(
        accuracy=hits.sum(axis=1) / total[:, 0],
        precision=_ratio(hits, predicted),
        sensitivity=_ratio(hits, support),
        specificity=_ratio(total - support - predicted + hits, total - support),
        f1=np.where(support > 0, _ratio(2 * hits, support + predicted), np.nan),
    )


def _ranking_figures(ranking: _Ranking, weights: Floats, total: Floats) -> tuple[Floats, Floats]:
    """AUROC and average precision (C,) each, of one class under C rows of weights whose sums are `total`."""
    taken = np.cumsum(weights[:, ranking.order], axis=1)  # exact: whole numbers far below 2**53
    in_block = np.add.reduceat(weights[:, ranking.positives], ranking.first_positive, axis=1)
    hits = np.cumsum(in_block, axis=1)
    positives = hits[:, -1]
    negatives = total - positives
    down_to = taken[:, ranking.last]
    before = np.where(ranking.first > 0, taken[:, ranking.first - 1], 0.0)
    # A pair of a positive and a negative counts 1 when the positive scores higher and 1/2 in a tie (Mann-Whitney).
    false_before, false_down_to = before - (hits - in_block), down_to - hits
    pairs = (in_block * (negatives[:, None] - (false_before + false_down_to) / 2)).sum(axis=1)
    auroc = _ratio(pairs, positives * negatives)
    precision = np.divide(hits, down_to, out=np.zeros_like(hits), where=down_to > 0)
    return auroc, _ratio((in_block * precision).sum(axis=1), positives)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """The quotient; NaN, which becomes None, where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


@dataclass(frozen=True)
class WithIntervals:
    """Figures ``{name: {"value", "low", "high"}}``, and what is special about some of their intervals."""

    figures: dict[str, dict[str, float | None]]
    left_out: dict[str, int]  # replicates that do not define it
    exact: dict[str, str]  # why the interval is not the bootstrap's
    none: dict[str, str]  # why there is none


def with_intervals(
    names: Sequence[str],
    point: Floats,
    drawn: Floats,
    level: float,
    *,
    trials: Mapping[str, int] | None = None,
) -> WithIntervals:
    """Figures `names` from their values (F,) and their replicates (R, F), or differences of both.

    Args:
        names: F names.
        point: (F,).
        drawn: (R, F).
        level: Confidence level of the intervals.
        trials: Of shares, how many independent things they are shares of: without spread they have an exact interval.
    """
    found = WithIntervals({}, {}, {}, {})
    for i, name in enumerate(names):
        low, high = percentile_interval(drawn[:, i], level=level) or (None, None)
        value = None if np.isnan(point[i]) else float(point[i])
        if value is None:
            found.none[name] = "not defined on these films"
        elif low is None:
            found.none[name] = "no replicate defines it"
        elif low == high:
            count = (trials or {}).get(name)
            low = high = None
            if count and value in (0, 1):
                low, high = exact_interval(count if value else 0, count, level=level)
                found.exact[name] = f"no spread over the replicates: Clopper and Pearson, {count} groups"
            else:
                found.none[name] = "no spread over the replicates"
        found.figures[name] = {"value": value, "low": low, "high": high}
        undefined = int(np.isnan(drawn[:, i]).sum())
        if value is not None and undefined:
            found.left_out[name] = undefined
    return found
