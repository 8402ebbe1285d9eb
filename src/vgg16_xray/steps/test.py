"""Step 6: the model meets the test films, once.

Reads what step 4 left. Leaves ``test.json`` and ``predictions.csv``, a row a film of every side.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from vgg16_xray import ranks
from vgg16_xray.files import read_json, write_json, write_text
from vgg16_xray.films.split import TEST
from vgg16_xray.rundir import RunDir, key_of
from vgg16_xray.steps.train import rows_of
from vgg16_xray.steps.validate import TrainedRun

if TYPE_CHECKING:
    import pandas as pd

STEP = "test"


def test(run: RunDir) -> dict[str, Any]:
    """Predict every film of the run and measure the test films.

    Returns:
        What ``test.json`` holds, see :func:`vgg16_xray.trust.metrics.evaluate`.

    Raises:
        UserError: A step before has not finished.
    """
    started = time.monotonic()
    trained = TrainedRun(run)
    key = key_of(trained.checkpoint_sha256, trained.plan.key)
    if ranks.agree(run.is_done(STEP, key, [run.test, run.predictions])):
        return dict(read_json(run.test))
    probabilities = trained.probabilities(np.arange(len(trained.manifest)))

    def measure() -> dict[str, Any]:
        measured = trained.measure(probabilities[rows_of(trained.manifest, TEST)], TEST)
        table = predictions_table(trained.manifest, probabilities, trained.plan.labels)
        write_text(run.predictions, table.to_csv(index=False, lineterminator="\n"))
        write_json(run.test, measured)
        run.stamp(STEP, key, seconds=time.monotonic() - started)
        return measured

    return ranks.by_first(measure, lambda: dict(read_json(run.test)))


def predictions_table(manifest: pd.DataFrame, probabilities: np.ndarray, labels: tuple[str, ...]) -> pd.DataFrame:
    """A row a film: what it is, and what the model says.

    Args:
        manifest: (N rows), see :mod:`vgg16_xray.steps.preprocess`.
        probabilities: (N, K), row i belongs to row i of the manifest.
        labels: (K,).
    """
    table = manifest[["path", "collection", "label", "split", "patient_id", "source"]].copy()
    table["prediction"] = [labels[i] for i in probabilities.argmax(1)]
    table["confidence"] = probabilities.max(1).round(6)
    for i, label in enumerate(labels):
        table[f"p_{label}"] = probabilities[:, i].round(6)
    return table
