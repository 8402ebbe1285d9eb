"""From a score to a probability, and from a probability to a set of classes that holds the truth so often.

Three things that are often taken for one:

score        what softmax makes of the logits: it ranks films, and says nothing about how often it is right.
probability  the score after temperature scaling (Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017):
             of films with 0.9, nine in ten should be right, where that was learned.
threshold    where an answer is given; its price is a sensitivity and a specificity, see :mod:`.operating`.

A conformal set (Vovk et al. 2005; LAC: Sadinle et al. 2019; APS: Romano et al. 2020, without randomising) holds the
true class with probability 1 - alpha, for films drawn like those that it was fitted on. Everything that prediction
needs is numpy on a dict that JSON holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg16_xray.trust.intervals import bootstrap_weights, exact_interval, group_numbers
from vgg16_xray.trust.metrics import SMALLEST_PROBABILITY, with_intervals

#: Equal-width bins of the largest probability, as in Guo et al. 2017.
BINS = 15
#: Share of films whose set may miss the truth.
ALPHA = 0.1
#: LAC: one minus the probability of a class. APS: the probabilities added up from the largest down to it.
SCORES = ("lac", "aps")
#: Between these the temperature is looked for: what lies at a bound is no calibration problem.
TEMPERATURES = (0.05, 20.0)
#: What is measured of probabilities, beside the bins.
FIGURES = ("ece", "brier", "log_loss")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def softmax(logits: NDArray[Any], temperature: float = 1.0) -> Floats:
    """(N, K) float64 probabilities of logits (N, K) that are divided by `temperature`."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return np.asarray(scaled / scaled.sum(axis=-1, keepdims=True))


def logits_of(scores: NDArray[Any]) -> Floats:
    """Logits (N, K) that give softmax scores (N, K), up to a constant of each row, which no softmax sees."""
    return np.log(np.clip(np.asarray(scores, dtype=np.float64), np.finfo(np.float64).tiny, None))


def fit_temperature(logits: NDArray[Any], targets: NDArray[Any]) -> float:
    """The temperature under which these films' true classes are most probable.

    Args:
        logits: (N, K) of films that the model was not fitted to.
        targets: (N,) int, the true classes.

    Returns:
        Above 1 where the model is too sure, below 1 where it is not sure enough.

    Raises:
        ValueError: There is no film, or shapes do not fit.
    """
    from scipy.optimize import minimize_scalar

    logits, targets = np.asarray(logits, dtype=np.float64), np.asarray(targets)
    if logits.ndim != 2 or len(logits) == 0 or targets.shape != (len(logits),):
        raise ValueError(
            f"logits, targets: must be (N, K) and (N,), N at least 1, found {logits.shape}, {targets.shape}"
        )
    rows = np.arange(len(targets))

    def loss(inverse: float) -> float:  # convex in the inverse of the temperature, so there is one minimum
        scaled = logits * inverse
        top = scaled.max(axis=1)
        return float(np.mean(top + np.log(np.exp(scaled - top[:, None]).sum(axis=1)) - scaled[rows, targets]))

    low, high = TEMPERATURES
    found = minimize_scalar(loss, bounds=(1 / high, 1 / low), method="bounded", options={"xatol": 1e-6})
    return float(1 / found.x)


# -- how good probabilities are


