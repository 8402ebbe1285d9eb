"""What a bundle is: the names of its files, what its configuration says, and what is refused when it is read.

A bundle is data: graphs of known operators, numbers and text. Nothing in it is executed or unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vgg16_xray import RESEARCH_USE_ONLY
from vgg16_xray.bundle import fields
from vgg16_xray.bundle.onnxfile import inspect
from vgg16_xray.config import HEADS, PREPROCESSING, TRAIN_FROM
from vgg16_xray.errors import UserError
from vgg16_xray.rundir import sha256_of

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

#: Raised when an older program could not read a bundle.
FORMAT = 1
#: The graphs' input, (B, H, W) uint8 grey, and their outputs: (B, K) calibrated, (B, K) uncalibrated, (B, 1024)
#: averages and maxima of the last map's channels, (B, 512, h, w) what the last convolution's ReLU yields.
PIXELS, OUTPUTS = "pixels", ("probabilities", "logits", "embedding", "feature_map")
PROBABILITIES, LOGITS, EMBEDDING, FEATURE_MAP = OUTPUTS
#: Larger files of text are refused unread.
MOST_TEXT_BYTES = 64 * 1024 * 1024
#: A temperature, and a weight of a head, beyond which no network that answers has any.
MOST_TEMPERATURE, MOST_WEIGHT = 1e6, 1e6
MOST_CLASSES, SIDES, CHANNELS = 1000, range(32, 1025), 512


@dataclass(frozen=True)
class BundleDir:
    """A bundle, and where everything in it lies."""

    path: Path

    @classmethod
    def packaged(cls) -> BundleDir:
        """The model that comes with this package."""
        return cls(Path(__file__).with_name("model"))

    @property
    def float32(self) -> Path:
        """The network in float32; a bundle may go without."""
        return self.path / "model.onnx"

    @property
    def int8(self) -> Path:
        """The network in int8; a bundle may go without."""
        return self.path / "model.int8.onnx"

    @property
    def config(self) -> Path:
        """Labels, temperature, figures, hashes: :class:`BundleConfig`."""
        return self.path / "config.json"

    @property
    def preprocessor(self) -> Path:
        """What happens to pixels inside the graph, in the words of other libraries."""
        return self.path / "preprocessor_config.json"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.path / "README.md"

    @property
    def golden(self) -> Path:
        """Drawn films and the answers that they must give."""
        return self.path / "golden.json"

    @property
    def weights(self) -> Path:
        """The network's tensors, for training to go on from."""
        return self.path / "model.safetensors"

    @property
    def films(self) -> Path:
        """What is kept of the films that the model has met (:mod:`vgg16_xray.trust.own_films`); may be missing."""
        return self.path / "films.npy"

    def graphs(self) -> dict[str, Path]:
        """The graphs that are there, by their precision."""
        return {name: file for name, file in (("int8", self.int8), ("float32", self.float32)) if file.exists()}

    def hashable(self) -> list[Path]:
        """The files that a bundle may have, but the configuration, which cannot hold its own hash."""
        return [self.float32, self.int8, self.preprocessor, self.card, self.golden, self.weights, self.films]

    def hashed(self) -> list[Path]:
        """The files that are there and whose hashes stand in the configuration: all but that itself."""
        return [file for file in self.hashable() if file.exists()]


