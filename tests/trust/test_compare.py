import json
from math import comb

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score
from sklearn.metrics import log_loss as sk_log_loss

from vgg16_xray.errors import UserError
from vgg16_xray.files import write_json, write_text
from vgg16_xray.rundir import FoldsDir, RunDir, key_of
from vgg16_xray.trust.compare import BETTER, NOT_SHOWN, WORSE, compare, fewest_differing, holm, mcnemar
from vgg16_xray.trust.intervals import bootstrap_weights

LABELS = ("COVID", "Lung_Opacity", "Normal")
FILMS = 240


def film(i):
    """Hash of the pixels of film `i`: its first 16 digits, which name its group, differ from film to film."""
    return f"{i:016x}{'0' * 48}"


def make_run(path, *, said, films=None, truth=None, split="test", groups=None, names=None, labels=LABELS, tested=True):
    """A run whose step 6 is done.

    Args:
        said: (N, K) probabilities in the order of LABELS.
        films: (N,) numbers of the films, see `film`.
        truth: (N,) index into LABELS; by default film i is of class i % K.
        split: Side of all films, or (N,) of each.
        groups: (N,) group of each; by default its own.
        names: (N,) file names.
        labels: The classes, in the order that this run has.
    """
    run, n = RunDir(path), len(said)
    films = list(range(n)) if films is None else list(films)
    truth = np.array(films) % len(LABELS) if truth is None else truth
    manifest = pd.DataFrame(
        {
            "path": [f"film-{i}.png" for i in films] if names is None else names,
            "collection": "c",
            "label": [LABELS[k] for k in truth],
            "pixels_sha256": [film(i) for i in films],
            "patient_id": "",
            "source": "",
            "group": [film(i)[:16] for i in films] if groups is None else groups,
            "split": split,
        }
    )
    path.mkdir(parents=True)
    manifest.to_parquet(run.manifest)
    write_text(run.config, '[run]\nseed = 7\n\n[recipe]\nname = "fast"\ntrain_from = "head"\n')
    write_json(run.steps, {"test": {"key": "0", "finished": "", "seconds": 0.0}} if tested else {})
    write_json(run.test, {"labels": list(labels)})
    said = np.asarray(said)
    table = manifest[["path", "collection", "label", "split", "patient_id", "source"]].assign(
        prediction=[LABELS[k] for k in said.argmax(axis=1)], confidence=said.max(axis=1).round(6)
    )
    for label in labels:
        table[f"p_{label}"] = said[:, LABELS.index(label)].round(6)
    write_text(run.predictions, table.to_csv(index=False, lineterminator="\n"))
    return run


def answers(n=FILMS, *, right=0.8, seed=0, films=None):
    """(n, K) probabilities that name the film's class with a share of `right`."""
    generator = np.random.default_rng(seed)
    truth = (np.arange(n) if films is None else np.asarray(films)) % len(LABELS)
    named = np.where(generator.random(n) < right, truth, (truth + generator.integers(1, len(LABELS), n)) % len(LABELS))
    said = generator.dirichlet(np.ones(len(LABELS)), n) * 0.4
    said[np.arange(n), named] += 0.6
    return said


def with_errors(said, wrong):
    """The same answers, those of the films `wrong` exchanged for another class."""
    said = np.array(said)
    said[wrong] = np.roll(said[wrong], 1, axis=1)
    return said


def perfect(n=FILMS):
    return 0.97 * np.eye(len(LABELS))[np.arange(n) % len(LABELS)] + 0.01


def entries(found):
    for comparison in found["comparisons"]:
        yield from comparison["overall"].values()
        for figures in comparison["per_class"].values():
            yield from figures.values()


def accuracy(found, i=0):
    return found["comparisons"][i]["overall"]["accuracy"]


def numbers(found):
    """What was found, without the names of runs and files."""
    found = json.loads(json.dumps(found))
    for run in found["runs"]:
        del run["path"]
    for entry in found["films"]["left_out"]:
        del entry["first"]
    return found


