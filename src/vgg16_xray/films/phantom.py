"""Drawn chest radiographs whose truth is known, for the demo and the tests.

A film is drawn as it comes about: tissues absorb, one behind the other, and what they absorb is added up
(Beer-Lambert); then a detector turns the sum into grey. Lengths are shares of the picture's side, x from the midline to
the picture's right (the patient's left), y downwards. Proportions and absorptions are chosen by eye against real
postero-anterior films: a drawing teaches nothing about disease, it only has places, shapes and truths.

Everything is a function of ``(seed, patient, film, label)``. Body, pose, exposure and noise do not depend on the label,
so the same patient and film under two labels differ in the opacity alone.
"""

from __future__ import annotations

import csv
import io
import math
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from vgg16_xray.errors import UserError
from vgg16_xray.files import saying_why_not_written
from vgg16_xray.progress import progress

if TYPE_CHECKING:
    from PIL.Image import Image

#: The classes of the Kaggle COVID-19 Radiography Database, in its order.
CLASSES: tuple[str, ...] = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
#: Share of each class in a written dataset: imbalanced roughly as the Kaggle database is.
PROPORTIONS: Mapping[str, float] = MappingProxyType(
    {"COVID": 0.2, "Lung_Opacity": 0.25, "Normal": 0.4, "Viral Pneumonia": 0.15}
)
#: Side of a film in pixels: the smallest in which a rib is a pixel wide, and the largest that is drawn in a second.
SIZES = (64, 2048)
#: Columns of the written table.
COLUMNS = ("path", "label", "source", "patient_id", "mask")
SOURCE = "phantom"
#: What :class:`Faults` can write under a film's name, in the order in which they are planted.
BROKEN = ("truncated", "empty", "text", "tiny")
#: What :class:`Faults` can plant on films of class COVID, beside the disease.
SHORTCUTS = ("marker", "border", "contrast", "resolution", "age")

# One stream of random numbers for each purpose, so that none shifts another.
_BODY, _FILM, _OPACITY, _PLAN, _MARKER, _COPIES, _TWO_LABELS, _BORDER, _CONTRAST, _RESOLUTION, _AGE = range(11)
# Seeds are single words of 32 bits: numpy.random.SeedSequence mixes them without ambiguity.
_SEED_LIMIT = 2**32

# Absorption of what lies in the beam, in units of the chest's soft tissue.
_AIR_IN_LUNG, _HEART, _ABDOMEN, _SPINE, _RIB, _CLAVICLE = 0.66, 0.42, 0.42, 0.19, 0.24, 0.27
# Grey = 1 - exp(-k * absorption): soft tissue at 0.8 of white, as on the films that the drawings were compared with.
_K = 1.1

# Outline of a lung: distance from the midline in half-widths of the chest, and height from apex (0) to costophrenic
# angle (1). A point given twice is a corner.
_LUNG = np.array(
    [
        (0.35, 0.000), (0.52, 0.030), (0.69, 0.130), (0.82, 0.290), (0.91, 0.480), (0.97, 0.700), (0.985, 0.900),
        (0.975, 1.000), (0.975, 1.000), (0.85, 0.915), (0.64, 0.855), (0.42, 0.850), (0.26, 0.905), (0.20, 0.930),
        (0.19, 0.720), (0.18, 0.500), (0.16, 0.320), (0.17, 0.140), (0.24, 0.030),
    ]
)  # fmt: skip
_DOME = _LUNG[8:13]
# Outline of heart and great vessels in the same units, from the neck down the patient's right and up the left: right
# atrium, apex of the left ventricle, pulmonary trunk, aortic knob.
_HEART_OUTLINE = np.array(
    [
        (-0.15, -0.05), (-0.16, 0.12), (-0.17, 0.28), (-0.18, 0.42), (-0.24, 0.56), (-0.30, 0.70), (-0.28, 0.84),
        (-0.20, 0.97), (0.10, 1.02), (0.42, 0.98), (0.57, 0.91), (0.56, 0.80), (0.45, 0.66), (0.32, 0.53),
        (0.22, 0.43), (0.19, 0.35), (0.25, 0.27), (0.20, 0.20), (0.15, 0.10), (0.14, -0.05),
    ]
)  # fmt: skip
# Outline of a vertebral body: waisted between its end plates.
_VERTEBRA = np.array([(-1, -1), (1, -1), (0.9, 0), (1, 1), (-1, 1), (-0.9, 0)])
_HILUM = (0.26, 0.46)
_SIDES = (-1, 1)


