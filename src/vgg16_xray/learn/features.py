"""What the frozen part yields, computed each time, and how it is rounded where it is kept (featurestore.py)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from vgg16_xray.learn.devices import Rows

if TYPE_CHECKING:
    import torch

    from vgg16_xray.learn.engines import FrozenPart

#: Values of ``train_from`` whose features would take more room than the pixels: they are computed when they are wanted.
NEVER_STORED = frozenset({"all", "block2"})
#: Largest value of half precision.
HALF_MAX = 65504.0


def in_half_precision(features: torch.Tensor) -> torch.Tensor:
    """Round to half precision, as the store does, so that a film that is not stored gives the same features.

    Args:
        features: (B, C, h, w), any float dtype.

    Returns:
        (B, C, h, w) float32, every value one that half precision holds.
    """
    import torch

    return features.float().clamp(-HALF_MAX, HALF_MAX).to(torch.float16).float()


class FeatureSource(Protocol):
    """Gives the frozen part's output for films."""

    def take(self, rows: np.ndarray) -> torch.Tensor:
        """Features of films.

        Args:
            rows: (B,) int, rows in the pixel store.

        Returns:
            (B, C, h, w) float32 or bfloat16, channels last in memory.
        """


class ComputedFeatures:
    """Sends films through the frozen part each time they are asked for.

    Args:
        frozen: The frozen part.
        pixels: Gives (B, H, W) uint8 on the device of the frozen part.
        change: What happens to the pixels first: (rows, (B, H, W) float32 0..255) -> (B, H, W) float32 0..255.
    """

    def __init__(
        self,
        frozen: FrozenPart,
        pixels: Rows,
        *,
        change: Callable[[np.ndarray, torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._frozen, self._pixels, self._change = frozen, pixels, change

    def take(self, rows: np.ndarray) -> torch.Tensor:
        """See :class:`FeatureSource`."""
        films = self._pixels.take(rows).float()
        return self._frozen(films if self._change is None else self._change(rows, films))
