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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vgg16_xray.files import whole_file
from vgg16_xray.progress import progress

#: Takes (B,) int indices, gives (B, S, S) uint8: ``ArrayStore.take``, or ``array.__getitem__``.
Films = Callable[[np.ndarray], np.ndarray]
T = TypeVar("T")

#: Two films are one where their detail agrees at least so well and their grey differs at most so much.
DETAIL, RESIDUAL = 0.65, 0.035
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
#: Candidates a film: its nearest so many in each view, above a cosine; of all these the best so many, and the nearest
#: of each view, are cut more finely, in steps of such a share of the side; the best so many of these are registered.
NEAREST, COSINE, POOL, FINE_CUT, CANDIDATES = 4, 0.6, 8, 0.0125, 8
#: Descriptors in a cell of the index, and cells that are searched: an exact search up to as many films as fill them.
CELL, PROBES = 200, 16
#: Steps of the coarse registration; the median block's correlation below which a pair is dropped after it; block side.
COARSE_STEPS, LIKELY, COARSE_BLOCK = 6, 0.8, 8
#: Of the pairs of a film so many are compared, those that agree best; and all that agree so well.
COMPARED, CLEAR = 3, 0.95
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
#: Films, or pairs, at a time; and in a part that is kept.
BATCH, PART = 128, 2048


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


def find_pairs(films: Films, count: int, *, first_of_second: int | None = None, kept: Path | None = None) -> list[Pair]:
    """Lay films one over the other where they might be the same.

    Args:
        films: Gives pixels for indices.
        count: N, the number of films.
        first_of_second: Look for pairs between the films before this index and those from it on, and no others.
        kept: Folder for finished parts of a search over these very films: one that was killed goes on behind them.

    Returns:
        Pairs worth a look, the surest first; those that are ``same`` are one film.
    """
    from threadpoolctl import threadpool_limits

    if count < 2 or first_of_second in (0, count):
        return []
    parts = _Kept(kept)
    # Matrices of 100 columns: threads go over batches, not within one.
    with threadpool_limits(1, user_api="blas"):
        frames = _reduce(films, count)
        candidates = _candidates(frames, count, first_of_second, parts)
        pairs = _proved(films, *_registered(frames, candidates, parts), parts)
    return sorted(pairs, key=lambda pair: (-pair.margin, pair.first, pair.second))


@dataclass(frozen=True)
class _Kept:
    """Finished parts of a search, so that one that was killed goes on behind them."""

    folder: Path | None

    def once(self, name: str, compute: Callable[[], Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
        """What `compute` gives, read where it was kept."""
        if self.folder is None:
            return compute()
        file = self.folder / f"{name}.npz"
        if file.exists():
            # Whatever a damaged disk makes numpy raise: the part is made again.
            with suppress(Exception), np.load(file, allow_pickle=False) as arrays:
                return dict(arrays)
        found = compute()
        with whole_file(file) as temporary, temporary.open("wb") as opened:
            np.savez(opened, allow_pickle=False, **found)
        return found


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
_WEIGHT = np.where(_KEPT, np.sqrt(_HIGH), 0).astype(np.float32)
_CUT_PAIRS = [(a, b) for a in CUTS for b in CUTS]
#: (top, bottom), (left, right) that each view leaves out; the first is the whole frame.
_VIEWS = [((0.0, 0.0), (0.0, 0.0))] + [(rows, columns) for rows in _CUT_PAIRS for columns in _CUT_PAIRS]
#: Each view is looked for as it is, mirrored, inverted, and both.
_GUISES = 4
# (before, after) of a finer cut, those near to each, and what it leaves of the waves.
_STEPS = [FINE_CUT * step for step in range(-1, 10)]
_FINE_CUTS = np.array([(before, after) for before in _STEPS for after in _STEPS], dtype=np.float32)
_NEAR = [np.flatnonzero(np.abs(_FINE_CUTS - cut).max(axis=1) < 2.5 * FINE_CUT) for cut in _FINE_CUTS]
_CUT_WAVES = np.stack([_waves(float(before), float(after)) for before, after in _FINE_CUTS])
#: (V, 2): the numbers of a view's cuts, of its rows and of its columns.
_CUT_NUMBER = np.array([[np.abs(_FINE_CUTS - cut).max(axis=1).argmin() for cut in view] for view in _VIEWS])


def _describe(contrast: np.ndarray, views: Sequence[tuple[tuple[float, float], tuple[float, float]]]) -> np.ndarray:
    """(F, SIDE, SIDE) int8 -> (F, V, D) float32 of length one: each frame in each view."""
    frames = contrast.astype(np.float32)
    by_rows = {rows: _waves(*rows) @ frames for rows, _ in views}
    described = np.stack([(by_rows[rows] @ _waves(*columns).T)[:, _KEPT] for rows, columns in views], axis=1)
    described *= _WEIGHT[_KEPT]
    described /= np.maximum(np.linalg.norm(described, axis=-1, keepdims=True), 1e-6)
    return described


@dataclass(frozen=True)
class _Laid:
    """(C,) frames, or films, that may show the same; `place` (C, 2, 2) takes points of `onto` to points of `laid`."""

    laid: np.ndarray
    onto: np.ndarray
    place: np.ndarray
    #: (C,) of the descriptors, where they lie so.
    cosine: np.ndarray

    def __getitem__(self, rows: Any) -> _Laid:
        return _Laid(self.laid[rows], self.onto[rows], self.place[rows], self.cosine[rows])

    @classmethod
    def joined(cls, parts: Sequence[_Laid]) -> _Laid:
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))


