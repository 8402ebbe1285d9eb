"""Scores become probabilities, probabilities become sets: held to scikit-learn, MAPIE and known truths."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from mapie.classification import SplitConformalClassifier
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import brier_score_loss, log_loss

from vgg16_xray.trust import calibrate

CLASSES = 4


def drawn(films: int, *, seed: int, too_sure: float = 1.0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Logits whose softmax at temperature `too_sure` is the truth's distribution, the truth, a group a film."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(films, CLASSES)) * 2.5
    logits[:, 0] += 1  # classes are not equally common
    p = calibrate.softmax(logits)
    truth = (random.random((films, 1)) > p.cumsum(1)).sum(1)
    return logits * too_sure, truth, [f"film {i}" for i in range(films)]


def test_the_temperature_that_made_a_model_too_sure_is_found_again() -> None:
    for wanted in (0.5, 1.0, 3.0):
        logits, truth, _ = drawn(20_000, seed=1, too_sure=wanted)
        assert calibrate.fit_temperature(logits, truth) == pytest.approx(wanted, rel=0.03)


def test_scores_and_logits_give_the_same_temperature() -> None:
    logits, truth, _ = drawn(500, seed=2, too_sure=4)
    scores = calibrate.softmax(logits)
    found = calibrate.fit_temperature(calibrate.logits_of(scores), truth)
    assert found == pytest.approx(calibrate.fit_temperature(logits, truth), rel=1e-5)
    np.testing.assert_allclose(calibrate.softmax(calibrate.logits_of(scores), 1.0), scores)


def test_no_other_temperature_has_a_smaller_log_loss() -> None:
    logits, truth, _ = drawn(400, seed=3, too_sure=2)
    best = calibrate.fit_temperature(logits, truth)
    losses = [
        log_loss(truth, calibrate.softmax(logits, t), labels=range(CLASSES)) for t in (best, 0.98 * best, 1.02 * best)
    ]
    assert losses[0] == min(losses)


def test_figures_are_scikit_learns_and_the_ece_is_the_sum_over_the_bins() -> None:
    logits, truth, groups = drawn(700, seed=4, too_sure=3)
    p = calibrate.softmax(logits)
    found = calibrate.measure(p, truth, groups, replicates=50)
    assert found["log_loss"]["value"] == pytest.approx(log_loss(truth, p, labels=range(CLASSES)))
    # scikit-learn halves nothing for more than two classes: the sum over the classes, as Brier has it.
    assert found["brier"]["value"] == pytest.approx(
        brier_score_loss(truth, p, labels=range(CLASSES), scale_by_half=False)
    )
    bins = [row for row in found["bins"] if row["films"]]
    by_hand = sum(row["films"] / 700 * abs(row["confidence"] - row["right"]["value"]) for row in bins)
    assert found["ece"]["value"] == pytest.approx(by_hand)
    assert sum(row["films"] for row in found["bins"]) == 700
    for row in bins:
        assert row["from"] < row["confidence"] <= row["to"]
        assert row["right"]["low"] <= row["right"]["value"] <= row["right"]["high"]


def test_a_model_too_sure_is_far_off_and_scaling_brings_it_to_what_chance_alone_shows() -> None:
    logits, truth, groups = drawn(1200, seed=5, too_sure=3)
    fitted = calibrate.fit(calibrate.softmax(logits[:600]), truth[:600], groups[:600])
    found = calibrate.test(fitted, calibrate.softmax(logits[600:]), truth[600:], groups[600:])
    assert found["score"]["ece"]["value"] > found["score"]["ece_by_chance"]["p95"]
    assert found["probability"]["ece"]["value"] < found["probability"]["ece_by_chance"]["p95"]
    assert found["probability"]["log_loss"]["high"] < found["score"]["log_loss"]["low"]
    json.dumps(found, allow_nan=False)


def test_the_interval_of_an_ece_holds_it_where_drawing_again_only_adds_noise() -> None:
    for seed in (12, 15, 37):  # of these 100 films all 200 draws, or nearly all, have a larger ECE than they have
        logits, truth, groups = drawn(100, seed=seed)
        ece = calibrate.measure(calibrate.softmax(logits), truth, groups, replicates=200)["ece"]
        assert ece["low"] <= ece["value"] <= ece["high"]


def test_the_order_of_the_films_moves_no_bit() -> None:
    logits, truth, groups = drawn(300, seed=6)
    p, order = calibrate.softmax(logits), np.random.default_rng(0).permutation(300)
    same = calibrate.measure(p[order], truth[order], [groups[i] for i in order])
    assert {k: v for k, v in same.items() if k in calibrate.FIGURES} == {
        k: v for k, v in calibrate.measure(p, truth, groups).items() if k in calibrate.FIGURES
    }


class Given(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """For MAPIE: a classifier whose films are their probabilities."""

    def fit(self, x: Any, y: Any) -> Given:
        self.classes_ = np.arange(CLASSES)
        return self

    def predict_proba(self, x: Any) -> Any:
        return x

    def predict(self, x: Any) -> Any:
        return x.argmax(1)


def test_the_sets_of_lac_are_mapies() -> None:
    logits, truth, _ = drawn(900, seed=7)
    p = calibrate.softmax(logits)
    oracle = SplitConformalClassifier(
        Given().fit(None, None), confidence_level=0.9, conformity_score="lac", prefit=True
    )
    oracle.conformalize(p[:400], truth[:400])
    theirs = oracle.predict_set(p[400:])[1][:, :, 0]
    ours = calibrate.conformal_sets(calibrate.fit_conformal(p[:400], truth[:400], by_class=False), p[400:])
    np.testing.assert_array_equal(ours, theirs)


def test_the_scores_of_aps_are_the_probabilities_down_to_a_class() -> None:
    p = np.array([[0.5, 0.2, 0.3, 0.0]])
    np.testing.assert_allclose(calibrate._scores("aps", p), [[0.5, 1.0, 0.8, 1.0]])


@pytest.mark.parametrize("score", calibrate.SCORES)
@pytest.mark.parametrize("by_class", [True, False])
def test_sets_hold_the_truth_as_often_as_they_promise(score: str, by_class: bool) -> None:
    # 200 times fitted on 300 films and used on 300 others; the promise is about the mean of that.
    held, of_class = [], []
    for seed in range(200):
        logits, truth, _ = drawn(600, seed=100 + seed, too_sure=2)  # calibrated or not: the promise holds
        p = calibrate.softmax(logits)
        conformal = calibrate.fit_conformal(p[:300], truth[:300], alpha=0.1, score=score, by_class=by_class)
        inside = calibrate.conformal_sets(conformal, p[300:])[np.arange(300), truth[300:]]
        held.append(inside.mean())
        of_class.append([inside[truth[300:] == k].mean() for k in range(CLASSES)])
    # With so few films of a class to fit on, the promise "at least 0.9" is kept with up to 1 / (films + 1) to spare.
    assert 0.895 < np.mean(held) < 0.92
    each = np.mean(of_class, axis=0)
    assert not by_class or ((each > 0.895) & (each < 0.93)).all()


def test_a_set_names_its_classes_from_the_most_probable_on() -> None:
    conformal = {"score": "lac", "thresholds": [0.9, 0.9, 0.9, 0.9]}
    assert calibrate.conformal_set(conformal, np.array([0.2, 0.05, 0.6, 0.15])) == [2, 0, 3]
    assert calibrate.conformal_set(conformal | {"thresholds": [0.3] * 4}, np.array([0.25] * 4)) == []


def test_a_set_does_not_leave_out_what_the_film_is_called() -> None:
    conformal = {"score": "lac", "thresholds": [0.1, 0.9, 0.9, 0.9]}
    assert calibrate.conformal_set(conformal, np.array([0.6, 0.2, 0.15, 0.05])) == [0, 1, 2]


def test_a_class_with_too_few_films_is_in_every_set() -> None:
    logits, truth, _ = drawn(200, seed=8)
    truth[truth == 3] = 2
    truth[:8] = 3
    conformal = calibrate.fit_conformal(calibrate.softmax(logits), truth, alpha=0.1)
    assert conformal["films"][3] == 8
    assert calibrate.conformal_sets(conformal, np.eye(4)[:3])[:, 3].all()


def test_measured_coverage_is_counted_from_the_sets() -> None:
    logits, truth, groups = drawn(500, seed=9)
    p = calibrate.softmax(logits)
    conformal = calibrate.fit_conformal(p[:250], truth[:250])
    found = calibrate.measure_conformal(conformal, p[250:], truth[250:], groups[250:])
    sets = [calibrate.conformal_set(conformal, row) for row in p[250:]]
    assert found["coverage"]["value"] == pytest.approx(
        np.mean([t in s for t, s in zip(truth[250:], sets, strict=True)])
    )
    assert found["size"]["value"] == pytest.approx(np.mean([len(s) for s in sets]))
    assert found["empty"]["value"] == pytest.approx(np.mean([not s for s in sets]))
    of_one = [1 in s for t, s in zip(truth[250:], sets, strict=True) if t == 1]
    assert found["per_class"][1]["value"] == pytest.approx(np.mean(of_one))


def test_films_of_several_folds_are_measured_with_what_was_fitted_for_their_own() -> None:
    fitted, alone, of_folds = [], [], []
    for number, too_sure in enumerate((0.5, 2.0)):  # so different that the wrong fold's temperature would show
        logits, truth, groups = drawn(600, seed=20 + number, too_sure=too_sure)
        scores = calibrate.softmax(logits)
        fitted.append(calibrate.fit(scores[:300], truth[:300], groups[:300]))
        alone.append(calibrate.test(fitted[number], scores[300:], truth[300:], groups[300:]))
        of_folds.append((scores[300:], truth[300:], [f"{number} {group}" for group in groups[300:]]))
    scores, truth = (np.concatenate([part[i] for part in of_folds]) for i in (0, 1))
    order = np.random.default_rng(1).permutation(len(truth))  # the films of a fold need not stand together
    groups = np.array(of_folds[0][2] + of_folds[1][2])[order]
    found = calibrate.test_folds(fitted, np.repeat([0, 1], 300)[order], scores[order], truth[order], list(groups))
    assert found["temperatures"] == [one["temperature"] for one in fitted]
    for name in ("brier", "log_loss"):
        mean = np.mean([one["probability"][name]["value"] for one in alone])
        assert found["probability"][name]["value"] == pytest.approx(mean)
    for kind, sets in enumerate(found["conformal"]):
        assert (sets["score"], sets["by_class"]) == tuple(
            fitted[0]["conformal"][kind][k] for k in ("score", "by_class")
        )
        for name in ("coverage", "size", "empty", "single"):
            assert sets[name]["value"] == pytest.approx(
                np.mean([one["conformal"][kind][name]["value"] for one in alone])
            )


def test_bad_arguments_are_named() -> None:
    p, truth = np.full((5, 4), 0.25), np.arange(5) % 4
    with pytest.raises(ValueError, match=r"alpha: must be above 0 and below 1, found 1\.5"):
        calibrate.fit_conformal(p, truth, alpha=1.5)
    with pytest.raises(ValueError, match="score: must be one of"):
        calibrate.fit_conformal(p, truth, score="raps")
    with pytest.raises(ValueError, match=r"must be \(N, K\) and \(N,\), N at least 1, found \(5, 4\), \(4,\)"):
        calibrate.fit_temperature(p, truth[:4])