def measure(
    probabilities: NDArray[Any],
    targets: NDArray[Any],
    groups: Sequence[str],
    *,
    replicates: int = 1000,
    seed: int = 1234,
    level: float = 0.95,
) -> dict[str, Any]:
    """How far probabilities are from what happens.

    Args:
        probabilities: (N, K), rows adding up to 1.
        targets: (N,) int.
        groups: (N,) name of each film's group.
        replicates: Of the bootstrap over groups.
        seed: Of the bootstrap.
        level: Of the intervals.

    Returns:
        Figures ``{"value", "low", "high"}``: ``ece`` (expected calibration error of the largest probability over
        :data:`BINS` bins), ``brier`` (squared error summed over the classes, Brier 1950: 0 to 2), ``log_loss``;
        ``ece_by_chance`` (``mean``, ``p95``): what perfectly calibrated probabilities of as many films would show, for
        an ECE of few films is never 0; ``bins``: ``from``, ``to``, ``films``, and for those with films ``confidence``
        (mean) and ``right`` (a figure; exact interval).
    """
    probabilities, targets = np.asarray(probabilities, dtype=np.float64), np.asarray(targets, dtype=np.int64)
    confidence = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == targets).astype(np.float64)
    # A bin is (from, to], as in Guo et al.; the order of the films must not move the last bit of a sum.
    place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    order = np.lexsort((*probabilities.T, group_numbers(groups)[0], targets, place))
    place, confidence, right = place[order], confidence[order], right[order]
    of_truth = np.clip(probabilities[order, targets[order]], SMALLEST_PROBABILITY, 1)
    squared = (probabilities[order] ** 2).sum(axis=1) - 2 * probabilities[order, targets[order]] + 1
    used, starts = np.unique(place, return_index=True)

    def figures(weights: Floats, hits: Floats) -> Floats:
        """(C, 3) of C rows of weights (C, N)."""
        total = weights.sum(axis=1)
        gap = np.add.reduceat(weights * (hits - confidence), starts, axis=1)
        return np.stack(
            [
                np.abs(gap).sum(axis=1) / total,
                (weights * squared).sum(axis=1) / total,
                -(weights * np.log(of_truth)).sum(axis=1) / total,
            ],
            axis=1,
        )

    ones = np.ones((1, len(right)))
    names = [groups[i] for i in order]
    drawn = np.concatenate([figures(w, right) for w in bootstrap_weights(names, replicates=replicates, seed=seed)])
    found: dict[str, Any] = with_intervals(FIGURES, figures(ones, right)[0], drawn, level).figures
    generator = np.random.default_rng(seed)
    chance = [figures(ones, generator.random((1, len(right))) < confidence)[0, 0] for _ in range(200)]
    ece = found["ece"]
    if ece["low"] is not None:
        # Drawing few films again adds noise, which an ECE only grows by: every draw may lie above the one measured.
        ece["low"] = min(ece["low"], ece["value"])
    found["ece_by_chance"] = {"mean": float(np.mean(chance)), "p95": float(np.quantile(chance, 0.95))}
    found["bins"] = []
    for number in range(BINS):
        inside = place == number
        row: dict[str, Any] = {"from": number / BINS, "to": (number + 1) / BINS, "films": int(inside.sum())}
        if number in used:
            low, high = exact_interval(int(right[inside].sum()), row["films"], level=level)
            row["confidence"] = float(confidence[inside].mean())
            row["right"] = {"value": float(right[inside].mean()), "low": low, "high": high}
        found["bins"].append(row)
    return found


# -- conformal sets


def _scores(kind: str, probabilities: Floats) -> Floats:
    """(N, K): how little a class fits a film; 0 to 1."""
    if kind == "lac":
        return 1 - probabilities
    # Classes of equal probability are added in their order.
    order = np.argsort(-probabilities, axis=1, kind="stable")
    added = np.minimum(np.cumsum(np.take_along_axis(probabilities, order, axis=1), axis=1), 1.0)
    out = np.empty_like(probabilities)
    np.put_along_axis(out, order, added, axis=1)
    return out


def fit_conformal(
    probabilities: NDArray[Any],
    targets: NDArray[Any],
    *,
    alpha: float = ALPHA,
    score: str = "lac",
    by_class: bool = True,
) -> dict[str, Any]:
    """Find how little a class may fit a film and still be in its set.

    Args:
        probabilities: (N, K) of films that the model was not fitted to.
        targets: (N,) int.
        alpha: Share of films whose set may miss the truth.
        score: A name of :data:`SCORES`.
        by_class: One threshold a class (Mondrian): every class is held so often, the rare one too.

    Returns:
        ``score``, ``by_class``, ``alpha``, ``thresholds`` (K floats) and ``films`` (K counts: few films, rough
        promise). A class with fewer than 1 / alpha - 1 films is in every set.

    Raises:
        ValueError: An argument breaks its rule.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha: must be above 0 and below 1, found {alpha}")
    if score not in SCORES:
        raise ValueError(f"score: must be one of {SCORES}, found {score!r}")
    probabilities, targets = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    classes = probabilities.shape[1]
    of_truth = _scores(score, probabilities)[np.arange(len(targets)), targets]
    parts = [of_truth[targets == k] for k in range(classes)] if by_class else [of_truth] * classes
    return {
        "score": score,
        "by_class": by_class,
        "alpha": alpha,
        "thresholds": [_threshold(part, alpha) for part in parts],
        "films": np.bincount(targets, minlength=classes).tolist(),
    }


def _threshold(scores: Floats, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest of n scores; 1, which lets all in, where there are too few."""
    rank = int(np.ceil((len(scores) + 1) * (1 - alpha) - 1e-9))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else 1.0


