"""A model's numbers fitted anew to a site's own labelled films, its network left as it is.

Probabilities are ``softmax(scale * logits + shift)``, a scale and a shift for each class. Ways of finding them, from
the simplest on:

as it was                   nothing is fitted
temperature                 one scale for all classes (Guo et al. 2017)
prevalence                  each class's shift is moved by the logarithm of its share here over its share where it was
                            calibrated
temperature and prevalence  both
vector                      a scale and a shift for each class (Guo et al. 2017), held back towards the temperature:
                            twenty films of a class do not tell more

The way is chosen by log loss on films that it was not fitted on (cross-validation, groups kept together): the
simplest whose loss is within one standard error of the best. Then thresholds are fitted: conformal sets, how much
evidence an answer needs, and those that reach a specificity or a sensitivity. What all of this gives on films that it
did not see, the choice of the way included, is measured by cross-validation around it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg16_xray.films.split import fold_films
from vgg16_xray.trust import calibrate, operating
from vgg16_xray.trust.refuse import RATE_OF_FILM, fit_evidence

#: From the simplest on.
AS_IT_WAS, TEMPERATURE, PREVALENCE, BOTH, VECTOR = METHODS = (
    "as it was",
    "temperature",
    "prevalence",
    "temperature and prevalence",
    "vector",
)
#: Films of each class that a site must have at least.
LEAST = 20
FOLDS = 5
#: How strongly vector scaling is held back: as if so many films more spoke for the temperature.
HELD_BACK = 2.0

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Scaling:
    """How logits become probabilities: ``softmax(scale * logits + shift)``."""

    #: (K,), above 0.
    scale: Floats
    #: (K,)
    shift: Floats

    def __call__(self, logits: NDArray[Any]) -> Floats:
        """(N, K) probabilities of (N, K) logits."""
        return calibrate.softmax(np.asarray(logits, dtype=np.float64) * self.scale + self.shift)

    @property
    def temperature(self) -> float:
        """One over the mean scale: where there is one scale for all classes, the temperature."""
        return float(1 / self.scale.mean())


@dataclass(frozen=True)
class Site:
    """A site's labelled films and what the model says of them, without the films themselves."""

    #: (N, K) as the graph gives them.
    logits: Floats
    #: (N,) true classes.
    targets: Ints
    #: (N,) name of each film's group: groups are kept together.
    groups: list[str]
    #: (N,) how sure the model is that each is a frontal chest film at all.
    film: Floats

    def __getitem__(self, rows: NDArray[Any]) -> Site:
        """Some of the films."""
        groups = [self.groups[i] for i in np.arange(len(self.groups))[rows]]
        return Site(self.logits[rows], self.targets[rows], groups, self.film[rows])


@dataclass(frozen=True)
class Fitted:
    """What was found."""

    method: str
    scaling: Scaling
    #: See :func:`vgg16_xray.trust.calibrate.fit_conformal`.
    conformal: dict[str, Any]
    #: (K,) see :func:`vgg16_xray.trust.refuse.fit_evidence`; None where the model never abstains.
    evidence: list[float] | None
    #: A picture of which the model is less sure that it is a film is refused.
    film_threshold: float
    #: See :func:`vgg16_xray.trust.operating.fit`.
    operating: list[list[dict[str, Any]]]


@dataclass(frozen=True)
class How:
    """What is known before a site's films are looked at."""

    labels: tuple[str, ...]
    #: How the model makes probabilities now.
    before: Scaling
    #: (K,) shares of the classes where it was calibrated.
    calibrated_on: Floats
    #: Share of films whose conformal set may miss the truth.
    alpha: float
    #: Share of films that may be refused or abstained; None: the model never does.
    rate: float | None
    #: A picture of which the model is less sure that it is a film is refused.
    film_threshold: float = 0.0
    seed: int = 1234


def fit_scaling(method: str, site: Site, how: How) -> Scaling:
    """Find scale and shift in one of :data:`METHODS`."""
    if method == AS_IT_WAS:
        return how.before
    counts = np.bincount(site.targets, minlength=len(how.labels))
    moved = np.log(np.maximum(counts, 0.5) / counts.sum()) - np.log(np.maximum(how.calibrated_on, 1e-6))
    if method == PREVALENCE:
        return Scaling(how.before.scale, how.before.shift + moved)
    shift = how.before.shift + (moved if method == BOTH else 0)
    # What stays in place while the temperature moves is what the model has of a shift: it divides the logits alone.
    temperature = _fit_temperature(site, how.before.scale, shift)
    scaling = Scaling(how.before.scale / temperature, shift)
    return scaling if method != VECTOR else _fit_vector(site, scaling)


