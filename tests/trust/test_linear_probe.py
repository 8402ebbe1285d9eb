"""The probe against scikit-learn, and its permutation test against chance."""

from __future__ import annotations

import numpy as np
import pytest

from vgg16_xray.trust.intervals import bootstrap_weights
from vgg16_xray.trust.linear_probe import (
    ENOUGH_REACHED,
    PENALTY,
    _Fold,
    confusion,
    fit_predict,
    fold_of,
    interval,
    macro_f1,
    permuted_labels,
    probe,
)


def films(n: int, width: int, *, signal: float, seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    features = rng.normal(size=(n, width))
    features[:, :classes] += signal * np.eye(classes)[truth]
    return features, truth


@pytest.mark.parametrize("width", [5, 200])
def test_scores_are_those_of_scikit_learn(width: int) -> None:
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    features, truth = films(120, width, signal=1.0, seed=1)
    truth[:60] = 0  # Imbalanced, so that the weights matter.
    train, test = features[:90], features[90:]
    scaler = StandardScaler().fit(train)
    pca = PCA(min(64, 30, width), svd_solver="full").fit(scaler.transform(train))
    scale = np.sqrt((pca.explained_variance_ * 89 / 90).mean())
    z, t = (pca.transform(scaler.transform(part)) / scale for part in (train, test))
    labels = truth[:90]
    weights = (90 / 3 / np.bincount(labels))[labels]
    expected = Ridge(alpha=PENALTY * 90).fit(z, np.eye(3)[labels], sample_weight=weights).predict(t)
    np.testing.assert_allclose(_Fold.of(train, test).scores(labels, 3), expected, atol=1e-6)
    np.testing.assert_array_equal(fit_predict(train, labels, test, classes=3), expected.argmax(axis=1))


def test_macro_f1_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(0)
    truth, said = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    assert macro_f1(confusion(truth, said, 4)) == pytest.approx(f1_score(truth, said, average="macro"))


def test_p_is_small_where_there_is_something_and_not_where_there_is_nothing() -> None:
    for signal, low, high in ((2.0, 0.0, 0.011), (0.0, 0.02, 1.0)):
        features, truth = films(150, 10, signal=signal, seed=3)
        found = probe(features, truth, [str(i) for i in range(150)], seed=0, permutations=99, replicates=100)
        assert low <= found.p <= high
        assert found.low <= found.macro_f1 <= found.high
        assert found.chance == pytest.approx(1 / 3, abs=0.05)


def test_the_permutation_test_is_that_of_scikit_learn_on_the_same_folds() -> None:
    from sklearn.linear_model import RidgeClassifier
    from sklearn.model_selection import PredefinedSplit, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    features, truth = films(90, 4, signal=0.5, seed=11)
    groups = [str(i) for i in range(90)]
    found = probe(features, truth, groups, seed=0, permutations=39, replicates=10)
    numbers = fold_of(truth, groups, folds=5, seed=0)
    # 72 of 90 films train in each fold; four standardised features are all kept, only turned.
    assert (np.bincount(numbers)[1:] == 18).all()
    model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=PENALTY * 72, class_weight="balanced"))

    def score(labels: np.ndarray) -> float:
        return macro_f1(confusion(labels, cross_val_predict(model, features, labels, cv=PredefinedSplit(numbers)), 3))

    assert found.macro_f1 == pytest.approx(score(truth))
    # The same permutations, refitted by scikit-learn.
    null = np.array([score(labels) for labels in permuted_labels(truth, groups, np.random.default_rng(0), 39)])
    assert found.chance == pytest.approx(null.mean())
    assert found.chance_high == pytest.approx(null.max())
    # Phipson and Smyth (Stat. Appl. Genet. Mol. Biol. 2010): never 0, and exact.
    assert found.p == (1 + (null >= found.macro_f1 - 1e-12).sum()) / 40
    assert found.p < 0.1


