import hashlib
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vgg16_xray.errors import Leak, UserError
from vgg16_xray.films.split import (
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    check_every_class_on_every_side,
    check_no_leak,
    conflicts,
    fold_films,
    group_films,
    how_few,
    sides_of_fold,
    split_films,
)


def dealt(labels, pixels, patients=None, *, seed=1234, **shares) -> list[str]:
    groups = group_films(pixels, patients or [None] * len(pixels))
    return split_films(labels=labels, groups=groups, pixels=pixels, seed=seed, **shares)


def different(count: int) -> list[str]:
    return [hashlib.sha256(str(n).encode()).hexdigest() for n in range(count)]


LABELS = ["A"] * 1000 + ["B"] * 203 + ["C"] * 47
PIXELS = different(len(LABELS))
PATIENTS = [None if n % 7 == 0 else f"p{n // 3}" for n in range(len(LABELS))]


# ------------------------------------------------------------------------------------------------------------- groups


def test_a_patient_and_exact_copies_and_what_they_connect_are_one_group():
    #            0    1    2    3    4    5     6
    pixels = ["a", "b", "b", "c", "d", "e", "e"]
    patients = ["P", "P", "Q", "Q", "R", None, ""]
    groups = group_films(pixels, patients)
    assert groups == ["a", "a", "a", "a", "d", "e", "e"]


def test_unknown_patients_are_not_one_patient():
    assert group_films(["a", "b", "c"], [None, None, ""]) == ["a", "b", "c"]


def test_a_patient_called_as_a_film_is_not_that_film():
    assert group_films(["a", "b"], [None, "a"]) == ["a", "b"]


def test_a_long_chain_is_one_group():
    count = 5000
    pixels = [f"{n // 2:08d}" for n in range(count)]
    patients = [f"p{(n + 1) // 2}" for n in range(count)]
    assert set(group_films(pixels, patients)) == {"00000000"}


def test_groups_do_not_depend_on_the_order_of_the_rows():
    groups = dict(zip(PIXELS, group_films(PIXELS, PATIENTS), strict=True))
    turned = dict(zip(PIXELS[::-1], group_films(PIXELS[::-1], PATIENTS[::-1]), strict=True))
    assert turned == groups


# -------------------------------------------------------------------------------------------------------------- split


def test_every_class_is_dealt_80_10_10():
    splits = dealt(LABELS, PIXELS)
    counts = Counter(zip(LABELS, splits, strict=True))
    for label, count in Counter(LABELS).items():
        assert counts[label, TEST] == counts[label, VALIDATION] == round(count / 10)


def test_shares_hold_with_patients_of_several_films():
    counts = Counter(zip(LABELS, dealt(LABELS, PIXELS, PATIENTS), strict=True))
    for label, count in Counter(LABELS).items():
        for side in (TEST, VALIDATION):
            assert 0 <= round(count / 10) - counts[label, side] <= 2


def test_other_shares():
    counts = Counter(dealt(["A"] * 100, different(100), validation=0.25, test=0.0))
    assert counts == {TRAIN: 75, VALIDATION: 25}


def test_the_same_seed_gives_the_same_split_and_another_another():
    splits = dealt(LABELS, PIXELS, PATIENTS, seed=1)
    assert dealt(LABELS, PIXELS, PATIENTS, seed=1) == splits
    assert dealt(LABELS, PIXELS, PATIENTS, seed=2) != splits


def test_the_split_does_not_depend_on_the_order_of_the_rows():
    splits = dict(zip(PIXELS, dealt(LABELS, PIXELS, PATIENTS), strict=True))
    turned = dict(zip(PIXELS[::-1], dealt(LABELS[::-1], PIXELS[::-1], PATIENTS[::-1]), strict=True))
    assert turned == splits


