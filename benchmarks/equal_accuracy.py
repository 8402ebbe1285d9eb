"""Time to equal validation accuracy: the whole of `vgg16-xray run` against the notebook's Keras loop.

    python benchmarks/equal_accuracy.py --keras .venv-keras/bin/python [--train 1800] [--validation 600]

The same films, as files, on the same cores, in turn: ours before Keras' first epoch, behind its fourth, behind its
last. What counts is in docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import csv
import re
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from table import Row, hand_over, words
from timed import Keras, Timed, vgg16_xray

from films import Dealt, deal
from vgg16_xray.config import load_recipe
from vgg16_xray.films.decode import SIZE
from vgg16_xray.learn.engines import processor_features
from vgg16_xray.learn.weights import side_seen
from vgg16_xray.rundir import CacheDir, RunDir, read_config

EPOCH = re.compile(r"epoch +(\d+) of .*validation loss \S+ accuracy (\S+)")


@dataclass(frozen=True, kw_only=True)
class Reached:
    """When validation accuracy was first at least what was asked for."""

    epoch: int
    seconds: float
    core_seconds: float


@dataclass(frozen=True, kw_only=True)
class Ours:
    """One `run`: its lines, and what it left."""

    whole: Timed
    #: Name of the engine that ran it.
    engine: str
    #: Seconds of each step, and of what comes before an epoch within training: mostly features.
    steps: dict[str, float]
    #: Seconds of an epoch on stored features, the median.
    epoch_seconds: float

    def reached(self, accuracy: float) -> Reached | None:
        """The first epoch that is as good, at the time of the line that says so; None where none is."""
        for line in self.whole.lines:
            found = EPOCH.match(line.text)
            # Printed with four digits.
            if found and float(found[2]) >= accuracy - 5e-5:
                return Reached(epoch=int(found[1]), seconds=line.seconds, core_seconds=line.core_seconds)
        return None

    @property
    def best_accuracy(self) -> float:
        """The highest of all epochs on the validation films."""
        return max(float(found[2]) for line in self.whole.lines if (found := EPOCH.match(line.text)))


def run_ours(films: Path, to: Path, *, cache: Path, recipe: str) -> Ours:
    run = RunDir(to)
    whole = vgg16_xray("run", films, "--out", to, "--recipe", recipe, cache=cache)
    with run.history.open(encoding="utf-8") as file:
        epochs = [float(row["seconds"]) for row in csv.DictReader(file)]
    steps = {name: float(stamp["seconds"]) for name, stamp in run.stamps().items()}
    steps["before the first epoch"] = steps["train"] - sum(epochs)
    return Ours(
        whole=whole,
        engine=str(read_config(run)["engine"]["name"]),
        steps=steps,
        epoch_seconds=statistics.median(epochs),
    )


def measure(
    keras: Path, scratch: Path, *, epochs: int, recipe: str
) -> tuple[list[dict[str, Any]], list[Ours], list[Ours]]:
    """Keras' epochs on ``scratch/films``; our runs from nothing, and with features in store."""
    films = scratch / "films"
    theirs: list[dict[str, Any]] = []
    cold: list[Ours] = []
    stored: list[Ours] = []

    def our_turn() -> None:
        turn = scratch / f"{len(cold)}"
        # Which engine is fastest a machine finds out once, in our first turn.
        if (raced := CacheDir(scratch / "0" / "cache").engines).exists():
            (turn / "cache").mkdir(parents=True)
            shutil.copy(raced, CacheDir(turn / "cache").engines)
        for name, runs in (("cold", cold), ("stored", stored)):
            runs.append(run_ours(films, turn / name, cache=turn / "cache", recipe=recipe))
            print(f"ours, {name}: {runs[-1].whole.seconds:.1f} s", flush=True)

    with Keras(keras, films, epochs=epochs) as epoch:
        our_turn()
        for number in range(1, epochs + 1):
            theirs.append(epoch())
            print(f"Keras: {theirs[-1]}", flush=True)
            if number in {(epochs + 1) // 2, epochs}:
                our_turn()
    return theirs, cold, stored


def best_so_far(theirs: Sequence[dict[str, Any]]) -> list[tuple[float, float, float]]:
    """After each of Keras' epochs: its best accuracy, and wall and core seconds up to the first epoch that had it."""
    out: list[tuple[float, float, float]] = []
    wall = core = 0.0
    for epoch in theirs:
        wall, core = wall + epoch["seconds"], core + epoch["core_seconds"]
        better = not out or epoch["val_accuracy"] > out[-1][0]
        out.append((epoch["val_accuracy"], wall, core) if better else out[-1])
    return out


def soonest(runs: Sequence[Ours], accuracy: float) -> Reached | None:
    """The run of median time; seeds are the same, so every run reaches it in the same epoch."""
    found = [reached for one in runs if (reached := one.reached(accuracy))]
    found.sort(key=lambda reached: reached.seconds)
    return found[len(found) // 2] if len(found) == len(runs) else None


def rows_of(dealt: Dealt, theirs: Sequence[dict[str, Any]], cold: Sequence[Ours], stored: Sequence[Ours]) -> list[Row]:
    steps = best_so_far(theirs)
    accuracy, wall, core = steps[-1]
    epoch = 1 + [step[0] for step in steps].index(accuracy)
    vnni = processor_features() & {"avx512_vnni", "avx_vnni"}
    aim = "≥ 30, with VNNI" if vnni else "≥ 15, without VNNI"
    rows = []
    for name, runs, wanted in (("nothing stored", cold, aim), ("features in store", stored, "")):
        our, what = soonest(runs, accuracy), f"time to Keras' best validation accuracy ({accuracy:.3f}), {name}"
        if our is None:
            best = max(one.best_accuracy for one in runs)
            rows.append(Row(what=what, ours=f"not reached: {best:.3f}", against=words(wall), aim=wanted))
            continue
        rows.append(
            Row(
                what=what,
                ours=f"{words(our.seconds)}, epoch {our.epoch}",
                against=f"{words(wall)}, epoch {epoch}",
                ratio=f"**{wall / our.seconds:.1f}**",
                aim=wanted,
            )
        )
        rows.append(
            Row(
                what="the same in core seconds",
                ours=words(our.core_seconds),
                against=words(core),
                ratio=f"{core / our.core_seconds:.1f}",
            )
        )
    pass_seconds = statistics.median(one.steps["before the first epoch"] for one in cold)
    epoch_seconds = statistics.median(one["seconds"] for one in theirs)
    seen = dealt.train + dealt.validation
    rate, their_rate = (seen + dealt.test) / pass_seconds, seen / epoch_seconds
    again = statistics.median(one.epoch_seconds for one in cold)
    whole, their_whole = statistics.median(one.whole.seconds for one in cold), sum(one["seconds"] for one in theirs)
    return [
        *rows,
        Row(
            what="films a second through the frozen base",
            ours=f"{rate:.1f}",
            against=f"{their_rate:.1f}",
            ratio=f"{rate / their_rate:.1f}",
        ),
        Row(
            what="one more epoch",
            ours=words(again),
            against=words(epoch_seconds),
            ratio=f"{epoch_seconds / again:.0f}",
        ),
        Row(
            what=f"all of it: ours with test and report, Keras' {len(theirs)} epochs",
            ours=words(whole),
            against=words(their_whole),
            ratio=f"{their_whole / whole:.1f}",
        ),
    ]


def remarks_of(dealt: Dealt, theirs: Sequence[dict[str, Any]], cold: Sequence[Ours], recipe: str) -> list[str]:
    after = []
    for number, (accuracy, wall, _) in enumerate(best_so_far(theirs), start=1):
        our = soonest(cold, accuracy)
        after.append(f"{number}: {accuracy:.3f}, " + (f"{wall / our.seconds:.1f}" if our else "not reached"))
    middle = sorted(cold, key=lambda one: one.whole.seconds)[len(cold) // 2]
    side = side_seen(load_recipe(recipe).preprocessing, SIZE)
    sees = f"Ours sees films at {side} x {side} pixels, Keras at {SIZE} x {SIZE}. " if side != SIZE else ""
    spent = ", ".join(f"{name} {words(seconds)}" for name, seconds in middle.steps.items())
    return [
        f"Films: {dealt.words}. {sees}Ours: recipe `{recipe}`, engine {middle.engine}, median of {len(cold)} runs "
        f"({', '.join(words(one.whole.seconds) for one in cold)} in all). Keras' epochs: "
        f"{', '.join(words(one['seconds']) for one in theirs)}.",
        "Keras' best accuracy after each of its epochs, and how many times sooner ours had it, nothing stored: "
        + "; ".join(after)
        + ".",
        f"Where our time goes, whole run: {spent}; the rest of {words(middle.whole.seconds)} is starting and pictures.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keras", type=Path, required=True, help="a Python with TensorFlow")
    parser.add_argument("--train", type=int, default=1800, help="films to train on")
    parser.add_argument("--validation", type=int, default=600, help="films to validate on")
    parser.add_argument("--epochs", type=int, default=7, help="of Keras; the notebook has 7")
    parser.add_argument("--recipe", default="fast", help="ours")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        dealt = deal(scratch / "films", train=given.train, validation=given.validation)
        print(dealt.words, flush=True)
        theirs, cold, stored = measure(given.keras, scratch, epochs=given.epochs, recipe=given.recipe)
    hand_over(rows_of(dealt, theirs, cold, stored), remarks_of(dealt, theirs, cold, given.recipe))


if __name__ == "__main__":
    main()
