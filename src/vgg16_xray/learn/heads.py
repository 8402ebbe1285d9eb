"""What stands on the convolutional base: three heads, from one matrix to VGG16's own."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

import torch
from torch import nn

from vgg16_xray.errors import UserError

#: Channels of the base's output, and its height and width for a film of 224 x 224.
CHANNELS, SIDE = 512, 7
#: Width of VGG16's two hidden fully connected layers (Simonyan & Zisserman 2014, table 1).
HIDDEN = 4096


class AverageAndMaximum(nn.Module):
    """Global average and global maximum of every channel, side by side."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) -> (B, 2C): the averages, then the maxima."""
        return torch.cat((x.mean(dim=(2, 3)), x.amax(dim=(2, 3))), dim=1)


class Pooled(AverageAndMaximum):
    """The same as the end of a frozen part: maps of one pixel, taken in float32 whatever the engine.

    An average that bf16 rounds to 8 bits would be coarser than the half precision in which it is kept.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w), any float dtype -> (B, 2C, 1, 1) float32: the averages, then the maxima."""
        return super().forward(x.float())[:, :, None, None]


class Standardise(nn.Module):
    """Takes the mean off every feature and divides by its standard deviation, both fixed before training begins.

    Pooled features of VGG16 range over three orders of magnitude; a dense layer on them as they are starts with a loss
    of 20 and spends its epochs on the scale. Being affine and fixed, it leaves the head linear in the features.
    """

    #: (features,) float32.
    mean: torch.Tensor
    #: (features,) float32, above 0.
    deviation: torch.Tensor

    def __init__(self, features: int) -> None:
        """Begin with mean 0 and deviation 1: features as they are."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))

    def measure(self, features: torch.Tensor) -> None:
        """Take mean and deviation from training films' features (N, F); a feature that never changes keeps scale 1."""
        deviation, mean = torch.std_mean(features.double(), dim=0, correction=0)
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > 1e-6 * (1 + mean.abs()), deviation, 1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, F) -> (B, F)."""
        return (x.float() - self.mean) / self.deviation


class Dropout(nn.Dropout):
    """Dropout whose mask is drawn for all films of a step, of which a process may hold a part only.

    So what is dropped does not depend on how many processes share the step.
    """

    _films: int | None = None
    _part = slice(None)

    def draw_for(self, films: int, part: slice) -> None:
        """Say how many films the next steps have and which of them the next inputs are."""
        self._films, self._part = films, part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, ...) -> (B, ...); B films are the part of :meth:`draw_for`."""
        if not (self.training and self.p):
            return x
        films = len(x) if self._films is None else self._films
        kept = torch.empty(films, *x.shape[1:], dtype=x.dtype, device=x.device).bernoulli_(1 - self.p)
        return x * kept.div_(1 - self.p)[self._part]


class FlatSequential(nn.Sequential):
    """A sequence that flattens its input first, so that its layers carry torchvision's numbers 0, 3 and 6."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, ...) -> (B, classes)."""
        out: torch.Tensor = super().forward(x.flatten(1))
        return out


def dense(inputs: int, outputs: int) -> nn.Linear:
    """A fully connected layer that starts as Keras' ``Dense`` does: Glorot uniform weights, zero bias."""
    # torch's own initialisation is left out: it would draw 103 million numbers for the widest layer and drop them.
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device=torch.get_default_device())
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _linear(classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), dense(CHANNELS * SIDE * SIDE, classes))


def _gap(classes: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(AverageAndMaximum(), Standardise(2 * CHANNELS), Dropout(dropout), dense(2 * CHANNELS, classes))


def _vgg(classes: int, dropout: float) -> nn.Sequential:
    return FlatSequential(
        dense(CHANNELS * SIDE * SIDE, HIDDEN),
        nn.ReLU(inplace=True),
        Dropout(dropout),
        dense(HIDDEN, HIDDEN),
        nn.ReLU(inplace=True),
        Dropout(dropout),
        dense(HIDDEN, classes),
    )


#: Name of a head -> its builder (classes, dropout).
HEADS: MappingProxyType[str, Callable[[int, float], nn.Sequential]] = MappingProxyType(
    {"linear": _linear, "gap": _gap, "vgg": _vgg}
)


def build_head(head: str, *, classes: int, dropout: float) -> nn.Sequential:
    """Build a head: (B, 512, 7, 7) -> logits (B, classes).

    The initial weights depend on torch's global generator alone; the caller seeds it.

    Args:
        head: ``linear``: Flatten and one dense layer; ``gap``: average and maximum of each channel, standardised,
            dropout, one dense layer; ``vgg``: 4096, 4096 and classes, with dropout behind the first two.
        classes: Number of classes, two or more.
        dropout: Share of the activations dropped in training, 0 to below 1. ``linear`` has no dropout.

    Raises:
        UserError: There is no such head, or a number is out of bounds.
    """
    if head not in HEADS:
        raise UserError(f"head: must be one of {', '.join(HEADS)}, found '{head}'")
    if classes < 2:
        raise UserError(f"classes: must be 2 or more, found {classes}")
    if not 0 <= dropout < 1:
        raise UserError(f"dropout: must be at least 0 and below 1, found {dropout}")
    return HEADS[head](classes, dropout)