def test_the_split_does_not_depend_on_what_patients_and_classes_are_called():
    names = {None: None, **{patient: f"x{n}" for n, patient in enumerate(sorted(filter(None, set(PATIENTS))))}}
    assert dealt(LABELS, PIXELS, [names[patient] for patient in PATIENTS]) == dealt(LABELS, PIXELS, PATIENTS)


def test_more_films_leave_most_of_the_others_where_they_were():
    before = dealt(["A"] * 500, PIXELS[:500])
    after = dealt(["A"] * 510, PIXELS[:510])
    assert sum(a != b for a, b in zip(before, after, strict=False)) < 25


def test_contradicted_films_go_to_training_with_their_whole_group():
    pixels = different(100)
    pixels[60] = pixels[0]
    patients = [None] * 100
    patients[60], patients[61], patients[62] = "P", "P", "P"
    labels = ["A"] * 50 + ["B"] * 50
    assert conflicts(labels=labels, pixels=pixels) == [0, 60]
    for seed in range(20):
        splits = dealt(labels, pixels, patients, seed=seed)
        assert {splits[i] for i in (0, 60, 61, 62)} == {TRAIN}


def test_copies_in_one_class_contradict_nothing():
    assert conflicts(labels=["A", "A"], pixels=["x", "x"]) == []


@pytest.mark.parametrize("count", [3, 4, 9])
def test_a_rare_class_stands_on_every_side(count):
    labels = ["A"] * 200 + ["B"] * count
    splits = dealt(labels, different(len(labels)))
    counts = Counter(side for label, side in zip(labels, splits, strict=True) if label == "B")
    assert counts == {TEST: 1, VALIDATION: 1, TRAIN: count - 2}


def test_a_class_of_patients_with_many_films_stands_on_every_side():
    # Every patient has more films than a tenth of the class.
    labels = ["A"] * 200 + ["B"] * 30
    patients = [None] * 200 + [f"p{n // 5}" for n in range(30)]
    for seed in range(10):
        splits = dealt(labels, different(230), patients, seed=seed)
        check_every_class_on_every_side(labels=labels, splits=splits)
        assert Counter(splits[200:]) == {TRAIN: 20, TEST: 5, VALIDATION: 5}


def test_a_class_of_one_patient_with_nearly_all_films_stands_on_every_side():
    labels = ["A"] * 200 + ["B"] * 100
    patients = [None] * 200 + ["p"] * 95 + [None] * 5
    splits = dealt(labels, different(300), patients)
    assert Counter(splits[200:]) == {TRAIN: 95, TEST: 4, VALIDATION: 1}


def test_what_is_brought_to_a_side_never_empties_training():
    labels = ["A"] * 50 + ["B"] * 6 + ["C"] * 2
    patients = [None] * 50 + ["p"] * 3 + ["q"] * 3 + ["q", "r"]
    splits = dealt(labels, different(58), patients)
    for label in "ABC":
        assert TRAIN in {side for name, side in zip(labels, splits, strict=True) if name == label}


def test_a_class_that_cannot_stand_on_every_side_is_named():
    labels = ["A"] * 50 + ["B"] * 2
    splits = dealt(labels, different(52))
    with pytest.raises(UserError, match="class 'B': must have films for training, validation and test, found none for"):
        check_every_class_on_every_side(labels=labels, splits=splits)
    with pytest.raises(UserError, match="among its 2; do this"):
        check_every_class_on_every_side(labels=labels, splits=splits, hint="do this")


def test_a_class_whose_films_are_copies_is_said_to_be_so():
    labels, pixels = ["A"] * 20 + ["B"] * 20 + ["C"], ["one"] * 39 + ["two", "three"]
    assert how_few("A", labels=labels, groups=pixels, pixels=pixels) == (
        " (1 group: the films of a patient, or a film and its copies; 20 show what a film of B shows)"
    )
    assert how_few("C", labels=labels, groups=pixels, pixels=pixels) == ""
    with pytest.raises(UserError, match=r"none for validation among its 20 \(1 group: .* of B shows\); bring more"):
        check_every_class_on_every_side(labels=labels, splits=[TRAIN] * 41, groups=pixels, pixels=pixels)


