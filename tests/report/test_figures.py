from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fabricate import fabricate
from PIL import Image

from vgg16_xray.errors import UserError
from vgg16_xray.report import figures
from vgg16_xray.rundir import RunDir

FOURTEEN = tuple(f"Class {letter}" for letter in "ABCDEFGHIJKLMN")


def draw_all(run: RunDir) -> list[Path]:
    return figures.after_preprocess(run) + figures.after_test(run)


@pytest.mark.parametrize(
    "labels",
    [("NORMAL", "PNEUMONIA"), FOURTEEN, ("_hidden $x_1$ \\frac", "a/b <b>'\"&\nc")],
    ids=["2", "14", "strange"],
)
def test_every_picture_is_drawn_for_any_classes_and_stays_light(tmp_path: Path, labels: tuple[str, ...]) -> None:
    run = fabricate(tmp_path / "run", labels=labels, skill=1.5, films=140)
    drawn = draw_all(run)
    assert {file.name for file in drawn} == {picture.file for picture in figures.PICTURES.values()}
    assert {file.name for file in run.figures.iterdir()} == {file.name for file in drawn}
    for file in drawn:
        with Image.open(file) as image:
            image.load()
            assert "Software" not in image.info, file
        assert file.stat().st_size < 400_000, file


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (draw_all(fabricate(tmp_path / name, films=80)) for name in "ab")
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


def test_the_preview_shows_training_films_and_no_film_twice(tmp_path: Path) -> None:
    # Every film has a grey of its own, so that the sheet tells which films it shows.
    films = np.broadcast_to(np.arange(240, dtype=np.uint8)[:, None, None], (240, 224, 224)).copy()
    run = fabricate(tmp_path / "run", pixels=films)
    with Image.open(figures.preview_grid(run)) as image:
        sheet = np.asarray(image.convert("L"))
    middles = {int(value) for value in np.unique(sheet[26 + 8 :: 190][:, 80::164])}
    manifest = pd.read_parquet(run.manifest)
    training = manifest.index[manifest["split"] == "train"]
    near = {int(row) for row in training}
    assert all(any(abs(value - row) <= 2 for row in near) for value in middles - {255})
    copies = manifest[manifest["pixels_sha256"].duplicated(keep=False)]
    assert len(copies) == 3  # the fabricated copies are there to be left out


def test_worst_mistakes_shows_the_most_confident_wrong_test_film_first(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", skill=1.0, pixels=np.full((240, 224, 224), 10, dtype=np.uint8))
    predictions = pd.read_csv(run.predictions)
    wrong = predictions[(predictions["split"] == "test") & (predictions["prediction"] != predictions["label"])]
    worst = wrong["confidence"].idxmax()
    pixels = np.load(run.pixels)
    pixels[worst] = 200
    np.save(run.pixels, pixels)
    with Image.open(figures.worst_mistakes(run)) as image:
        sheet = np.asarray(image.convert("L")).astype(int)
    assert abs(sheet[100, 60] - 200) < 3  # the first film of the sheet
    assert abs(sheet[100, 260] - 10) < 3  # the second


def test_no_mistakes_is_said_and_not_an_error(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", skill=50.0)
    assert figures.worst_mistakes(run).exists()
    assert figures.per_class(run).exists()


def test_a_class_without_test_films_is_drawn_as_not_defined(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", labels=FOURTEEN, films=60)
    test = figures.read_json(run.test)
    assert any(row["support"] == 0 for row in test["per_class"].values())
    for draw in (figures.roc, figures.precision_recall, figures.confusion):
        assert draw(run).exists()


def test_a_picture_names_the_step_that_is_missing(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", upto="preprocess")
    with pytest.raises(UserError, match=r"test\.json.*vgg16-xray test"):
        figures.confusion(run)
    assert not run.figures.exists()


def test_predictions_of_other_films_are_refused_by_name(tmp_path: Path) -> None:
    run = fabricate(tmp_path / "run", skill=1.0)
    predictions = pd.read_csv(run.predictions)
    predictions["path"] = "elsewhere/" + predictions["path"]
    predictions.to_csv(run.predictions, index=False)
    with pytest.raises(UserError, match=r"predictions\.csv.*elsewhere/"):
        figures.worst_mistakes(run)


def test_every_picture_has_a_text_for_those_who_do_not_see_it() -> None:
    for picture in figures.PICTURES.values():
        assert len(picture.alt) > 40
        assert picture.reading.endswith(".")


def test_an_interval_without_spread_is_no_interval() -> None:
    assert not figures.has_interval({"value": 1.0, "low": 1.0, "high": 1.0})
    assert not figures.has_interval({"value": 1.0, "low": None, "high": None})
    assert figures.has_interval({"value": 0.9, "low": 0.8, "high": 1.0})
