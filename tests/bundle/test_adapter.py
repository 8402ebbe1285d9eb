"""Models that are not ours: prepared as the adapter says, read as it says, and nothing of theirs is trusted."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from vgg16_xray.bundle.adapter import Adapter, Foreign, OfFunction, read_adapter
from vgg16_xray.cli import _run as command
from vgg16_xray.errors import UserError
from vgg16_xray.evaluate import evaluate

DOCS = Path(__file__).parents[2] / "docs" / "external.md"
WEIGHT = np.array([[1.0, 2.0, -3.0], [-0.5, 0.25, 4.0]], dtype=np.float32)


def graph(path: Path, *, axes: tuple[int, int] = (2, 3), weight: np.ndarray = WEIGHT) -> Path:
    """A network that means each channel over the picture and multiplies that: (B, 3, H, W), or NHWC, -> (B, K)."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=0),
        helper.make_node("Gemm", ["mean", "weight"], ["y"], transB=1),
    ]
    tensors = [numpy_helper.from_array(np.array(axes), "axes"), numpy_helper.from_array(weight, "weight")]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["films", None, None, None]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["films", len(weight)]),
    ]
    made = helper.make_graph(nodes, "theirs", ends[:1], ends[1:], tensors)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def films() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, size=(40, 40), dtype=np.uint8) for _ in range(3)]


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_film_is_prepared_as_the_adapter_says(layout: str, films: list[np.ndarray], tmp_path: Path) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    adapter = Adapter(labels=("a", "b"), size=(40, 40), layout=layout, scale=1 / 255, mean=mean, std=std)
    prepared = adapter.prepared(films)
    assert prepared.shape == ((3, 3, 40, 40) if layout == "NCHW" else (3, 40, 40, 3))
    theirs = Foreign(graph(tmp_path / "m.onnx", axes=(2, 3) if layout == "NCHW" else (1, 2)), adapter)
    brightness = np.array([film.mean() / 255 for film in films])
    expected = softmax(((brightness[:, None] - mean) / std) @ WEIGHT.T)
    assert theirs.probabilities(films) == pytest.approx(expected, abs=1e-5)


def test_films_are_stretched_to_height_and_width() -> None:
    adapter = Adapter(labels=("a", "b"), size=(32, 48), channels="grey")
    assert adapter.prepared([np.zeros((100, 50), np.uint8)]).shape == (1, 1, 32, 48)


def test_one_number_is_that_of_the_second_of_two_classes(films: list[np.ndarray], tmp_path: Path) -> None:
    adapter = Adapter(labels=("a", "b"), size=(40, 40))
    one = Foreign(graph(tmp_path / "m.onnx", weight=WEIGHT[:1]), adapter).probabilities(films)
    logit = np.array([film.mean() / 255 for film in films]) * WEIGHT[0].sum()
    assert one[:, 1] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)
    assert one.sum(axis=1) == pytest.approx(1)


def test_logits_that_are_called_probabilities_are_refused(films: list[np.ndarray], tmp_path: Path) -> None:
    adapter = Adapter(labels=("a", "b"), size=(40, 40), output="probabilities")
    with pytest.raises(UserError, match=r'must give probabilities that add up to 1, found .*; output = "logits"'):
        Foreign(graph(tmp_path / "m.onnx"), adapter).probabilities(films)
    with pytest.raises(UserError, match=r"function: must give 3 x 2 numbers, found \(3, 3\)"):
        OfFunction(lambda films: np.full((len(films), 3), 1 / 3), ["a", "b"]).probabilities(films)


def test_a_network_that_wants_another_shape_says_so_in_a_line(films: list[np.ndarray], tmp_path: Path) -> None:
    adapter = Adapter(labels=("a", "b"), size=(40, 40), channels="grey")
    with pytest.raises(UserError, match="must take what the adapter prepares") as caught:
        Foreign(graph(tmp_path / "m.onnx"), adapter).probabilities(films)
    assert "\n" not in str(caught.value)


def elsewhere(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[1]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value="../../etc/passwd")