def test_a_leak_names_both_films():
    groups, splits = ["g", "h", "g", "h"], [TRAIN, TRAIN, TEST, TRAIN]
    with pytest.raises(Leak) as caught:
        check_no_leak(groups=groups, splits=splits, names=["one", "two", "three", "four"])
    assert "found 1 group(s) on two, first one (train) and three (test)" in str(caught.value)
    assert "--resplit" in str(caught.value)
    check_no_leak(groups=groups, splits=[TRAIN] * 4, names=["1", "2", "3", "4"])


@given(
    rows=st.lists(
        st.tuples(st.sampled_from("ABC"), st.integers(0, 40), st.one_of(st.none(), st.integers(0, 20))),
        min_size=1,
        max_size=120,
    ),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=200, deadline=None)
def test_no_group_ever_stands_on_two_sides(rows, seed):
    labels = [label for label, _, _ in rows]
    pixels = [f"{film:064x}"[::-1] for _, film, _ in rows]
    patients = [None if patient is None else f"p{patient}" for _, _, patient in rows]
    splits = dealt(labels, pixels, patients, seed=seed)
    assert set(splits) <= set(SPLITS)
    for keys in (pixels, [patient or f"film {n}" for n, patient in enumerate(patients)]):
        assert len(set(zip(keys, splits, strict=True))) == len(set(keys))
    assert all(splits[i] == TRAIN for i in conflicts(labels=labels, pixels=pixels))
    groups = group_films(pixels, patients)
    check_no_leak(groups=groups, splits=splits, names=pixels)
    # Row order changes nothing.
    turned = dealt(labels[::-1], pixels[::-1], patients[::-1], seed=seed)
    assert turned[::-1] == splits


# -------------------------------------------------------------------------------------------------------------- folds


def folded(labels, pixels, patients=None, *, folds=5, seed=1234) -> list[int]:
    groups = group_films(pixels, patients or [None] * len(pixels))
    return fold_films(labels=labels, groups=groups, folds=folds, seed=seed)


def test_each_class_is_spread_evenly_over_the_folds():
    counts = Counter(zip(LABELS, folded(LABELS, PIXELS), strict=True))
    for label, count in Counter(LABELS).items():
        of_label = [counts[label, fold] for fold in range(1, 6)]
        assert sum(of_label) == count
        assert max(of_label) - min(of_label) <= 1


def test_classes_are_even_with_patients_of_several_films_and_several_classes():
    counts = Counter(zip(LABELS, folded(LABELS, PIXELS, PATIENTS), strict=True))
    for label in "ABC":
        of_label = [counts[label, fold] for fold in range(1, 6)]
        assert max(of_label) - min(of_label) <= 3


def test_a_patient_with_nearly_all_films_of_a_class_leaves_some_for_every_fold():
    labels = ["A"] * 200 + ["B"] * 100
    patients = [None] * 200 + ["p"] * 92 + [None] * 8
    counts = Counter(folded(labels, different(300), patients)[200:])
    assert sorted(counts.values()) == [2, 2, 2, 2, 92]


def test_the_remainders_of_the_classes_do_not_all_go_to_one_fold():
    labels = [label for label in "ABCD" for _ in range(11)]
    assert set(Counter(folded(labels, different(44))).values()) == {8, 9}


def test_the_same_seed_gives_the_same_folds_and_another_others():
    assert folded(LABELS, PIXELS, PATIENTS, seed=1) == folded(LABELS, PIXELS, PATIENTS, seed=1)
    assert folded(LABELS, PIXELS, PATIENTS, seed=1) != folded(LABELS, PIXELS, PATIENTS, seed=2)