def test_p_ends_early_where_it_is_large_and_is_then_the_share_that_reached_the_score() -> None:
    features, truth = films(90, 4, signal=0.0, seed=11)
    found = probe(features, truth, [str(i) for i in range(90)], seed=0, permutations=999, replicates=10)
    # Besag and Clifford 1991: h of the l permutations drawn, the last of which was the h-th.
    assert found.permutations < 999
    assert found.p == ENOUGH_REACHED / found.permutations


def test_p_is_uniform_under_the_null() -> None:
    reached = []
    for seed in range(40):
        features, truth = films(60, 5, signal=0.0, seed=100 + seed)
        found = probe(features, truth, [str(i) for i in range(60)], seed=seed, permutations=39, replicates=10)
        reached.append(found.p <= 0.1)
    # Binomial(40, 0.1): more than 10 has a probability of 0.0015.
    assert sum(reached) <= 10


def test_labels_are_permuted_between_groups_and_never_within_one() -> None:
    truth = np.array([0, 0, 1, 1, 2, 2])
    groups = ["a", "a", "b", "b", "c", "c"]
    for shuffled in permuted_labels(truth, groups, np.random.default_rng(0), 20):
        assert sorted(shuffled[::2]) == [0, 1, 2]
        assert (shuffled[::2] == shuffled[1::2]).all()


def test_a_group_is_never_on_both_sides() -> None:
    # Every film twice: a probe that saw the copy would name noise rightly.
    rng = np.random.default_rng(5)
    features, truth = np.repeat(rng.normal(size=(80, 60)), 2, axis=0), np.repeat(rng.integers(0, 2, 80), 2)
    kept = probe(features, truth, [str(i // 2) for i in range(160)], seed=0, permutations=39, replicates=10)
    leaked = probe(features, truth, [str(i) for i in range(160)], seed=0, permutations=39, replicates=10)
    assert kept.macro_f1 < 0.65 < leaked.macro_f1


def test_the_interval_is_that_of_films_repeated_as_drawn_and_of_scipys_bootstrap_over_groups() -> None:
    from scipy.stats import bootstrap
    from sklearn.metrics import f1_score

    rng = np.random.default_rng(8)
    truth = np.repeat(rng.integers(0, 3, 50), 3)
    said = np.where(rng.random(150) < 0.6, truth, rng.integers(0, 3, 150))
    groups = [f"p{i // 3:02d}" for i in range(150)]
    low, high = interval(truth, said, groups, classes=3, replicates=300, seed=4, level=0.9)

    def score(rows: np.ndarray) -> float:
        return float(f1_score(truth[rows], said[rows], average="macro"))

    weights = np.concatenate(list(bootstrap_weights(groups, replicates=300, seed=4))).astype(int)
    drawn = [score(np.repeat(np.arange(150), times)) for times in weights]
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, [0.05, 0.95])))
    rows = np.arange(150).reshape(50, 3)
    scipys = bootstrap(
        (np.arange(50),),
        lambda patients: score(rows[patients].ravel()),
        n_resamples=300,
        confidence_level=0.9,
        method="percentile",
        vectorized=False,
        rng=np.random.default_rng(1),
    ).confidence_interval
    # The ends of two draws of 300: each has a standard error of about a tenth of the width.
    assert (low, high) == pytest.approx(scipys, abs=0.4 * (high - low) / 2)


def test_the_interval_is_wider_where_films_come_in_groups() -> None:
    rng = np.random.default_rng(2)
    truth = np.repeat(rng.integers(0, 2, 40), 5)
    said = np.where(np.repeat(rng.random(40) < 0.7, 5), truth, 1 - truth)
    options = {"classes": 2, "replicates": 500, "seed": 0, "level": 0.95}
    single = interval(truth, said, [str(i) for i in range(200)], **options)  # type: ignore[arg-type]
    grouped = interval(truth, said, [str(i // 5) for i in range(200)], **options)  # type: ignore[arg-type]
    assert grouped[1] - grouped[0] > 1.5 * (single[1] - single[0])
