"""Each engine of this machine on the whole base, against torch as it comes and against the limit by count.

    python benchmarks/engines.py [--films 8] [--rounds 7] [--accuracy 400]

All take turns in rounds, and so do the matrix products whose rate is the limit; medians count. `--accuracy N` asks what
an engine's rounding does to a head: features of N real radiographs, a linear classifier on each engine's.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import films
from vgg16_xray.films.decode import decode, to_square
from vgg16_xray.films.split import TRAIN, VALIDATION
from vgg16_xray.learn.engines import ENGINES, Engine, FrozenPart, is_installed, machine_in_words, weakness
from vgg16_xray.learn.features import in_half_precision
from vgg16_xray.learn.heads import Pooled
from vgg16_xray.learn.runtimes import drawn_films
from vgg16_xray.learn.vgg16 import SIZE, build
from vgg16_xray.learn.weights import load_base, normalise
from vgg16_xray.progress import progress

#: Grey films (B, H, W) uint8 -> the base's output (B, 512, 7, 7).
Run = Callable[[torch.Tensor], torch.Tensor]
THREADS = 2
#: What everything is compared with: torch without any choice made, float32, channels first.
EAGER = "torch eager, float32"
EXACT = "torch-float32"
#: One of each number format is enough to see what its rounding does to a head.
FOR_HEADS = (EXACT, "torch-bfloat16", "onnx-int8")
#: Side of the matrices whose product is the limit.
SIDE = 2048
FORMATS = ("float32", "bfloat16", "int8")
#: Films sent at once for features, as the feature store does.
BATCH = 32


def multiply_adds(base: nn.Sequential, size: int = SIZE) -> int:
    """Multiply-adds of the convolutions for one film."""
    count, side = 0, size
    for layer in base:
        if isinstance(layer, nn.Conv2d):
            count += layer.weight.numel() * side**2
        elif isinstance(layer, nn.MaxPool2d):
            side //= 2
    return count


def systems() -> tuple[nn.Sequential, dict[str, Run], list[str]]:
    """The base, what runs it by name, and a line for each engine that is left out."""
    model, weights = build(classes=2, head="gap", dropout=0.0), load_base()
    weights.put_into(model)
    base = model.features.eval()
    # A copy, channels first whatever is done to the model's own layers.
    layers = copy.deepcopy(base)
    runs: dict[str, Run] = {EAGER: lambda pixels: layers(normalise(pixels, weights.preprocessing).contiguous())}
    left_out = []
    for name in ENGINES:
        if name == "auto":
            continue
        if not is_installed(name):
            left_out.append(f"{name}: what runs it is not installed")
        elif lacks := weakness(name):
            left_out.append(f"{name}: the processor {lacks}")
        else:
            print(f"preparing {name}", file=sys.stderr)
            runs[name] = FrozenPart(base, preprocessing=weights.preprocessing, engine=Engine(name, "benchmark"))
    return base, runs, left_out


def products(side: int) -> dict[str, Callable[[], torch.Tensor]]:
    """A product of square matrices for each number format that torch multiplies here."""
    made: dict[str, Callable[[], torch.Tensor]] = {}
    for name in ("float32", "bfloat16"):
        a, b = (torch.randn(side, side).to(getattr(torch, name)) for _ in range(2))
        made[name] = partial(torch.matmul, a, b)
    # Not public, and not on every platform.
    with contextlib.suppress(AttributeError, RuntimeError):
        a, b = (torch.randint(-128, 128, (side, side), dtype=torch.int8) for _ in range(2))
        product = partial(torch._int_mm, a, b)
        product()
        made["int8"] = product
    return made


class Clock:
    """Seconds of works that take turns; the first round is not counted."""

    def __init__(self, works: Mapping[str, Callable[[], object]], *, rounds: int) -> None:
        self._spent: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
        names = list(works)
        with progress("in turn", total=(rounds + 1) * len(names), unit="timings") as shown:
            for turn in range(rounds + 1):
                for name in names if turn % 2 else reversed(names):
                    wall, core = time.perf_counter(), time.process_time()
                    works[name]()
                    if turn:
                        self._spent[name].append((time.perf_counter() - wall, time.process_time() - core))
                    shown.advance()

    def medians(self, name: str) -> tuple[float, float]:
        """Median seconds on the clock, and median seconds that the processor worked, summed over cores."""
        wall, core = zip(*self._spent[name], strict=True)
        return statistics.median(wall), statistics.median(core)


def both(ratios: Iterable[float]) -> str:
    """A ratio on the clock, and in core seconds, which say more where the cores are shared."""
    return " / ".join(f"{ratio:.2f}" for ratio in ratios)


def race(base: nn.Sequential, runs: Mapping[str, Run], *, count: int, rounds: int, side: int) -> Iterator[str]:
    """Time all engines in turn; the lines of a table."""
    pixels = torch.from_numpy(drawn_films(count, seed=0, size=SIZE))
    out = {name: run(pixels).float() for name, run in runs.items()}
    exact = out[EAGER]
    matrices = products(side)
    works: dict[str, Callable[[], object]] = {name: partial(run, pixels) for name, run in runs.items()}
    clock = Clock(works | matrices, rounds=rounds)
    macs = multiply_adds(base)
    # Multiply-adds a second, on the clock and in core seconds.
    rates = {name: [side**3 / seconds for seconds in clock.medians(name)] for name in matrices}
    yield "| engine | ms a film | core ms a film | times torch eager | times the limit by count | relative error |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name in runs:
        seconds = [whole / count for whole in clock.medians(name)]
        eager = [mine * count / its for mine, its in zip(seconds, clock.medians(EAGER), strict=True)]
        rate = rates.get(name.replace(", ", "-").rpartition("-")[2])
        limit = both(mine * its / macs for mine, its in zip(seconds, rate, strict=True)) if rate else "not measured"
        error = ((out[name] - exact).norm() / exact.norm()).item()
        yield (
            f"| {name} | {seconds[0] * 1e3:.1f} | {seconds[1] * 1e3:.1f} | {both(eager)} | {limit} "
            f"| {f'{error:.1e}' if error else '0'} |"
        )
    measured = ", ".join(
        f"{name} {both(rate / 1e9 for rate in rates[name])}" if name in rates else f"{name} not measured"
        for name in FORMATS
    )
    yield ""
    yield (
        f"{machine_in_words()}; {torch.get_num_threads()} threads, torch {torch.__version__}. {count} drawn films of "
        f"{SIZE} x {SIZE}, median of {rounds} rounds. The limit: {macs / 1e9:.2f} G multiply-adds a film over the rate "
        f"of a product of {side} x {side} matrices, median in the same rounds, G multiply-adds a second: {measured}. "
        "Where there are two ratios, the second is in core seconds. "
        "Winograd's method multiplies less than is counted, so float32 may lie below 1. The error is that of the "
        f"base's output against {EAGER}."
    )


def dealt(count: int) -> tuple[str, list[tuple[np.ndarray, list[str]]]]:
    """Real films in two halves: in words, and of each half (N, 224, 224) uint8 with labels; patients kept together."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = films.deal(folder, train=count // 2, validation=count - count // 2).words
        halves = []
        for side in (TRAIN, VALIDATION):
            files = sorted((folder / films.FOLDERS[side]).glob("*/*"))
            pixels = np.stack([to_square(decode(file)) for file in files])
            halves.append((pixels, [file.parent.name for file in files]))
    return words, halves