@dataclass(frozen=True, kw_only=True)
class BundleConfig:
    """What a bundle says of itself, checked when it is made.

    Raises:
        UserError: A value is outside its range.
    """

    #: The classes, in the order of the outputs.
    labels: tuple[str, ...]
    #: Side of the square that the graph stretches films to, pixels.
    size: int
    #: A name of :data:`vgg16_xray.config.PREPROCESSING`.
    preprocessing: str
    train_from: str
    recipe: str
    #: The logits are divided by it before the softmax, in the graph; of a recalibrated bundle the mean of all classes.
    temperature: float
    #: ``kind``; ``cam_weights``: (K x 512) Grad-CAM's weights of each class's logit on ``feature_map``, or None.
    head: Mapping[str, Any]
    #: See :mod:`vgg16_xray.trust.calibrate` and :mod:`vgg16_xray.trust.refuse`; None: the bundle does not know.
    conformal: Mapping[str, Any] | None = None
    refusal: Mapping[str, Any] | None = None
    #: Films by class and side, collections, date: in words and counts.
    trained_on: Mapping[str, Any] = field(default_factory=dict)
    #: Figures with their intervals, and int8 against float32.
    figures: Mapping[str, Any] = field(default_factory=dict)
    #: What ``vgg16-xray recalibrate`` did, see :func:`vgg16_xray.recalibrate.recalibrate`; None: nothing.
    recalibrated: Mapping[str, Any] | None = None
    #: Name of a file -> its SHA-256.
    sha256: Mapping[str, str] = field(default_factory=dict)
    #: Version of this package that wrote the bundle.
    version: str = ""
    #: SHA-256 of the checkpoint that it was made of.
    checkpoint_sha256: str = ""
    #: Blocks of VGG16's base that the network has, from the first on.
    blocks: int = 5
    format: int = FORMAT
    research_use_only: str = RESEARCH_USE_ONLY

    def __post_init__(self) -> None:
        """Check each value."""
        if self.format != FORMAT:
            found = fields.found(self.format)
            raise UserError(f"format: must be {FORMAT}, found {found}", hint="another version wrote it")
        if not (
            2 <= len(self.labels) <= MOST_CLASSES
            and all(isinstance(label, str) and 0 < len(label) <= 200 for label in self.labels)
            and len(set(self.labels)) == len(self.labels)
        ):
            raise UserError(
                f"labels: must be 2 to {MOST_CLASSES} different names of at most 200 characters, "
                f"found {fields.found(list(self.labels))}"
            )
        whole = isinstance(self.size, int) and not isinstance(self.size, bool)
        fields.require(whole and self.size in SIDES, "size", f"{SIDES[0]} to {SIDES[-1]} pixels", self.size)
        above_0 = fields.is_number(self.temperature, 0, MOST_TEMPERATURE) and self.temperature > 0
        fields.require(above_0, "temperature", f"a number above 0, at most {MOST_TEMPERATURE:,.0f}", self.temperature)
        fields.one_of(self.preprocessing, "preprocessing", PREPROCESSING)
        fields.one_of(self.train_from, "train_from", TRAIN_FROM)
        fields.require(type(self.blocks) is int and self.blocks in {4, 5}, "blocks", "4 or 5", self.blocks)
        for name in ("recipe", "version", "checkpoint_sha256", "research_use_only"):
            fields.text(getattr(self, name), name)
        for name in ("head", "trained_on", "figures", "sha256"):
            fields.require(fields.is_object(getattr(self, name)), name, "an object", getattr(self, name))
        done = self.recalibrated
        fields.require(done is None or fields.is_object(done), "recalibrated", "an object or null", done)
        fields.one_of(self.head.get("kind"), "head.kind", HEADS)
        fields.conformal(self.conformal, len(self.labels))
        fields.refusal(self.refusal, self.labels)
        fields.hashes(self.sha256, "sha256", [file.name for file in BundleDir(Path()).hashable()])
        self.cam_weights  # noqa: B018 (checked on the way)

    @property
    def cam_weights(self) -> np.ndarray | None:
        """(K, 512) float64, or None where the head has no constant weights."""
        if (given := self.head.get("cam_weights")) is None:
            return None
        try:
            weights = np.array(given)
        except (ValueError, TypeError, OverflowError):
            weights = np.zeros(0)
        numbers = weights.shape == (len(self.labels), CHANNELS) and weights.dtype.kind in "if"
        if not numbers or not (np.abs(weights) <= MOST_WEIGHT).all():
            rule = f"{len(self.labels)} x {CHANNELS} numbers from -{MOST_WEIGHT:,.0f} to {MOST_WEIGHT:,.0f}"
            raise UserError(f"head.cam_weights: must be {rule}, found others")
        return weights.astype(np.float64)

    def as_dict(self) -> dict[str, Any]:
        """As it stands in ``config.json``."""
        return {name: getattr(self, name) for name in sorted(self.__dataclass_fields__, key="format".__ne__)}


