"""What each rung of the ladder shows, and what it must not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vgg16_xray.films.phantom import SHORTCUTS, draw, plant
from vgg16_xray.trust.shortcuts import (
    CELLS,
    CORNERS,
    ERASED,
    FRAME,
    LADDER,
    METADATA,
    NUMBERS_PER_CELL,
    SCRAMBLED,
    describe,
    features_of,
    hulls,
    metadata_features,
    metadata_of,
    sample,
    shown,
)

SIZE = 224


@pytest.fixture(scope="module")
def ill_and_well() -> tuple[np.ndarray, np.ndarray]:
    """The same four patients with and without an opacity: (8, 224, 224) films and lungs."""
    drawn = [draw(label, seed=1, patient=i, size=SIZE) for label in ("COVID", "Normal") for i in range(4)]
    return np.stack([one.pixels for one in drawn]), np.stack([one.lungs for one in drawn])


@pytest.mark.parametrize("rung", [rung for rung in LADDER if rung.without_lungs and rung is not METADATA])
def test_a_rung_without_lungs_does_not_change_with_the_disease(
    rung: object, ill_and_well: tuple[np.ndarray, np.ndarray]
) -> None:
    films, lungs = ill_and_well
    numbers = features_of(rung, films, lungs)  # type: ignore[arg-type]
    # An opacity is drawn in the lungs alone, and blurred: a grey level or two beyond them.
    moved = np.abs(numbers[:4] - numbers[4:]).mean()
    between_patients = np.abs(numbers[:2] - numbers[2:4]).mean()
    assert moved < 0.1 * between_patients


def test_lungs_erased_holds_no_pixel_of_a_lung(ill_and_well: tuple[np.ndarray, np.ndarray]) -> None:
    films, lungs = ill_and_well
    other = films.copy()
    other[lungs] = 255 - other[lungs]
    np.testing.assert_array_equal(shown(ERASED, films, lungs), shown(ERASED, other, lungs))
    hull = hulls(lungs, margin=0.0)
    assert (hull | ~lungs).mean() > 0.999
    assert (hulls(lungs, margin=0.03) & ~hull).any()
    assert not hulls(np.zeros_like(lungs[:1]), margin=0.03).any()


@pytest.mark.parametrize("rung", [FRAME, CORNERS])
def test_border_and_corners_hold_nothing_of_the_middle(rung: object) -> None:
    rng = np.random.default_rng(0)
    films = rng.integers(0, 256, (2, SIZE, SIZE), dtype=np.uint8)
    other = films.copy()
    other[:, 46:-46, 46:-46] = 0
    np.testing.assert_array_equal(shown(rung, films), shown(rung, other))  # type: ignore[arg-type]


def test_a_scrambled_film_keeps_its_amplitudes_and_loses_its_shape() -> None:
    film = draw("Normal", size=SIZE).pixels[None]
    scrambled = shown(SCRAMBLED, film)
    before, after = (np.abs(np.fft.rfft2(x[0] - x.mean())) for x in (film.astype(float), scrambled.astype(float)))
    assert np.corrcoef(np.log1p(before).ravel(), np.log1p(after).ravel())[0, 1] > 0.8
    assert abs(np.corrcoef(film.ravel(), scrambled.ravel())[0, 1]) < 0.3


def test_cells_are_described_alone() -> None:
    film = draw("Normal", size=SIZE).pixels[None]
    other = film.copy()
    other[:, :20, :20] = 255
    changed = np.abs(describe(film) - describe(other)).reshape(CELLS * CELLS, NUMBERS_PER_CELL).max(axis=1) > 1e-6
    assert changed.nonzero()[0].tolist() == [0]
    mean = film[0].reshape(CELLS, SIZE // CELLS, CELLS, SIZE // CELLS).mean(axis=(1, 3)) / 255
    np.testing.assert_allclose(describe(film).reshape(CELLS, CELLS, -1)[..., 0], mean, atol=1e-5)


def test_a_file_says_format_size_and_quality_of_itself(tmp_path: Path) -> None:
    film = Image.fromarray(draw("Normal", size=SIZE).pixels)
    for name, options in (("a.png", {}), ("b.jpg", {"quality": 90}), ("c.jpg", {"quality": 40})):
        film.save(tmp_path / name, **options)
    (tmp_path / "d.png").write_bytes(b"no image")
    said = [metadata_of(tmp_path / name) for name in ("a.png", "b.jpg", "c.jpg", "d.png", "none.png")]
    assert [row.get("format") for row in said] == ["PNG", "JPEG", "JPEG", None, None]
    assert float(said[1]["JPEG quantisation"]) < float(said[2]["JPEG quantisation"])
    numbers, entries = metadata_features(said[:3])
    assert {"format", "JPEG quantisation"} <= set(entries)
    assert "width" not in entries
    assert len(numbers) == 3


def test_what_a_file_says_of_itself_does_not_depend_on_what_the_film_shows(tmp_path: Path) -> None:
    film = draw("Normal", size=SIZE).pixels
    grain = film.copy()
    middle = grain[SIZE // 3 : -SIZE // 3, SIZE // 3 : -SIZE // 3]
    middle[:] = np.random.default_rng(0).integers(0, 256, middle.shape)
    for suffix in ("png", "jpg"):
        for name, pixels in (("smooth", film), ("grain", grain)):
            Image.fromarray(pixels).save(tmp_path / f"{name}.{suffix}")
        smooth, rough = tmp_path / f"smooth.{suffix}", tmp_path / f"grain.{suffix}"
        assert smooth.stat().st_size < rough.stat().st_size
        assert metadata_of(smooth) == metadata_of(rough)


def test_a_sample_takes_whole_groups_and_small_sources_too() -> None:
    groups = [f"g{i // 2}" for i in range(400)]
    sources = ["rare" if i < 10 else "frequent" for i in range(400)]
    rows = sample(["x"] * 200 + ["y"] * 200, groups, per_class=40, seed=0, sources=sources)
    taken = {groups[i] for i in rows}
    assert all((groups[i] in taken) == (i in set(rows.tolist())) for i in range(400))
    assert sum(sources[i] == "rare" for i in rows) == 10
    assert sum(i < 200 for i in rows) == 40


@pytest.mark.parametrize("shortcut", SHORTCUTS[:-1])
def test_what_is_planted_changes_the_film(shortcut: str) -> None:
    film = draw("COVID", size=SIZE).pixels
    planted = plant(shortcut, film)
    assert planted.shape == film.shape
    assert planted.dtype == np.uint8
    assert (planted != film).any()


def test_a_child_has_a_narrower_chest_and_the_same_pose() -> None:
    adult, child = (draw("Normal", seed=4, patient=2, size=SIZE, child=young) for young in (False, True))
    assert child.lungs.any(axis=0).sum() < 0.95 * adult.lungs.any(axis=0).sum()