def conformal_sets(conformal: Mapping[str, Any], probabilities: NDArray[Any]) -> NDArray[np.bool_]:
    """(N, K) bool: which classes are in the set of each film, from its probabilities (N, K).

    A set may be empty: then the film fits no class as well as those of that class did, nine times in ten.
    """
    scores = _scores(conformal["score"], np.asarray(probabilities, dtype=np.float64))
    # A float32 graph gives a film the same probabilities up to its rounding; a film at the threshold is let in.
    return np.asarray(scores <= np.asarray(conformal["thresholds"]) + 1e-7)


def conformal_set(conformal: Mapping[str, Any], probabilities: NDArray[Any]) -> list[int]:
    """The classes in the set of one film with probabilities (K,), the most probable first.

    A set that is not empty holds the most probable class too, which the film is called: with a threshold a class it may
    lie outside, and a reader would take it for ruled out. To add a class only lets a set hold the truth more often.
    """
    inside = conformal_sets(conformal, np.asarray(probabilities)[None])[0]
    inside[int(np.argmax(probabilities))] |= bool(inside.any())
    return [int(k) for k in np.argsort(-np.asarray(probabilities), kind="stable") if inside[k]]


def measure_conformal(
    conformal: Mapping[str, Any],
    probabilities: NDArray[Any],
    targets: NDArray[Any],
    groups: Sequence[str],
    *,
    seed: int = 1234,
) -> dict[str, Any]:
    """How often the sets hold the truth, and how large they are, on films that they were not fitted on.

    Returns:
        Figures ``coverage``, ``size`` (classes in a set), ``empty`` and ``single`` (shares of films); ``per_class``: a
        figure of the coverage for each class, None where it has no film; and what `conformal` says of itself.
    """
    inside = conformal_sets(conformal, probabilities)
    return {**conformal, **measure_sets(inside, targets, groups, seed=seed)}


def measure_sets(
    inside: NDArray[np.bool_],
    targets: NDArray[Any],
    groups: Sequence[str],
    *,
    seed: int = 1234,
) -> dict[str, Any]:
    """The figures of :func:`measure_conformal` of sets (N, K) bool, whatever they were made by."""
    targets = np.asarray(targets)
    held, sizes = inside[np.arange(len(targets)), targets], inside.sum(axis=1)
    classes = inside.shape[1]
    # Numerators and denominators: a share of the films, or of the films of a class.
    tops = np.stack([held, sizes, sizes == 0, sizes == 1, *((held & (targets == k)) for k in range(classes))])
    bottoms = np.stack([np.ones(len(targets))] * 4 + [targets == k for k in range(classes)])
    names = ("coverage", "size", "empty", "single", *map(str, range(classes)))
    trials = {"coverage": len(targets), **{str(k): int((targets == k).sum()) for k in range(classes)}}
    found = ratios(names, tops, bottoms, groups, trials=trials, seed=seed)
    overall: dict[str, Any] = {name: found[name] for name in names[:4]}
    return overall | {"per_class": [found[str(k)] if (targets == k).any() else None for k in range(classes)]}


