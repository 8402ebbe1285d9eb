"""How far one comes without the disease: a ladder of inputs from which it has been removed.

Each rung shows the same probe (:mod:`vgg16_xray.trust.linear_probe`) less of a film. Four rungs hold nothing of the
lungs: the file, the border, the corners, the film with its lungs erased. What is reached there was not read from
the lungs, and a network that sees the whole film can use it too (Maguolo and Nanni, Information Fusion 2021; DeGrave
et al., Nature Machine Intelligence 2021). The other rungs keep a little of the lungs in a form in which nobody
reads a film.

Nothing here is computed by the network under suspicion. A picture is described by seven numbers in each of 8 x 8 cells,
see :func:`describe`.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vgg16_xray.trust.linear_probe import FOLDS, PERMUTATIONS, probe

#: Cells along a side, and numbers for each, see :func:`describe`.
CELLS, NUMBERS_PER_CELL = 8, 7
#: Width of the border frame and side of a corner, as shares of the film's side.
BORDER, CORNER = 1 / 14, 1 / 5
#: Side of the thumbnail; bins of the histogram; rings and sectors of the spectrum.
THUMBNAIL, BINS, RINGS, SECTORS = 8, 64, 24, 8
#: How far beyond the lungs' hull is erased, as a share of the side: a mask ends before the opacity's blur does.
MARGIN = 0.03
#: Metadata with at most so many different values are told apart value by value, others by rank.
MOST_VALUES = 12
#: Films that are described at once: memory stays small.
BATCH = 64

#: DICOM elements that say how and on whom a film was taken, and not who the patient is.
DICOM_ELEMENTS = (
    "Manufacturer", "ManufacturerModelName", "InstitutionName", "StationName", "Modality", "BodyPartExamined",
    "ViewPosition", "PatientPosition", "PatientSex", "PatientAge", "KVP", "Exposure", "ExposureTime",
    "XRayTubeCurrent", "DistanceSourceToDetector", "DetectorType", "PixelSpacing", "ImagerPixelSpacing", "BitsStored",
    "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation", "WindowCenter", "WindowWidth",
    "SoftwareVersions", "LossyImageCompression",
)  # fmt: skip

Films = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Rung:
    """An input of the ladder."""

    key: str
    #: As it stands beside a bar.
    name: str
    #: What the probe is given, in a clause.
    words: str
    #: Whether nothing of the lungs is in it: the verdict stands on these.
    without_lungs: bool = False
    #: Whether it needs the lungs' outline.
    needs_lungs: bool = False


METADATA, HISTOGRAM, SMALL, FRAME, CORNERS, ERASED, LUNGS, SCRAMBLED, WHOLE = LADDER = (
    Rung(
        key="metadata",
        name="File only",
        words="height, width, format, bit depth and compression of the file, DICOM's technical elements; not one pixel",
        without_lungs=True,
    ),
    Rung(key="histogram", name="Grey levels", words="how often each grey level occurs, and not where"),
    Rung(key="thumbnail", name="8 × 8 thumbnail", words="64 pixels: brightness and outline"),
    Rung(
        key="border",
        name="Border only",
        words=f"a frame of a fourteenth of the side ({round(100 * BORDER)} %); the rest is grey",
        without_lungs=True,
    ),
    Rung(
        key="corners",
        name="Corners only",
        words="four squares of a fifth of the side, where markers and text stand; the rest is grey",
        without_lungs=True,
    ),
    Rung(
        key="lungs_erased",
        name="Lungs erased",
        words="everything outside the hull of both lungs, heart and mediastinum erased with them",
        without_lungs=True,
        needs_lungs=True,
    ),
    Rung(key="lungs_only", name="Lungs only", words="the lungs in their outline; the rest is grey", needs_lungs=True),
    Rung(
        key="scrambled",
        name="Phase scrambled",
        words="the film's amplitude spectrum: sharpness, grids and noise, and no shape",
    ),
    Rung(key="whole", name="Whole film", words="the film as it is"),
)  # fmt: skip
RUNGS: Mapping[str, Rung] = {rung.key: rung for rung in LADDER}


#: Why files without a difference are on no rung: nothing is left to be told by.
ALIKE = "all files say the same of themselves"


def features_of(rung: Rung, films: Films, lungs: NDArray[np.bool_] | None = None) -> Floats:
    """What a rung tells the probe about films.

    Args:
        rung: Of :data:`LADDER`, the file's rung excepted, see :func:`metadata_features`.
        films: (N, H, W) uint8, square, a side of 16 or more times 8.
        lungs: (N, H, W) bool, for the rungs that need them.

    Returns:
        (N, D) float64.
    """
    plain: Mapping[str, Callable[[Films], Floats]] = {
        HISTOGRAM.key: _histograms,
        SMALL.key: _thumbnails,
        SCRAMBLED.key: _spectra,
    }
    parts = []
    for start in range(0, len(films), BATCH):
        some = slice(start, start + BATCH)
        batch = films[some]
        if rung.key in plain:
            parts.append(plain[rung.key](batch))
        else:
            parts.append(describe(shown(rung, batch, None if lungs is None else lungs[some])))
    return np.concatenate(parts)


def shown(rung: Rung, films: Films, lungs: NDArray[np.bool_] | None = None, *, seed: int = 0) -> Films:
    """Films as a rung shows them, for the probe and for the page.

    What is taken away is filled with the mean grey of what stays, so that the edge tells as little as it can.

    Args:
        rung: Of :data:`LADDER`.
        films: (N, H, W) uint8.
        lungs: (N, H, W) bool, for the rungs that need them.
        seed: Of the scrambled phases.

    Returns:
        (N, H, W) uint8. The file's rung shows a black film, the histogram's its pixels in the order of their grey.
    """
    if rung.needs_lungs and lungs is None:
        raise ValueError(f"lungs: must be given for the rung {rung.key}, found None")
    n, height, width = films.shape
    if rung is METADATA:
        return np.zeros_like(films)
    if rung is HISTOGRAM:
        return np.sort(films.reshape(n, -1), axis=1).reshape(films.shape)
    if rung is SMALL:
        small = _thumbnails(films).reshape(n, THUMBNAIL, THUMBNAIL)
        rows, columns = np.arange(height) * THUMBNAIL // height, np.arange(width) * THUMBNAIL // width
        return np.rint(small[:, rows][:, :, columns]).astype(np.uint8)
    if rung is SCRAMBLED:
        return _scrambled(films, seed)
    keep = np.zeros(films.shape, bool)
    if rung is FRAME:
        edge = round(BORDER * height)
        keep[:] = True
        keep[:, edge : height - edge, edge : width - edge] = False
    elif rung is CORNERS:
        side = round(CORNER * height)
        for rows_of in (slice(None, side), slice(height - side, None)):
            for columns_of in (slice(None, side), slice(width - side, None)):
                keep[:, rows_of, columns_of] = True
    elif rung is ERASED and lungs is not None:
        keep = ~hulls(lungs, margin=MARGIN)
    elif rung is LUNGS and lungs is not None:
        keep = lungs.astype(bool)
    else:
        return films
    kept = np.maximum(keep.sum(axis=(1, 2)), 1)
    mean = np.rint((films * keep).sum(axis=(1, 2), dtype=np.float64) / kept).astype(np.uint8)
    return np.where(keep, films, mean[:, None, None])


def hulls(lungs: NDArray[np.bool_], *, margin: float) -> NDArray[np.bool_]:
    """The convex hull of both lungs together, and a margin: no opacity that a mask missed, and no heart, sticks out.

    Args:
        lungs: (N, H, W) bool; a film without lungs gets an empty hull.
        margin: Share of the side.

    Returns:
        (N, H, W) bool.
    """
    from PIL import Image, ImageDraw
    from scipy.spatial import ConvexHull, QhullError

    out = np.zeros(lungs.shape, bool)
    reach = round(margin * lungs.shape[1])
    for i, mask in enumerate(lungs):
        rows, columns = np.nonzero(mask)
        if not len(rows):
            continue
        points = np.stack([columns, rows], axis=1)
        try:
            corners = points[ConvexHull(points).vertices]
        except QhullError:  # All points on one line.
            corners = points
        image = Image.new("1", mask.shape[::-1])
        draw = ImageDraw.Draw(image)
        outline = [(int(x), int(y)) for x, y in corners]
        if len(outline) > 2:
            draw.polygon(outline, fill=1)
        draw.line([*outline, outline[0]], fill=1, width=max(1, 2 * reach))
        for x, y in outline:
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=1)
        out[i] = np.asarray(image)
    return out


def measure(
    rung: Rung,
    films: Films,
    labels: Sequence[str],
    groups: Sequence[str],
    *,
    seed: int,
    lungs: NDArray[np.bool_] | None = None,
    found: NDArray[np.bool_] | None = None,
    metadata: Sequence[Mapping[str, str | float]] | None = None,
    described: Floats | None = None,
    permutations: int = PERMUTATIONS,
) -> dict[str, Any]:
    """Measure one rung.

    Args:
        rung: Of :data:`LADDER`.
        films: (N, H, W) uint8.
        labels: (N,) two classes or more, each in :data:`vgg16_xray.trust.linear_probe.FOLDS` groups or more.
        groups: (N,).
        seed: Of folds, permutations and bootstrap.
        lungs: (N, H, W) bool, for the rungs that need them.
        found: (N,) bool, on which films the lungs are known; films without are left out of those rungs and counted.
        metadata: (N,) what each file says of itself, for the file's rung.
        described: (N, D) what :func:`describe` made of the films, for the whole film's rung, where it is known already.
        permutations: See :func:`vgg16_xray.trust.linear_probe.probe`.

    Returns:
        What JSON can hold: the probe's figures, ``films_left_out`` and, for the file's rung, ``entries`` that differ
        between films; or ``left_out``: why it was not measured.
    """
    rows = list(range(len(labels)))
    extra: dict[str, Any] = {}
    if rung.needs_lungs:
        if lungs is None:
            return {"left_out": "nothing outlines the lungs"}
        rows = rows if found is None else np.flatnonzero(found).tolist()
        held = Counter(label for label, _ in {(labels[i], groups[i]) for i in rows})
        if short := sorted(label for label in set(labels) if held[label] < FOLDS):
            return {"left_out": f"the lungs were found on too few films of {', '.join(short)}"}
    if rung is METADATA:
        if not metadata or not any(metadata):
            return {"left_out": "the files are not where they were"}
        features, entries = metadata_features(metadata)
        if not entries:
            return {"left_out": ALIKE}
        extra["entries"] = entries
    elif rung is WHOLE and described is not None:
        features = described
    else:
        features = features_of(rung, films[rows], None if lungs is None else lungs[rows])
    names = sorted(set(labels))
    probed = probe(
        features,
        np.array([names.index(labels[i]) for i in rows]),
        [groups[i] for i in rows],
        seed=seed,
        permutations=permutations,
    )
    return {**probed.as_dict(), "films_left_out": len(labels) - len(rows), **extra}


# -- what a picture is described by


def describe(films: Films) -> Floats:
    """Seven numbers in each of 8 x 8 cells.

    Args:
        films: (N, H, W) uint8, H and W multiples of 16.

    Returns:
        (N, 8 * 8 * 7) float64, cell by cell: mean; spread; root mean square of the gradient down and across, and how
        the two go together (the structure tensor: which way edges run); log energy of what is finer than two pixels,
        and than four.
    """
    x = films.astype(np.float32) / np.float32(255)
    n, height, width = x.shape
    down, across = np.zeros_like(x), np.zeros_like(x)
    down[:, 1:-1] = x[:, 2:] - x[:, :-2]
    across[:, :, 1:-1] = x[:, :, 2:] - x[:, :, :-2]
    mean = _pooled(x)
    spread = np.sqrt(np.maximum(_pooled(x * x) - mean * mean, 0))
    vertical, horizontal = _pooled(down * down), _pooled(across * across)
    together = _pooled(down * across) / np.maximum(np.sqrt(vertical + horizontal), 1e-3)
    half = x.reshape(n, height // 2, 2, width // 2, 2).mean(axis=(2, 4))
    fine = [np.log(_pooled(_laplacian(picture) ** 2) + 1e-6) for picture in (x, half)]
    numbers = [mean, spread, np.sqrt(vertical), np.sqrt(horizontal), together, *fine]
    return np.stack(numbers, axis=-1).reshape(n, -1).astype(np.float64)


def _pooled(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, H, W) -> (N, 8, 8): the mean of each cell, as two matrix products, which are faster than sums over axes."""
    down, across = (
        np.kron(np.eye(CELLS, dtype=np.float32), np.full(side // CELLS, CELLS / side, dtype=np.float32))
        for side in x.shape[1:]
    )
    return np.asarray(down @ x @ across.T)


def _laplacian(x: NDArray[Any]) -> NDArray[Any]:
    out = np.zeros_like(x)
    out[:, 1:-1, 1:-1] = 4 * x[:, 1:-1, 1:-1] - x[:, 2:, 1:-1] - x[:, :-2, 1:-1] - x[:, 1:-1, 2:] - x[:, 1:-1, :-2]
    return out


def _histograms(films: Films) -> Floats:
    n = len(films)
    at = np.arange(n)[:, None] * BINS + films.reshape(n, -1).astype(np.int64) * BINS // 256
    counts = np.bincount(at.ravel(), minlength=n * BINS).reshape(n, BINS)
    # Square roots: the Hellinger distance, in which rare grey levels count too.
    return np.sqrt(counts / counts.sum(axis=1, keepdims=True))


def _thumbnails(films: Films) -> Floats:
    n, height, width = films.shape
    blocks = films.reshape(n, THUMBNAIL, height // THUMBNAIL, THUMBNAIL, width // THUMBNAIL)
    return blocks.mean(axis=(2, 4)).reshape(n, -1)


def _spectra(films: Films) -> Floats:
    """Log amplitude in rings and sectors: a film with random phases holds its amplitudes, and they are all it holds."""
    height, width = films.shape[1:]
    x = films.astype(np.float32)
    window = np.hanning(height)[:, None] * np.hanning(width)
    x = (x - x.mean(axis=(1, 2), keepdims=True)) * window.astype(np.float32)
    amplitude = np.abs(np.fft.rfft2(x))
    down, across = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :]
    radius, angle = np.hypot(down, across), np.arctan2(down, across) / np.pi + 0.5
    ring = np.minimum((radius / 0.5 * RINGS).astype(np.int64), RINGS - 1)
    sector = np.minimum((angle * SECTORS).astype(np.int64), SECTORS - 1)
    at, cells = (ring * SECTORS + sector).ravel(), RINGS * SECTORS
    size = np.maximum(np.bincount(at, minlength=cells), 1)
    sums = np.stack([np.bincount(at, weights=film.ravel(), minlength=cells) for film in amplitude])
    return np.log(sums / size + 1e-3)


def _scrambled(films: Films, seed: int) -> Films:
    height, width = films.shape[1:]
    x = films.astype(np.float64)
    mean = x.mean(axis=(1, 2), keepdims=True)
    # The phases of noise are those of a real picture.
    noise = np.fft.rfft2(np.random.default_rng(seed).standard_normal((height, width)))
    spectrum = np.abs(np.fft.rfft2(x - mean)) * noise / np.maximum(np.abs(noise), 1e-12)
    return np.clip(np.rint(np.fft.irfft2(spectrum, s=(height, width)) + mean), 0, 255).astype(np.uint8)


# -- what a file says of itself


def metadata_of(file: Path) -> dict[str, str | float]:
    """What a file says without its pixels: numbers as floats, the rest as text.

    Its size in bytes is not among it: a coder spends more on lungs with more in them, so the disease alone moves it.

    Args:
        file: A film, or something else.

    Returns:
        Empty where the file is missing or is no image.
    """
    try:
        with file.open("rb") as opened:
            head = opened.read(132)
        return _of_dicom(file) if head[128:132] == b"DICM" else _of_picture(file)
    except OSError:
        return {}


def _of_picture(file: Path) -> dict[str, str | float]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            width, height = image.size
            found: dict[str, str | float] = {
                "width": float(width),
                "height": float(height),
                "format": str(image.format),
                "mode": image.mode,
                "suffix": file.suffix.lower(),
                "has colour profile": str("icc_profile" in image.info),
                "has EXIF": str("exif" in image.info),
                "progressive": str(bool(image.info.get("progressive"))),
                "dots per inch": str(image.info.get("dpi", "")),
                "frames": float(getattr(image, "n_frames", 1)),
                "text chunks": ", ".join(sorted(getattr(image, "text", {}) or {}))
                if image.format == "PNG"
                else str(image.info.get("comment", b""))[:60],
            }
            tables = getattr(image, "quantization", None)
            if tables:
                # The sum over the luminance table falls with the quality (ITU-T T.81, annex K).
                found["JPEG quantisation"] = float(sum(tables[min(tables)]))
                found["JPEG sampling"] = str(getattr(image, "layer", ""))
            return found
    except Exception:
        # Whatever a damaged file makes Pillow raise: it then says nothing of itself.
        return {}


def _of_dicom(file: Path) -> dict[str, str | float]:
    import pydicom

    try:
        dataset = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=["Rows", "Columns", *DICOM_ELEMENTS])
        width, height = int(dataset.Columns), int(dataset.Rows)
        syntax = str(dataset.file_meta.get("TransferSyntaxUID", ""))
        found: dict[str, str | float] = {
            "width": float(width),
            "height": float(height),
            "format": f"DICOM {syntax}",
        }
        return found | {name: str(dataset[name].value) for name in DICOM_ELEMENTS if name in dataset}
    except Exception:
        # Whatever a damaged file makes pydicom raise.
        return {}


def metadata_features(rows: Sequence[Mapping[str, str | float]]) -> tuple[Floats, list[str]]:
    """Numbers for a linear probe: a column a value where there are few, ranks and their deciles where there are many.

    Args:
        rows: (N,) what :func:`metadata_of` gave.

    Returns:
        (N, D) float64, and the names of the entries that differ between films.
    """
    columns: list[Floats] = []
    used = []
    for name in sorted({name for row in rows for name in row}):
        values = [row.get(name) for row in rows]
        different = Counter(values)
        if len(different) < 2:
            continue
        used.append(name)
        if len(different) <= MOST_VALUES or not all(isinstance(value, float) for value in values):
            common = [value for value, _ in different.most_common(MOST_VALUES)]
            columns += [np.array([float(value == one) for value in values]) for one in common]
            continue
        numbers = np.array(values, dtype=np.float64)
        ranks = np.searchsorted(np.sort(numbers), numbers, side="left") / len(numbers)
        decile = np.minimum((ranks * 10).astype(np.int64), 9)
        columns += [ranks, *(np.asarray(decile == k, dtype=np.float64) for k in range(10))]
    return (np.stack(columns, axis=1) if columns else np.zeros((len(rows), 0))), used


# -- films, groups, picture of where


def sample(
    labels: Sequence[str], groups: Sequence[str], *, per_class: int, seed: int, sources: Sequence[str] | None = None
) -> NDArray[np.int64]:
    """Choose films by group, class by class, each class's sources in turn: rare classes whole, frequent ones in part.

    Args:
        labels: (N,).
        groups: (N,) whole groups are taken, in a random order.
        per_class: Films of a class at which no further group is begun.
        seed: Of the order.
        sources: (N,) of each film: groups are taken from a class's sources by turns, so that a small one is in it.

    Returns:
        Rows, ascending.
    """
    rng = np.random.default_rng(seed)
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    names = sorted(members)
    order = [names[i] for i in rng.permutation(len(names))]
    taken: set[str] = set()
    for label in sorted(set(labels)):
        queues: dict[str, list[str]] = {}
        for group in order:
            mine = [i for i in members[group] if labels[i] == label]
            if mine:
                queues.setdefault(sources[mine[0]] if sources else "", []).append(group)
        rounds = [(turn, source, group) for source, queue in sorted(queues.items()) for turn, group in enumerate(queue)]
        films = 0
        for _, _, group in sorted(rounds, key=lambda entry: entry[:2]):
            if films >= per_class:
                break
            taken.add(group)
            films += sum(labels[i] == label for i in members[group])
    return np.array([i for i, group in enumerate(groups) if group in taken], dtype=np.int64)


def where(
    films: Films, truth: NDArray[Any], groups: Sequence[str], *, seed: int, score: Callable[..., float]
) -> Floats:
    """What each of 8 x 8 cells gives away on its own.

    Args:
        films: (N, H, W) uint8.
        truth: (N,) int, what is to be told.
        groups: (N,).
        seed: Of the folds.
        score: (features (N, 7), truth, groups, seed=) -> a number, see :func:`vgg16_xray.trust.linear_probe.probe`.

    Returns:
        (8, 8) the score of each cell.
    """
    numbers = np.concatenate([describe(films[start : start + BATCH]) for start in range(0, len(films), BATCH)])
    cells = numbers.reshape(len(films), CELLS * CELLS, NUMBERS_PER_CELL)
    return np.array([score(cells[:, k], truth, groups, seed=seed) for k in range(CELLS * CELLS)]).reshape(CELLS, CELLS)


def as_png(film: Films, *, side: int | None = None) -> bytes:
    """(H, W) uint8 as a PNG, made smaller to `side` pixels where that is given."""
    from PIL import Image

    image, target = Image.fromarray(film), io.BytesIO()
    if side is not None and side < max(film.shape):
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    image.save(target, "PNG", optimize=True)
    return target.getvalue()
