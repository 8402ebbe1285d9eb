"""The same film again: found among many, and proved by laying one over the other.

A film is published again resized, re-encoded, cropped, padded, mirrored, inverted, windowed, annotated. Two stages find
it. Candidates: a film's place in a space of 210 numbers, which windows and gamma hardly move, and which a crop moves to
where one of the whole film's own *views* lies. Proof: one film is laid over the other by what a publisher can do to it
(stretch and shift along each axis, and mirror: no turn), and two things are measured.

``detail``: how what is finer than anatomy agrees, the median correlation over blocks, so that neither text burned in
nor a bent grey scale decides. ``residual``: what is left of the one film's grey when the best function of the other's
grey is taken away, as a share of its contrast. Another exposure of the same person has other detail where its pose
differs, and other grey everywhere: fat, air, and the detector's field are not where they were.

How the two bounds were chosen is told in docs/leaks.md. Needs pixels alone, (N, S, S) uint8 as a run stores them: no
network, no features.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, TypeVar

import numpy as np

from vgg16_xray.progress import progress

#: Takes (B,) int indices, gives (B, S, S) uint8: ``ArrayStore.take``, or ``array.__getitem__``.
Films = Callable[[np.ndarray], np.ndarray]
T = TypeVar("T")

#: Two films are one where their detail agrees at least so well and their grey differs at most so much.
DETAIL, RESIDUAL = 0.65, 0.038
#: Pairs whose margin is below this are not worth a look.
WORTH_A_LOOK = -3.0

#: Side of the reduced film in which candidates are sought and registered, and of the one that is compared, pixels.
SIDE, FINE = 64, 112
#: Waves along a side, in half periods, that a descriptor holds (ribs, and no finer), and the fewest: the grey of a
#: whole film says nothing.
WAVES, FEWEST_WAVES = 16, 2
#: Local contrast is measured over this many pixels of the reduced film (Gaussian sigma), above so many grey levels.
LOCAL, FLOOR = 4.0, 4.0
#: What a view leaves out at an edge, as shares of the side: 2.5 % apart from any crop of up to 10 % an edge.
CUTS = (0.025, 0.075)
#: A row or column at an edge is empty where its grey levels' standard deviation is below this: JPEG 30 leaves 2.
EMPTY = 2.5
#: No more of a side is taken for an empty border.
MOST_TRIMMED = 0.35
#: Candidates a film: its nearest so many in each view, and the best so many of all these, above a cosine.
NEAREST, CANDIDATES, COSINE = 4, 8, 0.6
#: Descriptors in a cell of the index, and cells that are searched: an exact search up to as many films as fill them.
CELL, PROBES = 200, 16
#: Steps of the coarse registration, first on blurred frames (Gaussian sigma), where ribs cannot lock in one beside the
#: other; the median block's correlation below which a pair is dropped after it; block side.
COARSE_STEPS, BLUR, LIKELY, COARSE_BLOCK = 6, 2.0, 0.75, 8
#: Differences of so many median ones (two standard deviations) have a quarter of their say in a registration.
OUTLYING = 2 * 1.4826
#: The fine registration: so many steps on every second pixel of a line, then as many on all.
FINE_STEPS = 3
#: They are left out where the answer is plain: a margin above the one, a residual above the other.
SURE, HOPELESS = 0.25, 0.12
#: Fine structure lies between these Gaussian sigmas, pixels of FINE: below is JPEG's noise, above is anatomy.
FINER, COARSER = 0.6, 1.5
#: Side of a block in which detail is compared, pixels of FINE, and how few blocks are too few.
BLOCK, FEWEST_BLOCKS = 16, 10
#: A block of less contrast than this in its fine structure, grey levels, is empty.
FAINT = 0.5
#: Side of the cells in which grey is compared, pixels of FINE, and steps of the function from grey to grey.
GREY_CELL, GREY_STEPS = 4, 16
#: Films, or pairs, at a time.
BATCH = 128


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two films that were laid one over the other."""

    #: Indices of the films, first < second.
    first: int
    second: int
    #: Median correlation of fine structure over blocks, -1 to 1.
    detail: float
    #: Median difference of grey after the best grey-to-grey function, in standard deviations of the film's grey.
    residual: float
    mirrored: bool
    inverted: bool
    #: Share of the second film that the first one covers, 0 to 1.
    overlap: float

    @property
    def same(self) -> bool:
        """Whether the two are one film."""
        return self.margin >= 0

    @property
    def margin(self) -> float:
        """How far the pair lies on the side of one film (0 and above) or of two (below)."""
        return float(_margin(self.detail, self.residual))

    def between(self, first: int, second: int) -> Pair:
        """The same pair by other indices."""
        return replace(self, first=first, second=second)


