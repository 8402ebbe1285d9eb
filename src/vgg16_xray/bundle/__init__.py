"""The artefact that leaves the training machine: written by export, read without torch by everything else."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # Loaded when it is asked for: onnxruntime and numpy take time.
    if name in ("Classifier", "Prediction"):
        from vgg16_xray.bundle import classify

        return getattr(classify, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
