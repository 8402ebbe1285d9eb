"""Lungs are found where there are any, and said not to be found where there are none."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vgg16_xray.trust
from vgg16_xray.errors import UserError
from vgg16_xray.films import phantom
from vgg16_xray.films.decode import decode, to_square
from vgg16_xray.films.phantom import CLASSES, draw
from vgg16_xray.trust import lungs
from vgg16_xray.trust.lungs import Lungs, dice, find_lungs

SHARED = Path(__file__).resolve().parents[3] / "shared"
NEVER_SEEN = 71  # a seed of phantoms that the network was not trained on


@pytest.fixture(scope="module")
def phantoms() -> list[phantom.Phantom]:
    return [draw(label, seed=NEVER_SEEN, patient=n, size=224) for n in range(4) for label in CLASSES]


@pytest.fixture(scope="module")
def films(phantoms: list[phantom.Phantom]) -> np.ndarray:
    return np.stack([film.pixels for film in phantoms])


@pytest.fixture(scope="module")
def answer(films: np.ndarray) -> Lungs:
    return find_lungs(films)


def overlap(masks: np.ndarray, others: np.ndarray) -> list[float]:
    return [dice(a, b) for a, b in zip(masks, others, strict=True)]


def test_lungs_of_drawn_films_are_found_whole_opacities_included(
    phantoms: list[phantom.Phantom], answer: Lungs
) -> None:
    assert answer.found.all()
    assert answer.masks.shape == (16, 224, 224)
    assert answer.masks.dtype == np.bool_
    truth = overlap(answer.masks, np.stack([film.lungs for film in phantoms]))
    assert np.mean(truth) > 0.92
    assert min(truth) > 0.90
    ill = [film.opacity & film.lungs for film in phantoms]
    assert np.mean([mask[spot].mean() for mask, spot in zip(answer.masks, ill, strict=True) if spot.any()]) > 0.87


def test_a_film_has_the_same_answer_alone_and_among_others(films: np.ndarray, answer: Lungs) -> None:
    for i in (0, 7, 15):
        alone = find_lungs(films[i : i + 1])
        np.testing.assert_array_equal(alone.masks[0], answer.masks[i])
        assert alone.quality[0] == answer.quality[i]


def test_the_lungs_of_a_mirrored_film_are_the_mirrored_lungs(films: np.ndarray, answer: Lungs) -> None:
    mirrored = find_lungs(films[:, :, ::-1])
    assert mirrored.found.all()
    assert min(overlap(mirrored.masks[:, :, ::-1], answer.masks)) > 0.995


def test_size_and_exposure_of_a_film_hardly_matter(films: np.ndarray, answer: Lungs) -> None:
    small = np.stack([to_square(film, 96) for film in films])
    enlarged = [to_square(mask.astype(np.uint8) * np.uint8(255), 224) > 127 for mask in find_lungs(small).masks]
    assert min(overlap(np.stack(enlarged), answer.masks)) > 0.96
    darker = (255 * (films / 255) ** 1.6).astype(np.uint8)
    assert min(overlap(find_lungs(darker).masks, answer.masks)) > 0.95


def test_a_negative_shows_the_same_lungs(films: np.ndarray, answer: Lungs) -> None:
    negative = find_lungs(255 - films)
    assert negative.found.mean() > 0.7
    assert np.mean(overlap(negative.masks[negative.found], answer.masks[negative.found])) > 0.90


def test_a_film_need_not_be_square(phantoms: list[phantom.Phantom]) -> None:
    whole = phantoms[0]
    wide, truth = (
        np.asarray(Image.fromarray(a.astype(np.uint8)).resize((300, 200))) for a in (whole.pixels, 255 * whole.lungs)
    )
    found = find_lungs(wide[None])
    assert found.masks.shape == (1, 200, 300)
    assert dice(found.masks[0], truth > 127) > 0.93


def shuffled(film: np.ndarray) -> np.ndarray:
    parts = film.reshape(8, 28, 8, 28).swapaxes(1, 2).reshape(64, 28, 28)
    return np.random.default_rng(0).permutation(parts).reshape(8, 8, 28, 28).swapaxes(1, 2).reshape(224, 224)


def photographs() -> list[np.ndarray]:
    from matplotlib.cbook import get_sample_data
    from sklearn.datasets import load_sample_images

    pictures = [Image.fromarray(picture) for picture in load_sample_images().images]
    for name in ("grace_hopper.jpg", "Minduka_Present_Blue_Pack.png"):
        with get_sample_data(name) as file:
            pictures.append(Image.open(file).convert("L"))
    return [to_square(np.asarray(picture.convert("L")), 224) for picture in pictures]


def noise() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (side, side), np.uint8) for side in (4, 12, 40, 224)]
    return [np.asarray(Image.fromarray(a).resize((224, 224), Image.Resampling.BICUBIC)) for a in coarse]


def blank() -> list[np.ndarray]:
    ramp = np.linspace(0, 255, 224).astype(np.uint8)
    return [np.full((224, 224), grey, np.uint8) for grey in (0, 128, 255)] + [np.tile(ramp, (224, 1))]


@pytest.mark.parametrize("pictures", [photographs, noise, blank], ids=lambda made: made.__name__)
def test_where_there_are_no_lungs_none_are_found_and_a_reason_is_given(pictures) -> None:  # type: ignore[no-untyped-def]
    answer = find_lungs(np.stack(pictures()))
    assert not answer.found.any(), answer
    assert not answer.masks.any()
    assert all("must" in reason for reason in answer.reasons)


def test_of_lungs_without_air_the_network_is_less_sure(answer: Lungs) -> None:
    # Less sure is all: by ribs, heart and diaphragm it still draws them, and most pass as found (docs/lungs.md).
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom, "_AIR_IN_LUNG", 0.0)
        bare = [draw("Normal", seed=NEVER_SEEN, patient=n, size=224).pixels for n in range(8)]
    assert find_lungs(np.stack(bare)).quality.max() < answer.quality.min()


def test_a_film_in_pieces_has_no_lungs(films: np.ndarray) -> None:
    assert not find_lungs(np.stack([shuffled(film) for film in films])).found.any()


@pytest.mark.parametrize(
    ("small", "quality", "reason"),
    [
        ((slice(0, 20), slice(0, 20)), 1.0, "must cover 6% to 60%"),
        ((slice(0, 90), slice(0, 90)), 1.0, "must cover 6% to 60%"),
        ((slice(10, 80), slice(None, None, 3)), 1.0, "two parts must hold 90%"),
        ((slice(10, 80), slice(10, 40)), 0.5, "quality must be at least"),
        ((slice(10, 80), slice(10, 40)), 0.95, ""),
    ],
)
def test_each_rule_is_named_when_it_is_broken(small: tuple[slice, slice], quality: float, reason: str) -> None:
    mask = np.zeros((96, 96), bool)
    mask[small] = True
    found = lungs._why_not(mask, quality)
    assert reason in found
    assert bool(found) == bool(reason)


@pytest.mark.parametrize(
    ("films", "found"),
    [
        (np.zeros((224, 224), np.uint8), r"\(224, 224\) uint8"),
        (np.zeros((1, 224, 224), np.float32), r"\(1, 224, 224\) float32"),
        (np.zeros((1, 224, 16), np.uint8), "224 x 16"),
    ],
    ids=["no batch", "float", "too small"],
)
def test_what_is_no_stack_of_films_is_refused_in_one_line(films: np.ndarray, found: str) -> None:
    with pytest.raises(UserError, match=rf"^films: must be .*found {found}$"):
        find_lungs(films)


def test_no_films_have_no_lungs() -> None:
    answer = find_lungs(np.zeros((0, 64, 80), np.uint8))
    assert answer.masks.shape == (0, 64, 80)
    assert answer.found.shape == (0,)


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(b"no network")
    with pytest.raises(UserError, match=r"other\.onnx: must be the network that finds lungs"):
        find_lungs(np.zeros((1, 64, 64), np.uint8), model=tmp_path / "other.onnx")


def test_the_network_ships_with_the_package_and_is_small() -> None:
    model = Path(vgg16_xray.trust.__file__).with_name(lungs.MODEL)
    assert 100_000 < model.stat().st_size < 3_000_000


def test_finding_lungs_loads_no_torch() -> None:
    code = (
        "import sys, numpy as np; from vgg16_xray.trust.lungs import find_lungs;"
        "assert 'onnxruntime' not in sys.modules;"
        "find_lungs(np.zeros((1, 64, 64), np.uint8)); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.skipif(not (SHARED / "elsewhere").exists(), reason="../shared/elsewhere is not there")
@pytest.mark.parametrize("source", ["shenzhen", "jsrt"])
def test_lungs_of_real_films_are_where_people_drew_them(source: str) -> None:
    with (SHARED / "elsewhere" / "metadata.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == source and row["mask"]][::12]
    films = np.stack([decode(SHARED / "elsewhere" / row["path"]) for row in rows])
    masks = np.stack([np.asarray(Image.open(SHARED / "elsewhere" / row["mask"])) & 3 for row in rows]) > 0
    answer = find_lungs(films)
    assert answer.found.mean() > 0.95
    assert np.mean(overlap(answer.masks[answer.found], masks[answer.found])) > 0.94
