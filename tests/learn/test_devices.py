"""The path of a GPU, held on a machine without one: the same loop, on a processor and on a device without values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vgg16_xray.config import Augmentation, load_recipe
from vgg16_xray.errors import UserError
from vgg16_xray.films.store import ArrayStore, create_array
from vgg16_xray.learn import devices, featurestore
from vgg16_xray.learn.augment import Augment
from vgg16_xray.learn.devices import Resident, Streamed, choose_device, compiled, device_of, rows_on
from vgg16_xray.learn.engines import FrozenPart, choose
from vgg16_xray.learn.features import ComputedFeatures
from vgg16_xray.learn.featurestore import StoredFeatures
from vgg16_xray.learn.fit import TrainingData, _Loop
from vgg16_xray.learn.heads import AverageAndMaximum, Dropout, Standardise
from vgg16_xray.learn.vgg16 import Trainable

FILMS, CLASSES, SIDE = 24, 3, 16
CPU, META = torch.device("cpu"), torch.device("meta")
TARGETS = np.random.default_rng(3).integers(0, CLASSES, FILMS)
#: Everything trained, all that is random in a step.
RECIPE = dataclasses.replace(
    load_recipe("default", epochs=2),
    train_from="all",
    batch=7,
    mixup=0.4,
    head_epochs=1,
    augmentation=Augmentation(rotation=7, zoom=0.1, shift=0.05, exposure=0.2),
)
ENGINE = choose("torch-float32")


@pytest.fixture
def pixels(tmp_path: Path) -> ArrayStore:
    rows = create_array(tmp_path / "pixels.npy", shape=(FILMS, SIDE, SIDE), dtype=np.uint8)
    rows[:] = np.random.default_rng(4).integers(0, 256, rows.shape)
    rows.flush()
    return ArrayStore(tmp_path / "pixels.npy")


def small_network() -> Trainable:
    """Layers of VGG16's kinds and names, but few."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        features = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2))
        head = nn.Sequential(AverageAndMaximum(), Standardise(16), Dropout(0.3), nn.Linear(16, CLASSES))
        return Trainable(features, head)


def loop_on(device: torch.device, rows: devices.Rows, last: Path, network: nn.Module | None = None) -> _Loop:
    frozen = FrozenPart(nn.Sequential(), preprocessing="caffe", engine=ENGINE)
    sources = [ComputedFeatures(frozen, rows, change=Augment(RECIPE.augmentation, seed=1, draw=n)) for n in range(2)]
    data = TrainingData(
        targets=TARGETS,
        train=np.arange(FILMS - 4),
        validation=np.arange(FILMS - 4, FILMS),
        train_features=lambda epoch: sources[epoch],
        validation_features=ComputedFeatures(frozen, rows),
    )
    return _Loop(
        (network or small_network()).to(device),
        data,
        RECIPE,
        classes=CLASSES,
        seed=1,
        key="k",
        engine=ENGINE,
        last=last,
        cycles=(RECIPE.epochs,),
    )


def trained(loop: _Loop) -> dict[str, torch.Tensor]:
    while not loop.is_over():
        loop.finish_epoch(loop.run_epoch())
    return loop.trainable.state_dict()


def test_resident_films_give_the_epochs_of_films_that_are_sent(pixels: ArrayStore, tmp_path: Path) -> None:
    sent = trained(loop_on(CPU, Streamed(pixels, CPU), tmp_path / "sent"))
    lying = trained(loop_on(CPU, Resident(pixels, CPU), tmp_path / "lying"))
    assert all(torch.equal(tensor, lying[name]) for name, tensor in sent.items())
    assert not torch.equal(sent["features.0.weight"], small_network().state_dict()["features.0.weight"])


