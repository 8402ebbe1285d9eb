"""The model card tells what the audit said of the films, above the figures that were measured on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vgg16_xray.bundle.card import model_card
from vgg16_xray.bundle.export import audited
from vgg16_xray.bundle.format import BundleConfig
from vgg16_xray.files import write_json
from vgg16_xray.rundir import AuditDir, RunDir
from vgg16_xray.steps.audit import STEP, key_of_audit

REASONS = [
    {"rule": name, "headline": f"{name} speaks.", "evidence": f"Proof of {name}.", "remedy": f"Mend {name}."}
    for name in ("first", "second", "third", "fourth")
]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


def card(figures: dict[str, Any]) -> str:
    figure = {"value": 0.9, "low": 0.8, "high": 1.0}
    names = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc")
    tested = {"images": 9, "overall": dict.fromkeys(names, figure), "per_class": {}}
    return model_card(
        BundleConfig(
            labels=("COVID", "Normal"),
            size=224,
            preprocessing="caffe",
            train_from="head",
            recipe="fast",
            temperature=1.0,
            head={"kind": "gap", "cam_weights": None},
            figures={"test": tested} | figures,
        )
    )


def test_the_verdict_and_its_three_strongest_reasons_stand_above_the_figures(run: RunDir) -> None:
    found = {"verdict": "cannot be believed", "reasons": REASONS, "not_checked": ["No source is named."]}
    write_json(AuditDir(run.path).numbers, found)
    run.stamp(STEP, key_of_audit(run), seconds=0)
    text = card({"audit": audited(run)})
    assert "**Cannot be believed**" in text
    assert text.index("Cannot be believed") < text.index("0.900 (0.800–1.000)")
    for reason in REASONS[:3]:
        assert f"{reason['headline']} {reason['evidence']} What to do: {reason['remedy']}" in text
    assert "fourth" not in text
    assert "No source is named." in text
    assert "have changed" not in text


def test_an_audit_of_other_films_is_told_as_such(run: RunDir) -> None:
    found = {"verdict": "believe with care", "reasons": REASONS[:1], "not_checked": []}
    write_json(AuditDir(run.path).numbers, found)
    assert "The films have changed since." in card({"audit": audited(run)})


def test_films_that_were_not_audited_are_told_as_such(run: RunDir) -> None:
    assert "were not audited" in card({"audit": audited(run)})
    # A bundle of an older version does not know.
    assert "audited" not in card({})
