"""A model where its classes are more or less common than on the films that it was calibrated on.

A calibrated probability holds for the mix of classes that it was calibrated on. Where the films of each class look the
same and only their shares differ (*prior probability shift*), it is mended by weighing each class with its share there
over its share here (Bayes). The shares there may be known to the reader, or be estimated from the model's probabilities
without any label (Saerens, Latinne and Decaestecker, *Neural Computation* 14, 2002: expectation maximisation).

Another hospital's films seldom look the same: then the estimate is biased, and nothing here shows it. It is an option.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from vgg16_xray.errors import UserError
from vgg16_xray.trust.intervals import bootstrap_weights

#: The estimate has settled when no share moves by more, and is given up after so many steps.
SETTLED, MOST_STEPS = 1e-5, 2000
#: What a share is at least in a ratio: a class that was never met has no ratio.
SMALLEST = 1e-6

Floats = NDArray[np.float64]


def corrected(probabilities: NDArray[np.floating], calibrated_on: Floats, there: Floats) -> Floats:
    """Probabilities for another mix of classes.

    Args:
        probabilities: (N, K), calibrated.
        calibrated_on: (K,) shares of the classes where they were calibrated.
        there: (K,) shares of the classes where they are used.

    Returns:
        (N, K) float64, rows adding up to 1.
    """
    ratio = np.asarray(there, dtype=np.float64) / np.maximum(calibrated_on, SMALLEST)
    weighed = np.asarray(probabilities, dtype=np.float64) * ratio
    return np.asarray(weighed / np.maximum(weighed.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny))


def estimate(probabilities: NDArray[np.floating], calibrated_on: Floats, *, weights: Floats | None = None) -> Floats:
    """The shares of the classes under which these films' probabilities are most likely; needs no label.

    Args:
        probabilities: (N, K), calibrated.
        calibrated_on: (K,) shares of the classes where they were calibrated.
        weights: (N,) how often each film counts; once by default.

    Returns:
        (K,) shares, adding up to 1.
    """
    ratios = np.asarray(probabilities, dtype=np.float64) / np.maximum(calibrated_on, SMALLEST)
    weights = np.ones(len(ratios)) if weights is None else weights
    shares = np.asarray(calibrated_on, dtype=np.float64)
    for _ in range(MOST_STEPS):
        weighed = ratios * shares
        found = weights @ (weighed / np.maximum(weighed.sum(axis=1, keepdims=True), 1e-300)) / weights.sum()
        if np.abs(found - shares).max() < SETTLED:
            return np.asarray(found)
        shares = found
    return shares


def estimate_with_intervals(
    probabilities: NDArray[np.floating],
    calibrated_on: Floats,
    groups: Sequence[str],
    labels: Sequence[str],
    *,
    replicates: int = 200,
    seed: int = 1234,
    level: float = 0.95,
) -> dict[str, dict[str, float]]:
    """:func:`estimate`, and how far it moves when other groups are drawn (bootstrap over groups, percentiles).

    Args:
        probabilities: (N, K), calibrated.
        calibrated_on: (K,).
        groups: (N,) name of each film's group.
        labels: K names.
        replicates: Of the bootstrap.
        seed: Of the bootstrap.
        level: Of the intervals, which say nothing of the bias where films of a class look otherwise there.

    Returns:
        Label -> ``value``, ``low``, ``high``.
    """
    point = estimate(probabilities, calibrated_on)
    drawn = np.array(
        [
            estimate(probabilities, calibrated_on, weights=row)
            for rows in bootstrap_weights(groups, replicates=replicates, seed=seed)
            for row in rows
        ]
    )
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {
        label: {"value": float(point[k]), "low": float(low[k]), "high": float(high[k])}
        for k, label in enumerate(labels)
    }


def shares_of(films: Mapping[str, int], labels: Sequence[str]) -> Floats:
    """(K,) shares of counts of films by label."""
    counts = np.array([films.get(label, 0) for label in labels], dtype=np.float64)
    return np.asarray(counts / counts.sum())


def parse_prior(pairs: Sequence[str], labels: Sequence[str], otherwise: Floats) -> Floats:
    """Read ``LABEL=SHARE`` pairs as given to ``--prior``.

    Args:
        pairs: One or more; classes that are not named share what is left as they do in `otherwise`.
        labels: K names.
        otherwise: (K,) shares.

    Returns:
        (K,) shares, adding up to 1.

    Raises:
        UserError: A pair is no label and share, a label is unknown or given twice, or shares do not add up.
    """
    given: dict[str, float] = {}
    for pair in pairs:
        label, equals, text = pair.rpartition("=")
        try:
            share = float(text)
        except ValueError:
            share = -1.0
        if not equals or label not in labels or label in given or not 0 <= share <= 1:
            raise UserError(
                f"--prior: must be LABEL=SHARE, each of {', '.join(labels)} once and from 0 to 1, found '{pair}'"
            )
        given[label] = share
    left = 1 - sum(given.values())
    others = np.array([0.0 if label in given else share for label, share in zip(labels, otherwise, strict=True)])
    if left < -1e-6 or (others.sum() <= 0 and left > 1e-6):
        raise UserError(f"--prior: must add up to 1, found {sum(given.values()):g}")
    shares = others * (max(left, 0.0) / others.sum() if others.sum() > 0 else 0.0)
    shares += np.array([given.get(label, 0.0) for label in labels])
    return np.asarray(shares / shares.sum())
