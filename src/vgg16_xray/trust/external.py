"""What is left of a model on somebody else's films: figures, the drop against its own test, subgroups, calibration.

*External testing*, as CLAIM 2024 calls it. Films of classes that the model does not know were left out before; classes
that the films do not have have no figures, and no mean is compared whose classes differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg16_xray.trust import calibrate, operating, prevalence
from vgg16_xray.trust.metrics import PER_CLASS, evaluate

#: A subgroup of fewer films is counted and not measured.
LEAST = 20

Figure = Mapping[str, float | None]


def drop(internal: Figure, external: Figure) -> dict[str, float | None]:
    """External less internal, with the interval of Zou and Donner (*Statistics in Medicine* 27, 2008) from both.

    Args:
        internal: ``value``, ``low``, ``high``, each possibly None.
        external: The same of other films, independent of the first.
    """
    a, b = internal["value"], external["value"]
    if a is None or b is None:
        return {"value": None, "low": None, "high": None}
    bounds = [figure[side] for figure in (internal, external) for side in ("low", "high")]
    if any(bound is None for bound in bounds):
        return {"value": b - a, "low": None, "high": None}
    a_low, a_high, b_low, b_high = (float(bound) for bound in bounds if bound is not None)
    return {
        "value": b - a,
        "low": b - a - float(np.hypot(b - b_low, a_high - a)),
        "high": b - a + float(np.hypot(b_high - b, a - a_low)),
    }


def at_mix(per_class: Mapping[str, Mapping[str, Any]], shares: Mapping[str, float]) -> dict[str, float | None]:
    """Accuracy that a model would have where classes are as common as `shares` says, from its sensitivities.

    Classes are measured on different films, so their intervals combine as independent ones do (Zou and Donner 2008).

    Args:
        per_class: ``per_class`` of ``test.json``.
        shares: Label -> share, adding up to 1; classes that are not there may be left out.

    Returns:
        A figure; all None where a class has no sensitivity.
    """
    figures = [(share, per_class[label]["sensitivity"]) for label, share in shares.items() if share > 0]
    if any(figure["value"] is None for _, figure in figures):
        return {"value": None, "low": None, "high": None}
    value = float(sum(share * figure["value"] for share, figure in figures))
    if any(figure[side] is None for _, figure in figures for side in ("low", "high")):
        return {"value": value, "low": None, "high": None}
    down, up = (
        float(np.sqrt(sum((share * (figure[side] - figure["value"])) ** 2 for share, figure in figures)))
        for side in ("low", "high")
    )
    return {"value": value, "low": value - down, "high": value + up}


def measure(
    *,
    truth: NDArray[Any],
    probabilities: NDArray[Any],
    labels: Sequence[str],
    groups: Sequence[str],
    answers: Sequence[str],
    columns: Mapping[str, Sequence[str]],
    internal: Mapping[str, Any] | None,
    validated: Mapping[str, Any] | None,
    prevalences: Sequence[float] = operating.PREVALENCES,
    calibrated_on: NDArray[Any] | None = None,
    prior: NDArray[Any] | str | None = None,
    seed: int = 1234,
) -> dict[str, Any]:
    """Measure a model on films that are not its own.

    Args:
        truth: (N,) int, index into `labels`.
        probabilities: (N, K) calibrated as the model has it.
        labels: K names, those of the model.
        groups: (N,) patient, or the film itself.
        answers: (N,) ``answered``, ``abstained`` or ``refused``.
        columns: Name of a column of metadata -> (N,) values, empty where nothing is said.
        internal: ``test.json`` of the model; None where nobody has it.
        validated: ``validation.json``: sets and thresholds that are tried here; None where nobody has it.
        prevalences: For predictive values.
        calibrated_on: (K,) shares of the classes where the probabilities were calibrated; None where nobody knows.
        prior: (K,) shares of the classes there, by the reader, or ``estimate``; the figures are given once more for
            probabilities that are corrected to them.
        seed: Of the bootstraps.

    Returns:
        What :func:`vgg16_xray.trust.metrics.evaluate` gives, and ``drop`` (``accuracy``; ``accuracy_at_this_mix``:
        against what the internal test would have shown with classes as common as here; ``per_class``, of each class
        that is there), ``subgroups`` (column -> value -> ``films`` and ``accuracy``), ``worst`` (the subgroup with the
        lowest accuracy: ``column``, ``value``, ``films``, ``accuracy``), ``answers`` (label -> answer -> films),
        ``answered_wrongly`` (of the films of each class, the share that is answered with another, a figure),
        ``calibration`` and ``operating`` as in ``test.json``, and ``mix`` (None without `calibrated_on`): label ->
        share ``calibrated_on``, ``here`` (by the labels), ``estimated`` (a figure, without labels), and ``corrected``
        (None without `prior`): ``how``, ``prior``, ``overall``, ``per_class``, ``probability``.
    """
    truth, probabilities = np.asarray(truth), np.asarray(probabilities, dtype=np.float64)
    probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
    measured = evaluate(truth=truth, probabilities=probabilities, labels=labels, groups=groups, seed=seed)
    found: dict[str, Any] = {**measured, "drop": None}
    if internal is not None:
        found["drop"] = {
            "accuracy": drop(internal["overall"]["accuracy"], measured["overall"]["accuracy"]),
            "accuracy_at_this_mix": drop(
                at_mix(internal["per_class"], {label: float(np.mean(truth == k)) for k, label in enumerate(labels)}),
                measured["overall"]["accuracy"],
            ),
            "per_class": {
                label: {
                    name: drop(internal["per_class"][label][name], measured["per_class"][label][name])
                    for name in PER_CLASS
                }
                for k, label in enumerate(labels)
                if (truth == k).any()
            },
        }
    right = probabilities.argmax(axis=1) == truth
    found["subgroups"] = {
        column: {
            value: _subgroup(right, np.array([said == value for said in values]), groups, seed=seed)
            for value in sorted({value for value in values if value})
        }
        for column, values in columns.items()
    }
    measurable = [
        (of["accuracy"]["value"], column, value)
        for column, values in found["subgroups"].items()
        for value, of in values.items()
        if of["accuracy"] is not None
    ]
    found["worst"] = None
    if measurable:
        _, column, value = min(measurable)
        found["worst"] = {"column": column, "value": value, **found["subgroups"][column][value]}
    given, named = np.array(answers), probabilities.argmax(axis=1)
    found["answers"] = {
        label: {kind: int(np.sum((given == kind) & (truth == k))) for kind in ("answered", "abstained", "refused")}
        for k, label in enumerate(labels)
    }
    present = [k for k in range(len(labels)) if (truth == k).any()]
    wrong = (given == "answered") & (named != truth)
    found["answered_wrongly"] = dict(
        zip(
            [labels[k] for k in present],
            calibrate.ratios(
                [str(k) for k in present],
                np.stack([wrong & (truth == k) for k in present]),
                np.stack([truth == k for k in present]),
                groups,
                trials={str(k): len({g for g, t in zip(groups, truth, strict=True) if t == k}) for k in present},
                seed=seed,
            ).values(),
            strict=True,
        )
    )
    found["operating"] = None
    found["calibration"] = {"probability": calibrate.measure(probabilities, truth, groups, seed=seed)}
    if validated is not None:
        found["calibration"]["conformal"] = [
            calibrate.measure_conformal(conformal, probabilities, truth, groups, seed=seed)
            for conformal in validated["calibration"]["conformal"]
        ]
        found["operating"] = operating.measure(
            validated["operating"], probabilities, truth, groups, prevalences=prevalences, seed=seed
        )
    found["mix"] = None
    if calibrated_on is not None:
        found["mix"] = _mix(truth, probabilities, labels, groups, calibrated_on=calibrated_on, prior=prior, seed=seed)
    return found


def _mix(
    truth: NDArray[Any],
    probabilities: NDArray[Any],
    labels: Sequence[str],
    groups: Sequence[str],
    *,
    calibrated_on: NDArray[Any],
    prior: NDArray[Any] | str | None,
    seed: int,
) -> dict[str, Any]:
    """How common classes are there, and the figures once the probabilities are corrected to what is wanted."""

    def named(shares: NDArray[Any]) -> dict[str, float]:
        return {label: float(share) for label, share in zip(labels, shares, strict=True)}

    estimated = prevalence.estimate_with_intervals(probabilities, calibrated_on, groups, labels, seed=seed)
    found: dict[str, Any] = {
        "calibrated_on": named(calibrated_on),
        "here": named(np.bincount(truth, minlength=len(labels)) / len(truth)),
        "estimated": estimated,
        "corrected": None,
    }
    if prior is not None:
        wanted = np.array([of["value"] for of in estimated.values()]) if isinstance(prior, str) else np.asarray(prior)
        p = prevalence.corrected(probabilities, calibrated_on, wanted)
        measured = evaluate(truth=truth, probabilities=p, labels=labels, groups=groups, seed=seed)
        found["corrected"] = {
            "how": "estimated" if isinstance(prior, str) else "given",
            "prior": named(wanted),
            "overall": measured["overall"],
            "per_class": measured["per_class"],
            "probability": calibrate.measure(p, truth, groups, seed=seed),
        }
    return found


def _subgroup(
    right: NDArray[np.bool_], inside: NDArray[np.bool_], groups: Sequence[str], *, seed: int
) -> dict[str, Any]:
    films = int(inside.sum())
    if films < LEAST:
        return {"films": films, "accuracy": None}
    names = [group for group, chosen in zip(groups, inside, strict=True) if chosen]
    figure = calibrate.ratios(
        ["accuracy"], right[inside][None], np.ones((1, films)), names, trials={"accuracy": len(set(names))}, seed=seed
    )
    return {"films": films, **figure}