def _fit_temperature(site: Site, scale: Floats, shift: Floats) -> float:
    from scipy.optimize import minimize_scalar

    low, high = calibrate.TEMPERATURES
    rows = np.arange(len(site.targets))

    def loss(inverse: float) -> float:
        p = calibrate.softmax(site.logits * scale * inverse + shift)
        return float(-np.log(np.maximum(p[rows, site.targets], 1e-300)).mean())

    return float(1 / minimize_scalar(loss, bounds=(1 / high, 1 / low), method="bounded", options={"xatol": 1e-6}).x)


def _fit_vector(site: Site, begin: Scaling) -> Scaling:
    from scipy.optimize import minimize

    classes, films = site.logits.shape[1], len(site.targets)
    truth = np.eye(classes)[site.targets]

    def loss(values: Floats) -> tuple[float, Floats]:
        stretch, off = values[:classes], values[classes:]
        scale = begin.scale * np.exp(stretch)
        p = calibrate.softmax(site.logits * scale + begin.shift + off)
        gap = (p - truth) / films
        held = HELD_BACK / films
        value = -np.log(np.maximum((p * truth).sum(axis=1), 1e-300)).mean() + held * (stretch @ stretch + off @ off) / 2
        slope = np.concatenate([(gap * site.logits).sum(axis=0) * scale + held * stretch, gap.sum(axis=0) + held * off])
        return float(value), slope

    found = minimize(loss, np.zeros(2 * classes), jac=True, method="L-BFGS-B").x
    return Scaling(begin.scale * np.exp(found[:classes]), begin.shift + found[classes:])


def losses(method: str, site: Site, how: How, folds: Ints) -> Floats:
    """(N,) log loss of each film by a scaling that was not fitted on it."""
    out = np.empty(len(site.targets))
    for fold in np.unique(folds):
        inside = folds == fold
        p = fit_scaling(method, site[~inside], how)(site.logits[inside])
        out[inside] = -np.log(np.maximum(p[np.arange(int(inside.sum())), site.targets[inside]], 1e-12))
    return out


def compare_methods(site: Site, how: How, methods: Sequence[str] = METHODS) -> list[dict[str, Any]]:
    """Cross-validated log loss of each of the methods: ``method``, ``log_loss``, ``more`` than the best, ``error``.

    ``error`` is the standard error of ``more``, over groups.
    """
    folds = deal(site, how)
    of_films = {method: losses(method, site, how, folds) for method in methods}
    best = min(methods, key=lambda method: of_films[method].mean())
    number = np.unique(site.groups, return_inverse=True)[1]
    found = []
    for method in methods:
        more = of_films[method] - of_films[best]
        of_groups = np.bincount(number, weights=more - more.mean())
        found.append(
            {
                "method": method,
                "log_loss": float(of_films[method].mean()),
                "more": float(more.mean()),
                "error": float(np.sqrt((of_groups**2).sum()) / len(more)),
            }
        )
    return found


def compare_on_validation(
    scores: NDArray[Any], targets: NDArray[Any], groups: Sequence[str], labels: Sequence[str], *, seed: int
) -> list[dict[str, Any]] | None:
    """What vector scaling would gain over the temperature on a run's validation films, by cross-validation.

    A run keeps the temperature, which leaves every answer as it was tested: vector scaling moves the most probable
    class. A site that recalibrates has it chosen where it pays.

    Args:
        scores: (N, K) softmax scores, uncalibrated.
        targets: (N,) int.
        groups: (N,).
        labels: K names.
        seed: Of the folds.

    Returns:
        See :func:`compare_methods`, of the scores, the temperature and vector scaling; None where a class has too few
        groups to stand in every fold.
    """
    classes, targets = len(labels), np.asarray(targets, dtype=np.int64)
    if any(len({group for group, k in zip(groups, targets, strict=True) if k == c}) < FOLDS for c in range(classes)):
        return None
    site = Site(calibrate.logits_of(scores), targets, list(groups), np.ones(len(targets)))
    shares = np.bincount(targets, minlength=classes) / len(targets)
    as_scored = Scaling(np.ones(classes), np.zeros(classes))
    how = How(tuple(labels), as_scored, shares, alpha=calibrate.ALPHA, rate=None, seed=seed)
    return compare_methods(site, how, (AS_IT_WAS, TEMPERATURE, VECTOR))


def deal(site: Site, how: How) -> Ints:
    """(N,) fold of each film, from 1 on; groups are kept together and classes spread evenly."""
    labels = [how.labels[k] for k in site.targets]
    return np.array(fold_films(labels=labels, groups=site.groups, folds=FOLDS, seed=how.seed))


