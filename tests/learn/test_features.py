"""Computed features: rounded as the store rounds them, of films that were changed by their rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vgg16_xray.films.store import ArrayStore
from vgg16_xray.learn.devices import Streamed
from vgg16_xray.learn.engines import FrozenPart, choose
from vgg16_xray.learn.features import ComputedFeatures, in_half_precision

FILMS, SIDE = 10, 8
CPU = torch.device("cpu")


@pytest.fixture
def pixels(tmp_path: Path) -> ArrayStore:
    values = np.random.default_rng(0).integers(0, 256, (FILMS, SIDE, SIDE), dtype=np.uint8)
    np.save(tmp_path / "pixels.npy", values)
    return ArrayStore(tmp_path / "pixels.npy")


def test_half_precision_bounds_what_it_cannot_hold() -> None:
    values = torch.tensor([[[[1e9, -1e9, 1.0002, 0.0]]]])
    assert in_half_precision(values).flatten().tolist() == [65504.0, -65504.0, 1.0, 0.0]


def test_a_change_meets_the_films_with_their_rows(pixels: ArrayStore) -> None:
    seen: list[np.ndarray] = []

    def darken(rows: np.ndarray, films: torch.Tensor) -> torch.Tensor:
        seen.append(rows)
        assert torch.equal(films, torch.from_numpy(pixels.take(rows)).float())
        return films * 0

    prefix = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2))
    frozen = FrozenPart(prefix, preprocessing="unit", engine=choose("torch-float32"))
    plain, changed = (ComputedFeatures(frozen, Streamed(pixels, CPU), change=change) for change in (None, darken))
    rows = np.array([7, 2])
    out = changed.take(rows)
    assert seen[0].tolist() == [7, 2]
    assert torch.equal(out[0], out[1])
    assert not torch.equal(out, plain.take(rows))
