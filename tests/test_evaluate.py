"""A test elsewhere: the model's own films are taken out by name, and what is left is counted right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vgg16_xray.cli import _run as command
from vgg16_xray.errors import UserError
from vgg16_xray.evaluate import evaluate
from vgg16_xray.films.phantom import draw
from vgg16_xray.rundir import RunDir
from vgg16_xray.steps.preprocess import read_manifest
from vgg16_xray.trust import external


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory, drawn_films: Path, small_run: RunDir) -> Path:
    """Drawn films of another hospital, with a training film and a re-encoded one among them, and a class unknown."""
    folder = tmp_path_factory.mktemp("elsewhere") / "hospital"
    rows = []
    for label, name in (("Normal", "healthy"), ("COVID", "covid"), ("Normal", "nodule")):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            path = f"{name}/{i}.png"
            Image.fromarray(draw(label, seed=900, patient=i, size=200).pixels).save(folder / path)
            rows.append({"path": path, "sex": "MF"[i % 2], "patient_id": f"{name}{i // 2}"})
    manifest = read_manifest(small_run)
    own = manifest[(manifest["label"] == "COVID") & (manifest["split"] == "train")].iloc[0]
    shutil.copy(drawn_films / own["path"], folder / "covid" / "copy.png")
    with Image.open(drawn_films / own["path"]) as film:
        film.convert("L").resize((260, 260)).save(folder / "covid" / "again.jpg", quality=60)
    (folder / "covid" / "broken.png").write_bytes(b"no film")
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def found(elsewhere: Path, small_run: RunDir, tmp_path_factory: pytest.TempPathFactory) -> dict:
    out = tmp_path_factory.mktemp("out")
    arguments = ["evaluate", str(small_run.path), str(elsewhere), "--map", "healthy=Normal", "--map", "covid=COVID"]
    assert command([*arguments, "--out", str(out), "--prevalence", "0.02"]) == 0
    page = (out / "evaluation.html").read_text()
    assert "Research use only" in page
    assert "<script" not in page
    assert "covid/again.jpg" in page
    return dict(json.loads((out / "evaluation.json").read_text()))


def test_training_films_and_their_near_copies_are_taken_out_by_name(found: dict) -> None:
    own = {entry["film"]: entry for entry in found["films"]["own"]}
    assert set(own) == {"hospital/covid/copy.png", "hospital/covid/again.jpg"}
    assert own["hospital/covid/copy.png"]["exact"]
    assert not own["hospital/covid/again.jpg"]["exact"]
    assert {entry["split"] for entry in own.values()} == {"train"}
    assert found["films"]["measured"] == found["images"] == 24


def test_what_cannot_be_measured_is_named(found: dict) -> None:
    assert found["films"]["of_unknown_classes"] == {"nodule": 12}
    assert [entry["film"] for entry in found["films"]["unreadable"]] == ["hospital/covid/broken.png"]
    assert found["per_class"]["Viral Pneumonia"]["support"] == 0
    assert found["per_class"]["Viral Pneumonia"]["sensitivity"]["value"] is None
    assert set(found["drop"]["per_class"]) == {"COVID", "Normal"}


def test_subgroups_add_up_and_the_worst_is_named(found: dict) -> None:
    assert {value: of["films"] for value, of in found["subgroups"]["sex"].items()} == {"F": 12, "M": 12}
    assert found["groups"] == 12
    assert sum(sum(row) for row in found["confusion"]) == 24


def test_the_drop_is_the_difference_to_the_internal_test(found: dict, small_run: RunDir) -> None:
    tested = json.loads(small_run.test.read_text())
    expected = found["overall"]["accuracy"]["value"] - tested["overall"]["accuracy"]["value"]
    assert found["drop"]["accuracy"]["value"] == pytest.approx(expected)
    assert found["operating"][0]["points"][0]["predictive"][0]["prevalence"] == 0.02


def test_the_interval_of_a_drop_holds_the_truth_as_often_as_it_says() -> None:
    random, held = np.random.default_rng(0), []
    for _ in range(1000):
        figures = []
        for share, films in ((0.9, 300), (0.7, 150)):
            drawn = random.binomial(films, share) / films
            replicates = random.binomial(films, drawn, size=400) / films
            low, high = np.quantile(replicates, [0.025, 0.975])
            figures.append({"value": drawn, "low": low, "high": high})
        change = external.drop(*figures)
        held.append(change["low"] <= -0.2 <= change["high"])
    assert 0.93 < np.mean(held) < 0.97


def test_films_of_no_class_that_the_model_knows_are_refused(small_run: RunDir, elsewhere: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must hold films of COVID, .*, found covid, healthy, nodule"):
        evaluate(small_run.path, [elsewhere], tmp_path / "out")
