"""Several processes under torchrun and accelerate: the same training as one, also when one of them is killed."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vgg16_xray import cli, ranks
from vgg16_xray.config import load_recipe, recipe_from
from vgg16_xray.learn import fit as fitting
from vgg16_xray.learn.checkpoint import load_header, load_tensors
from vgg16_xray.learn.heads import Dropout
from vgg16_xray.rundir import CACHE_VARIABLE, FoldsDir, RunDir
from vgg16_xray.steps.initialise import initialise
from vgg16_xray.steps.preprocess import preprocess
from vgg16_xray.steps.train import train

#: All that is random in a step; 16 films in steps of 5, 5, 5 and 1: the last leaves a rank without a film.
RECIPE = recipe_from(
    load_recipe("fast", epochs=3).as_dict()
    | {"name": "all", "batch": 5, "mixup": 0.4, "ema": 0.9, "dropout": 0.4, "label_smoothing": 0.05},
    where="test",
)
#: `vgg16-xray` as a rank that makes small shards, saves after every step, may be slow, and says who made what.
DRIVER = """
import os, sys, time
from pathlib import Path
from vgg16_xray import cli
from vgg16_xray.learn import featurestore, fit

notes, seconds = Path(sys.argv.pop(1)), float(sys.argv.pop(1))
rank = os.environ["RANK"]
(notes / f"pid-{rank}").write_text(str(os.getpid()))
fit.SAVE_EVERY_S, featurestore.SHARD, featurestore.CHUNK = -1.0, 4, 4
make, step = featurestore._Maker._make, fit._Loop._train_step

def noted_make(self, number, advance):
    time.sleep(0.3)
    (notes / f"shard-{number}-by-{rank}").touch()
    make(self, number, advance)

def slow_step(self, source, rows):
    time.sleep(seconds)
    step(self, source, rows)