def read_bundle_config(bundle: BundleDir) -> BundleConfig:
    """Read ``config.json``.

    Raises:
        UserError: There is no bundle, or a value of it breaks its rule; the line names it.
    """
    if not bundle.config.is_file():
        found = "a file" if bundle.path.is_file() else "none" if not bundle.path.exists() else "a folder without one"
        raise UserError(f"{bundle.path}: must be a bundle with its {bundle.config.name}, found {found}")
    values = read_text_as_json(bundle.config)
    known = set(BundleConfig.__dataclass_fields__)
    if unknown := sorted(set(values) - known):
        raise UserError(f"{bundle.config}: must hold known values, found {', '.join(unknown)[:80]}")
    try:
        fields.require(isinstance(values.get("labels"), list), "labels", "a list", values.get("labels"))
        return BundleConfig(**values | {"labels": tuple(values["labels"])})
    except TypeError as error:
        raise UserError(f"{bundle.config}: must hold all values, found {error}") from error
    except UserError as error:
        raise UserError(f"{bundle.config}: {error.message}", hint=error.hint) from error


def read_text_as_json(file: Path) -> dict[str, Any]:
    """Read an object of JSON from a file that may come from anybody.

    Raises:
        UserError: It is missing, too large, or something else.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"the number {constant}")

    try:
        if (size := file.stat().st_size) > MOST_TEXT_BYTES:
            raise UserError(f"{file}: must have at most {MOST_TEXT_BYTES:,} bytes, found {size:,}")
        values = json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: must be JSON, found {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: must be an object of JSON, found {type(values).__name__}")
    return values


def verify(bundle: BundleDir, config: BundleConfig, file: Path) -> None:
    """Compare a file's hash with the configuration's.

    Raises:
        UserError: The file is missing, not listed, or another.
    """
    wanted = config.sha256.get(file.name)
    if wanted is None:
        raise UserError(f"{bundle.config}: sha256 must name {file.name}, found no hash of it")
    if not file.is_file():
        raise UserError(f"{file}: no such file, and {bundle.config.name} names it")
    if (found := sha256_of(file)) != wanted:
        raise UserError(
            f"{file}: must have the SHA-256 {wanted[:80]}, found {found}", hint="it is not the file written"
        )


def read_own_films(bundle: BundleDir, config: BundleConfig) -> np.ndarray | None:
    """What a bundle keeps of the films that its model has met, rows of :data:`vgg16_xray.trust.own_films.KNOWN`.

    Returns:
        None where the bundle keeps nothing, as one from before this was kept.

    Raises:
        UserError: It is another file than was written, or holds something else.
    """
    from vgg16_xray.trust.own_films import KNOWN

    if not bundle.films.exists() and bundle.films.name not in config.sha256:
        return None
    verify(bundle, config, bundle.films)
    try:
        # Mapped: neither unpickled nor unzipped, and a header that promises more than the file holds is refused.
        known = np.array(np.lib.format.open_memmap(bundle.films, mode="r"))
    except Exception as error:  # a damaged header makes numpy raise nearly anything
        raise UserError(f"{bundle.films}: must be a whole .npy array, found {str(error)[:200]}") from error
    if known.ndim != 1 or known.dtype != KNOWN:
        raise UserError(f"{bundle.films}: must hold a row a film, found another array")
    return known


def open_graph(bundle: BundleDir, config: BundleConfig, file: Path, *, threads: int | None = None) -> InferenceSession:
    """Open a bundle's graph: hash compared, looked through, then handed to ONNX Runtime.

    Raises:
        UserError: It is another file than was written, or holds what a network of this project does not.
    """
    verify(bundle, config, file)
    data = file.read_bytes()
    inspect(file, data)
    try:
        session = session_of(data, threads=threads)
    except Exception as error:  # onnxruntime's exceptions share no base class but this one
        raise UserError(f"{file}: must be a graph that ONNX Runtime can run, found {str(error)[:300]}") from error
    shapes = {put.name: put.shape[1:] for put in session.get_outputs()}
    classes = len(config.labels)
    if (shapes[PROBABILITIES], shapes[LOGITS]) != ([classes], [classes]):
        raise UserError(f"{file}: must give a probability for each of {classes} classes, found {shapes}")
    return session


def session_of(model: bytes, *, threads: int | None = None) -> InferenceSession:
    """ONNX Runtime on the processor.

    Args:
        model: A graph's bytes.
        threads: Threads for one film; ONNX Runtime's own choice by default.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4  # what fails is raised; a line with colour codes beside it helps nobody
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