def choose(compared: Sequence[Mapping[str, Any]]) -> str:
    """The simplest method whose loss is within one standard error of the best."""
    return str(next(row["method"] for row in compared if row["more"] <= row["error"] + 1e-12))


def fit(site: Site, how: How, *, method: str | None = None) -> Fitted:
    """Fit scaling and thresholds to a site's films; the way of scaling is chosen on them where it is not given."""
    method = method or choose(compare_methods(site, how))
    scaling = fit_scaling(method, site, how)
    p = scaling(site.logits)
    evidence, film_threshold = None, how.film_threshold
    if how.rate is not None:
        # Lowered where this site's films would be shut out, never raised: other pictures are to be refused as before.
        film_threshold = min(film_threshold, float(np.sort(site.film)[int(min(RATE_OF_FILM, how.rate) * len(p))]))
        taken = site.film >= film_threshold
        left = max(0.0, (how.rate * len(p) - float(np.sum(~taken))) / max(1, int(taken.sum())))
        evidence = fit_evidence(p[taken], site.targets[taken], how.labels, rate=left)
    return Fitted(
        method,
        scaling,
        calibrate.fit_conformal(p, site.targets, alpha=how.alpha),
        evidence,
        film_threshold,
        operating.fit(p, site.targets),
    )


def measure(
    site: Site, how: How, *, conformal: Mapping[str, Any] | None, evidence: Sequence[float] | None
) -> dict[str, Any]:
    """Before and after, on the same films; after: each film by numbers that were not fitted on it.

    Args:
        site: The films.
        how: What is known before.
        conformal: The model's conformal thresholds now; None where it has none.
        evidence: (K,) the probability from which on it answers each class now; None where it never abstains.

    Returns:
        ``before`` and ``after``: ``probability`` (:func:`vgg16_xray.trust.calibrate.measure`) and figures
        ``accuracy``, ``coverage``, ``size``, ``abstained`` (refused as well), ``answered_wrongly``, each of all films
        and, in ``per_class``, label -> the same of each class; ``log_loss_change`` (a figure, paired; below 0: better).
    """
    n, classes = site.logits.shape
    folds = deal(site, how)
    after, sets, answered = np.empty((n, classes)), np.zeros((n, classes), dtype=bool), np.zeros(n, dtype=bool)
    for fold in np.unique(folds):
        inside = folds == fold
        fitted = fit(site[~inside], how)
        p = after[inside] = fitted.scaling(site.logits[inside])
        sets[inside] = calibrate.conformal_sets(fitted.conformal, p)
        answered[inside] = _answered(p, site.film[inside] >= fitted.film_threshold, fitted.evidence)
    before = how.before(site.logits)
    was_sets = None if conformal is None else calibrate.conformal_sets(conformal, before)
    rows = np.arange(n)
    change = np.log(np.maximum(before[rows, site.targets], 1e-12)) - np.log(
        np.maximum(after[rows, site.targets], 1e-12)
    )
    return {
        "before": _figures(site, how, before, was_sets, _answered(before, site.film >= how.film_threshold, evidence)),
        "after": _figures(site, how, after, sets, answered),
        "log_loss_change": calibrate.ratios(["change"], change[None], np.ones((1, n)), site.groups, seed=how.seed)[
            "change"
        ],
    }


def _answered(p: Floats, is_film: NDArray[np.bool_], evidence: Sequence[float] | None) -> NDArray[np.bool_]:
    enough = True if evidence is None else p.max(axis=1) >= np.asarray(evidence)[p.argmax(axis=1)]
    return np.asarray(is_film & enough)


def _figures(
    site: Site, how: How, p: Floats, sets: NDArray[np.bool_] | None, answered: NDArray[np.bool_]
) -> dict[str, Any]:
    n, right = len(p), p.argmax(axis=1) == site.targets
    parts: dict[str, NDArray[Any]] = {
        "accuracy": right,
        "abstained": ~answered,
        "answered_wrongly": answered & ~right,
    }
    if sets is not None:
        parts |= {"coverage": sets[np.arange(n), site.targets], "size": sets.sum(axis=1)}

    def of(inside: NDArray[np.bool_]) -> dict[str, Any]:
        groups = [group for group, chosen in zip(site.groups, inside, strict=True) if chosen]
        trials = {name: len(set(groups)) for name in parts if name != "size"}
        tops = np.stack([part[inside] for part in parts.values()])
        return calibrate.ratios(list(parts), tops, np.ones(tops.shape), groups, trials=trials, seed=how.seed)

    return {
        "probability": calibrate.measure(p, site.targets, site.groups, seed=how.seed),
        **of(np.ones(n, dtype=bool)),
        "per_class": {label: of(site.targets == k) for k, label in enumerate(how.labels)},
    }
