"""Checkpoints: whole or not there, checked tensor by tensor, never pickled."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vgg16_xray.errors import UserError
from vgg16_xray.learn.checkpoint import (
    HEADER,
    ModelConfig,
    load_exactly,
    load_header,
    load_model,
    load_tensors,
    save_model,
    save_tensors,
)
from vgg16_xray.learn.vgg16 import VGG16, build

CONFIG = ModelConfig(
    labels=("b", "a"),
    head="gap",
    train_from="head",
    preprocessing="caffe",
    dropout=0.3,
    size=224,
    engine="torch-float32",
    epoch=2,
    recipe="fast",
)


@pytest.fixture(scope="module")
def model() -> VGG16:
    return build(classes=2, head="gap", dropout=0.3)


@pytest.fixture(scope="module")
def saved(model: VGG16, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "best" / "model.safetensors"
    save_model(path, model, CONFIG)
    return path


def refusal(path: Path) -> str:
    lines = []
    for load in (load_model, load_tensors):
        with pytest.raises(UserError) as caught:
            load(path)
        lines.append(str(caught.value))
    assert str(path) in lines[0]
    assert "\n" not in lines[0]
    return lines[0]


def test_a_model_comes_back_as_it_was(model: VGG16, saved: Path) -> None:
    loaded, config = load_model(saved)
    assert config == CONFIG
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_the_header_can_be_read_alone(saved: Path) -> None:
    assert load_header(saved)["config"]["labels"] == ["b", "a"]


def test_the_same_model_gives_the_same_bytes(model: VGG16, saved: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "again.safetensors", model, CONFIG)
    assert (tmp_path / "again.safetensors").read_bytes() == saved.read_bytes()


def test_a_single_flipped_bit_is_noticed_before_the_model_answers(saved: Path, tmp_path: Path) -> None:
    raw = bytearray(saved.read_bytes())
    raw[-1000] ^= 1
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(raw)
    assert "its tensors are not those that were written" in refusal(path)
    assert "delete it" in refusal(path)


def test_nothing_is_pickled(saved: Path) -> None:
    raw = saved.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert set(json.loads(raw[8 : 8 + length])["__metadata__"]) == {HEADER}


def with_tensors(tmp_path: Path, saved: Path, **changes: torch.Tensor | None) -> Path:
    tensors, header = load_tensors(saved)
    tensors = {name: t for name, t in (tensors | changes).items() if t is not None}
    save_tensors(tmp_path / "changed.safetensors", tensors, header)
    return tmp_path / "changed.safetensors"


@pytest.mark.parametrize(
    ("name", "tensor", "rule"),
    [
        ("features.28.weight", None, "must hold tensor features.28.weight, found none"),
        ("features.99.weight", torch.zeros(1), "must hold the model's tensors, found features.99.weight besides"),
        (
            "classifier.3.weight",
            torch.zeros(3, 1024),
            "tensor classifier.3.weight must have shape (2, 1024), found (3, 1024)",
        ),
        (
            "features.0.bias",
            torch.zeros(64).half(),
            "tensor features.0.bias must be torch.float32, found torch.float16",
        ),
    ],
    ids=["missing", "extra", "shape", "format"],
)
def test_a_tensor_that_does_not_fit_is_named(
    tmp_path: Path, saved: Path, name: str, tensor: torch.Tensor | None, rule: str
) -> None:
    path = with_tensors(tmp_path, saved, **{name: tensor})
    with pytest.raises(UserError) as caught:
        load_model(path)
    assert str(caught.value) == f"{path}: {rule}"


def test_a_module_is_not_changed_by_tensors_that_do_not_fit() -> None:
    layer = torch.nn.Linear(2, 2)
    before = layer.weight.detach().clone()
    with pytest.raises(UserError, match="must hold tensor bias"):
        load_exactly(layer, {"weight": torch.zeros(2, 2)}, where="file")
    assert torch.equal(layer.weight, before)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.safetensors")


@pytest.mark.parametrize("kept", [0, 5, 100, 1_000_000], ids=lambda kept: f"{kept} bytes")
def test_a_truncated_file_is_one_line(tmp_path: Path, saved: Path, kept: int) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(saved.read_bytes()[:kept])
    assert "must be a whole safetensors file, found" in refusal(path)


def test_other_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    assert "must be a checkpoint of vgg16-xray, found other safetensors" in refusal(path)
    save_file({"x": torch.zeros(1)}, path, metadata={HEADER: "[1]"})
    assert "must be a checkpoint of vgg16-xray" in refusal(path)
    save_file({"x": torch.zeros(1)}, path, metadata={HEADER: "not JSON"})
    assert "must be a whole safetensors file" in refusal(path)
    torch.save({"x": torch.zeros(1)}, path)
    assert "must be a whole safetensors file" in refusal(path)


@pytest.mark.parametrize("config", [{}, {"config": {"labels": ["a", "b"]}}, {"config": [1]}, {"config": {"labels": 1}}])
def test_a_model_without_its_configuration_is_one_line(tmp_path: Path, config: dict[str, object]) -> None:
    save_tensors(tmp_path / "m.safetensors", {"x": torch.zeros(1)}, config)
    with pytest.raises(UserError, match="must hold a model's configuration, found"):
        load_model(tmp_path / "m.safetensors")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def check_that_a_failed_save_loses_nothing(path: Path, *, largest: int) -> None:
    with pytest.raises(UserError) as caught:
        save_tensors(path, {"x": torch.zeros(largest)}, {"what": "new"})
    assert str(path) in str(caught.value)
    assert "cannot be written" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert load_tensors(path)[1] == {"what": "old"}
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_full_disk_is_one_line_and_the_old_file_survives(small_disk: Path) -> None:
    path = small_disk / "state.safetensors"
    save_tensors(path, {"x": torch.ones(10)}, {"what": "old"})
    check_that_a_failed_save_loses_nothing(path, largest=1_000_000)


def test_a_file_that_may_not_grow_is_one_line_and_the_old_file_survives(tmp_path: Path) -> None:
    path = tmp_path / "only" / "state.safetensors"
    save_tensors(path, {"x": torch.ones(10)}, {"what": "old"})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        check_that_a_failed_save_loses_nothing(path, largest=1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_header_that_json_cannot_hold_is_refused_before_the_old_file_goes(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_tensors(path, {"x": torch.ones(10)}, {"loss": 1.0})
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_tensors(path, {"x": torch.ones(10)}, {"loss": float("nan")})
    assert load_header(path) == {"loss": 1.0}
