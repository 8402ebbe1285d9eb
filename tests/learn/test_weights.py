import hashlib
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vgg16_xray import config
from vgg16_xray.errors import UserError
from vgg16_xray.learn import weights
from vgg16_xray.learn.vgg16 import build
from vgg16_xray.learn.weights import BaseWeights, load_base, normalise

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
LAYERS = [f"block{b}_conv{c}" for b, n in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)) for c in range(1, n + 1)]
CLASSIFIER = {"classifier.0.weight": torch.zeros(2, 3), "classifier.0.bias": torch.zeros(2)}


@pytest.fixture(scope="module")
def base() -> BaseWeights:
    return load_base()


@pytest.fixture(scope="module")
def others(base) -> dict[str, torch.Tensor]:
    """Weights of the right shape that are not Oxford's."""
    return {name: tensor * 1.5 for name, tensor in base.tensors.items()}


def assert_same(found: BaseWeights, tensors) -> None:
    assert list(found.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == torch.float32
        assert torch.equal(found.tensors[name], tensor), name


def write_keras(path: Path, tensors, name_of) -> Path:
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for layer, index in zip(LAYERS, CONVOLUTIONS, strict=True):
            for part in ("weight", "bias"):
                value = tensors[f"features.{index}.{part}"].numpy()
                file[name_of(layer, part)] = np.transpose(value, (2, 3, 1, 0)) if value.ndim == 4 else value
    return path


def keras1(layer: str, part: str) -> str:
    return f"{layer}/{layer}_{'W' if part == 'weight' else 'b'}_1:0"


def keras2(layer: str, part: str) -> str:
    return f"{layer}/{layer}/{'kernel' if part == 'weight' else 'bias'}:0"


def keras3(layer: str, part: str) -> str:
    return f"model_weights/{layer}/{layer}/{'kernel' if part == 'weight' else 'bias'}"


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_base(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) < len(str(path)) + 350
    return text.removeprefix(f"{path}: ")


def test_packaged_base_is_whole_and_says_what_it_wants(base):
    assert list(base.tensors) == [f"features.{i}.{part}" for i in CONVOLUTIONS for part in ("weight", "bias")]
    assert sum(t.numel() for t in base.tensors.values()) == 14_714_688
    assert base.preprocessing == "caffe"
    assert "as the file states" in base.origin
    packaged = Path(weights.__file__).with_name(weights.PACKAGED)
    assert base.sha256 == hashlib.sha256(packaged.read_bytes()).hexdigest()
    assert packaged.stat().st_size < 30e6


def test_packaged_base_answers_as_the_float32_weights_do(base):
    model = build(classes=2, head="gap", dropout=0.0).eval()
    base.put_into(model)
    ramp = torch.linspace(0, 255, 224 * 224).reshape(1, 224, 224)
    with torch.no_grad():
        answer = model.features(normalise(ramp, "caffe"))
    # Statistics of the float32 weights on this input: reference_activation.json beside the source of the weights.
    assert answer.shape == (1, 512, 7, 7)
    assert float(answer.mean()) == pytest.approx(0.16352181136608124, rel=1e-3)
    assert float(answer.std()) == pytest.approx(1.656714677810669, rel=1e-3)
    assert float(answer.norm()) == pytest.approx(263.6801452636719, rel=1e-3)


SHARED = Path(__file__).parents[3] / "shared" / "weights" / "vgg16_imagenet_conv_fp32.safetensors"


@pytest.mark.skipif(not SHARED.exists(), reason=f"{SHARED} is not there")
def test_packaged_base_is_the_source_in_half_precision(base):
    source = load_base(SHARED)
    assert source.preprocessing == "caffe"
    assert "recognised as the original Oxford weights" in source.origin
    assert_same(base, {name: tensor.half().float() for name, tensor in source.tensors.items()})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unit", [100 / 255] * 3),
        ("caffe", [100 - 103.939, 100 - 116.779, 100 - 123.68]),
        ("torch", [(100 / 255 - m) / s for m, s in ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))]),
    ],
)
def test_grey_goes_into_three_channels_normalised_each(name, expected):
    films = torch.full((2, 4, 5), 100, dtype=torch.uint8)
    out = normalise(films, name)
    assert out.shape == (2, 3, 4, 5)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert out[1, :, 2, 3].tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(out, normalise(films.float(), name))
    assert normalise(films, name, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_half_the_side_is_means_of_four_pixels_in_whole_grey_levels():
    pixels = torch.tensor([[[10, 11, 200, 201], [12, 13, 202, 204], [0, 0, 255, 255], [1, 1, 255, 255]]])
    # 11.5 and 0.5 lie between two levels and go to the even one, as ONNX's Round has it; 201.75 is nearest to 202.
    smaller = torch.tensor([[[12, 202], [0, 255]]], dtype=torch.uint8)
    assert torch.equal(normalise(pixels.to(torch.uint8), "caffe-half"), normalise(smaller, "caffe"))
    assert (weights.side_seen("caffe-half", 224), weights.side_seen("caffe", 224)) == (112, 224)


def test_weights_that_want_half_the_side_are_refused(tmp_path):
    model = build(classes=2, head="gap", dropout=0.0)
    tensors = {f"features.{name}": tensor for name, tensor in model.features.state_dict().items()}
    save_file(tensors, tmp_path / "base.safetensors", metadata={"preprocessing": "caffe-half"})
    with pytest.raises(UserError, match="must be one of unit, caffe, torch, found 'caffe-half'"):
        load_base(tmp_path / "base.safetensors")


def test_an_unknown_normalisation_is_refused():
    with pytest.raises(UserError, match="preprocessing: must be one of unit, caffe, caffe-half, torch, found 'tf'"):
        normalise(torch.zeros(1, 2, 2), "tf")
    assert tuple(weights.PREPROCESSING) == config.PREPROCESSING


@pytest.mark.parametrize("name_of", [keras1, keras2, keras3])
def test_keras_files_load_to_the_same_tensors(base, others, tmp_path, name_of):
    # A wrong name: the content tells the format.
    found = load_base(write_keras(tmp_path / "weights.bin", others, name_of))
    assert_same(found, others)
    assert found.preprocessing == "caffe"
    assert "md5" in found.origin
    assert "assumed" in found.origin


def test_kerass_own_file_is_told_by_its_md5(base, tmp_path, monkeypatch):
    path = write_keras(tmp_path / "notop.h5", base.tensors, keras1)
    monkeypatch.setattr(weights, "KERAS_MD5", hashlib.md5(path.read_bytes()).hexdigest())
    assert "Keras' released file" in load_base(path).origin


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "before torch 1.6, as vgg16-397923af.pth"])
def test_torchvision_files_load_to_the_same_tensors(others, tmp_path, as_zip):
    torch.save(others | CLASSIFIER, tmp_path / "vgg16.pth", _use_new_zipfile_serialization=as_zip)
    found = load_base(tmp_path / "vgg16.pth")
    assert_same(found, others)
    assert found.preprocessing == "torch"
    assert "assumed, as is usual for a torchvision .pth" in found.origin