def _margin(detail: Any, residual: Any) -> Any:
    return np.minimum(detail / DETAIL - 1, 1 - residual / RESIDUAL)


def find_pairs(films: Films, count: int, *, first_of_second: int | None = None) -> list[Pair]:
    """Lay films one over the other where they might be the same.

    Args:
        films: Gives pixels for indices.
        count: N, the number of films.
        first_of_second: Look for pairs between the films before this index and those from it on, and no others.

    Returns:
        Pairs worth a look, the surest first; those that are ``same`` are one film.
    """
    from threadpoolctl import threadpool_limits

    if count < 2 or first_of_second in (0, count):
        return []
    # Matrices of 100 columns: threads go over batches, not within one.
    with threadpool_limits(1, user_api="blas"):
        frames = _reduce(films, count)
        candidates = _candidates(frames, count, first_of_second)
        pairs = _prove(films, *_likely(frames, candidates))
    pairs = [pair for pair in pairs if pair.margin >= WORTH_A_LOOK]
    return sorted(pairs, key=lambda pair: (-pair.margin, pair.first, pair.second))


# ------------------------------------------------------------------------------------------------------- candidates


@dataclass(frozen=True)
class _Frames:
    """Each film whole, and once more without its empty borders where it has any."""

    #: (F, SIDE, SIDE) int8 local contrast in steps of 1/50.
    contrast: np.ndarray
    #: (F,) which film.
    film: np.ndarray
    #: (F, 2, 2) what takes the frame's points to the film's, see :func:`_after`.
    place: np.ndarray


def _empty_borders(film: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is not an empty border, pixels."""
    side, values = len(film), film.astype(np.float32)
    edges = []
    for axis in (0, 1):
        empty = values.std(axis=axis) <= EMPTY
        ends = [int(np.argmin(line)) for line in (empty, empty[::-1])]
        ends = [0 if empty.all() or end > MOST_TRIMMED * side else end for end in ends]
        edges.append((ends[0], side - ends[1]))
    (left, right), (top, bottom) = edges
    return left, top, right, bottom


def _local_contrast(films: np.ndarray) -> np.ndarray:
    """(B, h, w) float32 -> the same, without slow changes of grey, each place by its own contrast."""
    from scipy.ndimage import gaussian_filter

    films = films - gaussian_filter(films, LOCAL, axes=(1, 2), truncate=3)
    spread = np.sqrt(gaussian_filter(films * films, LOCAL, axes=(1, 2), truncate=3))
    contrast: np.ndarray = np.clip(films / (spread + FLOOR), -2.5, 2.5)
    return contrast


def _reduce(films: Films, count: int) -> _Frames:
    parts = []
    with progress("reduce films", total=count) as bar:
        # Read in one thread, for the store counts what it has read; reduce in all.
        batches = (np.arange(start, min(start + BATCH, count)) for start in range(0, count, BATCH))
        for rows, frames in _in_threads(lambda rows, pixels: (rows, _frames_of(pixels)), batches, films):
            parts.append(_Frames(frames.contrast, frames.film + rows[0], frames.place))
            bar.advance(len(rows))
    return _Frames(
        np.concatenate([part.contrast for part in parts]),
        np.concatenate([part.film for part in parts]),
        np.concatenate([part.place for part in parts]),
    )


def _in_threads(work: Callable[[Any, Any], T], batches: Iterator[Any], read: Callable[[Any], Any]) -> Iterator[T]:
    """Read each batch here, work on it in a thread, give the results in order, a few batches ahead."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        ahead: list[Any] = []
        for batch in batches:
            ahead.append(pool.submit(work, batch, read(batch)))
            if len(ahead) > 2 * workers:
                yield ahead.pop(0).result()
        for future in ahead:
            yield future.result()


def _frames_of(films: np.ndarray) -> _Frames:
    from PIL import Image

    small, film_of, boxes = [], [], []
    side = films.shape[1]
    for number, film in enumerate(films):
        image = Image.fromarray(film)
        whole, trimmed = (0, 0, side, side), _empty_borders(film)
        for box in (whole, trimmed) if max(abs(a - b) for a, b in zip(whole, trimmed, strict=True)) > 2 else (whole,):
            resized = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)
            small.append(np.asarray(resized, dtype=np.float32))
            film_of.append(number)
            boxes.append(box)
    contrast = np.rint(_local_contrast(np.stack(small)) * 50).astype(np.int8)
    low, high = np.split(np.array(boxes, dtype=np.float32) / side, 2, axis=1)
    return _Frames(contrast, np.array(film_of), np.stack([high - low, low + high - 1], axis=2))


