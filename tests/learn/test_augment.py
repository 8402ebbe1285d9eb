"""Random changes: what they do to a film, against a direct formula, and what they depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform, gaussian_filter

from vgg16_xray.config import Augmentation
from vgg16_xray.learn.augment import PARAMETERS, Augment, apply, draw_parameters

SIDE = 96
#: shear, zoom x, zoom y, rotation, shift x, shift y, gamma, flip: nothing changed.
NOTHING = np.array([0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0])
ALL = Augmentation(shear=10, zoom=0.2, rotation=15, shift=0.1, exposure=0.5, flip=True)


@pytest.fixture(scope="module")
def films() -> torch.Tensor:
    noise = np.random.default_rng(0).uniform(0, 1, (3, SIDE, SIDE))
    smooth = np.stack([gaussian_filter(film, 3) for film in noise])
    smooth = 255 * (smooth - smooth.min()) / (smooth.max() - smooth.min())
    return torch.from_numpy(smooth).float()


def parameters(**changes: float) -> np.ndarray:
    names = ("shear", "zoom_x", "zoom_y", "rotation", "shift_x", "shift_y", "gamma", "flip")
    row = NOTHING.copy()
    for name, value in changes.items():
        row[names.index(name)] = value
    return row


def by_formula(film: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Keras' apply_affine_transform, then its flip: the pixel at p shows what lies at M (p - c) + c + shift.

    M is rotation, shear, zoom; c is the middle of the film, (side - 1) / 2; x runs along a row.
    """
    shear, zoom_x, zoom_y, rotation, shift_x, shift_y, gamma, flip = row
    turn = np.array([[np.cos(rotation), -np.sin(rotation)], [np.sin(rotation), np.cos(rotation)]])
    slant = np.array([[1, -np.sin(shear)], [0, np.cos(shear)]])
    matrix = turn @ slant @ np.diag([zoom_x, zoom_y])
    matrix = matrix[::-1, ::-1]  # (x, y) -> scipy's (row, column)
    middle = (np.array(film.shape) - 1) / 2
    shift = np.array([shift_y, shift_x]) * film.shape
    moved = affine_transform(film, matrix, offset=middle - matrix @ middle + shift, order=1, mode="nearest")
    moved = moved[:, ::-1] if flip < 0 else moved
    return 255 * (moved / 255) ** gamma


@pytest.mark.parametrize(
    "changes",
    [
        {"shear": np.deg2rad(20)},
        {"shear": np.deg2rad(-0.2)},
        {"zoom_x": 0.8},
        {"zoom_y": 1.2},
        {"zoom_x": 1.2, "zoom_y": 1.2},
        {"rotation": np.deg2rad(30)},
        {"shift_x": 0.1},
        {"shift_y": -0.25},
        {"gamma": 0.7},
        {"flip": -1.0},
        {"flip": -1.0, "shift_x": 0.1, "rotation": 0.3},
        {"shear": 0.2, "zoom_x": 0.9, "zoom_y": 1.1, "rotation": -0.4, "shift_x": 0.05, "gamma": 1.4, "flip": -1.0},
    ],
    ids=str,
)
def test_a_film_is_changed_as_the_formula_says(films: torch.Tensor, changes: dict[str, float]) -> None:
    row = parameters(**changes)
    found = apply(films, np.stack([row] * len(films))).numpy()
    expected = np.stack([by_formula(film.astype(np.float64), row) for film in films.numpy()])
    # Coordinates are float32: a hundred-thousandth of the side, times the steepest slope between two pixels.
    assert np.abs(found - expected).max() < 0.1
    assert np.abs(found - films.numpy()).max() > 1


def test_nothing_changed_is_the_film_itself(films: torch.Tensor) -> None:
    torch.testing.assert_close(apply(films, np.stack([NOTHING] * 3)), films, atol=5e-3, rtol=0)
    drawn = draw_parameters(Augmentation(), seed=1, draw=2, row=3)
    np.testing.assert_array_equal(drawn, NOTHING)


def test_a_flip_mirrors_left_and_right(films: torch.Tensor) -> None:
    found = apply(films, np.stack([parameters(flip=-1.0)] * 3))
    torch.testing.assert_close(found, films.flip(2), atol=5e-3, rtol=0)


def test_what_comes_in_from_outside_repeats_the_border(films: torch.Tensor) -> None:
    found = apply(films, np.stack([parameters(shift_x=0.25)] * 3))
    quarter = SIDE // 4
    torch.testing.assert_close(found[:, :, : SIDE - quarter], films[:, :, quarter:], atol=5e-3, rtol=0)
    torch.testing.assert_close(
        found[:, :, SIDE - quarter :], films[:, :, -1:].expand(-1, -1, quarter), atol=5e-3, rtol=0
    )


def test_values_stay_between_black_and_white(films: torch.Tensor) -> None:
    changed = Augment(ALL, seed=3, draw=0)(np.arange(3), films)
    assert changed.shape == films.shape
    assert changed.dtype == torch.float32
    assert 0 <= changed.min() <= changed.max() <= 255.001


def test_drawn_numbers_keep_their_bounds_and_use_them() -> None:
    drawn = np.stack([draw_parameters(ALL, seed=1, draw=d, row=r) for d in range(20) for r in range(100)])
    assert drawn.shape == (2000, PARAMETERS)
    bounds = [
        (-np.deg2rad(10), np.deg2rad(10)),
        (0.8, 1.2),
        (0.8, 1.2),
        (-np.deg2rad(15), np.deg2rad(15)),
        (-0.1, 0.1),
        (-0.1, 0.1),
        (1 / 1.5, 1.5),
        (-1, 1),
    ]
    for column, (low, high) in zip(drawn.T, bounds, strict=True):
        assert low <= column.min() < low + 0.05 * (high - low)
        assert high >= column.max() > high - 0.05 * (high - low)
    assert abs(np.log(drawn[:, 6]).mean()) < 0.02
    assert set(drawn[:, 7]) == {-1.0, 1.0}
    assert 0.45 < (drawn[:, 7] < 0).mean() < 0.55
    # Both axes are scaled by factors of their own, as in Keras.
    assert abs(np.corrcoef(drawn[:, 1], drawn[:, 2])[0, 1]) < 0.1


def test_what_is_drawn_depends_on_seed_draw_and_film_alone(films: torch.Tensor) -> None:
    one = draw_parameters(ALL, seed=1, draw=2, row=3)
    np.testing.assert_array_equal(one, draw_parameters(ALL, seed=1, draw=2, row=3))
    for other in ({"seed": 9, "draw": 2, "row": 3}, {"seed": 1, "draw": 9, "row": 3}, {"seed": 1, "draw": 2, "row": 9}):
        assert (one[:7] != draw_parameters(ALL, **other)[:7]).all()
    change = Augment(ALL, seed=1, draw=2)
    together = change(np.array([5, 6, 7]), films)
    alone = torch.cat([change(np.array([row]), films[i : i + 1]) for i, row in enumerate((5, 6, 7))])
    assert torch.equal(together, alone)
    turned = change(np.array([7, 5, 6]), films[[2, 0, 1]])
    assert torch.equal(turned, together[[2, 0, 1]])


def test_switching_one_change_off_leaves_the_others() -> None:
    without = Augmentation(shear=10, zoom=0.2, rotation=0, shift=0.1, exposure=0.5, flip=True)
    one, other = (draw_parameters(bounds, seed=1, draw=2, row=3) for bounds in (ALL, without))
    assert other[3] == 0 != one[3]
    np.testing.assert_array_equal(np.delete(one, 3), np.delete(other, 3))
