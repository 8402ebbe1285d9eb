"""What int8 must know of a network: how far its activations reach, and which whole numbers its weights become."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from vgg16_xray.bundle.format import session_of
from vgg16_xray.bundle.graph import LARGEST_WEIGHT, LAST_RELU, Int8, Reach, Rounded, network_graph
from vgg16_xray.learn.onnx_graph import PIXELS
from vgg16_xray.progress import progress

if TYPE_CHECKING:
    import torch

    from vgg16_xray.learn.vgg16 import VGG16

#: Bytes of the last map reach so much further than any film did that was measured: the head reads maxima. Those within
#: end before the largest value: the finer step gains more than what is cut off costs.
ROOM, INNER_ROOM = 1.1, 0.77
#: Places of each film at which a convolution's input is looked at.
PLACES = 128
#: Share of the mean variance of a convolution's inputs that is added to each: so many places tell no more.
DAMPING = 0.01
#: Columns of weights that are rounded before the others hear of it.
COLUMNS = 128


def measure(model: VGG16, films: np.ndarray, *, preprocessing: str, size: int) -> Int8:
    """Find out how a network is best computed in bytes.

    Films go through it in float32. From what each ReLU yields come the reach of its bytes and the second moments of
    what the next convolution reads, by which its weights are rounded.

    Args:
        model: The network.
        films: (N, size, size) uint8: training films, of all classes.
        preprocessing: A name of :data:`vgg16_xray.config.PREPROCESSING`.
        size: Side of a film, pixels.
    """
    convolutions = dict(_convolutions(model))
    relus = tuple(number + 1 for number in convolutions)
    graph = network_graph(model, show=relus, preprocessing=preprocessing, size=size, temperature=1.0)
    session = session_of(graph.SerializeToString())
    inputs = {number: _Moments(convolution.in_channels * 9) for number, convolution in convolutions.items() if number}
    largest, random = dict.fromkeys(relus, 0.0), np.random.default_rng(0)
    with progress("ranges for int8", total=len(films)) as counter:
        for film in films:
            maps = session.run([f"relu{number}" for number in relus], {PIXELS: film[None]})
            for number, (values,) in zip(relus, maps, strict=True):
                largest[number] = max(largest[number], float(values.max()))
                if (reader := next((n for n in inputs if n > number), None)) is not None:
                    pooled = reader > number + 1
                    inputs[reader].add(_read(_pooled(values) if pooled else values, random))
            counter.advance()
    reached = {n: Reach(value * (ROOM if n == LAST_RELU else INNER_ROOM)) for n, value in largest.items()}
    rounded = {}
    with progress("weights in int8", total=len(inputs)) as counter:
        for number, moments in inputs.items():
            step = reached[max(n for n in relus if n < number)].step
            rounded[number] = _round(convolutions[number], moments, step)
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

    @property
    def mean(self) -> np.ndarray:
        """(width,)."""
        return self._sum / self._count

    @property
    def covariance(self) -> np.ndarray:
        """(width, width)."""
        return self._squares / self._count - np.outer(self.mean, self.mean)


def _convolutions(model: VGG16) -> Iterator[tuple[int, torch.nn.Conv2d]]:
    from torch import nn

    for name, layer in model.features.named_children():
        if isinstance(layer, nn.Conv2d):
            yield int(name), layer


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


def _round(convolution: torch.nn.Conv2d, inputs: _Moments, step: float) -> Rounded:
    """Round a convolution's weights so that its output changes least, not so that each weight does.

    The inputs of neighbouring places and of many channels go together, so an error of one weight can be made up for by
    those that are not rounded yet: GPTQ (Frantar et al. 2022, arXiv:2210.17323), columns in the order of their
    variance, in the form that needs no inverse (Chee et al. 2023, arXiv:2307.13304, section 3.1). What then remains on
    average, the bias takes off.

    Args:
        convolution: The layer.
        inputs: What it reads.
        step: What one step of a byte of its input stands for: rounding adds the variance step^2 / 12.
    """
    import torch

    weight = convolution.weight.detach().cpu().double().flatten(1)
    scale = weight.abs().amax(dim=1).clamp(min=1e-12) / LARGEST_WEIGHT
    moments = torch.from_numpy(inputs.covariance)
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
            errors[row] = exact[row] - block[i].round().clamp(-LARGEST_WEIGHT, LARGEST_WEIGHT)
            block[i + 1 :] += torch.outer(pass_on[row, row + 1 : end], errors[row])
    rounded = torch.empty_like(weight)
    rounded[:, order] = (exact - errors).round().T
    bias = convolution.bias.detach().cpu().double()  # type: ignore[union-attr]
    bias -= (rounded * scale[:, None] - weight) @ torch.from_numpy(inputs.mean)
    return Rounded(*(part.numpy() for part in (rounded.reshape(convolution.weight.shape), scale, bias)))