@cache
def _waves(before: float, after: float) -> np.ndarray:
    """(WAVES, SIDE): the cosine transform of what is left of a line when shares `before` and `after` are cut off."""
    from scipy.fft import dct

    at = (before + (1 - before - after) * (np.arange(SIDE) + 0.5) / SIDE) * SIDE - 0.5
    low = np.floor(at).astype(int)
    between = np.zeros((SIDE, SIDE))
    for row, (place, share) in enumerate(zip(low, at - low, strict=True)):
        between[row, max(place, 0)] += 1 - share
        between[row, min(place + 1, SIDE - 1)] += share
    return (dct(np.eye(SIDE), axis=0, norm="ortho")[:WAVES] @ between).astype(np.float32)


_HIGH = np.hypot(*np.mgrid[:WAVES, :WAVES])
_KEPT = (_HIGH >= FEWEST_WAVES) & (_HIGH < WAVES)
#: A mirror turns the odd waves of the x axis over.
_MIRROR = np.where(np.mgrid[:WAVES, :WAVES][1] % 2, -1, 1)[_KEPT].astype(np.float32)
# What is common to all chests is slow: a wave's weight grows with its number.
_WEIGHTS = np.sqrt(_HIGH)[_KEPT].astype(np.float32)
_CUT_PAIRS = [(a, b) for a in CUTS for b in CUTS]
#: (top, bottom), (left, right) that each view leaves out; the first is the whole frame.
_VIEWS = [((0.0, 0.0), (0.0, 0.0))] + [(rows, columns) for rows in _CUT_PAIRS for columns in _CUT_PAIRS]
#: Each view is looked for as it is, mirrored, inverted, and both.
_GUISES = 4


def _describe(contrast: np.ndarray, views: Sequence[tuple[tuple[float, float], tuple[float, float]]]) -> np.ndarray:
    """(F, SIDE, SIDE) int8 -> (F, V, D) float32 of length one: each frame in each view."""
    frames = contrast.astype(np.float32)
    by_rows = {rows: _waves(*rows) @ frames for rows, _ in views}
    described = np.stack([(by_rows[rows] @ _waves(*columns).T)[:, _KEPT] for rows, columns in views], axis=1)
    described *= _WEIGHTS
    described /= np.maximum(np.linalg.norm(described, axis=-1, keepdims=True), 1e-6)
    return described


@dataclass(frozen=True)
class _Laid:
    """(C,) frames, or films, that may show the same; `place` (C, 2, 2) takes points of `onto` to points of `laid`."""

    laid: np.ndarray
    onto: np.ndarray
    place: np.ndarray

    def __getitem__(self, rows: Any) -> _Laid:
        return _Laid(self.laid[rows], self.onto[rows], self.place[rows])


#: Pair of films -> cosine, frame that is laid, frame that it is laid onto, view and guise of the first.
_Found = dict[tuple[int, int], tuple[float, int, int, int]]


