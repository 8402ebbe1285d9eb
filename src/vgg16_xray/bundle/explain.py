"""Where on a film the model finds what speaks for a class: Grad-CAM, without a backward pass and without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vgg16_xray import RESEARCH_USE_ONLY

if TYPE_CHECKING:
    from PIL.Image import Image

    from vgg16_xray.bundle.classify import Prediction

#: Colours from nothing to most: nine of matplotlib's "inferno", in which lighter is always more (RGB, 0..255).
COLOURS = np.array(
    [
        *((0, 0, 4), (33, 12, 74), (87, 16, 110), (138, 34, 106), (188, 55, 84)),
        *((228, 90, 49), (249, 142, 9), (249, 203, 53), (252, 255, 164)),
    ],
    dtype=np.float64,
)
#: How much of a pixel is heat where the heat is greatest.
OPACITY = 0.65
#: Height of a drawn film, margin, width of the colour bar, and size of the letters, pixels.
HEIGHT, MARGIN, BAR, LETTERS = 512, 20, 18, 15


def grad_cam(weights: np.ndarray, feature_map: np.ndarray) -> np.ndarray:
    """Grad-CAM (Selvaraju et al. 2017, equations 1 and 2) of a class's logit.

    Of the logit and not of the probability: the derivative of a probability vanishes where it comes near 1.

    Args:
        weights: (512,) the class's row of ``head.cam_weights``.
        feature_map: (512, h, w) float32.

    Returns:
        (h, w) float32, 0 or more; 0 everywhere where nothing on the map speaks for the class.
    """
    heat = np.tensordot(weights, feature_map.astype(np.float64), axes=1)
    return np.maximum(heat, 0.0).astype(np.float32)


def enlarged(heat: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A heat map (h, w) at the size (H, W) of its film, float32."""
    from PIL import Image

    return np.asarray(Image.fromarray(heat).resize(shape[::-1], Image.Resampling.BILINEAR))


def coloured(share: np.ndarray) -> np.ndarray:
    """Shares 0..1 of any shape (...) as colours (..., 3), 0..255."""
    places = np.linspace(0.0, 1.0, len(COLOURS))
    return np.stack([np.interp(share, places, COLOURS[:, channel]) for channel in range(3)], axis=-1)


def overlay(film: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Heat (h, w) over its film (H, W) uint8: (H, W, 3) uint8, the film unchanged where there is no heat."""
    top = float(heat.max())
    share = enlarged(heat, (film.shape[0], film.shape[1])) / top if top > 0 else np.zeros(film.shape)
    opacity = OPACITY * np.sqrt(share.clip(0.0, 1.0))[..., None]
    return np.rint(film[..., None] * (1 - opacity) + coloured(share) * opacity).astype(np.uint8)


def outlined(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], *, thickness: int = 2) -> np.ndarray:
    """A picture (H, W, 3) uint8 with the border of a structure (H, W) bool on it, drawn within the structure."""
    from PIL import Image, ImageFilter

    whole = Image.fromarray(mask.astype(np.uint8) * 255)
    inside = np.asarray(whole.filter(ImageFilter.MinFilter(2 * thickness + 1))) > 0
    drawn = picture.copy()
    drawn[mask & ~inside] = colour
    return drawn


def draw(film: np.ndarray, answer: Prediction) -> Image:
    """The film, the film under its heat map, the colour bar with its scale, and what all that is.

    Args:
        film: (H, W) uint8.
        answer: What the model says of it, with its heat.
    """
    from PIL import Image, ImageDraw, ImageFont

    heat = np.zeros((1, 1), np.float32) if answer.heat is None else answer.heat
    width = max(1, round(film.shape[1] * HEIGHT / film.shape[0]))
    shown = Image.fromarray(film).resize((width, HEIGHT), Image.Resampling.LANCZOS)
    warm = Image.fromarray(overlay(np.asarray(shown), heat))
    font = ImageFont.load_default(LETTERS)
    label, top = answer.prediction or "", float(heat.max())
    lines = [
        f"{label}, probability {answer.confidence:.3f}"
        + (f" ({answer.answer})" if answer.answer != "answered" else ""),
        f"Heat: where the last layer speaks for {label} (Grad-CAM of its logit, 0 to {top:.3g})"
        if top > 0
        else f"No heat: nothing on the last map speaks for {label}",
        RESEARCH_USE_ONLY,
    ]
    needed = max(int(font.getlength(line)) for line in lines)
    size = (max(2 * width + 4 * MARGIN + BAR + 60, needed + 2 * MARGIN), HEIGHT + 3 * MARGIN + 3 * (LETTERS + 8))
    page = Image.new("RGB", size, "white")
    page.paste(shown, (MARGIN, MARGIN))
    page.paste(warm, (width + 2 * MARGIN, MARGIN))
    pen = ImageDraw.Draw(page)
    left = 2 * width + 3 * MARGIN
    bar = coloured(np.linspace(1.0, 0.0, HEIGHT)[:, None].repeat(BAR, axis=1))
    page.paste(Image.fromarray(np.rint(bar).astype(np.uint8)), (left, MARGIN))
    for share in (1.0, 0.5, 0.0):
        y = MARGIN + (1 - share) * (HEIGHT - 1)
        pen.line((left + BAR, y, left + BAR + 4, y), fill="black")
        pen.text((left + BAR + 8, y), f"{share * top:.3g}", fill="black", font=font, anchor="lm")
    for number, line in enumerate(lines):
        pen.text((MARGIN, HEIGHT + 2 * MARGIN + number * (LETTERS + 8)), line, fill="black", font=font)
    return page
