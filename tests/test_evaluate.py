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
    left_out = "12 of “nodule”, a class that the model does not know, were left out."
    assert f"before anything was counted. {left_out} 1 could" in page
    return dict(json.loads((out / "evaluation.json").read_text()))


def test_training_films_and_their_near_copies_are_taken_out_by_name(found: dict) -> None:
    own = {entry["film"]: entry for entry in found["films"]["own"]}
    assert set(own) == {"hospital/covid/copy.png", "hospital/covid/again.jpg"}
    assert own["hospital/covid/copy.png"]["exact"]
    assert not own["hospital/covid/again.jpg"]["exact"]
    assert {entry["split"] for entry in own.values()} == {"train"}
    assert found["films"]["measured"] == found["images"] == 24


def test_a_bundle_brings_what_its_own_films_are_found_by(
    elsewhere: Path, bundle: Path, small_run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vgg16_xray.trust.own_films.SAME", 0.93)  # drawn films are more alike than real ones
    found = evaluate(bundle, [elsewhere], tmp_path, mapping={"healthy": "Normal", "covid": "COVID"})
    own = {entry["film"]: entry for entry in found["films"]["own"]}
    assert set(own) == {"hospital/covid/copy.png", "hospital/covid/again.jpg"}
    assert own["hospital/covid/copy.png"]["exact"]
    assert not own["hospital/covid/again.jpg"]["exact"]
    assert {entry["split"] for entry in own.values()} == {"train"}
    hashes = read_manifest(small_run)["pixels_sha256"].str[:16]
    assert {entry["own"].removeprefix("film ") for entry in own.values()} <= set(hashes)
    assert found["films"]["measured"] == 24
    assert found["refuses"]
    assert found["calibrated"]


def test_a_folder_of_training_films_does_as_well_as_their_run(
    elsewhere: Path, bundle: Path, drawn_films: Path, tmp_path: Path
) -> None:
    mapping = {"healthy": "Normal", "covid": "COVID"}
    found = evaluate(bundle, [elsewhere], tmp_path, mapping=mapping, trained_on=drawn_films)
    own = {entry["film"]: entry for entry in found["films"]["own"]}
    assert set(own) == {"hospital/covid/copy.png", "hospital/covid/again.jpg"}
    assert own["hospital/covid/copy.png"]["own"].startswith("films/COVID/")


def test_a_bundle_that_keeps_nothing_says_that_nobody_looked(
    elsewhere: Path, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = Path(shutil.copytree(bundle, tmp_path / "old"))
    (old / "films.npy").unlink()
    config = json.loads((old / "config.json").read_text())
    del config["sha256"]["films.npy"]
    (old / "config.json").write_text(json.dumps(config))
    arguments = ["evaluate", old, elsewhere, "--map", "healthy=Normal", "--map", "covid=", "--map", "nodule="]
    assert command([str(one) for one in [*arguments, "--out", tmp_path / "out"]]) == 0
    assert "copies were not looked for" in " ".join(capsys.readouterr().out.split())
    assert "copies were not looked for" in (tmp_path / "out" / "evaluation.html").read_text()


def test_the_worst_group_stands_in_the_lead_with_its_interval(
    elsewhere: Path, small_run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vgg16_xray.trust.external.LEAST", 10)
    found = evaluate(small_run.path, [elsewhere], tmp_path, mapping={"healthy": "Normal", "covid": "COVID"})
    worst = found["worst"]
    of_all = [of["accuracy"]["value"] for values in found["subgroups"].values() for of in values.values()]
    assert worst["accuracy"]["value"] == min(of_all)
    assert worst["films"] == 12
    lead = (tmp_path / "evaluation.html").read_text().split('class="lead"')[1].split("</p>")[0]
    assert f"The worst group is <strong>{worst['column']} = {worst['value']}</strong>" in lead


def test_accuracy_is_held_against_the_internal_test_at_the_same_mix_of_classes() -> None:
    per_class = {
        "a": {"sensitivity": {"value": 0.9, "low": 0.8, "high": 0.95}},
        "b": {"sensitivity": {"value": 0.5, "low": 0.4, "high": 0.6}},
    }
    assert external.at_mix(per_class, {"a": 1.0, "b": 0.0}) == per_class["a"]["sensitivity"]
    half = external.at_mix(per_class, {"a": 0.5, "b": 0.5})
    assert half["value"] == pytest.approx(0.7)
    assert half["low"] == pytest.approx(0.7 - 0.05 * 2**0.5)
    assert (
        external.at_mix({"a": {"sensitivity": {"value": None, "low": None, "high": None}}}, {"a": 1.0})["value"] is None
    )


@pytest.mark.parametrize("prior", [["estimate"], ["Normal=0.9"]], ids=lambda prior: prior[0])
def test_probabilities_are_corrected_to_another_mix_where_the_reader_wants_it(
    prior: list[str], elsewhere: Path, small_run: RunDir, tmp_path: Path
) -> None:
    mapping = {"healthy": "Normal", "covid": "COVID"}
    found = evaluate(small_run.path, [elsewhere], tmp_path, mapping=mapping, prior=prior)["mix"]
    assert found["here"]["Normal"] == pytest.approx(0.5)
    assert sum(found["calibrated_on"].values()) == pytest.approx(1)
    assert found["corrected"]["how"] == ("estimated" if prior == ["estimate"] else "given")
    assert sum(found["corrected"]["prior"].values()) == pytest.approx(1)
    if prior != ["estimate"]:
        assert found["corrected"]["prior"]["Normal"] == pytest.approx(0.9)
    assert "How common the classes are" in (tmp_path / "evaluation.html").read_text()


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


def test_a_folder_that_cannot_be_written_is_refused_before_films_are_read(elsewhere: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    def model(films: list[np.ndarray]) -> list[list[float]]:
        pytest.fail("films are read")

    with pytest.raises(UserError, match=r"file/out: cannot be written \(Not a directory\)"):
        evaluate(model, [elsewhere], tmp_path / "file" / "out", labels=["Normal", "COVID"])
