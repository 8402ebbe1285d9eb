"""External testing told to people: lines in the terminal, and a page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vgg16_xray import RESEARCH_USE_ONLY, __version__
from vgg16_xray.files import write_text
from vgg16_xray.report.page import OVERALL_NAMES, PER_CLASS_NAMES, figure_words, interval_words, percent_words, template
from vgg16_xray.report.terminal import console, figure, signed

#: Films that are named on the page.
MOST_NAMED = 500


def say_evaluation(found: Mapping[str, Any], page: Path) -> None:
    """What is left of the model there, and what to think of it."""
    out, films = console(), found["films"]
    for film in films["own"]:
        how = "the same pixels" if film["exact"] else "a near-copy"
        out.print(f"taken out: {film['film']}, {how} of {film['own']} ({film['split']})")
    if not films["looked_for_own"]:
        out.print("note: the model's own films are not at hand (--trained-on RUN): copies were not looked for")
    for label, count in films["of_unknown_classes"].items():
        out.print(f"left out: {count:,} films of '{label}', a class that the model does not know (--map FOLDER=LABEL)")
    if films["unreadable"]:
        out.print(f"left out: {len(films['unreadable']):,} files that cannot be read")
    if found["shift"]:
        out.print(f"shift: {found['shift']['words']}")
    out.print(
        f"external test: {films['measured']:,} films; accuracy {figure(found['overall']['accuracy'])}, "
        f"balanced accuracy {figure(found['overall']['balanced_accuracy'])}"
    )
    if found["drop"]:
        out.print(f"against {found['internal']}: accuracy {signed(found['drop']['accuracy'])}")
    for label, wrong in found["answered_wrongly"].items():
        out.print(f"{label}: {figure(wrong)} of its films are answered with another class; {found['answers'][label]}")
    if found["worst"]:
        worst = found["worst"]
        out.print(f"worst subgroup: {worst['column']} = {worst['value']}, accuracy {worst['accuracy']:.3f}")
    out.print(f"page: {page}")
    out.print(RESEARCH_USE_ONLY)


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
