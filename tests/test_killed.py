"""A whole run with folds as a process that is killed at ten moments that nobody chose, and on a disk that is full."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vgg16_xray.rundir import CACHE_VARIABLE

#: `vgg16-xray` with small shards, and a state that is saved after every step: more moments in a shorter run.
DRIVER = """
import sys
from vgg16_xray import cli
from vgg16_xray.learn import featurestore, fit

fit.SAVE_EVERY_S, featurestore.SHARD = -1.0, featurestore.CHUNK
sys.exit(cli.main())
"""
KILLS, FOLDS = 10, 3
#: What changes the bytes of a model is drawn in every step; pooled features keep the steps short.
RECIPE = """
name = "killed"
description = "Everything random that a step has."
head = "gap"
train_from = "head"
preprocessing = "caffe"
epochs = 6
batch = 8
optimizer = "adamw"
head_rate = 2e-3
schedule = "one-cycle"
class_weights = "sqrt"
sampling = "sqrt"
mixup = 0.2
ema = 0.9
dropout = 0.3
patience = 4

[augmentation]
rotation = 5.0
views = 1
"""


def start(arguments: list[str], cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {CACHE_VARIABLE: str(cache)},
    )


def hashes(run: Path) -> dict[str, str]:
    """Of what a run's folds left: the models, what they say, and the figures."""
    files = [*run.glob("folds/*/checkpoints/best/*"), *run.glob("folds/*/predictions.csv"), run / "folds.csv"]
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in sorted(files)}


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_ends_with_the_same_bytes(
    tmp_path: Path, drawn_films: Path, new_cache: Callable[[Path], Path]
) -> None:
    (tmp_path / "killed.toml").write_text(RECIPE, "utf-8")
    options = ["--recipe", str(tmp_path / "killed.toml"), "--folds", str(FOLDS)]

    def arguments(name: str) -> list[str]:
        return ["run", str(drawn_films), "--out", str(tmp_path / name), *options]

    for name in ("cache-whole", "cache-cut"):
        new_cache(tmp_path / name)  # To race the engines anew would put each kill off by that.
    started = time.monotonic()
    whole = start(arguments("whole"), tmp_path / "cache-whole")
    assert whole.stdout is not None
    until_features = next(time.monotonic() - started for line in whole.stdout if line.startswith("features at"))
    output, _ = whole.communicate(timeout=600)
    after = time.monotonic() - started - until_features
    assert whole.returncode == 0, output

    rng = np.random.default_rng(1)
    for number in range(KILLS):
        process = start(arguments("cut"), tmp_path / "cache-cut")
        time.sleep(until_features + after * rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
        print(f"kill {number + 1}: {output.strip().splitlines()[-1:]}")
    process = start(arguments("cut"), tmp_path / "cache-cut")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    models = hashes(tmp_path / "whole")
    assert len(models) == 2 * FOLDS + 1
    assert hashes(tmp_path / "cut") == models
    assert not list(tmp_path.glob("c*/**/*.tmp*")), "what a kill left half-written is swept"
