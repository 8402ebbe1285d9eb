"""Every rule of the verdict, at its bound and below it."""

from __future__ import annotations

from typing import Any

import pytest

from vgg16_xray.trust.shortcuts import ALIKE
from vgg16_xray.trust.verdict import ALPHA, CARE, NONE, REMEDIES, STOP, judge


def rung(f1: float, *, low: float | None = None, chance: float = 0.25, p: float = 0.005) -> dict[str, Any]:
    low = f1 - 0.05 if low is None else low
    skill, skill_low = (f1 - chance) / (1 - chance), (low - chance) / (1 - chance)
    return {"macro_f1": f1, "low": low, "high": f1 + 0.05, "chance": chance, "p": p, "skill": skill} | {
        "skill_low": skill_low
    }


WHOLE = rung(0.9)


def association(v: float) -> dict[str, Any]:
    return {"cramers_v": {"value": v, "low": v, "high": v}, "alone": [], "from_source": 0.9, "majority": 0.5}


@pytest.mark.parametrize(
    ("audit", "verdict", "rules"),
    [
        ({}, NONE, []),
        ({"ladder": {"border": rung(0.3, p=0.2), "whole": WHOLE}}, NONE, []),
        ({"ladder": {"border": rung(0.85), "whole": WHOLE}}, STOP, ["told without the lungs"]),
        ({"ladder": {"border": rung(0.45), "whole": WHOLE}}, CARE, ["told without the lungs"]),
        # Large, but not more than chance could do; certain, but too small to matter.
        ({"ladder": {"border": rung(0.45, p=0.06), "whole": WHOLE}}, NONE, []),
        ({"ladder": {"border": rung(0.3, low=0.27), "whole": WHOLE}}, NONE, []),
        # With a weak whole film a weak rung is no explanation, but half of a strong one is.
        ({"ladder": {"corners": rung(0.65, low=0.6), "whole": rung(0.99)}}, CARE, ["told without the lungs"]),
        # What holds some of the lungs is no reason.
        ({"ladder": {"histogram": rung(0.9), "thumbnail": rung(0.9), "lungs_only": rung(0.9)}}, NONE, []),
        ({"association": association(0.9)}, STOP, ["class is source"]),
        ({"association": association(0.5)}, CARE, ["class is source"]),
        ({"association": association(0.2)}, NONE, []),
        ({"leaks": {"test_films_leaked": 1, "test_films": 1000}}, CARE, ["leak across the split"]),
        ({"leaks": {"test_films_leaked": 10, "test_films": 1000}}, STOP, ["leak across the split"]),
        ({"films": {"films": 1000}, "leaks": {"copies": 5}}, CARE, ["copies"]),
        ({"films": {"films": 1000}, "leaks": {"copies": 4}}, NONE, []),
        ({"films": {"films": 1000}, "leaks": {"conflicts": 1}}, CARE, ["two labels"]),
        ({"films": {"films": 1000}, "leaks": {"conflicts": 10}}, STOP, ["two labels"]),
        ({"films": {"films": 100}, "leaks": {"conflicts": 2}}, CARE, ["two labels"]),
        ({"ladder": {"whole": WHOLE}, "noise": {"films": 100, "suspected": 5}}, CARE, ["label noise"]),
        ({"ladder": {"whole": WHOLE}, "noise": {"films": 100, "suspected": 4}}, NONE, []),
        ({"ladder": {"whole": WHOLE}, "noise": {"films": 99, "suspected": 50}}, NONE, []),
        # A probe that knows little contradicts labels because it is wrong.
        ({"ladder": {"whole": rung(0.7)}, "noise": {"films": 300, "suspected": 130}}, NONE, []),
    ],
)
def test_rules(audit: dict[str, Any], verdict: str, rules: list[str]) -> None:
    found = judge(audit)
    assert found.verdict == verdict
    assert [reason.rule for reason in found.reasons] == rules
    assert all(reason.headline and reason.evidence and reason.remedy for reason in found.reasons)


@pytest.mark.parametrize(("new", "verdict"), [(0.45, STOP), (0.7, CARE), (0.85, NONE)])
def test_fall_at_a_new_source(new: float, verdict: str) -> None:
    row = {"source": "A", "label": "x", "films": 50, "sensitivity": new, "sensitivity_known": 0.9}
    assert judge({"left_out_sources": {"macro": new, "macro_known": 0.9, "left_out": [row]}}).verdict == verdict


def test_the_error_rate_is_shared_among_the_rungs_that_were_measured() -> None:
    p = ALPHA / 3
    one = {"border": rung(0.85, p=p), "whole": WHOLE}
    four = {name: rung(0.25, p=0.9) for name in ("corners", "metadata", "lungs_erased")} | one
    assert judge({"ladder": one}).verdict == STOP
    assert judge({"ladder": four}).verdict == NONE


@pytest.mark.parametrize(
    ("erased", "advice"),
    [
        (rung(0.67), "lungs_erased"),
        (rung(0.62), "corners"),
        (rung(0.67, p=0.2), "corners"),
        ({"left_out": "nothing outlines the lungs"}, "corners"),
    ],
    ids=["nearly as good", "less good", "chance", "not measured"],
)
def test_to_crop_the_corners_is_no_advice_where_all_without_the_lungs_says_as_much(
    erased: dict[str, Any], advice: str
) -> None:
    (reason,) = judge({"ladder": {"corners": rung(0.7), "lungs_erased": erased, "whole": WHOLE}}).reasons
    assert reason.remedy == REMEDIES[advice]
    assert "four squares" in reason.evidence


def test_the_heaviest_and_strongest_reasons_come_first() -> None:
    audit = {
        "films": {"films": 1000},
        "leaks": {"copies": 100, "conflicts": 1},
        "association": association(0.95),
        "ladder": {"border": rung(0.85), "whole": WHOLE},
        "noise": {"films": 100, "suspected": 50},
    }
    found = judge(audit)
    assert [reason.rule for reason in found.reasons[:2]] == ["class is source", "told without the lungs"]
    assert [reason.weight for reason in found.reasons] == [STOP, STOP, CARE, CARE, CARE]
    assert len(found.strongest) == 3


def test_what_could_not_be_checked_is_said() -> None:
    films = {"films": 10, "without_source": 10, "sources": 0, "without_patient": 4}
    found = judge({"films": films, "ladder": {"lungs_erased": {"left_out": "nothing outlines the lungs"}}})
    assert found.verdict == NONE
    text = " ".join(found.not_checked)
    assert "name no source" in text
    assert "4 of 10" in text
    assert "nothing outlines the lungs" in text
    for audit in ({"films": 99}, {"films": 300}):
        (why,) = judge({"ladder": {"whole": rung(0.7)}, "noise": {"suspected": 50, **audit}}).not_checked
        assert "cannot be judged" in why


def test_files_that_say_the_same_of_themselves_are_no_gap() -> None:
    assert not judge({"ladder": {"metadata": {"left_out": ALIKE}}}).not_checked


def test_a_table_that_was_not_used_is_said_and_not_asked_for_again() -> None:
    films = {"films": 10, "without_source": 10, "sources": 0, "without_patient": 10}
    assert sum("Add a column" in note for note in judge({"films": films}).not_checked) == 2
    found = judge({"films": films, "unused": ["metadata.csv was not used: it has no rows"]})
    assert found.not_checked[0] == "metadata.csv was not used: it has no rows."
    assert len(found.not_checked) == 3
    assert not any("Add a column" in note for note in found.not_checked)