def features(runs: Mapping[str, Run], pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Pooled features of films, (N, 1024), by engine; rounded as the store does."""
    pool = Pooled()
    found: dict[str, list[torch.Tensor]] = {name: [] for name in runs}
    with progress(f"features by {len(runs)} engines", total=len(pixels), unit="films") as shown:
        for batch in torch.from_numpy(pixels).split(BATCH):
            for name, run in runs.items():
                found[name].append(in_half_precision(pool(run(batch))).flatten(1))
            shown.advance(len(batch))
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}


def heads(runs: Mapping[str, Run], *, count: int) -> Iterator[str]:
    """Accuracy of a linear classifier on each engine's features; the lines of a table.

    Trained on one half and tested on the other, both ways round.
    """
    words, halves = dealt(count)
    (pixels, labels), (more_pixels, more_labels) = halves
    truth = np.array([*labels, *more_labels])
    first, second = slice(len(labels)), slice(len(labels), None)
    found = features(runs, np.concatenate([pixels, more_pixels]))

    def answers(trained: str, tested: str) -> np.ndarray:
        said = np.empty_like(truth)
        for this, other in ((first, second), (second, first)):
            head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
            said[other] = head.fit(found[trained][this], truth[this]).predict(found[tested][other])
        return said

    exact = answers(EXACT, EXACT)
    yield "| head trained on | tested on | accuracy | same answer as float32 | features' relative error |"
    yield "| --- | --- | --- | --- | --- |"
    others = [name for name in runs if name != EXACT]
    for trained, tested in [(EXACT, EXACT), *((a, name) for name in others for a in (name, EXACT))]:
        said = exact if trained == tested == EXACT else answers(trained, tested)
        error = np.linalg.norm(found[tested] - found[EXACT]) / np.linalg.norm(found[EXACT])
        yield (
            f"| {trained} | {tested} | {(said == truth).mean():.3f} | {(said == exact).mean():.3f} "
            f"| {f'{error:.1e}' if error else '0'} |"
        )
    yield ""
    yield (
        f"What an engine's rounding does to a head: {words}; each half is tested by a logistic regression "
        f"(scikit-learn, standardised features) on the other's {found[EXACT].shape[1]:,} pooled features, "
        f"{len(truth)} answers in all, of which 1 is {1 / len(truth):.4f}. No film or patient is in both."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--films", type=int, default=8, help="drawn films sent at once")
    parser.add_argument("--rounds", type=int, default=7, help="that are timed")
    parser.add_argument("--side", type=int, default=SIDE, help="of the matrices")
    parser.add_argument("--accuracy", type=int, default=400, help="real films for the heads; 0: none")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    base, runs, left_out = systems()
    with torch.inference_mode():
        for line in race(base, runs, count=given.films, rounds=given.rounds, side=given.side):
            print(line, flush=True)
        for line in left_out:
            print(f"\nLeft out, {line}.", flush=True)
        if not given.accuracy:
            return
        print(flush=True)
        if not films.REAL.is_dir():
            print(f"Heads: not measured, no radiographs in {films.REAL}.")
            return
        for line in heads({name: runs[name] for name in FOR_HEADS if name in runs}, count=given.accuracy):
            print(line, flush=True)


if __name__ == "__main__":
    main()