def _candidates(frames: _Frames, count: int, first_of_second: int | None) -> _Laid:
    every = np.arange(len(frames.film))
    described = np.concatenate([_describe(frames.contrast[s : s + BATCH], _VIEWS[:1])[:, 0] for s in every[::BATCH]])
    second = frames.film >= (count if first_of_second is None else first_of_second)
    searches = (
        [(every, every)]
        if first_of_second is None
        else [(every[~second], every[second]), (every[second], every[~second])]
    )
    found: _Found = {}
    with progress("seek candidates", total=sum(len(asked) for asked, _ in searches), unit="frames") as bar:
        for asked, among in searches:
            if not len(asked) or not len(among):
                continue
            index = _index(described[among])
            batches = (asked[start : start + BATCH] for start in range(0, len(asked), BATCH))
            for rows, cosines, where in _in_threads(partial(_nearest, index), batches, frames.contrast.__getitem__):
                _keep(found, cosines, frames=frames, rows=rows, onto=among[where])
                bar.advance(len(rows))
    # The best of each film, whichever of the two asked.
    of_film: dict[int, list[tuple[float, tuple[int, int]]]] = {}
    for pair, (cosine, *_rest) in found.items():
        for film in pair:
            of_film.setdefault(film, []).append((cosine, pair))
    kept = sorted({pair for near in of_film.values() for _, pair in sorted(near, reverse=True)[:CANDIDATES]})
    chosen = [found[pair] for pair in kept]
    laid, onto, view = (np.array([row[k] for row in chosen], dtype=np.int64) for k in (1, 2, 3))
    return _Laid(laid, onto, _PLACES[view])


def _index(described: np.ndarray) -> Any:
    import faiss

    size, cells = described.shape[1], len(described) // CELL
    index: Any = faiss.IndexFlatIP(size)
    if cells > PROBES:
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(size), size, cells, faiss.METRIC_INNER_PRODUCT)
        index.cp.seed, index.cp.niter, index.nprobe = 1, 10, PROBES
        index.train(described)
    index.add(described)
    return index


