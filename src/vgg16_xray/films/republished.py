"""A film as it comes back from another publisher: what a search for near-copies must see through.

For tests and measurements, as :mod:`vgg16_xray.films.phantom` is: copies whose truth is known.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np

from vgg16_xray.films.decode import decode

#: What a kind does to a film: (H, W) uint8 and a generator -> (H', W') uint8.
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]
#: Most that is cropped from, or padded to, each edge, as a share of the side.
MOST = 0.1


def _resized(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from PIL import Image

    # From 128 pixels up; the sides may be scaled differently, as where a film was stretched to a square.
    sides = rng.integers(128, 513), rng.integers(128, 513)
    return np.asarray(Image.fromarray(film).resize((int(sides[0]), int(sides[1])), Image.Resampling.LANCZOS))


def _jpeg(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _through_file(film, "JPEG", quality=int(rng.integers(30, 61)))


def _cropped(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = film.shape
    top, bottom, left, right = rng.uniform(0, MOST, 4) * (height, height, width, width)
    return film[round(top) : height - round(bottom), round(left) : width - round(right)]


def _padded(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = film.shape
    top, bottom, left, right = (rng.uniform(0, MOST, 4) * (height, height, width, width)).round().astype(int)
    return np.pad(film, ((top, bottom), (left, right)), constant_values=int(rng.choice([0, 0, 255, 40])))


def _windowed(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    low, high = np.quantile(film, rng.uniform(0, 0.15)), np.quantile(film, rng.uniform(0.85, 1))
    return np.rint(np.clip((film - low) / max(high - low, 1), 0, 1) * 255).astype(np.uint8)


def _gamma(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.rint(255 * (film / 255) ** np.exp(rng.uniform(-0.7, 0.7))).astype(np.uint8)


def _annotated(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from PIL import Image, ImageDraw

    image = Image.fromarray(film)
    pen, (width, height) = ImageDraw.Draw(image), image.size
    for _ in range(rng.integers(1, 4)):
        x, y = rng.uniform(0.02, 0.7) * width, rng.uniform(0.02, 0.9) * height
        pen.text(
            (x, y), str(rng.choice(["AP SUPINE", "L", "R PORTABLE", "2020-03-14"])), fill=255, font_size=height / 14
        )
    for _ in range(rng.integers(0, 3)):
        x, y, dx, dy = rng.uniform(0.2, 0.8, 4) * (width, height, width, height)
        pen.line((x, y, dx, dy), fill=255, width=max(1, width // 90))
    x, y = rng.uniform(0.02, 0.85) * width, rng.uniform(0.02, 0.85) * height
    pen.rectangle((x, y, x + 0.1 * width, y + 0.1 * height), fill=int(rng.choice([0, 255])))
    return np.asarray(image)


def _deep_png(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _through_file(film.astype(np.uint16) * 14 + np.uint16(rng.integers(0, 400)), "PNG")


def _deep_dicom(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    white_is_zero = bool(rng.random() < 0.5)
    values = film.astype(np.uint16) * 13 + np.uint16(rng.integers(0, 700))
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        DigitalXRayImageStorageForPresentation,
        generate_uid(),
    )
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("film", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *film.shape, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PhotometricInterpretation = "MONOCHROME1" if white_is_zero else "MONOCHROME2"
    dataset.PixelData = (4095 - values if white_is_zero else values).tobytes()
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return decode(file.getvalue())


def _through_file(film: np.ndarray, format_: str, **options: int) -> np.ndarray:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(film).save(file, format_, **options)
    return decode(file.getvalue())


def _several(film: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Two to four kinds one after the other, in the order in which a publisher would; JPEG last."""
    chosen = set(rng.choice(len(_ORDER), int(rng.integers(2, 5)), replace=False).tolist())
    for place, kind in enumerate(_ORDER):
        if place in chosen:
            film = KINDS[kind](film, rng)
    return film


#: Every kind that issue and documentation promise to find.
KINDS: Mapping[str, Change] = {
    "resized": _resized,
    "JPEG 30 to 60": _jpeg,
    "cropped": _cropped,
    "padded": _padded,
    "mirrored": lambda film, rng: film[:, ::-1],
    "inverted": lambda film, rng: 255 - film,
    "windowed": _windowed,
    "gamma": _gamma,
    "annotated": _annotated,
    "16-bit PNG": _deep_png,
    "12-bit DICOM": _deep_dicom,
    "several at once": _several,
}
_ORDER = ("mirrored", "inverted", "windowed", "gamma", "cropped", "padded", "annotated", "resized", "JPEG 30 to 60")


def republish(film: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Change a film as another publisher would.

    Args:
        film: (H, W) uint8.
        kind: One of :data:`KINDS`.
        rng: How strongly, and where.

    Returns:
        (H', W') uint8.
    """
    return np.ascontiguousarray(KINDS[kind](film, rng))