_NOTHING = _Laid(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2, 2), np.float32), np.zeros(0, np.float32))


def _candidates(frames: _Frames, count: int, first_of_second: int | None, kept: _Kept) -> _Laid:
    every = np.arange(len(frames.film))
    described = np.concatenate([_describe(frames.contrast[s : s + BATCH], _VIEWS[:1])[:, 0] for s in every[::BATCH]])
    second = frames.film >= (count if first_of_second is None else first_of_second)
    searches = (
        [(every, every)]
        if first_of_second is None
        else [(every[~second], every[second]), (every[second], every[~second])]
    )
    found = [_NOTHING]
    with progress("seek candidates", total=sum(len(asked) for asked, _ in searches), unit="frames") as bar:
        for number, (asked, among) in enumerate(searches):
            if not len(asked) or not len(among):
                continue
            ask = partial(_nearest, _Searched(_index(described[among]), among, described, frames.film))
            for start in range(0, len(asked), PART):
                some = asked[start : start + PART]

                def seek(ask: Any = ask, some: np.ndarray = some) -> Mapping[str, np.ndarray]:
                    batches = (some[s : s + BATCH] for s in range(0, len(some), BATCH))
                    return vars(_Laid.joined([_NOTHING, *_in_threads(ask, batches, frames.contrast.__getitem__)]))

                found.append(_Laid(**kept.once(f"candidates-{number}-{start}", seek)))
                bar.advance(len(some))
    return _best_of_each(_Laid.joined(found), frames.film)


def _best_of_each(found: _Laid, film: np.ndarray) -> _Laid:
    """Each pair of films once, as it fits best, where it is among the best of one of the two, whichever asked."""
    ends = np.sort(np.stack([film[found.laid], film[found.onto]]), axis=0)
    order = np.lexsort((-found.cosine, ends[1], ends[0]))
    ends = ends[:, order]
    once = np.ones(len(order), bool)
    once[1:] = (ends[:, 1:] != ends[:, :-1]).any(axis=0)
    found, ends = found[order[once]], ends[:, once]
    of_film, pair = ends.ravel(), np.tile(np.arange(len(found.laid)), 2)
    best = pair[_firsts(of_film, -found.cosine[pair], CANDIDATES)]
    return found[np.unique(best)]


def _firsts(group: np.ndarray, value: np.ndarray, most: int) -> np.ndarray:
    """Where in each group the so many smallest values are."""
    order = np.lexsort((value, group))
    starts = np.flatnonzero(np.r_[True, np.diff(group[order]) != 0]) if len(order) else np.zeros(0, np.int64)
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    return order[rank < most]


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


@dataclass(frozen=True)
class _Searched:
    """The frames that are searched."""

    #: Of the frames `among`.
    index: Any
    #: (M,)
    among: np.ndarray
    #: (F, D) of all frames.
    described: np.ndarray
    #: (F,) which film.
    film: np.ndarray


