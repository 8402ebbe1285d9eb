"""Predict: the same numbers as the run's own, a row a file in the order of the input, and no end at a broken file."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from vgg16_xray import RESEARCH_USE_ONLY, cli
from vgg16_xray.bundle.classify import Classifier, NoFilm, Prediction
from vgg16_xray.bundle.format import BundleDir
from vgg16_xray.cli import _run as command
from vgg16_xray.errors import UserError
from vgg16_xray.files import write_json
from vgg16_xray.films.decode import decode, to_square
from vgg16_xray.films.phantom import draw
from vgg16_xray.learn.checkpoint import ModelConfig, save_model
from vgg16_xray.learn.engines import FrozenPart
from vgg16_xray.learn.vgg16 import build, split_at
from vgg16_xray.learn.weights import load_base, normalise
from vgg16_xray.predict import Predictor, as_csv, as_json, films_in, rendered
from vgg16_xray.rundir import FoldsDir, RunDir, sha256_of
from vgg16_xray.steps.preprocess import read_manifest


@pytest.fixture(scope="module")
def predictor(small_run: RunDir) -> Predictor:
    return Predictor(small_run.path)


@pytest.fixture
def films(drawn_films: Path, tmp_path: Path) -> list[Path]:
    """Three films with awkward names."""
    found = sorted(drawn_films.glob("*/images/*.png"))[::17][:3]
    names = ["a film, [b]bold :lung:.png", "zwölf „Grad“\n新.png", "-x=1.png"]
    return [Path(shutil.copy(film, tmp_path / name)) for film, name in zip(found, names, strict=True)]


def test_the_runs_own_films_get_the_probabilities_of_predictions_csv(
    small_run: RunDir, drawn_films: Path, predictor: Predictor
) -> None:
    manifest, table = read_manifest(small_run), pd.read_csv(small_run.predictions)
    rows = np.random.default_rng(0).permutation(len(manifest))[:20]
    answers = list(predictor.predict([drawn_films / manifest["path"][row] for row in rows]))
    assert predictor.engine.name == predictor.config.engine
    for answer, row in zip(answers, rows, strict=True):
        assert answer.path == str(drawn_films / manifest["path"][row])
        assert answer.answer == "answered"
        expected = {label: table[f"p_{label}"][row] for label in predictor.labels}
        assert dict(answer.probabilities) == pytest.approx(expected, abs=1e-3)
        assert answer.confidence == max(dict(answer.probabilities).values())
        assert dict(answer.probabilities)[str(answer.prediction)] == answer.confidence


def test_the_order_of_the_input_is_that_of_the_output(films: list[Path], predictor: Predictor) -> None:
    forwards = list(predictor.predict(films))
    backwards = list(predictor.predict(films[::-1]))
    assert [answer.path for answer in forwards] == [str(film) for film in films]
    for one, other in zip(forwards, backwards[::-1], strict=True):
        assert one.path == other.path
        assert dict(one.probabilities) == pytest.approx(dict(other.probabilities), abs=1e-3)
    assert list(predictor.predict([])) == []


def test_more_films_than_a_batch_and_broken_ones_between_them(
    films: list[Path], predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vgg16_xray.predict.BATCH", 2)
    broken = tmp_path / "broken.png"
    broken.write_bytes(films[0].read_bytes()[:300])
    files = [broken, films[0], broken, broken, films[1], films[2], tmp_path / "missing.png"]
    answers = list(predictor.predict(files))
    assert [answer.path for answer in answers] == [str(file) for file in files]
    assert [answer.answer for answer in answers] == [
        "error",
        "answered",
        "error",
        "error",
        "answered",
        "answered",
        "error",
    ]
    assert answers[0].reason.startswith("damaged image")
    assert answers[-1].reason == "must be a file, found none"
    alone = next(iter(predictor.predict([films[1]])))
    assert dict(answers[4].probabilities) == pytest.approx(dict(alone.probabilities), abs=1e-3)


def test_pixels_in_memory_are_answered_like_files(films: list[Path], predictor: Predictor) -> None:
    p = predictor.probabilities([decode(film) for film in films])
    for row, answer in zip(p, predictor.predict(films), strict=True):
        np.testing.assert_allclose(row, list(answer.probabilities.values()), atol=1e-3)


def first_column(table: str) -> str:
    """The first column of a table, its spaces left out: a long path goes on in the next line of its cell."""
    return "".join(line.split("│")[1] for line in table.splitlines() if line.startswith("│")).replace(" ", "")


@pytest.mark.parametrize("train_from", ["block2", "block3"])
def test_features_are_rounded_as_in_training(films: list[Path], tmp_path: Path, train_from: str) -> None:
    # What was stored for training was rounded to half precision; what was too large to be stored was not.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(classes=2, head="gap", dropout=0.0).eval()
    load_base().put_into(network)
    config = ModelConfig(
        labels=("a", "b"),
        head="gap",
        train_from=train_from,
        preprocessing="caffe",
        dropout=0.0,
        size=224,
        engine="torch-float32",
        epoch=1,
        recipe="test",
    )
    save_model(tmp_path / "model.safetensors", network, config)
    predictor = Predictor(tmp_path / "model.safetensors", engine="torch-float32")
    pixels = np.stack([to_square(decode(film)) for film in films[:2]])
    prefix, trainable = split_at(network, train_from)
    with torch.no_grad():
        features = prefix(normalise(torch.from_numpy(pixels), "caffe").to(memory_format=torch.channels_last))
        as_is, rounded = (torch.softmax(trainable(x).double(), 1).numpy() for x in (features, features.half().float()))
    expected, other = (as_is, rounded) if train_from == "block2" else (rounded, as_is)
    found = predictor.probabilities(list(pixels))
    assert np.abs(found - expected).max() < 0.2 * np.abs(found - other).max()


def fabricated_folds(path: Path, *, other_base: int | None = None) -> RunDir:
    """A run of three finished folds: heads drawn from seeds on the packaged base, one base changed where asked."""
    run = RunDir(path)
    each = []
    for number in range(1, 4):
        with torch.random.fork_rng():
            torch.manual_seed(number)
            network = build(classes=2, head="gap", dropout=0.0).eval()
        load_base().put_into(network)
        with torch.no_grad():
            list(network.parameters())[-2].mul_(0.01)  # The last layer: else every answer is certain.
            if number == other_base:
                next(network.parameters()).mul_(1.01)
        config = ModelConfig(
            labels=("a", "b"),
            head="gap",
            train_from="block5",
            preprocessing="caffe",
            dropout=0.0,
            size=224,
            engine="torch-float32",
            epoch=1,
            recipe="test",
        )
        model = FoldsDir(run.path).fold(number).best
        save_model(model, network, config)
        FoldsDir(run.path).fold(number).stamp("train", "", seconds=0)
        each.append({"run": f"folds/{number}", "checkpoint_sha256": sha256_of(model)})
    write_json(FoldsDir(run.path).numbers, {"trained_as": "", "each": each})
    run.stamp("folds", "", seconds=0)
    run.config.write_text("")
    return run


@pytest.mark.parametrize(("other_base", "frozen_parts"), [(None, 1), (2, 2)])
def test_folds_answer_together_and_share_a_frozen_part_only_where_it_is_the_same(
    films: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    other_base: int | None,
    frozen_parts: int,
) -> None:
    folds = fabricated_folds(tmp_path / "run", other_base=other_base)
    pixels = [decode(films[0])]
    singles = [
        Predictor(FoldsDir(folds.path).fold(n).path, engine="torch-float32").probabilities(pixels) for n in (1, 2, 3)
    ]
    calls = []
    real = FrozenPart.__call__
    monkeypatch.setattr(FrozenPart, "__call__", lambda *given: calls.append(1) or real(*given))
    together = Predictor(folds.path, engine="torch-float32").probabilities(pixels)
    np.testing.assert_allclose(together, np.mean(singles, axis=0), rtol=0, atol=1e-12)
    assert np.abs(singles[0] - singles[1]).max() > 1e-3
    assert len(calls) == frozen_parts
    if other_base is None:
        code, out, err = run(["predict", films[0], "--format", "json", "--model", folds.path], capsys)
        assert (code, err) == (0, "note: the mean of 3 models of the folds\n")
        assert json.loads(out)["labels"] == ["a", "b"]


#: How fast it went, said at the end.
RATE = re.compile(r"\d+ films in \d+\.\d s, \d+\.\d films/s")


def run(arguments: list[object], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli._run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_csv_has_the_header_of_the_design(
    films: list[Path], small_run: RunDir, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"")
    code, out, err = run(["predict", "--format", "csv", "--model", small_run.path, "--", *films, broken], capsys)
    assert code == 1
    rows = list(csv.DictReader(io.StringIO(out)))
    labels = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
    assert out.splitlines()[0] == (
        "path,prediction,confidence," + ",".join(f"p_{label}" for label in labels) + ",answer,reason,set"
    )
    assert [row["path"] for row in rows] == [str(film) for film in [*films, broken]]
    assert [row["answer"] for row in rows] == ["answered"] * 3 + ["error"]
    assert rows[-1]["reason"] == "must be an image, found an empty file"
    assert rows[-1]["prediction"] == rows[-1]["confidence"] == rows[-1]["p_COVID"] == ""
    for row in rows[:3]:
        p = [float(row[f"p_{label}"]) for label in labels]
        assert sum(p) == pytest.approx(1, abs=3e-6)
        assert float(row["confidence"]) == max(p)
    assert RATE.fullmatch(err.splitlines().pop(1))
    assert err.splitlines()[::2] == [
        RESEARCH_USE_ONLY,
        "1 of 4 files could not be read; the reasons stand in their rows",
    ]


def test_json_says_what_answers(films: list[Path], small_run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["predict", "--format", "json", "--model", small_run.best, "--", *films], capsys)
    assert code == 0
    document = json.loads(out)
    assert document["research_use_only"] == RESEARCH_USE_ONLY
    assert document["model"] == str(small_run.best)
    assert [row["path"] for row in document["predictions"]] == [str(film) for film in films]
    for row in document["predictions"]:
        assert list(row["probabilities"]) == document["labels"]
        assert row["prediction"] == max(row["probabilities"], key=row["probabilities"].get)


def test_the_table_shows_names_as_they_are(
    films: list[Path], small_run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(["predict", "--model", small_run.path, "--", films[0]], capsys)
    assert code == 0
    assert RESEARCH_USE_ONLY in out
    assert str(films[0]).replace(" ", "") == first_column(out)


@pytest.mark.parametrize("format_", ["table", "json", "csv"])
def test_a_file_gets_the_answers_and_the_screen_the_warning(
    films: list[Path], small_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str], format_: str
) -> None:
    out = tmp_path / "answers"
    arguments = ["predict", "--format", format_, "--model", small_run.path, "--out", out, "--", *films]
    code, output, errors = run(arguments, capsys)
    assert (code, output) == (0, "")
    warning, rate = errors.splitlines()
    assert warning == RESEARCH_USE_ONLY
    assert RATE.fullmatch(rate)
    text = out.read_text("utf-8")
    assert "\x1b" not in text
    if format_ != "csv":
        assert RESEARCH_USE_ONLY in text


def test_a_name_that_is_no_utf8_is_answered_in_every_format(
    films: list[Path], small_run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(os.fsencode(tmp_path) + b"/f\xff.png")
    try:
        shutil.copy(films[0], name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    broken = os.fsdecode(os.fsencode(tmp_path) + b"/g\xff.png")
    Path(broken).write_bytes(b"no image")
    for format_ in ("table", "json", "csv"):
        out = tmp_path / f"answers.{format_}"
        code, _, err = run(
            ["predict", name, broken, "--format", format_, "--model", small_run.path, "--out", out], capsys
        )
        assert code == 1, err
        text = out.read_text("utf-8").replace("\\\\", "\\")
        text = first_column(text) if format_ == "table" else text
        assert "f\\udcff.png" in text
        assert "g\\udcff.png" in text


def test_a_folder_is_its_films_without_masks(drawn_films: Path, tmp_path: Path, films: list[Path]) -> None:
    found = films_in([drawn_films])
    assert len(found) == 48
    assert found == sorted(found)
    assert not [file for file in found if "masks" in file.parts]
    assert films_in([films[2], drawn_films, films[0]]) == [films[2], *found, films[0]]
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "IM0001").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "dicom" / "README").write_bytes(b"x")
    assert films_in([tmp_path / "dicom"]) == [tmp_path / "dicom" / "IM0001"], "as when a dataset is scanned"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".hidden.png").write_bytes(b"x")
    (tmp_path / "other" / "text.txt").write_bytes(b"x")
    (none,) = films_in([tmp_path / "other"])
    assert isinstance(none, NoFilm)
    assert none.reason.startswith("must hold films (.bmp, ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--model", "{tmp}/none"],
            "--model: must be a bundle (config.json), a run (run.toml) or a run's model.safetensors, "
            "found none: {tmp}/none",
        ),
        (
            ["--model", "{tmp}"],
            "--model: must be a bundle (config.json), a run (run.toml) or a run's model.safetensors, "
            "found a folder with neither: {tmp}",
        ),
        (
            ["--model", "{run}", "--precision", "int8"],
            "--precision: must be left out where a run answers, found 'int8'",
        ),
        (["--model", "{run}", "--format", "xml"], "--format: must be one of table, json, jsonl, csv, found 'xml'"),
        (
            ["--model", "{run}", "--engine", "gpu"],
            "--engine: must be one of auto, torch-bfloat16, torch-float32, onnx-float32, ",
        ),
        (["--model", "{run}", "--out", "{tmp}"], "--out: must be a file, found the folder {tmp}"),
        (["--model", "{tmp}/a.safetensors"], "{tmp}/a.safetensors: must be a whole safetensors file, found"),
    ],
    ids=["no model", "no run", "precision", "format", "engine", "out", "not a model"],
)
def test_wrong_usage_is_one_line(
    films: list[Path],
    small_run: RunDir,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str,
) -> None:
    names = {"tmp": tmp_path, "run": small_run.path}
    (tmp_path / "a.safetensors").write_bytes(b"no model")
    code, out, err = run(["predict", films[2], *(text.format(**names) for text in arguments)], capsys)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith(f"vgg16-xray: {line.format(**names)}")


def test_text_of_answers_needs_no_model() -> None:
    assert as_csv([], labels=["a", "b"]) == "path,prediction,confidence,p_a,p_b,answer,reason,set\n"
    assert json.loads(as_json([], labels=["a", "b"], model="m"))["predictions"] == []


def test_a_training_that_is_not_finished_does_not_answer(copy_of_run: RunDir) -> None:
    copy_of_run.unstamp("train")
    with pytest.raises(UserError, match="step 'train' must be finished first"):
        Predictor(copy_of_run.path)
    assert Predictor(copy_of_run.best).labels, "the file itself may be asked by name"


def test_a_folder_is_held_against_what_the_model_knows_above_the_table_and_in_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(10):
        Image.fromarray(draw("Normal", seed=50, patient=n, size=160).pixels).save(tmp_path / f"{n}.png")
    assert command(["predict", str(tmp_path), "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)["shift"]
    # What the bundle refuses is no film and does not count.
    if found is not None:
        assert found["films"] <= 10
        assert found["words"]
    assert command(["predict", str(tmp_path / "0.png"), "--json", "--quiet"]) == 0
    alone = json.loads(capsys.readouterr().out)["shift"]
    assert alone is None or "too few" in alone["words"]
    classifier = Classifier.load(BundleDir.packaged().path)  # the one with validation films enough
    alike = [Prediction(path="", embedding=row) for row in np.random.default_rng(0).normal(size=(12, 1024))]
    said = classifier.shift_of(alike)
    assert said is not None
    text = rendered(alike, "table", labels=classifier.labels, model=None, colours=False, shift=said)
    assert text.startswith(said["words"])
