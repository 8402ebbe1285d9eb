import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import convert_color_space
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from vgg16_xray.errors import UnreadableFilm
from vgg16_xray.films.decode import decode, pixels_sha256, to_square
from vgg16_xray.films.phantom import draw

FILM = draw("COVID", size=64).pixels[:, :48].copy()
DARK = (FILM // 5).astype(np.uint8)


def saved(image: Image.Image | np.ndarray, form: str, **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, form, **options)
    return file.getvalue()


def dicom(values: np.ndarray, *, syntax=ExplicitVRLittleEndian, pixels: bytes | None = None, **elements) -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel = 3 if values.ndim == 3 else 1
    if values.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = values.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    dataset.PixelData = values.tobytes() if pixels is None else pixels
    for name, value in elements.items():
        setattr(dataset, name, value)
    return whole(dataset)


def whole(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def compressed(data: bytes, syntax, **options) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(data))
    dataset.compress(syntax, **options)
    return whole(dataset)


def stretched(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return np.rint((values.astype(float) - low) * 255 / (high - low)).astype(np.uint8)


def reason(source: bytes | Path, **options) -> str:
    with pytest.raises(UnreadableFilm) as caught:
        decode(source, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)


# ----------------------------------------------------------------------------------------------------------- pictures


GREY = Image.fromarray(FILM)
PALETTE = GREY.convert("P")
WITH_ALPHA = np.dstack([FILM, np.full_like(FILM, 255)])


@pytest.mark.parametrize(
    "data",
    [
        saved(GREY, "PNG"),
        saved(GREY.convert("RGB"), "PNG"),
        saved(Image.fromarray(WITH_ALPHA, "LA"), "PNG"),
        saved(GREY.convert("RGBA"), "PNG"),
        saved(PALETTE, "PNG"),
        saved(GREY, "BMP"),
        saved(GREY.convert("RGB"), "WEBP", lossless=True),
        saved(GREY, "TIFF"),
        saved(GREY, "TIFF", compression="tiff_lzw"),
        saved(PALETTE, "TIFF"),
        saved(FILM.astype(np.uint16) * 257, "PNG"),
        saved(FILM.astype(np.uint16) * 257, "TIFF"),
        saved(FILM.astype(np.uint16), "PNG"),
    ],
    ids=["L", "RGB", "LA", "RGBA", "P", "BMP", "WebP", "TIFF", "LZW", "P-TIFF", "16-PNG", "16-TIFF", "8-in-16"],
)
def test_a_film_is_the_same_in_every_lossless_format(data):
    same(decode(data), FILM)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_a_dark_film_widened_to_16_bits_stays_as_dark(form):
    same(decode(saved(DARK.astype(np.uint16) * 257, form)), decode(saved(DARK, form)))


def big_endian_tiff(values: np.ndarray, *, white_is_zero: bool = False) -> bytes:
    entries = [
        (256, 4, values.shape[1]),
        (257, 4, values.shape[0]),
        (258, 3, values.dtype.itemsize * 8),
        (259, 3, 1),
        (262, 3, 0 if white_is_zero else 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, values.shape[0]),
        (279, 4, values.nbytes),
    ]
    body = values.astype(values.dtype.newbyteorder(">")).tobytes()
    table = b"".join(
        struct.pack(">HHI", tag, kind, 1) + (struct.pack(">HH", value, 0) if kind == 3 else struct.pack(">I", value))
        for tag, kind, value in entries
    )
    return b"MM\0*" + struct.pack(">I", 8 + len(body)) + body + struct.pack(">H", len(entries)) + table + b"\0" * 4


def test_big_endian_16_bit_tiff():
    same(decode(big_endian_tiff(FILM.astype(np.uint16) * 257)), FILM)


@pytest.mark.parametrize(
    "data",
    [
        big_endian_tiff(FILM, white_is_zero=True),
        # TIFF 6.0, section 8: PhotometricInterpretation 0.
        saved(FILM.astype(np.uint16) * 257, "TIFF", tiffinfo={262: 0}),
        saved(FILM.astype(np.float32), "TIFF", tiffinfo={262: 0}),
    ],
    ids=["8", "16", "float"],
)
def test_white_is_zero_is_turned_over(data):
    assert Image.open(io.BytesIO(data)).tag_v2[262] == 0
    shown = stretched(FILM) if Image.open(io.BytesIO(data)).mode == "F" else FILM
    same(decode(data), 255 - shown)


def test_12_bits_in_16_are_not_black():
    twelve = (FILM.astype(np.uint16) << 4) | (FILM >> 4)
    same(decode(saved(twelve, "PNG")), FILM)


def test_32_bit_tiff_is_read_by_its_depth():
    same(decode(saved(FILM.astype(np.int32), "TIFF")), FILM)
    deep = decode(saved(FILM.astype(np.int32) * (2**31 // 256), "TIFF"))
    assert np.abs(deep.astype(int) - FILM).max() <= 1


def test_negative_pixels_are_black():
    values = FILM.astype(np.int32)
    values[0, 0] = -5
    expected = FILM.copy()
    expected[0, 0] = 0
    same(decode(saved(values, "TIFF")), expected)


def test_float_tiff_is_stretched_from_its_smallest_to_its_largest_value():
    same(decode(saved((FILM / np.float32(1000)).astype(np.float32), "TIFF")), stretched(FILM))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_float_that_is_not_finite_is_refused(value):
    values = FILM.astype(np.float32)
    values[3, 3] = value
    assert "finite" in reason(saved(values, "TIFF"))


def test_one_bit_is_black_and_white():
    found = decode(saved(GREY.convert("1"), "PNG"))
    assert set(np.unique(found)) == {0, 255}


def test_colour_becomes_luminance():
    colour = np.zeros((40, 40, 3), np.uint8)
    colour[:20], colour[20:] = (255, 0, 0), (0, 255, 0)
    found = decode(saved(colour, "PNG"))
    # ITU-R 601-2: 0.299 red, 0.587 green.
    assert (found[0, 0], found[-1, 0]) == (76, 150)


def test_transparent_parts_are_black():
    half = WITH_ALPHA.copy()
    half[:32, :, 1] = 0
    expected = FILM.copy()
    expected[:32] = 0
    same(decode(saved(Image.fromarray(half, "LA"), "PNG")), expected)
    rgba = np.dstack([FILM, FILM, FILM, half[..., 1]])
    same(decode(saved(rgba, "PNG")), expected)
    same(decode(saved(rgba, "WEBP", lossless=True)), expected)


def test_transparency_of_a_palette_or_a_colour_is_black():
    levels = (FILM // 64 * 64).astype(np.uint8)
    expected = np.where(levels == 128, 0, levels)
    same(decode(saved(Image.fromarray(levels), "PNG", transparency=128)), expected)
    same(decode(saved(Image.fromarray(levels).convert("RGB"), "PNG", transparency=(128, 128, 128))), expected)
    palette = Image.fromarray(levels // 64).convert("L")
    palette = Image.frombytes("P", palette.size, palette.tobytes())
    palette.putpalette([level for grey in (0, 64, 128, 192) for level in (grey,) * 3])
    same(decode(saved(palette, "PNG", transparency=2)), expected)


def test_jpeg_in_grey_colour_and_cmyk():
    grey = decode(saved(GREY, "JPEG", quality=95))
    for other in (GREY.convert("RGB"), GREY.convert("CMYK")):
        assert np.abs(decode(saved(other, "JPEG", quality=95)).astype(int) - grey).mean() < 2


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_film(form, orientation):
    picture = Image.new("L", (60, 40))
    ImageDraw.Draw(picture).rectangle((0, 0, 20, 10), fill=255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(saved(picture.convert("RGB"), form, exif=exif, **({"lossless": True} if form == "WEBP" else {})))
    upright = np.asarray(picture)
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, -1),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright),
    }[orientation]
    assert found.shape == turned.shape
    assert ((found > 127) == (turned > 127)).mean() > 0.99


@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_the_first_of_several_frames_counts(form):
    second = Image.fromarray(255 - FILM)
    options = {"lossless": True} if form == "WEBP" else {}
    same(decode(saved(GREY, form, save_all=True, append_images=[second], **options)), FILM)


# -------------------------------------------------------------------------------------------------------------- DICOM


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_dicom_of_every_depth(bits):
    values = FILM.astype(np.uint16) << (bits - 8) if bits > 8 else FILM
    same(decode(dicom(values, BitsStored=bits, HighBit=bits - 1)), stretched(values))


def test_monochrome1_is_turned_over():
    same(decode(dicom(FILM, PhotometricInterpretation="MONOCHROME1")), 255 - stretched(FILM))


def test_a_window_is_applied_after_the_slope():
    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    window = {"RescaleSlope": "2", "RescaleIntercept": "-1000", "WindowCenter": "3000", "WindowWidth": "2000"}
    found = decode(dicom(values, BitsStored=12, HighBit=11, **window))
    shown = values.astype(int) * 2 - 1000
    assert (found[shown <= 2000] == 0).all()
    assert (found[shown >= 4000] == 255).all()
    assert 120 < found[shown == 3000].item() < 135


def test_signed_dicom():
    values = FILM.astype(np.int16) - 128
    same(decode(dicom(values)), stretched(FILM))


def test_colour_dicom_is_turned_into_grey_once():
    colour = np.dstack([np.roll(FILM, shift, axis=0) for shift in (0, 9, 23)])
    expected = decode(saved(colour, "PNG"))
    same(decode(dicom(colour)), expected)
    ybr = convert_color_space(colour, "RGB", "YBR_FULL")
    assert np.abs(decode(dicom(ybr, PhotometricInterpretation="YBR_FULL")).astype(int) - expected).max() <= 2


def test_palette_dicom_shows_its_colours():
    colours = np.arange(255, -1, -1, dtype=np.uint16) * 257
    tables = {f"{name}PaletteColorLookupTableData": colours.tobytes() for name in ("Red", "Green", "Blue")}
    layout = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 16] for name in ("Red", "Green", "Blue")}
    same(decode(dicom(FILM, PhotometricInterpretation="PALETTE COLOR", **tables, **layout)), 255 - FILM)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_dicom(syntax):
    pytest.importorskip("openjpeg" if syntax == JPEG2000Lossless else "pydicom")
    values = FILM.astype(np.uint16) << 4
    same(decode(compressed(dicom(values), syntax)), stretched(values))


def test_compressed_dicom_without_a_decoder_names_what_to_install():
    # A fresh process in which the decoders cannot be imported, as in an installation without the extra.
    encoded = compressed(dicom(FILM), RLELossless)
    lossless = pydicom.dcmread(io.BytesIO(encoded))
    lossless.file_meta.TransferSyntaxUID = JPEGLSLossless
    code = (
        "import sys\n"
        "for name in ('pylibjpeg', 'openjpeg', 'libjpeg', 'rle', 'jpeg_ls', 'gdcm'): sys.modules[name] = None\n"
        "from vgg16_xray.films.decode import decode\n"
        "from vgg16_xray.errors import UnreadableFilm\n"
        "try: decode(sys.stdin.buffer.read(), name='scan.dcm')\n"
        "except UnreadableFilm as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], input=whole(lossless), capture_output=True, check=True)
    text = done.stdout.decode()
    assert text.startswith("scan.dcm: compressed DICOM needs a decoder that is not installed")
    assert 'pip install "kbs-vgg16-xray[dicom]"' in text


def test_dicom_without_pixels():
    dataset = pydicom.dcmread(io.BytesIO(dicom(FILM)))
    del dataset.PixelData
    assert "found a DICOM object without an image" in reason(whole(dataset))
    del dataset.Rows
    assert "found a DICOM object without an image" in reason(whole(dataset))


def test_dicom_of_several_frames_or_cut_off_is_refused():
    assert "2 frames" in reason(dicom(np.vstack([FILM, FILM]), Rows=FILM.shape[0], NumberOfFrames=2))
    data = dicom(FILM)
    for length in (132, 140, 300, len(data) // 2, len(data) - 1):
        assert reason(data[:length], name="a.dcm").startswith("a.dcm: ")


def test_deflated_dicom_is_refused_before_it_is_inflated():
    assert "deflated" in reason(dicom(FILM, syntax=DeflatedExplicitVRLittleEndian))


# ------------------------------------------------------------------------------------------------- what cannot be read


def png_of(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(10_000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def huge_tiff() -> bytes:
    data = bytearray(big_endian_tiff(np.ones((40, 40), np.uint8)))
    at = data.rindex(struct.pack(">HHII", 256, 4, 1, 40))
    data[at + 8 : at + 12] = data[at + 20 : at + 24] = struct.pack(">I", 100_000)
    return bytes(data)


@pytest.mark.parametrize(
    "bomb",
    [
        png_of(100_000, 100_000),
        png_of(12_000, 9_000),
        huge_tiff(),
        dicom(FILM, Rows=60_000, Columns=60_000),
    ],
    ids=["png", "png-below-Pillow's-limit", "tiff", "dicom"],
)
def test_a_bomb_is_refused_from_its_header(bomb):
    import tracemalloc

    tracemalloc.start()
    try:
        assert "must have at most 100,000,000 pixels" in reason(bomb)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_the_limit_of_pixels_can_be_set():
    assert "at most 1,000 pixels, found 48 x 64" in reason(saved(GREY, "PNG"), max_pixels=1000)


PNG, JPEG = saved(GREY, "PNG"), saved(GREY, "JPEG")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"", "an empty file"),
        (b"This is text, whatever the name says.\n", "found text"),
        (b"%PDF-1.7\n%\xe2\xe3\n", "a PDF"),
        (b"PK\x03\x04" + bytes(60), "a zip archive"),
        (saved(GREY, "GIF"), "a GIF"),
        (bytes(range(256)) * 4, "other data"),
        (PNG[: len(PNG) // 2], "damaged image"),
        (PNG[:40], "found the beginning of one"),
        (JPEG[: len(JPEG) // 2], "damaged image"),
        (saved(FILM[:3, :3], "PNG"), "at least 32 pixels a side, found 3 x 3"),
        (saved(FILM[:, :31], "PNG"), "found 31 x 64"),
        (saved(np.full((64, 64), 7, np.uint8), "PNG"), "every pixel equal to 7"),
        (saved(np.full((64, 64), 7, np.float32), "TIFF"), "every pixel equal"),
        (dicom(np.full((64, 64), 7, np.uint16)), "every pixel equal"),
    ],
)
def test_what_is_no_film_is_named_in_one_line(tmp_path, data, found):
    file = tmp_path / "film.png"
    file.write_bytes(data)
    text = reason(file)
    assert text.startswith(f"{file}: ")
    assert found in text


def test_what_is_no_file_is_named(tmp_path):
    assert reason(tmp_path) == f"{tmp_path}: must be a file, found a folder"
    assert reason(tmp_path / "a.png") == f"{tmp_path / 'a.png'}: must be a file, found none"
    assert reason(Path("/dev/zero")) == "/dev/zero: must be a file, found a device or pipe"
    os.mkfifo(tmp_path / "pipe.png")
    assert "a device or pipe" in reason(tmp_path / "pipe.png")


def test_a_file_that_is_too_large_is_refused_unread(tmp_path):
    with (tmp_path / "film.png").open("wb") as file:
        file.truncate(2**40)
    assert "must have at most 536,870,912 bytes" in reason(tmp_path / "film.png")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="has no /proc")
def test_what_the_system_makes_up_is_not_read():
    assert "found an empty file" in reason(Path("/proc/self/status"))


def test_a_broken_dicom_is_told_in_words():
    pixels = np.full((64, 64), 7, np.uint16)
    assert "must hold pixels, found an empty" in reason(dicom(pixels, pixels=b""))
    data = pydicom.dcmread(io.BytesIO(dicom(pixels)))
    data.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    data.PixelData = pydicom.encaps.encapsulate([b"no JPEG 2000"])
    data["PixelData"].VR = "OB"
    data.save_as(file := io.BytesIO())
    assert reason(file.getvalue()).endswith("damaged DICOM (its compressed pixels cannot be decoded)")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    (tmp_path / "film.png").write_bytes(PNG)
    (tmp_path / "film.png").chmod(0)
    assert "cannot be read (Permission denied)" in reason(tmp_path / "film.png")


def test_a_name_with_a_line_break_makes_one_line(tmp_path):
    file = tmp_path / "a\nb.png"
    file.write_bytes(b"text")
    assert "a b.png: must be PNG" in reason(file)
    file.write_bytes(PNG)
    same(decode(file), FILM)


VALID = [
    PNG,
    JPEG,
    saved(GREY.convert("RGB"), "WEBP"),
    saved(FILM.astype(np.uint16) * 257, "TIFF", compression="tiff_lzw"),
    saved(GREY, "BMP"),
    saved(PALETTE, "PNG"),
    dicom(FILM.astype(np.uint16), WindowCenter="100", WindowWidth="100", RescaleSlope="2", RescaleIntercept="1"),
    compressed(dicom(FILM), RLELossless),
]


@given(data=st.binary(max_size=400), magic=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"II*\0", bytes(128) + b"DICM"]))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_bytes_raise_nothing_but_unreadable_film(data, magic):
    reason(magic + data)


@given(
    valid=st.sampled_from(VALID),
    changes=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6),
    near_the_start=st.booleans(),
    cut=st.floats(0.5, 1),
)
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_mutated_films_raise_nothing_but_unreadable_film(valid, changes, near_the_start, cut):
    data = bytearray(valid)
    for at, value in changes:
        data[at % min(len(data), 700 if near_the_start else len(data))] = value
    try:
        found = decode(bytes(data[: round(len(data) * cut)]), max_pixels=10**6)
    except UnreadableFilm as error:
        assert "\n" not in str(error)
    else:
        assert found.dtype == np.uint8
        assert found.ndim == 2


# ------------------------------------------------------------------------------------------------------ side by side


def test_threads_that_decode_leave_the_warnings_as_they_were():
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        films = list(pool.map(lambda _: decode(PNG), range(200)))
    assert all((film == FILM).all() for film in films)
    assert list(warnings.filters) == before


def test_decoding_warns_of_nothing():
    data = dicom(FILM, PatientBirthDate="20000101").replace(b"20000101", b"not date")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decode(data)
        reason(png_of(12_000, 9_000))


# ------------------------------------------------------------------------------------------------ square, and its hash


def test_to_square_stretches_and_leaves_what_is_square():
    square = to_square(FILM, 224)
    assert square.shape == (224, 224)
    assert square.dtype == np.uint8
    assert abs(float(square.mean()) - float(FILM.mean())) < 1
    assert to_square(square, 224) is square


def test_to_square_is_antialiased():
    stripes = np.zeros((400, 400), np.uint8)
    stripes[:, ::2] = 255
    small = to_square(stripes, 40)
    assert np.abs(small.astype(int) - 127).max() < 20


def test_the_hash_tells_pixels_and_shape():
    assert pixels_sha256(FILM) == pixels_sha256(np.asfortranarray(FILM))
    assert pixels_sha256(FILM) != pixels_sha256(FILM.reshape(48, 64))
    other = FILM.copy()
    other[0, 0] ^= 1
    assert pixels_sha256(FILM) != pixels_sha256(other)
