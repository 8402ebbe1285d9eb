"""How strongly class and source go together, and what is left of a number when the source may not help.

Needs no picture of what a class means: two lists of names, and for the rest features of the films.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg16_xray.trust.intervals import bootstrap_weights, percentile_interval
from vgg16_xray.trust.linear_probe import FOLDS, fit_predict, macro_f1, out_of_fold, probe

#: Groups that a source needs, in a class, to be probed for or left out.
FEWEST_GROUPS = 4 * FOLDS

Floats = NDArray[np.float64]


def cramers_v(table: NDArray[Any]) -> float | Floats:
    """Cramér's V with Bergsma's bias correction (J. Korean Stat. Soc. 2013): 0 independent, 1 one tells the other.

    Args:
        table: (..., R, C) counts; empty rows and columns do not count.

    Returns:
        (...) 0.0 where only one row or column has counts.
    """
    table = np.asarray(table, dtype=np.float64)
    n = table.sum(axis=(-2, -1))
    rows, columns = table.sum(axis=-1), table.sum(axis=-2)
    expected = rows[..., :, None] * columns[..., None, :] / np.maximum(n, 1e-12)[..., None, None]
    phi2 = (np.square(table - expected) / np.where(expected > 0, expected, 1)).sum(axis=(-2, -1)) / np.maximum(n, 1)
    r, c = (rows > 0).sum(axis=-1), (columns > 0).sum(axis=-1)
    below = np.maximum(n - 1, 1)
    corrected = np.maximum(phi2 - (r - 1) * (c - 1) / below, 0)
    least = np.minimum(r - np.square(r - 1) / below, c - np.square(c - 1) / below) - 1
    v = np.sqrt(np.clip(corrected / np.maximum(least, 1e-12), 0, 1)) * (np.minimum(r, c) > 1)
    return float(v) if v.ndim == 0 else v


def mutual_information(table: NDArray[Any]) -> float | Floats:
    """Mutual information over the mean of the two entropies (as scikit-learn normalises), 0 to 1.

    Args:
        table: (..., R, C) counts.

    Returns:
        (...); 0.0 where a margin has one value only.
    """
    table = np.asarray(table, dtype=np.float64)
    joint = table / np.maximum(table.sum(axis=(-2, -1), keepdims=True), 1e-12)

    def entropy(p: Floats, axes: Any) -> Floats:
        return np.asarray(-(p * np.log(np.where(p > 0, p, 1))).sum(axis=axes))

    h_rows, h_columns = entropy(joint.sum(axis=-1), -1), entropy(joint.sum(axis=-2), -1)
    shared = h_rows + h_columns - entropy(joint, (-2, -1))
    mean = (h_rows + h_columns) / 2
    out = np.where(np.minimum(h_rows, h_columns) > 1e-12, shared / np.maximum(mean, 1e-12), 0.0).clip(0, 1)
    return float(out) if out.ndim == 0 else out


def associate(
    labels: Sequence[str],
    sources: Sequence[str],
    groups: Sequence[str],
    *,
    seed: int,
    replicates: int = 1000,
    level: float = 0.95,
) -> dict[str, Any]:
    """The table of class by source, and how strongly the two go together.

    Args:
        labels: (N,) class of each film.
        sources: (N,) source of each film, empty where unknown; those films are counted and left out.
        groups: (N,) group of each film: groups are drawn in the bootstrap.
        seed: Of the bootstrap.
        replicates: Of the bootstrap.
        level: Of the intervals.

    Returns:
        What JSON can hold: ``labels``, ``sources``, ``table`` (a row a source), ``unknown`` (films without a source, by
        class), ``cramers_v`` and ``normalised_mutual_information`` (figures with ``value``, ``low``, ``high``),
        ``adjusted_mutual_information`` (corrected for chance), ``alone`` (classes none of whose sources has another
        class), ``mixed_sources`` (sources with two classes or more), ``from_source`` (share of the films that naming
        each source's most frequent class gets right) and ``majority`` (share of the most frequent class). Figures are
        None where fewer than two sources or classes have films.
    """
    known = [i for i, source in enumerate(sources) if source]
    names = sorted(set(labels))
    unknown = Counter(label for label, source in zip(labels, sources, strict=True) if not source)
    by_size = Counter(sources[i] for i in known)
    of = sorted(by_size, key=lambda source: (-by_size[source], source))
    found: dict[str, Any] = {
        "labels": names,
        "sources": of,
        "unknown": {label: unknown[label] for label in names if unknown[label]},
        "cramers_v": None,
        "normalised_mutual_information": None,
        "adjusted_mutual_information": None,
    }
    row = np.array([of.index(sources[i]) for i in known], dtype=np.int64)
    column = np.array([names.index(labels[i]) for i in known], dtype=np.int64)
    cells = len(of) * len(names)
    at = row * len(names) + column
    table = np.bincount(at, minlength=cells).reshape(len(of), len(names))
    in_class = table.sum(axis=0)
    mixed = (table > 0).sum(axis=1) > 1
    found |= {
        "table": table.tolist(),
        "alone": [
            name
            for k, name in enumerate(names)
            if in_class[k] > unknown[name] and not (mixed & (table[:, k] > 0)).any()
        ],
        "mixed_sources": [source for source, is_mixed in zip(of, mixed, strict=True) if is_mixed],
        "from_source": float(table.max(axis=1).sum() / len(known)) if known else None,
        "majority": float(in_class.max() / len(known)) if known else None,
    }
    if len(of) < 2 or (in_class > 0).sum() < 2:
        return found
    from sklearn.metrics import adjusted_mutual_info_score

    one = np.zeros((len(known), cells))
    one[np.arange(len(known)), at] = 1
    drawn: dict[str, list[Floats]] = {"cramers_v": [], "normalised_mutual_information": []}
    for weights in bootstrap_weights([groups[i] for i in known], replicates=replicates, seed=seed):
        tables = (weights @ one).reshape(-1, *table.shape)
        drawn["cramers_v"].append(np.asarray(cramers_v(tables)))
        drawn["normalised_mutual_information"].append(np.asarray(mutual_information(tables)))
    for name, value in (("cramers_v", cramers_v(table)), ("normalised_mutual_information", mutual_information(table))):
        bounds = percentile_interval(np.concatenate(drawn[name]), level=level) or (None, None)
        found[name] = {"value": float(value), "low": bounds[0], "high": bounds[1]}
    found["adjusted_mutual_information"] = float(adjusted_mutual_info_score(column, row))
    return found


def source_within_class(
    features: NDArray[Any],
    labels: Sequence[str],
    sources: Sequence[str],
    groups: Sequence[str],
    *,
    seed: int,
    permutations: int = 99,
) -> dict[str, dict[str, Any]]:
    """Whether the source can be told from a film among films of one class, where the disease is the same.

    Args:
        features: (N, D).
        labels: (N,) class of each film.
        sources: (N,) source, empty where unknown.
        groups: (N,).
        seed: Of folds and permutations.
        permutations: See :func:`vgg16_xray.trust.linear_probe.probe`.

    Returns:
        For each class that has two sources of :data:`FEWEST_GROUPS` groups or more: ``sources`` with their films, and
        the probe's figures. Classes without are not in it.
    """
    found = {}
    for label in sorted(set(labels)):
        rows, names = _large_enough([i for i, name in enumerate(labels) if name == label], sources, groups)
        if len(names) < 2:
            continue
        truth = np.array([names.index(sources[i]) for i in rows])
        probed = probe(features[rows], truth, [groups[i] for i in rows], seed=seed, permutations=permutations)
        counts = Counter(sources[i] for i in rows)
        found[label] = {"sources": {name: counts[name] for name in names}, **probed.as_dict()}
    return found


def balanced_source(
    predictions: NDArray[Any], labels: Sequence[str], sources: Sequence[str], groups: Sequence[str], *, seed: int
) -> dict[str, Any] | None:
    """Macro-F1 where the source cannot help: in sources that hold two classes or more, every class weighing the same.

    Args:
        predictions: (N,) int, out of fold, of the whole film: class k is the k-th name.
        labels: (N,) class of each film.
        sources: (N,) source, empty where unknown.
        groups: (N,).
        seed: Of the bootstrap.

    Returns:
        ``sources`` (with the classes of each), ``films``, ``macro_f1`` (a figure) weighted so, and ``as_they_are`` (the
        same films and predictions unweighted); None where no source holds :data:`FOLDS` groups of each of two classes.
    """
    names = sorted(set(labels))
    held: dict[str, dict[str, list[int]]] = {}
    for i, (label, source) in enumerate(zip(labels, sources, strict=True)):
        if source:
            held.setdefault(source, {}).setdefault(label, []).append(i)
    usable = {
        source: {label: rows for label, rows in of.items() if len({groups[i] for i in rows}) >= FOLDS}
        for source, of in held.items()
    }
    usable = {source: of for source, of in usable.items() if len(of) > 1}
    if not usable:
        return None
    weights = np.zeros(len(labels))
    for of in usable.values():
        films = sum(map(len, of.values()))
        for rows in of.values():
            weights[rows] = films / len(of) / len(rows)
    taken = np.flatnonzero(weights)
    truth = np.array([names.index(labels[i]) for i in taken.tolist()])
    cell = np.zeros((len(taken), len(names) ** 2))
    cell[np.arange(len(taken)), truth * len(names) + predictions[taken]] = 1
    shape = (-1, len(names), len(names))

    def score(of_films: Floats) -> Floats:
        return np.atleast_1d(np.asarray(macro_f1((of_films @ cell).reshape(shape))))

    drawn = [
        score(times * weights[taken])
        for times in bootstrap_weights([groups[i] for i in taken.tolist()], replicates=1000, seed=seed)
    ]
    low, high = percentile_interval(np.concatenate(drawn), level=0.95) or (None, None)
    return {
        "sources": {source: sorted(of) for source, of in sorted(usable.items())},
        "films": len(taken),
        "macro_f1": {"value": float(score(weights[None, taken])[0]), "low": low, "high": high},
        "as_they_are": float(score(np.ones((1, len(taken))))[0]),
    }


def leave_one_source_out(
    features: NDArray[Any], labels: Sequence[str], sources: Sequence[str], groups: Sequence[str], *, seed: int
) -> dict[str, Any]:
    """What becomes of a class's films when their source is new: the nearest to another hospital that the data can give.

    Every source in turn is kept from the probe, which then names its films. Only classes that other sources teach too
    are asked for; the same films' out-of-fold answers, from a probe that knew the source, stand beside.

    Args:
        features: (N, D) of the whole film.
        labels: (N,) class of each film.
        sources: (N,) source, empty where unknown; those films teach and are not asked for.
        groups: (N,).
        seed: Of the folds.

    Returns:
        ``left_out``: for each source and class the films, ``sensitivity`` without the source and
        ``sensitivity_known`` with it, each with its 95 % ``interval``, a bootstrap over groups with the answers held
        fixed; ``macro`` and ``macro_known``: their means over (source, class); ``untestable``: classes of which no
        source could be left out.
    """
    names = sorted(set(labels))
    truth = np.array([names.index(label) for label in labels])
    of = np.array(list(sources), dtype=object)
    known = out_of_fold(features, truth, groups, seed=seed)
    rows: list[dict[str, Any]] = []
    for source in sorted({source for source in sources if source}):
        out = of == source
        # A patient with films elsewhere must not teach either.
        theirs = {group for group, is_out in zip(groups, out, strict=True) if is_out}
        stay = np.array([group not in theirs for group in groups])
        taught = {k for k in range(len(names)) if _groups(truth, groups, stay, k) >= FEWEST_GROUPS}
        asked = [k for k in sorted(taught) if _groups(truth, groups, out, k) >= FEWEST_GROUPS]
        if len(taught) < 2 or not asked:
            continue
        fit_on = np.flatnonzero(stay & np.isin(truth, sorted(taught)))
        said = fit_predict(features[fit_on], truth[fit_on], features[out], classes=len(names))
        for k in asked:
            mine = truth[out] == k
            hits = np.stack([said[mine], known[out][mine]], axis=1) == k
            of_mine = [groups[i] for i in np.flatnonzero(out)[mine].tolist()]
            new, as_known = zip(hits.mean(axis=0).tolist(), _intervals(hits, of_mine, seed=seed), strict=True)
            rows.append(
                {
                    "source": source,
                    "label": names[k],
                    "films": len(hits),
                    "sensitivity": new[0],
                    "interval": new[1],
                    "sensitivity_known": as_known[0],
                    "interval_known": as_known[1],
                }
            )
    tested = {row["label"] for row in rows}
    return {
        "left_out": rows,
        "macro": float(np.mean([row["sensitivity"] for row in rows])) if rows else None,
        "macro_known": float(np.mean([row["sensitivity_known"] for row in rows])) if rows else None,
        "untestable": [name for name in names if name not in tested],
    }


def _intervals(hits: NDArray[np.bool_], groups: Sequence[str], *, seed: int) -> list[tuple[float, float] | None]:
    """The 95 % percentile interval of the share of hits, of each column of (N, C), over groups."""
    drawn = [
        times @ hits / times.sum(axis=1, keepdims=True)
        for times in bootstrap_weights(groups, replicates=1000, seed=seed)
    ]
    return [percentile_interval(shares, level=0.95) for shares in np.concatenate(drawn).T]


def _groups(truth: NDArray[Any], groups: Sequence[str], taken: NDArray[np.bool_], k: int) -> int:
    return len({groups[i] for i in np.flatnonzero(taken & (truth == k)).tolist()})


def _large_enough(rows: Sequence[int], sources: Sequence[str], groups: Sequence[str]) -> tuple[list[int], list[str]]:
    """Films whose source has groups enough among these, and the names of those sources."""
    seen: dict[str, set[str]] = {}
    for i in rows:
        if sources[i]:
            seen.setdefault(sources[i], set()).add(groups[i])
    names = sorted(source for source, of in seen.items() if len(of) >= FEWEST_GROUPS)
    return [i for i in rows if sources[i] in names], names