def test_the_folds_do_not_depend_on_what_patients_are_called():
    names = {None: None, **{patient: f"x{n}" for n, patient in enumerate(sorted(filter(None, set(PATIENTS))))}}
    assert folded(LABELS, PIXELS, [names[patient] for patient in PATIENTS]) == folded(LABELS, PIXELS, PATIENTS)


def test_a_fold_that_a_class_was_not_dealt_to_gets_a_group_that_another_can_spare():
    # The groups of A alone are small: dealing by A puts all three that have B's films too on two folds.
    labels = list("AABBBBAAAB")
    patients = ["r", "p", "r", "q", "r", "s", "t", "q", "s", "s"]
    for seed in range(50):
        fold_of = folded(labels, different(10), patients, folds=3, seed=seed)
        for label in "AB":
            assert {fold for name, fold in zip(labels, fold_of, strict=True) if name == label} == {1, 2, 3}


def test_too_few_folds_or_groups_are_one_clear_line():
    with pytest.raises(UserError, match=r"--folds: must be 3 or more .*found 2"):
        folded(LABELS, PIXELS, folds=2)
    labels, patients = ["A"] * 50 + ["B"] * 6, [None] * 50 + ["p", "p", "q", "q", "r", "r"]
    with pytest.raises(UserError, match=r"class 'B': must have 5 groups .* or more for --folds 5, found 3; take fewer"):
        folded(labels, different(56), patients)
    # Just enough.
    labels, patients = list("ABABAB"), ["p", "p", "q", "q", "r", "r"]
    assert sorted(folded(labels, different(6), patients, folds=3)) == [1, 1, 2, 2, 3, 3]


def test_every_fold_is_tested_once_and_chooses_once():
    fold_of = folded(LABELS, PIXELS, PATIENTS)
    sides = {number: sides_of_fold(fold_of, number=number, folds=5) for number in range(1, 6)}
    for i, fold in enumerate(fold_of):
        assert [number for number in sides if sides[number][i] == TEST] == [fold]
        assert [number for number in sides if sides[number][i] == VALIDATION] == [(fold - 2) % 5 + 1]
    for split in sides.values():
        check_every_class_on_every_side(labels=LABELS, splits=split)


@given(
    rows=st.lists(
        st.tuples(st.sampled_from("ABC"), st.integers(0, 300), st.one_of(st.none(), st.none(), st.integers(0, 30))),
        min_size=3,
        max_size=120,
    ),
    folds=st.integers(3, 6),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=200, deadline=None)
def test_every_film_is_tested_once_by_a_model_that_saw_nothing_of_its_group(rows, folds, seed):
    labels = [label for label, _, _ in rows]
    pixels = [f"{film:064x}"[::-1] for _, film, _ in rows]
    patients = [None if patient is None else f"p{patient}" for _, _, patient in rows]
    groups = group_films(pixels, patients)
    fewest = min(len({g for g, name in zip(groups, labels, strict=True) if name == label}) for label in set(labels))
    try:
        fold_of = folded(labels, pixels, patients, folds=folds, seed=seed)
    except UserError as error:
        assert fewest < folds or "its patients have films of other classes too" in str(error)
        return
    assert fewest >= folds
    tested = Counter()
    for number in range(1, folds + 1):
        split = sides_of_fold(fold_of, number=number, folds=folds)
        check_no_leak(groups=groups, splits=split, names=pixels)
        check_every_class_on_every_side(labels=labels, splits=split)
        tested.update(i for i, side in enumerate(split) if side == TEST)
        by_key = {}
        for keys in (pixels, [patient or f"film {n}" for n, patient in enumerate(patients)]):
            for key, side in zip(keys, split, strict=True):
                assert by_key.setdefault(key, side) == side
    assert tested == dict.fromkeys(range(len(rows)), 1)
    # Row order changes nothing.
    assert folded(labels[::-1], pixels[::-1], patients[::-1], folds=folds, seed=seed)[::-1] == fold_of
