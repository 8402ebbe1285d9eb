"""Steps 5 and 6: which films are measured, and that labels travel with their films."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix, f1_score, log_loss

from vgg16_xray import RESEARCH_USE_ONLY
from vgg16_xray.config import load_recipe
from vgg16_xray.errors import UserError
from vgg16_xray.learn.featurestore import StoredFeatures
from vgg16_xray.rundir import CacheDir, RunDir
from vgg16_xray.steps.initialise import initialise, read_plan
from vgg16_xray.steps.preprocess import read_manifest
from vgg16_xray.steps.test import predictions_table
from vgg16_xray.steps.test import test as measure_on_test_films
from vgg16_xray.steps.train import read_history, rows_of, train
from vgg16_xray.steps.validate import TrainedRun, validate
from vgg16_xray.trust import calibrate


def test_training_and_validation_never_ask_for_a_test_film(
    copy_of_run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The features of all films are there; what is asked of them is what is learned from, chosen by and measured on.
    initialise(copy_of_run, load_recipe("fast", epochs=2))
    asked: set[int] = set()
    take = StoredFeatures.take

    def noting(self: StoredFeatures, rows: np.ndarray) -> object:
        asked.update(rows.tolist())
        return take(self, rows)

    monkeypatch.setattr(StoredFeatures, "take", noting)
    train(copy_of_run)
    validate(copy_of_run)
    manifest = read_manifest(copy_of_run)
    assert asked == {*rows_of(manifest, "train"), *rows_of(manifest, "validation")}
    assert not asked & set(rows_of(manifest, "test"))
    asked.clear()
    (copy_of_run.path / "validation.json").unlink()
    validate(copy_of_run)
    assert asked == set(rows_of(manifest, "validation"))


def test_validation_measures_the_epoch_that_training_chose(small_run: RunDir) -> None:
    measured = json.loads(small_run.validation.read_text())
    history = read_history(small_run.history)
    manifest = read_manifest(small_run)
    assert measured["split"] == "validation"
    assert measured["images"] == (manifest["split"] == "validation").sum()
    assert measured["criterion"] == "highest validation macro_f1"
    assert measured["epochs"] == history
    scores = [row["validation_macro_f1"] for row in history]
    assert measured["epoch"] == 1 + scores.index(max(scores))
    chosen = history[measured["epoch"] - 1]
    # history.csv has six digits.
    assert measured["overall"]["accuracy"]["value"] == pytest.approx(chosen["validation_accuracy"], rel=1e-5)
    assert measured["overall"]["macro_f1"]["value"] == pytest.approx(chosen["validation_macro_f1"], rel=1e-5)
    assert measured["overall"]["log_loss"]["value"] == pytest.approx(chosen["validation_loss"], rel=1e-4)


def test_test_numbers_are_those_of_predictions_csv_by_scikit_learn(small_run: RunDir) -> None:
    measured = json.loads(small_run.test.read_text())
    table = pd.read_csv(small_run.predictions)
    films = table[table["split"] == "test"]
    labels = measured["labels"]
    assert labels == sorted(table["label"].unique())
    assert measured["research_use_only"] == RESEARCH_USE_ONLY
    found = confusion_matrix(films["label"], films["prediction"], labels=labels)
    assert measured["confusion"] == found.tolist()
    overall = {name: figure["value"] for name, figure in measured["overall"].items()}
    assert overall["accuracy"] == pytest.approx((films["label"] == films["prediction"]).mean())
    assert overall["macro_f1"] == pytest.approx(f1_score(films["label"], films["prediction"], average="macro"))
    p = films[[f"p_{label}" for label in labels]].to_numpy()
    truth = [labels.index(label) for label in films["label"]]
    rescaled = p / p.sum(1, keepdims=True)
    assert overall["log_loss"] == pytest.approx(log_loss(truth, rescaled, labels=range(len(labels))), abs=1e-4)


def test_predictions_csv_has_a_row_a_film_in_the_manifests_order(small_run: RunDir) -> None:
    table, manifest = pd.read_csv(small_run.predictions), read_manifest(small_run)
    for column in ("path", "label", "split"):
        assert list(table[column]) == list(manifest[column])
    labels = read_plan(small_run).labels
    assert list(table.columns) == [
        *("path", "collection", "label", "split", "patient_id", "source", "prediction", "confidence"),
        "calibrated_confidence",
        *(f"p_{label}" for label in labels),
        *(f"calibrated_{label}" for label in labels),
        *(f"reaches_{label}" for label in labels),
    ]
    p = table[[f"p_{label}" for label in labels]].to_numpy()
    np.testing.assert_allclose(p.sum(1), 1, atol=3e-6)
    assert [labels[i] for i in p.argmax(1)] == list(table["prediction"])
    np.testing.assert_allclose(p.max(1), table["confidence"])
    calibrated = table[[f"calibrated_{label}" for label in labels]].to_numpy()
    np.testing.assert_allclose(calibrated.max(1), table["calibrated_confidence"])
    thresholds = json.loads(small_run.validation.read_text())["operating"]
    for k, label in enumerate(labels):
        cut = next(point["threshold"] for point in thresholds[k] if point["wanted"] == "specificity")
        told = (table[f"calibrated_{label}"] - cut).abs() > 1e-6  # the table has six digits
        reaches = (table[f"calibrated_{label}"] >= cut).astype(int)
        assert list(table[f"reaches_{label}"][told]) == list(reaches[told])


def test_the_temperature_is_fitted_on_validation_films_and_measured_on_test_films(small_run: RunDir) -> None:
    table, tested = pd.read_csv(small_run.predictions), json.loads(small_run.test.read_text())
    validated = json.loads(small_run.validation.read_text())
    labels = tested["labels"]
    p = table[[f"p_{label}" for label in labels]].to_numpy()
    truth = np.array([labels.index(label) for label in table["label"]])
    sides = {side: (table["split"] == side).to_numpy() for side in ("validation", "test")}
    logits = calibrate.logits_of(p)
    temperature = calibrate.fit_temperature(logits[sides["validation"]], truth[sides["validation"]])
    assert validated["calibration"]["temperature"] == pytest.approx(temperature, rel=1e-3)  # six decimals in the table
    assert tested["calibration"]["temperature"] == validated["calibration"]["temperature"]
    after = calibrate.softmax(logits, temperature)
    np.testing.assert_allclose(table["calibrated_confidence"], after.max(1), atol=1e-3)
    of_test = truth[sides["test"]]
    for side, values in (("score", p), ("probability", after)):
        measured = tested["calibration"][side]["log_loss"]["value"]
        expected = values[sides["test"]]
        expected = log_loss(of_test, expected / expected.sum(1, keepdims=True), labels=range(4))
        assert measured == pytest.approx(expected, abs=1e-3)


def test_each_measurement_of_the_test_films_is_logged_and_no_other(copy_of_run: RunDir) -> None:
    def readings() -> list[dict[str, str]]:
        return pd.read_csv(copy_of_run.readings).to_dict("records")

    assert len(first := readings()) == 1
    validate(copy_of_run)
    measure_on_test_films(copy_of_run)
    assert readings() == first, "what is done is not done again"
    copy_of_run.test.unlink()
    measure_on_test_films(copy_of_run)
    assert len(found := readings()) == 2
    assert found[0] == first[0]
    assert {row["checkpoint_sha256"] for row in found} == {
        json.loads(copy_of_run.test.read_text())["checkpoint_sha256"]
    }
    assert all(row["command"].startswith("vgg16-xray") and row["time"].startswith("20") for row in found)


def test_a_row_of_the_table_belongs_to_its_row_of_the_manifest(small_run: RunDir) -> None:
    manifest = read_manifest(small_run)
    p = np.eye(4)[np.arange(len(manifest)) % 4]
    labels = read_plan(small_run).labels
    table = predictions_table(manifest, p, p, labels, thresholds=[[] for _ in labels])
    assert list(table["prediction"]) == [labels[i % 4] for i in range(len(manifest))]
    assert list(table["path"]) == list(manifest["path"])


def test_shuffled_films_have_their_own_probabilities(small_run: RunDir) -> None:
    trained = TrainedRun(small_run)
    films = len(trained.manifest)
    shuffled = np.random.default_rng(0).permutation(films)
    np.testing.assert_allclose(
        trained.probabilities(shuffled), trained.probabilities(np.arange(films))[shuffled], atol=1e-4
    )


def test_a_run_in_another_order_has_the_same_test_numbers(
    copy_of_run: RunDir, small_run: RunDir, shared_cache: Path
) -> None:
    stores = CacheDir(shared_cache).stores()
    order = np.random.default_rng(1).permutation(len(read_manifest(copy_of_run)))
    read_manifest(copy_of_run).iloc[order].reset_index(drop=True).to_parquet(copy_of_run.manifest, index=False)
    np.save(copy_of_run.pixels, np.load(copy_of_run.pixels)[order])
    copy_of_run.unstamp("test")
    found = measure_on_test_films(copy_of_run)
    expected = json.loads(small_run.test.read_text())
    assert found["confusion"] == expected["confusion"]
    for name, figure in expected["overall"].items():
        assert found["overall"][name]["value"] == pytest.approx(figure["value"], abs=2e-3), name
    one, other = (pd.read_csv(run.predictions).set_index("path").sort_index() for run in (small_run, copy_of_run))
    columns = [column for column in one.columns if column.startswith("p_")]
    assert list(one["label"]) == list(other["label"])
    np.testing.assert_allclose(one[columns], other[columns], atol=2e-3)
    assert len(CacheDir(shared_cache).stores()) == len(stores) + 1, "features of another order are not taken for these"


def test_a_second_measurement_does_nothing(copy_of_run: RunDir, snapshot: Callable) -> None:
    before = snapshot(copy_of_run.path)
    assert validate(copy_of_run) == json.loads(copy_of_run.validation.read_text())
    assert measure_on_test_films(copy_of_run) == json.loads(copy_of_run.test.read_text())
    assert snapshot(copy_of_run.path) == before


def test_a_file_that_is_gone_is_measured_again(copy_of_run: RunDir, small_run: RunDir) -> None:
    copy_of_run.predictions.unlink()
    copy_of_run.validation.unlink()
    validate(copy_of_run)
    measure_on_test_films(copy_of_run)
    for name in ("predictions", "validation", "test"):
        assert getattr(copy_of_run, name).read_bytes() == getattr(small_run, name).read_bytes()


def test_a_model_that_was_trained_by_another_plan_is_not_measured(copy_of_run: RunDir, snapshot: Callable) -> None:
    initialise(copy_of_run, load_recipe("default", epochs=1))
    before = snapshot(copy_of_run.path)
    for step in (validate, measure_on_test_films):
        with pytest.raises(UserError, match=r"must be trained as run\.toml says"):
            step(copy_of_run)
    assert snapshot(copy_of_run.path) == before, "no features of a trained base under the name of the frozen one"


def test_steps_before_are_asked_for(initialised_run: RunDir, copy_of_run: RunDir) -> None:
    for step in (validate, measure_on_test_films):
        with pytest.raises(UserError, match="step 'train' must be finished first; run: vgg16-xray train"):
            step(initialised_run)
    shutil.rmtree(copy_of_run.best.parent)
    with pytest.raises(UserError, match="not there yet; run first: vgg16-xray train"):
        validate(copy_of_run)


def test_pixels_of_another_run_are_refused(copy_of_run: RunDir) -> None:
    np.save(copy_of_run.pixels, np.load(copy_of_run.pixels)[:-1])
    copy_of_run.unstamp("test")
    with pytest.raises(UserError, match=r"found (48 for 47|47 of uint8)"):
        measure_on_test_films(copy_of_run)
