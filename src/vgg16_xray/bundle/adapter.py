"""Classifiers that are not this project's, so that people can test them too: an ONNX file with a note, or a function.

The note is a small TOML file that says what the network wants done to a film and what its numbers mean. Nothing is
unpickled and no code comes with a file: a graph runs in ONNX Runtime, with the operators of the standard and weights in
the file itself. A function is given by a Python program, which knows what it runs.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from vgg16_xray.bundle.format import session_of
from vgg16_xray.bundle.onnxfile import refuse_weights_elsewhere
from vgg16_xray.errors import UserError
from vgg16_xray.trust.calibrate import softmax

#: Takes B films (H, W) uint8 of any sizes, gives (B, K) probabilities.
Function = Callable[[Sequence[np.ndarray]], np.ndarray]

LAYOUTS, CHANNELS, MEANINGS = ("NCHW", "NHWC"), ("RGB", "BGR", "grey"), ("logits", "probabilities")
SIDES = range(16, 4097)
#: How far a row of probabilities may be from adding up to 1: networks in half precision are no better.
TOLERANCE = 5e-3


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """What a foreign network wants, and what it gives.

    A pixel x of 0 to 255 becomes ``(x * scale - mean) / std``; a film is stretched to `size`, antialiased.

    Raises:
        UserError: A value is outside its range.
    """

    #: The classes in the order of the outputs. With two of them a network may give one number: of the second.
    labels: tuple[str, ...]
    #: Height and width, pixels.
    size: tuple[int, int]
    #: A name of :data:`LAYOUTS`.
    layout: str = "NCHW"
    #: A name of :data:`CHANNELS`: grey films fill three channels alike, whose means may differ.
    channels: str = "RGB"
    scale: float = 1 / 255
    #: One number, or one a channel in the order in which the network has them.
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    #: A name of :data:`MEANINGS`.
    output: str = "logits"
    #: Names in the graph, where it has several inputs or outputs; the first by default.
    input_name: str = ""
    output_name: str = ""

    def __post_init__(self) -> None:
        """Check every value."""
        channels = 1 if self.channels == "grey" else 3
        rules: list[tuple[str, bool, str]] = [
            (
                "labels",
                len(self.labels) >= 2
                and len(set(self.labels)) == len(self.labels)
                and all(isinstance(label, str) and label for label in self.labels),
                "two or more different names",
            ),
            (
                "size",
                len(self.size) == 2 and all(isinstance(side, int) and side in SIDES for side in self.size),
                f"[height, width], each {SIDES[0]} to {SIDES[-1]}",
            ),
            ("layout", self.layout in LAYOUTS, f"one of {', '.join(LAYOUTS)}"),
            ("channels", self.channels in CHANNELS, f"one of {', '.join(CHANNELS)}"),
            ("output", self.output in MEANINGS, f"one of {', '.join(MEANINGS)}"),
            ("scale", _numbers([self.scale]) and self.scale > 0, "a number above 0"),
            ("mean", _numbers(self.mean) and len(self.mean) in (1, channels), f"a number, or {channels}"),
            (
                "std",
                _numbers(self.std) and len(self.std) in (1, channels) and min(self.std) > 0,
                f"a number above 0, or {channels}",
            ),
            ("input_name", isinstance(self.input_name, str), "a name"),
            ("output_name", isinstance(self.output_name, str), "a name"),
        ]
        for name, holds, rule in rules:
            if not holds:
                raise UserError(f"adapter.{name}: must be {rule}, found {str(getattr(self, name))[:200]}")

    def prepared(self, films: Sequence[np.ndarray]) -> np.ndarray:
        """Films (H, W) uint8 of any sizes -> what the network takes, float32 in its layout."""
        from PIL import Image

        height, width = self.size
        squares = np.stack(
            [
                np.asarray(Image.fromarray(film).resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32)
                for film in films
            ]
        )
        channels = 1 if self.channels == "grey" else 3
        mean, std = (np.broadcast_to(np.array(part, np.float32), (channels,)) for part in (self.mean, self.std))
        # Red, green and blue of a grey film are one number, so their order tells which mean is whose and no more.
        values = (squares[..., None] * np.float32(self.scale) - mean) / std
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2) if self.layout == "NCHW" else values)


def _numbers(values: Any) -> bool:
    return all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value) for value in values
    )


def read_adapter(path: Path) -> Adapter:
    """Read an adapter from TOML.

    Raises:
        UserError: It is missing, is not TOML, or a value breaks its rule; the line names it.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: must be TOML, found {error}") from error
    known = {one.name for one in fields(Adapter)}
    if unknown := sorted(set(values) - known):
        raise UserError(f"{path}: must hold {', '.join(sorted(known))}, found {', '.join(unknown)[:200]}")
    for name in ("labels", "size"):
        if not isinstance(values.get(name), list):
            raise UserError(f"{path}: {name} must be a list, found {str(values.get(name))[:80]}")
    for name in ("mean", "std"):
        if name in values and not isinstance(values[name], list):
            values[name] = [values[name]]
    try:
        given: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in values.items()}
        return Adapter(**given)
    except UserError as error:
        raise UserError(f"{path}: {error.message}", hint=error.hint) from error
    except TypeError as error:
        raise UserError(f"{path}: must hold values of the right kind, found {error}") from error


