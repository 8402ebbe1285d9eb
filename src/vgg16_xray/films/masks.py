"""Films on which somebody drew what is to be seen: where their masks lie, and what a mask says.

A folder of such films has one of three forms. ``DATA/metadata.csv`` with columns ``image`` and ``mask``: the mask's
pixels are sums of flags (:data:`FLAGS`). The same table with a column ``opacities``, ``lungs`` or both in place of
``mask``: a file a structure, drawn is what is not 0. No table: ``DATA/images/*`` beside ``DATA/opacities/*`` and, where
there are any, ``DATA/lungs/*``, joined by the files' names without their suffix. A column ``patient_id`` keeps a
patient's films together in intervals. A mask has its film's size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from vgg16_xray.errors import UnreadableFilm, UserError
from vgg16_xray.films.dataset import METADATA, may_be_film
from vgg16_xray.films.decode import decode
from vgg16_xray.films.tables import read_csv

OPACITIES, LUNGS = STRUCTURES = ("opacities", "lungs")
#: What a mask of several structures says in which bit, as the COVID-19 Chest X-ray Segmentations Dataset does it:
#: ground-glass opacity and consolidation; right and left lung.
FLAGS: Mapping[str, tuple[int, ...]] = MappingProxyType({OPACITIES: (16, 32), LUNGS: (1, 2)})
FILMS_FOLDER = "images"


@dataclass(frozen=True)
class MaskedFilm:
    """A film, and the files that say what is drawn on it."""

    #: As the table or the folder names it.
    name: str
    file: Path
    #: The patient, empty where unknown.
    patient_id: str
    #: A mask of flags, or None.
    mask: Path | None
    #: Structure -> a mask of its own.
    masks: Mapping[str, Path]


@dataclass(frozen=True)
class Drawn:
    """A film and what is drawn on it."""

    #: (H, W) uint8.
    film: np.ndarray
    #: Structure -> (H, W) bool; a structure that nobody drew is missing.
    structures: Mapping[str, np.ndarray]


def masked_films(data: Path) -> list[MaskedFilm]:
    """Find the films of a folder and their masks, in the order of the table or of the names.

    Raises:
        UserError: `data` has none of the forms above, or a table names no file.
    """
    table = data / METADATA
    found = _of_table(table) if table.is_file() else _of_folders(data)
    if not found:
        raise UserError(
            f"{data}: must hold films with masks, found none",
            hint=f"{METADATA} with columns image,mask, or {FILMS_FOLDER}/ beside {OPACITIES}/; docs/heat.md",
        )
    return found


def _of_table(table: Path) -> list[MaskedFilm]:
    try:
        rows, columns = read_csv(table)
    except OSError as error:
        raise UserError(f"{table}: must be a CSV table, found {error}") from error
    if "image" not in columns or not {"mask", *STRUCTURES}.intersection(columns):
        raise UserError(
            f"{table}: must have the columns image and mask, or image and {' or '.join(STRUCTURES)}, "
            f"found {', '.join(columns) or 'no columns'}"
        )
    found = []
    for said in rows:
        masks = {name: table.parent / said[name] for name in STRUCTURES if said.get(name)}
        mask = table.parent / said["mask"] if said.get("mask") else None
        if said["image"] and (mask or masks):
            film = table.parent / said["image"]
            found.append(MaskedFilm(said["image"], film, said.get("patient_id", ""), mask, masks))
    return found


def _of_folders(data: Path) -> list[MaskedFilm]:
    if not (data / FILMS_FOLDER).is_dir():
        return []
    drawn = {
        name: {file.stem: file for file in sorted((data / name).iterdir()) if file.is_file()}
        for name in STRUCTURES
        if (data / name).is_dir()
    }
    found = []
    for file in sorted((data / FILMS_FOLDER).iterdir()):
        masks = {name: files[file.stem] for name, files in drawn.items() if file.stem in files}
        if file.is_file() and may_be_film(file) and masks:
            found.append(MaskedFilm(file.name, file, "", None, masks))
    return found


def read_drawn(film: MaskedFilm, flags: Mapping[str, Sequence[int]] = FLAGS) -> Drawn:
    """Read a film and its masks.

    Opacities are drawn where a pixel shows any; lungs where each of their flags is on some pixel, for a share of heat
    inside one lung of two says nothing. Of a mask of its own, both are what is not 0.

    Raises:
        UnreadableFilm: The film or a mask cannot be read, or they differ in size.
    """
    pixels = decode(film.file)
    structures = {}
    if film.mask is not None:
        values = _read_mask(film.mask, pixels)
        if values.ndim != 2 or values.dtype == bool:
            raise UnreadableFilm(f"{film.mask}: must be grey pixels that are sums of flags, found other ones")
        for name, bits in flags.items():
            parts = [(values.astype(np.int64) & bit) > 0 for bit in bits]
            if any(part.any() for part in parts) and (name != LUNGS or all(part.any() for part in parts)):
                structures[name] = np.any(parts, axis=0)
    for name, file in film.masks.items():
        values = _read_mask(file, pixels)
        drawn = values.reshape(*pixels.shape, -1)[..., :3].any(axis=2)
        if drawn.any():
            structures[name] = drawn
    return Drawn(pixels, structures)


def _read_mask(file: Path, film: np.ndarray) -> np.ndarray:
    """A mask's pixels as they are, of a palette the numbers."""
    from PIL import Image

    wanted = film.shape[::-1]
    try:
        with Image.open(file) as image:
            size = image.size
            if size == wanted:
                return np.asarray(image)
    except Exception as error:  # Pillow raises what the format's decoder raises
        raise UnreadableFilm(f"{file}: must be a picture, found {' '.join(str(error).split())[:200]}") from error
    raise UnreadableFilm(f"{file}: must have its film's size, {wanted[0]} x {wanted[1]}, found {size[0]} x {size[1]}")


def parse_flags(text: str, *, option: str) -> tuple[int, ...]:
    """``16,32`` as flags.

    Raises:
        UserError: It is not a list of powers of two.
    """
    try:
        bits = tuple(int(part) for part in text.split(","))
    except ValueError:
        bits = ()
    if not bits or any(bit < 1 or bit & (bit - 1) for bit in bits):
        raise UserError(f"{option}: must be powers of two, as in 16,32, found '{text}'")
    return bits
