"""All steps in a row: twice the same, again for nothing, and only what changed."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vgg16_xray import cli
from vgg16_xray.config import load_recipe
from vgg16_xray.errors import UserError
from vgg16_xray.films.phantom import write_dataset
from vgg16_xray.pipeline import run_all
from vgg16_xray.rundir import AuditDir, RunDir
from vgg16_xray.steps import train as train_step

RECIPE = load_recipe("fast", epochs=2)


def do_not(*_: object, **__: object) -> None:
    pytest.fail("done again")


@pytest.fixture(scope="module")
def finished(few_films: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A whole run with its report, made by the command line."""
    out = tmp_path_factory.mktemp("pipeline") / "run"
    assert cli._run(["run", str(few_films), "--out", str(out), "--recipe", "fast", "--epochs", "2"]) == 0
    return RunDir(out)


@pytest.mark.slow
def test_a_run_leaves_every_file_of_the_design(finished: RunDir) -> None:
    for name in (
        *("config", "manifest", "split", "quarantine", "pixels", "layers", "history", "last", "best"),
        *("validation", "test", "readings", "predictions", "report"),
    ):
        assert getattr(finished, name).stat().st_size > 0, name
    assert len(list(finished.figures.glob("*.png"))) == 9
    assert set(finished.stamps()) == {"preprocess", "initialise", "train", "validate", "test", "audit", "report"}
    assert not list(finished.path.rglob("*.tmp"))


@pytest.mark.slow
def test_the_report_begins_with_the_verdict_of_the_audit(finished: RunDir) -> None:
    found = json.loads(AuditDir(finished.path).numbers.read_text("utf-8"))
    page = finished.report.read_text("utf-8")
    assert page.index(found["verdict"].capitalize()) < page.index('<section id="result"')
    assert 'href="audit.html"' in page
    assert AuditDir(finished.path).page.exists()


@pytest.mark.slow
def test_films_that_are_too_few_to_be_audited_are_reported_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path / "films", films=8, seed=1, films_per_patient=(1, 1), imbalance={"COVID": 1, "Normal": 1})
    run_all([tmp_path / "films"], RunDir(tmp_path / "run"), RECIPE)
    assert "the films were not audited:" in " ".join(capsys.readouterr().out.split())
    assert "The films were not audited" in RunDir(tmp_path / "run").report.read_text("utf-8")


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_the_same_seed_gives_the_same_model_and_numbers_elsewhere(
    finished: RunDir, few_films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = RunDir(tmp_path / "elsewhere")
    answer = run_all([few_films], other, RECIPE, command="vgg16-xray run")
    for name in ("best", "test", "predictions", "manifest", "pixels", "layers"):
        assert getattr(other, name).read_bytes() == getattr(finished, name).read_bytes(), name
    assert answer.test == json.loads(other.test.read_text())
    assert answer.report == other.report


@pytest.mark.slow
def test_a_second_run_does_nothing(
    finished: RunDir,
    few_films: Path,
    snapshot: Callable,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cli, "_command", lambda: _recorded(finished))
    before = snapshot(finished.path)
    assert cli._run(["run", str(few_films), "--out", str(finished.path), "--recipe", "fast", "--epochs", "2"]) == 0
    assert snapshot(finished.path) == before
    output = capsys.readouterr().out
    assert "preprocess (done before)" in output
    assert "train (done before): 2 epochs" in output
    assert output.splitlines()[-1] == f"report: {finished.report}"
    assert re.fullmatch(r"test accuracy [01]\.\d{3}( \([01]\.\d{3}–[01]\.\d{3}\))?", output.splitlines()[-2])


def _recorded(run: RunDir) -> str:
    from vgg16_xray.rundir import read_config

    return str(read_config(run)["run"]["command"])


@pytest.mark.slow
def test_only_what_is_missing_is_made_again(
    finished: RunDir, few_films: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Callable
) -> None:
    monkeypatch.setattr("vgg16_xray.steps.preprocess.decode_all", do_not)
    monkeypatch.setattr("vgg16_xray.learn.fit.fit", do_not)
    before = snapshot(finished.path)
    finished.report.unlink()
    (finished.figures / "roc.png").unlink()
    run_all([few_films], finished, RECIPE, command=_recorded(finished))
    after = snapshot(finished.path)
    drawn = {name for name in before if name.startswith(("figures/", "cards/"))} | {"report.html", "steps.json"}
    assert {name for name in before if after[name] != before[name]} <= drawn
    assert set(after) == set(before)
    assert after["figures/roc.png"][1] == before["figures/roc.png"][1]


@pytest.mark.slow
def test_resume_of_another_recipe_changes_nothing(finished: RunDir, few_films: Path, snapshot: Callable) -> None:
    before = snapshot(finished.path)
    with pytest.raises(UserError, match="found one of others"):
        run_all([few_films], finished, dataclasses.replace(RECIPE, head_rate=1e-3), resume=True, command="other")
    assert snapshot(finished.path) == before


@pytest.mark.slow
def test_another_recipe_does_only_the_training_again(
    finished: RunDir, few_films: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Callable
) -> None:
    monkeypatch.setattr("vgg16_xray.steps.preprocess.decode_all", do_not)
    monkeypatch.setattr("vgg16_xray.learn.features.ComputedFeatures.take", do_not)
    before = snapshot(finished.path)
    run_all([few_films], finished, dataclasses.replace(RECIPE, head_rate=1e-3), command=_recorded(finished))
    after = snapshot(finished.path)
    for name in ("pixels.npy", "manifest.parquet", "split.csv", "quarantine.csv", "layers.json"):
        assert after[name][1] == before[name][1], name
    for name in ("pixels.npy", "manifest.parquet"):
        assert after[name] == before[name], name
    assert after["checkpoints/best/model.safetensors"][1] != before["checkpoints/best/model.safetensors"][1]
    assert after["report.html"][1] != before["report.html"][1]
    (aside,) = (finished.path / "superseded").iterdir()
    assert (aside / "model.safetensors").read_bytes() == before["checkpoints/best/model.safetensors"][1]


def test_resume_with_nothing_there_is_refused_before_any_work(
    tmp_path: Path, few_films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vgg16_xray.steps.preprocess.decode_all", do_not)
    with pytest.raises(UserError, match="--resume needs a training that was interrupted, found none"):
        run_all([few_films], RunDir(tmp_path / "new"), RECIPE, resume=True)
    assert not (tmp_path / "new").exists()


def test_two_runs_at_once_are_refused(tmp_path: Path, few_films: Path) -> None:
    run = RunDir(tmp_path / "run")
    with run.alone(), pytest.raises(UserError, match="one process at a time"):
        run_all([few_films], run, RECIPE)


def test_the_steps_keep_their_names() -> None:
    assert train_step.STEP == "train"
