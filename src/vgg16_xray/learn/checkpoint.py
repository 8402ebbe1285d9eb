"""A model, and the state of a training, as one safetensors file each: tensors, and JSON in its header.

One file, because two cannot be replaced together: a reader sees the whole old state or the whole new one. Nothing is
ever pickled, so that a checkpoint from a stranger can be looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgg16_xray import __version__
from vgg16_xray.errors import UserError
from vgg16_xray.files import whole_file

if TYPE_CHECKING:
    import torch

    from vgg16_xray.learn.probe import Probe
    from vgg16_xray.learn.vgg16 import VGG16

#: Key, in that JSON, of the hash of all tensors: a flipped bit is found before a model answers with it.
DIGEST = "tensors_sha256"
#: Key of the JSON in the file's header.
HEADER = "vgg16_xray"


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What a model's tensors alone do not tell: how to build it, and what must happen to a film before it."""

    #: The classes, in the order of the outputs.
    labels: tuple[str, ...]
    head: str
    train_from: str
    #: See :class:`vgg16_xray.config.Recipe`.
    preprocessing: str
    dropout: float
    #: Side of the square that a film is stretched to, pixels.
    size: int
    #: Engine that it was trained with.
    engine: str
    #: Epoch that it was taken from, from 1.
    epoch: int
    recipe: str
    #: See :class:`vgg16_xray.config.Recipe`; checkpoints from before it was written have all five.
    blocks: int = 5


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and JSON as one safetensors file, whole or not at all.

    Raises:
        UserError: The disk is full or the folder cannot be written.
    """
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({**header, DIGEST: _digest(contiguous)}, allow_nan=False)
    with whole_file(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata={HEADER: text})
        except Exception as error:
            # safetensors raises a class of its own for a full disk.
            raise OSError(str(error)) from error


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what :func:`save_tensors` wrote.

    Raises:
        UserError: The file is missing, damaged (a single bit is noticed), or not of this project.
    """
    with _opened(path) as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, _header(file)  # noqa: SIM118
    # Files that were written before there was a hash are taken as they are.
    if header.pop(DIGEST, None) not in (None, _digest(tensors)):
        raise _damaged(path, "its tensors are not those that were written")
    return tensors, header


def load_header(path: Path) -> dict[str, Any]:
    """Read the JSON of :func:`save_tensors` alone, which costs nothing however large the tensors are.

    Raises:
        UserError: The file is missing, damaged, or not of this project.
    """
    # For "pt" safetensors would load torch, which takes seconds.
    with _opened(path, framework="np") as file:
        header = _header(file)
    header.pop(DIGEST, None)
    return header


@contextmanager
def _opened(path: Path, *, framework: str = "pt") -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework=framework) as file:
            yield file
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except KeyError as error:
        raise UserError(f"{path}: must be a checkpoint of vgg16-xray, found other safetensors") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, what: str) -> UserError:
    return UserError(
        f"{path}: must be a whole safetensors file, found damage ({what})",
        hint="delete it, and the command that made it makes it again",
    )


def _digest(tensors: Mapping[str, torch.Tensor]) -> str:
    import hashlib

    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}:{tensors[name].dtype}:{tuple(tensors[name].shape)};".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def _header(file: Any) -> dict[str, Any]:
    header = json.loads((file.metadata() or {})[HEADER])
    if not isinstance(header, dict):
        raise KeyError(HEADER)
    return header


def save_model(path: Path, model: VGG16, config: ModelConfig, probe: Probe | None = None) -> None:
    """Write a model, and what tells whether it gets the same features elsewhere."""
    tensors = model.state_dict() | (probe.tensors() if probe else {})
    save_tensors(path, tensors, {"version": __version__, "config": asdict(config)})


def load_model(path: Path) -> tuple[VGG16, ModelConfig]:
    """Read a model, checked tensor by tensor.

    Raises:
        UserError: The file is missing or damaged, or a tensor is absent, unknown, or of the wrong shape; it is named.
    """
    from vgg16_xray.learn.vgg16 import build

    tensors, header = load_tensors(path)
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("probe.")}
    try:
        config = ModelConfig(**header["config"] | {"labels": tuple(header["config"]["labels"])})
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: must hold a model's configuration, found {error}") from error
    model = build(classes=len(config.labels), head=config.head, dropout=config.dropout, blocks=config.blocks)
    load_exactly(model, tensors, where=str(path))
    return model.eval(), config


def load_probe(path: Path) -> Probe | None:
    """Read a model's probe; None where it has none.

    Raises:
        UserError: The file is missing, damaged, or not of this project.
    """
    from vgg16_xray.learn.probe import FEATURES, PIXELS, probe_in

    with _opened(path) as file:
        return probe_in({name: file.get_tensor(name) for name in file.keys() if name in (FEATURES, PIXELS)})  # noqa: SIM118


def load_exactly(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Load tensors into a module whose names, shapes and number formats they must match.

    Raises:
        UserError: Names the first tensor that does not fit.
    """
    wanted = module.state_dict()
    for name in [*wanted, *tensors]:
        if name not in tensors:
            raise UserError(f"{where}: must hold tensor {name}, found none")
        if name not in wanted:
            raise UserError(f"{where}: must hold the model's tensors, found {name} besides")
        if wanted[name].shape != tensors[name].shape:
            shape, found = tuple(wanted[name].shape), tuple(tensors[name].shape)
            raise UserError(f"{where}: tensor {name} must have shape {shape}, found {found}")
        if wanted[name].dtype != tensors[name].dtype:
            raise UserError(f"{where}: tensor {name} must be {wanted[name].dtype}, found {tensors[name].dtype}")
    module.load_state_dict(dict(tensors))
