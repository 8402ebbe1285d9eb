"""A bundle answers as its run does, through every way in, without torch; a broken film is an answer too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from vgg16_xray import Classifier
from vgg16_xray.bundle.classify import check
from vgg16_xray.errors import UserError
from vgg16_xray.films.decode import decode, to_square
from vgg16_xray.predict import Predictor
from vgg16_xray.rundir import RunDir


@pytest.fixture(scope="module")
def films(drawn_films: Path) -> list[Path]:
    return sorted(drawn_films.glob("*/images/*.png"))[::9]


def test_float32_gives_what_the_run_gives_but_for_the_temperature(
    bundle: Path, small_run: RunDir, films: list[Path]
) -> None:
    classifier = Classifier.load(bundle, precision="float32")
    squares = [to_square(decode(film)) for film in films]
    logits = classifier.predict_arrays(squares).logits.astype(np.float64)
    softmax = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax /= softmax.sum(axis=1, keepdims=True)
    expected = Predictor(small_run.path, engine="torch-float32").probabilities(squares)
    np.testing.assert_allclose(softmax, expected, atol=1e-3)


def test_paths_bytes_and_pixels_get_one_answer_in_their_order(bundle: Path, films: list[Path], tmp_path: Path) -> None:
    classifier = Classifier.load(bundle)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no film")
    answers = classifier.predict([films[0], broken, films[0].read_bytes(), decode(films[0]), str(films[1])])
    assert [answer.path for answer in answers] == [str(films[0]), str(broken), "-", "array 3", str(films[1])]
    assert [answer.answer == "error" for answer in answers] == [False, True, False, False, False]
    assert answers[0].probabilities == answers[2].probabilities == answers[3].probabilities
    assert answers[1].reason == "must be PNG, JPEG, TIFF, BMP, WebP or DICOM, found text"
    assert classifier.predict([]) == []


@pytest.mark.parametrize(("height", "width"), [(500, 333), (224, 500), (100, 150), (225, 223)])
def test_films_of_any_size_are_stretched_as_in_training(bundle: Path, height: int, width: int) -> None:
    # Noise is the hardest: where one rounds after the columns and the other after the rows, a grey level is between.
    film = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    apart = Classifier.load(bundle).square(film).astype(int) - to_square(film)
    assert np.abs(apart).max() <= 1
    assert abs(apart.mean()) < 0.02


def test_int8_is_the_same_in_whatever_order_a_machine_adds(bundle: Path, films: list[Path]) -> None:
    # ONNX Runtime lays convolutions out otherwise, and adds in another order, where it may not optimise.
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = ort.InferenceSession(str(bundle / "model.int8.onnx"), options)
    found = Classifier.load(bundle, precision="int8").predict_arrays([decode(film) for film in films])
    for film, expected in zip(films, found.feature_map, strict=True):
        (feature_map,) = plain.run(["feature_map"], {"pixels": decode(film)[None]})
        assert (feature_map[0] == expected).all()


def test_the_whole_bundle_is_checked(bundle: Path) -> None:
    assert check(bundle).keys() == {"int8", "float32"}


def test_prediction_loads_neither_torch_nor_what_training_needs(bundle: Path, films: list[Path]) -> None:
    program = (
        "import sys\nfrom vgg16_xray.cli import _run\n"
        f"code = _run(['predict', {str(films[0])!r}, '--model', {str(bundle)!r}, '--format', 'jsonl'])\n"
        "heavy = {'torch', 'pandas', 'scipy', 'sklearn', 'matplotlib', 'onnx', 'safetensors', 'jinja2'}\n"
        "print(sorted(heavy & set(sys.modules)), code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    answer, heavy = done.stdout.splitlines()
    assert json.loads(answer)["answer"] in ("answered", "abstained")
    assert heavy == "[] 0"


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_films_that_go_a_thread_each_get_the_numbers_of_one_after_the_other(
    bundle: Path, films: list[Path], count: int
) -> None:
    pixels = [to_square(decode(films[i % len(films)])) for i in range(count)]
    alone, together = (Classifier.load(bundle, threads=threads).predict_arrays(pixels) for threads in (1, 2))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_from_python_too_what_is_no_film_is_an_answer_and_one_film_is_no_list(bundle: Path) -> None:
    classifier = Classifier.load(bundle)
    answers = classifier.predict(["nul\0x", 3])  # type: ignore[list-item]
    assert [(one.answer, "must be" in one.reason) for one in answers] == [("error", True)] * 2
    for one in ("a.png", Path("a.png"), b"x"):
        with pytest.raises(UserError, match="images: must be several films, in a list, found one"):
            classifier.predict(one)  # type: ignore[arg-type]
