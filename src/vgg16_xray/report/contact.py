"""A sheet of films to look at, each or several side by side with a caption: one self-contained page, no script."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vgg16_xray import RESEARCH_USE_ONLY, __version__
from vgg16_xray.files import write_text
from vgg16_xray.report.inline import as_jpeg, uri_of
from vgg16_xray.report.page import date_words, style_sheet, template

#: JPEG, of each film.
QUALITY = 85


@dataclass(frozen=True, kw_only=True)
class Tile:
    """What is looked at together."""

    #: (H, W) uint8 each.
    films: Sequence[np.ndarray]
    #: One line a film, its name say.
    names: Sequence[str]
    #: What to know of them.
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """Tiles under a heading."""

    title: str
    text: str
    tiles: Sequence[Tile]


def write_sheet(
    path: Path,
    *,
    title: str,
    lead: str,
    sections: Iterable[Section],
    about: str = "",
    counts: Sequence[str] = (),
    files: Sequence[str] = (),
) -> Path:
    """Write the page. Text is escaped; films become JPEG of quality 85, as large as they are given.

    Args:
        path: The HTML file.
        title: Of the page.
        lead: What the sheet shows, one or two sentences.
        sections: What is on it; each with at least one tile, or a text that says why there is none.
        about: What was looked at, above the title.
        counts: What was found, a sentence each.
        files: Files beside the page that hold the numbers.

    Returns:
        `path`.

    Raises:
        UserError: It cannot be written.
    """
    page = template("contact.html.j2", {"uri": lambda film: uri_of(as_jpeg(film, quality=QUALITY))}).render(
        title=title,
        lead=lead,
        about=about,
        counts=list(counts),
        files=list(files),
        written=date_words(),
        sections=list(sections),
        css=style_sheet("report.css"),
        package_version=__version__,
        research_use_only=RESEARCH_USE_ONLY,
    )
    write_text(path, page)
    return path
