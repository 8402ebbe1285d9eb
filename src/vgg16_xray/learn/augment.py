"""Random changes to films in training. What happens to a film depends on the seed, the draw and the film alone, not on
its neighbours in a batch, so that an interrupted training goes on exactly as it would have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vgg16_xray.config import Augmentation
from vgg16_xray.learn.style import apply_style, draw_style

if TYPE_CHECKING:
    import torch

#: Parameters a film: shear (radians), zoom x, zoom y (factors), rotation (radians), shift x, shift y (shares of the
#: side), gamma, flip (1 or -1).
PARAMETERS = 8


def draw_parameters(augmentation: Augmentation, *, seed: int, draw: int, row: int) -> np.ndarray:
    """Draw what happens to one film.

    Args:
        augmentation: The bounds.
        seed: Seed of the run.
        draw: Which draw: the epoch, or the view.
        row: The film's row in the store.

    Returns:
        (8,) float64, in the order of :data:`PARAMETERS`.
    """
    # All numbers are drawn whatever the bounds are: switching one change off leaves the others as they were.
    rng = np.random.default_rng([seed, draw, row])
    u = rng.uniform(-1.0, 1.0, size=PARAMETERS)
    return np.array(
        [
            np.deg2rad(augmentation.shear) * u[0],
            1.0 + augmentation.zoom * u[1],
            1.0 + augmentation.zoom * u[2],
            np.deg2rad(augmentation.rotation) * u[3],
            augmentation.shift * u[4],
            augmentation.shift * u[5],
            np.exp(np.log1p(augmentation.exposure) * u[6]),
            -1.0 if augmentation.flip and u[7] < 0 else 1.0,
        ]
    )


def apply(pixels: torch.Tensor, parameters: np.ndarray) -> torch.Tensor:
    """Change films; what comes in from outside repeats the border, as Keras' ``fill_mode="nearest"``.

    Args:
        pixels: (B, H, W) float32, 0..255.
        parameters: (B, 8), a row a film as from :func:`draw_parameters`.

    Returns:
        (B, H, W) float32, 0..255.
    """
    from torch.nn.functional import affine_grid, grid_sample

    from vgg16_xray.learn.devices import put

    shear, zoom_x, zoom_y, rotation, shift_x, shift_y, gamma, flip = parameters.T
    # Output coordinates to input coordinates, as Keras composes them: rotation, then shear, then zoom, and the flip of
    # what came out. Keras' x runs down the film and ours along it, so that a shear slants the other axis. Both axes run
    # from -1 to 1 about the middle, so that a shift by a share s of the side is 2 s.
    matrices = np.zeros((len(parameters), 2, 3))
    cos, sin = np.cos(rotation), np.sin(rotation)
    matrices[:, 0, 0] = flip * zoom_x * cos
    matrices[:, 0, 1] = zoom_y * (-cos * np.sin(shear) - sin * np.cos(shear))
    matrices[:, 1, 0] = flip * zoom_x * sin
    matrices[:, 1, 1] = zoom_y * (-sin * np.sin(shear) + cos * np.cos(shear))
    matrices[:, 0, 2] = 2 * shift_x
    matrices[:, 1, 2] = 2 * shift_y
    grid = affine_grid(
        put(matrices.astype(np.float32), pixels.device), [len(pixels), 1, *pixels.shape[1:]], align_corners=False
    )
    moved = grid_sample(pixels.unsqueeze(1), grid, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]
    power = put(gamma.astype(np.float32), pixels.device)[:, None, None]
    return 255.0 * (moved / 255.0).clamp(0, 1) ** power if (gamma != 1).any() else moved


class Augment:
    """Changes films by one draw: a :data:`vgg16_xray.learn.engines.Change`."""

    def __init__(self, augmentation: Augmentation, *, seed: int, draw: int) -> None:
        self.augmentation, self.seed, self.draw = augmentation, seed, draw

    def __call__(self, rows: np.ndarray, pixels: torch.Tensor) -> torch.Tensor:
        """Change films.

        Args:
            rows: (B,) int, the films' rows in the store.
            pixels: (B, H, W) float32, 0..255.

        Returns:
            (B, H, W) float32, 0..255.
        """
        if self.augmentation.moves:
            drawn = [draw_parameters(self.augmentation, seed=self.seed, draw=self.draw, row=int(row)) for row in rows]
            pixels = apply(pixels, np.stack(drawn))
        if self.augmentation.style:
            styles = [draw_style(self.augmentation.style, seed=self.seed, draw=self.draw, row=int(row)) for row in rows]
            pixels = apply_style(pixels, styles)
        return pixels