featurestore._Maker._make, fit._Loop._train_step = noted_make, slow_step
cli.main()
"""
TORCHRUN = ("torch.distributed.run", "--nproc-per-node", "2", "--master-port")
#: Without a GPU it needs to be told that there are several processes.
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port")


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, few_films: Path) -> RunDir:
    """Steps 2 and 3 finished on 20 films of two classes."""
    run = RunDir(tmp_path_factory.mktemp("ready") / "run")
    preprocess([few_films], run)
    initialise(run, RECIPE, engine="torch-float32")
    return run


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, ready: RunDir) -> RunDir:
    """The same trained by one process."""
    run = RunDir(Path(shutil.copytree(ready.path, tmp_path_factory.mktemp("alone") / "run")))
    train(run)
    return run


@pytest.fixture
def run(tmp_path: Path, ready: RunDir) -> RunDir:
    return RunDir(Path(shutil.copytree(ready.path, tmp_path / "run")))


def free_port() -> str:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def launch(
    notes: Path, *command: str, launcher: tuple[str, ...] = TORCHRUN, pace: float = 0.0
) -> subprocess.Popen[str]:
    notes.mkdir(exist_ok=True)
    driver = notes / "driver.py"
    driver.write_text(DRIVER)
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, free_port(), str(driver), str(notes), str(pace), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finished(process: subprocess.Popen[str]) -> tuple[str, str]:
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, output + errors
    return output, errors


def said(errors: str) -> list[str]:
    return [line for line in errors.splitlines() if line.startswith("vgg16-xray: ")]


def assert_same_training(run: RunDir, other: RunDir) -> None:
    ours, theirs = (list(csv.DictReader(each.history.open())) for each in (run, other))
    assert len(ours) == len(theirs) == RECIPE.epochs
    for a, b in zip(ours, theirs, strict=True):
        for name in a.keys() - {"seconds"}:
            assert float(a[name]) == pytest.approx(float(b[name]), rel=2e-5, abs=1e-6), name
    (tensors, _), (others, _) = load_tensors(run.last), load_tensors(other.last)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-3, atol=2e-5, msg=lambda text, name=name: name + text)


@pytest.mark.slow
def test_two_ranks_share_the_features_and_train_as_one_process_would(
    run: RunDir, alone: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    output, errors = finished(launch(tmp_path / "notes", "train", str(run.path)))
    assert_same_training(run, alone)
    made = [note.name.split("-") for note in (tmp_path / "notes").glob("shard-*")]
    assert sorted(int(number) for _, number, _, _ in made) == [0, 1, 2, 3, 4], "each shard by one rank"
    assert {rank for *_, rank in made} == {"0", "1"}
    assert output.count("epoch  1 of 3") == output.count("epoch  3 of 3") == 1, "the first rank alone prints"
    assert not said(errors)
    # Measured by both, written by one, and as one process measures it.
    finished(launch(tmp_path / "notes", "validate", str(run.path)))
    measured = json.loads(run.validation.read_text())
    history = list(csv.DictReader(run.history.open()))
    assert measured["overall"]["accuracy"]["value"] == pytest.approx(
        float(history[measured["epoch"] - 1]["validation_accuracy"])
    )


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_stops_all_with_one_line_and_one_process_goes_on(
    run: RunDir, alone: RunDir, tmp_path: Path, killed: int
) -> None:
    notes = tmp_path / "notes"
    process = launch(notes, "train", str(run.path), pace=0.5)
    until = time.monotonic() + 900
    while not (run.last.exists() and load_header(run.last)["epoch"] == 1 and load_header(run.last)["step"] >= 1):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
    os.kill(int((notes / f"pid-{killed}").read_text()), signal.SIGKILL)
    began = time.monotonic()
    _, errors = process.communicate(timeout=120)
    assert time.monotonic() - began < 60
    assert process.returncode != 0
    (line,) = said(errors)
    assert "what was saved is kept" in line
    assert "with any number of processes" in line
    assert not list(run.path.rglob("*.tmp"))
    train(run, resume=True)
    assert_same_training(run, alone)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_ranks_go_on_with_what_one_process_began(
    run: RunDir, alone: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: tuple[str, ...]
) -> None:
    pytest.importorskip(launcher[0].partition(".")[0])
    step, steps = fitting._Loop._train_step, 0

    def stops(*arguments: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 7:
            raise KeyboardInterrupt
        step(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(fitting, "SAVE_EVERY_S", -1.0)
        patch.setattr(fitting._Loop, "_train_step", stops)
        train(run)
    output, _ = finished(launch(tmp_path / "notes", "train", str(run.path), "--resume", launcher=launcher))
    assert "resumed at epoch 2, step 2" in output
    assert_same_training(run, alone)


@pytest.mark.slow
def test_two_ranks_make_the_folds_of_one_process(tmp_path: Path, few_films: Path) -> None:
    asked = ("run", str(few_films), "--recipe", "fast", "--epochs", "2", "--folds", "3", "--engine", "torch-float32")
    output, errors = finished(launch(tmp_path / "notes", *asked, "--out", str(tmp_path / "two")))
    assert not said(errors)
    assert output.count("out-of-fold accuracy") == 1
    assert cli._run([*asked, "--out", str(tmp_path / "one")]) == 0
    two, one = (list(csv.DictReader(FoldsDir(tmp_path / name).table.open())) for name in ("two", "one"))
    assert [row["path"] for row in two] == [row["path"] for row in one]
    for ours, theirs in zip(two, one, strict=True):
        for name, value in theirs.items():
            if name.startswith("p_"):
                assert float(ours[name]) == pytest.approx(float(value), abs=2e-4)


@pytest.mark.slow
def test_an_error_of_the_ranks_is_said_once(run: RunDir, tmp_path: Path) -> None:
    process = launch(tmp_path / "notes", "train", str(run.path), "--resume")
    _, errors = process.communicate(timeout=900)
    assert process.returncode != 0
    (line,) = said(errors)
    assert "--resume needs a training that was interrupted, found none" in line


def test_a_command_that_ranks_do_not_share_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in zip(ranks.VARIABLES, ("0", "2", "127.0.0.1", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert cli._run(["report", "runs/none"]) == 2
    assert capsys.readouterr().err == (
        "vgg16-xray: vgg16-xray report: must be started once, found 2 processes of a launcher; several processes share "
        "run, train, validate, test\n"
    )
    monkeypatch.setenv("WORLD_SIZE", "two")
    assert cli._run(["train", "runs/none"]) == 2
    assert "WORLD_SIZE: must be a number of processes, found 'two'" in capsys.readouterr().err


@pytest.mark.parametrize("films", range(12))
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_the_parts_of_a_step_are_its_films(films: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "size", lambda: size)
    parts = []
    for rank in range(size):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        parts.append(np.arange(films)[ranks.part_of(films)])
    assert np.array_equal(np.concatenate(parts), np.arange(films))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_what_ranks_did_in_turn_comes_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    items = list(range(8))
    monkeypatch.setattr(ranks, "size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        shares.append(ranks.mine_of(items))
    monkeypatch.setattr(ranks, "gather", lambda _: shares)
    assert ranks.all_of(shares[0]) == items


def test_dropout_of_a_part_is_the_part_of_the_dropout() -> None:
    ours, theirs = Dropout(0.3), torch.nn.Dropout(0.3)
    x = torch.randn(7, 64)
    torch.manual_seed(1)
    whole = theirs(x)
    for part in (slice(None), slice(0, 3), slice(3, 7)):
        ours.draw_for(7, part)
        torch.manual_seed(1)
        assert torch.equal(ours(x[part]), whole[part])
    assert torch.equal(ours.eval()(x), x)
    torch.manual_seed(1)
    assert torch.equal(Dropout(0.3)(x), whole), "whoever names no part has all films"


def test_only_what_a_lost_rank_causes_is_called_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "_group", dataclasses.replace(FAKE))
    with pytest.raises(ranks.RankLost, match="one of the 2 processes of this run is gone"), ranks.noticing():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711")
    with pytest.raises(RuntimeError, match="out of memory"), ranks.noticing():
        raise RuntimeError("CUDA out of memory")


FAKE = ranks._Group(rank=1, size=2, store=None, waiting=None, stepping=None, calls=iter(range(9)))