# -- the exact test and its correction


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 5), (0, 6), (3, 14), (40, 22)])
def test_mcnemar_is_the_closed_form(b, c):
    tail = sum(comb(b + c, i) for i in range(min(b, c) + 1)) / 2 ** (b + c)
    assert mcnemar(b, c) == pytest.approx(min(1, 2 * tail), rel=1e-9)
    assert mcnemar(c, b) == pytest.approx(mcnemar(b, c), rel=1e-9)


def test_holm_is_the_worked_example_in_any_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]


def test_the_fewest_films_are_those_by_which_mcnemar_can_be_significant():
    fewest = fewest_differing(0.05)
    assert mcnemar(0, fewest) <= 0.05 < mcnemar(0, fewest - 1)


# -- what is found


def test_each_comparison_is_a_reading_of_the_test_films_of_every_run(tmp_path):
    runs = [make_run(tmp_path / name, said=answers()) for name in "ab"]
    for times in (1, 2):
        compare(runs, replicates=20)
        for run in runs:
            rows = pd.read_csv(run.readings)
            assert list(rows.columns) == ["time", "command", "checkpoint_sha256"]
            assert len(rows) == times
    closed = lambda *_: (_ for _ in ()).throw(UserError("closed"))  # noqa: E731
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(runs[0]), "note_reading", closed)
        notes = compare(runs, replicates=20)["notes"]
    assert any("could not be logged" in note and "a, b" in note for note in notes)


def test_a_run_differs_from_its_copy_by_exactly_nothing(tmp_path):
    said = answers()
    found = compare([make_run(tmp_path / "a", said=said), make_run(tmp_path / "b", said=said)], replicates=200)
    for entry in entries(found):
        assert (entry["difference"], entry["low"], entry["high"], entry["p"]) == (0, None, None, 1)
        assert (entry["verdict"], entry["why"]) == (NOT_SHOWN, "")
    assert accuracy(found)["mcnemar"] == {"only_first": 0, "only_this": 0, "p": 1, "p_holm": 1}


def test_a_better_run_is_found_and_the_other_way_round_it_is_worse(tmp_path):
    good, bad = make_run(tmp_path / "good", said=answers(right=0.95)), make_run(tmp_path / "bad", said=answers(seed=1))
    better, worse = compare([bad, good], replicates=400), compare([good, bad], replicates=400)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "log_loss"):
        up, down = better["comparisons"][0]["overall"][name], worse["comparisons"][0]["overall"][name]
        assert (up["verdict"], down["verdict"]) == (BETTER, WORSE)
        assert (up["difference"] > 0) == (name != "log_loss")
        assert (up["low"], up["high"]) == pytest.approx((-down["high"], -down["low"]))


