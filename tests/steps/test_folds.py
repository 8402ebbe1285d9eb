"""Folds and seeds: laid out as runs of their own, killed and moved at will, and put together film by film."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from stopping import STOP_AT

from vgg16_xray import cli
from vgg16_xray.config import load_recipe
from vgg16_xray.errors import UserError
from vgg16_xray.files import read_json, write_json, write_text
from vgg16_xray.films.decode import decode
from vgg16_xray.films.split import TEST, TRAIN, VALIDATION
from vgg16_xray.pipeline import run_all
from vgg16_xray.predict import Predictor
from vgg16_xray.report.cards import facts_of
from vgg16_xray.report.page import write_report
from vgg16_xray.report.terminal import figure, say_folds
from vgg16_xray.rundir import FoldsDir, RunDir, read_config, sha256_of, update_config
from vgg16_xray.steps.folds import (
    STEP,
    Member,
    collect_folds,
    collect_seeds,
    ensemble,
    finished_folds,
    lay_out_folds,
    lay_out_seeds,
    mean_with_interval,
    spread,
    withdraw_if_others,
)
from vgg16_xray.steps.initialise import initialise, read_plan
from vgg16_xray.steps.preprocess import preprocess, read_manifest
from vgg16_xray.steps.test import predictions_table
from vgg16_xray.steps.train import open_pixels
from vgg16_xray.trust import calibrate
from vgg16_xray.trust.metrics import evaluate

FOLDS = 3
RECIPE = load_recipe("fast", epochs=2)
#: The command of the slow tests, without its data and its run.
OPTIONS = ["--recipe", "fast", "--epochs", "2", "--folds", str(FOLDS)]


@pytest.fixture(scope="module")
def _ready(tmp_path_factory: pytest.TempPathFactory, few_films: Path) -> RunDir:
    run = RunDir(tmp_path_factory.mktemp("ready") / "run")
    preprocess([few_films], run)
    initialise(run, RECIPE)
    return run


@pytest.fixture
def ready(_ready: RunDir, tmp_path: Path) -> RunDir:
    """Steps 2 and 3 finished on 20 films of two classes."""
    return RunDir(Path(shutil.copytree(_ready.path, tmp_path / "run")))


def finish(members: Sequence[Member], *, skill: float = 1.0) -> None:
    """Leave in each member what steps 4 to 6 leave, with made up probabilities."""
    for member in members:
        manifest, plan = read_manifest(member.run), read_plan(member.run)
        random = np.random.default_rng([member.seed, member.fold or 0])
        truth = manifest["label"].map({label: i for i, label in enumerate(plan.labels)}).to_numpy()
        scores = random.normal(size=(len(manifest), len(plan.labels)))
        scores[np.arange(len(truth)), truth] += skill
        p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        tested, chosen = (np.flatnonzero(manifest["split"] == side) for side in (TEST, VALIDATION))
        calibration = calibrate.fit(p[chosen], truth[chosen], list(manifest["group"].iloc[chosen]))
        write_json(member.run.validation, {"calibration": calibration})
        measured = evaluate(
            truth=truth[tested],
            probabilities=p[tested],
            labels=plan.labels,
            groups=list(manifest["group"].iloc[tested]),
            replicates=50,
        )
        name = f"{member.fold}-{member.seed}"
        write_json(member.run.test, measured | {"epoch": 2, "checkpoint_sha256": name})
        table = predictions_table(manifest, p, p, plan.labels, thresholds=[[] for _ in plan.labels])
        write_text(member.run.predictions, table.to_csv(index=False, lineterminator="\n"))


# --------------------------------------------------------------------------------------------------------- laying out


def test_each_fold_is_a_run_of_its_own_with_the_same_films_and_another_split(ready: RunDir) -> None:
    members = lay_out_folds(ready, folds=FOLDS)
    assert [member.run.path.name for member in members] == ["1", "2", "3"]
    whole, above = read_manifest(ready), read_plan(ready)
    tested = []
    for member in members:
        manifest, plan = read_manifest(member.run), read_plan(member.run)  # which refuses a leak
        pd.testing.assert_frame_equal(manifest.drop(columns="split"), whole.drop(columns="split"))
        assert len(open_pixels(member.run, manifest)) == len(manifest)
        assert member.run.pixels.is_symlink()
        assert list(pd.read_csv(member.run.split)["split"]) == list(manifest["split"])
        assert (plan.recipe, plan.seed, plan.engine.name) == (above.recipe, above.seed, above.engine.name)
        assert plan.key != above.key
        tested += list(np.flatnonzero(manifest["split"] == TEST))
    assert sorted(tested) == list(range(len(whole)))
    assert len({read_plan(member.run).key for member in members}) == FOLDS


def test_laying_out_again_changes_nothing(ready: RunDir, snapshot: Callable) -> None:
    lay_out_folds(ready, folds=FOLDS)
    before = snapshot(ready.path)
    lay_out_folds(ready, folds=FOLDS)
    assert snapshot(ready.path) == before


def test_what_was_laid_out_half_is_laid_out_whole(ready: RunDir) -> None:
    (first, *_) = lay_out_folds(ready, folds=FOLDS)
    whole = first.run.config.read_bytes(), first.run.manifest.read_bytes()
    first.run.unstamp("preprocess")
    first.run.config.unlink()
    first.run.pixels.unlink()
    shutil.copy(ready.pixels, first.run.pixels)
    lay_out_folds(ready, folds=FOLDS)
    assert (first.run.config.read_bytes(), first.run.manifest.read_bytes()) == whole
    assert first.run.pixels.is_symlink()


def test_another_seed_of_the_training_leaves_the_folds_as_they_are(ready: RunDir) -> None:
    members = lay_out_folds(ready, folds=FOLDS, seeds=2)
    seed = read_plan(ready).seed
    assert [member.run.path.name for member in members[FOLDS:]] == [f"{n}-seed{seed + 1}" for n in (1, 2, 3)]
    for one, other in zip(members[:FOLDS], members[FOLDS:], strict=True):
        assert read_manifest(one.run).equals(read_manifest(other.run))
        assert (read_plan(one.run).seed, read_plan(other.run).seed) == (seed, seed + 1)
        assert read_config(one.run)["run"] == read_config(other.run)["run"]


def test_another_seed_without_folds_leaves_the_split_as_it_is(ready: RunDir) -> None:
    first, second = lay_out_seeds(ready, seeds=2)
    assert first.run == ready
    assert second.run.path == FoldsDir(ready.path).seed(first.seed + 1).path
    assert read_manifest(second.run).equals(read_manifest(ready))
    assert read_plan(second.run).seed == first.seed + 1
    assert read_plan(second.run).fingerprint == read_plan(ready).fingerprint


def test_folds_of_a_run_that_was_moved_find_their_pixels(ready: RunDir, tmp_path: Path) -> None:
    lay_out_folds(ready, folds=FOLDS)
    moved = RunDir(Path(shutil.move(ready.path, tmp_path / "else" / "where")))
    before = FoldsDir(moved.path).fold(1).config.stat().st_mtime_ns
    for member in lay_out_folds(moved, folds=FOLDS):
        manifest = read_manifest(member.run)
        assert len(open_pixels(member.run, manifest)) == len(manifest)
        assert (member.run.path / member.run.pixels.readlink()).resolve() == moved.pixels.resolve()
    assert FoldsDir(moved.path).fold(1).config.stat().st_mtime_ns == before


def test_a_class_with_fewer_groups_than_folds_is_one_line_and_nothing_is_laid_out(ready: RunDir) -> None:
    with pytest.raises(UserError, match=r"class 'COVID': must have 11 groups .* or more for --folds 11, found 10"):
        lay_out_folds(ready, folds=11)
    assert not (ready.path / "folds").exists()


# --------------------------------------------------------------------------------------------------- putting together


def test_every_film_counts_once_with_the_answer_of_the_model_that_never_saw_it(ready: RunDir) -> None:
    members = lay_out_folds(ready, folds=FOLDS)
    finish(members)
    found = collect_folds(ready, members, folds=FOLDS)
    manifest = read_manifest(ready)
    table = pd.read_csv(FoldsDir(ready.path).table)
    single = pd.read_csv(members[0].run.predictions)
    assert list(table.columns) == [*single.columns, "fold"]
    assert list(table["path"]) == list(manifest["path"])
    for row in range(len(table)):
        said = pd.read_csv(members[table["fold"][row] - 1].run.predictions).iloc[row]
        assert said["split"] == table["split"][row] == TEST
        assert said["p_COVID"] == table["p_COVID"][row]
    right = (table["label"] == table["prediction"]).mean()
    accuracy = found["pooled"]["overall"]["accuracy"]
    assert accuracy["value"] == pytest.approx(right)
    assert accuracy["low"] < right < accuracy["high"]
    assert found["pooled"]["images"] == len(manifest) == found["films"]["images"]
    each = [fold["overall"]["accuracy"]["value"] for fold in found["each"]]
    assert found["over_folds"]["accuracy"]["mean"] == pytest.approx(np.mean(each))
    assert sum(fold["films"][TEST] for fold in found["each"]) == len(manifest)
    assert all(sum(fold["films"].values()) == len(manifest) and fold["films"][TRAIN] for fold in found["each"])
    assert found["seeds"] is None
    assert found == read_json(FoldsDir(ready.path).numbers)


def test_probabilities_of_all_films_are_by_what_was_fitted_for_their_own_fold(ready: RunDir) -> None:
    members = lay_out_folds(ready, folds=FOLDS)
    finish(members, skill=2.0)
    found = collect_folds(ready, members, folds=FOLDS)["pooled"]["calibration"]
    surprise: list[float] = []
    for member in members:
        fitted = read_json(member.run.validation)["calibration"]
        table = pd.read_csv(member.run.predictions)
        table = table[table["split"] == TEST]
        labels = list(read_plan(member.run).labels)
        truth = np.array([labels.index(label) for label in table["label"]])
        logits = np.log(table[[f"p_{label}" for label in labels]].to_numpy()) / fitted["temperature"]
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        of_truth = p[np.arange(len(truth)), truth]
        surprise += list(-np.log(of_truth))
    assert found["probability"]["log_loss"]["value"] == pytest.approx(np.mean(surprise), rel=1e-3)
    assert found["temperatures"] == [read_json(m.run.validation)["calibration"]["temperature"] for m in members]


def test_the_spread_over_seeds_is_of_the_pooled_figures(ready: RunDir) -> None:
    members = lay_out_folds(ready, folds=FOLDS, seeds=3)
    finish(members)
    found = collect_folds(ready, members, folds=FOLDS)["seeds"]
    seed = read_plan(ready).seed
    assert found["training_seeds"] == [seed, seed + 1, seed + 2]
    for number, value in enumerate(found["accuracy"]["values"]):
        said = [pd.read_csv(m.run.predictions) for m in members[number * FOLDS : (number + 1) * FOLDS]]
        tested = pd.concat([table[table["split"] == TEST] for table in said])
        assert value == pytest.approx((tested["label"] == tested["prediction"]).mean())
    assert found["accuracy"]["sd"] == pytest.approx(np.std(found["accuracy"]["values"], ddof=1))


def test_the_models_of_all_folds_and_seeds_answer_together(ready: RunDir) -> None:
    members = lay_out_folds(ready, folds=FOLDS, seeds=2)
    for member in members:
        write_text(member.run.best, str(member.run.path.name))
    finish(members)
    for member in members:
        test = read_json(member.run.test)
        write_json(member.run.test, test | {"checkpoint_sha256": sha256_of(member.run.best)})
    found = collect_folds(ready, members, folds=FOLDS)
    assert len(found["each"]) == FOLDS
    assert ensemble(ready) == [member.run.best for member in members]
    # As folds.json was before it named the models of further seeds.
    del found["models"]
    write_json(FoldsDir(ready.path).numbers, found)
    assert ensemble(ready) == [member.run.best for member in members[:FOLDS]]
    write_json(FoldsDir(ready.path).numbers, found | {"models": "none"})
    with pytest.raises(UserError, match=r"folds\.json: must be as the folds wrote it"):
        ensemble(ready)


def test_resume_with_another_number_of_folds_is_refused_before_anything_is_written(
    ready: RunDir, few_films: Path, snapshot: Callable
) -> None:
    (first, *_) = lay_out_folds(ready, folds=FOLDS)
    write_text(first.run.last, "begun")
    before = snapshot(ready.path)
    with pytest.raises(UserError, match=f"--resume needs as many folds as were begun, {FOLDS}, found --folds 4"):
        run_all([few_films], ready, RECIPE, folds=4, resume=True)
    assert snapshot(ready.path) == before


def test_seeds_of_the_single_split_are_put_together(ready: RunDir) -> None:
    members = lay_out_seeds(ready, seeds=2)
    finish(members)
    found = collect_seeds(ready, members)
    values = [read_json(member.run.test)["overall"]["macro_f1"]["value"] for member in members]
    assert found["spread"]["macro_f1"]["values"] == values
    assert [one["run"] for one in found["each"]] == [".", f"seeds/{members[1].seed}"]
    assert found == read_json(FoldsDir(ready.path).seeds)


def test_figures_are_put_together_again_when_a_model_is_another_and_only_then(ready: RunDir) -> None:
    members = lay_out_folds(ready, folds=FOLDS)
    finish(members)
    collect_folds(ready, members, folds=FOLDS)
    before = FoldsDir(ready.path).numbers.stat().st_mtime_ns
    collect_folds(ready, members, folds=FOLDS)
    assert FoldsDir(ready.path).numbers.stat().st_mtime_ns == before
    write_json(members[1].run.test, read_json(members[1].run.test) | {"checkpoint_sha256": "another"})
    assert collect_folds(ready, members, folds=FOLDS)["each"][1]["checkpoint_sha256"] == "another"


def test_figures_of_models_that_are_being_exchanged_are_withdrawn(ready: RunDir) -> None:
    members = lay_out_folds(ready, folds=FOLDS)
    finish(members)
    for member in members:
        member.run.stamp("train", read_plan(member.run).key, seconds=0)
    collect_folds(ready, members, folds=FOLDS)
    withdraw_if_others(ready, members)
    assert STEP in ready.stamps()
    members[2].run.stamp("train", "another", seconds=0)
    withdraw_if_others(ready, members)
    assert STEP not in ready.stamps()
    assert ensemble(ready) == []


def test_predictions_of_other_films_or_sides_are_refused(ready: RunDir) -> None:
    members = lay_out_folds(ready, folds=FOLDS)
    finish(members)
    shutil.copy(members[0].run.predictions, members[1].run.predictions)
    with pytest.raises(UserError, match=r"2/predictions\.csv: must have the films and the test side of fold 2"):
        collect_folds(ready, members, folds=FOLDS)
    members[1].run.test.unlink()
    with pytest.raises(UserError, match=r"2/test\.json: not there yet; run first: vgg16-xray test "):
        collect_folds(ready, members, folds=FOLDS)


def test_the_interval_over_folds_is_students() -> None:
    # Three values: t(0.975, 2) = 4.3027 (any table of the t distribution).
    found = mean_with_interval([0.4, 0.5, 0.6])
    assert found["mean"] == pytest.approx(0.5)
    assert found["sd"] == pytest.approx(0.1)
    assert found["high"] == pytest.approx(0.5 + 4.3027 * 0.1 / 3**0.5, abs=1e-5)
    assert found["low"] == pytest.approx(0.5 - 4.3027 * 0.1 / 3**0.5, abs=1e-5)
    assert mean_with_interval([0.8, 0.9, 1.0])["high"] == 1
    assert mean_with_interval([0.0, 0.1, 0.2])["low"] == 0
    assert mean_with_interval([0.8, 0.9, 1.0], most=math.inf)["high"] > 1.1
    assert mean_with_interval([0.8, None, 1.0]) == {"mean": None, "sd": None, "low": None, "high": None}


def test_the_spread_names_seeds_and_extremes() -> None:
    measured = [{"overall": {"accuracy": {"value": v}, "macro_f1": {"value": v / 2}}} for v in (0.8, 0.9, 1.0)]
    found = spread([1, 2, 3], measured)
    assert found["training_seeds"] == [1, 2, 3]
    assert (found["accuracy"]["min"], found["accuracy"]["max"]) == (0.8, 1.0)
    assert found["macro_f1"]["sd"] == pytest.approx(0.05)


# -------------------------------------------------------------------------------------------------------- what is said


def test_folds_are_told_in_the_terminal_and_on_the_page(ready: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    members = lay_out_folds(ready, folds=FOLDS, seeds=2)
    finish(members)
    assert '<section id="folds"' not in write_report(ready).read_text("utf-8")
    found = collect_folds(ready, members, folds=FOLDS)
    say_folds(found, ready)
    said = capsys.readouterr().out
    pooled = figure(found["pooled"]["overall"]["accuracy"])
    rows = {line.split("│")[1].strip(): line for line in said.splitlines() if line.startswith("│")}
    assert {"1", "2", "3", "mean", "sd", "pooled"} <= set(rows)
    assert pooled in rows["pooled"]
    assert figure(found["each"][1]["overall"]["macro_f1"]) in rows["2"]
    assert "2 training seeds" in said
    sets = found["pooled"]["calibration"]["conformal"][0]
    assert f"hold the truth for {figure(sets['coverage'])}" in " ".join(said.split())
    page = write_report(ready).read_text("utf-8")
    assert '<section id="folds"' in page
    assert f"{100 * found['pooled']['overall']['accuracy']['value']:.1f} %" in page
    assert f"{100 * found['over_folds']['accuracy']['low']:.1f}–" in page
    assert "The seed of the training alone, the folds the same" in page
    assert "in each fold" in page
    assert "Score and probability, over the folds" in page
    assert page.count("Sets that hold the true class") == 1
    ready.unstamp(STEP)
    assert '<section id="folds"' not in write_report(ready).read_text("utf-8")


def test_the_cards_of_folds_tell_the_films_of_each_model_and_not_the_split_that_no_model_used(ready: RunDir) -> None:
    members = lay_out_folds(ready, folds=FOLDS)
    finish(members)
    found = collect_folds(ready, members, folds=FOLDS)
    facts = facts_of(ready)
    assert facts["partitions"].startswith(f"{FOLDS} folds by group")
    assert "80/10/10" not in facts["partitions"]
    of_training = sorted({fold["films"][TRAIN] for fold in found["each"]})
    assert f"train {' or '.join(map(str, of_training))}, " in facts["partitions"]
    assert "By side" not in facts["counts"]
    assert "on the out-of-fold films" in facts["calibration"]
    page = write_report(ready).read_text("utf-8")
    assert f"{FOLDS} by group, which do not use the split" in page
    assert f"report {ready.path.as_posix()}/folds/1" in page


def test_folds_do_not_speak_for_a_model_that_was_trained_otherwise_since(ready: RunDir) -> None:
    members = lay_out_folds(ready, folds=FOLDS)
    finish(members)
    collect_folds(ready, members, folds=FOLDS)
    assert finished_folds(ready) is not None
    initialise(ready, load_recipe("fast", epochs=7))
    # Nothing was trained since: the folds still speak, of themselves as they were trained.
    assert f"At most {RECIPE.epochs} epochs" in facts_of(ready)["training"]
    assert "they say nothing of it" not in write_report(ready).read_text("utf-8")
    ready.best.parent.mkdir(parents=True, exist_ok=True)
    ready.best.write_bytes(b"another model")
    assert finished_folds(ready) is None
    assert ensemble(ready) == []
    with pytest.raises(UserError, match="test"):
        facts_of(ready)  # of the single model, which was not tested
    assert "they say nothing of it" in write_report(ready).read_text("utf-8")


def test_folds_that_are_refused_are_not_told_as_the_runs_command(ready: RunDir, few_films: Path) -> None:
    before = ready.config.read_bytes()
    assert cli._run(["run", str(few_films), "--out", str(ready.path), "--recipe", "fast", "--folds", "100"]) == 2
    assert ready.config.read_bytes() == before


def test_a_figure_that_a_fold_does_not_define_is_a_dash(ready: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    members = lay_out_folds(ready, folds=FOLDS)
    finish(members)
    test = read_json(members[0].run.test)
    test["overall"]["macro_auroc"] = {"value": None, "low": None, "high": None}
    write_json(members[0].run.test, test)
    found = collect_folds(ready, members, folds=FOLDS)
    assert found["over_folds"]["macro_auroc"]["mean"] is None
    say_folds(found, ready)
    assert "not defined" in write_report(ready).read_text("utf-8")
    assert "–" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------- the whole command


def command(data: Path, run: RunDir, *options: str) -> list[str]:
    return ["run", str(data), "--out", str(run.path), *OPTIONS, *options]


@pytest.fixture(scope="module")
def folded(few_films: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished run of three folds, made by the command line. To be read only."""
    run = RunDir(tmp_path_factory.mktemp("folded") / "run")
    assert cli._run(command(few_films, run)) == 0
    return run


