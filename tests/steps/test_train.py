"""Step 4 as a real process that is interrupted and killed, and what it leaves, sets aside and refuses."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from stopping import STOP_AT

from vgg16_xray.config import Recipe, load_recipe, recipe_from
from vgg16_xray.errors import UserError
from vgg16_xray.learn.checkpoint import load_tensors
from vgg16_xray.learn.features import ComputedFeatures
from vgg16_xray.rundir import CACHE_VARIABLE, CacheDir, RunDir, read_config, update_config
from vgg16_xray.steps.initialise import initialise, read_plan
from vgg16_xray.steps.preprocess import preprocess, read_manifest
from vgg16_xray.steps.train import Features, assemble, open_pixels, read_history, rows_of, train

#: `vgg16-xray train` that saves after every step and stops at a named moment, so that a test can kill it just there.
DRIVER = (
    STOP_AT
    + """
import sys
from vgg16_xray import cli
from vgg16_xray.learn import featurestore, fit

fit.SAVE_EVERY_S, featurestore.SHARD = -1.0, featurestore.CHUNK
moment, count = sys.argv.pop(1), int(sys.argv.pop(1))
if moment == "features":  # a shard is kept, the next is not yet computed
    stop_at(featurestore._Maker, "_make", count)
elif moment == "step":  # in the middle of an epoch, the step not yet saved
    stop_at(fit._Loop, "_train_step", count)
elif moment == "best":  # between two epochs: the best model is saved, history and state are not
    stop_at(fit, "save_model", count)
elif moment == "history":  # between two epochs: all but the state is saved
    stop_at(fit, "_write_history", count)
elif moment == "epoch":  # between two epochs: all is saved
    stop_at(fit._Loop, "finish_epoch", count)
