"""Can a number that was measured on these films be believed? Written rules over what the audit found.

Each rule looks at one finding, and either says nothing or gives a reason of one of two weights. One reason that weighs
:data:`STOP` makes the verdict ``cannot be believed``, one that weighs :data:`CARE` makes it ``believe with care``, and
none leaves ``no evidence against it``: that is no proof, and what could not be looked at stands beside it.

The rules and where their bounds come from are told in docs/audit.md, with how they did on drawn films whose truth
is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vgg16_xray.trust.shortcuts import ALIKE, LADDER, RUNGS, WHOLE

STOP, CARE, NONE = VERDICTS = ("cannot be believed", "believe with care", "no evidence against it")
#: Reasons that a reader is told first.
STRONGEST = 3

#: Error rate of the rungs without lungs together, shared among them (Bonferroni).
ALPHA = 0.05
#: Skill (0 chance, 1 perfect) at the interval's lower end from which a rung without lungs is a reason for care.
SKILL_CARE = 0.05
#: From this skill on, and from this share of the whole film's, it explains the number.
SKILL_STOP, SHARE_STOP = 0.25, 0.5
#: Where this rung speaks too and its skill lies within the best one's interval, the advice is its own: that of the
#: others mends only what they see, and leaves what it sees.
WIDEST = "lungs_erased"
#: Cramér's V at the interval's lower end: Cohen's (1988) medium effect; and where naming the source names the class.
V_CARE, V_STOP = 0.3, 0.8
#: Share of test films with a copy, or another film of the patient, in training.
LEAK_STOP = 0.01
#: Share of films that are copies of another, where they do not cross the split.
COPIES_CARE = 0.005
#: Share of films that stand under two labels, and so many of them at least: one pair is a slip.
CONFLICTS_STOP, CONFLICTS_FEWEST = 0.01, 4
#: Fall of the mean sensitivity when a source is new.
FALL_CARE, FALL_STOP = 0.1, 0.3
#: Share of labels that out-of-fold predictions contradict.
NOISE_CARE = 0.05
#: Films, and skill on the whole film at the interval's lower end, from which on that is judged: a probe that learned
#: less contradicts labels because it is wrong.
FEWEST_FOR_NOISE, SKILL_FOR_NOISE = 100, 0.6


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why a number should not be taken as it stands."""

    #: The rule that gave it.
    rule: str
    #: :data:`STOP` or :data:`CARE`.
    weight: str
    #: In plain words, a sentence.
    headline: str
    #: The numbers behind it, a sentence or two.
    evidence: str
    #: What to do about it.
    remedy: str
    #: 0 to 1; of two reasons of one weight the stronger is told first.
    strength: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict and all that it stands on."""

    verdict: str
    reasons: tuple[Reason, ...]
    #: What could not be looked at, and why, a sentence each.
    not_checked: tuple[str, ...]

    @property
    def strongest(self) -> tuple[Reason, ...]:
        """The reasons that are told first."""
        return self.reasons[:STRONGEST]

    def as_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {
            "verdict": self.verdict,
            "reasons": [asdict(reason) for reason in self.reasons],
            "not_checked": list(self.not_checked),
        }


def judge(audit: Mapping[str, Any]) -> Verdict:
    """Judge what an audit found.

    Args:
        audit: The parts of ``audit.json`` as far as they are there, see :mod:`vgg16_xray.steps.audit`: ``films``,
            ``leaks``, ``ladder``, ``association``, ``left_out_sources``, ``noise``, ``unused``.

    Returns:
        Verdict and reasons, the strongest first.
    """
    reasons = [reason for rule in RULES if (reason := rule(audit)) is not None]
    order = sorted(reasons, key=lambda reason: (VERDICTS.index(reason.weight), -reason.strength, reason.rule))
    return Verdict(
        verdict=order[0].weight if order else NONE,
        reasons=tuple(order),
        not_checked=tuple(_not_checked(audit)),
    )


# -- leaks


def _across_the_split(audit: Mapping[str, Any]) -> Reason | None:
    leaks = audit.get("leaks") or {}
    leaked, of = leaks.get("test_films_leaked", 0), leaks.get("test_films", 0)
    if not leaked:
        return None
    share = leaked / max(of, 1)
    return Reason(
        rule="leak across the split",
        weight=STOP if share >= LEAK_STOP else CARE,
        headline="The data's own split tests on films that training has seen.",
        evidence=f"{leaked:,} of {of:,} films for validation and testing ({share:.1%}) are a copy of a training film, "
        "or show the same patient.",
        remedy="Split again so that copies and patients stay together: 'vgg16-xray run DATA --resplit' does. Numbers "
        "measured on the old split cannot be mended afterwards.",
        strength=min(1.0, 0.5 + 5 * share),
    )


def _copies(audit: Mapping[str, Any]) -> Reason | None:
    leaks = audit.get("leaks") or {}
    copies, films = leaks.get("copies", 0), audit.get("films", {}).get("films", 0)
    share = copies / max(films, 1)
    if share < COPIES_CARE or leaks.get("test_films_leaked"):
        return None
    return Reason(
        rule="copies",
        weight=CARE,
        headline="Films occur more than once.",
        evidence=f"{copies:,} of {films:,} films ({share:.1%}) are copies of another. The split of a run here keeps "
        "them together; a split by file name, which most published numbers were measured on, does not.",
        remedy="Leave one of each in the data, or keep the groups of the manifest together in every split. Do not "
        "compare with numbers that were measured on another split of these films.",
        strength=min(0.9, 0.2 + 5 * share),
    )


def _conflicts(audit: Mapping[str, Any]) -> Reason | None:
    conflicts, films = (audit.get("leaks") or {}).get("conflicts", 0), audit.get("films", {}).get("films", 0)
    if not conflicts:
        return None
    share = conflicts / max(films, 1)
    return Reason(
        rule="two labels",
        weight=STOP if share >= CONFLICTS_STOP and conflicts >= CONFLICTS_FEWEST else CARE,
        headline="The same film stands under two labels.",
        evidence=f"{conflicts:,} of {films:,} films ({share:.1%}) show what a film of another class shows: one of the "
        "two labels must be wrong, or the classes do not exclude each other.",
        remedy="Look at the pairs, listed by name, with whoever gave the labels; until then only train on them.",
        strength=min(0.9, 0.3 + 10 * share),
    )


# -- shortcuts


def _without_lungs(audit: Mapping[str, Any]) -> Reason | None:
    ladder = audit.get("ladder") or {}
    measured = {
        rung.key: ladder[rung.key] for rung in LADDER if rung.without_lungs and "skill_low" in ladder.get(rung.key, {})
    }
    alpha = ALPHA / max(len(measured), 1)
    found = {key: rung for key, rung in measured.items() if rung["p"] <= alpha and rung["skill_low"] >= SKILL_CARE}
    if not found:
        return None
    best = max(found, key=lambda key: found[key]["skill_low"])
    top, whole = found[best], ladder.get(WHOLE.key, {})
    near = WIDEST in found and found[WIDEST]["skill"] >= top["skill_low"]
    explains = top["skill_low"] >= max(SKILL_STOP, SHARE_STOP * whole.get("skill", 0.0))
    of_whole = f", and on the whole film {whole['macro_f1']:.2f}" if "macro_f1" in whole else ""
    others = [
        f"{RUNGS[key].name.lower()} {rung['macro_f1']:.2f}"
        for key, rung in sorted(found.items(), key=lambda item: -item[1]["macro_f1"])
        if key != best
    ]
    also = f" Also: {', '.join(others)}." if others else ""
    return Reason(
        rule="told without the lungs",
        weight=STOP if explains else CARE,
        headline="The class can be told without looking at the lungs."
        if explains
        else "Something other than the lungs gives part of the class away.",
        evidence=f"Given only this: {RUNGS[best].words} – the same simple probe reaches a macro-F1 of "
        f"{top['macro_f1']:.2f} ({top['low']:.2f}–{top['high']:.2f}); chance is {top['chance']:.2f}{of_whole}.{also}",
        remedy=REMEDIES[WIDEST if near else best],
        strength=min(1.0, max(0.0, top["skill_low"])),
    )


REMEDIES: Mapping[str, str] = {
    "metadata": "Write all films anew in one format, size and compression before training, and ask why the classes "
    "were stored differently: where they come from is the likely answer.",
    "border": "Crop every film to the chest before training, bring brightness to a common scale, and audit again; then "
    "test on films of a hospital that gave none of the training films.",
    "corners": "Crop or mask the corners where markers and text stand, in all classes alike, and audit again.",
    "lungs_erased": "Collect each class from the same hospitals, ages and machines. Until then, report what is reached "
    "with the lungs erased beside every figure, and test on films of a hospital that gave none of these.",
}


def _class_is_source(audit: Mapping[str, Any]) -> Reason | None:
    found = audit.get("association") or {}
    v = found.get("cramers_v")
    if not v or v["value"] is None:
        return None
    low = v["low"] if v["low"] is not None else v["value"]
    if low < V_CARE:
        return None
    stop = low >= V_STOP
    alone = found.get("alone", [])
    who = f" No source of {_listed(alone)} has another class." if alone else ""
    return Reason(
        rule="class is source",
        weight=STOP if stop else CARE,
        headline="Class and hospital are nearly the same thing."
        if stop
        else "Some classes come mostly from certain sources.",
        evidence=f"Whoever is told only a film's source, and never sees it, names the class of "
        f"{found['from_source']:.0%} of the films; the most frequent class is {found['majority']:.0%} of them. "
        f"Cramér's V is {v['value']:.2f} (0 independent, 1 the same).{who}",
        remedy="Bring films of every class from the same sources, at least two a class; then train and test with a "
        "source left out. No method of training mends a class that has a hospital of its own.",
        strength=min(1.0, low),
    )


def _new_source(audit: Mapping[str, Any]) -> Reason | None:
    found = audit.get("left_out_sources") or {}
    known, new = found.get("macro_known"), found.get("macro")
    if known is None or new is None or (fall := known - new) < FALL_CARE:
        return None
    worst = min(found["left_out"], key=lambda row: row["sensitivity"] - row["sensitivity_known"])
    return Reason(
        rule="new source",
        weight=STOP if fall >= FALL_STOP else CARE,
        headline="A source that training did not have is recognised much less well.",
        evidence=f"With the film's source kept from it, the probe's sensitivity falls from {known:.2f} to {new:.2f} on "
        f"average; most on {worst['label']} of {worst['source']}: {worst['sensitivity_known']:.2f} to "
        f"{worst['sensitivity']:.2f}.",
        remedy="Report leave-one-source-out figures in place of a random split's, and test at another hospital.",
        strength=min(0.95, fall),
    )


# -- labels


def _noise(audit: Mapping[str, Any]) -> Reason | None:
    found = audit.get("noise") or {}
    if not found or labels_not_judged(audit) or (share := found["suspected"] / found["films"]) < NOISE_CARE:
        return None
    return Reason(
        rule="label noise",
        weight=CARE,
        headline="Many labels disagree with what similar films are called.",
        evidence=f"{found['suspected']:,} of {found['films']:,} films ({share:.1%}) are called one class and look like "
        "another to a probe that has not seen them.",
        remedy="Have the listed films read again, blind to their label. Nothing was removed. Until then a number "
        "measured on them may be too low as well as too high.",
        strength=min(0.6, share),
    )


def labels_not_judged(audit: Mapping[str, Any]) -> str:
    """Why nothing is concluded from contradicted labels, a sentence; empty where something is.

    Args:
        audit: See :func:`judge`.
    """
    films = (audit.get("noise") or {}).get("films", 0)
    if films < FEWEST_FOR_NOISE:
        return f"Fewer than {FEWEST_FOR_NOISE} films: whether many labels are wrong cannot be judged."
    skill = (audit.get("ladder") or {}).get(WHOLE.key, {}).get("skill_low", 0.0)
    if skill < SKILL_FOR_NOISE:
        return (
            "Whether many labels are wrong cannot be judged: the simple probe knows these classes too little to "
            f"contradict anybody (skill at the lower end {max(skill, 0.0):.2f} of 1, needed {SKILL_FOR_NOISE})."
        )
    return ""


RULES: Sequence[Callable[[Mapping[str, Any]], Reason | None]] = (
    _across_the_split,
    _copies,
    _conflicts,
    _class_is_source,
    _without_lungs,
    _new_source,
    _noise,
)


def _not_checked(audit: Mapping[str, Any]) -> list[str]:
    out = [f"{unused}." for unused in audit.get("unused", [])]
    # A table that is there and was not used says above what it lacks.
    add = "" if out else " Add a column '{}' to metadata.csv."
    films = audit.get("films", {})
    if films.get("films") and films.get("without_source") == films["films"]:
        out.append(
            "The data name no source, so it was not checked whether class and hospital are the same thing, nor what a "
            "new hospital would do." + add.format("source")
        )
    elif films and films.get("sources") == 1:
        out.append("All films come from one source, so nothing here says how another hospital's films would do.")
    elif films.get("without_source"):
        out.append(f"The source of {films['without_source']:,} films is unknown; of them nothing is said about it.")
    if films.get("without_patient"):
        out.append(
            f"The patient of {films['without_patient']:,} of {films['films']:,} films is unknown: two films of one "
            "person, taken on different days, may stand on both sides of the split." + add.format("patient_id")
        )
    for rung in LADDER:
        state = (audit.get("ladder") or {}).get(rung.key, {})
        if state.get("left_out", ALIKE) != ALIKE:
            out.append(f"{rung.name}: not measured, {state['left_out']}.")
    if audit.get("noise") and (why := labels_not_judged(audit)):
        out.append(why)
    out += [str(note) for note in audit.get("notes", [])]
    return out


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