@pytest.mark.parametrize("prefix", ["features.", ""])
def test_safetensors_load_to_the_same_tensors(others, tmp_path, prefix):
    renamed = {name.replace("features.", prefix): tensor for name, tensor in others.items()}
    save_file(renamed | CLASSIFIER, tmp_path / "silent.safetensors")
    save_file(renamed, tmp_path / "telling.safetensors", {"preprocessing": "unit"})
    silent, telling = load_base(tmp_path / "silent.safetensors"), load_base(tmp_path / "telling.safetensors")
    assert_same(silent, others)
    assert_same(telling, others)
    assert (silent.preprocessing, telling.preprocessing) == ("torch", "unit")
    assert "assumed" in silent.origin
    assert "as the file states" in telling.origin


def test_oxfords_weights_are_recognised_in_any_file(base, tmp_path):
    torch.save(dict(base.tensors), tmp_path / "ported.pth")
    found = load_base(tmp_path / "ported.pth")
    assert found.preprocessing == "caffe"
    assert "recognised" in found.origin


def test_weights_loaded_from_a_file_outlive_it(others, tmp_path):
    path = tmp_path / "vgg16.pth"
    torch.save(others, path)
    found = load_base(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert_same(found, others)


def test_a_misshaped_tensor_is_named(others, tmp_path):
    save_file(others | {"features.5.weight": torch.zeros(128, 64, 5, 5)}, tmp_path / "odd.safetensors")
    assert refusal(tmp_path / "odd.safetensors") == (
        "features.5.weight must have the shape (128, 64, 3, 3), found (128, 64, 5, 5)"
    )


def test_missing_tensors_are_named(others, tmp_path):
    torch.save({name: t for name, t in others.items() if not name.endswith("28.bias")}, tmp_path / "few.pth")
    assert "found no features.28.bias" in refusal(tmp_path / "few.pth")
    torch.save({}, tmp_path / "none.pth")
    assert "found no features.0.weight, features.0.bias, features.2.weight and 23 more" in refusal(
        tmp_path / "none.pth"
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.tensor([float("nan")] * 64), "features.0.bias must hold finite numbers"),
        (torch.zeros(64, dtype=torch.int8), "features.0.bias must hold dense floating-point numbers, found torch.int8"),
        (torch.zeros(64).to_sparse(), "features.0.bias must hold dense floating-point numbers"),
    ],
)
def test_values_that_are_no_weights_are_refused(others, tmp_path, value, said):
    torch.save(others | {"features.0.bias": value}, tmp_path / "bad.pth")
    assert said in refusal(tmp_path / "bad.pth")


