"""Thresholds reach what they were chosen for; predictive values and net benefit are their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from vgg16_xray.trust import operating


def drawn(films: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    random = np.random.default_rng(seed)
    truth = (random.random(films) < 0.3).astype(int)
    p = 1 / (1 + np.exp(-(random.normal(size=films) + 2.5 * truth - 1.5)))
    return np.stack([1 - p, p], axis=1), truth, [f"film {i}" for i in range(films)]


def test_a_threshold_reaches_what_was_wanted_and_the_next_one_does_not() -> None:
    p, truth, _ = drawn(400)
    is_class, scores = truth == 1, p[:, 1]
    cut = operating.threshold(is_class, scores, wanted="specificity", share=0.95)
    assert (scores[~is_class] < cut).mean() >= 0.95
    lower = scores[(scores < cut) & ~is_class].max()  # calling this film positive too would be too much
    assert (scores[~is_class] < lower).mean() < 0.95
    cut = operating.threshold(is_class, scores, wanted="sensitivity", share=0.95)
    assert (scores[is_class] >= cut).mean() >= 0.95
    higher = scores[(scores > cut) & is_class].min()
    assert (scores[is_class] >= higher).mean() < 0.95


def test_predictive_values_follow_bayes() -> None:
    # 1,000 films, 1 % ill: 9 of 10 found, 49.5 of 990 called falsely.
    ppv, npv = operating.predictive_values(0.9, 0.95, 0.01)
    assert ppv == pytest.approx(9 / (9 + 49.5))
    assert npv == pytest.approx(940.5 / (940.5 + 1))


def test_what_thresholds_reach_elsewhere_is_counted_there() -> None:
    fitted = operating.fit(*drawn(500, seed=1)[:2])
    p, truth, groups = drawn(600, seed=2)
    found = operating.measure(fitted, p, truth, groups, replicates=200)[1]
    assert found is not None
    for point in found["points"]:
        called = p[:, 1] >= point["threshold"]
        assert point["sensitivity"]["value"] == pytest.approx(called[truth == 1].mean())
        assert point["specificity"]["value"] == pytest.approx((~called)[truth == 0].mean())
        assert point["sensitivity"]["low"] < point["sensitivity"]["value"] < point["sensitivity"]["high"]
        at_ten = next(row for row in point["predictive"] if row["prevalence"] == 0.1)
        expected = operating.predictive_values(point["sensitivity"]["value"], point["specificity"]["value"], 0.1)
        assert (at_ten["ppv"]["value"], at_ten["npv"]["value"]) == pytest.approx(expected)
        assert at_ten["ppv"]["low"] < at_ten["ppv"]["value"] < at_ten["ppv"]["high"]
    for row in found["net_benefit"]:
        called, odds = p[:, 1] >= row["probability"], row["probability"] / (1 - row["probability"])
        assert row["model"]["value"] == pytest.approx(
            (called & (truth == 1)).mean() - (called & (truth == 0)).mean() * odds
        )
        assert row["all"]["value"] == pytest.approx((truth == 1).mean() - (truth == 0).mean() * odds)


def test_at_the_test_sets_own_prevalence_the_predictive_values_are_the_shares_found() -> None:
    p, truth, groups = drawn(600, seed=3)
    found = operating.measure(operating.fit(p, truth), p, truth, groups, prevalences=[truth.mean()], replicates=20)[1]
    assert found is not None
    called = p[:, 1] >= found["points"][0]["threshold"]
    assert found["points"][0]["predictive"][0]["ppv"]["value"] == pytest.approx(truth[called].mean())


def test_a_class_that_the_films_lack_has_no_figures() -> None:
    p, truth, groups = drawn(100)
    p, fitted = np.column_stack([p, np.zeros(100)]), operating.fit(np.column_stack([p, np.zeros(100)]), truth)
    assert [point["threshold"] for point in fitted[2]][1] is None
    assert operating.measure(fitted, p, truth, groups, replicates=10)[2] is None