class Foreign:
    """A foreign network behind an adapter, ready for films.

    Args:
        model: An ONNX file.
        adapter: What it wants and gives.

    Raises:
        UserError: It is no ONNX file, has weights elsewhere, or ONNX Runtime cannot run it.
    """

    def __init__(self, model: Path, adapter: Adapter) -> None:
        if not model.is_file():
            raise UserError(f"{model}: must be an ONNX file, found {'a folder' if model.is_dir() else 'none'}")
        data = model.read_bytes()
        refuse_weights_elsewhere(model, data)
        try:
            self._session = session_of(data)
        except Exception as error:  # onnxruntime's exceptions share no base class but this one
            raise UserError(f"{model}: must be a graph that ONNX Runtime can run, found {str(error)[:300]}") from error
        self.path, self.adapter = model, adapter
        #: What the user should know.
        self.notes: list[str] = []
        self._ends = [
            _named(model, kind, wanted, [end.name for end in ends])
            for kind, wanted, ends in (
                ("input", adapter.input_name, self._session.get_inputs()),
                ("output", adapter.output_name, self._session.get_outputs()),
            )
        ]

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in the order of the probabilities."""
        return self.adapter.labels

    def probabilities(self, films: Sequence[np.ndarray]) -> np.ndarray:
        """(B, K) float64 of B films (H, W) uint8.

        Raises:
            UserError: The network takes or gives something else than the adapter says.
        """
        given, wanted = self._ends
        try:
            (found,) = self._session.run([wanted], {given: self.adapter.prepared(films)})
        except Exception as error:  # as above
            raise UserError(
                f"{self.path}: must take what the adapter prepares, found {str(error)[:300]}",
                hint="size, layout and channels say what that is",
            ) from error
        return _as_probabilities(
            np.asarray(found), len(films), self.labels, logits=self.adapter.output == "logits", where=str(self.path)
        )


class OfFunction:
    """A Python function as a model.

    Args:
        function: Films -> probabilities.
        labels: K names, in the order of its columns.

    Raises:
        UserError: There are fewer than two labels, or two are the same.
    """

    def __init__(self, function: Function, labels: Sequence[str]) -> None:
        if len(labels) < 2 or len(set(labels)) != len(labels):
            raise UserError(f"labels: must be two or more different names, found {list(labels)}")
        self._function, self.labels = function, tuple(labels)
        #: What the user should know.
        self.notes: list[str] = []

    def probabilities(self, films: Sequence[np.ndarray]) -> np.ndarray:
        """(B, K) float64 of B films (H, W) uint8.

        Raises:
            UserError: The function gives something else.
        """
        return _as_probabilities(
            np.asarray(self._function(films)), len(films), self.labels, logits=False, where="function"
        )


def _named(model: Path, kind: str, wanted: str, names: Sequence[str]) -> str:
    if wanted and wanted not in names:
        raise UserError(f"{model}: must have the {kind} '{wanted}', found {', '.join(names)[:200]}")
    return wanted or names[0]


def _as_probabilities(found: np.ndarray, films: int, labels: Sequence[str], *, logits: bool, where: str) -> np.ndarray:
    values = found.reshape(films, -1).astype(np.float64) if found.size and found.shape[:1] == (films,) else found
    if values.ndim == 2 and values.shape[1] == 1 and len(labels) == 2:
        one = 1 / (1 + np.exp(-values)) if logits else values
        values, logits = np.concatenate([1 - one, one], axis=1), False
    if values.shape != (films, len(labels)):
        raise UserError(f"{where}: must give {films} x {len(labels)} numbers, found {found.shape}")
    if not np.isfinite(values).all():
        raise UserError(f"{where}: must give finite numbers, found others")
    if logits:
        return softmax(values)
    sums = values.sum(axis=1)
    if values.min() < -TOLERANCE or np.abs(sums - 1).max() > TOLERANCE:
        raise UserError(
            f"{where}: must give probabilities that add up to 1, found {sums[int(np.abs(sums - 1).argmax())]:.4g}",
            hint='output = "logits" where they are none yet',
        )
    values = np.clip(values, 0, None)
    return np.asarray(values / values.sum(axis=1, keepdims=True))