def test_differences_and_intervals_are_those_of_scikit_learn_on_the_same_replicates(tmp_path):
    a, b = answers().round(6), answers(seed=1, right=0.85).round(6)
    groups = [film(i // 2)[:16] for i in range(FILMS)]
    runs = [make_run(tmp_path / name, said=said, groups=groups) for name, said in (("a", a), ("b", b))]
    found = compare(runs, replicates=80, seed=3)
    truth = np.arange(FILMS) % len(LABELS)
    # Films 2 i and 2 i + 1 are a group; the smaller hash names it, and films are in the order of their hashes.
    weights = np.concatenate(list(bootstrap_weights(groups, replicates=80, seed=3)))
    measures = {
        "accuracy": lambda p, w: np.average(p.argmax(1) == truth, weights=w),
        "macro_f1": lambda p, w: f1_score(truth, p.argmax(1), average="macro", sample_weight=w),
        "log_loss": lambda p, w: sk_log_loss(truth, p / p.sum(1, keepdims=True), sample_weight=w),
    }
    for name, measure in measures.items():
        entry = found["comparisons"][0]["overall"][name]
        drawn = [measure(b, w) - measure(a, w) for w in weights]
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert entry["difference"] == pytest.approx(measure(b, None) - measure(a, None), abs=5e-6)
        assert (entry["low"], entry["high"]) == pytest.approx((low, high), abs=5e-6)


def test_what_is_hard_for_both_runs_cancels_out(tmp_path):
    said = answers(right=0.7)
    other = with_errors(said, np.arange(0, 12))
    found = compare([make_run(tmp_path / "a", said=said), make_run(tmp_path / "b", said=other)], replicates=400)
    own, difference = found["runs"][0]["overall"]["accuracy"], accuracy(found)
    assert difference["high"] - difference["low"] < 0.6 * (own["high"] - own["low"])


def test_names_and_order_of_the_films_do_not_matter(tmp_path):
    a, b = answers(), answers(seed=1, right=0.9)
    first = make_run(tmp_path / "a", said=a)
    order = np.random.default_rng(5).permutation(FILMS)
    shuffled = make_run(tmp_path / "x" / "b", said=b[order], films=order, names=[f"{i}.jpg" for i in range(FILMS)])
    plain = make_run(tmp_path / "y" / "b", said=b)
    assert numbers(compare([first, shuffled], replicates=200)) == numbers(compare([first, plain], replicates=200))


def test_classes_in_another_order_are_the_same_classes(tmp_path):
    said = answers()
    first = make_run(tmp_path / "a", said=said)
    turned = make_run(tmp_path / "b", said=said, labels=LABELS[::-1])
    assert all(entry["difference"] == 0 for entry in entries(compare([first, turned], replicates=50)))


def test_few_differing_films_show_nothing_however_one_sided(tmp_path):
    for wrong, verdict in ((5, NOT_SHOWN), (9, BETTER)):
        a = make_run(tmp_path / f"a{wrong}", said=with_errors(perfect(), np.arange(wrong)))
        b = make_run(tmp_path / f"b{wrong}", said=perfect())
        entry = accuracy(compare([a, b], replicates=1000))
        assert entry["low"] > 0
        assert entry["verdict"] == verdict
        assert entry["why"] == ("only 5 films differ" if wrong == 5 else "")


def test_accuracy_needs_mcnemar_beside_the_bootstrap(tmp_path):
    a = make_run(tmp_path / "a", said=with_errors(perfect(), np.arange(7)))
    b = make_run(tmp_path / "b", said=with_errors(perfect(), [100]))
    entry = accuracy(compare([a, b], replicates=1000))
    assert entry["low"] > 0
    assert entry["mcnemar"]["p"] == mcnemar(7, 1) == 18 / 2**8
    assert (entry["verdict"], entry["why"]) == (NOT_SHOWN, "McNemar p = 0.07")


def test_many_films_of_few_patients_are_not_many_news(tmp_path):
    wrong = np.r_[0:20, 40:52]
    groups = [film(i // 20)[:16] for i in range(FILMS)]
    good = with_errors(perfect(), wrong)
    bad = with_errors(perfect(), np.r_[wrong, 100:115])
    runs = [make_run(tmp_path / name, said=said, groups=groups) for name, said in (("a", good), ("b", bad))]
    entry = accuracy(found := compare(runs, replicates=1000))
    assert entry["mcnemar"]["p"] < 0.001
    assert entry["verdict"] == NOT_SHOWN
    assert any("12 of 12 groups (patients) hold more than one film" in note for note in found["notes"])


def test_more_runs_are_corrected_for(tmp_path):
    base = with_errors(perfect(), np.arange(7))
    runs = [make_run(tmp_path / "a", said=base)]
    runs += [make_run(tmp_path / f"b{i}", said=perfect()) for i in range(4)]
    two, five = compare(runs[:2], replicates=1000), compare(runs, replicates=1000)
    assert accuracy(two)["verdict"] == BETTER
    assert accuracy(two)["mcnemar"]["p_holm"] == mcnemar(7, 0) == 2 / 2**7
    for i in range(4):
        assert accuracy(five, i)["mcnemar"]["p_holm"] == pytest.approx(4 * 2 / 2**7)
        assert (accuracy(five, i)["verdict"], accuracy(five, i)["why"]) == (
            NOT_SHOWN,
            "not after correction for 4 comparisons",
        )


def test_a_probability_that_is_written_as_zero_is_not_taken_for_zero(tmp_path):
    said = perfect()
    said[0] = [0, 1, 0]  # film 0 is of class 0
    found = compare([make_run(tmp_path / "a", said=perfect()), make_run(tmp_path / "b", said=said)], replicates=20)
    difference = found["comparisons"][0]["overall"]["log_loss"]["difference"]
    assert difference == pytest.approx((-np.log(5e-7) + np.log(0.98)) / FILMS, abs=1e-4)


def test_classes_that_rounding_made_equal_are_told_apart_by_the_answer(tmp_path):
    said = perfect()
    said[1] = [0.4999999, 0.5, 0.0000001]  # film 1 is of class 1; both are written 0.5
    found = compare([make_run(tmp_path / "a", said=perfect()), make_run(tmp_path / "b", said=said)], replicates=20)
    assert found["runs"][1]["overall"]["accuracy"]["value"] == 1


# -- which films are compared


def test_training_films_of_another_run_are_left_out_and_counted(tmp_path):
    first = make_run(tmp_path / "a", said=answers())
    split = np.where(np.arange(FILMS) < 30, "train", np.where(np.arange(FILMS) < 50, "validation", "test"))
    second = make_run(tmp_path / "b", said=answers(seed=1), split=split)
    found = compare([first, second], replicates=50)
    assert found["films"]["paired"] == FILMS - 50
    assert found["films"]["left_out"] == [
        {"reason": "training films of b", "leak": True, "films": 30, "first": "c/film-0.png"},
        {"reason": "validation films of b", "leak": False, "films": 20, "first": "c/film-30.png"},
    ]
    assert found["runs"][0]["overall"]["accuracy"]["value"] == np.mean(
        answers()[50:].argmax(axis=1) == np.arange(50, FILMS) % len(LABELS)
    )
    assert compare([second, first], replicates=50)["films"]["paired"] == FILMS - 50


def test_nothing_but_leaked_films_is_refused_in_one_line(tmp_path):
    first = make_run(tmp_path / "a", said=answers())
    second = make_run(tmp_path / "b", said=answers(), split="train")
    with pytest.raises(UserError, match=r"found 0; left out: 240 training films of b, the first c/film-0\.png$"):
        compare([first, second])


def test_a_film_of_a_patient_whom_another_run_was_trained_on_is_left_out(tmp_path):
    """The first run knows that films 0 and 300 are of one patient; the second, which trained on 300, does not."""
    group = [film(i)[:16] for i in range(FILMS)]
    first = make_run(
        tmp_path / "a",
        said=answers(FILMS + 1, films=[*range(FILMS), 300]),
        films=[*range(FILMS), 300],
        groups=[*group, group[0]],
    )
    second = make_run(
        tmp_path / "b",
        said=answers(FILMS + 1, films=[*range(FILMS), 300]),
        films=[*range(FILMS), 300],
        split=["test"] * FILMS + ["train"],
    )
    assert compare([first, second], replicates=20)["films"]["left_out"] == [
        {"reason": "training films of b", "leak": True, "films": 1, "first": "c/film-300.png"},
        {
            "reason": "of a patient (or group) with training films of b",
            "leak": True,
            "films": 1,
            "first": "c/film-0.png",
        },
    ]


def test_films_that_one_run_does_not_have_are_left_out(tmp_path):
    first = make_run(tmp_path / "a", said=answers())
    second = make_run(tmp_path / "b", said=answers(films=range(100, 340)), films=range(100, 340))
    found = compare([first, second], replicates=20)
    assert found["films"]["paired"] == 140
    assert [(entry["reason"], entry["films"]) for entry in found["films"]["left_out"]] == [
        ("not among the films of a", 100),
        ("not among the films of b", 100),
    ]
    assert not any("not trained on the same films" in note for note in found["notes"])  # neither has training films


def test_other_training_films_are_said(tmp_path):
    films = [*range(FILMS), 900]
    split = ["test"] * FILMS + ["train"]
    first = make_run(tmp_path / "a", said=answers(FILMS + 1, films=films), films=films, split=split)
    films[-1] = 901
    second = make_run(tmp_path / "b", said=answers(FILMS + 1, films=films), films=films, split=split)
    assert any("not trained on the same films" in note for note in compare([first, second], replicates=20)["notes"])


def test_a_film_whose_label_is_contradicted_is_left_out(tmp_path):
    truth = np.arange(FILMS) % len(LABELS)
    first = make_run(tmp_path / "a", said=answers(), truth=truth)
    second = make_run(tmp_path / "b", said=answers(), truth=np.r_[(truth[0] + 1) % 3, truth[1:]])
    (entry,) = compare([first, second], replicates=20)["films"]["left_out"]
    assert (entry["reason"], entry["films"]) == ("with more than one label", 1)


def test_a_class_with_few_paired_films_is_named(tmp_path):
    truth = np.r_[np.ones(3, int), np.arange(FILMS - 3) % 2 * 2]
    first, second = (make_run(tmp_path / name, said=answers(), truth=truth) for name in "ab")
    notes = compare([first, second], replicates=20)["notes"]
    assert any(note.startswith("Few paired films are of Lung_Opacity (3): ") for note in notes)


def test_copies_of_a_film_count_once(tmp_path):
    films = [*range(FILMS), 0, 0, 0]
    said = answers()
    copies = np.concatenate([said, said[[0, 0, 0]]])
    names = [f"{i}.png" for i in range(FILMS + 3)]
    first = make_run(tmp_path / "a", said=copies, films=films, names=names)
    found = compare([first, make_run(tmp_path / "b", said=said)], replicates=20)
    assert found["films"]["paired"] == FILMS
    assert [run["copies"] for run in found["runs"]] == [3, 0]
    assert accuracy(found)["difference"] == 0


# -- what is refused


def test_other_classes_are_refused(tmp_path):
    first = make_run(tmp_path / "a", said=answers())
    second = make_run(tmp_path / "b", said=answers(), labels=LABELS[:2])
    with pytest.raises(
        UserError, match=r"b: must have the classes of .*a \(COVID, Lung_Opacity, Normal\), found COVID"
    ):
        compare([first, second])


def test_a_run_without_a_test_is_refused(tmp_path):
    first = make_run(tmp_path / "a", said=answers())
    with pytest.raises(UserError, match=r"step 'test' must be finished first; run: vgg16-xray test .*b"):
        compare([first, make_run(tmp_path / "b", said=answers(), tested=False)])


def test_one_run_is_refused_alone_and_twice(tmp_path):
    run = make_run(tmp_path / "a", said=answers())
    with pytest.raises(UserError, match="must be two or more, found 1"):
        compare([run])
    with pytest.raises(UserError, match="must be given once"):
        compare([run, RunDir(tmp_path / "." / "a" / ".." / "a")])


def test_too_few_films_are_refused(tmp_path):
    first = make_run(tmp_path / "a", said=answers(19))
    with pytest.raises(UserError, match=r"at least 20 test films in common, found 19$"):
        compare([first, make_run(tmp_path / "b", said=answers(19))])


def broken(table):
    table = table.copy()
    table.loc[3, "p_COVID"] = 0.9
    return table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.iloc[1:], "must hold the films of manifest.parquet in their order"),
        (lambda table: table.iloc[::-1], "must hold the films of manifest.parquet in their order"),
        (lambda table: table.drop(columns="p_Normal"), "must be a table with the columns"),
        (lambda table: table.assign(p_Normal="much"), "must be a table with the columns"),
        (broken, "must be 0 or more and add up to 1"),
        (lambda table: table.assign(prediction="COVID"), "the prediction must be the most probable class"),
    ],
)
def test_damaged_predictions_are_refused_with_their_name(tmp_path, change, message):
    first, second = (make_run(tmp_path / name, said=answers()) for name in "ab")
    change(pd.read_csv(second.predictions)).to_csv(second.predictions, index=False)
    with pytest.raises(UserError, match=message) as error:
        compare([first, second])
    assert str(error.value).startswith(str(second.predictions))


# -- folds


def make_folds(path, *, said, folds=3, fold_of=None, **options):
    """A run whose folds are done: film i is in fold i % K + 1, and every film was predicted by its fold's model."""
    run, n = make_run(path, said=said, split="train", tested=False, **options), len(said)
    fold_of = [i % folds + 1 for i in range(n)] if fold_of is None else list(fold_of)
    manifest = pd.read_parquet(run.manifest)
    of_folds = FoldsDir(path)
    table = pd.read_csv(run.predictions).assign(split="test", fold=fold_of)
    write_text(of_folds.table, table.to_csv(index=False, lineterminator="\n"))
    run.predictions.unlink()
    run.test.unlink()
    write_json(
        of_folds.numbers,
        {
            "folds": folds,
            "films": {"fingerprint": key_of(list(manifest["pixels_sha256"]), list(manifest["label"]), fold_of)},
            "pooled": {"labels": list(options.get("labels", LABELS))},
            "each": [{"fold": k + 1, "checkpoint_sha256": f"{path.name}{k}"} for k in range(folds)],
        },
    )
    of_folds.fold(1).path.mkdir(parents=True)
    write_text(of_folds.fold(1).config, '[run]\nseed = 7\n\n[recipe]\nname = "default"\ntrain_from = "block5"\n')
    run.stamp("folds", "0", seconds=0)
    return run


def test_two_runs_of_folds_are_paired_on_all_films(tmp_path):
    first, second = (
        make_folds(tmp_path / "a", said=answers(right=0.7)),
        make_folds(tmp_path / "b", said=answers(seed=1)),
    )
    found = compare([first, second], replicates=100)
    assert (found["films"]["paired"], found["films"]["left_out"]) == (FILMS, [])
    assert [(run["folds"], run["films"], run["recipe"]) for run in found["runs"]] == [(3, FILMS, "default")] * 2
    assert found["runs"][1]["checkpoints"] == ["b0", "b1", "b2"]
    truth = np.arange(FILMS) % len(LABELS)
    right = [(said.argmax(axis=1) == truth).mean() for said in (answers(right=0.7), answers(seed=1))]
    assert accuracy(found)["difference"] == pytest.approx(right[1] - right[0])
    assert any("was predicted by the fold's model that never saw it" in note for note in found["notes"])
    assert not any("not trained on the same films" in note for note in found["notes"])


def test_folds_and_a_single_run_are_paired_on_the_single_runs_test_films(tmp_path):
    split = np.where(np.arange(FILMS) < 150, "train", np.where(np.arange(FILMS) < 180, "validation", "test"))
    folds = make_folds(tmp_path / "f", said=answers())
    single = make_run(tmp_path / "s", said=answers(seed=1), split=split)
    for runs in ([folds, single], [single, folds]):
        found = compare(runs, replicates=50)
        assert found["films"]["paired"] == FILMS - 180
        assert [(e["reason"], e["leak"], e["films"]) for e in found["films"]["left_out"]] == [
            ("training films of s", False, 150),
            ("validation films of s", False, 30),
        ]
        assert any("not trained on the same films" in note for note in found["notes"])


def test_a_film_whose_patient_another_fold_taught_the_model_is_left_out(tmp_path):
    """The single run knows that films 0 and 1 are of one patient; the folds have them in folds 1 and 2 of 4."""
    groups = [film(i)[:16] for i in range(FILMS)]
    folds = make_folds(tmp_path / "f", said=answers(), folds=4)
    single = make_run(tmp_path / "s", said=answers(), groups=[groups[0], groups[0], *groups[2:]])
    found = compare([folds, single], replicates=20)
    assert found["films"]["paired"] == FILMS - 2
    # Fold 2 chose the epoch of fold 1's model, and fold 1 trained fold 2's.
    assert [(e["reason"], e["leak"], e["films"]) for e in found["films"]["left_out"]] == [
        ("of a patient (or group) with training films of f", True, 1),
        ("of a patient (or group) with validation films of f", False, 1),
    ]


def test_other_folds_are_other_training_films_and_only_they(tmp_path):
    a = make_folds(tmp_path / "a", said=answers())
    renamed = make_folds(tmp_path / "b", said=answers(), fold_of=[(i + 1) % 3 + 1 for i in range(FILMS)])
    other = make_folds(tmp_path / "c", said=answers(), fold_of=[i // 80 + 1 for i in range(FILMS)])
    said = [
        any("not trained on the same" in n for n in compare([a, b], replicates=5)["notes"]) for b in (renamed, other)
    ]
    assert said == [False, True]


def test_folds_of_other_films_or_unfinished_ones_are_refused(tmp_path):
    a, b = make_folds(tmp_path / "a", said=answers()), make_folds(tmp_path / "b", said=answers())
    manifest = pd.read_parquet(b.manifest)
    manifest.assign(pixels_sha256=manifest["pixels_sha256"].iloc[::-1].to_list()).to_parquet(b.manifest)
    with pytest.raises(UserError, match=r"b/folds\.csv: must hold the films of manifest\.parquet .* with --folds 3$"):
        compare([a, b])
    b.unstamp("folds")
    FoldsDir(b.path).fold(1).last.parent.mkdir(parents=True)
    FoldsDir(b.path).fold(1).last.touch()
    with pytest.raises(UserError, match="all folds must be finished first, found some that are not"):
        compare([a, b])


# -- the exchange test


def test_one_film_among_eight_against_the_run_shows_no_f1(tmp_path):
    """The bootstrap alone calls it better; McNemar's test of the same films does not, and neither may F1 be."""
    a = make_run(tmp_path / "a", said=with_errors(perfect(), np.arange(0, 21, 3)))
    b = make_run(tmp_path / "b", said=with_errors(perfect(), [30]))
    found = compare([a, b], replicates=1000)["comparisons"][0]
    for entry in (
        found["overall"]["macro_f1"],
        found["overall"]["balanced_accuracy"],
        found["per_class"]["COVID"]["f1"],
    ):
        assert entry["low"] > 0
        assert entry["differing"] == 8
        assert entry["exchange"] == {"groups": 8, "p": 18 / 2**8, "p_holm": 18 / 2**8}
        assert (entry["verdict"], entry["why"]) == (NOT_SHOWN, "exchange test p = 0.07")
    assert found["overall"]["accuracy"]["mcnemar"]["p"] == mcnemar(7, 1) == 18 / 2**8


def test_the_drawn_exchanges_agree_with_all_of_them(tmp_path):
    a = make_run(tmp_path / "a", said=with_errors(perfect(), np.arange(0, 30, 3)))
    b = make_run(tmp_path / "b", said=with_errors(perfect(), [31, 34]))
    drawn, all_ = (
        compare([a, b], replicates=n)["comparisons"][0]["overall"]["macro_f1"]["exchange"]["p"] for n in (4000, 4096)
    )
    assert drawn == pytest.approx(all_, abs=0.01)
    assert drawn != all_


def test_answers_of_a_patient_are_exchanged_together(tmp_path):
    groups = [film(i // 20)[:16] for i in range(FILMS)]
    good, bad = perfect(), with_errors(perfect(), np.arange(20))
    runs = [make_run(tmp_path / name, said=said, groups=groups) for name, said in (("a", bad), ("b", good))]
    entry = compare(runs, replicates=200)["comparisons"][0]["overall"]["macro_f1"]
    assert entry["exchange"] == {"groups": 1, "p": 1, "p_holm": 1}
    assert entry["verdict"] == NOT_SHOWN
