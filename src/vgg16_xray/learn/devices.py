"""Where the network is computed: the processor, or one GPU. The same code for all; here is what differs.

Nothing in a training step waits for a GPU: what the host sends is not waited for (:func:`put`), what the GPU finds is
fetched now and then (:mod:`vgg16_xray.learn.fit`), and films lie on the GPU where they fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vgg16_xray.errors import UserError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
#: Share of a GPU's free memory that films or features may take; the rest is for a step's activations.
RESIDENT_SHARE = 0.5
#: Films that are sent at once to lie on a GPU.
CHUNK = 1024
#: Steps below which compiling, about a minute, takes longer than it saves.
STEPS_TO_COMPILE = 500


@dataclass(frozen=True)
class Device:
    """Where the network is computed."""

    #: One of :data:`DEVICES`, not ``auto``.
    name: str
    #: Why it was chosen, in words.
    reason: str

    @property
    def torch(self) -> torch.device:
        """The same for torch; of several GPUs the one that belongs to this process."""
        import torch

        return torch.device(self.name)


def choose_device(name: str = "auto") -> Device:
    """Choose where to compute.

    Args:
        name: One of :data:`DEVICES`; ``auto`` takes the GPU where torch can use one.

    Raises:
        UserError: There is no such device, here or at all.
    """
    if name not in DEVICES:
        raise UserError(f"--device: must be one of {', '.join(DEVICES)}, found '{name}'")
    usable = {"cuda": _cuda(), "mps": _mps(), "cpu": "asked for"}
    if name == "auto":
        name = next(kind for kind, words in usable.items() if words)
        return Device(name, usable[name] if name != "cpu" else "torch finds no GPU that it can use")
    if not usable[name]:
        raise UserError(f"--device: must be a device of this machine, found '{name}', which torch cannot use here")
    return Device(name, usable[name])


def device_of(recorded: Mapping[str, Any] | None) -> Device:
    """The device that a run records; where this machine has none such, the run goes on with what it has."""
    if recorded is None:
        return choose_device()
    try:
        return Device(choose_device(recorded["name"]).name, recorded["reason"])
    except UserError:
        return choose_device()


def _cuda() -> str:
    import torch

    if not torch.cuda.is_available():
        return ""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"


def _mps() -> str:
    import torch

    return "Apple's GPU" if torch.backends.mps.is_available() else ""


def place(module: torch.nn.Module, device: torch.device) -> None:
    """Move a module to a device, in the layout that is fastest there."""
    import torch

    module.to(device)
    if device.type == "cuda":
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # All steps but an epoch's last have one shape: the fastest kernel is worth the search.
        torch.backends.cudnn.benchmark = True


def put(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """An array on a device; the host does not wait for a GPU to take it."""
    import torch

    tensor = torch.from_numpy(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class Readable(Protocol):
    """Rows on the disk, see :class:`vgg16_xray.films.store.ArrayStore`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...)."""

    @property
    def dtype(self) -> np.dtype:
        """Of the rows."""

    def take(self, indices: np.ndarray) -> np.ndarray:
        """(B, ...) rows."""


class Rows(Protocol):
    """Gives rows on a device."""

    def take(self, rows: np.ndarray) -> torch.Tensor:
        """(B, ...) of the store's dtype; `rows` (B,) int."""


class Streamed:
    """Rows that are read from the disk each time, and sent."""

    def __init__(self, store: Readable, device: torch.device) -> None:
        self._store, self._device = store, device

    def take(self, rows: np.ndarray) -> torch.Tensor:
        """See :class:`Rows`."""
        return put(self._store.take(rows), self._device)


class Resident:
    """Rows that lie on the device, read from the disk once."""

    def __init__(self, store: Readable, device: torch.device) -> None:
        import torch

        dtype = torch.from_numpy(np.empty(0, store.dtype)).dtype
        self._rows = torch.empty(store.shape, dtype=dtype, device=device)
        for start in range(0, store.shape[0], CHUNK):
            rows = np.arange(start, min(start + CHUNK, store.shape[0]))
            self._rows[start : start + len(rows)] = put(store.take(rows), device)

    def take(self, rows: np.ndarray) -> torch.Tensor:
        """See :class:`Rows`."""
        return self._rows.index_select(0, put(np.asarray(rows), self._rows.device))


def rows_on(store: Readable, device: torch.device) -> Rows:
    """Rows of a store on a device: all of them there where they fit, else sent when they are asked for."""
    needed = int(np.prod(store.shape)) * store.dtype.itemsize
    return Resident(store, device) if needed <= room_on(device) else Streamed(store, device)


def room_on(device: torch.device) -> float:
    """Bytes that may lie on a device; none on a processor, whose memory is the page cache's."""
    import torch

    return torch.cuda.mem_get_info(device)[0] * RESIDENT_SHARE if device.type == "cuda" else 0


def compiled(module: torch.nn.Module, device: torch.device, *, steps: int) -> torch.nn.Module:
    """The module, compiled where that pays: convolutions on a CUDA card, all learning, in a training of some length.

    Args:
        module: What is trained. Where some of it rests until later it is not compiled yet.
        device: Where.
        steps: How many steps there are.
    """
    import importlib.util

    import torch

    convolves = any(isinstance(part, torch.nn.Conv2d) for part in module.modules())
    learns = all(parameter.requires_grad for parameter in module.parameters())
    pays = device.type == "cuda" and convolves and learns and steps >= STEPS_TO_COMPILE
    if not pays or not importlib.util.find_spec("triton"):
        return module
    # Where there is no C compiler: as it was, with a warning.
    torch._dynamo.config.suppress_errors = True
    # What was compiled while layers were frozen is otherwise taken again when they learn, and they do not (pytorch
    # issue 139476; on an H200 with torch 2.11 recipe `best` trained its head alone).
    torch.compiler.reset()
    fast: torch.nn.Module = torch.compile(module, dynamic=False)  # type: ignore[assignment]
    return fast
