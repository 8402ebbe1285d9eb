"""VGG16, configuration D of Simonyan & Zisserman 2014 (arXiv:1409.1556), with torchvision's names.

The network is cut in two where training begins: a frozen prefix, whose output can be computed once and kept, and a
trainable rest. Both share their layers with the whole, so a trained rest is a trained network.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import cast

import torch
from torch import nn

from vgg16_xray.errors import UserError
from vgg16_xray.learn.heads import AverageAndMaximum, Pooled, build_head

#: (convolutions, channels) of each block; a 2 x 2 maximum pool ends each (table 1, column D).
CONFIGURATION_D = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
#: Side of a film, pixels.
SIZE = 224


def _starts_of_blocks() -> tuple[int, ...]:
    starts = [0]
    for convolutions, _ in CONFIGURATION_D:
        starts.append(starts[-1] + 2 * convolutions + 1)  # a convolution and its ReLU are two layers, a pool is one
    return tuple(starts)


#: Index in ``features`` at which each block begins, and at the end the number of layers: 0, 5, 10, 17, 24, 31.
BLOCKS = _starts_of_blocks()
#: Name of ``train_from`` -> index in ``features`` at which the trainable part begins.
CUTS: MappingProxyType[str, int] = MappingProxyType(
    {"head": BLOCKS[5], "block5": BLOCKS[4], "block4": BLOCKS[3], "block3": BLOCKS[2], "block2": BLOCKS[1], "all": 0}
)


class VGG16(nn.Module):
    """The convolutional base and a head.

    Args:
        classifier: The head, (B, 512, 7, 7) -> (B, classes).
        blocks: Blocks of the base that there are, from the first on.
    """

    def __init__(self, classifier: nn.Module, blocks: int = len(CONFIGURATION_D)) -> None:
        """Put configuration D together, with random weights."""
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for convolutions, width in CONFIGURATION_D[:blocks]:
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            # At 224 pixels every side is even. Where one is odd, its last row and column count too.
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        self.classifier = classifier

    @property
    def blocks(self) -> int:
        """How many blocks of the base there are, from the first on."""
        return BLOCKS.index(len(self.features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised films (B, 3, 224, 224) float -> logits (B, classes)."""
        out: torch.Tensor = self.classifier(self.features(x))
        return out


class Trainable(nn.Module):
    """The trainable rest of a :class:`VGG16`; its tensors carry the names that they have in the whole network.

    Args:
        features: The layers from the cut on, under their numbers in the whole network.
        classifier: The head.
    """

    def __init__(self, features: nn.Sequential, classifier: nn.Module) -> None:
        """Share the layers; copy nothing."""
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The frozen prefix's output (B, C, h, w) float -> logits (B, classes)."""
        out: torch.Tensor = self.classifier(self.features(x))
        return out


def build(*, classes: int, head: str, dropout: float, blocks: int = len(CONFIGURATION_D)) -> VGG16:
    """Build the network with random weights, drawn from torch's global generator.

    ``weights.load_base(...).put_into(model)`` gives the base what it knows.

    Args:
        classes: Number of classes, two or more.
        head: A name of :data:`vgg16_xray.learn.heads.HEADS`.
        dropout: Dropout of the head, 0 to below 1.
        blocks: Blocks of the base that there are: 5, or 4 for a head on what block 4 yields, as many channels.

    Raises:
        UserError: There is no such head, or a number is out of bounds.
    """
    if blocks not in (4, 5):
        raise UserError(f"blocks: must be 4 or 5, found {blocks!r}")
    return VGG16(build_head(head, classes=classes, dropout=dropout), blocks)


def cut_of(train_from: str, blocks: int = len(CONFIGURATION_D)) -> int:
    """Index in ``features`` at which the trainable part begins.

    Args:
        train_from: A name of :data:`CUTS`.
        blocks: Blocks of the base that there are.

    Raises:
        UserError: There is no such name in :data:`CUTS`, or the block is not there.
    """
    if train_from not in CUTS:
        raise UserError(f"train_from: must be one of {', '.join(CUTS)}, found '{train_from}'")
    if train_from != "head" and CUTS[train_from] >= BLOCKS[blocks]:
        raise UserError(f"train_from: must be one of the {blocks} blocks that there are, found '{train_from}'")
    return min(CUTS[train_from], BLOCKS[blocks])


def block_of(parameter: str) -> int:
    """Number of the block, 1 to 5, that a parameter such as ``features.24.weight`` is in; 6 for the head's."""
    part, _, rest = parameter.partition(".")
    return bisect_right(BLOCKS, int(rest.partition(".")[0])) if part == "features" else len(BLOCKS)