def _check_count(name: str, value: int, *, least: int = 0, limit: int | None = None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (limit is not None and value >= limit):
        upto = f"from {least} to {limit - 1}" if limit is not None else f"of at least {least}"
        raise UserError(f"{name}: must be a whole number {upto}, found {value!r}")


def _check_size(size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int) or not SIZES[0] <= size <= SIZES[1]:
        raise UserError(f"size: must be a whole number from {SIZES[0]} to {SIZES[1]}, found {size!r}")


def _check_share(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"{name}: must be a number from 0 to 1, found {value!r}")


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """One drawn radiograph and the truth about it."""

    #: (H, W) uint8, 0 black to 255 white.
    pixels: np.ndarray
    #: (H, W) bool, True in the lungs, opacity included, without heart and mediastinum.
    lungs: np.ndarray
    #: (H, W) bool, True where the opacity is at least a third of its own maximum; False everywhere for ``Normal``.
    opacity: np.ndarray
    #: One of :data:`CLASSES`.
    label: str
    #: ``P`` and five digits, e.g. ``P00012``.
    patient_id: str


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What is wrong with a written dataset, on purpose; nothing by default.

    Raises:
        UserError: A value is outside its range.
    """

    #: Share of the films, 0 to 1, that are written a second time in the same class: another name, another PNG encoding,
    #: no patient, equal pixels.
    copies: float = 0.0
    #: Number of files with a film's name that are none, of the kinds :data:`BROKEN` in turn.
    broken: int = 0
    #: Probability, 0 to 1, that a film of class COVID carries a bright marker in a corner. Others never do.
    marker: float = 0.0
    #: The same for a black frame, a forty-eighth of the side wide.
    border: float = 0.0
    #: The same for a detector that shows three quarters of the contrast.
    contrast: float = 0.0
    #: The same for a film that was made half as large and enlarged again.
    resolution: float = 0.0
    #: Probability that a patient of class COVID has a child's proportions. Patients of other classes never have.
    age: float = 0.0
    #: Number of films that are written a second time, without a patient, in another class.
    two_labels: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be planted."""
        _check_share("copies", self.copies)
        _check_count("broken", self.broken)
        for name in SHORTCUTS:
            _check_share(name, getattr(self, name))
        _check_count("two_labels", self.two_labels)


def draw(
    label: str, *, seed: int = 0, patient: int = 0, film: int = 0, size: int = 256, child: bool = False
) -> Phantom:
    """Draw one radiograph. The same arguments give the same pixels, whatever else is drawn.

    Args:
        label: One of :data:`CLASSES`: decides the opacity.
        seed: Another seed, other patients; 0 to 2**32 - 1.
        patient: Decides the body; same range.
        film: Decides pose, exposure, noise and the opacity's place and severity; same range.
        size: Side of the square film in pixels, within :data:`SIZES`.
        child: The same patient with a child's proportions: narrow chest, large heart, level ribs, little fat.

    Returns:
        The film of shape (size, size) with its lungs and its opacity.

    Raises:
        UserError: An argument is outside its range.
    """
    if label not in CLASSES:
        raise UserError(f"label: must be one of {', '.join(CLASSES)}, found {label!r}")
    for name, value in (("seed", seed), ("patient", patient), ("film", film)):
        _check_count(name, value, limit=_SEED_LIMIT)
    _check_size(size)
    body = _Body.of(np.random.default_rng([seed, _BODY, patient, 0]))
    body = body.as_child() if child else body
    rng = np.random.default_rng([seed, _FILM, patient, film])
    view = _View.of(body, rng, size)
    lungs = _draw_lungs(view)
    air = _soft(lungs, view, 0.012)
    absorption = _absorption(body, view, air, rng)
    opacity_rng = np.random.default_rng([seed, _OPACITY, patient, film])
    opacity = _OPACITIES[label](view, opacity_rng)
    inside = np.asarray(lungs) > 127
    mask = np.zeros((size, size), bool)
    if opacity is not None:
        # Air is replaced by fluid or cells: nothing can be denser than a lung without air.
        absorption += _AIR_IN_LUNG * body.depth * air * opacity
        outline = opacity * inside
        mask = outline >= max(float(outline.max()), 1e-6) / 3
    return Phantom(
        pixels=_expose(absorption, rng),
        lungs=inside,
        opacity=mask,
        label=label,
        patient_id=f"P{patient:05d}",
    )


# ---------------------------------------------------------------------------------------------------------- the body


@dataclass(frozen=True, kw_only=True)
class _Body:
    """What the films of one patient share."""

    half_width: float
    apex: float
    #: Height of the costophrenic angles, picture's left and right.
    base: tuple[float, float]
    heart: float
    dome: float
    shoulder: float
    arm: float
    fat: float
    depth: float
    rib_count: int
    rib_drop: float
    bone: float
    clavicle: float
    curve: float
    breast: float
    bubble: float
    vessels: float
    vessel_seed: int

    @classmethod
    def of(cls, rng: np.random.Generator) -> _Body:
        """Draw a patient."""
        half_width = 0.355 * float(np.clip(rng.normal(1, 0.06), 0.85, 1.13))
        apex = 0.125 + rng.uniform(-0.02, 0.025)
        base = 0.835 + rng.uniform(-0.07, 0.05)
        return cls(
            half_width=half_width,
            apex=apex,
            base=(base, base + rng.uniform(0.0, 0.03)),
            heart=float(np.clip(rng.normal(1, 0.13), 0.75, 1.35)),
            dome=rng.uniform(0.85, 1.2),
            shoulder=rng.uniform(-0.02, 0.03),
            arm=rng.uniform(0.02, 0.12),
            fat=rng.uniform(0.03, 0.075),
            depth=rng.uniform(0.88, 1.06),
            rib_count=int(rng.integers(9, 11)),
            rib_drop=rng.uniform(0.15, 0.23),
            bone=rng.uniform(0.7, 1.25),
            clavicle=rng.uniform(-0.03, 0.03),
            curve=rng.normal(0, 0.006),
            breast=float(rng.random() < 0.45) * rng.uniform(0.05, 0.16),
            bubble=float(rng.random() < 0.5) * rng.uniform(0.4, 1.0),
            vessels=rng.uniform(0.6, 1.3),
            vessel_seed=int(rng.integers(_SEED_LIMIT)),
        )

    def as_child(self) -> _Body:
        """The same with a child's proportions, chosen by eye."""
        return replace(
            self,
            half_width=0.84 * self.half_width,
            base=(self.base[0] - 0.06, self.base[1] - 0.06),
            heart=1.18 * self.heart,
            rib_drop=0.55 * self.rib_drop,
            fat=0.6 * self.fat,
            breast=0.0,
            arm=self.arm - 0.04,
        )


@dataclass(frozen=True, kw_only=True)
class _View:
    """A body as it stands before one film: where a point of it comes to lie."""

    body: _Body
    size: int
    #: Rows of the rotation and scaling, and the shift, in shares of the picture's side.
    turn: np.ndarray
    shift: np.ndarray
    base: tuple[float, float]
    #: Rotation about the long axis moves what lies in front against what lies behind.
    front: float

    @classmethod
    def of(cls, body: _Body, rng: np.random.Generator, size: int) -> _View:
        """Draw a pose."""
        angle, scale = math.radians(rng.normal(0, 1.6)), rng.normal(0.96, 0.02)
        breath = rng.normal(0, 0.012)
        return cls(
            body=body,
            size=size,
            turn=scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]),
            shift=np.array([0.5 + rng.normal(0, 0.012), 0.5 + rng.normal(0, 0.012)]),
            base=(body.base[0] + breath, body.base[1] + breath),
            front=rng.normal(0, 0.008),
        )

    def lung(self, side: int, points: np.ndarray) -> np.ndarray:
        """(N, 2) half-widths and lung heights of one side -> (N, 2) of the body."""
        base = self.base[side > 0]
        x = side * points[:, 0] * self.body.half_width
        return np.stack([x, self.body.apex + points[:, 1] * (base - self.body.apex)], axis=1)

    def place(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) of the body -> (N, 2) shares of the picture's side."""
        return (np.asarray(points, dtype=float) - (0.0, 0.5)) @ self.turn.T + self.shift

    def pixels(self, points: np.ndarray) -> list[float]:
        """(N, 2) of the body -> x, y, x, y, ... on the drawing, which is twice the film's size."""
        flat: list[float] = (self.place(points) * (2 * self.size)).ravel().tolist()
        return flat


