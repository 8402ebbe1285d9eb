"""Probabilities are corrected as Bayes says; the mix of classes is found without labels, with its interval."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from vgg16_xray.errors import UserError
from vgg16_xray.trust import prevalence

LABELS = ("a", "b", "c")
TRAINED = np.array([0.5, 0.3, 0.2])
MEANS = np.array([0.0, 1.8, 3.6])


def drawn(films: int, shares: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """True classes, and what is right to believe of the films where classes are as common as in TRAINED."""
    random = np.random.default_rng(seed)
    truth = random.choice(3, size=films, p=shares)
    seen = norm.pdf((random.normal(size=films) + MEANS[truth])[:, None] - MEANS)
    p = seen * TRAINED
    return truth, p / p.sum(axis=1, keepdims=True)


def test_corrected_probabilities_are_those_of_bayes_with_the_other_mix() -> None:
    there = np.array([0.1, 0.1, 0.8])
    truth, p = drawn(20_000, there, seed=0)
    new = prevalence.corrected(p, TRAINED, there)
    assert new.sum(axis=1) == pytest.approx(np.ones(len(new)))
    sure = new[:, 2] > 0.9
    assert np.mean(truth[sure] == 2) == pytest.approx(new[sure, 2].mean(), abs=0.01)
    between = (p[:, 2] > 0.3) & (p[:, 2] < 0.7)
    assert np.mean(truth[between] == 2) > p[between, 2].mean() + 0.15, "uncorrected they are wrong"
    assert prevalence.corrected(p, TRAINED, TRAINED) == pytest.approx(p)


def test_the_mix_is_estimated_without_labels_and_its_interval_holds_it() -> None:
    there, held = np.array([0.15, 0.25, 0.6]), []
    for seed in range(20):
        _, p = drawn(300, there, seed=100 + seed)
        groups = [str(i) for i in range(300)]
        found = prevalence.estimate_with_intervals(p, TRAINED, groups, LABELS, replicates=60)
        held += [
            found[label]["low"] <= share <= found[label]["high"] for label, share in zip(LABELS, there, strict=True)
        ]
        assert sum(of["value"] for of in found.values()) == pytest.approx(1)
    assert np.mean(held) > 0.85
    _, p = drawn(20_000, there, seed=3)
    assert prevalence.estimate(p, TRAINED) == pytest.approx(there, abs=0.02)


def test_a_prior_is_read_from_pairs_and_the_rest_shared_as_before() -> None:
    assert prevalence.parse_prior(["a=0.1"], LABELS, TRAINED) == pytest.approx([0.1, 0.54, 0.36])
    assert prevalence.parse_prior(["a=0", "b=0.5", "c=0.5"], LABELS, TRAINED) == pytest.approx([0, 0.5, 0.5])


@pytest.mark.parametrize(
    "pairs", [["a"], ["d=0.1"], ["a=x"], ["a=2"], ["a=0.5", "a=0.5"], ["a=0.7", "b=0.7"], ["a=0", "b=0", "c=0.5"]]
)
def test_a_prior_that_is_none_is_refused_in_one_line(pairs: list[str]) -> None:
    with pytest.raises(UserError, match=r"^--prior: must "):
        prevalence.parse_prior(pairs, LABELS, TRAINED)
