"""What runs the network on this machine: chosen by what the processor can do and by a race, never by a default.

bf16 is the fastest choice on a processor that has instructions for it, and eight times slower than float32 on one that
has not (docs/architecture.md, "Machines differ"). An engine runs the frozen part; what is trained runs in torch, in the
number format that the engine's name stands for.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vgg16_xray.config import TRAIN_FROM
from vgg16_xray.errors import MissingExtra, UserError
from vgg16_xray.files import read_json, write_json
from vgg16_xray.rundir import CacheDir, key_of

if TYPE_CHECKING:
    import torch

    from vgg16_xray.learn.runtimes import Runner

#: Instruction sets that compute in bf16, and those that sum products of bytes into 32 bits.
BF16, VNNI = frozenset({"avx512_bf16", "amx_bf16"}), frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """What an engine's name stands for."""

    #: The distribution that runs it, and the extra that brings it.
    module: str
    extra: str
    #: Number format of what is trained.
    trained: str = "float32"
    #: It is at its best on a processor with one of these.
    wants: frozenset[str] = frozenset()
    #: What happens on a processor that has none of them.
    without: str = ""


_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "torch-bfloat16": _Kind(
            module="torch",
            extra="train",
            trained="bfloat16",
            wants=BF16,
            without="has no bf16 instructions and is several times slower with it",
        ),
        "torch-float32": _Kind(module="torch", extra="train"),
        "onnx-float32": _Kind(module="onnxruntime", extra="train"),
        "ncnn-float32": _Kind(module="ncnn", extra="ncnn"),
        "onnx-int8": _Kind(
            module="onnxruntime", extra="train", wants=VNNI, without="has no VNNI, so weights have seven bits"
        ),
    }
)
ENGINES = ("auto", *_KINDS)
#: What ``auto`` takes may differ from float32 by so much in the base's output on drawn films, relative. Where layers of
#: the base go on learning: what bf16 does (0.012), and some room. Where the head alone learns, on the very features
#: that serve it, also what int8 does with eight bits (0.038): the head is as accurate (docs/benchmarks.md, engines).
ERROR_ALLOWED, ERROR_ALLOWED_BELOW_A_HEAD = 0.02, 0.05
#: The race: films, rounds, and how much slower than the fastest an engine may be to run another round.
FILMS, ROUNDS, SLOWER = 8, 2, 1.5
#: Another runtime must be so much faster than torch to be taken: what is trained runs in torch anyway, and a race on a
#: busy machine shall not be decided by noise.
MARGIN = 1.15
#: Raised when a race would be run otherwise.
RACE_VERSION = 4


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
    #: Measured on this machine: the whole base, 224 x 224; None where it was not measured.
    films_per_second: float | None = None
    #: Of the base's output against torch's float32, relative, on drawn films.
    error: float | None = None
    #: What the race found, a line an engine.
    raced: tuple[str, ...] = ()

    @property
    def dtype(self) -> torch.dtype:
        """Number format of what is trained, and of the frozen part in torch; sums, loss and weights stay float32."""
        import torch

        dtype: torch.dtype = getattr(torch, _KINDS[self.name].trained)
        return dtype

    def as_dict(self) -> dict[str, Any]:
        """As it stands in ``run.toml``; what was not measured is left out."""
        values = {
            "name": self.name,
            "reason": self.reason,
            "films_per_second": self.films_per_second,
            "error": self.error,
            "raced": list(self.raced) or None,
        }
        return {name: value for name, value in values.items() if value is not None}


def engine_from(values: Mapping[str, Any]) -> Engine:
    """The engine that :meth:`Engine.as_dict` wrote down.

    Raises:
        KeyError: It has no name.
    """
    return Engine(
        values["name"],
        values.get("reason", ""),
        values.get("films_per_second"),
        values.get("error"),
        tuple(values.get("raced", ())),
    )


def weakness(name: str) -> str:
    """What this processor lacks for an engine, in words that follow ``the processor``; empty where it lacks nothing."""
    kind = _KINDS[name]
    return kind.without if kind.wants and not processor_features() & kind.wants else ""


def is_installed(name: str) -> bool:
    """Whether what runs an engine can be imported; nothing is imported to find out."""
    return find_spec(_KINDS[name].module) is not None