@lru_cache(maxsize=64)
def _spline(count: int, steps: int, closed: bool) -> np.ndarray:
    """Matrix (N * steps, N) that draws a Catmull-Rom spline through N points."""
    t = np.arange(steps) / steps
    weights = 0.5 * np.stack(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3], axis=1
    )
    spans = count if closed else count - 1
    matrix = np.zeros((spans * steps + (not closed), count))
    for span in range(spans):
        for k in range(4):
            point = (span + k - 1) % count if closed else min(max(span + k - 1, 0), count - 1)
            matrix[span * steps : (span + 1) * steps, point] += weights[:, k]
    if not closed:
        matrix[-1, -1] = 1
    return matrix


def _closed(points: np.ndarray) -> np.ndarray:
    return _spline(len(points), 6, True) @ points


def _open(points: Sequence[tuple[float, float]] | np.ndarray) -> np.ndarray:
    return _spline(len(points), 6, False) @ np.asarray(points, dtype=float)


def _ribbon(line: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """Outline of a line (N, 2) with a width (scalar or (N,)), as (2N, 2)."""
    padded = np.concatenate([line[:1], line, line[-1:]])
    along = padded[2:] - padded[:-2]
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1)
    normal *= (np.asarray(width) / 2 / np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-9)).reshape(-1, 1)
    return np.concatenate([line + normal, (line - normal)[::-1]])


class _Canvas:
    """A drawing of twice the film's size, so that its edges come out smooth."""

    def __init__(self, view: _View) -> None:
        from PIL import Image, ImageDraw

        self.view = view
        self.image = Image.new("L", (2 * view.size, 2 * view.size))
        self._draw = ImageDraw.Draw(self.image)

    def fill(self, points: np.ndarray, value: float = 1.0) -> None:
        self._draw.polygon(self.view.pixels(points), fill=round(255 * value))

    def ribbon(self, line: np.ndarray, width: float | np.ndarray, value: float = 1.0) -> None:
        self.fill(_ribbon(line, width), value)

    def ellipse(self, x: float, y: float, width: float, height: float, value: float = 1.0) -> None:
        self.fill(_CIRCLE * (width, height) + (x, y), value)

    def finish(self) -> Image:
        """The drawing at the film's size, mode L."""
        return self.image.reduce(2)


_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 33)[:-1]), np.sin(np.linspace(0, 2 * np.pi, 33)[:-1])], axis=1)


def _soft(image: Image, view: _View, radius: float) -> np.ndarray:
    """(H, W) float32, 0 to 1, blurred by a radius in shares of the picture's side."""
    from PIL import ImageFilter

    blurred = image.filter(ImageFilter.GaussianBlur(radius * view.size)) if radius else image
    return np.asarray(blurred, dtype=np.float32) * np.float32(1 / 255)


def _draw_lungs(view: _View) -> Image:
    canvas = _Canvas(view)
    for side in _SIDES:
        canvas.fill(_closed(view.lung(side, _lung_outline(view.body))))
    canvas.fill(_closed(_heart(view)), 0.0)
    return canvas.finish()


def _lung_outline(body: _Body) -> np.ndarray:
    outline = _LUNG.copy()
    # A flat or a high diaphragm: the dome rises by a share of its own height above the costophrenic angle.
    outline[9:14, 1] = 1 - (1 - outline[9:14, 1]) * body.dome
    return outline


def _heart(view: _View) -> np.ndarray:
    outline = _HEART_OUTLINE * 1.0
    # The great vessels keep their width; the heart below them is large or small.
    heart = 1 + (view.body.heart - 1) * np.clip((outline[:, 1] - 0.35) / 0.3, 0, 1)
    outline[:, 0] = outline[:, 0] * heart + view.front / view.body.half_width
    return view.lung(1, outline)


