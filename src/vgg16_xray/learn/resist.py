"""What keeps a training from learning the source of a film in place of the disease: :class:`vgg16_xray.config.Resist`.

A group is a source within a class. A class that one source gave whole has one group: nothing here can tell its
disease from its hospital, only more sources can.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from vgg16_xray import ranks
from vgg16_xray.config import Resist
from vgg16_xray.errors import UserError
from vgg16_xray.learn.devices import put

#: Share of the steps in which MixStyle changes films (Zhou et al. 2021, section 3.2).
MIXSTYLE_SHARE = 0.5


def check(resist: Resist, *, targets: np.ndarray, sources: np.ndarray) -> None:
    """Refuse what the training films cannot give.

    Args:
        resist: What is asked for.
        targets: (n,) int, classes of the training films.
        sources: (n,) int, where they come from.

    Raises:
        UserError: No class has two sources, or several ranks are asked for what one can do.
    """
    if not resist.needs_sources:
        return
    pairs = np.unique(np.stack([targets, sources], axis=1), axis=0)
    if len(pairs) == len(np.unique(targets)) or (resist.mixup_across and len(np.unique(sources)) < 2):
        raise UserError(
            f"recipe.resist: needs a class whose training films come from two sources, found {len(pairs)} source(s) in "
            f"{len(np.unique(targets))} classes",
            hint="give a column 'source', or data of several hospitals: vgg16-xray run DATA DATA2",
        )
    if ranks.size() > 1 and (resist.group_dro or resist.adversary):
        raise UserError(f"recipe.resist: group_dro and adversary must be trained by one process, found {ranks.size()}")


def groups(targets: np.ndarray, sources: np.ndarray) -> np.ndarray:
    """(G, 2) int: the classes and sources that films have, each pair once, in order."""
    found: np.ndarray = np.unique(np.stack([targets, sources], axis=1), axis=0)
    return found


def draw_weights(targets: np.ndarray, sources: np.ndarray, *, kind: str) -> np.ndarray:
    """(n,) float64: how often each film is drawn, relative to others; a class is drawn as often as it has films.

    Args:
        targets: (n,) int, classes.
        sources: (n,) int.
        kind: ``sqrt``: a source of a class by the root of its films; ``balanced``: each source equally often.
    """
    pairs, group, films = np.unique(
        np.stack([targets, sources], axis=1), axis=0, return_inverse=True, return_counts=True
    )
    weights = films ** -{"sqrt": 0.5, "balanced": 1.0}[kind]
    # Within a class they sum up to its films.
    for k in np.unique(targets):
        of_class = pairs[:, 0] == k
        weights[of_class] *= films[of_class].sum() / (weights * films)[of_class].sum()
    drawn: np.ndarray = weights[group.ravel()]
    return drawn


def draw_mixstyle(alpha: float, films: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Draw MixStyle of a step from torch's generator.

    Returns:
        (films,) float32 share of each film's own statistics, and (films,) int whose the rest is; None where the step
        changes nothing.
    """
    if not alpha or torch.rand(()) >= MIXSTYLE_SHARE:
        return None
    between = torch.distributions.Beta(alpha, alpha).sample(torch.Size([films]))
    return between.float().numpy(), torch.randperm(films).numpy()


def with_style_of(features: torch.Tensor, donors: torch.Tensor, between: np.ndarray) -> torch.Tensor:
    """Give films mean and deviation of each channel between their own and their donors'.

    Args:
        features: (B, C, h, w).
        donors: (B, C, h, w).
        between: (B,) share of their own, 0 to 1.
    """
    own = put(between, features.device)[:, None, None, None].to(features.dtype)
    (deviation, mean), (other_deviation, other_mean) = (
        torch.std_mean(maps.float(), dim=(2, 3), keepdim=True, correction=0) for maps in (features, donors)
    )
    scale = own * deviation + (1 - own) * other_deviation
    out = (features - mean) / (deviation + 1e-6) * scale + own * mean + (1 - own) * other_mean
    return out.to(features.dtype)


class GroupDRO(nn.Module):
    """Group distributionally robust optimisation: the groups on which the loss is large count more, step by step.

    Sagawa et al. 2020, algorithm 1; a group that a step has no film of keeps its weight.

    Args:
        found: (G, 2) int, see :func:`groups`.
        step: Size of a step of the weights' logarithms.
        device: Where the losses are.
    """

    #: (G,) float32, summing to 1.
    weights: torch.Tensor

    def __init__(self, found: np.ndarray, *, step: float, device: torch.device) -> None:
        """Begin with all groups alike."""
        super().__init__()
        self._number = {(int(k), int(source)): i for i, (k, source) in enumerate(found)}
        self._step = step
        self.register_buffer("weights", torch.full((len(found),), 1 / len(found), device=device))

    def forward(self, losses: torch.Tensor, targets: np.ndarray, sources: np.ndarray) -> torch.Tensor:
        """Losses (B,) of films with classes and sources (B,) int -> the step's loss."""
        group = put(
            np.array([self._number[int(k), int(source)] for k, source in zip(targets, sources, strict=True)]),
            losses.device,
        )
        films = torch.zeros_like(self.weights).index_add_(0, group, torch.ones_like(losses))
        means = torch.zeros_like(self.weights).index_add(0, group, losses) / films.clamp(min=1)
        there = films > 0
        with torch.no_grad():
            self.weights *= torch.exp(self._step * torch.where(there, means, 0.0))
            self.weights /= self.weights.sum()
        present = torch.where(there, self.weights, 0.0)
        return (present * means).sum() / present.sum()


class Adversary(nn.Module):
    """Tells the source within a class from the standardised pooled features; the base gets its gradient reversed.

    Ganin et al. 2016, conditioned on the class: asked for the source alone it would forget the class with it, for the
    two are nearly the same here.

    Args:
        trainable: The part of the network that learns, with head ``gap``.
        targets: (n,) int, classes of the training films.
        sources: (n,) int, where they come from.
        seed: Of its first weights.
    """

    def __init__(self, trainable: nn.Module, targets: np.ndarray, sources: np.ndarray, *, seed: int) -> None:
        """Look into the network from now on."""
        from vgg16_xray.learn.heads import Standardise, dense

        super().__init__()
        layer = next(module for module in trainable.modules() if isinstance(module, Standardise))
        self._seen: list[torch.Tensor] = []
        layer.register_forward_hook(lambda module, _, out: self._seen.append(out) if module.training else None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.source = dense(len(layer.mean), int(sources.max()) + 1)
        self._could_be = np.zeros((int(targets.max()) + 1, int(sources.max()) + 1), dtype=bool)
        self._could_be[targets, sources] = True

    def forward(self, targets: np.ndarray, sources: np.ndarray, *, weight: float) -> torch.Tensor:
        """Loss of the films (B,) that the network has seen last, with the gradient into it reversed and weighted."""
        features = self._seen.pop()
        self._seen.clear()
        # Its value is that of the features, its gradient -weight times theirs.
        reversed_ = (1 + weight) * features.detach() - weight * features
        could_be = put(self._could_be[targets], features.device)
        logits = self.source(reversed_.float()).masked_fill(~could_be, -torch.inf)
        # A film whose class has one source tells nothing: loss 0.
        return cross_entropy(logits, put(sources, features.device))
