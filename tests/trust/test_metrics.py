import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from vgg16_xray.trust.intervals import bootstrap_weights
from vgg16_xray.trust.metrics import OVERALL, PER_CLASS, evaluate

LABELS = ["COVID", "Lung_Opacity", "Normal", "Viral Pneumonia"]


def drawn_films(count, classes=4, seed=0, decimals=None):
    """Films whose probabilities say something about their class; rounding them makes ties."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(classes, size=count)
    probabilities = generator.dirichlet(np.ones(classes), count) + 0.5 * np.eye(classes)[truth]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    if decimals is not None:
        steps = 10**decimals
        probabilities = np.floor(probabilities * steps)
        probabilities[:, -1] += steps - probabilities.sum(axis=1)
        probabilities /= steps
    return truth, probabilities


def measured(truth, probabilities, groups=None, **options):
    labels = options.pop("labels", LABELS[: probabilities.shape[1]])
    groups = [f"film {i:06}" for i in range(len(truth))] if groups is None else groups
    return evaluate(truth=truth, probabilities=probabilities, labels=labels, groups=groups, **options)


def by_scikit_learn(truth, probabilities):
    """The same figures, for films of every class: overall and per class, in the order of OVERALL and PER_CLASS."""
    classes = range(probabilities.shape[1])
    prediction = probabilities.argmax(axis=1)
    cells = sk.multilabel_confusion_matrix(truth, prediction, labels=list(classes))
    with np.errstate(invalid="ignore"):
        rows = [
            [
                cells[k, 1, 1] / cells[k, :, 1].sum(),
                sk.recall_score(truth == k, prediction == k),
                cells[k, 0, 0] / cells[k, 0].sum(),
                sk.f1_score(truth == k, prediction == k, zero_division=0),
                sk.roc_auc_score(truth == k, probabilities[:, k]),
                sk.average_precision_score(truth == k, probabilities[:, k]),
            ]
            for k in classes
        ]
    per_class = np.array(rows)
    overall = [
        sk.accuracy_score(truth, prediction),
        sk.balanced_accuracy_score(truth, prediction),
        sk.f1_score(truth, prediction, average="macro", zero_division=0),
        per_class[:, 4].mean(),
        per_class[:, 5].mean(),
        sk.log_loss(truth, probabilities, labels=list(classes)),
    ]
    return np.array(overall), per_class


def values(result, what="value"):
    """(6,) overall and (K, 6) per class; NaN for None."""
    overall = [result["overall"][name][what] for name in OVERALL]
    per_class = [[result["per_class"][label][name][what] for name in PER_CLASS] for label in result["labels"]]
    return np.array(overall, dtype=float), np.array(per_class, dtype=float)


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("decimals", [None, 2, 1])
def test_values_are_those_of_scikit_learn_also_with_tied_scores(classes, decimals):
    truth, probabilities = drawn_films(300, classes, seed=classes, decimals=decimals)
    overall, per_class = values(measured(truth, probabilities, replicates=1))
    expected_overall, expected_per_class = by_scikit_learn(truth, probabilities)
    np.testing.assert_allclose(overall, expected_overall, rtol=1e-12)
    np.testing.assert_allclose(per_class, expected_per_class, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    classes=st.integers(2, 5),
    extra=st.lists(st.integers(0, 4), max_size=12),
    seed=st.integers(0, 2**16),
    decimals=st.sampled_from([0, 1, 3]),
)
def test_values_are_those_of_scikit_learn_for_few_films(classes, extra, seed, decimals):
    _, probabilities = drawn_films(classes + len(extra), classes, seed=seed, decimals=decimals)
    truth = np.array([*range(classes), *(k % classes for k in extra)])
    labels = [f"class {k}" for k in range(classes)]
    overall, per_class = values(measured(truth, probabilities, labels=labels, replicates=1))
    expected_overall, expected_per_class = by_scikit_learn(truth, probabilities)
    np.testing.assert_allclose(overall, expected_overall, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(per_class, expected_per_class, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("decimals", [None, 1])
def test_intervals_are_those_of_films_repeated_as_drawn(decimals):
    truth, probabilities = drawn_films(120, 3, seed=5, decimals=decimals)
    groups = [f"patient {i // 3:03}" for i in range(120)]
    result = measured(truth, probabilities, groups, replicates=25, seed=9)
    weights = np.concatenate(list(bootstrap_weights(groups, replicates=25, seed=9))).astype(int)
    repeated = [by_scikit_learn(np.repeat(truth, times), np.repeat(probabilities, times, axis=0)) for times in weights]
    for what, quantile in (("low", 0.025), ("high", 0.975)):
        overall, per_class = values(result, what)
        np.testing.assert_allclose(overall, np.quantile([r[0] for r in repeated], quantile, axis=0), rtol=1e-11)
        np.testing.assert_allclose(per_class, np.quantile([r[1] for r in repeated], quantile, axis=0), rtol=1e-11)


def test_sensitivity_and_specificity_count_all_cells_of_the_matrix():
    # Truth in rows: 5, 3 and 4 films. The corners of the matrix alone give neither figure.
    confusion = np.array([[3, 1, 1], [0, 2, 1], [2, 0, 2]])
    truth, prediction = np.repeat([(i, j) for i in range(3) for j in range(3)], confusion.ravel(), axis=0).T
    result = measured(truth, np.eye(3)[prediction], replicates=1)
    assert result["confusion"] == confusion.tolist()
    covid = {name: figure["value"] for name, figure in result["per_class"]["COVID"].items() if name != "support"}
    assert result["per_class"]["COVID"]["support"] == 5
    assert covid["sensitivity"] == 3 / 5
    assert covid["specificity"] == 5 / 7
    assert covid["precision"] == 3 / 5
    assert result["overall"]["accuracy"]["value"] == 7 / 12


def test_films_in_another_order_give_the_same_result_to_the_last_bit():
    truth, probabilities = drawn_films(500, seed=3, decimals=2)
    groups = [f"patient {i % 170}" for i in range(500)]
    places = np.random.default_rng(4).permutation(500)
    first = measured(truth, probabilities, groups, replicates=100)
    shuffled = measured(truth[places], probabilities[places], [groups[i] for i in places], replicates=100)
    assert json.dumps(first) == json.dumps(shuffled)


def test_same_seed_gives_the_same_intervals_and_another_seed_does_not():
    truth, probabilities = drawn_films(200)
    first = measured(truth, probabilities, replicates=100, seed=1)
    assert first == measured(truth, probabilities, replicates=100, seed=1)
    assert first["overall"] != measured(truth, probabilities, replicates=100, seed=2)["overall"]


def test_interval_of_a_proportion_is_the_normal_one_when_films_are_many():
    truth, probabilities = drawn_films(4000, 2)
    accuracy = measured(truth, probabilities, replicates=4000)["overall"]["accuracy"]
    half = 1.959964 * np.sqrt(accuracy["value"] * (1 - accuracy["value"]) / 4000)
    assert accuracy["low"] == pytest.approx(accuracy["value"] - half, abs=0.06 * half)
    assert accuracy["high"] == pytest.approx(accuracy["value"] + half, abs=0.06 * half)


def test_copies_of_films_bring_no_certainty_when_they_are_of_one_group():
    truth, probabilities = drawn_films(200, 3)
    groups = [f"patient {i}" for i in range(200)]
    one_each = measured(truth, probabilities, groups, replicates=400)
    four_each = measured(np.repeat(truth, 4), np.repeat(probabilities, 4, axis=0), np.repeat(groups, 4), replicates=400)
    as_if_independent = measured(np.repeat(truth, 4), np.repeat(probabilities, 4, axis=0), replicates=400)
    for name in ("accuracy", "macro_f1", "macro_auroc", "log_loss"):
        width, copied, naive = (
            result["overall"][name]["high"] - result["overall"][name]["low"]
            for result in (one_each, four_each, as_if_independent)
        )
        assert copied == pytest.approx(width, rel=1e-9)
        assert naive == pytest.approx(width / 2, rel=0.2)


def test_interval_covers_the_truth_as_often_as_it_says_when_films_of_a_patient_agree():
    generator = np.random.default_rng(11)
    patients, films, trials = 80, 4, 200
    groups = [f"patient {i // films:02}" for i in range(patients * films)]
    covered = 0
    for trial in range(trials):
        # A patient's films are right with a probability of the patient's own, 0.75 on average.
        right = generator.random(patients * films) < np.repeat(generator.beta(1.5, 0.5, patients), films)
        truth = generator.integers(2, size=len(right))
        prediction = np.where(right, truth, 1 - truth)
        accuracy = measured(truth, np.eye(2)[prediction], groups, replicates=200, seed=trial)["overall"]["accuracy"]
        covered += accuracy["low"] <= 0.75 <= accuracy["high"]
    # Binomial (200, 0.95) has a standard deviation of 1.5 %; drawing films instead of patients covers 77 %.
    assert 0.90 <= covered / trials <= 0.99


def test_class_without_films_has_no_sensitivity_and_no_part_in_the_means():
    truth, probabilities = drawn_films(200, 3)
    with_fourth = np.c_[probabilities * 0.9, np.full(200, 0.1)]
    with_fourth[0] = [0.1, 0.1, 0.1, 0.7]
    result = measured(truth, with_fourth, replicates=50)
    absent = result["per_class"]["Viral Pneumonia"]
    nothing = {"value": None, "low": None, "high": None}
    assert absent["support"] == 0
    for name in ("sensitivity", "f1", "auroc", "average_precision"):
        assert absent[name] == nothing
    assert absent["precision"]["value"] == 0
    assert absent["specificity"]["value"] == 199 / 200
    present = np.array([[result["per_class"][label][name]["value"] for name in PER_CLASS] for label in LABELS[:3]])
    for name, column in (("balanced_accuracy", 1), ("macro_f1", 3), ("macro_auroc", 4), ("macro_average_precision", 5)):
        assert result["overall"][name]["value"] == pytest.approx(present[:, column].mean(), rel=1e-12)
        assert None not in result["overall"][name].values()


def test_class_never_predicted_has_no_precision_but_an_f1_of_0():
    truth = np.array([0, 1, 2, 0, 1, 2])
    probabilities = np.tile([0.6, 0.3, 0.1], (6, 1))
    normal = measured(truth, probabilities, replicates=20)["per_class"]["Normal"]
    assert normal["precision"] == {"value": None, "low": None, "high": None}
    assert normal["sensitivity"]["value"] == 0
    assert normal["f1"]["value"] == 0
    assert normal["auroc"]["value"] == 0.5


def test_films_of_a_single_class_have_no_auroc_and_no_specificity():
    result = measured(np.zeros(10, dtype=int), np.tile([0.6, 0.4], (10, 1)), replicates=20)
    covid = result["per_class"]["COVID"]
    assert covid["auroc"]["value"] is None
    assert covid["specificity"]["value"] is None
    assert covid["sensitivity"]["value"] == 1
    assert result["overall"]["macro_auroc"] == {"value": None, "low": None, "high": None}


def test_replicates_that_miss_a_rare_class_are_left_out_and_counted():
    truth, probabilities = drawn_films(60, 2)
    truth[:] = 0
    truth[7] = 1
    result = measured(truth, probabilities, replicates=1000)
    left_out = result["intervals"]["left_out"]
    # The one film is missed with probability (1 - 1/60)**60 = 0.365.
    missed = left_out["per_class"]["Lung_Opacity"]["sensitivity"]
    assert 310 < missed < 420
    assert left_out["per_class"]["Lung_Opacity"]["auroc"] == missed
    assert left_out["overall"]["balanced_accuracy"] == missed
    assert "accuracy" not in left_out["overall"]
    assert result["per_class"]["Lung_Opacity"]["sensitivity"]["low"] is not None


def test_nothing_is_left_out_when_every_replicate_has_every_class():
    result = measured(*drawn_films(200, 3), replicates=50)
    assert result["intervals"] == {
        "method": "percentile bootstrap over groups",
        "replicates": 50,
        "level": 0.95,
        "seed": 1234,
        "left_out": {"overall": {}, "per_class": {}},
        "exact": {"overall": {}, "per_class": {}},
        "none": {"overall": {}, "per_class": {}},
    }


def test_single_group_shows_no_spread_and_has_no_interval():
    result = measured(*drawn_films(50, 3), groups=["hospital"] * 50, replicates=20)
    assert result["groups"] == 1
    for figure in result["overall"].values():
        assert figure["value"] is not None
        assert figure["low"] is figure["high"] is None
    assert result["intervals"]["none"]["overall"] == dict.fromkeys(OVERALL, "no spread over the replicates")


def test_a_share_without_spread_has_the_exact_interval_with_a_group_as_a_trial():
    truth = np.array([0, 1] * 20)
    said = np.where(truth[:, None] == [0, 1], 0.9, 0.1)
    result = measured(truth, said, labels=LABELS[:2], groups=[f"{i // 4}" for i in range(40)], replicates=20)
    # All of n: the lower bound is (alpha / 2) ** (1 / n), by the definition of Clopper and Pearson.
    for figure in (result["overall"]["accuracy"], result["per_class"][LABELS[0]]["sensitivity"]):
        assert (figure["low"], figure["high"]) == (pytest.approx(0.025 ** (1 / 10)), 1)
    intervals = result["intervals"]
    assert "Clopper and Pearson, 10 groups" in intervals["exact"]["overall"]["accuracy"]
    assert intervals["none"]["overall"]["macro_f1"] == "no spread over the replicates"
    assert result["overall"]["macro_f1"] == {"value": 1, "low": None, "high": None}


def test_result_is_json_of_the_promised_shape():
    truth, probabilities = drawn_films(100)
    result = measured(
        truth.astype(np.uint8), probabilities.astype(np.float32), np.array(["a", "b"] * 50), replicates=20
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result) == ["images", "groups", "labels", "overall", "per_class", "confusion", "intervals"]
    assert (result["images"], result["groups"], result["labels"]) == (100, 2, LABELS)
    assert tuple(result["overall"]) == OVERALL
    assert all(tuple(result["per_class"][label]) == ("support", *PER_CLASS) for label in LABELS)
    assert [sum(row) for row in result["confusion"]] == np.bincount(truth).tolist()
    assert all(type(count) is int for row in result["confusion"] for count in row)


def test_certain_error_has_a_finite_loss_and_certain_truth_a_loss_of_0():
    wrong = measured(np.array([0]), np.array([[0.0, 1.0]]), replicates=2)
    assert wrong["overall"]["log_loss"]["value"] == pytest.approx(36.04, abs=0.01)
    right = measured(np.array([1]), np.array([[0.0, 1.0]]), replicates=2)
    assert str(right["overall"]["log_loss"]["value"]) == "0.0"


def test_first_label_wins_a_tie():
    result = measured(np.array([1, 1]), np.array([[0.5, 0.5], [0.2, 0.8]]), replicates=2)
    assert result["confusion"] == [[0, 0], [1, 1]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"truth": np.array([0, 2, 1])}, "truth: must be from 0 to 1, found 0 to 2"),
        ({"truth": np.array([0, -1, 1])}, "truth: must be from 0 to 1, found -1 to 1"),
        ({"truth": np.array([0.0, 1.0, 1.0])}, "truth: must be whole numbers, found float64"),
        ({"truth": np.array([], dtype=int)}, r"truth: must have the shape \(N,\) with N at least 1, found \(0,\)"),
        ({"truth": np.eye(2, dtype=int)}, r"truth: must have the shape \(N,\) with N at least 1, found \(2, 2\)"),
        ({"probabilities": np.full((2, 2), 0.5)}, r"probabilities: must have the shape .* \(3, 2\), found \(2, 2\)"),
        ({"probabilities": np.array([[1, 0]] * 3)}, "probabilities: must be floating-point numbers, found int64"),
        ({"probabilities": np.full((3, 2), 0.4)}, "each row must add up to 1 within 1e-06, found 0.8"),
        ({"probabilities": np.array([[1.5, -0.5]] * 3)}, "probabilities: must be 0 or more, found -0.5"),
        ({"probabilities": np.array([[np.nan, 1.0]] * 3)}, "probabilities: must be finite, found 3 that are not"),
        ({"labels": ["a", "a"]}, "labels: must be two or more different names"),
        ({"labels": ["a"]}, "labels: must be two or more different names"),
        ({"groups": ["x", "y"]}, "groups: must name one group for each of 3 films, found 2"),
        ({"groups": ["x", "y", None]}, "groups: must be strings, found None"),
        ({"replicates": 0}, "replicates: must be at least 1, found 0"),
        ({"level": 95}, "level: must be above 0 and below 1, found 95"),
    ],
)
def test_unusable_arguments_are_refused_by_name(changed, message):
    arguments = {
        "truth": np.array([0, 1, 1]),
        "probabilities": np.full((3, 2), 0.5),
        "labels": ["a", "b"],
        "groups": ["x", "y", "z"],
        "replicates": 2,
    }
    with pytest.raises(ValueError, match=message):
        evaluate(**(arguments | changed))


def test_module_loads_neither_torch_nor_scikit_learn():
    code = "import sys, vgg16_xray.trust.metrics; print({'torch', 'sklearn', 'scipy', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
