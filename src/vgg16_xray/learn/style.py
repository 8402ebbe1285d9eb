"""The style of a film, drawn at random: what a hospital's machine, archive and habits leave on it, and no disease does.

Gamma and contrast, local contrast, sharpness, resampling, JPEG, noise, a border, a marker. Each film has some of them,
drawn from (seed, draw, film) alone; computed by torch on the device where the films lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

#: Bounds at strength 1: gamma from 1 / (1 + GAMMA) to 1 + GAMMA, contrast from 1 - CONTRAST to its inverse.
GAMMA, CONTRAST, BRIGHTNESS = 0.6, 0.35, 30.0
#: Sigmas, pixels of 224, and how much of what they take away is added or taken: local contrast, sharpness.
WIDE, LOCAL = 14.0, 0.6
NARROW, SHARPER, BLURRED = 1.1, 1.5, 1.0
#: Sides to which a film is resampled, as shares of its own.
SIDES = (0.75, 0.6, 0.5)
#: JPEG's lowest quality (libjpeg's scale), and the largest deviation of noise, grey levels.
QUALITY, NOISE = 30, 8.0
#: Widest border, share of the side; side of a marker's cell, pixels, and its cells down and across.
BORDER, CELL, MARKER = 0.06, 4, (4, 6)
#: A film has each of these with this probability.
SHARE = 0.5
#: Fields of noise, of which each film takes one, moved.
FIELDS = 8

#: Quantisation of brightness, ITU-T T.81 table K.1.
TABLE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    dtype=np.float32,
)


@dataclass(frozen=True, kw_only=True)
class Style:
    """What is done to one film; the defaults do nothing."""

    gamma: float = 1.0
    contrast: float = 1.0
    #: Grey levels.
    brightness: float = 0.0
    #: Share of the structure wider, and narrower, than a sigma that is added.
    local: float = 0.0
    sharpness: float = 0.0
    #: Side to which the film is resampled and back, share; 1: not.
    side: float = 1.0
    #: JPEG quality, 1 to 100; 0: not encoded.
    quality: int = 0
    #: Deviation, grey levels; which field, and how it is moved.
    noise: float = 0.0
    field: tuple[int, int, int] = (0, 0, 0)
    #: Widths of the border left, top, right, bottom, shares of the side, and its grey.
    border: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    border_grey: float = 0.0
    #: A marker's cells, True where it is white, its place as shares of what is free; None: no marker.
    marker: np.ndarray | None = None
    marker_at: tuple[float, float] = (0.0, 0.0)


def draw_style(strength: float, *, seed: int, draw: int, row: int) -> Style:
    """Draw the style of one film.

    Args:
        strength: 0 to 1: how far each change goes.
        seed: Seed of the run.
        draw: Which draw: the epoch, or the view.
        row: The film's row in the store.
    """
    rng = np.random.default_rng([seed, draw, row, 1])
    # All is drawn whatever is used, so that one change does not depend on another.
    u = rng.uniform(-1, 1, size=16)
    has = rng.uniform(size=8) < SHARE
    marker, field, sides = rng.uniform(size=MARKER) < SHARE, rng.integers(0, 1 << 16, size=3), rng.uniform(size=4)
    which, corner = int(rng.integers(len(SIDES))), rng.integers(0, 2, size=2)
    widths = strength * BORDER * np.where(rng.uniform(size=4) < SHARE, sides, 0.0)
    edge = np.abs(u[8:10]) * 0.15  # markers stand near a corner
    return Style(
        gamma=float(np.exp(np.log1p(strength * GAMMA) * u[0])),
        contrast=float((1 - strength * CONTRAST) ** u[1]),
        brightness=float(strength * BRIGHTNESS * u[2]),
        local=float(strength * LOCAL * u[3]) if has[0] else 0.0,
        sharpness=float(strength * (SHARPER if u[4] > 0 else BLURRED) * u[4]) if has[1] else 0.0,
        side=1 - strength * (1 - SIDES[which]) if has[2] else 1.0,
        quality=round(95 - strength * (95 - QUALITY) * abs(u[5])) if has[3] and strength else 0,
        noise=float(strength * NOISE * u[6] ** 2) if has[4] else 0.0,
        field=(int(field[0]) % FIELDS, int(field[1]), int(field[2])),
        border=(float(widths[0]), float(widths[1]), float(widths[2]), float(widths[3])) if has[5] else (0.0,) * 4,
        border_grey=0.0 if u[7] < 0.5 else 255.0,
        marker=marker if has[6] and strength else None,
        marker_at=(float(abs(corner[0] - edge[0])), float(abs(corner[1] - edge[1]))),
    )


def apply_style(pixels: torch.Tensor, styles: Sequence[Style]) -> torch.Tensor:
    """Give films a style.

    Args:
        pixels: (B, H, W) float32, 0..255.
        styles: (B,), one a film.

    Returns:
        (B, H, W) float32, 0..255.
    """
    import torch

    from vgg16_xray.learn.devices import put

    def of(name: str) -> torch.Tensor:
        values = np.array([getattr(style, name) for style in styles], dtype=np.float32)
        return put(values, pixels.device)[:, None, None]

    shape = (pixels.shape[1], pixels.shape[2])
    x = 255.0 * (pixels / 255.0).clamp(0, 1) ** of("gamma")
    middle = x.mean(dim=(1, 2), keepdim=True)
    x = (x - middle) * of("contrast") + middle + of("brightness")
    if any(style.local for style in styles):
        x = x + of("local") * (x - _blurred(x, WIDE * x.shape[-1] / 224))
    if any(style.sharpness for style in styles):
        x = x + of("sharpness") * (x - _blurred(x, NARROW))
    x = _resampled(x.clamp(0, 255), [style.side for style in styles])
    x = _encoded(x, [style.quality for style in styles])
    if any(style.noise for style in styles):
        x = x + of("noise") * _noise([style.field for style in styles], shape, pixels.device)
    drawn = [_overlay(style, shape) for style in styles]
    if any(overlay is not None for overlay in drawn):
        clear = np.full(x.shape[1:], np.nan, dtype=np.float32)
        over = put(np.stack([clear if overlay is None else overlay for overlay in drawn]), pixels.device)
        x = torch.where(over.isnan(), x, over)
    return x.clamp(0, 255)


def _blurred(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """(B, H, W) blurred by a Gaussian; the border is repeated."""
    import torch
    from torch.nn.functional import conv2d, pad

    reach = max(1, round(2.5 * sigma))
    at = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (at / sigma) ** 2)
    kernel = kernel / kernel.sum()
    x = pad(x[:, None], (reach,) * 4, mode="replicate")
    return conv2d(conv2d(x, kernel[None, None, :, None]), kernel[None, None, None, :])[:, 0]


def _resampled(x: torch.Tensor, shares: Sequence[float]) -> torch.Tensor:
    from torch.nn.functional import interpolate

    from vgg16_xray.learn.devices import put

    out = x
    for share in sorted({share for share in shares if share < 1}):
        at = put(np.flatnonzero([one == share for one in shares]), x.device)
        smaller = interpolate(x[at][:, None], scale_factor=share, mode="bilinear", antialias=True)
        back = interpolate(smaller, size=x.shape[1:], mode="bilinear")[:, 0]
        out = out.index_copy(0, at, back)
    return out


@lru_cache
def _cosines() -> np.ndarray:
    """(8, 8) float32, the orthonormal DCT of eight numbers."""
    k, n = np.mgrid[:8, :8]
    return np.asarray(np.cos(np.pi * (n + 0.5) * k / 8) * np.where(k == 0, 0.125, 0.25) ** 0.5, dtype=np.float32)


def _encoded(x: torch.Tensor, qualities: Sequence[int]) -> torch.Tensor:
    """What a JPEG encoder of each quality leaves of (B, H, W); 0: as it is. Bottom rows without a whole block stay."""
    import torch

    from vgg16_xray.learn.devices import put

    if not any(qualities):
        return x
    chosen = np.flatnonzero(qualities)
    at, quality = put(chosen, x.device), np.array(qualities, dtype=np.float64)[chosen]
    # libjpeg: jpeg_quality_scaling.
    scale = np.where(quality < 50, 5000 / quality, 200 - 2 * quality) / 100
    steps = put(np.clip(np.floor(TABLE * scale[:, None, None] + 0.5), 1, 255).astype(np.float32), x.device)
    cosines = put(_cosines(), x.device)
    height, width = (side // 8 * 8 for side in x.shape[1:])
    films = x[at]
    blocks = films[:, :height, :width].reshape(len(chosen), height // 8, 8, width // 8, 8).transpose(2, 3) - 128
    waves = cosines @ blocks @ cosines.T
    steps = steps[:, None, None]
    blocks = cosines.T @ (torch.round(waves / steps) * steps) @ cosines + 128
    films[:, :height, :width] = blocks.transpose(2, 3).reshape(len(chosen), height, width)
    return x.index_copy(0, at, films.clamp(0, 255))


@lru_cache(maxsize=4)
def _fields(shape: tuple[int, int]) -> np.ndarray:
    """(FIELDS, H, W) float32 noise of deviation 1, the half of them grainy."""
    rng = np.random.default_rng(0)
    fine = rng.standard_normal((FIELDS, *shape)).astype(np.float32)
    grain = fine[::2] + np.roll(fine[::2], 1, axis=1) + np.roll(fine[::2], 1, axis=2) + np.roll(fine[::2], 2, axis=2)
    fine[::2] = grain / 2
    return fine


def _noise(fields: Sequence[tuple[int, int, int]], shape: tuple[int, int], device: torch.device) -> torch.Tensor:
    from vgg16_xray.learn.devices import put

    bank = _fields(shape)
    return put(np.stack([np.roll(bank[which], (down, across), axis=(0, 1)) for which, down, across in fields]), device)


def _overlay(style: Style, shape: tuple[int, int]) -> np.ndarray | None:
    """(H, W) float32: the greys of border and marker, not a number where there are none of them; None: neither."""
    if style.marker is None and not any(style.border):
        return None
    height, width = shape
    out = np.full(shape, np.nan, dtype=np.float32)
    if style.marker is not None:
        cells = np.kron(np.where(style.marker, 235.0, np.nan), np.ones((CELL, CELL)))
        top, left = (
            round(place * (side - n)) for place, side, n in zip(style.marker_at, shape, cells.shape, strict=True)
        )
        if top >= 0 and left >= 0:
            out[top : top + cells.shape[0], left : left + cells.shape[1]] = cells
    left, top, right, bottom = (
        round(share * side) for share, side in zip(style.border, (width, height, width, height), strict=True)
    )
    inside = np.zeros(shape, dtype=bool)
    inside[top : height - bottom, left : width - right] = True
    return np.where(inside, out, np.float32(style.border_grey))
