"""Films with masks: three layouts, what a mask says, and what is said of one that does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vgg16_xray.errors import UnreadableFilm, UserError
from vgg16_xray.films.masks import FLAGS, LUNGS, OPACITIES, masked_films, parse_flags, read_drawn


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def film() -> np.ndarray:
    return np.tile(np.arange(40, 120, dtype=np.uint8), (60, 1))


def test_flags_say_what_is_drawn(tmp_path: Path, film: np.ndarray) -> None:
    mask = np.zeros(film.shape, np.uint8)
    mask[10:50, 5:30] = 1
    mask[10:50, 45:70] = 2
    mask[20:30, 10:20] += 16
    mask[30:40, 50:60] += 32 + 4
    save(tmp_path / "images" / "a.png", film)
    save(tmp_path / "masks" / "a.png", mask)
    (tmp_path / "metadata.csv").write_text("Image;mask;patient_id\nimages/a.png;masks/a.png;p1\n")
    (found,) = masked_films(tmp_path)
    drawn = read_drawn(found)
    assert (found.name, found.patient_id) == ("images/a.png", "p1")
    assert drawn.structures[OPACITIES].sum() == 200
    assert drawn.structures[LUNGS].sum() == 2 * 40 * 25
    assert read_drawn(found, FLAGS | {OPACITIES: (32,)}).structures[OPACITIES].sum() == 100


def test_one_lung_of_two_is_no_lungs_and_an_empty_mask_says_nothing(tmp_path: Path, film: np.ndarray) -> None:
    for name, value in (("one", 1), ("none", 0)):
        save(tmp_path / f"{name}.png", film)
        save(tmp_path / f"{name}-mask.png", np.full(film.shape, value, np.uint8))
    (tmp_path / "metadata.csv").write_text("image,mask\none.png,one-mask.png\nnone.png,none-mask.png\n")
    assert [read_drawn(one).structures for one in masked_films(tmp_path)] == [{}, {}]


def test_a_folder_a_structure_needs_no_table(tmp_path: Path, film: np.ndarray) -> None:
    for name in ("b", "a", "without"):
        save(tmp_path / "images" / f"{name}.jpg", film)
    for name in ("a", "b"):
        colours = np.zeros((*film.shape, 3), np.uint8)
        colours[:10, :10] = (255, 0, 0)
        save(tmp_path / "opacities" / f"{name}.png", colours)
    save(tmp_path / "lungs" / "a.png", np.full(film.shape, 255, np.uint8))
    found = masked_films(tmp_path)
    assert [one.name for one in found] == ["a.jpg", "b.jpg"]
    assert [sorted(read_drawn(one).structures) for one in found] == [[LUNGS, OPACITIES], [OPACITIES]]
    assert read_drawn(found[1]).structures[OPACITIES].sum() == 100


def test_a_mask_that_does_not_fit_its_film_is_named(tmp_path: Path, film: np.ndarray) -> None:
    save(tmp_path / "images" / "a.png", film)
    mask = save(tmp_path / "opacities" / "a.png", film[:-1])
    (one,) = masked_films(tmp_path)
    with pytest.raises(UnreadableFilm, match="must have its film's size, 80 x 60, found 80 x 59"):
        read_drawn(one)
    mask.write_bytes(b"no picture")
    with pytest.raises(UnreadableFilm, match=r"opacities/a.png: must be a picture"):
        read_drawn(one)


def test_a_folder_without_masks_is_refused_with_what_it_should_hold(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must hold films with masks"):
        masked_films(tmp_path)
    (tmp_path / "metadata.csv").write_text("path,label\na.png,COVID\n")
    with pytest.raises(UserError, match=r"must have the columns image and mask, .* found path, label"):
        masked_films(tmp_path)


@pytest.mark.parametrize("text", ["", "3", "16,x", "0", "-16"])
def test_flags_that_are_no_bits_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--lungs: must be powers of two"):
        parse_flags(text, option="--lungs")
