"""A bundle's numbers are fitted to a site's films: weights stay, the card says it, too few films are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from vgg16_xray import Classifier
from vgg16_xray.bundle.classify import check
from vgg16_xray.cli import _run as command
from vgg16_xray.evaluate import evaluate
from vgg16_xray.films.phantom import CLASSES, draw
from vgg16_xray.trust.recalibrate import LEAST, METHODS


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many drawn films of each class as are needed, each of a patient of its own."""
    folder = tmp_path_factory.mktemp("site") / "films"
    for label in CLASSES:
        (folder / label).mkdir(parents=True)
        for n in range(LEAST):
            Image.fromarray(draw(label, seed=4, patient=n, size=128).pixels).save(folder / label / f"{n}.png")
    return folder


@pytest.fixture(scope="module")
def made(bundle: Path, site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    to = tmp_path_factory.mktemp("made") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vgg16_xray.trust.own_films.SAME", 1.1)  # drawn films are more alike than real ones
        assert command(["recalibrate", str(bundle), str(site), "--to", str(to)]) == 0
    return to


def tensors(graph: Path) -> dict[str, bytes]:
    return {tensor.name: tensor.raw_data for tensor in onnx.load(graph).graph.initializer}


@pytest.mark.parametrize("graph", ["model.onnx", "model.int8.onnx"])
def test_weights_are_those_of_before_byte_for_byte(bundle: Path, made: Path, graph: str) -> None:
    before, after = tensors(bundle / graph), tensors(made / graph)
    assert after.keys() - before.keys() == {"prior"}
    assert {name for name in before if before[name] != after[name]} == {"temperature"}
    assert (made / "model.safetensors").read_bytes() == (bundle / "model.safetensors").read_bytes()


def test_the_new_bundle_is_whole_and_gives_the_probabilities_that_were_fitted(bundle: Path, made: Path) -> None:
    assert max(check(made).values()) < 1e-3
    new, old = Classifier.load(made), Classifier.load(bundle)
    done = new.config.recalibrated
    films = [draw("COVID", seed=1, size=200).pixels, draw("Normal", seed=2, size=200).pixels]
    logits = old.predict_arrays(films, feature_map=False).logits.astype(np.float64)
    z = logits * done["scale"] + done["shift"]
    expected = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    assert new.predict_arrays(films, feature_map=False).probabilities == pytest.approx(expected, abs=1e-5)
    assert new.config.conformal["films"] == [LEAST] * 4
    assert done["method"] in METHODS
    assert sum(done["prior"].values()) == pytest.approx(1)


def test_the_card_says_what_was_done(made: Path) -> None:
    card = (made / "README.md").read_text("utf-8")
    assert "## Recalibrated for a site" in card
    assert f"COVID {LEAST}" in card
    assert "These figures are from before the bundle was recalibrated." in card


def test_a_recalibrated_bundle_is_evaluated_and_recalibrated_again(
    made: Path, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vgg16_xray.trust.own_films.SAME", 1.1)
    found = evaluate(made, [site], tmp_path / "out", prior=["COVID=0.5"])
    done = json.loads((made / "config.json").read_text())["recalibrated"]
    assert found["mix"]["calibrated_on"] == pytest.approx(done["prior"])
    points = [point for of in found["operating"] for point in of["points"]]
    assert [point["threshold"] for point in points] == [p["threshold"] for of in done["operating"] for p in of]
    again = tmp_path / "again"
    assert command(["recalibrate", str(made), str(site), "--to", str(again), "--prior", "COVID=0.9", "--json"]) == 0
    new = json.loads((again / "config.json").read_text())["recalibrated"]
    assert new["prior"]["COVID"] == pytest.approx(0.9)
    assert new["prior_given"]
    names = [tensor.name for tensor in onnx.load(again / "model.int8.onnx").graph.initializer]
    assert names.count("prior") == names.count("temperature") == 1
    shift = next(t for t in onnx.load(again / "model.int8.onnx").graph.initializer if t.name == "prior")
    assert numpy_helper.to_array(shift) == pytest.approx(np.array(new["shift"]), rel=1e-5)


def test_too_few_films_of_a_class_are_refused_in_one_line(
    bundle: Path, site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vgg16_xray.trust.own_films.SAME", 1.1)
    few = tmp_path / "few"
    (few / "Normal").mkdir(parents=True)
    for n in range(3):
        (few / "Normal" / f"{n}.png").write_bytes((site / "Normal" / f"{n}.png").read_bytes())
    assert command(["recalibrate", str(bundle), str(few), "--to", str(tmp_path / "new"), "--quiet"]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert f"must hold at least {LEAST} films of each class, found COVID 0, Lung_Opacity 0, Normal 3" in err
    assert not (tmp_path / "new").exists()


def test_the_bundle_itself_is_not_written_over(bundle: Path, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["recalibrate", str(bundle), str(site), "--to", str(bundle)]) == 2
    assert "--to: must be another folder than the bundle's" in capsys.readouterr().err
