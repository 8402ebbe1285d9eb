"""The one door for pixels: a file or bytes in, an 8-bit greyscale film out, or an error that names the file.

Training, testing and prediction all come through here, so that nobody can train on one rendering of a film and predict
on another.
"""

from __future__ import annotations

import hashlib
import io
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vgg16_xray.errors import UnreadableFilm

if TYPE_CHECKING:
    from PIL.Image import Image
    from pydicom.dataset import Dataset

#: Side of the square that VGG16 was made for (Simonyan & Zisserman 2014, section 2.1), pixels.
SIZE = 224
#: A film of more pixels is refused from its header, before memory is taken. The largest digital detectors give
#: 4,280 x 3,520 = 15 megapixels; this leaves room for scanned films.
MAX_PIXELS = 100_000_000
#: A film whose shorter side is below this is a thumbnail, an icon or a damaged file, and nothing can be read from it.
MIN_SIDE = 32
#: A film whose longer side is more than so many times the shorter is none: whole spines are five times as long as wide.
#: Stretching one of 900,000 x 32 pixels to a square takes a second.
MAX_RATIO = 32
#: A larger file is refused unread: 100 megapixels of 16 bits take 200 MB uncompressed.
MAX_BYTES = 512 * 1024 * 1024
#: Formats that Pillow may try. Named, so that a file cannot choose an exotic decoder.
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")
#: DICOM's Deflated Explicit VR Little Endian, which is refused.
DEFLATED = b"1.2.840.10008.1.2.1.99"
#: DICOM's elements that hold pixels.
PIXEL_ELEMENTS = frozenset({"PixelData", "FloatPixelData", "DoubleFloatPixelData"})
#: File names that are taken for films when a folder is scanned; what is inside is decided by the content.
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".dcm", ".dicom"})


