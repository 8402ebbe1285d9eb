"""The engine is chosen by what the processor can do and by a race, and each gives the features of float32."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from vgg16_xray.errors import MissingExtra, UserError
from vgg16_xray.films.phantom import CLASSES, draw
from vgg16_xray.learn import engines
from vgg16_xray.learn.engines import (
    ENGINES,
    FrozenPart,
    Measured,
    choose,
    engine_from,
    machine_in_words,
    processor_features,
)
from vgg16_xray.learn.vgg16 import build, split_at
from vgg16_xray.learn.weights import load_base
from vgg16_xray.rundir import CacheDir


@pytest.mark.parametrize(
    ("features", "name"),
    [
        (set(), "torch-float32"),
        ({"avx2"}, "torch-float32"),
        ({"avx2", "avx512f", "avx512_vnni"}, "torch-float32"),
        ({"avx2", "amx_tile", "amx_int8"}, "torch-float32"),
        ({"avx512f", "avx512_bf16"}, "torch-bfloat16"),
        ({"amx_tile", "amx_bf16"}, "torch-bfloat16"),
    ],
    ids=str,
)
def test_bf16_is_chosen_only_where_the_processor_has_it(
    features: set[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "processor_features", lambda: frozenset(features))
    engine = choose()
    assert engine.name == name
    assert engine.dtype == (torch.bfloat16 if name == "torch-bfloat16" else torch.float32)
    assert "bf16" in engine.reason


def test_an_engine_can_be_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "processor_features", lambda: frozenset({"avx512_bf16", "avx512_vnni"}))
    monkeypatch.setattr(engines, "is_installed", lambda name: True)
    for name in ENGINES[1:]:
        assert (choose(name).name, choose(name).reason) == (name, "asked for")


@pytest.mark.parametrize(("name", "lacks"), [("torch-bfloat16", "no bf16"), ("onnx-int8", "no VNNI")])
def test_an_engine_without_its_instructions_says_so(name: str, lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "processor_features", lambda: frozenset({"avx2"}))
    assert lacks in choose(name).reason


def test_an_engine_that_is_not_installed_is_refused_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "is_installed", lambda name: not name.startswith("ncnn"))
    with pytest.raises(MissingExtra, match=r"--engine ncnn-float32 needs the extra 'ncnn'") as refused:
        choose("ncnn-float32")
    assert "[ncnn]" in str(refused.value.hint)


def rates(**per_second: tuple[float, float]) -> dict[str, Measured]:
    return {name.replace("_", "-"): Measured(rate, error) for name, (rate, error) in per_second.items()}


RACES = {
    "the fastest": (rates(torch_float32=(5, 0), onnx_float32=(6, 1e-6), ncnn_float32=(10, 2e-6)), "ncnn-float32"),
    "hardly faster than torch": (
        rates(torch_float32=(5, 0), onnx_float32=(5.5, 1e-6), ncnn_float32=(3, 2e-6)),
        "torch-float32",
    ),
    "fast and wrong": (
        rates(torch_float32=(5, 0), onnx_float32=(6, 1e-6), ncnn_float32=(10, 0.021)),
        "onnx-float32",
    ),
}


@pytest.mark.parametrize(("found", "name"), RACES.values(), ids=RACES)
def test_auto_takes_the_fastest_that_is_right(
    found: dict[str, Measured], name: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "processor_features", lambda: frozenset({"avx2"}))
    monkeypatch.setattr(engines, "is_installed", lambda name: True)
    raced: list[list[str]] = []
    monkeypatch.setattr(engines, "_race", lambda names: raced.append(list(names)) or found)  # type: ignore[func-returns-value]
    engine = choose(race=True)
    assert (engine.name, engine.films_per_second, engine.error) == (
        name,
        found[name].films_per_second,
        found[name].error,
    )
    assert any("torch-bfloat16" in line and "bf16" in line for line in engine.raced)
    assert any("onnx-int8: not raced" in line for line in engine.raced)
    # A second run races no more, and one that may not race remembers.
    assert choose(race=True) == engine == choose()
    assert raced == [["torch-float32", "onnx-float32", "ncnn-float32"]]
    assert engine_from(engine.as_dict()) == engine


def test_what_is_not_installed_is_left_out_of_the_race_by_name(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "processor_features", lambda: frozenset({"avx2"}))
    monkeypatch.setattr(engines, "is_installed", lambda name: name.startswith("torch"))
    monkeypatch.setattr(engines, "_race", lambda names: {name: Measured(5.0, 0.0) for name in names})
    engine = choose(race=True)
    assert engine.name == "torch-float32"
    assert "onnx-float32: onnxruntime is not installed" in engine.raced
    assert "ncnn-float32: ncnn is not installed" in engine.raced


#: What a processor has, what is trained -> who is raced.
WHO_IS_RACED = [
    ({"avx512_bf16", "avx512_vnni"}, "block5", ["torch-bfloat16", "torch-float32"]),
    ({"avx512_bf16"}, "head", ["torch-bfloat16", "torch-float32", "onnx-float32", "ncnn-float32"]),
    ({"amx_bf16", "amx_int8"}, "head", ["torch-bfloat16", "torch-float32", "onnx-int8"]),
    ({"avx2", "avx_vnni"}, "head", ["torch-float32", "onnx-int8"]),
    ({"avx2", "avx_vnni"}, "block5", ["torch-float32", "onnx-float32", "ncnn-float32"]),
    ({"avx2"}, "head", ["torch-float32", "onnx-float32", "ncnn-float32"]),
]


@pytest.mark.parametrize(("features", "train_from", "expected"), WHO_IS_RACED, ids=str)
def test_only_those_are_raced_that_can_win(
    features: set[str], train_from: str, expected: list[str], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "processor_features", lambda: frozenset(features))
    monkeypatch.setattr(engines, "is_installed", lambda name: True)
    raced: list[str] = []
    monkeypatch.setattr(
        engines, "_race", lambda names: raced.extend(names) or {name: Measured(5.0, 0.0) for name in names}
    )
    lines = choose(race=True, train_from=train_from).raced
    assert raced == expected
    assert {line.partition(":")[0] for line in lines} == set(ENGINES[1:])


@pytest.mark.parametrize(("train_from", "name"), [("head", "onnx-int8"), ("block5", "torch-bfloat16")])
def test_auto_takes_int8_where_the_head_alone_learns(
    train_from: str, name: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "processor_features", lambda: frozenset({"avx512_bf16", "avx512_vnni"}))
    monkeypatch.setattr(engines, "is_installed", lambda name: True)
    found = rates(
        torch_bfloat16=(14, 0.011),
        torch_float32=(7, 0),
        onnx_float32=(7, 0),
        ncnn_float32=(17, 0),
        onnx_int8=(27, 0.04),
    )
    monkeypatch.setattr(engines, "_race", lambda names: found)
    assert choose(race=True, train_from=train_from).name == name


def test_a_damaged_memory_of_races_is_raced_again(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_race", lambda names: {name: Measured(5.0, 0.0) for name in names})
    CacheDir.of_user().engines.write_text("[]")
    assert choose("torch-float32", race=True).films_per_second == 5.0
    assert choose("torch-float32", race=True).films_per_second == 5.0


def test_the_race_measures_rate_and_error() -> None:
    names = ["torch-float32", "onnx-float32"]
    found = engines._race(names)
    assert list(found) == names
    assert found["torch-float32"].error == 0.0
    assert 0.0 < found["onnx-float32"].error < 1e-4
    assert all(one.films_per_second > 0 for one in found.values())


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(UserError, match=r"--engine: must be one of auto, .*torch-float32, .* found 'cuda'"):
        choose("cuda")


def test_the_machine_is_told_in_words() -> None:
    assert " cores, " in machine_in_words()
    assert all(feature in machine_in_words() for feature in processor_features())


@pytest.fixture(scope="module")
def films() -> torch.Tensor:
    return torch.from_numpy(np.stack([draw(label, seed=i, size=224).pixels for i, label in enumerate(CLASSES)]))


def frozen(train_from: str, engine: str, head: str = "gap", preprocessing: str = "caffe") -> FrozenPart:
    model = build(classes=2, head=head, dropout=0.0)
    load_base().put_into(model)
    return FrozenPart(split_at(model, train_from)[0], preprocessing=preprocessing, engine=choose(engine))


#: What each engine may differ from torch's float32 by, relative, at any cut (docs/architecture.md, "Engines").
STATED = {"torch-bfloat16": 0.02, "onnx-float32": 1e-5, "ncnn-float32": 1e-5, "onnx-int8": 0.1}


@pytest.mark.parametrize("train_from", ["head", "block5", "block4", "block3"])
@pytest.mark.parametrize("name", ["torch-bfloat16", "onnx-float32", "ncnn-float32"])
def test_every_engine_gives_the_features_of_float32(name: str, train_from: str, films: torch.Tensor) -> None:
    if not engines.is_installed(name):
        pytest.skip(f"{name} is not installed")
    if name == "torch-bfloat16" and not processor_features() & engines.BF16:
        pytest.skip("this processor has no bf16 instructions")
    for head in ("gap", "vgg") if train_from == "head" else ("gap",):
        exact, fast = (frozen(train_from, which, head)(films[:2]) for which in ("torch-float32", name))
        assert fast.shape == exact.shape
        assert fast.is_contiguous(memory_format=torch.channels_last)
        assert ((fast.float() - exact).norm() / exact.norm()).item() < STATED[name]
        assert (fast != exact).any()


@pytest.mark.parametrize("name", ["torch-bfloat16", "onnx-float32", "ncnn-float32", "onnx-int8"])
def test_every_engine_makes_films_smaller_the_same_way(name: str, films: torch.Tensor) -> None:
    if not engines.is_installed(name):
        pytest.skip(f"{name} is not installed")
    exact, fast = (frozen("head", which, "gap", "caffe-half")(films[:2]) for which in ("torch-float32", name))
    assert ((fast.float() - exact).norm() / exact.norm()).item() < STATED[name]
    by_hand = torch.nn.functional.avg_pool2d(films[:2].float(), 2).round().to(torch.uint8)
    assert torch.equal(frozen("head", "torch-float32")(by_hand), exact)
    # Films in float32, as augmentation makes them, are cut to whole levels too.
    assert torch.equal(frozen("head", name, "gap", "caffe-half")(films[:2].float()), fast)


@pytest.mark.parametrize("seven_bits", [False, True])
def test_int8_features_are_close_to_float32(
    seven_bits: bool, films: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seven_bits:
        monkeypatch.setattr(engines, "processor_features", lambda: frozenset({"avx2"}))
    exact, fast = (frozen("block3", which)(films[:2]) for which in ("torch-float32", "onnx-int8"))
    assert ((fast - exact).norm() / exact.norm()).item() < STATED["onnx-int8"]


def test_the_frozen_part_leaves_the_model_in_float32(films: torch.Tensor) -> None:
    model = build(classes=2, head="gap", dropout=0.0)
    prefix, _ = split_at(model, "block2")
    part = FrozenPart(prefix, preprocessing="unit", engine=choose("torch-bfloat16"))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    out = part(films[:1])
    assert out.dtype == torch.bfloat16
    assert out.shape == (1, 64, 112, 112)
    assert not out.requires_grad
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_uint8_and_float_films_give_the_same(films: torch.Tensor) -> None:
    part = frozen("block2", "torch-float32")
    assert torch.equal(part(films[:1]), part(films[:1].float()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("films", [1, 3])
def test_a_relu_inside_its_convolution_changes_no_bit(dtype: torch.dtype, films: int) -> None:
    from vgg16_xray.learn import runtimes
    from vgg16_xray.learn.weights import normalise

    torch.manual_seed(0)
    prefix = build(classes=2, head="gap", dropout=0.0).features[:17].eval()
    pixels = torch.randint(0, 256, (films, 64, 64), dtype=torch.uint8)
    layers = copy.deepcopy(prefix).to(dtype, memory_format=torch.channels_last)
    with torch.no_grad():
        expected = layers(normalise(pixels, "caffe").to(dtype, memory_format=torch.channels_last))
        found = runtimes.with_torch(prefix, "caffe", dtype)(pixels)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert expected.any()


@pytest.mark.parametrize("engine", ["torch-float32", "torch-bfloat16"])
def test_films_on_threads_of_their_own_have_the_bits_of_one_batch(engine: str, films: torch.Tensor) -> None:
    part = frozen("block3", engine)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(len(films) + 1)  # more threads than films: all of them share one batch
        together = part(films)
        torch.set_num_threads(3)
        apart = part(films)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(apart, together)
    assert not apart.requires_grad


def test_a_cache_that_cannot_be_written_costs_a_race_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("VGG16_XRAY_CACHE", str(tmp_path / "file"))
    assert engines.measure(["torch-float32"])["torch-float32"].films_per_second > 0
