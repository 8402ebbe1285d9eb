"""Transfer learning with VGG16 on chest radiographs, in six steps. Research use only, not a medical device."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

#: Stands wherever a prediction is shown.
RESEARCH_USE_ONLY = "Research use only. Not a medical device; not for diagnosis or treatment."


def __getattr__(name: str) -> Any:
    # Loaded when it is asked for, so that `import vgg16_xray` loads nothing heavy.
    if name == "Classifier":
        return import_module("vgg16_xray.bundle.classify").Classifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