def elsewhere_within(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="inner", dims=[1], data_type=1, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    inner = helper.make_graph([], "inner", [], [], [tensor])
    model.graph.node[0].attribute.append(helper.make_attribute("body", inner))


def foreign_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.evil"
    model.opset_import.append(helper.make_opsetid("com.evil", 1))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (elsewhere, "weights must lie in the file, found 'weight' in another"),
        (elsewhere_within, "weights must lie in the file, found 'inner' in another"),
        (foreign_operator, "must be a graph that ONNX Runtime can run"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_a_foreign_graph_must_not_hold_is_refused(change: object, line: str, tmp_path: Path) -> None:
    path = graph(tmp_path / "m.onnx")
    model = onnx.load(path)
    change(model)  # type: ignore[operator]
    path.write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=line):
        Foreign(path, Adapter(labels=("a", "b"), size=(40, 40)))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    import pickle

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "exploded"),)

    (tmp_path / "m.onnx").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="must be an ONNX model"):
        Foreign(tmp_path / "m.onnx", Adapter(labels=("a", "b"), size=(40, 40)))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("labels = ['a', 'b']", "size must be a list, found None"),
        ("labels = ['a', 'a']\nsize = [224, 224]", "adapter.labels: must be two or more different names"),
        ("labels = ['a', 'b']\nsize = [224]", r"adapter.size: must be \[height, width\]"),
        ("labels = ['a', 'b']\nsize = [224, 224]\nlayout = 'CHWN'", "adapter.layout: must be one of NCHW, NHWC"),
        ("labels = ['a', 'b']\nsize = [224, 224]\nstd = 0", "adapter.std: must be a number above 0, or 3"),
        ("labels = ['a', 'b']\nsize = [224, 224]\nmean = [1, 2]", "adapter.mean: must be a number, or 3"),
        ("labels = ['a', 'b']\nsize = [224, 224]\ncode = 'x'", "must hold .*, found code"),
        ("labels = [", "must be TOML"),
    ],
)
def test_an_adapter_that_breaks_a_rule_is_refused_in_a_line(text: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "adapter.toml").write_text(text)
    with pytest.raises(UserError, match=line) as caught:
        read_adapter(tmp_path / "adapter.toml")
    assert str(tmp_path / "adapter.toml") in str(caught.value)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise, dark films and bright ones."""
    folder, random = tmp_path_factory.mktemp("theirs") / "hospital", np.random.default_rng(1)
    for label, low in (("Normal", 0), ("COVID", 120)):
        (folder / label).mkdir(parents=True)
        for n in range(20):
            pixels = random.integers(low, low + 120, size=(64, 64), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{n}.png")
    return folder


def example(language: str) -> str:
    """The page's example in a language."""
    return re.search(rf"```{language}\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)[1]  # type: ignore[index]


def test_the_example_of_the_documentation_evaluates_a_foreign_network(
    hospital: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter.toml").write_text(example("toml"))
    weight = np.array([[-9, -9, -9], [9, 9, 9]], dtype=np.float32)
    theirs = graph(tmp_path / "theirs.onnx", weight=weight)
    arguments = ["evaluate", theirs, hospital, "--out", tmp_path / "out"]
    assert command([str(one) for one in [*arguments, "--adapter", tmp_path / "adapter.toml"]]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "external test: 40 films; accuracy 1.000 (" in out
    assert "copies were not looked for" in out
    assert "nobody calibrated this model" in (tmp_path / "out" / "evaluation.html").read_text()
    assert command([str(one) for one in arguments]) == 2
    assert "must come with --adapter FILE, found none" in capsys.readouterr().err


def test_the_example_of_the_documentation_evaluates_a_function(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hospital").symlink_to(hospital)
    exec(example("python"), {})
    assert "0.5" in capsys.readouterr().out
    assert (tmp_path / "out" / "evaluation.html").exists()


def test_the_films_of_a_foreign_models_training_are_taken_out(hospital: Path, tmp_path: Path) -> None:
    def theirs(films: list[np.ndarray]) -> list[list[float]]:
        return [[0.2, 0.8] for _ in films]

    trained = tmp_path / "trained" / "Normal"
    trained.mkdir(parents=True)
    (trained / "known.png").write_bytes((hospital / "Normal" / "3.png").read_bytes())
    found = evaluate(theirs, [hospital], tmp_path / "out", labels=["Normal", "COVID"], trained_on=trained.parent)
    assert [entry["film"] for entry in found["films"]["own"]] == ["hospital/Normal/3.png"]
    assert found["films"]["measured"] == 39
    assert found["drop"] is None
    assert not found["calibrated"]
    with pytest.raises(UserError, match="labels: must name the classes of a function"):
        evaluate(theirs, [hospital], tmp_path / "again")
