"""The model card: what the model was trained on, how good it is on whose films, and what it must not be used for."""

from __future__ import annotations

from vgg16_xray import RESEARCH_USE_ONLY
from vgg16_xray.bundle.format import BundleConfig


def model_card(config: BundleConfig) -> str:
    """The card as Markdown."""
    return f"# VGG16 on chest radiographs\n\n> **{RESEARCH_USE_ONLY}**\n"