sys.exit(cli.main())
"""
)


def start(run: RunDir, moment: str, count: int, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, moment, str(count), "train", str(run.path), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stopped(run: RunDir, moment: str, count: int, number: signal.Signals, *options: str) -> str:
    """Train until a moment, send a signal there, and return what stood on standard error."""
    process = start(run, moment, count, *options)
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line == "HERE\n":
            os.kill(process.pid, number)
            break
    _, errors = process.communicate(timeout=600)
    assert "HERE\n" in seen, f"never came to {moment} {count}: {''.join(seen)}{errors}"
    assert process.returncode == (130 if number == signal.SIGINT else -number), errors
    return errors


def finished(run: RunDir, *options: str) -> str:
    process = start(run, "never", 0, *options)
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return output


def result(run: RunDir) -> tuple[object, ...]:
    """What a training leaves, byte for byte, the seconds left out; as hashes, which a failing test can show."""

    def digest(data: bytes) -> str:
        return hashlib.sha256(data).hexdigest()[:16]

    tensors, header = load_tensors(run.last)
    header["sums"].pop("seconds")
    rows = list(csv.DictReader(run.history.open()))
    for row in [*header["history"], *rows]:
        del row["seconds"]
    last = {name: digest(tensor.numpy().tobytes()) for name, tensor in tensors.items()}
    return digest(run.best.read_bytes()), last, json.dumps(header), rows


#: Moments in the order in which they are met; the training is gone on with after each.
MOMENTS = {
    "fast": [
        ("features", 1, signal.SIGKILL),
        ("step", 1, signal.SIGINT),
        ("step", 2, signal.SIGKILL),
        ("epoch", 1, signal.SIGINT),
        ("history", 1, signal.SIGKILL),
    ],
    "block5": [("features", 1, signal.SIGINT), ("step", 2, signal.SIGKILL), ("best", 1, signal.SIGKILL)],
    "on-the-fly": [("step", 2, signal.SIGKILL), ("epoch", 1, signal.SIGINT)],
}


def interrupted_again_and_again(run: RunDir, moments: list[tuple[str, int, signal.Signals]]) -> None:
    for moment, count, number in moments:
        options = ["--resume"] if run.last.exists() else []
        errors = stopped(run, moment, count, number, *options)
        if number == signal.SIGINT:
            assert errors.strip().splitlines()[-1] == (
                "vgg16-xray: interrupted; what is finished is kept, and the same command goes on from there"
            )
            assert "Traceback" not in errors
        assert not [file for file in run.path.rglob("*.tmp") if number == signal.SIGINT]
        assert "train" not in run.stamps()
    output = finished(run, "--resume")
    assert "resumed at epoch " in output


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_fast_training_killed_and_resumed_is_the_undisturbed_one(small_run: RunDir, initialised_run: RunDir) -> None:
    interrupted_again_and_again(initialised_run, MOMENTS["fast"])
    assert result(initialised_run) == result(small_run)


FINE_TUNED = load_recipe("default", epochs=2).as_dict() | {"name": "block5", "batch": 6, "mixup": 0.4, "ema": 0.9}
ON_THE_FLY = load_recipe("notebook", epochs=2).as_dict() | {"name": "on-the-fly", "batch": 8}


@pytest.mark.slow
@pytest.mark.parametrize("values", [FINE_TUNED, ON_THE_FLY], ids=lambda values: values["name"])
def test_training_killed_and_resumed_is_the_undisturbed_one(
    few_films: Path, tmp_path: Path, values: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = RunDir(tmp_path / "whole"), RunDir(tmp_path / "cut")
    preprocess([few_films], whole)
    initialise(whole, recipe_from(values, where="test"))
    shutil.copytree(whole.path, cut.path)
    train(whole)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    interrupted_again_and_again(cut, MOMENTS[str(values["name"])])
    assert result(cut) == result(whole)


def test_a_finished_training_is_not_done_again(copy_of_run: RunDir, snapshot: Callable) -> None:
    before = snapshot(copy_of_run.path)
    assert train(copy_of_run).already_done
    assert train(copy_of_run, resume=True).already_done
    assert snapshot(copy_of_run.path) == before


def refusal(run: RunDir, **options: bool) -> str:
    with pytest.raises(UserError) as caught:
        train(run, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_resume_with_nothing_to_resume_is_refused(initialised_run: RunDir, snapshot: Callable) -> None:
    before = snapshot(initialised_run.path)
    assert refusal(initialised_run, resume=True).endswith("--resume needs a training that was interrupted, found none")
    assert snapshot(initialised_run.path) == before


def test_resume_of_another_recipe_is_refused_before_anything_changes(copy_of_run: RunDir, snapshot: Callable) -> None:
    other = load_recipe("fast", epochs=1)
    before = snapshot(copy_of_run.path)
    with pytest.raises(UserError, match="found one of others; without --resume a new training begins"):
        initialise(copy_of_run, other, resume=True)
    assert snapshot(copy_of_run.path) == before
    initialise(copy_of_run, other)
    before = snapshot(copy_of_run.path)
    assert "found one of others; without --resume a new training begins" in refusal(copy_of_run, resume=True)
    assert snapshot(copy_of_run.path) == before


def retrain(run: RunDir, recipe: Recipe) -> None:
    initialise(run, recipe)
    train(run)


def test_another_training_is_set_aside_and_the_features_are_kept(
    copy_of_run: RunDir, small_run: RunDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = read_plan(copy_of_run).key
    monkeypatch.setattr(ComputedFeatures, "take", lambda *_: pytest.fail("computed again"))
    retrain(copy_of_run, load_recipe("fast", epochs=1, dropout=0.2))
    aside = copy_of_run.path / "superseded" / old
    assert str(aside) in capsys.readouterr().out
    kept = ("last", "best", "history", "validation", "test", "predictions")
    for name in kept:
        file = getattr(small_run, name)
        assert (aside / file.name).read_bytes() == file.read_bytes()
    assert not copy_of_run.test.exists(), "numbers of the old model do not stand beside the new one"
    assert len(list(csv.DictReader(copy_of_run.history.open()))) == 1
    # There and back: what was set aside before is not overwritten.
    retrain(copy_of_run, load_recipe("fast", epochs=3))
    assert copy_of_run.best.read_bytes() == small_run.best.read_bytes()
    retrain(copy_of_run, load_recipe("fast", epochs=1, dropout=0.2))
    assert (aside / small_run.test.name).exists()
    assert (aside.with_name(f"{old}-2") / small_run.best.name).read_bytes() == small_run.best.read_bytes()


def test_a_finished_training_given_more_epochs_goes_on_wherever_the_run_lies(
    copy_of_run: RunDir, tmp_path: Path, small_run: RunDir
) -> None:
    before = read_history(small_run.history)
    shutil.rmtree(tmp_path / "moved", ignore_errors=True)
    moved = RunDir(copy_of_run.path.rename(tmp_path / "moved"))
    retrain(moved, load_recipe("fast", epochs=5))
    after = read_history(moved.history)
    assert after[: len(before)] == before
    assert [row["epoch"] for row in after] == [1, 2, 3, 4, 5]
    assert not (moved.path / "superseded").exists()
    assert read_plan(moved).cycles == (3, 5)
    assert read_history(moved.history) == after
    # Asked for again it is there already; fewer epochs than it has are another training.
    key = read_plan(moved).key
    retrain(moved, load_recipe("fast", epochs=5))
    assert (read_plan(moved).key, read_history(moved.history)) == (key, after)
    retrain(moved, load_recipe("fast", epochs=3))
    assert (moved.path / "superseded" / key).exists()
    assert read_plan(moved).cycles == (3,)
    assert moved.best.read_bytes() == small_run.best.read_bytes()


def test_more_epochs_before_any_training_are_a_single_cycle(initialised_run: RunDir) -> None:
    initialise(initialised_run, load_recipe("fast", epochs=9))
    assert read_plan(initialised_run).cycles == (9,)


def test_a_set_aside_that_was_killed_goes_on(copy_of_run: RunDir, small_run: RunDir) -> None:
    aside = copy_of_run.path / "superseded" / read_plan(copy_of_run).key
    aside.mkdir(parents=True)
    copy_of_run.history.replace(aside / copy_of_run.history.name)
    retrain(copy_of_run, load_recipe("fast", epochs=1))
    assert (aside / "model.safetensors").read_bytes() == small_run.best.read_bytes()
    assert (aside / "state.safetensors").read_bytes() == small_run.last.read_bytes()


@pytest.mark.parametrize("moves", range(6))
def test_a_set_aside_that_is_killed_anywhere_loses_nothing(
    copy_of_run: RunDir, small_run: RunDir, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    initialise(copy_of_run, load_recipe("fast", epochs=1))
    replace, done = Path.replace, 0

    def killed(self: Path, target: Path) -> Path:
        nonlocal done
        if "superseded" in target.parts:
            if done == moves:
                raise KeyboardInterrupt
            done += 1
        return replace(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        train(copy_of_run)
    assert "train" not in copy_of_run.stamps(), "what is left is not taken for a finished training"
    train(copy_of_run)
    aside = copy_of_run.path / "superseded" / json.loads(small_run.steps.read_text())["train"]["key"]
    for name in ("history", "best", "validation", "test", "predictions", "last"):
        file = getattr(small_run, name)
        assert (aside / file.name).read_bytes() == file.read_bytes(), name


def test_a_damaged_state_is_one_line_that_says_what_to_do(copy_of_run: RunDir) -> None:
    copy_of_run.history.unlink()
    copy_of_run.last.write_bytes(copy_of_run.last.read_bytes()[:1000])
    best = copy_of_run.best.read_bytes()
    message = refusal(copy_of_run)
    assert message.startswith(f"{copy_of_run.last}: must be a whole safetensors file, found damage")
    assert "delete or move it" in message
    assert copy_of_run.best.read_bytes() == best
    copy_of_run.last.unlink()
    train(copy_of_run)
    assert copy_of_run.best.read_bytes() == best


def test_a_best_model_that_is_gone_is_trained_again(copy_of_run: RunDir, small_run: RunDir) -> None:
    copy_of_run.best.unlink()
    assert not train(copy_of_run).already_done
    assert copy_of_run.best.read_bytes() == small_run.best.read_bytes()


def test_a_history_that_is_gone_is_not_trained_again(copy_of_run: RunDir, small_run: RunDir) -> None:
    copy_of_run.history.unlink()
    state = copy_of_run.last.read_bytes()
    train(copy_of_run)
    assert copy_of_run.last.read_bytes() == state
    assert copy_of_run.history.read_bytes() == small_run.history.read_bytes()


def test_weights_that_changed_since_step_3_are_refused(initialised_run: RunDir, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from vgg16_xray.learn.weights import load_base

    tensors = {name: tensor.half() for name, tensor in load_base().tensors.items()}
    weights = tmp_path / "mine.safetensors"
    save_file(tensors, weights, metadata={"preprocessing": "caffe"})
    initialise(initialised_run, load_recipe("fast", epochs=1), weights=weights)
    save_file(tensors | {"features.0.bias": torch.zeros(64).half()}, weights, metadata={"preprocessing": "caffe"})
    message = refusal(initialised_run)
    assert message.startswith(f"{weights}: must be the weights that step 3 wrote down, found others")


def test_a_step_before_that_is_missing_is_named(tmp_path: Path, few_films: Path) -> None:
    run = RunDir(tmp_path / "run")
    preprocess([few_films], run)
    assert "step 'initialise' must be finished first" in refusal(run)


def test_initialise_again_writes_nothing_and_keeps_the_engine(copy_of_run: RunDir, snapshot: Callable) -> None:
    before = snapshot(copy_of_run.path)
    recipe = load_recipe("fast", epochs=3)
    for _ in range(2):
        engine = initialise(copy_of_run, recipe).engine
    assert engine.reason.count("recorded in the run") == 1
    assert snapshot(copy_of_run.path) == before
    assert initialise(copy_of_run, recipe, engine="torch-float32").engine.name == "torch-float32"
    assert initialise(copy_of_run, recipe).engine.name == "torch-float32"


def test_a_run_toml_that_was_damaged_by_hand_is_one_line(copy_of_run: RunDir) -> None:
    text = copy_of_run.config.read_text()
    for old, new in (("sha256 = ", "sha = "), ("[weights]", "[wages]"), ('head = "gap"', 'head = "cap"')):
        copy_of_run.config.write_text(text.replace(old, new))
        assert str(copy_of_run.config) in refusal(copy_of_run) or "recipe.head" in refusal(copy_of_run)


def initialised(few_films: Path, at: Path, **changes: object) -> RunDir:
    run = RunDir(at)
    preprocess([few_films], run)
    initialise(run, recipe_from(load_recipe("fast", epochs=1).as_dict() | changes, where="test"))
    return run


def features_of(run: RunDir, manifest: pd.DataFrame | None = None) -> Features:
    plan = read_plan(run)
    manifest = read_manifest(run) if manifest is None else manifest
    model = assemble(plan.recipe, classes=len(plan.labels), weights=None, seed=plan.seed)
    return Features(run, plan, model, open_pixels(run, manifest), manifest)


VIEWS = {"zoom": 0.2, "flip": True, "views": 2}


def test_stored_views_are_drawn_once_and_each_film_gets_one_of_them(
    few_films: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = initialised(few_films, tmp_path / "run", augmentation=VIEWS)
    manifest = read_manifest(run)
    features = features_of(run)
    epochs = features.for_training()
    assert len(CacheDir(own_cache).stores()) == 3, "films as they are, and two views"
    rows = rows_of(manifest, "train")
    views = [features._view(number).take(rows) for number in range(3)]
    seen = []
    for epoch in range(3):
        shuffled = np.random.default_rng(epoch).permutation(len(rows))
        taken = epochs(epoch).take(rows[shuffled])[np.argsort(shuffled)]
        which = [[torch.equal(film, view[i]) for view in views].index(True) for i, film in enumerate(taken)]
        assert len(set(which)) > 1
        seen.append(which)
    assert seen[0] != seen[1] != seen[2]
    # Of a view training films alone can be asked for, so that no other film can come in by it.
    other = rows_of(manifest, "validation")
    with pytest.raises(KeyError):
        features._view(1).take(other)
    monkeypatch.setattr(ComputedFeatures, "take", lambda *_: pytest.fail("computed again"))
    features.for_training()
    # A fold has another split, another recipe another number of views: both find what is there.
    manifest["split"] = np.roll(manifest["split"], 3)
    features_of(run, manifest).for_training()
    features_of(initialised(few_films, tmp_path / "other", augmentation=VIEWS | {"views": 1})).for_training()


@pytest.mark.usefixtures("own_cache")
def test_a_second_run_on_the_same_films_computes_nothing(
    few_films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(initialised(few_films, tmp_path / "one"))
    monkeypatch.setattr(ComputedFeatures, "take", lambda *_: pytest.fail("computed again"))
    train(initialised(few_films, tmp_path / "two", head_rate=1e-3, mixup=0.2))


def test_a_store_is_named_by_all_that_its_features_depend_on(few_films: Path, tmp_path: Path, own_cache: Path) -> None:
    class Nothing:
        def __init__(self, *shape: int) -> None:
            self.shape = shape

        def take(self, rows: np.ndarray) -> torch.Tensor:
            return torch.zeros(len(rows), *self.shape)

    found = {}
    for number, (changes, shape) in enumerate(
        (
            ({"preprocessing": "caffe-half", "blocks": 4}, (1024, 1, 1)),
            ({"preprocessing": "caffe-half"}, (1024, 1, 1)),
            ({"blocks": 4}, (1024, 1, 1)),
            ({}, (1024, 1, 1)),
            ({"preprocessing": "torch"}, (1024, 1, 1)),
            ({"head": "linear"}, (512, 7, 7)),
            ({"head": "vgg"}, (512, 7, 7)),
            ({"train_from": "block5", "base_rate": 1e-4}, (512, 14, 14)),
            ({"train_from": "block4", "base_rate": 1e-4}, (256, 28, 28)),
            ({"train_from": "block4", "base_rate": 1e-4, "blocks": 4}, (256, 28, 28)),
            ({"train_from": "block4", "base_rate": 1e-4, "preprocessing": "caffe-half"}, (256, 14, 14)),
            ({"train_from": "block3", "base_rate": 1e-4}, (128, 56, 56)),
        )
    ):
        whole = {"blocks": 5, "preprocessing": "caffe"}
        features = features_of(initialised(few_films, tmp_path / str(number), **whole | changes))
        before = {store.path for store in CacheDir(own_cache).stores()}
        features._store(Nothing(*shape), None, "as they are")
        made = [store for store in CacheDir(own_cache).stores() if store.path not in before]
        found[number] = [json.loads(store.description.read_text())["bytes"] // 20 for store in made]
    pooled, maps = [[2048]] * 5, [[50_176], [], [200_704], [401_408], [], [100_352], [802_816]]
    assert list(found.values()) == [*pooled, *maps], "head vgg reads what linear reads, four blocks are cut as five are"
    names = [store.path.name.rpartition("-")[0] for store in CacheDir(own_cache).stores()]
    both = ["block4", "block4", "block5", "head", *["head-pooled"] * 3, *["head-pooled-4-blocks"] * 2]
    assert sorted(names) == ["block3", *both]


def test_the_device_is_recorded_and_no_model_depends_on_it(initialised_run: RunDir) -> None:
    plan = read_plan(initialised_run)
    recorded = read_config(initialised_run)["device"]
    assert recorded == {"name": plan.device.name, "reason": plan.device.reason}
    update_config(initialised_run, device={"name": "another", "reason": "a run that came from elsewhere"})
    moved = read_plan(initialised_run)
    assert moved.device.name in {"cpu", "cuda", "mps"}
    assert moved.key == plan.key, "the training goes on"


@pytest.mark.slow
def test_an_epoch_of_best_trains_every_layer(few_films: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    preprocess([few_films], run)
    values = load_recipe("best").as_dict() | {"epochs": 1, "head_epochs": 0, "batch": 8}
    initialise(run, recipe_from(values, where="test"), device="cpu")
    (row,) = train(run).history
    assert np.isfinite(row["train_loss"])
    plan = read_plan(run)
    before = assemble(plan.recipe, classes=2, weights=None, seed=plan.seed).state_dict()
    after, _ = load_tensors(run.last)
    assert sum(name.startswith("features.") for name in before) == 26
    for name, tensor in before.items():
        if not name.endswith((".mean", ".deviation")):
            assert not torch.equal(after[f"model.{name}"], tensor), name
