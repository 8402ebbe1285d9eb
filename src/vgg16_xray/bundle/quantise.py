"""What int8 must know of a network: how far its activations reach, and which whole numbers its weights become."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from vgg16_xray.bundle.format import session_of
from vgg16_xray.bundle.graph import (
    CONSTANT,
    COPIES,
    LARGEST_WEIGHT,
    Int8,
    Reach,
    Rounded,
    last_relu,
    network_graph,
    on_grey_and_constant,
)
from vgg16_xray.learn.onnx_graph import PIXELS
from vgg16_xray.progress import progress

if TYPE_CHECKING:
    import torch

    from vgg16_xray.learn.vgg16 import VGG16

#: Channels of a map share their bytes' reach. Each is divided by this power of its largest value first, and the next
#: convolution's weights multiplied by it: 0 leaves channels of small values few bytes, 1 the weights too few.
EVENNESS = 0.5
#: Smallest value that a channel's largest counts for, as a share of its map's: some channels are never above 0.
LEAST = 1e-3
#: Places of each film at which a convolution's input is looked at.
PLACES = 196
#: Share of the mean variance of a convolution's inputs that is added to each: so many places tell no more.
DAMPING = 0.01
#: Columns of weights that are rounded before the others hear of it.
COLUMNS = 128


def measure(model: VGG16, films: np.ndarray, *, preprocessing: str, size: int) -> Int8:
    """Find out how a network is best computed in bytes.

    Films go through it in float32. From what each ReLU yields come the reach of its bytes, the levels that make its
    channels more even, and the second moments of what the next convolution reads, by which its weights are rounded.

    Args:
        model: The network.
        films: (N, size, size) uint8: training films, of all classes.
        preprocessing: A name of :data:`vgg16_xray.config.PREPROCESSING`.
        size: Side of a film, pixels.
    """
    import torch

    from vgg16_xray.learn.weights import shrunk

    convolutions = dict(_convolutions(model, preprocessing))
    relus = tuple(number + 1 for number in convolutions if number + 1 != last_relu(model))
    graph = network_graph(model, show=relus, preprocessing=preprocessing, size=size, temperature=1.0)
    session = session_of(graph.SerializeToString())
    inputs = {number: _Moments(weight[0].numel()) for number, (weight, _) in convolutions.items()}
    largest: dict[int, np.ndarray] = {}
    random = np.random.default_rng(0)
    with progress("ranges for int8", total=len(films)) as counter:
        for film in films:
            (grey,) = shrunk(torch.from_numpy(film[None]), preprocessing).numpy().astype(np.float32)
            inputs[0].add(_read(np.stack([grey, np.full_like(grey, CONSTANT)]), random))
            maps = session.run([f"relu{number}" for number in relus], {PIXELS: film[None]})
            for number, (values,) in zip(relus, maps, strict=True):
                of_channel = values.max(axis=(1, 2)).astype(np.float64)
                largest[number] = np.maximum(largest.get(number, of_channel), of_channel)
                reader = next(n for n in inputs if n > number)
                pooled = reader > number + 1
                inputs[reader].add(_read(_pooled(values) if pooled else values, random))
            counter.advance()
    levels = {number: np.maximum(of, LEAST * of.max()) ** EVENNESS for number, of in largest.items()}
    reached = {number: Reach(float((of / levels[number]).max())) for number, of in largest.items()}
    rounded = {}
    with progress("weights in int8", total=len(inputs)) as counter:
        for number, moments in inputs.items():
            weight, bias = convolutions[number]
            if number:
                before = max(n for n in relus if n < number)
                level, step, most = levels[before], reached[before].step, LARGEST_WEIGHT
            else:
                # Pixels are whole numbers: nothing was rounded.
                level, step, most = np.ones(weight.shape[1]), 0.0, LARGEST_WEIGHT * COPIES
            even = weight * torch.from_numpy(level)[:, None, None]
            found = _round(even, bias, *moments.divided_by(np.repeat(level, 9)), step=step, most=most)
            yields = levels.get(number + 1, np.ones(len(weight)))
            rounded[number] = replace(found, scale=found.scale / yields, bias=found.bias / yields)
            counter.advance()
    return Int8(reached, rounded)


class _Moments:
    """Mean and covariance of what a convolution reads, from samples that come one film at a time.

    Args:
        width: Numbers that it reads for one place: 9 of each channel.
    """

    def __init__(self, width: int) -> None:
        self._count, self._sum, self._squares = 0, np.zeros(width), np.zeros((width, width), dtype=np.float32)

    def add(self, samples: np.ndarray) -> None:
        """Take samples, (N, width) float32."""
        self._count += len(samples)
        self._sum += samples.sum(axis=0)
        self._squares += samples.T @ samples

    def divided_by(self, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (width,) and covariance (width, width) of the numbers, each divided by its level (width,)."""
        mean = self._sum / self._count
        covariance = self._squares / self._count - np.outer(mean, mean)
        return mean / levels, covariance / np.outer(levels, levels)