def split_at(model: VGG16, train_from: str) -> tuple[nn.Sequential, Trainable]:
    """Cut the network where training begins.

    Both parts share their layers with `model`. What is frozen asks for no gradient, what is trainable does. Where the
    head alone is trained and begins with a pooling, the pooling is part of the prefix: it learns nothing, and 1,024
    numbers a film are kept in place of 25,088.

    Args:
        model: The network.
        train_from: A name of :data:`CUTS`.

    Returns:
        The frozen prefix, (B, 3, 224, 224) -> (B, *feature_shape(train_from, head=head)), empty for ``all``; and the
        rest.

    Raises:
        UserError: There is no such name in :data:`CUTS`.
    """
    cut = cut_of(train_from, model.blocks)
    # A slice of nn.Sequential keeps the names of its layers.
    prefix, features = (cast("nn.Sequential", model.features[part]) for part in (slice(cut), slice(cut, None)))
    classifier = model.classifier
    pools = isinstance(classifier, nn.Sequential) and isinstance(classifier[0], AverageAndMaximum)
    if cut == len(model.features) and pools:
        prefix.add_module("pool", Pooled())
        features, classifier = nn.Sequential(OrderedDict(flatten=nn.Flatten())), cast("nn.Sequential", classifier)[1:]
    return prefix.requires_grad_(False).eval(), Trainable(features, classifier).requires_grad_(True)


def is_pooled(train_from: str, head: str | None) -> bool:
    """Whether the frozen prefix of a network with this head ends with the head's pooling, see :func:`split_at`."""
    return train_from == "head" and head == "gap"


def feature_shape(
    train_from: str, size: int = SIZE, *, head: str | None = None, blocks: int = len(CONFIGURATION_D)
) -> tuple[int, int, int]:
    """Shape (C, h, w) of what the frozen prefix yields for one film of `size` x `size` pixels.

    Args:
        train_from: A name of :data:`CUTS`.
        size: Side of a film, pixels.
        head: A name of :data:`vgg16_xray.learn.heads.HEADS`; None: one that does not pool.
        blocks: Blocks of the base that there are.

    Raises:
        UserError: There is no such name in :data:`CUTS`, or the block is not there.
    """
    if is_pooled(train_from, head):
        return 2 * CONFIGURATION_D[-1][1], 1, 1
    frozen = BLOCKS.index(cut_of(train_from, blocks))
    side = math.ceil(size / 2**frozen)
    return (CONFIGURATION_D[frozen - 1][1] if frozen else 3), side, side


@dataclass(frozen=True)
class Layer:
    """A row of the layer table."""

    #: Name in the whole network, e.g. ``features.0``.
    name: str
    #: What it is, e.g. ``Conv2d``.
    kind: str
    #: Shape of its output for one film.
    shape: tuple[int, ...]
    #: Number of parameters.
    parameters: int
    #: Whether training changes its parameters; False where it has none.
    trainable: bool


def layer_table(model: VGG16, train_from: str, size: int = SIZE) -> list[Layer]:
    """List the layers in the order in which a film meets them, with shapes found by sending one through.

    Nothing is computed: the film and the weights are stand-ins without values (torch's meta device).

    Args:
        model: The network; left as it is.
        train_from: A name of :data:`CUTS`: where the trainable part begins.
        size: Side of a film, pixels.

    Raises:
        UserError: There is no such name in :data:`CUTS`.
    """
    cut = cut_of(train_from, model.blocks)
    rows: list[Layer] = []

    def row_of(name: str, module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        part, _, number = name.partition(".")
        parameters = sum(p.numel() for p in module.parameters())
        trainable = parameters > 0 and (part == "classifier" or int(number) >= cut)
        rows.append(Layer(name, type(module).__name__, tuple(output.shape[1:]), parameters, trainable))

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    handles = [module.register_forward_hook(partial(row_of, name)) for name, module in leaves]
    stand_ins = {name: tensor.to("meta") for name, tensor in model.state_dict().items()}
    try:
        with torch.no_grad():
            torch.func.functional_call(model, stand_ins, (torch.empty(1, 3, size, size, device="meta"),))
    finally:
        for handle in handles:
            handle.remove()
    return rows


def published_parameters() -> int:
    """Number of parameters of the network as it was published: head ``vgg``, 1,000 classes. No weight is made."""
    with torch.device("meta"):
        model = build(classes=1000, head="vgg", dropout=0.5)
    return sum(parameter.numel() for parameter in model.parameters())
