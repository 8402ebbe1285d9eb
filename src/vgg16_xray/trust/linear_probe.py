"""How much of a label a few numbers a film give away: a linear probe, cross-validated by group, against permutations.

One model for every input, so that what differs between two inputs is what they hold: class-balanced ridge
classification (:class:`sklearn.linear_model.RidgeClassifier`) on standardised principal components. It has a closed
form, so a permutation refits all of it, which an honest p-value needs (Ojala and Garriga, JMLR 2010, test 1) and which
an iterative fit would make a hundred times dearer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg16_xray.films.split import fold_films
from vgg16_xray.trust.intervals import bootstrap_weights, percentile_interval

#: Most principal components, and the fewest training films for each: more of them than films would be learnt by heart.
MOST_COMPONENTS, FILMS_PER_COMPONENT = 64, 3
#: Ridge penalty as a share of the number of training films, on components scaled to a mean variance of 1.
PENALTY = 0.1
#: Folds, and the fewest groups that a class needs to stand in each.
FOLDS = 5
PERMUTATIONS = 199
#: As many permutations as reach the observed score end the test: p is large, and more would not change the answer
#: (Besag and Clifford, Biometrika 1991).
ENOUGH_REACHED = 20

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What a probe reached on films that it was not fitted on."""

    #: Mean of the classes' F1 over all out-of-fold predictions.
    macro_f1: float
    low: float
    high: float
    #: Mean macro-F1 of the permutations: what the same probe reaches where there is nothing to find.
    chance: float
    #: The best of the permutations.
    chance_high: float
    #: Share of permutations, the observed one counted in, that reach the observed score.
    p: float
    permutations: int
    films: int
    groups: int
    #: (N,) out-of-fold class of each film.
    predictions: Ints

    @property
    def skill(self) -> float:
        """0 at chance, 1 when every film is named rightly."""
        return (self.macro_f1 - self.chance) / (1 - self.chance)

    @property
    def skill_low(self) -> float:
        """The same at the lower bound of the interval."""
        return (self.low - self.chance) / (1 - self.chance)

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold, predictions left out."""
        names = ("macro_f1", "low", "high", "chance", "chance_high", "p")
        numbers: dict[str, Any] = {name: round(float(getattr(self, name)), 6) for name in names}
        numbers |= {"skill": round(self.skill, 6), "skill_low": round(self.skill_low, 6)}
        return numbers | {"permutations": self.permutations, "films": self.films, "groups": self.groups}


def probe(
    features: NDArray[Any],
    truth: NDArray[Any],
    groups: Sequence[str],
    *,
    seed: int,
    permutations: int = PERMUTATIONS,
    replicates: int = 1000,
    level: float = 0.95,
    folds: int = FOLDS,
) -> Probed:
    """Probe features for a label.

    Args:
        features: (N, D) finite numbers.
        truth: (N,) int, 0 to K - 1; every class in at least `folds` groups.
        groups: (N,) group of each film: a group is never on both sides of a fold.
        seed: Of folds, permutations and bootstrap.
        permutations: Most of them; see :data:`ENOUGH_REACHED`.
        replicates: Of the bootstrap over groups, predictions held fixed.
        level: Of the interval.
        folds: Of the cross-validation.

    Raises:
        UserError: A class cannot stand in every fold.
    """
    truth = np.asarray(truth, dtype=np.int64)
    classes = int(truth.max()) + 1
    folded = _Folded.of(features, fold_of(truth, groups, folds=folds, seed=seed))
    predictions = folded.predict(truth, classes)
    observed = macro_f1(confusion(truth, predictions, classes))
    rng = np.random.default_rng(seed)
    drawn: list[float] = []
    reached = 0
    for shuffled in permuted_labels(truth, groups, rng, permutations):
        drawn.append(macro_f1(confusion(shuffled, folded.predict(shuffled, classes), classes)))
        reached += drawn[-1] >= observed
        if reached >= ENOUGH_REACHED:
            break
    # Besag and Clifford: h / l where the test ended early, (1 + reached) / (1 + l) where it went to its end.
    p = reached / len(drawn) if reached >= ENOUGH_REACHED else (1 + reached) / (1 + len(drawn))
    low, high = interval(truth, predictions, groups, classes=classes, replicates=replicates, seed=seed, level=level)
    return Probed(
        macro_f1=observed,
        low=low,
        high=high,
        chance=float(np.mean(drawn)),
        chance_high=max(drawn),
        p=p,
        permutations=len(drawn),
        films=len(truth),
        groups=len(set(groups)),
        predictions=predictions,
    )


def out_of_fold(
    features: NDArray[Any], truth: NDArray[Any], groups: Sequence[str], *, seed: int, folds: int = FOLDS
) -> Ints:
    """The probe's out-of-fold predictions alone, (N,) int64, without interval and permutations."""
    truth = np.asarray(truth, dtype=np.int64)
    return _Folded.of(features, fold_of(truth, groups, folds=folds, seed=seed)).predict(truth, int(truth.max()) + 1)