def decode(source: Path | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Decode one radiograph.

    PNG, JPEG, TIFF, BMP and WebP, 8 or 16 bit, grey, RGB(A), palette or CMYK, turned by its EXIF orientation; the first
    frame of several. Colour becomes luminance (ITU-R 601-2, as Pillow's mode ``L``); transparent parts become black.
    DICOM (told by its content) gets its modality and VOI transformations and is shown as MONOCHROME2.

    More than eight bits are scaled by the smallest usual depth (8, 10, 12, 14, 16 bits) that holds the largest
    value, so a 12-bit film in a 16-bit file is not black; 8 bits that were widened to 16 come back as they were. Floats
    and DICOM are scaled from their smallest to their largest value.

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
    check_film(film, where, max_pixels=max_pixels)
    return np.ascontiguousarray(film)


def check_film(film: np.ndarray, where: str, *, max_pixels: int = MAX_PIXELS) -> None:
    """What holds of every decoded film, by whichever door it came: its size, and that it shows something.

    Args:
        film: (H, W) uint8.
        where: What to call it in an error.
        max_pixels: Limit on height times width.

    Raises:
        UnreadableFilm: It breaks a rule.
    """
    _check_size(film.shape[1], film.shape[0], where, max_pixels)
    if film.min() == film.max():
        raise UnreadableFilm(f"{where}: must show something, found every pixel equal to {film.flat[0]}")


def pixels_in(data: bytes) -> int:
    """How many pixels the header of a film's file promises; 0 where it cannot be read, which :func:`decode` will say.

    Nothing is decoded, so that many films can be counted before memory is taken for one.
    """
    import pydicom
    from PIL import Image

    try:
        with without_warnings():
            if not _is_dicom(data):
                with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                    return image.width * image.height
            if DEFLATED in data[132:1024]:
                return 0
            tags: list[Any] = ["Rows", "Columns"]
            header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=tags)
            return int(header.Rows) * int(header.Columns)
    except Exception:  # as in decode: damaged files make decoders raise nearly anything
        return 0


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
        found = path.stat()
        # A folder, a pipe or a device would block or fail in odd ways; /dev/zero would never end.
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a device or pipe"
            raise UnreadableFilm(f"{where}: must be a file, found {kind}")
        if found.st_size > MAX_BYTES:
            raise UnreadableFilm(f"{where}: must have at most {MAX_BYTES:,} bytes, found {found.st_size:,}")
        # What the system makes up as it is read (/proc/kmsg) has no size, and may have no end.
        return path.read_bytes() if found.st_size else b""
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnreadableFilm(f"{where}: must be a file, found none") from error
    except OSError as error:
        raise UnreadableFilm(f"{where}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:  # Python gives no name with a null byte in it to the system.
        raise UnreadableFilm(f"{where}: must be a file, found a name that none can have ({error})") from error


def _check_size(width: int, height: int, where: str, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise UnreadableFilm(f"{where}: must have at most {max_pixels:,} pixels, found {width} x {height}")
    if min(width, height) < MIN_SIDE:
        raise UnreadableFilm(f"{where}: must have at least {MIN_SIDE} pixels a side, found {width} x {height}")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise UnreadableFilm(f"{where}: must be at most {MAX_RATIO} times as long as wide, found {width} x {height}")


def _decode_picture(data: bytes, where: str, max_pixels: int) -> np.ndarray:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        # Pillow warns of large images; the limit here refuses them by name instead.
        with without_warnings(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(*image.size, where, max_pixels)
            image.load()
            film = _to_grey(ImageOps.exif_transpose(image), where)
            return 255 - film if _is_16_bit_white_is_zero(image) else film
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
        raise UnreadableFilm(f"{where}: damaged image ({_in_words(error)})") from error


#: What only a programmer understands in the message of a library.
_INSIDES = re.compile(r"object at 0x|NoneType|object has no|object is not|positional argument")


def _in_words(error: Exception) -> str:
    """What a decoder found, for people."""
    text = " ".join(str(error).split())
    if "by all available plugins" in text:  # pydicom; one complaint for each plugin follows
        return "its compressed pixels cannot be decoded"
    if not text or isinstance(error, (TypeError, LookupError, AssertionError)) or _INSIDES.search(text):
        return "what it holds does not fit together"
    return text[:200]


_warnings_lock = threading.Lock()
_warnings_off: list[warnings.catch_warnings] = []
_silent_threads = 0


@contextmanager
def without_warnings() -> Iterator[None]:
    """``warnings.catch_warnings`` for several threads at once: the first in saves the filters, the last out restores.

    The filters belong to the process. Threads that each saved and restored them, overlapping, would leave warnings off
    for good.
    """
    global _silent_threads  # noqa: PLW0603 (counts what is global: the process's warning filters)
    with _warnings_lock:
        if not _silent_threads:
            _warnings_off.append(warnings.catch_warnings(action="ignore"))
            _warnings_off[0].__enter__()
        _silent_threads += 1
    try:
        yield
    finally:
        with _warnings_lock:
            _silent_threads -= 1
            if not _silent_threads:
                _warnings_off.pop().__exit__(None, None, None)


def _is_16_bit_white_is_zero(image: Image) -> bool:
    # TIFF 6.0, section 8: PhotometricInterpretation 0, WhiteIsZero. Pillow turns 1 to 8 bits over, deeper ones not.
    deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
    return deep and getattr(image, "tag_v2", {}).get(262) == 0


def _looks_like(data: bytes) -> str:
    if data.startswith(b"%PDF"):
        return "a PDF"
    if data.startswith(b"PK\x03\x04"):
        return "a zip archive"
    if data.startswith(b"GIF8"):
        return "a GIF"
    if data.startswith((b"\x89PNG", b"\xff\xd8\xff", b"II*\x00", b"MM\x00*", b"BM", b"RIFF")):
        return "the beginning of one and no more that makes sense"
    if b"\x00" not in data[:1024]:
        return "text"
    return "other data"


def _to_grey(image: Image, where: str) -> np.ndarray:
    if image.mode == "I" or image.mode.startswith("I;16"):
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
    values = np.clip(values, 0, None)
    largest = int(values.max())
    if largest >= 2**16:
        return np.rint(values * (255.0 / (2 ** largest.bit_length() - 1))).astype(np.uint8)
    # 8 bits widened to 16 are multiples of 257 = 65535 / 255, even where the film is dark.
    widened = not (values % 257).any()
    depth = 16 if widened else next(bits for bits in (8, 10, 12, 14, 16) if largest < 2**bits)
    full = 2**depth - 1
    # In place and no wider than needed: many films are decoded at once, and one may have 100 megapixels.
    scaled: np.ndarray = values.astype(np.uint32)
    scaled *= 255
    scaled += full // 2
    scaled //= full
    return scaled.astype(np.uint8)


def _scale_to_range(values: np.ndarray, where: str) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    # NaN and infinity show in the extremes; so does a range that float64 does not hold.
    if not np.isfinite(high - low):
        raise UnreadableFilm(f"{where}: must have finite pixels, found NaN or infinity")
    values = values.astype(np.float64)
    values -= low
    values *= 255.0 / (high - low) if high > low else 0.0
    scaled: np.ndarray = np.rint(values, out=values).astype(np.uint8)
    return scaled


def _is_dicom(data: bytes) -> bool:
    # DICOM PS3.10, section 7.1: 128 bytes of preamble, then the prefix "DICM".
    return data[128:132] == b"DICM"


def _decode_dicom(data: bytes, where: str, max_pixels: int) -> np.ndarray:
    import pydicom
    from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

    # PS3.5, section A.5. The file meta information, never deflated, comes first; pydicom would inflate all the rest at
    # once, a thousandfold if a file is made for it.
    if DEFLATED in data[132:1024]:
        raise UnreadableFilm(f"{where}: must be DICOM that is not deflated, found transfer syntax {DEFLATED.decode()}")
    try:
        with without_warnings():
            dataset = pydicom.dcmread(io.BytesIO(data))
            _check_dicom(dataset, where, max_pixels)
            values = dataset.pixel_array
            if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
                values = apply_color_lut(values, dataset)
                values = values if values.dtype == np.uint8 else (values >> 8).astype(np.uint8)
            if values.ndim == 3:
                return _luminance(values, where)
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
        raise UnreadableFilm(f"{where}: damaged DICOM ({_in_words(error)})") from error


def _check_dicom(dataset: Dataset, where: str, max_pixels: int) -> None:
    if "Rows" not in dataset or "Columns" not in dataset or not any(name in dataset for name in PIXEL_ELEMENTS):
        raise UnreadableFilm(f"{where}: must hold pixels, found a DICOM object without an image")
    if not any(len(dataset.get(name) or b"") for name in PIXEL_ELEMENTS):
        raise UnreadableFilm(f"{where}: must hold pixels, found an empty element for them")
    _check_size(int(dataset.Columns), int(dataset.Rows), where, max_pixels)
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UnreadableFilm(f"{where}: must be a single radiograph, found a DICOM object of {frames} frames")


def _luminance(values: np.ndarray, where: str) -> np.ndarray:
    """Grey of (H, W, 3) RGB; pydicom has turned YBR into RGB already."""
    from PIL import Image

    if values.shape[-1] != 3 or values.dtype != np.uint8:
        raise UnreadableFilm(f"{where}: must be grey or 8-bit RGB, found {values.dtype} of shape {values.shape}")
    return np.asarray(Image.fromarray(values).convert("L"))