def ratios(
    names: Sequence[str],
    tops: NDArray[Any],
    bottoms: NDArray[Any],
    groups: Sequence[str],
    *,
    trials: Mapping[str, int] | None = None,
    replicates: int = 1000,
    seed: int = 1234,
    level: float = 0.95,
) -> dict[str, dict[str, float | None]]:
    """Figures that are one sum over the films divided by another, with intervals by bootstrap over groups.

    Args:
        names: F names.
        tops: (F, N) what each film adds above; whole numbers.
        bottoms: (F, N) what it adds below.
        groups: (N,).
        trials: Of shares, how many groups they are shares of: without spread they have an exact interval.
        replicates: Of the bootstrap.
        seed: Of the bootstrap.
        level: Of the intervals.
    """
    tops, bottoms = np.asarray(tops, dtype=np.float64), np.asarray(bottoms, dtype=np.float64)

    def divided(weights: Floats) -> Floats:
        above, below = weights @ tops.T, weights @ bottoms.T  # whole numbers: the order of the sum moves no bit
        return np.divide(above, below, out=np.full(above.shape, np.nan), where=below > 0)

    point = divided(np.ones((1, tops.shape[1])))[0]
    drawn = np.concatenate([divided(w) for w in bootstrap_weights(groups, replicates=replicates, seed=seed)])
    return with_intervals(names, point, drawn, level, trials=trials).figures


# -- both together, as the steps store them


def fit(scores: NDArray[Any], targets: NDArray[Any], groups: Sequence[str], *, seed: int = 1234) -> dict[str, Any]:
    """Calibrate a model on its validation films.

    Args:
        scores: (N, K) softmax scores, uncalibrated.
        targets: (N,) int.
        groups: (N,).
        seed: Of the bootstrap.

    Returns:
        ``temperature``; ``score`` and ``probability``: what :func:`measure` says before and after (after flatters: the
        temperature was fitted on these films); ``conformal``: LAC and APS, with one threshold and one a class.
    """
    temperature = fit_temperature(logits_of(scores), targets)
    probabilities = softmax(logits_of(scores), temperature)
    return {
        "temperature": temperature,
        "score": measure(scores, targets, groups, seed=seed),
        "probability": measure(probabilities, targets, groups, seed=seed),
        "conformal": [
            fit_conformal(probabilities, targets, score=score, by_class=by_class)
            for by_class in (True, False)
            for score in SCORES
        ],
    }


def test(
    fitted: Mapping[str, Any], scores: NDArray[Any], targets: NDArray[Any], groups: Sequence[str], *, seed: int = 1234
) -> dict[str, Any]:
    """The same figures on films that :func:`fit` did not see, with what it found; of the sets what they hold."""
    probabilities = softmax(logits_of(scores), fitted["temperature"])
    return {
        "temperature": fitted["temperature"],
        "score": measure(scores, targets, groups, seed=seed),
        "probability": measure(probabilities, targets, groups, seed=seed),
        "conformal": [
            measure_conformal(conformal, probabilities, targets, groups, seed=seed) for conformal in fitted["conformal"]
        ],
    }


def test_folds(
    fitted: Sequence[Mapping[str, Any]],
    fold: NDArray[Any],
    scores: NDArray[Any],
    targets: NDArray[Any],
    groups: Sequence[str],
    *,
    seed: int = 1234,
) -> dict[str, Any]:
    """The same figures on the films of all folds together, each film with what was fitted for the model of its fold.

    Args:
        fitted: (F,) what :func:`fit` gave for each fold.
        fold: (N,) int, from 0: of which fold a film is the test.
        scores: (N, K) of the model that never saw the film.
        targets: (N,) int.
        groups: (N,); a group lies in one fold.
        seed: Of the bootstrap.

    Returns:
        As :func:`test`, but ``temperatures``, one a fold, and of the sets neither thresholds nor films.
    """
    probabilities = np.empty(np.shape(scores))
    inside = np.empty((len(fitted[0]["conformal"]), *probabilities.shape), dtype=bool)
    for number, one in enumerate(fitted):
        rows = np.flatnonzero(np.asarray(fold) == number)
        probabilities[rows] = softmax(logits_of(scores[rows]), one["temperature"])
        for kind, conformal in enumerate(one["conformal"]):
            inside[kind, rows] = conformal_sets(conformal, probabilities[rows])
    return {
        "temperatures": [one["temperature"] for one in fitted],
        "score": measure(scores, targets, groups, seed=seed),
        "probability": measure(probabilities, targets, groups, seed=seed),
        "conformal": [
            {name: conformal[name] for name in ("score", "by_class", "alpha")}
            | measure_sets(inside[kind], targets, groups, seed=seed)
            for kind, conformal in enumerate(fitted[0]["conformal"])
        ],
    }