def test_films_lie_on_a_gpu_where_they_fit(pixels: ArrayStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(rows_on(pixels, CPU), Streamed), "a processor has the page cache"
    needed = FILMS * SIDE * SIDE
    for room, kind in ((needed, Resident), (needed - 1, Streamed)):
        monkeypatch.setattr(devices, "room_on", lambda _, room=room: room)
        rows = rows_on(pixels, CPU)
        assert isinstance(rows, kind)
        assert np.array_equal(rows.take(np.array([3, 1, 3])).numpy(), pixels.take(np.array([3, 1, 3])))


def test_stored_features_may_lie_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [np.random.default_rng(n).random((5, 2, 2, 3)).astype(np.float16) for n in range(2)]
    streamed = StoredFeatures(shards, where=tmp_path, device=CPU)
    monkeypatch.setattr(devices, "room_on", lambda _: math.inf)
    resident = StoredFeatures(shards, where=tmp_path, device=CPU).only(np.array([0, 9, 4]))
    monkeypatch.setattr(featurestore.StoredFeatures, "_read", lambda *_: pytest.fail("read again"))
    rows = np.array([9, 0, 4])
    expected = np.concatenate(shards)[rows].transpose(0, 3, 1, 2).astype(np.float32)
    assert np.array_equal(resident.take(rows).numpy(), expected)
    with pytest.raises(KeyError):
        resident.take(np.array([1]))
    with pytest.raises(pytest.fail.Exception, match="read again"):
        streamed.take(rows)


class NothingWaits(TorchDispatchMode):
    """Refuses what would make the host wait for the device, or the device for the host.

    A tensor without values cannot be brought to the host: ``item`` and ``cpu`` raise by themselves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and args[0].device != kwargs.get("device", args[0].device):
            assert kwargs.get("non_blocking"), "what is sent is not waited for"
            self.sent += 1
        return func(*args, **kwargs)


def test_an_epoch_on_a_device_never_waits_for_it(
    pixels: ArrayStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = loop_on(META, Resident(pixels, META), tmp_path / "last")
    looks = []
    monkeypatch.setattr(loop, "_look", lambda: looks.append(loop.step))
    monkeypatch.setattr(
        loop, "_validate", lambda: {f"validation_{name}": 0.0 for name in ("loss", "accuracy", "macro_f1")}
    )
    monkeypatch.setattr(loop, "save", lambda: None)
    for _ in range(2):
        with NothingWaits() as watched:
            row = loop.run_epoch()
        assert watched.sent > 0
        assert loop._sums["films"] == FILMS - 4
        loop.finish_epoch(row)
    assert looks == [3, 3], "once, when an epoch has ended"
    with pytest.raises((RuntimeError, NotImplementedError)):
        loop._running.tolist()


@pytest.mark.parametrize("first", [torch.channels_last, torch.contiguous_format])
def test_a_state_goes_on_in_the_layout_of_another_device(
    pixels: ArrayStore, tmp_path: Path, first: torch.memory_format
) -> None:
    """A CUDA card keeps weights channels last, a processor does not; a state is neither's."""
    other = torch.contiguous_format if first == torch.channels_last else torch.channels_last
    whole = trained(loop_on(CPU, Streamed(pixels, CPU), tmp_path / "whole"))
    begun = loop_on(CPU, Streamed(pixels, CPU), tmp_path / "last", small_network().to(memory_format=first))  # type: ignore[call-overload]
    begun.finish_epoch(begun.run_epoch())
    begun.run_epoch()
    begun.save()
    going_on = loop_on(CPU, Resident(pixels, CPU), tmp_path / "last", small_network().to(memory_format=other))  # type: ignore[call-overload]
    going_on.resume({"k"})
    for parameter, moments in going_on.optimizer.state.items():
        assert moments["exp_avg"].stride() == parameter.stride()
    for name, tensor in trained(going_on).items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-4, atol=1e-6)


def test_what_is_trained_compiles_as_one_graph(pixels: ArrayStore) -> None:
    network = small_network().train()
    for module in network.modules():
        if isinstance(module, Dropout):
            module.draw_for(4, slice(0, 4))
    x = torch.rand(4, 3, SIDE, SIDE)
    torch.manual_seed(2)
    expected = network(x)
    torch.manual_seed(2)
    assert torch.allclose(torch.compile(network, backend="eager", fullgraph=True)(x), expected)


def test_compiling_is_for_long_trainings_of_convolutions_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    network, cuda = small_network(), torch.device("cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(torch, "compile", lambda module, **_: "compiled")
    assert compiled(network, cuda, steps=10_000) == "compiled"
    assert compiled(network, CPU, steps=10_000) is network
    assert compiled(network, cuda, steps=10) is network
    assert compiled(network.classifier, cuda, steps=10_000) is network.classifier
    next(network.parameters()).requires_grad_(False)
    assert compiled(network, cuda, steps=10_000) is network, "what is compiled while it rests would never learn"


def test_devices_are_chosen_by_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--device: must be one of auto, cpu, cuda, mps, found 'tpu'"):
        choose_device("tpu")
    monkeypatch.setattr(devices, "_cuda", lambda: "")
    monkeypatch.setattr(devices, "_mps", lambda: "")
    assert choose_device().name == "cpu"
    with pytest.raises(UserError, match="must be a device of this machine, found 'cuda', which torch cannot use here"):
        choose_device("cuda")
    assert device_of({"name": "cuda", "reason": "a card"}).name == "cpu", "a run goes on with what there is"
    monkeypatch.setattr(devices, "_cuda", lambda: "a card, 80 GB")
    assert choose_device() == devices.Device("cuda", "a card, 80 GB")
    assert choose_device("cpu").reason == "asked for"


@pytest.mark.parametrize(("bf16", "engine"), [(True, "torch-bfloat16"), (False, "torch-float32")])
def test_a_card_gets_the_number_format_that_it_has(bf16: bool, engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    supported: Callable[..., bool] = lambda including_emulation=True: bf16  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert choose(device="cuda").name == engine
    assert choose("torch-float32", device="cuda").name == "torch-float32"
    assert choose(device="mps").name == "torch-float32"