def fit_predict(train: NDArray[Any], labels: NDArray[Any], test: NDArray[Any], *, classes: int) -> Ints:
    """Fit the probe on some films and name others.

    Args:
        train: (n, D) features to fit on.
        labels: (n,) int, 0 to `classes` - 1; classes without a film are never answered.
        test: (m, D).
        classes: K.

    Returns:
        (m,) int64.
    """
    one = _Fold.of(train, test)
    return one.scores(np.asarray(labels, dtype=np.int64), classes).argmax(axis=1).astype(np.int64)


def fold_of(truth: NDArray[Any], groups: Sequence[str], *, folds: int, seed: int) -> Ints:
    """(N,) fold of each film, from 1; groups stay together, classes are spread evenly."""
    labels = [f"{label:06d}" for label in truth.tolist()]
    return np.array(fold_films(labels=labels, groups=list(groups), folds=folds, seed=seed), dtype=np.int64)


def permuted_labels(truth: Ints, groups: Sequence[str], rng: np.random.Generator, count: int) -> Any:
    """Labels dealt to the groups anew: a group gets those of another, over and over until all its films have one.

    Yields:
        (N,) int64, `count` times. Where every group has one film this is a permutation of the labels.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    rows = [np.array(members[group]) for group in sorted(members)]
    labels = [truth[of_group] for of_group in rows]
    singles = all(len(of_group) == 1 for of_group in rows)
    flat = np.concatenate(rows)
    for _ in range(count):
        order = rng.permutation(len(rows))
        shuffled = np.empty_like(truth)
        if singles:
            shuffled[flat] = truth[flat[order]]
        else:
            shuffled[flat] = np.concatenate(
                [np.resize(labels[other], len(of_group)) for of_group, other in zip(rows, order, strict=True)]
            )
        yield shuffled


def confusion(truth: Ints, predictions: Ints, classes: int) -> Ints:
    """(K, K) counts: rows truth, columns prediction."""
    return np.bincount(truth * classes + predictions, minlength=classes * classes).reshape(classes, classes)


def macro_f1(counts: NDArray[Any]) -> float:
    """Mean F1 over the classes that have films, from (K, K) counts; also for (..., K, K), then (...)."""
    right = np.diagonal(counts, axis1=-2, axis2=-1)
    of_class, said = counts.sum(axis=-1), counts.sum(axis=-2)
    f1 = 2 * right / np.maximum(of_class + said, 1e-12)
    present = of_class > 0
    mean = (f1 * present).sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)
    return float(mean) if np.ndim(mean) == 0 else mean


def interval(
    truth: Ints,
    predictions: Ints,
    groups: Sequence[str],
    *,
    classes: int,
    replicates: int,
    seed: int,
    level: float,
) -> tuple[float, float]:
    """Percentile interval of the macro-F1 by a bootstrap over groups; replicates that miss a class are left out."""
    cell = np.zeros((len(truth), classes * classes))
    cell[np.arange(len(truth)), truth * classes + predictions] = 1
    drawn = []
    whole = len(np.unique(truth))
    for weights in bootstrap_weights(groups, replicates=replicates, seed=seed):
        tables = (weights @ cell).reshape(-1, classes, classes)
        scores = np.atleast_1d(np.asarray(macro_f1(tables)))
        drawn.append(np.where((tables.sum(axis=-1) > 0).sum(axis=-1) == whole, scores, np.nan))
    bounds = percentile_interval(np.concatenate(drawn), level=level)
    observed = macro_f1(confusion(truth, predictions, classes))
    return bounds or (observed, observed)


@dataclass(frozen=True)
class _Fold:
    """Training and test films of a fold as principal components of the training films; labels play no part yet."""

    train: Floats  # (n, k)
    test: Floats  # (m, k)

    @classmethod
    def of(cls, train: NDArray[Any], test: NDArray[Any]) -> _Fold:
        train, test = np.asarray(train, dtype=np.float64), np.asarray(test, dtype=np.float64)
        mean, spread = train.mean(axis=0), train.std(axis=0)
        kept = spread > 1e-8 * max(1.0, float(np.abs(train).max(initial=0)))
        if not kept.any():
            return cls(np.zeros((len(train), 1)), np.zeros((len(test), 1)))
        train, test = ((part[:, kept] - mean[kept]) / spread[kept] for part in (train, test))
        most = min(MOST_COMPONENTS, max(2, len(train) // FILMS_PER_COMPONENT), *train.shape)
        values, vectors = _leading(train, most)
        scale = np.sqrt(max(float(values.sum()) / len(values), 1e-12))
        return cls(train @ vectors / scale, test @ vectors / scale)

    def scores(self, labels: Ints, classes: int) -> Floats:
        """(m, K) ridge regression on one column a class, every class of the same total weight."""
        counts = np.bincount(labels, minlength=classes)
        present = counts > 0
        weights = (len(labels) / present.sum() / np.maximum(counts, 1))[labels]
        targets = np.zeros((len(labels), classes))
        targets[np.arange(len(labels)), labels] = 1
        weighted = self.train * weights[:, None]
        total = weights.sum()
        mean, centre = weighted.sum(axis=0) / total, (weights[:, None] * targets).sum(axis=0) / total
        gram = weighted.T @ self.train - total * np.outer(mean, mean)
        gram[np.diag_indices_from(gram)] += PENALTY * len(labels)
        slopes = np.linalg.solve(gram, weighted.T @ targets - total * np.outer(mean, centre))
        scores = (self.test - mean) @ slopes + centre
        scores[:, ~present] = -np.inf
        return scores


def _leading(rows: Floats, count: int) -> tuple[Floats, Floats]:
    """The largest `count` variances (k,) of centred rows (n, D), and their directions (D, k)."""
    n, width = rows.shape
    # The smaller of the two Gram matrices has the same spectrum.
    if width <= n:
        values, vectors = np.linalg.eigh(rows.T @ rows / n)
    else:
        values, left = np.linalg.eigh(rows @ rows.T / n)
        vectors = rows.T @ left / np.sqrt(np.maximum(values * n, 1e-12))
    values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
    real = values > 1e-9 * max(values[0], 1e-12)
    return values[real], vectors[:, real]


@dataclass(frozen=True)
class _Folded:
    """Every fold's components, made once for the observed labels and all permutations."""

    folds: tuple[tuple[NDArray[np.bool_], _Fold], ...]
    films: int

    @classmethod
    def of(cls, features: NDArray[Any], numbers: Ints) -> _Folded:
        parts = []
        for number in range(1, int(numbers.max()) + 1):
            test = numbers == number
            parts.append((test, _Fold.of(features[~test], features[test])))
        return cls(tuple(parts), len(numbers))

    def predict(self, labels: Ints, classes: int) -> Ints:
        out = np.empty(self.films, dtype=np.int64)
        for test, fold in self.folds:
            out[test] = fold.scores(labels[~test], classes).argmax(axis=1)
        return out