def choose(name: str = "auto", *, device: str = "cpu", race: bool = False, train_from: str = TRAIN_FROM[-1]) -> Engine:
    """Choose the engine.

    ``auto`` takes the fastest of those that this processor has instructions for, that are installed, and whose error
    is at most :data:`ERROR_ALLOWED`; :data:`ERROR_ALLOWED_BELOW_A_HEAD` where the head alone is trained.

    Args:
        name: One of :data:`ENGINES`.
        device: ``cpu``, ``cuda`` or ``mps``; a GPU is driven by torch, in bf16 where the card has instructions for it.
        train_from: What is trained, a name of :data:`vgg16_xray.config.TRAIN_FROM`.
        race: Measure what was not measured on this machine before, which takes seconds. Without it, where no race is
            remembered, the processor's features alone decide: bf16 where it has instructions for it, else float32.

    Raises:
        UserError: There is no such engine.
        MissingExtra: What runs it is not installed.
    """
    if name not in ENGINES:
        raise UserError(f"--engine: must be one of {', '.join(ENGINES)}, found '{name}'")
    if device != "cpu":
        return _on_gpu(name, device)
    if name == "auto":
        return _fastest(race=race, head_alone=train_from == "head")
    kind = _KINDS[name]
    if not is_installed(name):
        raise MissingExtra(
            f"--engine {name} needs the extra '{kind.extra}', and {kind.module} is not installed",
            hint=f'install it with: pip install "kbs-vgg16-xray[{kind.extra}]"',
        )
    lacks = weakness(name)
    engine = Engine(name, f"asked for; the processor {lacks}" if lacks else "asked for")
    if not race:
        return engine
    measured = measure([name])[name]
    return replace(engine, films_per_second=measured.films_per_second, error=measured.error)


def _on_gpu(name: str, device: str) -> Engine:
    import torch

    if name not in ("auto", "torch-float32", "torch-bfloat16"):
        raise UserError(f"--engine {name}: must be a torch engine on --device {device}, found one for the processor")
    if name != "auto":
        return Engine(name, "asked for")
    if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return Engine("torch-bfloat16", "the card has bf16")
    return Engine("torch-float32", "the card has no bf16 that is known to be fast")


def choose_for_model(name: str, *, trained_with: str) -> Engine:
    """Choose the engine for a trained model: with ``auto`` its own where this machine is at its best with it.

    Raises:
        UserError: There is no such engine.
        MissingExtra: What runs it is not installed.
    """
    known = trained_with in _KINDS and is_installed(trained_with) and not weakness(trained_with)
    return Engine(trained_with, "the model's own") if name == "auto" and known else choose(name)


def _fastest(*, race: bool, head_alone: bool) -> Engine:
    found = ", ".join(sorted(processor_features() & BF16))
    allowed = ERROR_ALLOWED_BELOW_A_HEAD if head_alone else ERROR_ALLOWED
    not_raced = {}
    if not head_alone:  # Preparing it takes longer than all the others.
        not_raced["onnx-int8"] = f"its error is beyond the {allowed} that auto allows where layers of the base learn"
    wider = found if not head_alone else ", ".join(sorted(processor_features() & (VNNI | {"amx_bf16"})))
    if wider:
        # Winograd's method in float32 is faster than bf16 without tiles (Zen 4: 17 and 14 films a second; int8 27),
        # but what is trained runs in torch, and there bf16 does twice the work of float32.
        not_raced |= {
            name: f"float32 cannot win where the processor has {wider}"
            for name, kind in _KINDS.items()
            if name.endswith("float32") and kind.module != "torch"
        }
    lacking = {name: weakness(name) for name in _KINDS if name not in not_raced}
    candidates = [name for name, lacks in lacking.items() if not lacks]
    names = [name for name in candidates if is_installed(name)]
    measured = measure(names) if race else _remembered()
    raced = {name: measured[name] for name in names if name in measured}
    if len(raced) < len(names):
        if found:
            return Engine("torch-bfloat16", f"the processor has {found}")
        return Engine("torch-float32", "the processor has no bf16 instructions")
    lines = [f"{name}: {one}" for name, one in raced.items()]
    lines += [f"{name}: {_KINDS[name].module} is not installed" for name in candidates if name not in names]
    lines += [f"{name}: the processor {lacks}" for name, lacks in lacking.items() if lacks]
    lines += [f"{name}: not raced, {why}" for name, why in not_raced.items()]
    admitted = {name: one for name, one in raced.items() if one.error <= allowed}
    best = max(
        admitted, key=lambda name: admitted[name].films_per_second * (MARGIN if name.startswith("torch-") else 1.0)
    )
    reason = f"the fastest of {len(raced)} on this processor, which has {found or 'no bf16 instructions'}"
    return Engine(best, reason, raced[best].films_per_second, raced[best].error, tuple(lines))


