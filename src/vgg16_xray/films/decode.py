"""The one door for pixels: a file or bytes in, an 8-bit greyscale film out, or an error that names the file.

Training, testing and prediction all come through here, so that nobody can train on one rendering of a film and predict
on another.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vgg16_xray.errors import UnreadableFilm

if TYPE_CHECKING:
    from PIL.Image import Image

#: Side of the square that VGG16 was made for (Simonyan & Zisserman 2014, section 2.1), pixels.
SIZE = 224
#: A film of more pixels is refused from its header, before memory is taken. The largest digital detectors give
#: 4,280 x 3,520 = 15 megapixels; this leaves room for scanned films.
MAX_PIXELS = 100_000_000
#: A film whose shorter side is below this is a thumbnail, an icon or a damaged file, and nothing can be read from it.
MIN_SIDE = 32
#: A larger file is refused unread: 100 megapixels of 16 bits take 200 MB uncompressed.
MAX_BYTES = 512 * 1024 * 1024
#: Formats that Pillow may try. Named, so that a file cannot choose an exotic decoder.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
#: File names that are taken for films when a folder is scanned; what is inside is decided by the content.
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".dicom"})


def decode(source: Path | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode one radiograph.

    PNG, JPEG, TIFF, BMP and WebP, 8 or 16 bit, grey, RGB(A), palette or CMYK, turned by its EXIF orientation; the first
    frame of several. Colour becomes luminance (ITU-R 601-2, as Pillow's mode ``L``); transparent parts become black.
    DICOM (told by its content) gets its modality and VOI transformations and is shown as MONOCHROME2.

    More than eight bits are scaled by the smallest usual depth (8, 10, 12, 14, 16 bits) that holds the largest
    value: a 12-bit film in a 16-bit file is not black, and a dark film stays dark.

    Args:
        source: A file, or the bytes of one.
        name: What to call the film in an error; the path by default.
        max_pixels: Limit on height times width, checked before anything is decoded.

    Returns:
        (H, W) uint8, 0 black to 255 white.

    Raises:
        UnreadableFilm: The file is missing, empty, not an image, damaged, too small or too large.
    """
    where = name or (str(source) if isinstance(source, Path) else "image")
    data = _read(source, where) if isinstance(source, Path) else source
    if not data:
        raise UnreadableFilm(f"{where}: must be an image, found an empty file")
    film = _decode_dicom(data, where, max_pixels) if _is_dicom(data) else _decode_picture(data, where, max_pixels)
    _check_size(film.shape[1], film.shape[0], where, max_pixels)
    if film.min() == film.max():
        raise UnreadableFilm(f"{where}: must show something, found every pixel equal to {film.flat[0]}")
    return np.ascontiguousarray(film)


