import csv
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from vgg16_xray.cli import app
from vgg16_xray.films.phantom import write_dataset
from vgg16_xray.rundir import RunDir
from vgg16_xray.steps.audit_leaks import audit_leaks


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """14 films of two classes; COVID-1 again in its class as JPEG, Normal-1 again, mirrored, as COVID."""
    root = tmp_path_factory.mktemp("leaks") / "films"
    write_dataset(root, films=14, seed=8, films_per_patient=(1, 1), imbalance={"COVID": 1, "Normal": 1}, masks=False)
    Image.open(root / "COVID/images/COVID-1.png").save(root / "COVID/images/again.jpg", quality=50)
    mirrored = np.asarray(Image.open(root / "Normal/images/Normal-1.png"))[:, ::-1]
    Image.fromarray(mirrored).save(root / "COVID/images/other.png")
    shutil.copy(root / "Normal/images/Normal-2.png", root / "Normal/images/exact.png")
    return root


def test_copies_are_counted_and_films_under_two_labels_named(films, tmp_path):
    run = RunDir(tmp_path / "out")
    found, _ = audit_leaks([films], run)
    assert (found["films"], found["exact"], found["copies"], found["groups"]) == (17, 1, 3, 3)
    assert found["conflicts"] == [
        [
            {"film": "films/COVID/images/other.png", "label": "COVID"},
            {"film": "films/Normal/images/Normal-1.png", "label": "Normal"},
        ]
    ]
    with run.pairs.open() as file:
        rows = [row for row in csv.DictReader(file) if row["same"] == "True"]
    assert len(rows) == 3
    assert [row["mirrored"] for row in rows if row["first_label"] != row["second_label"]] == ["True"]


def test_a_second_run_computes_nothing(films, tmp_path, monkeypatch):
    run = RunDir(tmp_path / "out")
    found, _ = audit_leaks([films], run)
    monkeypatch.setattr("vgg16_xray.steps.audit_leaks.decode_all", None)
    assert audit_leaks([films], run)[0] == found


def test_two_collections_show_what_they_share(films, tmp_path):
    other = tmp_path / "elsewhere"
    write_dataset(other, films=6, seed=9, imbalance={"COVID": 1, "Normal": 1}, masks=False)
    inverted = 255 - np.asarray(Image.open(films / "COVID/images/COVID-3.png"))
    Image.fromarray(inverted).resize((300, 300)).save(other / "COVID/images/theirs.png")
    found, _ = audit_leaks([films, other], RunDir(tmp_path / "out"))
    assert found["shared"] == 1
    assert found["collections"] == {"elsewhere": 7, "films": 17}


def test_the_page_and_the_terminal_tell_collections_and_equal_pixels(films, tmp_path):
    other = tmp_path / "elsewhere"
    shutil.copytree(films / "Normal", other / "Normal")
    result = CliRunner().invoke(app, ["audit", "leaks", str(films), str(other), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "out/leaks.html").read_text()
    exact = len(list((films / "Normal/images").iterdir()))
    said = f"{exact - 1} films stand in more than one collection; there are 2: elsewhere ({exact}), films (17)."
    equal = f"{exact + 1} with equal pixels"
    for words in (said, equal):
        assert words in " ".join(result.output.split())
        assert words in page
    assert "equal pixels · Normal" in page
    assert f"{exact + 1} pairs; {exact} between two collections." in page
    assert 'href="pairs.csv"' in page


def test_the_command_leaves_a_page_to_look_at(films, tmp_path):
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["audit", "leaks", str(films), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "two labels" in result.output
    page = (out / "leaks.html").read_text()
    assert "films/COVID/images/other.png" in page
    assert page.count("data:image/jpeg") >= 6
    assert "http://" not in page
    assert "https://" not in page
    assert len(json.loads((out / "leaks.json").read_text())["conflicts"]) == 1
