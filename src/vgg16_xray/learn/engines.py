"""What runs the network on this machine: number format chosen by what the processor can do, never by a default.

bf16 is the fastest choice on a processor that has instructions for it, and eight times slower than float32 on one that
has not (docs/architecture.md, "Machines differ").
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from vgg16_xray.errors import UserError

if TYPE_CHECKING:
    import torch

ENGINES = ("auto", "torch-float32", "torch-bfloat16")


@cache
def processor_features() -> frozenset[str]:
    """Instruction sets of this processor that matter here, by Linux' names; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    known = {"avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"}
    return frozenset(known.intersection(flags))


def machine_in_words() -> str:
    """This machine, as it stands beside a figure."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    features = ", ".join(sorted(processor_features())) or "no instruction set that the system tells"
    return f"{cores} cores, {platform.machine()}, {features}"


@dataclass(frozen=True)
class Engine:
    """How the network is run."""

    #: One of :data:`ENGINES`, not ``auto``.
    name: str
    #: Why it was chosen, in words.
    reason: str

    @property
    def dtype(self) -> torch.dtype:
        """Number format of convolutions; sums, loss and weights stay float32."""
        import torch

        return torch.bfloat16 if self.name == "torch-bfloat16" else torch.float32


def choose(name: str = "auto", *, device: str = "cpu") -> Engine:
    """Choose the engine.

    Args:
        name: One of :data:`ENGINES`; ``auto`` takes bf16 where the processor, or the card, has instructions for it,
            else float32.
        device: ``cpu``, ``cuda`` or ``mps``.

    Raises:
        UserError: There is no such engine.
    """
    if name not in ENGINES:
        raise UserError(f"--engine: must be one of {', '.join(ENGINES)}, found '{name}'")
    if name != "auto":
        return Engine(name, "asked for")
    if device != "cpu":
        import torch

        if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
            return Engine("torch-bfloat16", "the card has bf16")
        return Engine("torch-float32", "the card has no bf16 that is known to be fast")
    found = processor_features() & {"avx512_bf16", "amx_bf16"}
    if found:
        return Engine("torch-bfloat16", f"the processor has {', '.join(sorted(found))}")
    return Engine("torch-float32", "the processor has no bf16 instructions")


def settle_vector_math() -> None:
    """Call each vector function once on one number, before several threads call it at the same time.

    MKL looks for the kernel of a function at its first call; where that comes from two threads at once, one of them may
    compute its whole part with a kernel that is right to four digits only (pytorch issue 188792). Adam's first step on
    a busy machine did, and a resumed training ended with other bytes than an undisturbed one.
    """
    import torch

    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype)
        for function in (torch.sqrt, torch.exp, torch.log, torch.expm1, torch.log1p, torch.sin, torch.cos, torch.tanh):
            function(one)


class FrozenPart:
    """The frozen prefix of the network: pixels in, feature maps out, nothing learned.

    Args:
        prefix: The layers, ``features[:cut]``.
        preprocessing: What happens to pixel values first, a name of :data:`vgg16_xray.config.PREPROCESSING`.
        engine: How to run it.
    """

    def __init__(self, prefix: torch.nn.Sequential, *, preprocessing: str, engine: Engine) -> None:
        import copy

        import torch

        settle_vector_math()
        self.preprocessing = preprocessing
        self.engine = engine
        # A copy of its own: the model's own layers stay float32.
        self._prefix = copy.deepcopy(prefix).to(engine.dtype, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._prefix.requires_grad_(False)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Run the prefix.

        Args:
            pixels: (B, H, W) uint8 or float32, grey, 0..255.

        Returns:
            (B, C, h, w) in the engine's dtype, float32 where it is pooled, channels last in memory.
        """
        import torch

        from vgg16_xray.learn.weights import normalise

        with torch.no_grad():
            x = normalise(pixels, self.preprocessing)
            out: torch.Tensor = self._prefix(x.to(self.engine.dtype, memory_format=torch.channels_last))
            return out