def _nearest(searched: _Searched, rows: np.ndarray, contrast: np.ndarray) -> _Laid:
    """The best candidates of frames `rows` (B,), of which `contrast` (B, SIDE, SIDE) is given."""
    import faiss

    # Batches go over our own threads; those of OpenMP would wait for each other on a busy machine.
    faiss.omp_set_num_threads(1)
    views = _describe(contrast, _VIEWS)
    # An inverted film has the opposite descriptor: of the four, one is what the other film may be.
    asked = np.stack([views, views * _MIRROR, -views, -views * _MIRROR], axis=2)
    film, described = searched.film, searched.described
    cosine, where = searched.index.search(np.ascontiguousarray(asked.reshape(-1, asked.shape[-1])), NEAREST + 2)
    queries = asked.shape[1] * asked.shape[2]
    query, rank = np.nonzero(cosine > COSINE)
    one, view, onto, cosine = query // queries, query % queries, searched.among[where[query, rank]], cosine[query, rank]
    other = np.flatnonzero(film[rows[one]] != film[onto])
    one, view, onto, cosine = one[other], view[other], onto[other], cosine[other]
    # A film that answers several times is one candidate, as it fits best. A crop fits its original at one view alone,
    # and less well than a stranger may fit another: so what is nearest to any view is cut more finely, and then ranked.
    pair = one * (int(film.max()) + 1) + film[onto]
    nearest = pair[_firsts(query[other], -cosine, 1)]
    once = _firsts(pair, -cosine, 1)
    best = _firsts(one[once], -cosine[once], POOL)
    pool = np.union1d(once[best], once[np.isin(pair[once], nearest)])
    one, view, onto = one[pool], view[pool], onto[pool]
    place, cosine = _sharpened(contrast, described, one, onto, view)
    best = _firsts(one, -cosine, CANDIDATES)
    return _Laid(rows[one], onto, place, cosine)[best]