def _convolutions(model: VGG16, preprocessing: str) -> Iterator[tuple[int, tuple[torch.Tensor, torch.Tensor]]]:
    """Number in ``features``, and weight (O, I, 3, 3) and bias (O,), float64, for what each reads in bytes."""
    import torch
    from torch import nn

    for name, layer in model.features.named_children():
        if isinstance(layer, nn.Conv2d):
            weight, bias = (part.detach().cpu().double() for part in (layer.weight, layer.bias))  # type: ignore[union-attr]
            if name == "0":
                weight = torch.from_numpy(on_grey_and_constant(weight.numpy(), preprocessing))
            yield int(name), (weight, bias)


def _pooled(values: np.ndarray) -> np.ndarray:
    """(C, h, w) -> (C, h / 2, w / 2), as the maximum pool does it."""
    channels, height, width = values.shape
    return np.asarray(values.reshape(channels, height // 2, 2, width // 2, 2).max(axis=(2, 4)))


def _read(values: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """What a convolution of 3 x 3 reads at some places: (C, h, w) -> (places, 9 C), in the order of its weights."""
    channels, height, width = values.shape
    padded = np.pad(values, ((0, 0), (1, 1), (1, 1)))
    at = random.choice(height * width, min(PLACES, height * width), replace=False)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))  # (C, h, w, 3, 3)
    return windows[:, at // width, at % width].transpose(1, 0, 2, 3).reshape(len(at), channels * 9)


def _round(
    weight: torch.Tensor, bias: torch.Tensor, mean: np.ndarray, covariance: np.ndarray, *, step: float, most: int
) -> Rounded:
    """Round a convolution's weights so that its output changes least, not so that each weight does.

    The inputs of neighbouring places and of many channels go together, so an error of one weight can be made up for by
    those that are not rounded yet: GPTQ (Frantar et al. 2022, arXiv:2210.17323), columns in the order of their
    variance, in the form that needs no inverse (Chee et al. 2023, arXiv:2307.13304, section 3.1). What then remains on
    average, the bias takes off.

    Args:
        weight: (O, I, 3, 3) float64
        bias: (O,) float64
        mean: (9 I,) of what it reads, in the order of its weights.
        covariance: (9 I, 9 I)
        step: What one step of a byte of its input stands for: rounding adds the variance step^2 / 12.
        most: The whole numbers are at most this far from zero.
    """
    import torch

    shape, weight = weight.shape, weight.flatten(1)
    scale = weight.abs().amax(dim=1).clamp(min=1e-12) / most
    moments = torch.from_numpy(covariance).clone()
    moments.diagonal().add_(step**2 / 12 + DAMPING * float(moments.diagonal().mean()))
    # The factor that begins with the least variance, turned round, is upper triangular and begins with the greatest.
    order = torch.argsort(moments.diagonal())
    factor = torch.linalg.cholesky(moments[order[:, None], order])
    pass_on = (factor / factor.diagonal()).flip(0, 1)
    order = order.flip(0)

    exact = (weight / scale[:, None])[:, order].T.contiguous()  # a row for each number that is read
    errors = torch.zeros_like(exact)
    for start in range(0, len(exact), COLUMNS):
        end = min(start + COLUMNS, len(exact))
        block = exact[start:end] + pass_on[:start, start:end].T @ errors[:start]
        for i, row in enumerate(range(start, end)):
            errors[row] = exact[row] - block[i].round().clamp(-most, most)
            block[i + 1 :] += torch.outer(pass_on[row, row + 1 : end], errors[row])
    rounded = torch.empty_like(weight)
    rounded[:, order] = (exact - errors).round().T
    bias = bias - (rounded * scale[:, None] - weight) @ torch.from_numpy(mean)
    return Rounded(*(part.numpy() for part in (rounded.reshape(shape), scale, bias)))