def to_square(film: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Stretch a film to a square, antialiased.

    Stretched and not padded: padding would write the film's aspect ratio, which differs by hospital, into its border.

    Args:
        film: (H, W) uint8.
        size: Side of the square, pixels.

    Returns:
        (size, size) uint8. A film that has this size already is returned as it is.
    """
    from PIL import Image

    if film.shape == (size, size):
        return film
    return np.asarray(Image.fromarray(film).resize((size, size), Image.Resampling.BILINEAR))


def pixels_sha256(film: np.ndarray) -> str:
    """SHA-256 of the decoded pixels and their shape: equal for two files that show exactly the same film."""
    digest = hashlib.sha256(f"{film.shape[0]}x{film.shape[1]}:".encode())
    digest.update(np.ascontiguousarray(film).data)
    return digest.hexdigest()


def _read(path: Path, where: str) -> bytes:
    try:
        # A folder, a pipe or a device would block or fail in odd ways; /dev/zero would never end.
        if not path.is_file():
            raise UnreadableFilm(f"{where}: must be a file, found {'a folder' if path.is_dir() else 'none'}")
        if (size := path.stat().st_size) > MAX_BYTES:
            raise UnreadableFilm(f"{where}: must have at most {MAX_BYTES:,} bytes, found {size:,}")
        return path.read_bytes()
    except OSError as error:
        raise UnreadableFilm(f"{where}: cannot be read ({error.strerror or error})") from error


def _check_size(width: int, height: int, where: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UnreadableFilm(f"{where}: must have at most {max_pixels:,} pixels, found {width} x {height}")
    if min(width, height) < MIN_SIDE:
        raise UnreadableFilm(f"{where}: must have at least {MIN_SIDE} pixels a side, found {width} x {height}")


def _decode_picture(data: bytes, where: str, max_pixels: int) -> np.ndarray:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Pillow warns of large images; the limit here refuses them by name instead.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(*image.size, where, max_pixels)
                image.load()
                return _to_grey(ImageOps.exif_transpose(image), where)
    except UnreadableFilm:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableFilm(
            f"{where}: must be PNG, JPEG, TIFF, BMP, WebP or DICOM, found {_looks_like(data)}"
        ) from error
    except Image.DecompressionBombError as error:
        raise UnreadableFilm(f"{where}: must have at most {max_pixels:,} pixels, found more") from error
    except Exception as error:
        # Damaged files make Pillow's decoders raise nearly anything (OSError, SyntaxError, struct.error, zlib.error,
        # ValueError, IndexError, ...); for the user it is one thing.
        raise UnreadableFilm(f"{where}: damaged image ({error})") from error


def _looks_like(data: bytes) -> str:
    if data.startswith(b"%PDF"):
        return "a PDF"
    if data.startswith(b"PK\x03\x04"):
        return "a zip archive"
    if data.startswith(b"GIF8"):
        return "a GIF"
    if b"\x00" not in data[:1024]:
        return "text"
    return "other data"


def _to_grey(image: Image, where: str) -> np.ndarray:
    if image.mode.startswith("I;16"):
        return _scale_by_depth(np.asarray(image.convert("I")))
    if image.mode == "I":
        return _scale_by_depth(np.asarray(image))
    if image.mode == "F":
        return _scale_to_range(np.asarray(image), where)
    if image.mode in ("P", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode in ("LA", "La", "RGBA", "RGBa"):
        from PIL import Image as images

        image = image.convert("RGBA")
        image = images.alpha_composite(images.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    if image.mode not in ("L", "RGB"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    return np.asarray(image.convert("L"))


def _scale_by_depth(values: np.ndarray) -> np.ndarray:
    values = np.clip(values.astype(np.int64), 0, None)
    largest = int(values.max())
    depth = next((bits for bits in (8, 10, 12, 14, 16) if largest < 2**bits), largest.bit_length())
    full = 2**depth - 1
    return ((values * 255 + full // 2) // full).astype(np.uint8)


def _scale_to_range(values: np.ndarray, where: str) -> np.ndarray:
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise UnreadableFilm(f"{where}: must have finite pixels, found NaN or infinity")
    low, high = values.min(), values.max()
    scaled: np.ndarray = np.rint((values - low) * (255.0 / (high - low) if high > low else 0.0)).astype(np.uint8)
    return scaled


def _is_dicom(data: bytes) -> bool:
    # DICOM PS3.10, section 7.1: 128 bytes of preamble, then the prefix "DICM".
    return data[128:132] == b"DICM"


def _decode_dicom(data: bytes, where: str, max_pixels: int) -> np.ndarray:
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(io.BytesIO(data))
            if "Rows" not in dataset or "Columns" not in dataset:
                raise UnreadableFilm(f"{where}: must hold pixels, found a DICOM object without an image")
            _check_size(int(dataset.Columns), int(dataset.Rows), where, max_pixels)
            frames = int(dataset.get("NumberOfFrames") or 1)
            if frames != 1:
                raise UnreadableFilm(f"{where}: must be a single radiograph, found a DICOM object of {frames} frames")
            values = dataset.pixel_array
            if values.ndim == 3:
                return _dicom_colour(values, dataset, where)
            values = apply_voi_lut(apply_modality_lut(values, dataset), dataset)
            film = _scale_to_range(np.asarray(values), where)
            return 255 - film if dataset.get("PhotometricInterpretation") == "MONOCHROME1" else film
    except UnreadableFilm:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        if "missing dependencies" in text or "required dependencies" in text:
            raise UnreadableFilm(
                f"{where}: compressed DICOM needs a decoder that is not installed",
                hint='install it with: pip install "kbs-vgg16-xray[dicom]"',
            ) from error
        raise UnreadableFilm(f"{where}: damaged DICOM ({text[:200]})") from error


def _dicom_colour(values: np.ndarray, dataset: Any, where: str) -> np.ndarray:
    from PIL import Image
    from pydicom.pixels import convert_color_space

    photometric = str(dataset.get("PhotometricInterpretation", "RGB"))
    if values.shape[-1] != 3 or values.dtype != np.uint8:
        raise UnreadableFilm(f"{where}: must be grey or 8-bit RGB, found {values.dtype} of shape {values.shape}")
    if photometric.startswith("YBR"):
        values = convert_color_space(values, photometric, "RGB")
    return np.asarray(Image.fromarray(values).convert("L"))
