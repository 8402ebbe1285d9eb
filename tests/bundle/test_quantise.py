"""How weights become whole numbers: by what their layer reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from vgg16_xray.bundle.graph import LARGEST_WEIGHT
from vgg16_xray.bundle.quantise import _Moments, _pooled, _read, _round


@pytest.fixture
def convolution() -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(24, 8, kernel_size=3, padding=1)


def test_what_is_read_times_the_weights_is_the_convolution(convolution: nn.Conv2d) -> None:
    values = np.random.default_rng(1).random((24, 10, 6), dtype=np.float32)
    read = _read(values, np.random.default_rng(2))
    at = np.random.default_rng(2).choice(60, 60, replace=False)
    with torch.no_grad():
        expected = convolution(torch.from_numpy(values)[None])[0].flatten(1)[:, at].T
        found = torch.from_numpy(read) @ convolution.weight.flatten(1).T + convolution.bias
    torch.testing.assert_close(found, expected)


def test_the_pool_is_that_of_the_network() -> None:
    values = np.random.default_rng(1).random((5, 8, 6), dtype=np.float32)
    assert (_pooled(values) == nn.MaxPool2d(2, 2)(torch.from_numpy(values)).numpy()).all()


def test_rounding_moves_the_output_less_than_the_nearest_whole_numbers_do(convolution: nn.Conv2d) -> None:
    random = np.random.default_rng(3)
    width = 24 * 9
    # Neighbouring places and many channels go together: what is read has fewer causes than numbers.
    read = np.maximum(random.normal(size=(4000, 60)) @ random.normal(size=(60, width)), 0).astype(np.float32)
    moments = _Moments(width)
    for part in np.split(read[:2000], 4):
        moments.add(part)
    rounded = _round(convolution, moments, step=0.01)
    assert (rounded.weight == np.rint(rounded.weight)).all()
    assert np.abs(rounded.weight).max() <= LARGEST_WEIGHT

    weight, bias = (part.detach().double().numpy() for part in (convolution.weight.flatten(1), convolution.bias))
    scale = rounded.scale[:, None]

    def error(whole: np.ndarray, bias_now: np.ndarray) -> float:
        return float(np.sqrt(np.mean((read[2000:] @ (whole * scale - weight).T + bias_now - bias) ** 2)))

    nearest = np.rint(weight / scale)
    nearest_bias = bias - (nearest * scale - weight) @ moments.mean
    assert error(rounded.weight.reshape(8, -1), rounded.bias) < 0.85 * error(nearest, nearest_bias)
