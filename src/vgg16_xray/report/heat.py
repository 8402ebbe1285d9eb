"""Where a model's heat maps look, told to people: lines and a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from vgg16_xray import RESEARCH_USE_ONLY
from vgg16_xray.bundle.localise import COLUMNS, OTHERS, sentence
from vgg16_xray.errors import UserError
from vgg16_xray.files import read_json
from vgg16_xray.report.terminal import console, figure
from vgg16_xray.rundir import HeatDir, RunDir, sha256_of

#: Region -> what it is called in a table.
REGION_NAMES = {
    "opacities": "in the opacities",
    "lungs": "in the lungs",
    "opacities within lungs": "in the opacities, of that in the lungs",
}
SUBSETS = {
    "all": "all films: the map of the most probable class of disease",
    "called_ill": "films that are called ill: the map that is shown",
}
MEASURES = {"pointing": "hottest point", "share": "heat"}


def read_heat(run: RunDir) -> dict[str, Any] | None:
    """What ``vgg16-xray heat`` left in a run; ``stale`` where the run has another model by now."""
    if not (numbers := HeatDir(run.path).numbers).exists():
        return None
    found: dict[str, Any] = read_json(numbers)
    if not {"all", "called_ill", "films", "checkpoint_sha256"} <= set(found):
        raise UserError(f"{numbers}: must be as 'heat' wrote it, found other JSON", hint="delete it")
    return found | {"stale": not run.best.exists() or found["checkpoint_sha256"] != sha256_of(run.best)}


def rows_of(found: Mapping[str, Any], subset: str) -> list[dict[str, Any]]:
    """A row a measure and region: ``words``, ``films``, ``figures`` in the order of :data:`COLUMNS`, ``against``."""
    return [
        {
            "words": f"{words} {REGION_NAMES[region]}",
            "films": of["films"],
            "figures": [of[measure][name] for name in COLUMNS],
            "against": compared(of[measure]),
        }
        for region, of in found[subset].items()
        if of is not None
        for measure, words in MEASURES.items()
    ]


def compared(row: Mapping[str, Any]) -> str:
    """Above and below what: only where the interval of the difference does not hold 0."""
    above, below = [], []
    for name in OTHERS:
        low, high = row[f"against_{name}"]["low"], row[f"against_{name}"]["high"]
        if low is not None and low > 0:
            above.append(COLUMNS[name])
        elif high is not None and high < 0:
            below.append(COLUMNS[name])
    said = [f"{word} {', '.join(names)}" for word, names in (("above", above), ("below", below)) if names]
    return "; ".join(said) or "no difference shown"


def say_heat(found: Mapping[str, Any], left: Path | None) -> None:
    """What was taken out, the table, and what to think of it."""
    out, films = console(), found["films"]
    for film in films["own"]:
        how = "the same pixels" if film["exact"] else "a near-copy"
        out.print(f"taken out: {film['film']}, {how} of {film['own']} ({film['split']})")
    if not films["looked_for_own"]:
        out.print("note: the model's own films are not at hand (--trained-on): copies were not looked for")
    for film in films["unreadable"]:
        out.print(f"left out: {film['reason']}")
    if films["lungs_by_network"]:
        out.print(f"note: nobody drew lungs; the package's network found them on {films['lungs_by_network']:,} films")
    called = ", ".join(f"{label} {count:,}" for label, count in found["called"].items())
    answers = ", ".join(f"{answer} {count:,}" for answer, count in found["answers"].items())
    out.print(
        f"heat: {films['measured']:,} of {films['found']:,} films measured, {len(films['own']):,} own ones taken out"
    )
    out.print(f"called {called}; {answers}; without heat {found['without_heat']:,}")
    for subset, title in SUBSETS.items():
        if not (rows := rows_of(found, subset)):
            continue
        table = Table(title=f"{title}; 95 % intervals", title_justify="left")
        table.add_column("", no_wrap=True)
        for name in ("films", *COLUMNS.values()):
            table.add_column(name, justify="right")
        table.add_column("this model is")
        for row in rows:
            table.add_row(row["words"], f"{row['films']:,}", *map(figure, row["figures"]), row["against"])
        out.print(table)
    out.print(sentence(found))
    if left is not None:
        out.print(f"figures: {left}")
    out.print(RESEARCH_USE_ONLY)