def test_an_unknown_stated_normalisation_is_refused(others, tmp_path):
    save_file(others, tmp_path / "odd.safetensors", {"preprocessing": "tf"})
    assert "'preprocessing' must be one of unit, caffe, torch, found 'tf'" in refusal(tmp_path / "odd.safetensors")


class Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("written", ["zip", "legacy", "plain pickle"])
def test_a_pickle_that_wants_to_run_code_is_refused_and_does_not(tmp_path, written):
    path, trace = tmp_path / "evil.pth", tmp_path / "ran"
    if written == "plain pickle":
        path.write_bytes(pickle.dumps({"features.0.weight": Malicious(trace)}))
    else:
        torch.save({"x": Malicious(trace)}, path, _use_new_zipfile_serialization=written == "zip")
    said = refusal(path)
    assert not trace.exists()
    assert "must be a .pth that holds only tensors" in said
    if written != "plain pickle":
        assert "asks to run posix.mkdir" in said


def whole_bytes(kind: str, tmp_path: Path) -> bytes:
    tensors = {"features.0.weight": torch.rand(64, 3, 3, 3)}
    if kind == "safetensors":
        save_file(tensors, tmp_path / "x")
    elif kind == "h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(tmp_path / "x", "w") as file:
            file["block1_conv1/kernel:0"] = np.zeros((3, 3, 3, 64), np.float32)
    else:
        torch.save(tensors, tmp_path / "x", _use_new_zipfile_serialization=kind == "pth")
    return (tmp_path / "x").read_bytes()


@pytest.mark.parametrize("kind", ["safetensors", "pth", "old pth", "h5"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.95])
def test_a_truncated_file_is_one_line(tmp_path, kind, share):
    content = whole_bytes(kind, tmp_path)
    (tmp_path / "half").write_bytes(content[: max(16, int(share * len(content)))])
    refusal(tmp_path / "half")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"<html>not found</html>", bytes(100), b"\x80\x02garbage", b"PK\x03\x04"]
)
def test_a_file_that_is_no_weights_is_one_line(tmp_path, content):
    (tmp_path / "weights.pth").write_bytes(content)
    refusal(tmp_path / "weights.pth")


def test_a_pth_of_something_else_is_one_line(tmp_path):
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    (tmp_path / "list.pth").write_bytes(buffer.getvalue())
    assert refusal(tmp_path / "list.pth") == "must be a .pth with a state dict, found a list"


def test_what_is_not_a_file_is_one_line(tmp_path):
    assert refusal(tmp_path / "absent.pth") == "no such file"
    assert "cannot be read" in refusal(tmp_path)


def test_the_same_source_gives_the_same_packaged_bytes(base, tmp_path):
    import importlib.util

    script = Path(__file__).parents[2] / "scripts" / "make_weights.py"
    spec = importlib.util.spec_from_file_location("make_weights", script)
    make_weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_weights)
    tensors = {"b": torch.ones(3, dtype=torch.float16), "a": torch.zeros(2, dtype=torch.float16)}
    metadata = {str(i): "x" for i in range(20)}
    first, second = (make_weights.deterministic(tensors, metadata) for _ in range(2))
    assert first == second
    (tmp_path / "x.safetensors").write_bytes(first)
    assert torch.equal(load_file(tmp_path / "x.safetensors")["b"], tensors["b"])
