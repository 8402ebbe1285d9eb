"""The model card: what the model was trained on, how good it is on whose films, and what it must not be used for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vgg16_xray import RESEARCH_USE_ONLY
from vgg16_xray.bundle.format import BundleConfig
from vgg16_xray.bundle.localise import COLUMNS, sentence

#: Figures of a side of the split that the card shows, and what they are called.
SHOWN = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "macro_auroc": "macro AUROC",
}
#: Of fewer drawn films the card says nothing: a model of real films seldom knows what is drawn.
ENOUGH = 6


def model_card(config: BundleConfig) -> str:
    """The card as Markdown."""
    return "\n".join(_lines(config)) + "\n"


def _lines(config: BundleConfig) -> Iterator[str]:
    yield from ("---", "library_name: onnx", "tags: [chest radiograph, VGG16, research]", "---", "")
    yield from ("# VGG16 on chest radiographs", "", f"> **{RESEARCH_USE_ONLY}**", "")
    part = "The first four blocks of VGG16" if config.blocks == 4 else "VGG16"
    yield (
        f"{part} (Simonyan & Zisserman 2014) with ImageNet's weights, trained from `{config.train_from}` on with the "
        f"recipe `{config.recipe}`, head `{config.head['kind']}`. It tells {', '.join(config.labels)}, and "
        "knows nothing else."
    )
    yield ""
    yield from _trained_on(config.trained_on)
    yield from _believed(config.figures.get("audit"))
    yield from _figures(config)
    yield from _recalibrated(config.recalibrated)
    yield from _elsewhere(config)
    yield from _int8(config.figures.get("int8_against_float32"))
    yield from _heat(config.figures.get("heat_maps"))
    yield from _localisation(config.figures.get("localisation"))
    yield from ("## How to ask it", "", "```", "vgg16-xray predict film.png --model THIS-FOLDER", "```", "")
    yield (
        "`model.onnx` and `model.int8.onnx` take grey pixels `(B, H, W)` uint8 of any size and give `probabilities`, "
        "`logits`, `embedding` and `feature_map`: the stretching to "
        f"{config.size} x {config.size}, the normalisation and the order of the colours are inside."
    )
    yield from ("", f"Made by vgg16-xray {config.version} of the checkpoint {config.checkpoint_sha256[:16]}.")


def _trained_on(what: Mapping[str, Any]) -> Iterator[str]:
    films = what.get("films")
    if not films:
        return
    labels = sorted({label for counts in films.values() for label in counts})
    yield from (
        "## What it was trained on",
        "",
        f"Films from {', '.join(what['collections'])}; split {what['split']}.",
        "",
    )
    yield f"| films | {' | '.join(labels)} |"
    yield "|---" * (len(labels) + 1) + "|"
    for side, counts in films.items():
        yield f"| {side} | {' | '.join(f'{counts.get(label, 0):,}' for label in labels)} |"
    sources = [f"{name or 'not known'} {count:,}" for name, count in what["sources"].items()]
    yield from ("", f"Sources: {'; '.join(sources)}.", "")


def _believed(audit: Mapping[str, Any] | None) -> Iterator[str]:
    """The verdict of the audit with its strongest reasons, above the figures that it is about."""
    if audit is None:
        return
    yield from ("## Can its figures be believed?", "")
    if not audit["verdict"]:
        yield from ("Not known: the films that it was trained on were not audited.", "")
        return
    yield from (f"**{audit['verdict'].capitalize()}**, says the audit of the films that it was trained on.", "")
    if not audit["fresh"]:
        yield from ("The films have changed since.", "")
    for number, reason in enumerate(audit["reasons"], start=1):
        yield f"{number}. {reason['headline']} {reason['evidence']} What to do: {reason['remedy']}"
    yield from ([""] if audit["reasons"] else [])
    if audit["not_checked"]:
        yield from (f"Not checked: {' '.join(audit['not_checked'])}", "")


def _figures(config: BundleConfig) -> Iterator[str]:
    sides = {side: config.figures[side] for side in ("validation", "test") if side in config.figures}
    if not sides:
        return
    yield from ("## How good it is on films of the same hospitals", "", "95 % intervals by bootstrap over groups.", "")
    yield f"| | films | {' | '.join(SHOWN.values())} |"
    yield "|---" * (len(SHOWN) + 2) + "|"
    for side, measured in sides.items():
        figures = (_figure(measured["overall"][name]) for name in SHOWN)
        yield f"| {side} | {measured['images']:,} | {' | '.join(figures)} |"
    last = list(sides)[-1]
    yield from ("", f"| {last} | films | sensitivity | specificity | precision |", "|---|---|---|---|---|")
    for label, of_class in sides[last]["per_class"].items():
        figures = (_figure(of_class[name]) for name in ("sensitivity", "specificity", "precision"))
        yield f"| {label} | {of_class['support']:,} | {' | '.join(figures)} |"
    if config.recalibrated is None:
        said = f"Probabilities are calibrated on the validation films (temperature {config.temperature:.3f})."
    else:
        said = "These figures are from before the bundle was recalibrated."
    yield from ("", said, "")


#: What the card shows of before and after a recalibration.
BEFORE_AND_AFTER = {
    "ECE": "ece",
    "Brier score": "brier",
    "log loss": "log_loss",
    "accuracy": "accuracy",
    "sets hold the truth": "coverage",
    "classes in a set": "size",
    "refused or abstained": "abstained",
    "answered wrongly": "answered_wrongly",
}


def _recalibrated(done: Mapping[str, Any] | None) -> Iterator[str]:
    if not done:
        return
    counts = ", ".join(f"{label} {count:,}" for label, count in done["films"].items())
    yield from ("## Recalibrated for a site", "")
    yield (
        f"On {done['time'][:10]}, on the site's own labelled films ({counts}; {done['groups']:,} groups), by "
        f"vgg16-xray {done['version']}: probabilities by the method '{done['method']}', conformal sets, thresholds. "
        "The network's weights are those of before, byte for byte. "
        + (
            f"{done['own']:,} films that the model was trained on were taken out first."
            if done["looked_for_own"]
            else "Nobody looked whether the model was trained on some of them."
        )
    )
    prior = ", ".join(f"{label} {share:.3f}" for label, share in done["prior"].items())
    yield (
        f"Probabilities hold where classes are as common as this{' (said by the reader)' * done['prior_given']}: "
        f"{prior}. After: each film by numbers that were fitted to others ({done['folds']} folds); 95 % intervals."
    )
    yield from ("", "| | before | after |", "|---|---|---|")
    for name, key in BEFORE_AND_AFTER.items():
        sides = [done[side]["probability"].get(key) or done[side].get(key) for side in ("before", "after")]
        yield f"| {name} | {' | '.join('–' if side is None else _figure(side) for side in sides)} |"
    yield ""


def _figure(figure: Mapping[str, float | None]) -> str:
    if figure["value"] is None:
        return "–"
    if figure["low"] is None or figure["high"] is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f} ({figure['low']:.3f}–{figure['high']:.3f})"


def _elsewhere(config: BundleConfig) -> Iterator[str]:
    yield from ("## How badly it fails elsewhere", "")
    yield (
        "In public collections of this kind class and hospital are nearly the same thing. A model that learned the "
        "hospital gets the same figures as one that learned the disease, and is worth nothing in another hospital."
    )
    rows = config.figures.get("elsewhere", [])
    if rows:
        yield from ("", "Films of diseases that it does not know, so that every answer is wrong:", "")
        yield "| films | | answered | abstained | refused | answered as |"
        yield "|---|---|---|---|---|---|"
        for row in rows:
            counts = " | ".join(f"{row[answer]:,}" for answer in ("answered", "abstained", "refused"))
            said = ", ".join(f"{label} {count:,}" for label, count in row["as"].items()) or "–"
            yield f"| {row['name']} | {row['films']:,} | {counts} | {said} |"
    yield ""


def _int8(found: Mapping[str, Any] | None) -> Iterator[str]:
    if not found:
        return
    yield from ("## int8 against float32", "")
    yield (
        f"On {found['films']:,} validation films: the same answer for {found['agreement']:.2%}, macro-F1 "
        f"{found['macro_f1']['int8']:.4f} against {found['macro_f1']['float32']:.4f}, a probability differs by at most "
        f"{found['worst_probability_difference']:.3f} and by {found['mean_probability_difference']:.4f} in the mean. "
        "Weights have seven bits, so that processors without VNNI give the same answers."
    )
    yield ""


def _heat(found: Mapping[str, Any] | None) -> Iterator[str]:
    if not found:
        return
    deletion, insertion, drawn = found["deletion"], found["insertion"], found["drawn"]
    yield from ("## What its heat maps are worth", "")
    yield (
        f"Grad-CAM of the logit on the last 14 x 14 map. On {found['films']} validation films the answered class's "
        f"probability, averaged while parts of the film are blurred, hottest first, is {deletion['heat']:.3f} (in "
        f"random order {deletion['random']:.3f}: lower is better); while they appear, {insertion['heat']:.3f} "
        f"({insertion['random']:.3f}: higher is better). "
        + "Rank correlation with the maps of the model with parts drawn anew: "
        + ", ".join(f"{name} {value:+.2f}" for name, value in found["randomised"].items())
        + " (near 0: the map shows what was learned)."
    )
    if drawn["films"] >= ENOUGH:
        yield (
            f"On {drawn['films']} drawn films whose class it named, {drawn['inside']:.0%} of the heat lies inside the "
            f"drawn lesion, which covers {drawn['area']:.0%} of the film."
        )
    yield from ("A heat map shows where the model looked; it does not show that it looked at the disease.", "")


def _localisation(found: Mapping[str, Any] | None) -> Iterator[str]:
    if not found:
        return
    films = found["films"]
    taken = (
        f"{films['own']:,} that were among its own films, or copies of them, were taken out"
        if films["looked_for_own"]
        else "its own films were not looked for among them"
    )
    yield from ("## Do its heat maps look where the disease is?", "", f"{sentence(found)}", "")
    yield (
        f"{films['measured']:,} films on which opacities and lungs are drawn; {taken}. The map is that of the most "
        f"probable class of disease. Random weights: the mean of {found['random_networks']} networks. 95 % intervals."
    )
    yield from ("", f"| | films | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 2) + "|")
    for region, of in found["all"].items():
        if of is not None:
            for measure, words in (("pointing", "hottest point on"), ("share", "heat on")):
                figures = (_figure(of[measure][name]) for name in COLUMNS)
                yield f"| {words} {region} | {of['films']:,} | {' | '.join(figures)} |"
    yield ""
