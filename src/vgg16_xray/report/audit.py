"""The audit, told to people: the verdict in the terminal, and one self-contained page to staple to a paper.

The page asks the network for nothing and runs no script. What comes from the user's data is escaped by the template
engine.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vgg16_xray import RESEARCH_USE_ONLY, __version__
from vgg16_xray.files import read_json, write_text
from vgg16_xray.films.store import ArrayStore
from vgg16_xray.report.inline import uri_of
from vgg16_xray.report.terminal import console
from vgg16_xray.rundir import AuditDir, RunDir, read_config
from vgg16_xray.trust.leaks import under_two_labels
from vgg16_xray.trust.lungs import find_lungs
from vgg16_xray.trust.shortcuts import CORNERS, ERASED, FRAME, LADDER, LUNGS, METADATA, WHOLE, as_png, shown
from vgg16_xray.trust.verdict import ALPHA, CARE, NONE, STOP, STRONGEST, labels_not_judged

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

#: Side of a film on the ladder, and on a contact sheet, pixels.
SMALL, SHEET = 96, 128
#: Films on the contact sheet of suspected labels, and pairs of films under two labels.
MOST_SHOWN, MOST_PAIRS = 48, 24
#: Side of the heat map, pixels.
HEAT = 336
#: Skill of the most telling of 64 cells below which none tells much, and below which it may be chance.
SLIGHT, CHANCE = 0.1, 0.2
#: Rungs of which one tells something, where a cell of the film does.
OF_PIXELS = (FRAME, CORNERS, ERASED, WHOLE)
CLASS_OF_VERDICT = {STOP: "stop", CARE: "care", NONE: "none"}
MEANINGS = {
    STOP: "A number measured on these films does not show that the disease was recognised.",
    CARE: "A number measured on these films may mislead. Say so where you quote it.",
    NONE: "Nothing was found that would make a number measured on these films too good. That is no proof.",
}


def say_audited(found: Mapping[str, Any]) -> None:
    """The verdict, its three strongest reasons and what to do about each."""
    out = console()
    out.print()
    out.print(f"{found['verdict'].upper()}. {MEANINGS[found['verdict']]}")
    for number, reason in enumerate(found["reasons"][:STRONGEST], start=1):
        out.print(f" {number}. {reason['headline']}")
        out.print(f"    {reason['evidence']}")
        out.print(f"    What to do: {reason['remedy']}")
    if len(found["reasons"]) > STRONGEST:
        rest = "; ".join(reason["headline"].rstrip(".") for reason in found["reasons"][STRONGEST:])
        out.print(f"    And: {rest}.")
    for note in found["not_checked"]:
        out.print(f" not checked: {note}")
    _say_masks(found)


def say_ladder(found: Mapping[str, Any]) -> None:
    """A row a rung."""
    console().print(_ladder_table(found))
    _say_masks(found)


def _say_masks(found: Mapping[str, Any]) -> None:
    if words := found["masks"]["words"]:
        console().print(f"note: {words}")


def _ladder_table(found: Mapping[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title="how far one comes on", title_justify="left")
    for column in ("input", "macro-F1", "95 % interval", "chance", "p", ""):
        table.add_column(column, justify="left" if column in ("input", "") else "right")
    for rung in LADDER:
        row = found["ladder"].get(rung.key, {})
        if "macro_f1" not in row:
            table.add_row(rung.name, "–", "", "", "", row.get("left_out", ""))
            continue
        numbers = (f"{row['macro_f1']:.3f}", f"{row['low']:.3f}–{row['high']:.3f}", f"{row['chance']:.3f}")
        table.add_row(rung.name, *numbers, f"{row['p']:.3f}", "holds no lung" if rung.without_lungs else "")
    return table


def write_audit_page(run: RunDir, found: Mapping[str, Any]) -> Path:
    """Write the page.

    Args:
        run: The run that was audited.
        found: See :func:`vgg16_xray.steps.audit.audit`.

    Returns:
        Its path.

    Raises:
        UserError: It cannot be written.
    """
    import pandas as pd

    from vgg16_xray.report.page import date_words, style_sheet, template

    manifest = pd.read_parquet(run.manifest)
    pixels = ArrayStore(run.pixels)
    data = read_config(run)["data"]
    leaks = read_json(run.leaks) if run.leaks.exists() else None
    page = template("audit.html.j2", {"share": lambda value: f"{100 * value:.0f} %"}).render(
        name=run.path.resolve().name,
        collections=sorted(data["collections"]),
        split=data["split"],
        slight=SLIGHT,
        fingerprint=data["fingerprint"],
        notes=[note for note in (*data.get("notes", ()), found["masks"]["words"]) if note],
        quarantined=data.get("quarantined", 0),
        quarantine=run.quarantine.name,
        found=found,
        told=told(found),
        not_judged=labels_not_judged(found),
        ladder=ladder_rows(found, manifest, pixels),
        whole=found["ladder"].get(WHOLE.key, {}).get("macro_f1"),
        heat=_heat(found, pixels),
        suspects=_suspects(found["noise"], pixels),
        conflicts=_conflicts(leaks, pixels),
        pairs_of_two_labels=under_two_labels(leaks)[1] if leaks else None,
        pairs=run.pairs.name if run.pairs.exists() else None,
        leaks_page=run.leaks_page.name,
        written=date_words(),
        stop=STOP,
        css=style_sheet("report.css"),
        audit_css=style_sheet("audit.css"),
        numbers=AuditDir(run.path).numbers.name,
        package_version=__version__,
        research_use_only=RESEARCH_USE_ONLY,
    )
    write_text(AuditDir(run.path).page, page)
    return AuditDir(run.path).page


def told(found: Mapping[str, Any]) -> dict[str, Any]:
    """The verdict and its reasons, as the template ``audit_parts.html.j2`` wants them."""
    return {
        "verdict": found["verdict"],
        "verdict_class": CLASS_OF_VERDICT[found["verdict"]],
        "meaning": MEANINGS[found["verdict"]],
        "strongest": found["reasons"][:STRONGEST],
        "others": found["reasons"][STRONGEST:],
        "words_used": bool(found["reasons"]),
    }


def ladder_rows(found: Mapping[str, Any], manifest: pd.DataFrame, pixels: ArrayStore) -> list[dict[str, Any]]:
    """A row a rung, with one film as the rung shows it; the same film in all of them."""
    film = pixels.take(np.array([len(manifest) // 2]))
    outlined = find_lungs(film)
    rows = []
    for rung in LADDER:
        figures = found["ladder"].get(rung.key, {})
        picture = None
        if rung is not METADATA and (outlined.found[0] or not rung.needs_lungs):
            picture = uri_of(as_png(shown(rung, film, outlined.masks)[0], side=SMALL))
        rows.append(
            {
                "rung": rung,
                "figures": figures,
                "picture": picture,
                "kind": "bad" if rung.without_lungs else "whole" if rung is WHOLE else "plain",
                "is_lungs": rung is LUNGS,
            }
        )
    return rows


def _heat(found: Mapping[str, Any], pixels: ArrayStore) -> dict[str, Any]:
    """The mean film under the skill of each cell: grey where a cell tells nothing, orange where it tells much."""
    from PIL import Image

    rows = np.linspace(0, len(pixels) - 1, min(200, len(pixels))).astype(np.int64)
    mean = pixels.take(np.unique(rows)).mean(axis=0)
    skill = np.clip(np.array(found["where"]["skill"], dtype=np.float64), 0, 1)
    base = np.asarray(Image.fromarray(mean.astype(np.uint8)).resize((HEAT, HEAT)), dtype=np.float64)[..., None]
    cells = np.kron(skill, np.ones((HEAT // len(skill), HEAT // len(skill))))[..., None]
    # Okabe and Ito's vermilion, 0.8 opaque at most, so that the film stays visible.
    mixed = base * (1 - 0.8 * cells) + 0.8 * cells * np.array([213.0, 94.0, 0.0])
    target = io.BytesIO()
    Image.fromarray(np.broadcast_to(mixed, (HEAT, HEAT, 3)).astype(np.uint8)).save(target, "PNG", optimize=True)
    most = float(skill.max())
    return {"picture": uri_of(target.getvalue()), "most": most, "chance": _by_chance(found, most)}


def _by_chance(found: Mapping[str, Any], most: float) -> str:
    """Why the most telling of the 64 cells may tell nothing; empty where something else speaks for it."""
    if found["where"]["classes"]:
        measured = [found["source_within_class"].get(label, {}).get("p", 1) for label in found["where"]["classes"]]
        nothing = "the source cannot be told from the whole film better than by chance"
    else:
        measured = [found["ladder"].get(rung.key, {}).get("p", 1) for rung in OF_PIXELS]
        nothing = "neither the whole film nor border, corners or what is outside the lungs tell the class beyond chance"
    if min(measured) > ALPHA / len(measured):
        return nothing
    return "on few films the best of 64 reaches as much where nothing is given away" if most < CHANCE else ""


def _suspects(noise: Mapping[str, Any], pixels: ArrayStore) -> Sequence[dict[str, Any]]:
    listed = noise["listed"][:MOST_SHOWN]
    if not listed:
        return []
    films = pixels.take(np.array([entry["row"] for entry in listed]))
    return [{**entry, "uri": uri_of(as_png(film, side=SHEET))} for entry, film in zip(listed, films, strict=True)]


def _conflicts(leaks: Mapping[str, Any] | None, pixels: ArrayStore) -> list[list[dict[str, Any]]]:
    """Films that show the same under two labels, side by side, the surest first."""
    if leaks is None:
        return []
    pairs = [pair for pair in leaks["pairs"] if pair["same"]]
    told = []
    for pair in [pair for pair in pairs if pair["first_label"] != pair["second_label"]][:MOST_PAIRS]:
        films = zip(pixels.take(np.array(pair["rows"])), ("first", "second"), strict=True)
        told.append(
            [
                {"uri": uri_of(as_png(film, side=SHEET)), "path": pair[which], "label": pair[f"{which}_label"]}
                for film, which in films
            ]
        )
    return told