def _nearest(index: Any, rows: np.ndarray, contrast: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import faiss

    # Batches go over our own threads; those of OpenMP would wait for each other on a busy machine.
    faiss.omp_set_num_threads(1)
    views = _describe(contrast, _VIEWS)
    # An inverted film has the opposite descriptor: of the four, one is what the other film may be.
    asked = np.stack([views, views * _MIRROR, -views, -views * _MIRROR], axis=2)
    cosines, where = index.search(np.ascontiguousarray(asked.reshape(-1, asked.shape[-1])), NEAREST + 2)
    return rows, cosines, where


def _keep(found: _Found, cosines: np.ndarray, *, frames: _Frames, rows: np.ndarray, onto: np.ndarray) -> None:
    asked = len(_VIEWS) * _GUISES
    for query, rank in np.argwhere(cosines > COSINE).tolist():
        laid, under = int(rows[query // asked]), int(onto[query, rank])
        one, other = int(frames.film[laid]), int(frames.film[under])
        if one == other:
            continue
        pair, cosine = (min(one, other), max(one, other)), float(cosines[query, rank])
        if pair not in found or found[pair][0] < cosine:
            found[pair] = (cosine, laid, under, query % asked)


# ------------------------------------------------------------------------------------------------------------ places

# A place is (2, 2): for x and for y a scale and a shift. Points are (x, y), each from -1 at the first edge to 1 at the
# last; a place takes a point of the film below to the one of the film laid over it that lies there.


def _after(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The place that does `inner` first, then `outer`."""
    return np.stack([outer[..., 0] * inner[..., 0], outer[..., 0] * inner[..., 1] + outer[..., 1]], axis=-1)


def _back(place: np.ndarray) -> np.ndarray:
    """The place that undoes `place`."""
    return np.stack([1 / place[..., 0], -place[..., 1] / place[..., 0]], axis=-1)


_NOWHERE = np.array([1, 0], dtype=np.float32)


def _places() -> np.ndarray:
    """(V * GUISES, 2, 2): where the points of a view's picture lie in the frame that it was taken of."""
    places = [
        [[mirror * (1 - left - right), left - right], [1 - top - bottom, top - bottom]]
        for (top, bottom), (left, right) in _VIEWS
        for mirror in (1, -1, 1, -1)
    ]
    return np.array(places, dtype=np.float32)


_PLACES = _places()


def _points(side: int, every: int = 1) -> np.ndarray:
    """(n,) float32: where one pixel of a line in so many lies, from -1 to 1."""
    points: np.ndarray = (np.arange(every // 2, side, every, dtype=np.float32) + 0.5) / side * 2 - 1
    return points


def _sample(pictures: np.ndarray, place: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B, s, s) seen at a grid of points, antialiased where it is shrunk: (B, n, n), and whether it lies inside."""
    side = pictures.shape[-1]
    at = place[:, :, :1] * points + place[:, :, 1:]  # (B, 2, n)
    inside = np.abs(at) <= 1
    pixel = np.clip((at + 1) * (side / 2) - 0.5, 0, side - 1)
    width = np.maximum(np.abs(place[:, :, 0]), 1)[..., None, None]
    weights = np.maximum(1 - np.abs(pixel[..., None] - np.arange(side, dtype=np.float32)) / width, 0)
    weights /= weights.sum(axis=-1, keepdims=True)
    seen = weights[:, 1] @ pictures @ weights[:, 0].transpose(0, 2, 1)
    return seen, inside[:, 1, :, None] & inside[:, 0, None, :]


def _register(laid: np.ndarray, onto: np.ndarray, place: np.ndarray, steps: int, *, every: int = 2) -> np.ndarray:
    """Gauss-Newton, inverse compositional (Baker and Matthews 2004), with a gain that may be negative.

    Reweighted in every step (Geman and McClure 1987): what lies in one film only, as a padding or an arrow, must not
    pull.

    Args:
        laid: (B, s, s).
        onto: (B, s, s).
        place: (B, 2, 2) where to begin.
        steps: How many.
        every: Compare one pixel of a line in so many.

    Returns:
        (B, 2, 2) the better place.
    """
    side, points = onto.shape[-1], _points(onto.shape[-1], every)
    many = len(onto)
    take = np.s_[:, every // 2 :: every, every // 2 :: every]
    target = onto[take].reshape(many, -1)
    along_y, along_x = (slope[take] * np.float32(side / 2) for slope in np.gradient(onto, axis=(1, 2)))
    # (B, 6, P): how the target changes with scale and shift of x, and of y; and with gain and level of its grey,
    # without which a gain that is too small, as between films that do not lie right yet, is taken for a scale.
    grey = target.reshape(along_x.shape)
    change = np.stack(
        [along_x * points, along_x, along_y * points[:, None], along_y, grey, np.ones_like(grey)], axis=1
    ).reshape(many, 6, -1)
    damping = 1e-3 * target.shape[1] * np.eye(6, dtype=np.float32)
    for _ in range(steps):
        seen, inside = (part.reshape(many, -1) for part in _sample(laid, place, points))
        seen, wanted = seen * inside, target * inside
        weight, off = inside.astype(np.float32), np.zeros_like(seen)
        for _again in range(2):
            gain = (weight * seen * wanted).sum(axis=1) / np.maximum((weight * seen * seen).sum(axis=1), 1e-6)
            off = gain[:, None] * seen - wanted
            usual = np.maximum(np.median(np.abs(off), axis=1, keepdims=True), 1e-3)
            weight = inside / (1 + (off / (OUTLYING * usual)) ** 2) ** 2
        weighted = change * weight[:, None]
        right = weighted @ off[..., None]
        step = np.linalg.solve(weighted @ change.transpose(0, 2, 1) + damping, right)[:, :4].reshape(many, 2, 2)
        moved = _after(place, _back(step + _NOWHERE))
        # One that runs away stays where it was.
        sane = (np.abs(moved) < 3).all(axis=(1, 2)) & (np.abs(moved[:, :, 0]) > 0.3).all(axis=1)
        place = np.where(sane[:, None, None], moved, place).astype(np.float32)
    return place


# ------------------------------------------------------------------------------------------------------------- proof


def _likely(frames: _Frames, candidates: _Laid) -> tuple[_Laid, np.ndarray]:
    """Candidates that agree when they are registered coarsely, from film to film, and which of them are inverted."""
    from scipy.ndimage import gaussian_filter

    def coarse(_rows: np.ndarray, some: _Laid) -> tuple[_Laid, np.ndarray]:
        laid, onto = (frames.contrast[which].astype(np.float32) for which in (some.laid, some.onto))
        blurred = [gaussian_filter(contrast, BLUR, axes=(1, 2), truncate=3) for contrast in (laid, onto)]
        place = _register(blurred[0], blurred[1], some.place, COARSE_STEPS)
        place = _register(laid, onto, place, COARSE_STEPS)
        seen, inside = _sample(laid, place, _points(SIDE))
        return _Laid(some.laid, some.onto, place), _agreement(seen, onto, inside, block=COARSE_BLOCK, faint=5.0)[0]

    total, found, agreements = len(candidates.laid), [], []
    with progress("register", total=total, unit="pairs") as bar:
        batches = (np.arange(start, min(start + BATCH, total)) for start in range(0, total, BATCH))
        for some, agreement in _in_threads(coarse, batches, candidates.__getitem__):
            good = np.abs(agreement) >= LIKELY
            found.append(some[good])
            agreements.append(agreement[good])
            bar.advance(len(good))
    laid, onto, place = (
        np.concatenate([getattr(some, name) for some in [candidates[:0], *found]]) for name in ("laid", "onto", "place")
    )
    place = _after(frames.place[laid], _after(place, _back(frames.place[onto])))
    return _Laid(frames.film[laid], frames.film[onto], place), np.concatenate([np.zeros(0), *agreements]) < 0


def _prove(films: Films, likely: _Laid, inverted: np.ndarray) -> list[Pair]:
    def read(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        names, where = np.unique(np.concatenate([likely.laid[rows], likely.onto[rows]]), return_inverse=True)
        return films(names), where

    def compare(rows: np.ndarray, pictures: tuple[np.ndarray, np.ndarray]) -> list[Pair]:
        small, where = _small(pictures[0]), pictures[1]
        return _compare(small[where[: len(rows)]], small[where[len(rows) :]], likely[rows], inverted[rows])

    pairs: list[Pair] = []
    total = len(likely.laid)
    with progress("compare", total=total, unit="pairs") as bar:
        batches = (np.arange(start, min(start + BATCH, total)) for start in range(0, total, BATCH))
        for some in _in_threads(compare, batches, read):
            pairs += some
            bar.advance(min(BATCH, total))
    return pairs


def _small(films: np.ndarray) -> np.ndarray:
    """(B, S, S) uint8 -> (B, FINE, FINE) float32."""
    from PIL import Image

    size = (FINE, FINE)
    return np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.BILINEAR), np.float32) for f in films])


def _fine(small: np.ndarray) -> np.ndarray:
    """(B, FINE, FINE) -> the same: what is finer than anatomy and coarser than JPEG's noise."""
    from scipy.ndimage import gaussian_filter

    finer, coarser = (gaussian_filter(small, sigma, axes=(1, 2), truncate=3) for sigma in (FINER, COARSER))
    return finer - coarser


def _compare(laid: np.ndarray, onto: np.ndarray, pair: _Laid, inverted: np.ndarray) -> list[Pair]:
    # The film that shows the scene larger is laid on the other: it is shrunk, and nothing must be made up.
    larger = np.abs(pair.place[:, 0, 0] * pair.place[:, 1, 0]) < 1
    turned = larger[:, None, None]
    laid, onto = np.where(turned, onto, laid), np.where(turned, laid, onto)
    one, other = np.where(larger, pair.onto, pair.laid), np.where(larger, pair.laid, pair.onto)
    place = np.where(turned, _back(pair.place), pair.place)
    fine, finer = _fine(onto), _fine(laid)
    best = _measure(laid, onto, fine, place, inverted)
    at = place
    for every in (2, 1):
        # Registered on what is fine while that may change the answer; where it goes astray an earlier place holds.
        rows = np.flatnonzero((_margin(*best[:2]) < SURE) & (best[1] < HOPELESS))
        if not len(rows):
            break
        place = _register(finer[rows], fine[rows], place[rows], FINE_STEPS, every=every)
        found = _measure(laid[rows], onto[rows], fine[rows], place, inverted[rows])
        better = _margin(*found[:2]) > _margin(*(measure[rows] for measure in best[:2]))
        for measure, new in zip((*best, at), (*found, place), strict=True):
            measure[rows[better]] = new[better]
        place = _into(at, rows, place)
    details, residuals, overlaps = best
    overlaps = np.where(one > other, overlaps * np.abs(at[:, 0, 0] * at[:, 1, 0]), overlaps)
    return [
        Pair(
            first=int(min(one[k], other[k])),
            second=int(max(one[k], other[k])),
            detail=round(float(details[k]), 4),
            residual=round(float(residuals[k]), 4),
            mirrored=bool(at[k, 0, 0] < 0),
            inverted=bool(inverted[k]),
            overlap=round(min(1.0, float(overlaps[k])), 3),
        )
        for k in range(len(one))
    ]


def _into(places: np.ndarray, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    places = places.copy()
    places[rows] = others
    return places


def _measure(
    laid: np.ndarray, onto: np.ndarray, fine: np.ndarray, place: np.ndarray, inverted: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(B,) detail, residual, and the share of `onto` that is covered."""
    seen, inside = _sample(laid, place, _points(FINE))
    detail, told = _agreement(_fine(seen), fine, inside, block=BLOCK, faint=FAINT)
    return np.where(inverted, -detail, detail), _residual(seen, onto, told), inside.mean(axis=(1, 2))


def _blocks(pictures: np.ndarray, side: int) -> np.ndarray:
    """(B, s, s) -> (B, blocks, values of one)."""
    many = pictures.shape[-1] // side
    parts = pictures.reshape(len(pictures), many, side, many, side)
    return parts.swapaxes(2, 3).reshape(len(pictures), many * many, side * side)


def _agreement(
    one: np.ndarray, other: np.ndarray, inside: np.ndarray, *, block: int, faint: float
) -> tuple[np.ndarray, np.ndarray]:
    """(B,) median over blocks of Pearson's correlation, -1 to 1, 0 where too few blocks tell; (B, s, s) where they do.

    A block in which either film shows nothing (a black border, a clipped window) tells nothing.
    """
    a, b = _blocks(one, block), _blocks(other, block)
    a, b = a - a.mean(axis=2, keepdims=True), b - b.mean(axis=2, keepdims=True)
    spread = np.sqrt((a * a).mean(axis=2)), np.sqrt((b * b).mean(axis=2))
    told = np.asarray(_blocks(inside, block).all(axis=2)) & (spread[0] > faint) & (spread[1] > faint)
    values = np.where(told, (a * b).mean(axis=2) / np.maximum(spread[0] * spread[1], 1e-6), np.nan)
    found = np.zeros(len(one), np.float32)
    enough = told.sum(axis=1) >= FEWEST_BLOCKS
    found[enough] = np.nanmedian(values[enough], axis=1)
    many = one.shape[-1] // block
    return found, told.reshape(-1, many, many).repeat(block, axis=1).repeat(block, axis=2)


def _residual(seen: np.ndarray, onto: np.ndarray, told: np.ndarray) -> np.ndarray:
    """(B,) median difference of grey that no function of the other film's grey explains, in standard deviations."""
    means = [_blocks(picture, GREY_CELL).mean(axis=2) for picture in (seen, onto)]
    covered = np.asarray(_blocks(told, GREY_CELL).all(axis=2))
    found = np.ones(len(seen), np.float32)
    for k, (of_seen, of_onto, where) in enumerate(zip(*means, covered, strict=True)):
        if where.sum() < 4 * GREY_STEPS:
            continue
        x, y = of_seen[where], of_onto[where]
        # Medians of equally many cells: neither text nor an arrow bends the function.
        many = len(x) // GREY_STEPS * GREY_STEPS
        steps = np.argsort(x)[np.linspace(0, len(x) - 1, many).astype(int)].reshape(GREY_STEPS, -1)
        explained = np.interp(x, np.median(x[steps], axis=1), np.median(y[steps], axis=1))
        found[k] = np.median(np.abs(y - explained)) / max(float(y.std()), 1.0)
    return found