def _absorption(body: _Body, view: _View, air: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32: what the healthy body takes out of the beam."""
    trunk = _soft(_draw_trunk(view), view, 0.03)
    # A rounded body is thin at its edge.
    total = np.sqrt(trunk, out=trunk) * (0.97 + 0.6 * body.fat)
    total -= _AIR_IN_LUNG * body.depth * air
    canvas = _Canvas(view)
    canvas.fill(_closed(_heart(view)))
    # Where the heart rests on the liver their shadows are one.
    total += np.maximum(
        _HEART * _soft(canvas.finish(), view, 0.012), _ABDOMEN * _soft(_draw_abdomen(view), view, 0.025)
    )
    total += _soft(_draw_spine(view), view, 0) * (_SPINE * body.bone)
    total += _soft(_draw_ribs(view), view, 0) * (_RIB * body.bone)
    total += _soft(_draw_shoulders(view), view, 0) * (_CLAVICLE * body.bone)
    total -= 0.3 * _soft(_draw_gas(view), view, 0.008)
    total += 0.22 * _soft(_draw_vessels(view), view, 0) * air
    if body.breast:
        total += body.breast * _soft(_draw_breasts(view), view, 0.02)
    # Muscle and fat are not even.
    total *= 1 + 0.035 * _smooth_noise(rng, 9, view.size)
    return total


def _draw_trunk(view: _View) -> Image:
    body, canvas = view.body, _Canvas(view)
    wall, top = body.half_width + body.fat, body.apex + body.shoulder
    for side in _SIDES:
        neck = [(0.0, -0.3), (0.11, -0.3), (0.115, top - 0.10), (0.15, top - 0.045), (0.30, top + 0.005)]
        flank = [(wall - 0.02, 0.40), (wall, 0.6), (wall + 0.005, 0.8), (wall + 0.01, 1.4), (0.0, 1.4)]
        shoulder = [(0.41, top + 0.05), (0.45, top + 0.12)]
        canvas.fill(_open(neck + shoulder + flank) * (side, 1))
        arm = _open([(0.40, top + 0.11), (0.43 + body.arm / 2, 0.5), (0.45 + body.arm, 1.2)]) * (side, 1)
        canvas.ribbon(arm, 0.13)
    return canvas.finish()


def _draw_abdomen(view: _View) -> Image:
    canvas = _Canvas(view)
    left, right = (view.lung(side, _lung_outline(view.body)[8:14]) for side in _SIDES)
    wall = view.body.half_width + view.body.fat - 0.01
    under = np.concatenate([[(-wall, view.base[0] + 0.05)], left, right[::-1], [(wall, view.base[1] + 0.05)]])
    canvas.fill(np.concatenate([under, [(wall, 1.4), (-wall, 1.4)]]))
    return canvas.finish()


def _midline(view: _View, y: np.ndarray) -> np.ndarray:
    return np.stack([view.body.curve * np.sin(2 * np.pi * (y - 0.1)), y], axis=1)


def _draw_spine(view: _View) -> Image:
    canvas = _Canvas(view)
    canvas.ribbon(_midline(view, np.linspace(-0.2, 1.2, 24)), 0.075, 0.55)
    pitch = (view.base[0] - view.body.apex) / 11
    for x, y in _midline(view, np.arange(-0.05, 1.1, pitch)):
        half = pitch * 0.38
        canvas.fill(_VERTEBRA * (0.04, half) + np.array((x, y)), 0.85)
        for side in _SIDES:
            canvas.ellipse(x + side * 0.024, y - half * 0.3, 0.008, 0.011, 1.0)
    return canvas.finish()


def _draw_ribs(view: _View) -> Image:
    """Each rib is a tilted ring seen from the front: the back half bright, the front half wider and fainter."""
    from PIL import ImageChops

    body = view.body
    back, front = _Canvas(view), _Canvas(view)
    lateral, height = _LUNG[:8, 0], _LUNG[:8, 1]
    angle = np.linspace(0.02, 0.80, 22) * np.pi
    half = len(angle) * 5 // 8
    for side in _SIDES:
        span = view.base[side > 0] - body.apex
        for rib in range(body.rib_count):
            start = (rib - 0.25) / body.rib_count * 0.93
            drop = body.rib_drop * (0.62 + 0.5 * rib / body.rib_count) / span
            wall = np.interp(start + drop * 0.55, height, lateral) * 1.015
            x = wall * np.sin(angle)
            y = start + drop * (1 - np.cos(angle)) / 2 + 0.05 * np.minimum(angle / np.pi, 0.5) * 2
            line = view.lung(side, np.stack([x, y], axis=1))
            width = 0.021 + 0.003 * rib / body.rib_count
            for part, canvas, wide, value in (
                (line[:half], back, width, 0.95),
                (line[half - 1 :], front, width * 1.15, 0.55),
            ):
                canvas.ribbon(part, wide, value)
                # The cortex is denser than the marrow.
                canvas.ribbon(part, wide - 0.0085, value * 0.62)
    return ImageChops.add(back.finish(), front.finish())


def _draw_shoulders(view: _View) -> Image:
    body, canvas = view.body, _Canvas(view)
    top = body.apex + body.shoulder
    for side in _SIDES:
        blade = [
            (0.33, top + 0.06),
            (0.40, top + 0.09),
            (0.39, top + 0.16),
            (0.34, top + 0.30),
            (0.305, top + 0.26),
            (0.31, top + 0.14),
        ]
        canvas.fill(_closed(np.array(blade)) * (side, 1), 0.35)
        shaft = _open([(0.425, top + 0.12), (0.44 + body.arm / 2, 0.5), (0.46 + body.arm, 1.2)]) * (side, 1)
        canvas.ribbon(shaft, 0.042, 0.75)
        canvas.ribbon(shaft, 0.022, 0.5)
        canvas.ellipse(side * 0.42, top + 0.105, 0.04, 0.042, 0.7)
        tilt = body.clavicle
        bone = np.array(
            [
                (0.045, top + 0.085),
                (0.12, top + 0.065 - tilt / 4),
                (0.22, top + 0.045 - tilt / 2),
                (0.31, top + 0.035 - tilt),
                (0.38, top + 0.055 - tilt),
            ]
        )
        line = _open(bone) * (side, 1) + (view.front, 0)
        width = 0.021 + 0.010 * np.abs(np.linspace(-0.7, 1, len(line)))
        canvas.ribbon(line, width, 0.9)
        canvas.ribbon(line, width - 0.009, 0.6)
    return canvas.finish()


def _draw_gas(view: _View) -> Image:
    """Trachea, main bronchi, and in some the stomach's bubble."""
    canvas = _Canvas(view)
    if view.body.bubble:
        dome = view.lung(1, _lung_outline(view.body)[10:11])[0]
        canvas.ellipse(dome[0] - 0.01, dome[1] + 0.055, 0.055, 0.028, view.body.bubble)
    fork = view.body.apex + 0.27 * (view.base[0] - view.body.apex)
    x = view.front
    canvas.ribbon(np.array([(x * 0.5, -0.2), (x, fork * 0.6), (x - 0.004, fork)]), 0.042)
    canvas.ribbon(np.array([(x, fork - 0.01), (x - 0.045, fork + 0.05), (x - 0.075, fork + 0.08)]), 0.022, 0.7)
    canvas.ribbon(np.array([(x, fork - 0.01), (x + 0.05, fork + 0.045), (x + 0.09, fork + 0.07)]), 0.02, 0.7)
    return canvas.finish()


def _draw_vessels(view: _View) -> Image:
    """Vessels leave the hilum and thin out; every lung has them, which makes streaks of a pneumonia harder to tell."""
    canvas, body = _Canvas(view), view.body
    rng = np.random.default_rng([body.vessel_seed, 0, 0, 0])
    for side in _SIDES:
        for angle in np.linspace(-1.3, 1.45, 8) + rng.normal(0, 0.12, 8):
            _branch(canvas, side, angle, rng, length=rng.uniform(0.3, 0.6), width=0.0125, value=0.75 * body.vessels)
        x, y = view.lung(side, np.array([_HILUM]))[0]
        canvas.ellipse(x, y, 0.02, 0.042, 0.5 * body.vessels)
    return canvas.finish()


def _branch(
    canvas: _Canvas, side: int, angle: float, rng: np.random.Generator, *, length: float, width: float, value: float
) -> None:
    """A line from the hilum outwards, thinning, bent, with two twigs."""
    value = min(value, 1.0)
    start = np.array((_HILUM[0], _HILUM[1] + 0.06 * math.sin(angle) + rng.normal(0, 0.02)))
    bends = rng.normal(0, 0.55, 3)
    stem = _wisp(start, angle, bends[0], length)
    thin = 1 - 0.85 * _STEPS
    canvas.ribbon(canvas.view.lung(side, stem), width * thin, value)
    for at, turn, bend in ((2, 0.6, bends[1]), (4, -0.5, bends[2])):
        twig = _wisp(stem[at], angle + bends[0] * _STEPS[at] + turn, bend, length * 0.5)
        canvas.ribbon(canvas.view.lung(side, twig), 0.6 * width * thin[at] * thin, value * 0.85)


_STEPS = np.linspace(0, 1, 7)


def _wisp(start: np.ndarray, angle: float, bend: float, length: float) -> np.ndarray:
    """(7, 2) points of a bent line."""
    heading = angle + bend * _STEPS
    steps = np.stack([np.cos(heading), np.sin(heading)], axis=1) * (length / 6)
    points: np.ndarray = start + np.cumsum(steps, axis=0) - steps[0]
    return points


def _draw_breasts(view: _View) -> Image:
    canvas = _Canvas(view)
    for side in _SIDES:
        canvas.ellipse(side * view.body.half_width * 0.66, view.base[0] - 0.16, 0.14, 0.13)
    return canvas.finish()


def _smooth_noise(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """(H, W) float32 of about unit variance that changes over a `cells`-th of the picture."""
    from PIL import Image

    grid = rng.standard_normal((cells, cells)).astype(np.float32)
    return 1.3 * np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC))


