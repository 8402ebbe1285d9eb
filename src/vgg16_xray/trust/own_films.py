"""The films that a model has met, small enough to travel with it: a test elsewhere must find them among its own.

Of each film a bundle keeps the first eight bytes of its pixels' hash, the side of the split that it stood on, and some
800 bytes that say what it shows: the cosine transform of its local contrast, in steps of one 127th of the largest. No
name is kept, for a name may be a patient's; what the numbers show is as fine as a picture of 32 x 32.

A film elsewhere is an own one where its pixels' hash is, or where its numbers agree with those of an own film after it
was cut or padded at each edge and mirrored or inverted so that they agree best. A run, which has the pixels themselves,
lays film over film instead and sees finer (:mod:`vgg16_xray.trust.near_copies`); what this one misses is told in
docs/external.md.

The numbers are part of a bundle's format: they do not change when the search among a run's films does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vgg16_xray.films.split import SPLITS

#: Side of the reduced film, waves along a side (half periods), and the fewest: the grey of a whole film says nothing.
SIDE, WAVES, FEWEST_WAVES = 64, 32, 2
#: Films are looked up by waves below this number, which a cut that is nearly right hardly moves.
COARSE = 16
#: Local contrast is measured over so many pixels of the reduced film (Gaussian sigma), above so many grey levels.
LOCAL, FLOOR = 4.0, 4.0
#: What is looked up of a film: itself, cut at each edge by one of these shares of its side, and padded by them.
CUTS = (0.025, 0.075)
#: Own films that a film is compared with closely: so many, whose numbers agree at least so well at first sight.
NEAREST, LIKELY = 4, 0.6
#: Cosine of the numbers from which on two films are one; how it was chosen: docs/external.md.
SAME = 0.85
#: In the close comparison each edge is moved by these shares of the side, in turn, so many times.
MOVES, ROUNDS = (0.02, 0.01, 0.005), 3
#: No more is cut off an edge, of the one film or of the other.
FURTHEST = 0.16
#: Films at a time.
BATCH = 16

_HIGH = np.hypot(*np.mgrid[:WAVES, :WAVES])
_KEPT = (_HIGH >= FEWEST_WAVES) & (_HIGH < WAVES)
#: A mirror turns the odd waves of the x axis over.
_MIRROR = np.where(np.mgrid[:WAVES, :WAVES][1] % 2, -1, 1)[_KEPT].astype(np.float32)
_LOOKED_UP = (_HIGH < COARSE)[_KEPT]
# What is common to all chests is slow: a wave's weight grows with its number.
_WEIGHTS = np.sqrt(_HIGH)[_KEPT].astype(np.float32)
#: (top, bottom, left, right) that is cut off.
_VIEWS = [(0.0,) * 4] + [(a, b, c, d) for a in CUTS for b in CUTS for c in CUTS for d in CUTS]
_VIEWS += [(-a, -b, -c, -d) for a in CUTS for b in CUTS for c in CUTS for d in CUTS]

#: A row a film. ``side``: its place in :data:`vgg16_xray.films.split.SPLITS`.
KNOWN = np.dtype([("hash", "<u8"), ("side", "u1"), ("numbers", "i1", (int(_KEPT.sum()),))])

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Own:
    """A film that is one of the model's own."""

    #: Its place among those that were asked about.
    film: int
    #: The row of the own film.
    row: int
    #: Whether the pixels are the same.
    exact: bool


def remember(films: Iterator[NDArray[np.uint8]], sha256: Sequence[str], splits: Sequence[str]) -> NDArray[np.void]:
    """What is kept of films.

    Args:
        films: (S, S) uint8 each, N of them, as a run stores them.
        sha256: (N,) hash of the decoded pixels, see :func:`vgg16_xray.films.decode.pixels_sha256`.
        splits: (N,) names of :data:`vgg16_xray.films.split.SPLITS`.

    Returns:
        (N,) rows of :data:`KNOWN`.
    """
    known = np.zeros(len(sha256), dtype=KNOWN)
    known["hash"] = [_short(one) for one in sha256]
    known["side"] = [SPLITS.index(side) for side in splits]
    for number, film in enumerate(films):
        values = _numbers(_contrast(film), _VIEWS[:1])[0]
        known["numbers"][number] = np.rint(values * (127 / max(float(np.abs(values).max()), 1e-6)))
    return known


def find(
    known: NDArray[np.void], films: Sequence[NDArray[np.uint8]], sha256: Sequence[str], *, same: float | None = None
) -> list[Own]:
    """Which films are own ones, each once: the film of equal pixels, else the one that agrees best.

    Args:
        known: (N,) rows of :data:`KNOWN`.
        films: (S, S) uint8 each, F of them.
        sha256: (F,) hash of the decoded pixels at their own size.
        same: Cosine from which on two films are one; :data:`SAME` by default.
    """
    row_of = {int(one): row for row, one in reversed([*enumerate(known["hash"])])}
    found, others = [], []
    for place, one in enumerate(sha256):
        if (row := row_of.get(_short(one))) is not None:
            found.append(Own(place, row, exact=True))
        else:
            others.append(place)
    if others and len(known):
        numbers = _of_length_one(known["numbers"].astype(np.float32))
        for start in range(0, len(others), BATCH):
            places = others[start : start + BATCH]
            frames = [_contrast(films[place]) for place in places]
            for place, (row, cosine) in zip(places, _closest(numbers, frames), strict=True):
                if cosine >= (SAME if same is None else same):
                    found.append(Own(place, row, exact=False))
    return sorted(found, key=lambda own: own.film)