def _sharpened(
    contrast: np.ndarray, described: np.ndarray, one: np.ndarray, onto: np.ndarray, view: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cut more finely than the views do: the rows' edges first, the columns' with them.

    Args:
        contrast: (B, SIDE, SIDE) int8.
        described: (F, D) of all frames.
        one: (C,) which of `contrast` is cut.
        onto: (C,) frame that it is compared with.
        view: (C,) number of the view, times :data:`_GUISES`, and the guise.

    Returns:
        (C, 2, 2) places, and (C,) cosines there.
    """
    target = np.zeros((len(one), WAVES, WAVES), np.float32)
    guise = view % _GUISES
    sign = np.where(guise >= 2, -1, 1)[:, None] * np.where(guise[:, None] % 2, _MIRROR, 1)
    target[:, _KEPT] = described[onto] * sign
    rows, columns = _CUT_NUMBER[view // _GUISES].T
    cosine = np.zeros(len(one), np.float32)
    for turned in (False, True):
        # Along y, then along x: the picture stands on its side the second time.
        across, along = (rows, columns) if turned else (columns, rows)
        better = np.empty_like(along)
        for number in np.unique(along):
            of = np.flatnonzero(along == number)
            frames = contrast[one[of]].astype(np.float32)
            frames = frames.swapaxes(1, 2) if turned else frames
            wanted = target[of].swapaxes(1, 2) if turned else target[of]
            near = _NEAR[number]
            half = frames @ _CUT_WAVES[across[of]].swapaxes(1, 2)  # (c, SIDE, WAVES)
            seen = np.concatenate(_CUT_WAVES[near]) @ half
            seen = seen.reshape(len(of), len(near), WAVES, WAVES) * _WEIGHT
            length = np.sqrt(np.einsum("cnij,cnij->cn", seen, seen))
            fits = np.einsum("cnij,cij->cn", seen, wanted) / np.maximum(length, 1e-6)
            best = fits.argmax(axis=1)
            better[of], cosine[of] = near[best], fits[np.arange(len(of)), best]
        rows, columns = (rows, better) if turned else (better, columns)
    (top, bottom), (left, right) = _FINE_CUTS[rows].T, _FINE_CUTS[columns].T
    mirror = np.where(guise % 2, -1, 1)
    along_x = np.stack([mirror * (1 - left - right), left - right], axis=1)
    along_y = np.stack([1 - top - bottom, top - bottom], axis=1)
    return np.stack([along_x, along_y], axis=1).astype(np.float32), cosine


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


def _registered(frames: _Frames, candidates: _Laid, kept: _Kept) -> tuple[_Laid, np.ndarray]:
    """Pairs worth a comparison, coarsely registered, from film to film, and which of them are inverted."""

    def register(_rows: np.ndarray, some: _Laid) -> tuple[np.ndarray, np.ndarray]:
        laid, onto = (frames.contrast[which].astype(np.float32) for which in (some.laid, some.onto))
        place = _register(laid, onto, some.place, COARSE_STEPS)
        seen, inside = _sample(laid, place, _points(SIDE))
        return place, _agreement(seen, onto, inside, block=COARSE_BLOCK, faint=5.0)[0]

    def part(start: int, stop: int) -> Mapping[str, np.ndarray]:
        batches = (np.arange(s, min(s + BATCH, stop)) for s in range(start, stop, BATCH))
        places, agreements = zip(*_in_threads(register, batches, candidates.__getitem__), strict=True)
        return {"place": np.concatenate(places), "agreement": np.concatenate(agreements)}

    parts = _parts("register", len(candidates.laid), part, kept)
    place = np.concatenate([candidates.place[:0], *(found["place"] for found in parts)])
    agreement = np.concatenate([candidates.cosine[:0], *(found["agreement"] for found in parts)])
    inverted, agreement = agreement < 0, np.abs(agreement)
    good = np.flatnonzero(agreement >= LIKELY)
    of_film = np.concatenate([frames.film[candidates.laid[good]], frames.film[candidates.onto[good]]])
    best = np.tile(good, 2)[_firsts(of_film, -np.tile(agreement[good], 2), COMPARED)]
    rows = np.union1d(best, np.flatnonzero(agreement >= CLEAR))
    laid, onto = candidates.laid[rows], candidates.onto[rows]
    place = _after(frames.place[laid], _after(place[rows], _back(frames.place[onto])))
    return _Laid(frames.film[laid], frames.film[onto], place, candidates.cosine[rows]), inverted[rows]


def _parts(
    name: str, total: int, compute: Callable[[int, int], Mapping[str, np.ndarray]], kept: _Kept
) -> list[Mapping[str, np.ndarray]]:
    """Part after part of `total` pairs, each kept when it is finished."""
    found = []
    with progress(name, total=total, unit="pairs") as bar:
        for start in range(0, total, PART):
            stop = min(start + PART, total)
            found.append(kept.once(f"{name}-{start}", partial(compute, start, stop)))
            bar.advance(stop - start)
    return found


def _proved(films: Films, likely: _Laid, inverted: np.ndarray, kept: _Kept) -> list[Pair]:
    """Pairs worth a look."""

    def read(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        names, where = np.unique(np.concatenate([likely.laid[rows], likely.onto[rows]]), return_inverse=True)
        return films(names), where

    def compare(rows: np.ndarray, pictures: tuple[np.ndarray, np.ndarray]) -> list[Pair]:
        small, where = _small(pictures[0]), pictures[1]
        return _compare(small[where[: len(rows)]], small[where[len(rows) :]], likely[rows], inverted[rows])

    def part(start: int, stop: int) -> Mapping[str, np.ndarray]:
        batches = (np.arange(s, min(s + BATCH, stop)) for s in range(start, stop, BATCH))
        pairs = [pair for some in _in_threads(compare, batches, read) for pair in some]
        pairs = [pair for pair in pairs if pair.margin >= WORTH_A_LOOK]
        return {field.name: np.array([getattr(pair, field.name) for pair in pairs]) for field in fields(Pair)}

    parts = _parts("compare", len(likely.laid), part, kept)
    rows = (row for part in parts for row in zip(*(part[field.name].tolist() for field in fields(Pair)), strict=True))
    return [Pair(**dict(zip([field.name for field in fields(Pair)], row, strict=True))) for row in rows]


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
