"""The command heat: a bundle and a run, on drawn films with masks; own films taken out; report and card show it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vgg16_xray.bundle.classify import check
from vgg16_xray.cli import _run as command
from vgg16_xray.errors import UserError
from vgg16_xray.films.phantom import draw
from vgg16_xray.heat import heat
from vgg16_xray.report.page import write_report
from vgg16_xray.rundir import RunDir
from vgg16_xray.steps.preprocess import read_manifest


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory, drawn_films: Path, small_run: RunDir) -> Path:
    """Drawn films with masks of flags; one is a training film saved again."""
    folder = tmp_path_factory.mktemp("segmented")
    rows = []
    for i in range(7):
        film = draw(("COVID", "Normal")[i == 6], seed=930, patient=i, size=200)
        right = np.arange(200) < 100
        mask = film.lungs * np.where(right, 1, 2) + 16 * film.opacity
        Image.fromarray(film.pixels).save(folder / f"{i}.png")
        Image.fromarray(mask.astype(np.uint8)).save(folder / f"{i}-mask.png")
        rows.append({"image": f"{i}.png", "mask": f"{i}-mask.png"})
    manifest = read_manifest(small_run)
    own = manifest[(manifest["label"] == "COVID") & (manifest["split"] == "train")].iloc[0]
    with Image.open(drawn_films / own["path"]) as film:
        film.convert("L").resize((200, 200)).save(folder / "again.jpg", quality=70)
    Image.fromarray(np.full((200, 200), 19, np.uint8)).save(folder / "again.png")
    (folder / "broken.png").write_bytes(b"no film")
    rows += [{"image": "again.jpg", "mask": "again.png"}, {"image": "broken.png", "mask": "again.png"}]
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    return folder


def test_a_bundle_is_measured_and_its_card_tells_it(
    segmented: Path, bundle: Path, drawn_films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    arguments = ["heat", str(segmented), "--model", str(mine), "--trained-on", str(drawn_films), "--random", "1"]
    assert command([*arguments, "--card", "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "taken out: again.jpg, a near-copy of films/COVID" in out
    assert "hottest point in the" in out
    found = json.loads((tmp_path / "out" / "heat.json").read_text())
    assert (found["films"]["found"], found["films"]["measured"]) == (9, 7)
    assert [film["film"] for film in found["films"]["unreadable"]] == ["broken.png"]
    of = found["all"]["opacities"]
    assert of["films"] == 6  # the healthy film has none
    assert found["all"]["lungs"]["films"] == 7
    masks = [np.asarray(Image.open(segmented / f"{i}-mask.png")) for i in range(6)]
    assert of["share"]["chance"]["value"] == pytest.approx(np.mean([(mask & 16 > 0).mean() for mask in masks]))
    assert of["pointing"]["chance"]["value"] == of["share"]["chance"]["value"]
    assert of["share"]["model"]["low"] <= of["share"]["model"]["value"] <= of["share"]["model"]["high"]
    assert sum(found["called"].values()) == len(found["each"]) == 7
    with Image.open(tmp_path / "out" / "heat.jpg") as sheet:  # four films a row, and a legend
        assert sheet.width > 4 * 288
        assert sheet.height > 2 * 288
        cyan = (np.abs(np.asarray(sheet).astype(int) - (0, 229, 255)).max(axis=2) < 40).sum()
    assert cyan > 500
    check(mine)
    assert "Do its heat maps look where the disease is?" in (mine / "README.md").read_text()


def test_a_run_is_measured_and_its_report_and_its_cards_show_it(segmented: Path, copy_of_run: RunDir) -> None:
    assert command(["heat", str(segmented), "--model", str(copy_of_run.path), "--random", "1", "--quiet"]) == 0
    found = json.loads((copy_of_run.path / "heat.json").read_text())
    assert [(film["film"], film["split"]) for film in found["films"]["own"]] == [("again.jpg", "train")]
    page = write_report(copy_of_run).read_text()
    assert "Does the heat map look where the disease is?" in page
    assert "Heat in the opacities, of that in the lungs" in page
    assert "Films under their heat, from most of it on the opacities to least." in page
    assert "of the heat lie on the drawn opacities" in (copy_of_run.path / "cards" / "claim_2024.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["heat", "{tmp}"], "must hold films with masks, found none"),
        (["heat", "{tmp}", "--opacities", "3"], "--opacities: must be powers of two"),
        (
            ["heat", "{tmp}", "--healthy", "Nope"],
            "--healthy: must be one of COVID, Lung_Opacity, Normal, Viral",
        ),
        (["heat", "{tmp}", "--card"], "--card: must have a bundle of yours for --model, found the package"),
        (["heat", "{tmp}", "--model", "{tmp}/none"], "--model: must be a bundle or a run with a trained model"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    arguments: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command([part.format(tmp=tmp_path) for part in arguments]) == 2
    error = capsys.readouterr().err
    assert line in error
    assert error.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_refused_before_films_are_read(tmp_path: Path, segmented: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vgg16_xray.heat._read", lambda *_: pytest.fail("films are read"))
        with pytest.raises(UserError, match=r"file/heat: cannot be written \(Not a directory\)"):
            heat(None, segmented, out=tmp_path / "file" / "heat")
