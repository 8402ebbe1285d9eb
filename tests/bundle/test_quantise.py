"""How weights become whole numbers: by what their layer reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vgg16_xray.bundle.format import EMBEDDING, FEATURE_MAP, PIXELS, session_of
from vgg16_xray.bundle.graph import (
    CONSTANT,
    COPIES,
    LARGEST_WEIGHT,
    Rounded,
    _in_copies,
    network_graph,
    on_grey_and_constant,
)
from vgg16_xray.bundle.quantise import EVENNESS, _Moments, _pooled, _read, _round, measure
from vgg16_xray.films.phantom import draw
from vgg16_xray.learn.vgg16 import build
from vgg16_xray.learn.weights import PREPROCESSING, load_base, normalise, shrunk


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
    layer = [part.detach().double() for part in (convolution.weight, convolution.bias)]
    mean, covariance = moments.divided_by(np.ones(width))
    rounded = _round(*layer, mean, covariance, step=0.01, most=63)
    assert (rounded.weight == np.rint(rounded.weight)).all()
    assert np.abs(rounded.weight).max() <= 63

    weight, bias = (part.detach().double().numpy() for part in (convolution.weight.flatten(1), convolution.bias))
    scale = rounded.scale[:, None]

    def error(whole: np.ndarray, bias_now: np.ndarray) -> float:
        return float(np.sqrt(np.mean((read[2000:] @ (whole * scale - weight).T + bias_now - bias) ** 2)))

    nearest = np.rint(weight / scale)
    nearest_bias = bias - (nearest * scale - weight) @ mean
    assert error(rounded.weight.reshape(8, -1), rounded.bias) < 0.85 * error(nearest, nearest_bias)


@pytest.mark.parametrize("preprocessing", list(PREPROCESSING))
def test_grey_and_a_constant_are_the_first_convolution_at_the_border_too(preprocessing: str) -> None:
    torch.manual_seed(4)
    first = nn.Conv2d(3, 8, kernel_size=3, padding=1).double()
    film = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (1, 12, 9), dtype=np.uint8))
    expected = first(normalise(film, preprocessing).double())
    weight = torch.from_numpy(on_grey_and_constant(first.weight.detach().numpy(), preprocessing))
    (grey,) = shrunk(film, preprocessing)
    read = torch.stack([grey, torch.full_like(grey, CONSTANT)])[None].double()
    torch.testing.assert_close(
        nn.functional.conv2d(read, weight, first.bias, padding=1), expected, atol=1e-4, rtol=1e-5
    )


def test_weights_of_copies_are_bytes_and_add_up() -> None:
    most = LARGEST_WEIGHT * COPIES
    whole = np.random.default_rng(6).integers(-most, most + 1, (8, 2, 3, 3)).astype(np.float64)
    whole[0, 0, 0] = [-most, most, 1]
    copies = _in_copies(Rounded(whole, np.ones(8), np.zeros(8))).weight
    assert np.abs(copies).max() <= LARGEST_WEIGHT
    assert (copies.reshape(8, COPIES, 2, 3, 3).sum(axis=1) == whole).all()


@pytest.mark.slow
def test_channels_of_small_values_are_no_worse_off_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = build(classes=4, head="gap", dropout=0.0).eval()
        load_base().put_into(model)
    with torch.no_grad():  # the same network; half of the first map's channels reach a fiftieth as far
        model.features[0].weight[::2] /= 50
        model.features[0].bias[::2] /= 50  # type: ignore[index]
        model.features[2].weight[:, ::2] *= 50
    films = np.stack([draw("COVID", seed=2, patient=i, size=64).pixels for i in range(4)])
    how: dict[str, Any] = {"preprocessing": "caffe", "size": 64}

    def embedding(**options: Any) -> np.ndarray:
        graph = network_graph(model, temperature=1.0, **how, **options)
        return np.asarray(session_of(graph.SerializeToString()).run([EMBEDDING], {PIXELS: films})[0])

    exact, errors = embedding(), []
    for evenness in (EVENNESS, 0.0):
        monkeypatch.setattr("vgg16_xray.bundle.quantise.EVENNESS", evenness)
        error = embedding(int8=measure(model, films, **how)) - exact
        errors.append(float(np.linalg.norm(error) / np.linalg.norm(exact)))
    assert errors[0] < 0.03
    assert errors[0] < errors[1] / 2


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [4, 5])
def test_films_of_half_the_side_go_through_in_bytes_too(blocks: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(8)
        model = build(classes=4, head="gap", dropout=0.0, blocks=blocks).eval()
        load_base().put_into(model)
    films = np.stack([draw("COVID", seed=2, patient=i, size=160).pixels for i in range(6)])
    how: dict[str, Any] = {"preprocessing": "caffe-half", "size": 160}
    with torch.no_grad():
        pooled = model.classifier[0](model.features(normalise(torch.from_numpy(films), "caffe-half"))).numpy()

    def embedding(**options: Any) -> tuple[np.ndarray, np.ndarray]:
        graph = network_graph(model, temperature=1.0, **how, **options)
        session = session_of(graph.SerializeToString())
        found = session.run([EMBEDDING, FEATURE_MAP], {PIXELS: films})
        return found[0], found[1]

    exact, maps = embedding()
    np.testing.assert_allclose(exact, pooled, rtol=1e-4, atol=1e-2)
    # Half of 160 pixels behind three pools or four: 10, and 5, whose last row and column the pool keeps.
    assert maps.shape == (6, 512, *([10, 10] if blocks == 4 else [5, 5]))
    in_bytes, _ = embedding(int8=measure(model, films[:4], **how))
    assert np.linalg.norm(in_bytes[4:] - exact[4:]) / np.linalg.norm(exact[4:]) < 0.03
