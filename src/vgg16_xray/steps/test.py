"""Step 6: the model meets the test films, once.

Reads what steps 4 and 5 left. Leaves ``test.json`` and ``predictions.csv``, a row a film of every side. The test films
are sealed: each time that they are measured is a row of ``test_readings.csv``, which is never written anew.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vgg16_xray import ranks
from vgg16_xray.files import read_json, write_json, write_text
from vgg16_xray.films.split import TEST
from vgg16_xray.rundir import RunDir
from vgg16_xray.steps.train import rows_of
from vgg16_xray.steps.validate import TrainedRun, validate

if TYPE_CHECKING:
    import pandas as pd

STEP = "test"


def test(run: RunDir) -> dict[str, Any]:
    """Predict every film of the run and measure the test films.

    Returns:
        What ``test.json`` holds, see :func:`vgg16_xray.trust.metrics.evaluate`; ``calibration`` and ``operating``:
        what was fitted on the validation films, measured on these (:mod:`vgg16_xray.trust.calibrate`,
        :mod:`vgg16_xray.trust.operating`). Step 5 is done first where it is not.

    Raises:
        UserError: A step before has not finished.
    """
    started = time.monotonic()
    trained = TrainedRun(run)
    key = trained.key
    if ranks.agree(run.is_done(STEP, key, [run.test, run.predictions])):
        return dict(read_json(run.test))
    validated = validate(run)
    scores = trained.probabilities(np.arange(len(trained.manifest)))

    def measure() -> dict[str, Any]:
        from vgg16_xray.trust import calibrate, operating

        run.note_reading(trained.checkpoint_sha256)
        rows, seed = rows_of(trained.manifest, TEST), trained.plan.seed
        targets, groups = trained.truth(rows)
        probabilities = calibrate.softmax(calibrate.logits_of(scores), validated["calibration"]["temperature"])
        measured = trained.measure(scores[rows], TEST) | {
            "calibration": calibrate.test(validated["calibration"], scores[rows], targets, groups, seed=seed)
            | {"methods": validated["calibration"]["methods"]},
            "operating": operating.measure(validated["operating"], probabilities[rows], targets, groups, seed=seed),
        }
        table = predictions_table(
            trained.manifest, scores, probabilities, trained.plan.labels, thresholds=validated["operating"]
        )
        write_text(run.predictions, table.to_csv(index=False, lineterminator="\n"))
        write_json(run.test, measured)
        run.stamp(STEP, key, seconds=time.monotonic() - started)
        return measured

    return ranks.by_first(measure, lambda: dict(read_json(run.test)))


def predictions_table(
    manifest: pd.DataFrame,
    scores: np.ndarray,
    probabilities: np.ndarray,
    labels: tuple[str, ...],
    *,
    thresholds: Sequence[Sequence[Mapping[str, Any]]],
) -> pd.DataFrame:
    """A row a film: what it is, and what the model says.

    Args:
        manifest: (N rows), see :mod:`vgg16_xray.steps.preprocess`.
        scores: (N, K) softmax scores, row i belongs to row i of the manifest: ``confidence``, ``p_<label>``.
        probabilities: (N, K) the same after calibration: ``calibrated_confidence`` is the largest,
            ``calibrated_<label>`` each.
        labels: (K,).
        thresholds: Of each class, see :func:`vgg16_xray.trust.operating.fit`: ``reaches_<label>`` is 1 where the
            calibrated probability reaches the one for specificity.
    """
    table = manifest[["path", "collection", "label", "split", "patient_id", "source"]].copy()
    table["prediction"] = [labels[i] for i in scores.argmax(1)]
    table["confidence"] = scores.max(1).round(6)
    table["calibrated_confidence"] = probabilities.max(1).round(6)
    for i, label in enumerate(labels):
        table[f"p_{label}"] = scores[:, i].round(6)
    for i, label in enumerate(labels):
        table[f"calibrated_{label}"] = probabilities[:, i].round(6)
    for i, label in enumerate(labels):
        cut = next((one["threshold"] for one in thresholds[i] if one["wanted"] == "specificity"), None)
        table[f"reaches_{label}"] = "" if cut is None else (probabilities[:, i] >= cut).astype(int)
    return table
