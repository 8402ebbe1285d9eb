"""Time and resident memory for 1,000, 10,000 and 100,000 films; and a run that has nothing to do.

    python benchmarks/scale.py [--whole 1000 10000] [--stored 1000 10000 100000]

A whole run draws so many films and takes them through all six steps with recipe `fast`. An epoch on stored features,
in a process of its own, has a head that reads the whole 7 x 7 x 512 map, 50 KB a film. Its features are sparse files of
zeros: how much of a store a process holds is measured, not what it says.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from table import Row, hand_over, words
from timed import Timed, timed, vgg16_xray

from vgg16_xray.config import SEED, load_recipe
from vgg16_xray.films.phantom import write_dataset

TIMES = 3


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement of the plot."""

    films: int
    seconds: float
    peak_mb: float


def epoch_on_stored(films: int) -> None:
    from stored import fit_on_stored, store

    recipe = replace(load_recipe("fast", epochs=1), head="linear", preprocessing="caffe", blocks=5)
    with tempfile.TemporaryDirectory() as name:
        source = store(Path(name), films=films, recipe=recipe, zeros=True)
        row = fit_on_stored(source, recipe, films=films, validation=films // 10, engine="auto")
    print(row["seconds"])


def whole_run(films: int) -> tuple[Timed, list[Timed]]:
    """A run from drawn files to the report, and the same command again."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder / "films", films=films, seed=SEED, masks=False)
        command = ("run", folder / "films", "--out", folder / "run", "--recipe", "fast")
        first, *again = (vgg16_xray(*command, cache=folder / "cache") for _ in range(1 + TIMES))
    return first, again


def drawing(whole: Sequence[Point], stored: Sequence[Point]) -> str:
    """SVG: seconds and memory over films; on a ground of its own, so that it is legible on a dark page too."""
    import matplotlib as mpl

    mpl.use("svg")
    # Text stays text, and the same numbers give the same file.
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "benchmarks"}
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
    for axis, value, title in zip(axes, ("seconds", "peak_mb"), ("seconds", "peak resident memory, MB"), strict=True):
        for points, label, mark in ((whole, "whole run", "s"), (stored, "epoch on stored features", "o")):
            axis.plot([p.films for p in points], [getattr(p, value) for p in points], marker=mark, label=label)
        axis.set(xscale="log", xlabel="films", title=title)
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_formatter("{x:,.0f}")
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_formatter("{x:g}")
    axes[0].yaxis.set_minor_formatter(NullFormatter())
    axes[1].set_ylim(0, 1.15 * max(p.peak_mb for p in (*whole, *stored)))
    axes[0].legend(frameon=False)
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    plt.close(figure)
    return svg.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--whole", type=int, nargs="*", default=[1_000, 10_000], help="films of whole runs")
    parser.add_argument("--stored", type=int, nargs="*", default=[1_000, 10_000, 100_000], help="films in store")
    parser.add_argument("--epoch", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.epoch:
        epoch_on_stored(given.epoch)
        return
    rows, whole, stored = [], [], []
    for films in given.whole:
        first, again = whole_run(films)
        whole.append(Point(films=films, seconds=first.seconds, peak_mb=first.peak_mb))
        warm = statistics.median(one.seconds for one in again)
        rows += [
            Row(what=f"whole run, {films:,} drawn films", ours=f"{words(first.seconds)}, {first.peak_mb:.0f} MB"),
            Row(
                what=f"the same again, nothing to do, {films:,} films",
                ours=words(warm),
                against=f"{words(first.seconds)} at first",
                ratio=f"{first.seconds / warm:.0f}",
            ),
        ]
    for films in given.stored:
        found = timed([sys.executable, __file__, "--epoch", str(films)])
        stored.append(Point(films=films, seconds=float(found.lines[-1].text), peak_mb=found.peak_mb))
        rows.append(
            Row(
                what=f"epoch on stored features, {films:,} films",
                ours=f"{words(stored[-1].seconds)}, {found.peak_mb:.0f} MB",
                against="" if len(stored) == 1 else f"{stored[0].peak_mb:.0f} MB at {stored[0].films:,}",
                ratio="" if len(stored) == 1 else f"{found.peak_mb / stored[0].peak_mb:.2f}",
            )
        )
    hand_over(
        rows,
        ["Memory is the most that the process held resident, mapped files included; ratio: of memory."],
        figure=drawing(whole, stored),
    )


if __name__ == "__main__":
    main()
