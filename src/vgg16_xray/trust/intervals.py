"""How far a number could have been off: a bootstrap that draws groups, not films.

Films of one patient, or of one source, resemble each other. Drawing single films would count each of them as news and
give intervals that are too narrow, so whole groups are drawn, with replacement, as many as there are (the cluster
bootstrap: Davison and Hinkley, *Bootstrap Methods and their Application*, 1997, section 3.8, strategy 1).

Beside it what needs no draws: the exact interval of a share, and DeLong's of an area under the ROC curve.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

#: Weights in one chunk: 2 MiB of float64, so that a chunk and what is made from it stay in the processor's cache.
CHUNK_WEIGHTS = 2**18


def group_numbers(groups: Sequence[str]) -> tuple[NDArray[np.int64], int]:
    """Number the groups in the order of their names, which does not depend on the order of the films.

    Args:
        groups: (N,) the name of each film's group, N at least 1.

    Returns:
        (N,) int64 number of each film's group, and how many groups there are.

    Raises:
        ValueError: There are no films, or a name is not a string.
    """
    if len(groups) == 0:
        raise ValueError("groups: must name the group of at least one film, found none")
    strangers = [name for name in groups if not isinstance(name, str)]
    if strangers:
        raise ValueError(f"groups: must be strings, found {strangers[0]!r}")
    number = {name: i for i, name in enumerate(sorted(set(groups)))}
    return np.fromiter((number[name] for name in groups), dtype=np.int64, count=len(groups)), len(number)


def bootstrap_weights(
    groups: Sequence[str], *, replicates: int, seed: int, chunk: int | None = None
) -> Iterator[NDArray[np.float64]]:
    """Yield how often each film occurs in each replicate, a few replicates at a time.

    A replicate is G groups drawn with replacement from the G groups; all films of a group have its weight. The same
    groups and seed give the same weights, whatever `chunk` is, and films that change places take their weights along.

    Args:
        groups: (N,) the name of each film's group.
        replicates: How many replicates in all, at least 1.
        seed: Seed of the draw, 0 or more.
        chunk: Replicates in one array; by default as many as make :data:`CHUNK_WEIGHTS` weights.

    Yields:
        (C, N) float64 whole numbers, 0 or more, with C at most `chunk`. The C of all arrays add up to `replicates`.

    Raises:
        ValueError: An argument breaks its rule.
    """
    if replicates < 1:
        raise ValueError(f"replicates: must be at least 1, found {replicates}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk: must be at least 1, found {chunk}")
    number, count = group_numbers(groups)
    generator = np.random.default_rng(seed)
    step = chunk or max(1, CHUNK_WEIGHTS // len(number))
    for start in range(0, replicates, step):
        rows = min(step, replicates - start)
        drawn = generator.integers(count, size=(rows, count))
        drawn += np.arange(rows)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        yield times.astype(np.float64)[:, number]


def percentile_interval(values: NDArray[np.float64], *, level: float) -> tuple[float, float] | None:
    """Percentile interval of a value's bootstrap replicates.

    Args:
        values: (R,) one value a replicate; NaN where the value is not defined in it. Those replicates are left out.
        level: Confidence level, above 0 and below 1.

    Returns:
        The quantiles (1 - level) / 2 and (1 + level) / 2, or None when no replicate defines the value. Two equal
        bounds mean that no replicate differed: the bootstrap then knows nothing of the spread, not that there is none.

    Raises:
        ValueError: `level` is not between 0 and 1, or `values` is not a vector.
    """
    if not 0 < level < 1:
        raise ValueError(f"level: must be above 0 and below 1, found {level}")
    if values.ndim != 1:
        raise ValueError(f"values: must have the shape (R,), found {values.shape}")
    defined = values[~np.isnan(values)]
    if defined.size == 0:
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def exact_interval(hits: int, trials: int, *, level: float) -> tuple[float, float]:
    """Interval of Clopper and Pearson (*Biometrika* 26, 1934) of a share: it holds the truth at least so often.

    Args:
        hits: From 0 to `trials`.
        trials: At least 1, independent of each other.
        level: Confidence level, above 0 and below 1.
    """
    from scipy.stats import binomtest

    found = binomtest(hits, trials).proportion_ci(confidence_level=level, method="exact")
    return float(found.low), float(found.high)


def auroc_interval(
    is_class: NDArray[np.bool_], scores: NDArray[np.float64], groups: Sequence[str], *, level: float
) -> tuple[float, float, float] | None:
    """An area under the ROC curve with the interval of DeLong et al. (*Biometrics* 44, 1988), for films in groups.

    Groups as in Obuchowski, *Biometrics* 53, 1997; with a group a film it is DeLong's. The bounds are found on the
    logit scale (Pepe 2003, section 5.2), where they stay between 0 and 1 and hold the truth as often as they say.

    Args:
        is_class: (N,) which films are of the class.
        scores: (N,) higher means rather of the class.
        groups: (N,) name of each film's group.
        level: Confidence level, above 0 and below 1.

    Returns:
        The area and its bounds; None where a side has fewer than two groups, or the area is 0 or 1.
    """
    from scipy.stats import norm, rankdata

    is_class, scores = np.asarray(is_class, dtype=bool), np.asarray(scores, dtype=np.float64)
    positives, negatives = int(is_class.sum()), int((~is_class).sum())
    of_film, count = group_numbers(groups)
    if min(len(np.unique(of_film[side])) for side in (is_class, ~is_class)) < 2:
        return None
    # How many of the other side a film outranks, ties by half: its rank among all less its rank on its own side.
    ranks = rankdata(scores)
    outranked = np.empty_like(scores)
    for side in (is_class, ~is_class):
        outranked[side] = ranks[side] - rankdata(scores[side])
    placement = np.where(is_class, outranked / negatives, 1 - outranked / positives)
    area = float(placement[is_class].mean())
    if area in (0.0, 1.0):
        return None
    off = placement - area
    of_positives, of_negatives = (
        np.bincount(of_film[side], weights=off[side], minlength=count) for side in (is_class, ~is_class)
    )
    variance = 0.0
    for side, sums, films in ((is_class, of_positives, positives), (~is_class, of_negatives, negatives)):
        clusters = len(np.unique(of_film[side]))
        variance += clusters / (clusters - 1) * float(np.sum(sums**2)) / films**2
    variance += 2 * count / (count - 1) * float(np.sum(of_positives * of_negatives)) / (positives * negatives)
    if variance <= 0:
        return None
    logit = np.log(area / (1 - area))
    reach = norm.ppf((1 + level) / 2) * np.sqrt(variance) / (area * (1 - area))
    low, high = 1 / (1 + np.exp(-(logit - reach))), 1 / (1 + np.exp(-(logit + reach)))
    return area, float(low), float(high)
