"""What was put in is found again, the simplest way is chosen; after is measured on films that were not fitted on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vgg16_xray.trust import calibrate
from vgg16_xray.trust.recalibrate import (
    AS_IT_WAS,
    BOTH,
    METHODS,
    PREVALENCE,
    TEMPERATURE,
    VECTOR,
    How,
    Scaling,
    Site,
    choose,
    compare_methods,
    fit,
    fit_scaling,
    measure,
)

LABELS = ("COVID", "Lung_Opacity", "Normal")
TRAINED = np.array([0.3, 0.1, 0.6])


def how(**changed: object) -> How:
    before = Scaling(np.ones(3), np.zeros(3))
    return replace(How(labels=LABELS, before=before, calibrated_on=TRAINED, alpha=0.1, rate=0.05), **changed)


def site(films: int, *, seed: int = 0, scale: object = 1.0, shift: object = 0.0) -> Site:
    """Films of which softmax(scale * logits + shift) is the truth."""
    random = np.random.default_rng(seed)
    logits = 2.5 * random.normal(size=(films, 3)) + np.log(TRAINED)
    p = calibrate.softmax(logits * np.asarray(scale) + np.asarray(shift))
    targets = np.array([random.choice(3, p=row) for row in p])
    return Site(logits, targets, [f"film {i}" for i in range(films)], np.ones(films))


def test_each_way_finds_what_it_was_made_for() -> None:
    assert fit_scaling(TEMPERATURE, site(4000, scale=0.5), how()).temperature == pytest.approx(2, rel=0.1)
    vector = fit_scaling(VECTOR, site(8000, scale=[0.5, 1.0, 1.5], shift=[1.0, 0.0, -1.0]), how())
    assert vector.scale == pytest.approx([0.5, 1.0, 1.5], rel=0.15)
    assert vector.shift - vector.shift[1] == pytest.approx([1, 0, -1], abs=0.2)
    moved = fit_scaling(PREVALENCE, site(3000), how(calibrated_on=np.array([0.8, 0.1, 0.1])))
    shares = np.bincount(site(3000).targets) / 3000
    assert moved.shift == pytest.approx(np.log(shares / [0.8, 0.1, 0.1]))
    assert (moved.scale == 1).all()
    both = fit_scaling(BOTH, site(3000, scale=0.5), how())
    assert both.scale[0] < 0.9
    assert both.shift.any()


def test_twenty_films_of_a_class_do_not_carry_vector_scaling_away() -> None:
    few = site(60, scale=0.5)
    vector, temperature = (fit_scaling(method, few, how()) for method in (VECTOR, TEMPERATURE))
    assert np.abs(np.log(vector.scale / temperature.scale)).max() < 1


@pytest.mark.parametrize(
    ("made", "chosen"),
    [
        ({}, {AS_IT_WAS}),
        ({"scale": 0.4}, {TEMPERATURE}),
        ({"scale": [0.3, 1.0, 2.0], "shift": [2.0, 0.0, -2.0]}, {VECTOR}),
    ],
    ids=["right already", "too sure", "each class otherwise"],
)
def test_the_simplest_way_that_does_is_chosen(made: dict, chosen: set[str]) -> None:
    films = site(3000, seed=1, **made)
    shares = np.bincount(films.targets, minlength=3) / 3000
    compared = compare_methods(films, how(calibrated_on=shares))
    assert [row["method"] for row in compared] == list(METHODS)
    assert choose(compared) in chosen


def test_after_is_better_where_the_model_was_wrong_and_sets_hold_the_truth() -> None:
    films, now = site(900, seed=2, scale=0.35), how()
    was = {"score": "lac", "by_class": True, "alpha": 0.1, "thresholds": [0.5, 0.5, 0.5], "films": [50, 50, 50]}
    found = measure(films, now, conformal=was, evidence=[0.0, 0.0, 0.0])
    assert found["after"]["probability"]["ece"]["value"] < found["before"]["probability"]["ece"]["value"] / 2
    assert found["log_loss_change"]["high"] < 0
    assert found["after"]["coverage"]["low"] < 0.9 < found["after"]["coverage"]["high"]
    assert found["before"]["coverage"]["value"] < 0.85
    for label in LABELS:
        assert found["after"]["per_class"][label]["coverage"]["value"] == pytest.approx(0.9, abs=0.06)
    assert found["before"]["abstained"]["value"] == 0
    assert found["after"]["abstained"]["value"] == pytest.approx(0.05, abs=0.03)


def test_after_is_not_measured_on_what_was_fitted() -> None:
    # Labels without any relation to the logits: fitted to themselves, vector scaling and thresholds would look good.
    random = np.random.default_rng(4)
    films = Site(random.normal(size=(90, 3)), random.integers(3, size=90), [str(i) for i in range(90)], np.ones(90))
    found = measure(films, how(calibrated_on=np.full(3, 1 / 3)), conformal=None, evidence=None)
    assert found["after"]["probability"]["log_loss"]["value"] > np.log(3) - 0.01


def test_a_site_whose_films_would_be_shut_out_is_let_in_and_no_threshold_rises() -> None:
    films = site(300)
    strange = replace(films, film=np.linspace(0.1, 0.3, 300))
    assert fit(strange, how(film_threshold=0.5)).film_threshold == pytest.approx(0.1, abs=0.01)
    assert fit(films, how(film_threshold=0.5)).film_threshold == 0.5
    assert fit(films, how(rate=None, film_threshold=0.5)).evidence is None
