"""External testing told to people: lines in the terminal, and a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vgg16_xray import RESEARCH_USE_ONLY, __version__
from vgg16_xray.bundle.card import BEFORE_AND_AFTER
from vgg16_xray.files import write_text
from vgg16_xray.report.page import OVERALL_NAMES, PER_CLASS_NAMES, figure_words, interval_words, percent_words, template
from vgg16_xray.report.terminal import console, counted, figure, signed

#: Films that are named on the page, and in the terminal.
MOST_NAMED, MOST_SAID = 500, 20


def say_evaluation(found: Mapping[str, Any], page: Path) -> None:
    """What is left of the model there, and what to think of it."""
    out, films = console(), found["films"]
    _say_own(films)
    if found["shift"]:
        out.print(f"shift: {found['shift']['words']}")
    worst = found["worst"]
    out.print(
        f"external test: {films['measured']:,} films; accuracy {figure(found['overall']['accuracy'])}, "
        f"balanced accuracy {figure(found['overall']['balanced_accuracy'])}"
        + (f"; worst group: {worst_words(worst)}" if worst else "")
    )
    if found["drop"]:
        out.print(
            f"against {found['internal']}: accuracy {signed(found['drop']['accuracy'])}, with classes as common there "
            f"as here {signed(found['drop']['accuracy_at_this_mix'])}"
        )
    for label, wrong in found["answered_wrongly"].items():
        out.print(f"{label}: {figure(wrong)} of its films are answered with another class; {found['answers'][label]}")
    if found["mix"] and found["mix"]["corrected"]:
        new = found["mix"]["corrected"]
        shares = ", ".join(f"{label} {share:.3f}" for label, share in new["prior"].items())
        out.print(
            f"corrected to the {new['how']} prevalence ({shares}): accuracy {figure(new['overall']['accuracy'])}, "
            f"ECE {figure(new['probability']['ece'])} (before {figure(found['calibration']['probability']['ece'])})"
        )
    out.print(f"page: {page}")
    out.print(RESEARCH_USE_ONLY)


def say_recalibrated(to: Path, films: Mapping[str, Any], done: Mapping[str, Any]) -> None:
    """What was fitted to a site's films, and what that changes on films that it was not fitted on."""
    from rich.table import Table

    out = console()
    _say_own(films)
    for row in done["methods"]:
        said = "" if row["error"] == 0 else f" (+{row['more']:.4f}, standard error {row['error']:.4f})"
        out.print(
            f"{row['method']}: log loss {row['log_loss']:.4f}{said}{', chosen' * (row['method'] == done['method'])}"
        )
    counts = ", ".join(f"{label} {count:,}" for label, count in done["films"].items())
    table = Table(title=f"{counts}; {done['folds']} folds, 95 % intervals", title_justify="left")
    for column in ("", "before", "after"):
        table.add_column(column)
    for name, key in BEFORE_AND_AFTER.items():
        parts = [done[side]["probability"].get(key) or done[side].get(key) for side in ("before", "after")]
        table.add_row(name, *("–" if part is None else figure(part) for part in parts))
    out.print(table)
    out.print(f"log loss: {signed(done['log_loss_change'])}")
    out.print(f"bundle: {to}")
    out.print(RESEARCH_USE_ONLY)


def worst_words(worst: Mapping[str, Any]) -> str:
    """``sex = M, accuracy 0.612 (0.520–0.700) of 120 films``."""
    return f"{worst['column']} = {worst['value']}, accuracy {figure(worst['accuracy'])} of {worst['films']:,} films"


def _say_own(films: Mapping[str, Any]) -> None:
    """What was left out of the films, by name where it is the model's own."""
    out = console()
    for film in films["own"][:MOST_SAID]:
        how = "the same pixels" if film["exact"] else "a near-copy"
        out.print(f"taken out: {film['film']}, {how} of {film['own']} ({film['split']})")
    if (more := len(films["own"]) - MOST_SAID) > 0:
        out.print(f"taken out: {more:,} more, {len(films['own']):,} in all; --json and the page name them")
    if not films["looked_for_own"]:
        out.print(
            "note: neither the model's own films nor what a bundle keeps of them is at hand (--trained-on RUN): copies "
            "were not looked for"
        )
    for label, count in films["of_unknown_classes"].items():
        out.print(f"left out: {count:,} films of '{label}', a class that the model does not know (--map FOLDER=LABEL)")
    if films["unreadable"]:
        out.print(f"left out: {counted(len(films['unreadable']), 'file')} that cannot be read")


def write_evaluation(path: Path, found: Mapping[str, Any]) -> Path:
    """Write the page.

    Args:
        path: The HTML file.
        found: What ``evaluation.json`` holds.
    """
    from markupsafe import Markup

    css = (Path(__file__).parent / "templates" / "report.css").read_text("utf-8")
    filters: dict[str, Callable[..., str]] = {
        "figure": figure_words,
        "interval": interval_words,
        "percent": percent_words,
        "signed": signed,
    }
    content = {
        "found": found,
        "css": Markup(css),
        "package_version": __version__,
        "research_use_only": RESEARCH_USE_ONLY,
        "overall_names": OVERALL_NAMES,
        "per_class_names": PER_CLASS_NAMES,
        "most_named": MOST_NAMED,
    }
    write_text(path, template("evaluation.html.j2", filters).render(content))
    return path