def name_of(known: NDArray[np.void], row: int) -> str:
    """What an own film is called: ``film`` and the first sixteen digits of its pixels' hash."""
    return f"film {int(known['hash'][row]):016x}"


def closest(known: NDArray[np.void], films: Sequence[NDArray[np.uint8]]) -> list[tuple[int, float]]:
    """For each film the row of the own film that agrees best, and the cosine; -1 and 0 where none is likely."""
    return _closest(_of_length_one(known["numbers"].astype(np.float32)), [_contrast(film) for film in films])


def _short(sha256: str) -> int:
    return int(sha256[:16], 16)


def _of_length_one(numbers: Floats) -> Floats:
    lengths = np.linalg.norm(numbers, axis=-1, keepdims=True)
    return np.asarray(numbers / np.maximum(lengths, 1e-6))


def _contrast(film: NDArray[np.uint8]) -> Floats:
    """(SIDE, SIDE) local contrast: without slow changes of grey, each place by its own contrast."""
    from PIL import Image
    from scipy.ndimage import gaussian_filter

    small = np.asarray(Image.fromarray(film).resize((SIDE, SIDE), Image.Resampling.BILINEAR), dtype=np.float32)
    small = small - gaussian_filter(small, LOCAL, truncate=3)
    spread = np.sqrt(gaussian_filter(small * small, LOCAL, truncate=3))
    return np.asarray(np.clip(small / (spread + FLOOR), -2.5, 2.5))


@lru_cache(maxsize=4096)
def _waves(before: float, after: float) -> Floats:
    """(WAVES, SIDE): cosine transform of a line of which shares are cut off, or, below 0, added as the edge is."""
    from scipy.fft import dct

    at = (before + (1 - before - after) * (np.arange(SIDE) + 0.5) / SIDE) * SIDE - 0.5
    low = np.floor(at).astype(int)
    between = np.zeros((SIDE, SIDE))
    for row, (place, share) in enumerate(zip(low, at - low, strict=True)):
        between[row, min(max(place, 0), SIDE - 1)] += 1 - share
        between[row, min(max(place + 1, 0), SIDE - 1)] += share
    return np.asarray(dct(np.eye(SIDE), axis=0, norm="ortho")[:WAVES] @ between, dtype=np.float32)


def _numbers(contrast: Floats, cuts: Sequence[tuple[float, ...]]) -> Floats:
    """(V, D) of length one: a frame (SIDE, SIDE) as it is when V times something is cut off."""
    described = np.stack(
        [(_waves(top, bottom) @ contrast @ _waves(left, right).T)[_KEPT] for top, bottom, left, right in cuts]
    )
    return _of_length_one(described * _WEIGHTS)


def _closest(numbers: Floats, frames: Sequence[Floats]) -> list[tuple[int, float]]:
    """The own film (its row of `numbers`) that agrees best with each frame, and how well."""
    views = np.stack([_numbers(frame, _VIEWS) for frame in frames])
    flat = _of_length_one(views.reshape(-1, views.shape[-1])[:, _LOOKED_UP])
    coarse, mirror = _of_length_one(numbers[:, _LOOKED_UP]), _MIRROR[_LOOKED_UP]
    # An inverted film has the opposite numbers: the size of the cosine counts, and its sign must stay.
    cosines = np.stack([np.abs(flat @ coarse.T), np.abs((flat * mirror) @ coarse.T)])
    cosines = cosines.reshape(2, len(frames), len(_VIEWS), -1)
    best = []
    for place, frame in enumerate(frames):
        of_rows = cosines[:, place].max(axis=(0, 1))
        rows = np.argsort(-of_rows)[:NEAREST]
        found = (-1, 0.0)
        for row in rows[of_rows[rows] >= LIKELY]:
            mirrored, view = np.unravel_index(
                int(cosines[:, place, :, row].argmax()), (*cosines.shape[:1], len(_VIEWS))
            )
            cosine = _aligned(frame, numbers[row] * (_MIRROR if mirrored else 1), _VIEWS[view])
            if cosine > found[1]:
                found = (int(row), cosine)
        best.append(found)
    return best


def _aligned(frame: Floats, numbers: Floats, begin: tuple[float, ...]) -> float:
    """How well a frame agrees with an own film when their edges are moved to where they agree best."""
    picture = np.zeros((WAVES, WAVES), dtype=np.float32)
    picture[_KEPT] = numbers / _WEIGHTS
    own = np.asarray(_waves(0.0, 0.0).T @ picture @ _waves(0.0, 0.0), dtype=np.float32)

    def agreement(places: Sequence[tuple[float, ...]]) -> Floats:
        # What the one lacks is cut off the other, so that neither is made up.
        mine = _numbers(frame, [tuple(max(edge, 0.0) for edge in place) for place in places])
        other = _numbers(own, [tuple(max(-edge, 0.0) for edge in place) for place in places])
        return np.asarray(np.abs((mine * other).sum(axis=1)))

    at, best = begin, float(agreement([begin])[0])
    for move in MOVES:
        for _ in range(ROUNDS):
            # One edge, or two at once (a shift along an axis, a stretch), or all.
            steps = [
                tuple(
                    float(np.clip(round(a + move * s, 4), -FURTHEST, FURTHEST)) for a, s in zip(at, step, strict=True)
                )
                for step in _STEPS
            ]
            values = agreement(steps)
            if values.max() <= best:
                break
            at, best = steps[int(values.argmax())], float(values.max())
    return best


_STEPS = [
    tuple(sign * s for s in step)
    for sign in (1, -1)
    for step in (
        *((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
        *((1, -1, 0, 0), (0, 0, 1, -1), (1, 1, 0, 0), (0, 0, 1, 1), (1, 1, 1, 1)),
    )
]
