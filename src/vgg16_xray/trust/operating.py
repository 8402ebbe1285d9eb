"""Where an answer is given, and what that costs: thresholds, predictive values, net benefit.

A threshold is chosen on the validation films, so that a specificity (or a sensitivity) is reached there, and then
measured on others: what it reaches there is a finding, not a promise. Predictive values depend on how common the
disease is, which no test set knows: they are given for prevalences that the reader sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg16_xray.trust.intervals import auroc_interval, bootstrap_weights
from vgg16_xray.trust.metrics import with_intervals

#: What a threshold shall reach: (which, how much).
WANTED = (("specificity", 0.95), ("sensitivity", 0.95))
#: From a screening to a ward.
PREVALENCES = (0.01, 0.05, 0.1, 0.3, 0.5)
#: Probabilities above which somebody would act (Vickers and Elkin, *Medical Decision Making* 26, 2006).
ACTED_ON = (0.05, 0.1, 0.2, 0.3, 0.5)

Floats = NDArray[np.float64]


def threshold(is_class: NDArray[np.bool_], probabilities: Floats, *, wanted: str, share: float) -> float | None:
    """The probability from which on a film is called positive, so that `wanted` is at least `share` on these films.

    Args:
        is_class: (N,) which films are of the class.
        probabilities: (N,) of the class.
        wanted: ``specificity``: the lowest such threshold; ``sensitivity``: the highest.
        share: Above 0 and below 1.

    Returns:
        None where no film tells it. It may lie just above 1: then nothing is called positive.
    """
    side = np.sort(probabilities[~is_class if wanted == "specificity" else is_class])
    if len(side) == 0:
        return None
    if wanted == "specificity":
        # So many must lie below; the threshold is the next number above the last of them.
        return float(np.nextafter(side[int(np.ceil(share * len(side) - 1e-9)) - 1], 2.0))
    return float(side[len(side) - int(np.ceil(share * len(side) - 1e-9))])


def fit(probabilities: NDArray[Any], targets: NDArray[Any]) -> list[list[dict[str, Any]]]:
    """For each class, thresholds that reach :data:`WANTED` on these films: ``wanted``, ``share``, ``threshold``.

    Args:
        probabilities: (N, K) calibrated.
        targets: (N,) int.
    """
    probabilities, targets = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    return [
        [
            {
                "wanted": wanted,
                "share": share,
                "threshold": threshold(targets == k, probabilities[:, k], wanted=wanted, share=share),
            }
            for wanted, share in WANTED
        ]
        for k in range(probabilities.shape[1])
    ]


def predictive_values(sensitivity: Any, specificity: Any, prevalence: float) -> tuple[Any, Any]:
    """Positive and negative predictive value at a prevalence (Bayes); NaN where nothing is called so."""
    hit, false = sensitivity * prevalence, (1 - specificity) * (1 - prevalence)
    missed, right = (1 - sensitivity) * prevalence, specificity * (1 - prevalence)
    with np.errstate(invalid="ignore", divide="ignore"):
        return hit / np.asarray(hit + false), right / np.asarray(right + missed)


def measure(
    fitted: Sequence[Sequence[dict[str, Any]]],
    probabilities: NDArray[Any],
    targets: NDArray[Any],
    groups: Sequence[str],
    *,
    prevalences: Sequence[float] = PREVALENCES,
    replicates: int = 1000,
    seed: int = 1234,
    level: float = 0.95,
) -> list[dict[str, Any] | None]:
    """What thresholds that were fitted on other films reach on these.

    Args:
        fitted: What :func:`fit` gave.
        probabilities: (N, K) calibrated.
        targets: (N,) int.
        groups: (N,).
        prevalences: For the predictive values.
        replicates: Of the bootstrap over groups.
        seed: Of the bootstrap.
        level: Of the intervals.

    Returns:
        For each class None where these films do not have it or have nothing else, or: ``auroc`` (DeLong's interval),
        ``points`` (what was wanted, ``threshold``, figures ``sensitivity`` and ``specificity``, ``predictive``: for
        each prevalence ``ppv`` and ``npv``) and ``net_benefit`` (for each probability acted on: figures ``model`` and
        ``all``, films without harm in a film, of calling positive what the model does, or everything).
    """
    probabilities, targets = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    found: list[dict[str, Any] | None] = []
    for k, of_class in enumerate(fitted):
        is_class = targets == k
        if not is_class.any() or is_class.all():
            found.append(None)
            continue
        points = [point for point in of_class if point["threshold"] is not None]
        cuts = np.array([*(point["threshold"] for point in points), *ACTED_ON])
        called = probabilities[:, k] >= cuts[:, None]
        # Whole numbers: films of the class that are called, others that are called, and both sides as they are.
        marks = np.concatenate([called & is_class, called & ~is_class, [is_class, ~is_class]]).astype(np.float64)

        def figures(weights: Floats, marks: Floats = marks, cuts: Floats = cuts, first: int = len(points)) -> Floats:
            counts = weights @ marks.T
            n = len(cuts)
            hits, false = counts[:, :n], counts[:, n : 2 * n]
            positives, negatives = counts[:, -2:-1], counts[:, -1:]
            total, odds = positives + negatives, cuts[first:] / (1 - cuts[first:])
            with np.errstate(invalid="ignore", divide="ignore"):
                sensitivity, specificity = hits[:, :first] / positives, 1 - false[:, :first] / negatives
            values = [part for p in prevalences for part in predictive_values(sensitivity, specificity, p)]
            model = (hits[:, first:] - false[:, first:] * odds) / total
            everything = (positives - negatives * odds) / total
            return np.concatenate([sensitivity, specificity, *values, model, everything], axis=1)

        point = figures(np.ones((1, len(targets))))[0]
        drawn = np.concatenate([figures(w) for w in bootstrap_weights(groups, replicates=replicates, seed=seed)])
        names = [str(i) for i in range(len(point))]
        groups_of = {
            side: len({g for g, inside in zip(groups, mask, strict=True) if inside})
            for side, mask in (("sensitivity", is_class), ("specificity", ~is_class))
        }
        n = len(points)
        trials = {str(i): groups_of["sensitivity" if i < n else "specificity"] for i in range(2 * n)}
        measured = list(with_intervals(names, point, drawn, level, trials=trials).figures.values())
        predictive = measured[2 * n : 2 * n + 2 * n * len(prevalences)]
        benefit = measured[2 * n + len(predictive) :]
        area = auroc_interval(is_class, probabilities[:, k], groups, level=level)
        found.append(
            {
                "auroc": dict(zip(("value", "low", "high"), area, strict=True)) if area else None,
                "points": [
                    {
                        **wanted,
                        "sensitivity": measured[i],
                        "specificity": measured[n + i],
                        "predictive": [
                            {"prevalence": p, "ppv": predictive[2 * n * j + i], "npv": predictive[2 * n * j + n + i]}
                            for j, p in enumerate(prevalences)
                        ],
                    }
                    for i, wanted in enumerate(points)
                ],
                "net_benefit": [
                    {"probability": p, "model": benefit[i], "all": benefit[len(ACTED_ON) + i]}
                    for i, p in enumerate(ACTED_ON)
                ],
            }
        )
    return found