@dataclass(frozen=True)
class Measured:
    """What the race found of one engine."""

    films_per_second: float
    #: Relative, against torch's float32.
    error: float

    def __str__(self) -> str:
        """As it is printed."""
        return f"{self.films_per_second:.1f} films a second, error {self.error:.1e}"


def measure(names: Sequence[str]) -> dict[str, Measured]:
    """Rate and error of engines on this machine; what was measured before is remembered in the user's cache."""
    known = _remembered()
    if set(names) <= set(known):
        return known
    found = known | _race(names)
    cache = CacheDir.of_user()
    with contextlib.suppress(UserError):  # A cache that cannot be written costs a race the next time, nothing else.
        written = read_json(cache.engines) if cache.engines.exists() else {}
        of_machine = {name: [one.films_per_second, one.error] for name, one in found.items()}
        write_json(cache.engines, (written if isinstance(written, dict) else {}) | {_machine_key(): of_machine})
    return found


def _remembered() -> dict[str, Measured]:
    """What was measured on this machine before; empty where nothing was, or where the file is damaged."""
    try:
        of_machine = read_json(CacheDir.of_user().engines)[_machine_key()]
        return {name: Measured(float(rate), float(error)) for name, (rate, error) in of_machine.items()}
    except (UserError, OSError, KeyError, TypeError, ValueError, AttributeError):
        return {}


def _machine_key() -> str:
    import torch

    def of(module: str) -> str:
        try:
            return version(module)
        except PackageNotFoundError:
            return ""

    versions = [of(module) for module in sorted({kind.module for kind in _KINDS.values()})]
    return key_of(RACE_VERSION, machine_in_words(), torch.get_num_threads(), versions)


def _race(names: Sequence[str]) -> dict[str, Measured]:
    """Send the same drawn films through the packaged base by each engine in turn, in rounds; the best round counts.

    Who is far behind after a round runs no other.
    """
    import torch

    from vgg16_xray.films.decode import SIZE
    from vgg16_xray.learn.runtimes import drawn_films
    from vgg16_xray.learn.vgg16 import build
    from vgg16_xray.learn.weights import load_base

    with torch.random.fork_rng(devices=[]):
        model = build(classes=2, head="gap", dropout=0.0)
    base = load_base()
    base.put_into(model)
    prefix = model.features.eval()
    films = torch.from_numpy(drawn_films(FILMS, seed=0, size=SIZE))
    parts = {
        name: FrozenPart(prefix, preprocessing=base.preprocessing, engine=Engine(name, "in the race"))
        for name in dict.fromkeys(["torch-float32", *names])
    }
    spent: dict[str, float] = {}
    out: dict[str, torch.Tensor] = {}
    for _ in range(ROUNDS):
        fastest = min(spent.values(), default=0.0)
        for name, part in parts.items():
            if spent.get(name, 0.0) <= SLOWER * fastest:
                started = time.perf_counter()
                out[name] = part(films).float()
                seconds = time.perf_counter() - started
                spent[name] = min(seconds, spent.get(name, seconds))
    exact = out["torch-float32"]
    error = {name: ((out[name] - exact).norm() / exact.norm()).item() for name in names}
    return {name: Measured(round(FILMS / spent[name], 2), float(f"{error[name]:.2e}")) for name in names}


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
        settle_vector_math()
        self.preprocessing = preprocessing
        self.engine = engine
        self._run = _runner(prefix, preprocessing, engine)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Run the prefix.

        Args:
            pixels: (B, H, W) uint8 or float32, grey, 0..255.

        Returns:
            (B, C, h, w), channels last in memory; float32, but bfloat16 from ``torch-bfloat16`` where it is not pooled.
        """
        import torch

        with torch.no_grad():
            return self._run(pixels)


def _runner(prefix: torch.nn.Sequential, preprocessing: str, engine: Engine) -> Runner:
    from vgg16_xray.learn import runtimes

    if engine.name.startswith("torch-") or not len(prefix):
        return runtimes.with_torch(prefix, preprocessing, engine.dtype)
    if engine.name == "ncnn-float32":
        return runtimes.with_ncnn(prefix, preprocessing)
    int8 = engine.name == "onnx-int8"
    return runtimes.with_onnxruntime(prefix, preprocessing, int8=int8, seven_bits=not processor_features() & VNNI)
