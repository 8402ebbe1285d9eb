"""Association against scipy, scikit-learn and closed forms; what is left when a source may not help."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from vgg16_xray.trust.confounding import (
    associate,
    balanced_source,
    cramers_v,
    leave_one_source_out,
    mutual_information,
    source_within_class,
)
from vgg16_xray.trust.intervals import bootstrap_weights


def names(n: int) -> list[str]:
    return [f"film{i}" for i in range(n)]


def test_uncorrected_part_of_v_is_scipys() -> None:
    from scipy.stats.contingency import association

    table = np.array([[20, 5, 3], [4, 30, 9]])
    v = association(table, method="cramer")
    n, r, c = table.sum(), 2, 3
    phi2 = v**2 * min(r - 1, c - 1)
    # Bergsma 2013, equations 3 and 4.
    phi2 = max(0, phi2 - (r - 1) * (c - 1) / (n - 1))
    r, c = r - (r - 1) ** 2 / (n - 1), c - (c - 1) ** 2 / (n - 1)  # type: ignore[assignment]
    assert cramers_v(table) == pytest.approx(np.sqrt(phi2 / min(r - 1, c - 1)))


def test_v_is_one_where_source_is_class_and_about_zero_where_they_are_independent() -> None:
    assert cramers_v(np.diag([50, 20, 30])) == pytest.approx(1, abs=1e-9)
    assert cramers_v(np.outer([30, 20], [10, 20, 10])) == 0
    rng = np.random.default_rng(0)
    tables = np.stack([np.histogram2d(rng.integers(0, 4, 80), rng.integers(0, 6, 80), (4, 6))[0] for _ in range(200)])
    # Without the correction the mean would be 0.25.
    assert np.mean(cramers_v(tables)) < 0.1


def test_empty_rows_and_columns_do_not_count() -> None:
    table = np.array([[20, 5, 0], [0, 0, 0], [4, 30, 0]])
    assert cramers_v(table) == pytest.approx(cramers_v(table[[0, 2]][:, :2]))


def test_mutual_information_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import normalized_mutual_info_score

    rng = np.random.default_rng(1)
    a = rng.integers(0, 3, 300)
    b = np.where(rng.random(300) < 0.6, a, rng.integers(0, 5, 300))
    table = np.histogram2d(a, b, (3, 5))[0]
    assert mutual_information(table) == pytest.approx(normalized_mutual_info_score(a, b))


def test_intervals_are_those_of_films_repeated_as_drawn_and_measured_by_scipy_and_scikit_learn() -> None:
    from scipy.stats.contingency import association
    from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

    rng = np.random.default_rng(2)
    truth = rng.integers(0, 3, 120)
    source = np.where(rng.random(120) < 0.5, truth, rng.integers(0, 4, 120))
    groups = [f"p{i // 3}" for i in range(120)]
    found = associate([f"c{k}" for k in truth], [f"s{k}" for k in source], groups, seed=5, replicates=100)
    v, shared = [], []
    for weights in np.concatenate(list(bootstrap_weights(groups, replicates=100, seed=5))):
        films = np.repeat(np.arange(120), weights.astype(int))
        table = np.histogram2d(source[films], truth[films], (4, 3))[0]
        assert table.sum(axis=0).all()
        assert table.sum(axis=1).all()
        # Bergsma 2013, equations 3 and 4.
        n = len(films)
        phi2 = max(0, association(table.astype(int), method="cramer") ** 2 * 2 - 6 / (n - 1))
        v.append(np.sqrt(phi2 / (min(4 - 9 / (n - 1), 3 - 4 / (n - 1)) - 1)))
        shared.append(normalized_mutual_info_score(source[films], truth[films]))
    for name, drawn in (("cramers_v", v), ("normalised_mutual_information", shared)):
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert (found[name]["low"], found[name]["high"]) == pytest.approx((low, high))
    assert found["adjusted_mutual_information"] == pytest.approx(adjusted_mutual_info_score(source, truth))


def test_films_without_source_are_counted_and_left_out() -> None:
    labels = ["x"] * 10 + ["y"] * 10 + ["y"] * 3
    sources = ["one"] * 10 + ["two"] * 10 + [""] * 3
    found = associate(labels, sources, names(23), seed=0, replicates=50)
    assert found["unknown"] == {"y": 3}
    assert found["table"] == [[10, 0], [0, 10]]
    assert found["from_source"] == 1.0
    assert found["alone"] == ["x", "y"]
    assert found["cramers_v"]["value"] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("sources", [[""] * 8, ["one"] * 8])
def test_nothing_is_said_where_no_two_sources_are_known(sources: list[str]) -> None:
    found = associate(["x", "y"] * 4, sources, names(8), seed=0)
    assert found["cramers_v"] is None


def confounded(n: int = 240) -> tuple[np.ndarray, list[str], list[str]]:
    """Two classes in two sources, unevenly; feature 0 shows the source, and nothing shows the class."""
    rng = np.random.default_rng(4)
    labels = ["sick" if i % 2 else "well" for i in range(n)]
    sources = ["A" if (label == "sick") == (rng.random() < 0.85) else "B" for label in labels]
    features = rng.normal(size=(n, 6))
    features[:, 0] += np.array([5.0 * (source == "A") for source in sources])
    return features, labels, sources


def test_what_only_the_source_gave_is_gone_when_sources_are_balanced() -> None:
    from sklearn.metrics import f1_score

    from vgg16_xray.trust.linear_probe import out_of_fold

    features, labels, sources = confounded()
    truth = np.array([int(label == "well") for label in labels])
    said = out_of_fold(features, truth, names(240), seed=0)
    found = balanced_source(said, labels, sources, names(240), seed=0)
    assert found is not None
    # Every class of a source weighs the same, and the source as much as it has films.
    of = Counter(zip(sources, labels, strict=True))
    films = Counter(sources)
    weights = [films[source] / of[source, label] for source, label in zip(sources, labels, strict=True)]
    expected = f1_score(truth, said, average="macro", sample_weight=weights)
    assert found["macro_f1"]["value"] == pytest.approx(expected)
    assert found["as_they_are"] == pytest.approx(f1_score(truth, said, average="macro"))
    assert found["as_they_are"] > 0.8
    assert found["macro_f1"]["value"] < 0.6
    assert balanced_source(said, labels, labels, names(240), seed=0) is None


def test_source_is_told_within_a_class_where_it_shows_and_not_where_it_does_not() -> None:
    features, labels, sources = confounded()
    sources = [source if i % 3 else "B" for i, source in enumerate(sources)]
    found = source_within_class(features, labels, sources, names(240), seed=0)
    assert set(found) == {"sick", "well"}
    features[:, 0] = np.random.default_rng(0).normal(size=240)
    assert all(f["p"] > 0.01 for f in source_within_class(features, labels, sources, names(240), seed=0).values())


def test_a_new_source_is_recognised_less_well_where_the_class_was_told_by_it() -> None:
    rng = np.random.default_rng(6)
    labels = ["sick"] * 100 + ["well"] * 100
    sources = ["A"] * 50 + ["B"] * 50 + ["C"] * 100
    features = rng.normal(size=(200, 3))
    features[:50, 0] += 6
    features[50:100, 1] += 6
    found = leave_one_source_out(features, labels, sources, names(200), seed=0)
    assert [(row["source"], row["label"]) for row in found["left_out"]] == [("A", "sick"), ("B", "sick")]
    assert found["untestable"] == ["well"]
    for row in found["left_out"]:
        assert row["interval"][0] <= row["sensitivity"] <= row["interval"][1] < row["interval_known"][0]
    assert found["macro_known"] > 0.9
    assert found["macro"] < 0.5


def test_a_patient_of_two_sources_does_not_teach_about_the_one_left_out() -> None:
    rng = np.random.default_rng(7)
    labels = ["sick"] * 80 + ["well"] * 80
    sources = ["A", "B"] * 80
    groups = [f"p{i // 2}" for i in range(160)]
    found = leave_one_source_out(rng.normal(size=(160, 3)), labels, sources, groups, seed=0)
    assert found["left_out"] == []
