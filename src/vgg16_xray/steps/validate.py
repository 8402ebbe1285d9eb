"""Step 5: the best epoch is loaded again, measured and calibrated on the validation films, never on the test films.

Reads what step 4 left. Leaves ``validation.json``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from vgg16_xray import RESEARCH_USE_ONLY, ranks
from vgg16_xray.errors import UserError
from vgg16_xray.files import read_json, write_json
from vgg16_xray.films.split import VALIDATION
from vgg16_xray.learn.devices import place
from vgg16_xray.rundir import RunDir, key_of, sha256_of
from vgg16_xray.steps.initialise import Plan, read_plan
from vgg16_xray.steps.preprocess import read_manifest
from vgg16_xray.steps.train import Features, open_pixels, read_history, rows_of, targets_of

if TYPE_CHECKING:
    import pandas as pd

    from vgg16_xray.learn.checkpoint import ModelConfig

STEP = "validate"
#: Raised when the same model and films would give other contents of ``validation.json`` or ``test.json``.
VERSION = 3


def validate(run: RunDir) -> dict[str, Any]:
    """Measure the best epoch on the validation films.

    Returns:
        What ``validation.json`` holds: the numbers of :func:`vgg16_xray.trust.metrics.evaluate`, which epoch was
        chosen by what, and every epoch; ``calibration`` (:func:`vgg16_xray.trust.calibrate.fit`, and
        ``methods``: :func:`vgg16_xray.trust.recalibrate.compare_on_validation`) and ``operating``
        (:func:`vgg16_xray.trust.operating.fit`, a list of thresholds a class).

    Raises:
        UserError: A step before has not finished.
    """
    started = time.monotonic()
    trained = TrainedRun(run)
    key = trained.key
    if ranks.agree(run.is_done(STEP, key, [run.validation])):
        return dict(read_json(run.validation))
    rows = rows_of(trained.manifest, VALIDATION)
    scores = trained.probabilities(rows)

    def measure() -> dict[str, Any]:
        from vgg16_xray.trust import calibrate, operating
        from vgg16_xray.trust.recalibrate import compare_on_validation

        targets, groups = trained.truth(rows)
        calibration = calibrate.fit(scores, targets, groups, seed=trained.plan.seed) | {
            "methods": compare_on_validation(scores, targets, groups, trained.plan.labels, seed=trained.plan.seed)
        }
        probabilities = calibrate.softmax(calibrate.logits_of(scores), calibration["temperature"])
        measured = trained.measure(scores, VALIDATION) | {
            "calibration": calibration,
            "operating": operating.fit(probabilities, targets),
            "epochs": read_history(run.history),
        }
        write_json(run.validation, measured)
        run.stamp(STEP, key, seconds=time.monotonic() - started)
        return measured

    return ranks.by_first(measure, lambda: dict(read_json(run.validation)))


class TrainedRun:
    """The best model of a run beside the films it was trained, chosen and tested on.

    Raises:
        UserError: A step before has not finished, or a file is damaged.
    """

    def __init__(self, run: RunDir) -> None:
        from vgg16_xray.learn.checkpoint import load_model

        run.require_step("train", made_by="train")
        self.run = run
        self.plan: Plan = read_plan(run)
        if run.stamps()["train"]["key"] != self.plan.key:
            # Its frozen part need not be what the plan says, and its features would be stored under the plan's name.
            raise UserError(
                f"{run.path}: must be trained as {run.config.name} says, found a model that was trained otherwise",
                hint=f"run first: vgg16-xray train {run.path}",
            )
        self.manifest: pd.DataFrame = read_manifest(run)
        self.config: ModelConfig
        self._model, self.config = load_model(run.require(run.best, made_by="train"))
        place(self._model, self.plan.device.torch)
        if self.config.labels != self.plan.labels:
            raise UserError(f"{run.best}: must have the classes {self.plan.labels}, found {self.config.labels}")
        self.checkpoint_sha256 = sha256_of(run.best)

    @property
    def key(self) -> str:
        """What the figures of this model depend on."""
        return key_of(VERSION, self.checkpoint_sha256, self.plan.key)

    def truth(self, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """(n,) true classes and n names of groups of the films `rows` (n,)."""
        return targets_of(self.manifest, self.plan)[rows], list(self.manifest["group"].iloc[rows])

    def probabilities(self, rows: np.ndarray) -> np.ndarray:
        """(n, K) float64, a row a film of `rows` (n,), in their order."""
        from vgg16_xray.learn.checkpoint import load_probe
        from vgg16_xray.learn.fit import probabilities
        from vgg16_xray.learn.vgg16 import split_at

        features = Features(self.run, self.plan, self._model, open_pixels(self.run, self.manifest), self.manifest)
        features.say_if_others_than(load_probe(self.run.best), where=self.run.best, trained_with=self.config.engine)
        _, trainable = split_at(self._model, self.plan.recipe.train_from)
        return probabilities(
            trainable.eval(), features.as_they_are(), rows, engine=self.plan.engine, description="predict films"
        )

    def measure(self, probabilities: np.ndarray, side: str) -> dict[str, Any]:
        """Numbers of one side of the split.

        Args:
            probabilities: (n, K), a row a film of that side, in the manifest's order.
            side: A name of :data:`vgg16_xray.films.split.SPLITS`.
        """
        from vgg16_xray.trust.metrics import evaluate

        targets, groups = self.truth(rows_of(self.manifest, side))
        return {
            "research_use_only": RESEARCH_USE_ONLY,
            "split": side,
            "checkpoint_sha256": self.checkpoint_sha256,
            "epoch": self.config.epoch,
            "criterion": f"highest validation {self.plan.recipe.select}",
            **evaluate(
                truth=targets,
                probabilities=probabilities,
                labels=self.plan.labels,
                groups=groups,
                seed=self.plan.seed,
            ),
        }