@pytest.mark.slow
def test_a_run_of_folds_trains_each_fold_and_nothing_besides(folded: RunDir) -> None:
    found = read_json(FoldsDir(folded.path).numbers)
    assert [fold["run"] for fold in found["each"]] == ["folds/1", "folds/2", "folds/3"]
    assert not folded.last.exists()
    for number in range(1, FOLDS + 1):
        fold = FoldsDir(folded.path).fold(number)
        for name in ("best", "history", "validation", "test", "predictions"):
            assert getattr(fold, name).stat().st_size > 0, name
    page = folded.report.read_text("utf-8")
    assert '<section id="folds"' in page
    assert "Together they named" in page
    assert "There is no result yet" not in page


@pytest.mark.slow
def test_a_second_run_does_nothing_and_one_moved_elsewhere_neither(
    folded: RunDir, few_films: Path, snapshot: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = str(read_config(folded)["run"]["command"])
    before = snapshot(folded.path)
    found = run_all([few_films], folded, RECIPE, folds=FOLDS, command=said)
    assert snapshot(folded.path) == before
    assert found.test is None
    assert found.folds == read_json(FoldsDir(folded.path).numbers)
    moved = RunDir(Path(shutil.copytree(folded.path, tmp_path / "moved", symlinks=True)))
    run_all([few_films], moved, RECIPE, folds=FOLDS, command=said)
    assert snapshot(moved.path) == before
    assert "train (done before)" in capsys.readouterr().out


#: `vgg16-xray` that stops at a named moment, so that a test can kill it just there.
DRIVER = (
    STOP_AT
    + """
import sys
from vgg16_xray import cli
from vgg16_xray.learn import fit
from vgg16_xray.steps import folds, test

fit.SAVE_EVERY_S = -1.0
owner, name, count = sys.argv.pop(1), sys.argv.pop(1), int(sys.argv.pop(1))
stop_at({"loop": fit._Loop, "folds": folds, "test": test}[owner], name, count)
sys.exit(cli.main())
"""
)
#: Laid out in part; inside fold 1; between fold 1 and 2; inside fold 2; between folds.csv and folds.json.
MOMENTS = [
    ("folds", "_derive", 2),
    ("loop", "_train_step", 2),
    ("test", "test", 1),
    ("loop", "_train_step", 1),
    ("folds", "write_text", 1),
]


@pytest.mark.slow
def test_killed_between_and_within_folds_it_ends_with_the_same_bytes(
    folded: RunDir, few_films: Path, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    for owner, name, count in MOMENTS:
        resume = ["--resume"] if FoldsDir(run.path).begun() else []
        arguments = [sys.executable, "-c", DRIVER, owner, name, str(count), *command(few_films, run, *resume)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line == "HERE\n":
                    os.kill(process.pid, signal.SIGKILL)
                    break
            _, errors = process.communicate(timeout=600)
        assert process.returncode == -signal.SIGKILL, f"never came to {name} {count}: {errors}"
        assert not FoldsDir(run.path).numbers.exists()
    run_all([few_films], run, RECIPE, folds=FOLDS, resume=True)
    for name in ("numbers", "table"):
        one, other = (getattr(FoldsDir(of.path), name) for of in (run, folded))
        assert one.read_bytes() == other.read_bytes(), name
    for number in range(1, FOLDS + 1):
        one, other = (FoldsDir(of.path).fold(number) for of in (run, folded))
        assert one.best.read_bytes() == other.best.read_bytes()


@pytest.mark.slow
def test_resume_of_folds_that_were_begun_otherwise_changes_nothing(
    folded: RunDir, few_films: Path, snapshot: Callable, tmp_path: Path
) -> None:
    before = snapshot(folded.path)
    with pytest.raises(UserError, match="--resume needs interrupted folds of the same recipe and seed"):
        run_all([few_films], folded, load_recipe("fast", epochs=1), folds=FOLDS, resume=True)
    assert snapshot(folded.path) == before
    with pytest.raises(UserError, match="--resume needs a training of a fold that was interrupted, found none"):
        run_all([few_films], RunDir(tmp_path / "new"), RECIPE, folds=FOLDS, resume=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_the_folds_together_answer_with_the_mean_of_their_probabilities(
    folded: RunDir, few_films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vgg16_xray.learn.engines import FrozenPart

    films = [decode(file) for file in sorted(few_films.glob("*/images/*.png"))[:3]]
    singles = [Predictor(FoldsDir(folded.path).fold(n).path).probabilities(films) for n in range(1, FOLDS + 1)]
    calls = []
    real = FrozenPart.__call__
    predictor = Predictor(folded.path)
    monkeypatch.setattr(FrozenPart, "__call__", lambda *a: calls.append(1) or real(*a))
    np.testing.assert_allclose(predictor.probabilities(films), np.mean(singles, axis=0), rtol=0, atol=1e-12)
    assert predictor.models == FOLDS
    assert len(calls) == 1, "the frozen part is the same and is run once"
    assert np.abs(singles[0] - singles[1]).max() > 1e-6


@pytest.mark.slow
def test_a_model_that_is_not_the_measured_one_is_refused(
    folded: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(Path(shutil.copytree(folded.path, tmp_path / "run", symlinks=True)))
    assert [model.name for model in ensemble(run)] == ["model.safetensors"] * FOLDS
    second = FoldsDir(run.path).fold(2)
    shutil.copy(FoldsDir(run.path).fold(1).best, second.best)
    with pytest.raises(
        UserError, match=r"2/checkpoints/best/.*: must be the model that folds\.json measured, found an"
    ):
        Predictor(run.path)
    second.best.unlink()
    with pytest.raises(UserError, match=r"folds\.json measured, found none"):
        Predictor(run.path)
    # A single model that was trained otherwise since then is what the run is.
    run.best.parent.mkdir(parents=True)
    shutil.copy(FoldsDir(run.path).fold(1).best, run.best)
    run.stamp("train", "", seconds=0)
    update_config(run, recipe={"epochs": 7})
    assert ensemble(run) == []
    assert Predictor(run.path).models == 1


@pytest.mark.slow
def test_seeds_of_the_single_split_by_the_command_line(
    few_films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "run")
    arguments = ["run", str(few_films), "--out", str(run.path), "--recipe", "fast", "--epochs", "1", "--seeds", "2"]
    assert cli._run(arguments) == 0
    found = read_json(FoldsDir(run.path).seeds)
    seed = found["spread"]["training_seeds"][0]
    other = FoldsDir(run.path).seed(seed + 1)
    assert read_manifest(other).equals(read_manifest(run))
    assert other.best.read_bytes() != run.best.read_bytes()
    assert found["each"][1]["overall"] == read_json(other.test)["overall"]
    assert f"2 training seeds ({seed}, {seed + 1}), the split the same: accuracy" in capsys.readouterr().out
    assert "The seed of the training alone" in run.report.read_text("utf-8")
