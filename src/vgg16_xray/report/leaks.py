"""Films that are one, told to people: lines in the terminal, and the pairs side by side on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vgg16_xray.films.store import ArrayStore
from vgg16_xray.report.contact import Section, Tile, write_sheet
from vgg16_xray.report.terminal import console, counted
from vgg16_xray.trust.leaks import under_two_labels

#: Pairs of a kind on the page; those that are equal in every pixel show nothing new; conflicts that the terminal names.
ON_PAGE, EXACT_ON_PAGE, NAMED = 100, 24, 20


def say_leaks(found: Mapping[str, Any]) -> None:
    """How many films are one, and by name those under two labels."""
    out = console()
    first, *more = counts(found)
    out.print(f"leaks: {first[0].lower()}{first[1:]}")
    for sentence in more:
        out.print(sentence)
    for films in found["conflicts"][:NAMED]:
        out.print("two labels: " + ", ".join(f"{entry['film']} ({entry['label']})" for entry in films))
    if (left := len(found["conflicts"]) - NAMED) > 0:
        out.print(f"and {left:,} more; all stand in leaks.json")


def counts(found: Mapping[str, Any]) -> list[str]:
    """What was found, a sentence each.

    Args:
        found: What ``leaks.json`` holds, see :func:`vgg16_xray.trust.leaks.summarise`.
    """
    copies, near = found["copies"], found["copies"] - found["exact"]
    sentences = [
        f"Of {counted(found['films'], 'film')}, {copies:,} show what an earlier one shows"
        + (
            f": {found['exact']:,} with equal pixels, {near:,} encoded, cut or mirrored otherwise, proved by laying "
            "one over the other."
            if copies
            else "."
        )
    ]
    films, pairs = under_two_labels(found)
    if films:
        sentences.append(f"{counted(films, 'film')} stand under two labels, in {counted(pairs, 'pair')}.")
    # Files that were left by an earlier version do not name the collections.
    of_collection = found.get("collections", {})
    if len(of_collection) > 1:
        each = ", ".join(f"{name} ({number:,})" for name, number in of_collection.items())
        one = found["shared"] == 1
        sentences.append(
            f"{counted(found['shared'], 'film')} {'stands' if one else 'stand'} in more than one collection; there are "
            f"{len(of_collection)}: {each}."
        )
    elif found["shared"]:
        sentences.append(f"{counted(found['shared'], 'film')} in more than one collection.")
    if found["broken"]:
        sentences.append(f"{counted(found['broken'], 'file')} could not be read.")
    return sentences


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
    exact = [pair for pair in same if pair["exact"]]
    other = [pair for pair in found["pairs"] if not pair["same"]]
    bounds = f"detail {found['bounds']['detail']} and above, residual {found['bounds']['residual']} and below"
    lead, *more = counts(found)
    kinds: list[tuple[str, str, Sequence[Mapping[str, Any]], int]] = [
        (
            "Under two labels",
            "One of the two labels is wrong, or the film shows both: neither can measure anything.",
            [pair for pair in same if pair["first_label"] != pair["second_label"]],
            ON_PAGE,
        ),
        (
            "Taken for one film, the weakest first",
            f"Not equal in every pixel; {bounds}. Look at these, and at those that were not taken: the bounds lie "
            "between.",
            near,
            ON_PAGE,
        ),
        ("Equal in every pixel", "The decoded films do not differ at all.", exact, EXACT_ON_PAGE),
        (
            "Not taken for one film, the strongest first",
            "Another exposure, or changed beyond what is promised.",
            other,
            ON_PAGE,
        ),
    ]
    return write_sheet(
        path,
        title="The same film again",
        about=", ".join(found.get("collections", {})),
        lead=lead,
        counts=more,
        files=["leaks.json", "pairs.csv"],
        sections=[
            Section(
                title=title,
                text=f"{text} {_how_many(pairs, most, found)}",
                tiles=[_tile(films, pair) for pair in pairs[:most]],
            )
            for title, text, pairs, most in kinds
        ],
    )


def _how_many(pairs: Sequence[Mapping[str, Any]], most: int, found: Mapping[str, Any]) -> str:
    if not pairs:
        return "None."
    said = counted(len(pairs), "pair")
    if len(pairs) > most:
        said += f", {most} shown"
    if len(found.get("collections", {})) > 1:
        across = sum(_collection(pair["first"]) != _collection(pair["second"]) for pair in pairs)
        said += f"; {across:,} between two collections"
    return f"{said}."


def _collection(name: str) -> str:
    """Films are called by collection and path."""
    return name.partition("/")[0]


def _tile(films: ArrayStore, pair: Mapping[str, Any]) -> Tile:
    labels = (
        pair["first_label"]
        if pair["first_label"] == pair["second_label"]
        else f"{pair['first_label']} / {pair['second_label']}"
    )
    how = [name for name in ("mirrored", "inverted") if pair[name]]
    patient = {"same": "same patient", "another": "another patient"}.get(pair["patient"])
    scores = ["equal pixels"] if pair["exact"] else [f"detail {pair['detail']:.3f}", f"residual {pair['residual']:.3f}"]
    return Tile(
        films=list(films.take(np.array(pair["rows"]))),
        names=[pair["first"], pair["second"]],
        caption=" · ".join([*scores, labels, *how, *([patient] if patient else [])]),
    )