def _expose(absorption: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What the detector shows, (H, W) uint8. Nothing here depends on the class."""
    from PIL import Image, ImageFilter

    size = len(absorption)
    strength, gamma = rng.uniform(0.78, 1.3), rng.uniform(0.75, 1.35)
    black, white = rng.uniform(0.0, 0.05), rng.uniform(0.86, 1.0)
    blur, noise, vignette = rng.uniform(0.0016, 0.0042), rng.uniform(1.0, 6.0), rng.uniform(0.0, 0.05)
    slope = np.linspace(-1, 1, size, dtype=np.float32) * np.float32(rng.normal(0, 1) * vignette)
    grey = 1 - np.exp(np.maximum(absorption, 0) * np.float32(-_K * strength))
    grey = np.power(grey / np.float32(1 - math.exp(-_K * strength * 1.7)), np.float32(1.2 * gamma))
    grey *= 1 + slope
    image = Image.fromarray(np.clip((black + (white - black) * grey) * 255, 0, 255).astype(np.uint8))
    film = np.asarray(image.filter(ImageFilter.GaussianBlur(blur * size)), dtype=np.float32)
    film = film + rng.standard_normal((size, size), dtype=np.float32) * np.float32(noise)
    return np.clip(np.rint(film), 0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------- the opacities

# Opacities are soft: they are computed on a coarse grid and enlarged.
_GRID = 96


def _blobs(view: _View, blobs: Sequence[tuple[int, float, float, float, float]], *, height: float = 1.2) -> np.ndarray:
    """(_GRID, _GRID) sum of soft spots, each (side, half-widths, lung height, radius, strength)."""
    axis = (np.arange(_GRID, dtype=np.float32) + 0.5) / _GRID
    total = np.zeros((_GRID, _GRID), np.float32)
    for side, u, v, radius, strength in blobs:
        (x, y), *_ = view.place(view.lung(side, np.array([(u, v)])))
        across = np.exp(-0.5 * ((axis - np.float32(x)) / np.float32(radius)) ** 2)
        down = np.exp(-0.5 * ((axis - np.float32(y)) / np.float32(radius * height)) ** 2)
        total += np.float32(strength) * np.outer(down, across)
    return total


def _enlarge(grid: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC))


def _lateral(v: float, share: float) -> float:
    """Half-widths at `share` of the way from the mediastinum (0) to the chest wall (1) at lung height `v`."""
    return 0.2 + share * (float(np.interp(v, _LUNG[:8, 1], _LUNG[:8, 0])) - 0.2)


def _severity(rng: np.random.Generator, least: float, most: float) -> float:
    """Share of the air that is replaced; one film in eight is subtle."""
    subtle = rng.random() < 1 / 8
    return float(rng.uniform(0.45 * least, least) if subtle else rng.uniform(least, most))


def _ground_glass(view: _View, rng: np.random.Generator) -> np.ndarray:
    """Bilateral, peripheral, lower zones; hazy."""
    severity = _severity(rng, 0.55, 1.0)
    blobs = []
    for side in _SIDES:
        for _ in range(rng.integers(3, 6)):
            v = rng.uniform(0.48, 0.88)
            blobs.append(
                (side, _lateral(v, rng.uniform(0.72, 1.0)), v, rng.uniform(0.04, 0.075), rng.uniform(0.6, 1.0))
            )
    haze = 1 - np.exp(-_blobs(view, blobs, height=1.5))
    texture = 1 + 0.16 * _smooth_noise(rng, 32, _GRID) + 0.16 * _smooth_noise(rng, 14, _GRID)
    return np.clip(_enlarge((severity * haze * texture).astype(np.float32), view.size), 0, 1)


def _consolidation(view: _View, rng: np.random.Generator) -> np.ndarray:
    """Focal, dense, on one side; now and then a little on the other."""
    severity = _severity(rng, 0.75, 1.0)
    side = int(rng.choice(_SIDES))
    v, radius = rng.uniform(0.25, 0.8), rng.uniform(0.065, 0.115)
    u = _lateral(v, rng.uniform(0.4, 0.75))
    blobs = [(side, u, v, radius, 1.0)]
    for _ in range(rng.integers(1, 4)):
        near = rng.normal(0, 0.13, 2)
        blobs.append((side, u + near[0], v + near[1], radius * rng.uniform(0.4, 0.8), 0.7))
    if rng.random() < 0.2:
        v = rng.uniform(0.35, 0.8)
        blobs.append((-side, _lateral(v, rng.uniform(0.3, 0.7)), v, 0.04, 0.5))
    spot = _blobs(view, blobs, height=rng.uniform(0.8, 1.25))
    # Sharper than ground glass: air gives way over a short distance.
    spot = 1 / (1 + np.exp(-9 * (spot + 0.10 * _smooth_noise(rng, 20, _GRID) - 0.5)))
    return np.clip(_enlarge((severity * (spot - 0.011)).astype(np.float32), view.size), 0, 1)


def _streaks(view: _View, rng: np.random.Generator) -> np.ndarray:
    """Bilateral, around the hila: thickened lines that run outwards, a net between them, a little haze."""
    severity = _severity(rng, 0.75, 1.25)
    canvas = _Canvas(view)
    for side in _SIDES:
        for angle in rng.uniform(-1.4, 1.5, 11):
            _branch(canvas, side, angle, rng, length=rng.uniform(0.2, 0.55), width=0.016, value=rng.uniform(0.5, 1.0))
    lines = _soft(canvas.finish(), view, 0)
    net = np.exp(-8 * np.abs(_enlarge(rng.standard_normal((44, 44)).astype(np.float32), view.size)))
    around = [(side, *_HILUM, rng.uniform(0.11, 0.16), 1.0) for side in _SIDES]
    near = np.minimum(_enlarge(_blobs(view, around, height=1.3), view.size) * 1.3, 1)
    return np.clip(severity * near * (0.12 + 0.75 * lines + 0.55 * net), 0, 1)


def _clear(view: _View, rng: np.random.Generator) -> None:
    """No opacity."""


_OPACITIES = {
    "COVID": _ground_glass,
    "Lung_Opacity": _consolidation,
    "Normal": _clear,
    "Viral Pneumonia": _streaks,
}


# -------------------------------------------------------------------------------------------------- a written dataset


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """One film that will be written: what is drawn, and under which name."""

    label: str
    patient: int
    film: int
    name: str
    #: Of :data:`SHORTCUTS`, in their order.
    planted: tuple[str, ...] = ()


def write_dataset(
    folder: Path,
    *,
    films: int = 400,
    seed: int = 0,
    size: int = 256,
    films_per_patient: tuple[int, int] = (1, 3),
    imbalance: Mapping[str, float] = PROPORTIONS,
    faults: Faults = Faults(),
    masks: bool = True,
) -> None:
    """Write a dataset of drawn radiographs as the Kaggle tree.

    ``<class>/images/<class>-<n>.png``, ``<class>/masks/<class>-<n>.png`` (lungs 255, the rest 0) and ``metadata.csv``
    with the columns :data:`COLUMNS`, one row a file, paths below `folder` with forward slashes. A patient has films of
    one class. What `faults` plants comes on top of `films` and takes the numbers behind them, so the films are the same
    with and without faults; only what stands in :data:`SHORTCUTS` changes pixels.

    All is written into a hidden folder beside `folder`, which gets its name at the end: a killed run leaves
    no `folder`.

    Args:
        folder: Where the dataset will be; must not exist, or be empty.
        films: Number of different films, at least 1.
        seed: As for :func:`draw`.
        size: Side of the films in pixels.
        films_per_patient: Fewest and most films of one patient; the last patient of a class may have fewer.
        imbalance: Share of each class, any positive scale; classes that are not named get no film.
        faults: What is wrong with the dataset.
        masks: Whether to write the lung masks.

    Raises:
        UserError: An argument is outside its range, `folder` is not empty, or it cannot be written.
    """
    _check_count("films", films, least=1)
    _check_count("seed", seed, limit=_SEED_LIMIT)
    _check_size(size)
    counts = _counts(films, imbalance)
    plan = _plan(counts, _check_films_per_patient(films_per_patient), seed, faults)
    again = _written_again(plan, counts, seed, faults)
    folder = folder.absolute()
    _check_free(folder)
    total = len(plan) + sum(map(len, again.values())) + faults.broken
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)
        stack.enter_context(saying_why_not_written(folder))
        writer = _Writer(temporary, counts, masks=masks)
        counter = stack.enter_context(progress("draw phantoms", total=total, unit="films"))
        for film in plan:
            writer.film(film, phantom := _draw_planned(film, seed, size))
            counter.advance()
            for label in again.get(film, ()):
                writer.again(film, phantom, label)
                counter.advance()
        classes = list(counts)
        for n in range(faults.broken):
            # Another kind in each class, and in the next round another class for each kind.
            writer.broken(classes[(n + n // len(BROKEN)) % len(classes)], BROKEN[n % len(BROKEN)], phantom.pixels)
            counter.advance()
        writer.table()
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)


def _plan(counts: Mapping[str, int], per_patient: tuple[int, int], seed: int, faults: Faults) -> list[_Planned]:
    rng = np.random.default_rng([seed, _PLAN, 0, 0])
    streams = {"marker": _MARKER, "border": _BORDER, "contrast": _CONTRAST, "resolution": _RESOLUTION, "age": _AGE}
    rngs = {name: np.random.default_rng([seed, stream, 0, 0]) for name, stream in streams.items()}
    plan: list[_Planned] = []
    patient = 0
    for label, count in counts.items():
        left = count
        while left:
            patient += 1
            films = min(int(rng.integers(per_patient[0], per_patient[1] + 1)), left)
            child = label == "COVID" and rngs["age"].random() < faults.age
            for film in range(films):
                name = f"{label}-{count - left + film + 1}"
                planted = [
                    shortcut
                    for shortcut in SHORTCUTS[:-1]
                    if label == "COVID" and rngs[shortcut].random() < getattr(faults, shortcut)
                ]
                planted += ["age"] if child else []
                plan.append(_Planned(label=label, patient=patient, film=film, name=name, planted=tuple(planted)))
            left -= films
    return plan


def _written_again(
    plan: Sequence[_Planned], counts: Mapping[str, int], seed: int, faults: Faults
) -> dict[_Planned, list[str]]:
    """Films that are written once more, and in which classes."""
    again: dict[_Planned, list[str]] = {}
    copies = round(faults.copies * len(plan))
    for n in np.random.default_rng([seed, _COPIES, 0, 0]).permutation(len(plan))[:copies]:
        again.setdefault(plan[n], []).append(plan[n].label)
    # A film with a shortcut in another class, or one without added to COVID, would contradict what was promised.
    candidates = [film for film in plan if not film.planted]
    exclusive = any(getattr(faults, shortcut) for shortcut in SHORTCUTS)
    others = {
        film: [label for label in counts if label != film.label and not (exclusive and label == "COVID")]
        for film in candidates
    }
    candidates = [film for film in candidates if others[film]]
    if faults.two_labels > len(candidates):
        raise UserError(
            f"faults.two_labels: must be at most the number of films that another class can hold, {len(candidates)}, "
            f"found {faults.two_labels}"
        )
    rng = np.random.default_rng([seed, _TWO_LABELS, 0, 0])
    for n in rng.permutation(len(candidates))[: faults.two_labels]:
        film = candidates[n]
        again.setdefault(film, []).append(others[film][int(rng.integers(len(others[film])))])
    return again


def _draw_planned(film: _Planned, seed: int, size: int) -> Phantom:
    phantom = draw(film.label, seed=seed, patient=film.patient, film=film.film, size=size, child="age" in film.planted)
    pixels = phantom.pixels
    for shortcut in reversed(film.planted):  # The marker last: it lies on the film.
        if shortcut != "age":
            pixels = plant(shortcut, pixels)
    return replace(phantom, pixels=pixels)


def plant(shortcut: str, pixels: np.ndarray) -> np.ndarray:
    """What tells a class and is no disease, put on a film.

    Args:
        shortcut: One of :data:`SHORTCUTS`, age excepted: that is drawn, see :func:`draw`.
        pixels: (H, W) uint8.

    Returns:
        (H, W) uint8, a copy.
    """
    from PIL import Image

    if shortcut == "marker":
        return _with_marker(pixels)
    if shortcut == "border":
        framed, width = np.zeros_like(pixels), max(len(pixels) // 48, 1)
        framed[width:-width, width:-width] = pixels[width:-width, width:-width]
        return framed
    if shortcut == "contrast":
        return np.rint(128 + 0.75 * (pixels.astype(np.float64) - 128)).astype(np.uint8)
    if shortcut == "resolution":
        image = Image.fromarray(pixels)
        return np.asarray(image.reduce(2).resize(image.size, Image.Resampling.BILINEAR))
    raise UserError(f"shortcut: must be one of {', '.join(SHORTCUTS[:-1])}, found {shortcut!r}")


def _with_marker(pixels: np.ndarray) -> np.ndarray:
    """A white plate with a dark L in the picture's upper right corner, a twelfth of the side."""
    marked = pixels.copy()
    unit = max(len(pixels) // 72, 1)
    plate = marked[2 * unit : 8 * unit, -8 * unit : -2 * unit]
    plate[:] = 255
    plate[unit : 5 * unit, unit : 2 * unit] = 0
    plate[4 * unit : 5 * unit, unit : 5 * unit] = 0
    return marked


class _Writer:
    """Writes files and remembers the row of each."""

    def __init__(self, root: Path, counts: Mapping[str, int], *, masks: bool) -> None:
        self._root, self._masks = root, masks
        self._rows: list[tuple[str, str, str, str, str]] = []
        self._last = dict(counts)
        self._written_again = 0
        for label in counts:
            (root / label / "images").mkdir(parents=True)
            if masks:
                (root / label / "masks").mkdir()

    def film(self, planned: _Planned, phantom: Phantom) -> None:
        self._write(planned.label, planned.name, _png(phantom.pixels), phantom.lungs, phantom.patient_id)

    def again(self, planned: _Planned, phantom: Phantom, label: str) -> None:
        """The same pixels as other bytes: uncompressed, or as colour of three equal channels."""
        encoded = _png(phantom.pixels, colour=bool(self._written_again % 2), compress_level=0)
        self._written_again += 1
        self._write(label, self._next_name(label), encoded, phantom.lungs, "")

    def broken(self, label: str, kind: str, pixels: np.ndarray) -> None:
        whole = _png(pixels)
        content = {
            "truncated": whole[: len(whole) // 2],
            "empty": b"",
            "text": b"This is a text file, whatever its name says.\n",
            "tiny": _png(pixels[:3, :3]),
        }
        self._write(label, self._next_name(label), content[kind], None, "")

    def table(self) -> None:
        with (self._root / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([COLUMNS, *self._rows])

    def _next_name(self, label: str) -> str:
        self._last[label] += 1
        return f"{label}-{self._last[label]}"

    def _write(self, label: str, name: str, content: bytes, lungs: np.ndarray | None, patient: str) -> None:
        film, mask = f"{label}/images/{name}.png", ""
        (self._root / film).write_bytes(content)
        if self._masks and lungs is not None:
            mask = f"{label}/masks/{name}.png"
            (self._root / mask).write_bytes(_png(lungs.astype(np.uint8) * np.uint8(255)))
        self._rows.append((film, label, SOURCE, patient, mask))


def _png(pixels: np.ndarray, *, colour: bool = False, compress_level: int = 1) -> bytes:
    from PIL import Image

    # Level 1: noise hardly compresses, and the default of 6 takes longer than the drawing.
    image, file = Image.fromarray(pixels), io.BytesIO()
    (image.convert("RGB") if colour else image).save(file, "PNG", compress_level=compress_level)
    return file.getvalue()


# ------------------------------------------------------------------------------------------------------------- checks


def _check_films_per_patient(value: tuple[int, int]) -> tuple[int, int]:
    fewest_most = tuple(value) if isinstance(value, tuple | list) else ()
    if (
        len(fewest_most) != 2
        or not all(isinstance(n, int) for n in fewest_most)
        or not 1 <= fewest_most[0] <= fewest_most[1]
    ):
        raise UserError(f"films_per_patient: must be two whole numbers, 1 <= fewest <= most, found {value!r}")
    return fewest_most


def _check_free(folder: Path) -> None:
    with saying_why_not_written(folder):
        if folder.is_dir() and not folder.is_symlink():
            if any(folder.iterdir()):
                raise UserError(f"{folder}: must not exist or be empty, found a folder that holds something")
        elif folder.exists() or folder.is_symlink():
            raise UserError(f"{folder}: must not exist or be an empty folder, found something else")


def _counts(films: int, imbalance: Mapping[str, float]) -> dict[str, int]:
    """Films of each class, in the order of :data:`CLASSES`, by largest remainder; every class that is named has one."""
    for label, share in imbalance.items():
        if label not in CLASSES:
            raise UserError(f"imbalance: must name classes of {', '.join(CLASSES)}, found {label!r}")
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share < math.inf:
            raise UserError(f"imbalance: the share of {label} must be a number above 0, found {share!r}")
    labels = [label for label in CLASSES if label in imbalance]
    if not labels or films < len(labels):
        raise UserError(f"films: must be at least one a class in imbalance, found {films} for {len(labels)} classes")
    # One film each first; the others by proportion.
    whole = sum(imbalance.values())
    wanted = {label: imbalance[label] / whole * films for label in labels}
    counts = {label: max(1, math.floor(wanted[label])) for label in labels}
    while (missing := films - sum(counts.values())) != 0:
        step = 1 if missing > 0 else -1
        able = [label for label in labels if counts[label] + step >= 1]
        counts[max(able, key=lambda label: step * (wanted[label] - counts[label]))] += step
    return counts
