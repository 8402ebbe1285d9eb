"""Where the lungs are on a film, and whether they could be found at all.

A small U-Net (Ronneberger, Fischer & Brox 2015) that ships with the package and runs on ONNX Runtime. *Lungs* means the
lung fields as they are seen beside heart, mediastinum and diaphragm, opacities included; the part behind the heart does
not count. It sees a film twice, as it is and mirrored: where the two answers differ, it does not know. A film whose
lungs it cannot find is said to be so, and gets no mask. `scripts/make_lungs.py` makes the network, docs/lungs.md has
what it was measured to be worth. Research use only, not a medical device.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vgg16_xray.errors import UserError
from vgg16_xray.films.decode import MIN_SIDE, to_square
from vgg16_xray.progress import progress

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

#: The network, beside this file: (N, 1, S, S) float32 standardised films -> probability of lung, same shape. S is
#: small: the outline is a level line between pixels, and finer than they are.
MODEL = "lungs.onnx"
#: Least and most of a film that lungs may cover.
AREA = (0.06, 0.60)
#: Least share of all pixels taken for lung that lies in the two largest parts: two lungs, not crumbs.
IN_TWO_PARTS = 0.90
#: Least :attr:`Lungs.quality`.
QUALITY = 0.80


@dataclass(frozen=True, kw_only=True)
class Lungs:
    """The lungs of some films."""

    #: (N, H, W) bool, both lungs in one; all False where they were not found.
    masks: np.ndarray
    #: (N,) bool.
    found: np.ndarray
    #: (N,) float32, 0 to 1: the smaller of the Dice overlap between the answers to the film and to its mirror image,
    #: and the mean probability inside the outline, from 0 (all pixels at one half) to 1.
    quality: np.ndarray
    #: (N,) why lungs were not found, one clause; empty where they were.
    reasons: tuple[str, ...]


def find_lungs(films: np.ndarray, *, model: Path | None = None) -> Lungs:
    """Find the lungs on frontal chest radiographs.

    A film counts as found when the lungs cover a plausible share of it (:data:`AREA`), lie in at most two parts but for
    crumbs (:data:`IN_TWO_PARTS`), and the network is sure (:data:`QUALITY`). Each film is looked at alone: its answer
    does not depend on the others.

    Args:
        films: (N, H, W) uint8, 0 black to 255 white, any size of at least 32 pixels a side.
        model: Another network than the package's.

    Returns:
        Masks of the films' size, which films they were found on, how sure that is, and the reason where not.

    Raises:
        UserError: `films` is not of that form, ONNX Runtime is missing, or the model cannot be read.
    """
    films = _checked(films)
    session = _session(model or Path(__file__).with_name(MODEL))
    masks = np.zeros(films.shape, bool)
    quality = np.zeros(len(films), np.float32)
    reasons = []
    # The network runs in one thread: a film a thread.
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress("find lungs", total=len(films)) as counter:
        for i, (mask, of_film, reason) in enumerate(pool.map(partial(outline, session), films)):
            quality[i] = of_film
            if not reason:
                masks[i] = mask
            reasons.append(reason)
            counter.advance()
    return Lungs(
        masks=masks, found=np.array([not reason for reason in reasons], bool), quality=quality, reasons=tuple(reasons)
    )


def outline(session: InferenceSession, film: np.ndarray) -> tuple[np.ndarray, float, str]:
    """What the network draws on one film, found or not.

    Args:
        session: The network.
        film: (H, W) uint8.

    Returns:
        (H, W) bool mask, its quality, and why it does not count as found (empty where it does).
    """
    from PIL import Image

    seen = prepare(film, session.get_inputs()[0].shape[2])
    both = session.run(None, {"films": np.stack([seen, seen[:, ::-1]])[:, None]})[0][:, 0]
    straight, mirrored = both[0], both[1, :, ::-1]
    probability = (straight + mirrored) / 2
    small = probability > 0.5
    quality = (
        min(dice(straight > 0.5, mirrored > 0.5), float(2 * probability[small].mean() - 1)) if small.any() else 0.0
    )
    reason = _why_not(small, quality)
    enlarged = Image.fromarray(probability).resize(film.shape[::-1], Image.Resampling.BILINEAR)
    return _two_parts(np.asarray(enlarged) > 0.5), quality, reason


def prepare(film: np.ndarray, side: int) -> np.ndarray:
    """What the network sees of a film: (H, W) uint8 -> (side, side) float32 of mean 0 and standard deviation 1."""
    square = to_square(film, side).astype(np.float32)
    return (square - square.mean()) / max(float(square.std()), 1.0)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Overlap of two masks of one shape, 0 to 1 (Dice 1945); 1 where both are empty."""
    whole = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / whole if whole else 1.0


def load(model: Path) -> InferenceSession:
    """Open a network of this kind.

    Raises:
        UserError: The file is no such network.
    """
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    try:
        session = InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class but this one
        raise UserError(f"{model}: must be the network that finds lungs, found {error}") from error
    shapes = [put.shape for put in (*session.get_inputs(), *session.get_outputs())]
    if [shape[1:] for shape in shapes] != [[1, shapes[0][-1], shapes[0][-1]]] * 2:
        raise UserError(f"{model}: must take films (N, 1, S, S) and give masks of that shape, found {shapes}")
    return session


_session = lru_cache(maxsize=2)(load)


def _checked(films: np.ndarray) -> np.ndarray:
    films = np.asarray(films)
    if films.ndim != 3 or films.dtype != np.uint8:
        raise UserError(f"films: must be (N, H, W) uint8, found {films.shape} {films.dtype}")
    if min(films.shape[1:]) < MIN_SIDE:
        raise UserError(f"films: must be at least {MIN_SIDE} pixels a side, found {films.shape[1]} x {films.shape[2]}")
    return films


def why_no_lungs(mask: np.ndarray) -> str:
    """Why a mask cannot be one of lungs, whoever drew it: their share of the film (:data:`AREA`), and their parts.

    Args:
        mask: (H, W) bool.

    Returns:
        One clause; empty where it may be lungs.
    """
    area = float(mask.mean())
    if not AREA[0] <= area <= AREA[1]:
        return f"lungs must cover {AREA[0]:.0%} to {AREA[1]:.0%} of the film, found {area:.0%}"
    held = _two_parts(mask, fill=False).sum() / mask.sum()
    if held < IN_TWO_PARTS:
        return f"two parts must hold {IN_TWO_PARTS:.0%} of the lungs, found {held:.0%}"
    return ""


def _why_not(small: np.ndarray, quality: float) -> str:
    return why_no_lungs(small) or (
        f"quality must be at least {QUALITY:.2f}, found {quality:.2f}" if quality < QUALITY else ""
    )


def _two_parts(mask: np.ndarray, *, fill: bool = True) -> np.ndarray:
    """The two largest connected parts of a mask, their holes filled."""
    from scipy import ndimage

    numbers, _ = ndimage.label(mask)
    sizes = np.bincount(numbers.ravel())
    sizes[0] = 0
    # A crumb beside one large part is no second lung.
    largest = [n for n in np.argsort(sizes)[::-1][:2] if sizes[n] > 0.05 * sizes.sum()]
    kept = np.isin(numbers, largest) & (numbers > 0)
    return ndimage.binary_fill_holes(kept) if fill else kept
