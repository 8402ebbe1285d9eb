"""Films that are one, told to people: lines in the terminal, and the pairs side by side on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vgg16_xray.films.store import ArrayStore
from vgg16_xray.report.contact import Section, Tile, write_sheet
from vgg16_xray.report.terminal import console

#: Pairs of a kind on the page, and conflicts that the terminal names.
ON_PAGE, NAMED = 100, 20


def say_leaks(found: Mapping[str, Any]) -> None:
    """How many films are one, and by name those under two labels."""
    out = console()
    near = found["copies"] - found["exact"]
    out.print(
        f"leaks: {found['copies']:,} of {found['films']:,} films show what another shows: {found['exact']:,} with "
        f"equal pixels, {near:,} encoded, cut or mirrored otherwise, proved by laying one over the other"
    )
    if found["broken"]:
        out.print(f"{found['broken']:,} files could not be read")
    if found["shared"]:
        out.print(f"{found['shared']:,} films stand in more than one collection")
    for films in found["conflicts"][:NAMED]:
        out.print("two labels: " + ", ".join(f"{entry['film']} ({entry['label']})" for entry in films))
    if (more := len(found["conflicts"]) - NAMED) > 0:
        out.print(f"and {more:,} more films under two labels; all stand in leaks.json")


def write_leaks_page(path: Path, found: Mapping[str, Any], *, pixels: Path) -> Path:
    """Write the page: films under two labels, the weakest pairs that were accepted, the strongest that were not.

    Args:
        path: The HTML file.
        found: What ``leaks.json`` holds.
        pixels: The decoded films, in the order that its rows count in.

    Returns:
        `path`.

    Raises:
        UserError: The decoded films are gone, or the page cannot be written.
    """
    films = ArrayStore(pixels)
    same = [pair for pair in found["pairs"] if pair["same"]][::-1]
    near = [pair for pair in same if not pair["exact"]]
    other = [pair for pair in found["pairs"] if not pair["same"]]
    bounds = f"detail {found['bounds']['detail']} and above, residual {found['bounds']['residual']} and below"
    kinds: list[tuple[str, str, Sequence[Mapping[str, Any]]]] = [
        (
            "Under two labels",
            "One of the two labels is wrong, or the film shows both: neither can measure anything.",
            [pair for pair in same if pair["first_label"] != pair["second_label"]],
        ),
        ("Taken for one film, the weakest first", f"Not equal in every pixel; {bounds}.", near),
        ("Not taken for one film, the strongest first", "Another exposure, or changed beyond what is promised.", other),
    ]
    return write_sheet(
        path,
        title="The same film again",
        lead=f"{found['films']:,} films, {found['copies']:,} of them there already, {len(found['conflicts']):,} under "
        "two labels. Look at both sides of the bounds.",
        sections=[
            Section(
                title=title,
                text=text + (f" {len(pairs):,} pairs, {min(len(pairs), ON_PAGE)} shown." if pairs else " None."),
                tiles=[_tile(films, pair) for pair in pairs[:ON_PAGE]],
            )
            for title, text, pairs in kinds
        ],
    )


def _tile(films: ArrayStore, pair: Mapping[str, Any]) -> Tile:
    labels = (
        pair["first_label"]
        if pair["first_label"] == pair["second_label"]
        else f"{pair['first_label']} / {pair['second_label']}"
    )
    how = [name for name in ("mirrored", "inverted") if pair[name]]
    patient = {"same": "same patient", "another": "another patient"}.get(pair["patient"])
    said = [f"detail {pair['detail']:.3f}", f"residual {pair['residual']:.3f}", labels, *how]
    return Tile(
        films=list(films.take(np.array(pair["rows"]))),
        names=[pair["first"], pair["second"]],
        caption=" · ".join([*said, *([patient] if patient else [])]),
    )
