"""What two drawn films gave when a model was trained, kept with it: whether it gets the same features elsewhere.

The films are kept too, so that a later version that draws other films asks the same question.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vgg16_xray.errors import UserError
from vgg16_xray.learn.features import in_half_precision

if TYPE_CHECKING:
    import torch

    from vgg16_xray.learn.engines import FrozenPart

#: Films, the seed of the first, and about how many features of each are kept.
FILMS, SEED, KEPT = 2, 77, 2048
#: Relative deviation that is said: bf16 against float32 makes 0.012, int8 0.04 and more (docs/architecture.md).
SAID = 0.02
#: Relative deviation at which answers mean nothing: pixels prepared otherwise than in training make more.
REFUSED = 0.25
#: Names of the tensors in a checkpoint.
PIXELS, FEATURES = "probe.pixels", "probe.features"


@dataclass(frozen=True)
class Probe:
    """Drawn films and some of their features."""

    #: (B, size, size) uint8.
    pixels: torch.Tensor
    #: (B, n) float16.
    features: torch.Tensor

    @classmethod
    def of(cls, frozen: FrozenPart, *, size: int) -> Probe:
        """Send the films through a frozen part."""
        import torch

        from vgg16_xray.learn.runtimes import drawn_films

        pixels = torch.from_numpy(drawn_films(FILMS, seed=SEED, size=size))
        return cls(pixels, _some_features(frozen, pixels))

    def tensors(self) -> dict[str, torch.Tensor]:
        """As they lie in a checkpoint."""
        return {PIXELS: self.pixels, FEATURES: self.features}

    def deviation(self, frozen: FrozenPart) -> float:
        """How far the features of a frozen part are from those of the training, relative."""
        then, now = self.features.double(), _some_features(frozen, self.pixels).double()
        return ((now - then).norm() / then.norm().clamp(min=1e-12)).item() if now.shape == then.shape else float("inf")

    def check(self, frozen: FrozenPart, *, where: Path, trained_with: str) -> str | None:
        """Compare a frozen part with that of the training.

        Returns:
            One line for the user where it deviates by more than :data:`SAID`.

        Raises:
            UserError: It deviates by more than :data:`REFUSED`.
        """
        deviation = self.deviation(frozen)
        what = f"(trained with {trained_with}, now {frozen.engine.name})"
        if not deviation <= REFUSED:
            raise UserError(
                f"{where}: features of drawn films must be those of the training within {REFUSED}, found them "
                f"{deviation:.2g} away {what}",
                hint="another --engine may do; else model and program do not belong together",
            )
        if deviation <= SAID:
            return None
        return f"{where}: features deviate by {deviation:.3f} from those of the training {what}, {SAID} is usual"


def probe_in(tensors: Mapping[str, torch.Tensor]) -> Probe | None:
    """The probe among a checkpoint's tensors; None in one that was written before there were probes."""
    return Probe(tensors[PIXELS], tensors[FEATURES]) if PIXELS in tensors and FEATURES in tensors else None


def _some_features(frozen: FrozenPart, pixels: torch.Tensor) -> torch.Tensor:
    import torch

    features = in_half_precision(frozen(pixels)).flatten(1).cpu()
    return features[:, :: max(1, features.shape[1] // KEPT)].to(torch.float16).contiguous()
