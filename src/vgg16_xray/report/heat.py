"""Where a model's heat maps look, told to people: lines and a table in the terminal, and a sheet of films."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from vgg16_xray import RESEARCH_USE_ONLY
from vgg16_xray.bundle.explain import COLOURS, outlined, overlay
from vgg16_xray.bundle.localise import COLUMNS, OTHERS, sentence
from vgg16_xray.errors import UserError
from vgg16_xray.files import read_json, whole_file
from vgg16_xray.films.masks import LUNGS, OPACITIES, Drawn
from vgg16_xray.report.terminal import console, figure
from vgg16_xray.rundir import HeatDir, RunDir, sha256_of

if TYPE_CHECKING:
    from PIL.Image import Image

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
#: Structure -> the colour of its border on the sheet, which is none of the heat's.
BORDERS = {LUNGS: (235, 235, 235), OPACITIES: (0, 229, 255)}
#: Of the sheet: films side by side, side of a film and distances, dots.
COLUMNS_OF_SHEET, SIDE, GAP, LINE = 4, 288, 10, 19
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


@dataclass(frozen=True)
class Shown:
    """A film on the sheet."""

    drawn: Drawn
    #: (h, w) float32, what was measured.
    heat: np.ndarray
    #: The film's row in ``each`` of heat.json.
    row: Mapping[str, Any]


def draw_heat(file: Path, films: Sequence[Shown]) -> None:
    """Draw films under their heat, with the borders of what somebody drew on them, and how much heat lies there.

    Raises:
        UserError: The file cannot be written.
    """
    from PIL import Image, ImageDraw

    from vgg16_xray.report.figures import SHEET_FAINT, SHEET_INK, fit, font

    small, bold = font(13), font(13, bold=True)
    columns = min(COLUMNS_OF_SHEET, max(2, len(films)))
    rows = -(-len(films) // columns)
    cell = SIDE + 2 * LINE + GAP
    size = (columns * (SIDE + GAP) + GAP, rows * cell + GAP + 2 * LINE + GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for number, film in enumerate(films):
        left, top = GAP + number % columns * (SIDE + GAP), GAP + number // columns * cell
        picture = _under_heat(film)
        sheet.paste(picture, (left + (SIDE - picture.width) // 2, top + (SIDE - picture.height) // 2))
        on = film.row[OPACITIES]
        said = f"{100 * on['share']:.0f} % of the heat on {100 * on['chance']:.0f} % of the film"
        pen.text((left, top + SIDE + 4), said, font=bold, fill=SHEET_INK)
        about = f"{film.row['map_of']}: {film.row['film']}"
        pen.text((left, top + SIDE + 4 + LINE), fit(small, about, SIDE), font=small, fill=SHEET_FAINT)
    left, top = GAP, rows * cell + GAP
    for words, colour in (("opacities, as drawn", BORDERS[OPACITIES]), ("lungs", BORDERS[LUNGS])):
        pen.rectangle((left, top, left + 24, top + 13), fill=(60, 60, 60))
        pen.line((left + 3, top + 7, left + 21, top + 7), fill=colour, width=3)
        pen.text((left + 30, top - 1), words, font=small, fill=SHEET_INK)
        left += 30 + int(small.getlength(words)) + 2 * GAP
    for number, colour in enumerate(COLOURS):
        pen.rectangle((left + 12 * number, top, left + 12 * number + 11, top + 13), fill=tuple(map(int, colour)))
    words = "heat: none to the film's most"
    pen.text((left + 12 * len(COLOURS) + 6, top - 1), words, font=small, fill=SHEET_INK)
    pen.text((GAP, top + LINE), fit(small, RESEARCH_USE_ONLY, size[0] - 2 * GAP), font=small, fill=SHEET_FAINT)
    with whole_file(file) as temporary:
        sheet.save(temporary, format="JPEG", quality=88)


def _under_heat(film: Shown) -> Image:
    """The film as large as fits, its shape kept."""
    from PIL import Image

    pixels = film.drawn.film
    scale = SIDE / max(pixels.shape)
    shape = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    picture = overlay(np.asarray(Image.fromarray(pixels).resize(shape, Image.Resampling.LANCZOS)), film.heat)
    for structure, colour in BORDERS.items():
        if structure in film.drawn.structures:
            mask = Image.fromarray(film.drawn.structures[structure].astype(np.uint8) * 255)
            picture = outlined(picture, np.asarray(mask.resize(shape, Image.Resampling.NEAREST)) > 0, colour)
    return Image.fromarray(picture)
