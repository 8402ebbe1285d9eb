"""The ImageNet base in the package, foreign formats of it, and what pixels each of them was trained on.

A base only means something on the pixels that it was trained on: the original Oxford weights want BGR minus a mean,
torchvision's want standardised RGB. So weights and normalisation travel together here.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from vgg16_xray.errors import UserError
from vgg16_xray.extras import require
from vgg16_xray.learn.vgg16 import BLOCKS, CONFIGURATION_D
from vgg16_xray.rundir import sha256_of

if TYPE_CHECKING:
    from vgg16_xray.learn.vgg16 import VGG16

#: The packaged base: float16, 14,714,688 parameters, made by ``scripts/make_weights.py``.
PACKAGED = "vgg16_imagenet_base_fp16.safetensors"
#: MD5 that Keras states for ``vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5`` (keras/applications/vgg16.py).
KERAS_MD5 = "6d6bbae143d832006294945121d1f1fc"


@dataclass(frozen=True)
class Preprocessing:
    """What happens to a pixel value 0..255 of each input channel: (value - mean) / divisor."""

    name: str
    #: In words, with the order of the channels.
    description: str
    mean: tuple[float, float, float]
    divisor: tuple[float, float, float]
    #: Pixels a side of the squares whose mean, a whole grey level, stands for them.
    shrink: int = 1

    def prepares_for(self, base: Preprocessing) -> bool:
        """Whether weights that were trained on pixels of `base` get the values that they want."""
        return (self.mean, self.divisor) == (base.mean, base.divisor)


#: Mean of ImageNet's pixels in BGR (Oxford's Caffe release; keras/applications/imagenet_utils.py).
_MEAN_BGR = (103.939, 116.779, 123.68)
#: Mean and standard deviation of ImageNet's pixels in 0..1, RGB (torchvision, ``VGG16_Weights.IMAGENET1K_V1``).
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: Every normalisation there is, by name.
PREPROCESSING: MappingProxyType[str, Preprocessing] = MappingProxyType(
    {
        p.name: p
        for p in (
            Preprocessing("unit", "RGB, x / 255", (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
            Preprocessing("caffe", "BGR, ImageNet mean subtracted", _MEAN_BGR, (1.0, 1.0, 1.0)),
            Preprocessing(
                "caffe-half",
                "means of 2 x 2 pixels, BGR, ImageNet mean subtracted",
                _MEAN_BGR,
                (1.0, 1.0, 1.0),
                shrink=2,
            ),
            Preprocessing(
                "torch",
                "RGB, x / 255, ImageNet mean subtracted, divided by its standard deviation",
                (255 * _MEAN[0], 255 * _MEAN[1], 255 * _MEAN[2]),
                (255 * _STD[0], 255 * _STD[1], 255 * _STD[2]),
            ),
        )
    }
)


def normalise(pixels: torch.Tensor, preprocessing: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Turn grey films into what the network reads: the grey value in all three channels, each normalised.

    Args:
        pixels: (B, H, W) uint8 or float, grey, 0..255.
        preprocessing: A name of :data:`PREPROCESSING`.
        dtype: Number format of the result; the arithmetic is float32.

    Returns:
        (B, 3, h, w), channels last in memory, the channels in the order that the weights expect; h and w are those of
        :func:`side_seen`.

    Raises:
        UserError: There is no such normalisation.
    """
    mean, divisor = _constants(preprocessing, pixels.device)
    grey = shrunk(pixels, preprocessing).to(torch.float32).unsqueeze(-1)
    return ((grey - mean) / divisor).to(dtype).permute(0, 3, 1, 2)


def shrunk(pixels: torch.Tensor, preprocessing: str) -> torch.Tensor:
    """Films of as many pixels as the network reads, whole grey levels where that are fewer.

    Args:
        pixels: (B, H, W) uint8 or float, grey, 0..255.
        preprocessing: A name of :data:`PREPROCESSING`.

    Returns:
        (B, h, w); `pixels` where they stay as many, else float32.

    Raises:
        UserError: There is no such normalisation.
    """
    side = _preprocessing(preprocessing).shrink
    if side == 1:
        return pixels
    return torch.nn.functional.avg_pool2d(pixels.to(torch.float32).unsqueeze(1), side).round().squeeze(1)


def side_seen(preprocessing: str, size: int) -> int:
    """Side, in pixels, of what the network reads of a film of `size` x `size` pixels.

    Raises:
        UserError: There is no such normalisation.
    """
    return size // _preprocessing(preprocessing).shrink


@cache
def _constants(preprocessing: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(3,) mean and (3,) divisor, sent to a device once: sending a list waits for a GPU."""
    how = _preprocessing(preprocessing)
    return tuple(torch.tensor(values, dtype=torch.float32, device=device) for values in (how.mean, how.divisor))  # type: ignore[return-value]


def _preprocessing(name: str) -> Preprocessing:
    if name not in PREPROCESSING:
        raise UserError(f"preprocessing: must be one of {', '.join(PREPROCESSING)}, found '{name}'")
    return PREPROCESSING[name]


def base_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of the base's 26 tensors, in the order of the layers."""
    shapes: dict[str, tuple[int, ...]] = {}
    channels = 3
    for start, (convolutions, width) in zip(BLOCKS, CONFIGURATION_D, strict=False):
        for index in range(start, start + 2 * convolutions, 2):
            shapes[f"features.{index}.weight"] = (width, channels, 3, 3)
            shapes[f"features.{index}.bias"] = (width,)
            channels = width
    return shapes


@dataclass(frozen=True)
class BaseWeights:
    """A convolutional base, and the pixels that it wants."""

    #: Name as in :class:`~vgg16_xray.learn.vgg16.VGG16` -> float32.
    tensors: Mapping[str, torch.Tensor]
    #: The name in :data:`PREPROCESSING` of the normalisation that these weights were trained on.
    preprocessing: str
    #: Where they come from, and how it is known what pixels they want: one line.
    origin: str
    #: SHA-256 of the file.
    sha256: str

    def put_into(self, model: VGG16) -> None:
        """Copy the weights into the model's base; those of blocks that it has not are left out."""
        model.features.load_state_dict({name: self.tensors[f"features.{name}"] for name in model.features.state_dict()})


@dataclass(frozen=True)
class _Found:
    """What a file holds, before it is checked: shapes are known, values are read on demand."""

    #: What kind of file it is, in words.
    kind: str
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], torch.Tensor]
    #: What the file itself says; None where it says nothing.
    stated: str | None
    #: What files of this kind want where nothing is stated.
    usual: str


def load_base(path: Path | None = None) -> BaseWeights:
    """Load a convolutional base.

    The format is told by the file's content, not its name:

    - safetensors with torchvision's names, with or without ``features.``; the metadata key ``preprocessing`` says which
      pixels they want, and without it ``torch`` is assumed;
    - torchvision's ``.pth``, e.g. ``vgg16-397923af.pth``, of which only tensors are read; wants ``torch``;
    - Keras' HDF5 weights with the convolutions ``block1_conv1`` ... ``block5_conv3``; wants ``caffe``.

    The original Oxford weights are recognised by their values and want ``caffe`` whatever file they are in.
    :attr:`BaseWeights.origin` tells what was stated, recognised or assumed.

    Args:
        path: The file; None for the one in the package.

    Raises:
        UserError: The file is missing, of no known kind, damaged, wants to run code, or does not fit VGG16: a tensor is
            missing, misshaped or not finite.
        MissingExtra: It is a Keras file and h5py is not installed.
    """
    if path is None:
        with resources.as_file(resources.files("vgg16_xray.learn") / PACKAGED) as packaged:
            return _load(packaged, where=f"the package's {PACKAGED}")
    return _load(path, where=str(path))


def _load(path: Path, *, where: str) -> BaseWeights:
    try:
        with path.open("rb") as file:
            head = file.read(16)
        sha256 = sha256_of(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    found = _open(path, head)
    tensors = _checked(path, found)
    if found.stated is not None:
        wanted = [name for name, how in PREPROCESSING.items() if how.shrink == 1]
        if found.stated not in wanted:
            rule = f"must be one of {', '.join(wanted)}"
            raise UserError(f"{path}: metadata 'preprocessing' {rule}, found '{found.stated}'")
        preprocessing, how = found.stated, "as the file states"
    elif _is_oxford(tensors):
        preprocessing, how = "caffe", "recognised as the original Oxford weights"
    else:
        preprocessing, how = found.usual, f"assumed, as is usual for {found.kind}"
    description = PREPROCESSING[preprocessing].description
    origin = f"{where}, {found.kind}; wants '{preprocessing}' ({description}), {how}"
    return BaseWeights(MappingProxyType(tensors), preprocessing, origin, sha256)


def _open(path: Path, head: bytes) -> _Found:
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return _open_keras(path)
    # torch.save writes a zip; before version 1.6, and so in vgg16-397923af.pth, a row of pickles.
    if head.startswith((b"PK\x03\x04", b"\x80")):
        return _open_pth(path, mmap=head.startswith(b"PK"))
    # safetensors: eight bytes with the length of the header, then the header, which is JSON.
    if head[8:9] == b"{":
        return _open_safetensors(path)
    found = f"a file that begins with {head[:8]!r}" if head else "an empty file"
    raise UserError(f"{path}: must be weights as safetensors, .pth or Keras .h5, found {found}")


def _open_safetensors(path: Path) -> _Found:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = {_with_prefix(name): name for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            shapes = {name: tuple(file.get_slice(own).get_shape()) for name, own in names.items()}
            tensors = {name: file.get_tensor(own) for name, own in names.items() if name in base_shapes()}
            stated = (file.metadata() or {}).get("preprocessing")
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: must be a whole safetensors file, found {_one_line(error)}") from error
    return _Found("safetensors", shapes, tensors.__getitem__, stated, "torch")


def _with_prefix(name: str) -> str:
    return f"features.{name}" if re.fullmatch(r"\d+\.(weight|bias)", name) else name


def _open_pth(path: Path, *, mmap: bool) -> _Found:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle's protocol; the refusal below is the one line
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged pickle can raise anything
        asks = re.search(r"GLOBAL (\S+)", str(error))
        found = f"a pickle that asks to run {asks[1]}" if asks else f"a damaged file ({_one_line(error)})"
        raise UserError(f"{path}: must be a .pth that holds only tensors, found {found}") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: must be a .pth with a state dict, found a {type(content).__name__}")
    tensors = {_with_prefix(str(name)): t for name, t in content.items() if isinstance(t, torch.Tensor)}
    shapes = {name: tuple(t.shape) for name, t in tensors.items()}
    return _Found("a torchvision .pth", shapes, tensors.__getitem__, None, "torch")


def _open_keras(path: Path) -> _Found:
    require("keras", purpose=f"reading the Keras weights {path}")
    import h5py

    tensors: dict[str, torch.Tensor] = {}
    try:
        with h5py.File(path, "r") as file:
            layers = file.get("model_weights", file)  # a whole saved model keeps its weights one level down
            for layer, index in _keras_layers().items():
                for name, dataset in _keras_datasets(layers.get(layer)):
                    # Keras keeps kernels as (height, width, in, out).
                    order = (3, 2, 0, 1) if dataset.ndim == 4 else range(dataset.ndim)
                    tensors[f"features.{index}.{name}"] = torch.from_numpy(dataset[()]).permute(*order)
    except (OSError, RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{path}: must be a whole HDF5 file of Keras weights, found {_one_line(error)}") from error
    with path.open("rb") as raw:
        md5 = hashlib.file_digest(raw, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    kind = "Keras' released file" if md5 == KERAS_MD5 else f"a Keras file other than the released one (md5 {md5})"
    return _Found(kind, {name: tuple(t.shape) for name, t in tensors.items()}, tensors.__getitem__, None, "caffe")


def _keras_layers() -> dict[str, int]:
    return {
        f"block{block}_conv{number + 1}": start + 2 * number
        for block, (start, (convolutions, _)) in enumerate(zip(BLOCKS, CONFIGURATION_D, strict=False), start=1)
        for number in range(convolutions)
    }


def _keras_datasets(group: Any) -> list[tuple[str, Any]]:
    """Kernel and bias of a layer, as Keras 1 (``block1_conv1_W_1:0``), 2 and 3 (``.../kernel:0``) name them."""
    found: list[tuple[str, Any]] = []

    def visit(name: str, item: Any) -> None:
        match = re.search(r"(?:^|[/_])(kernel|W|bias|b)(?:_\d+)?(?::0)?$", name)
        if match and hasattr(item, "ndim"):
            found.append(("weight" if match[1] in ("kernel", "W") else "bias", item))

    if group is not None:
        group.visititems(visit)
    return found


def _checked(path: Path, found: _Found) -> dict[str, torch.Tensor]:
    wanted = base_shapes()
    missing = [name for name in wanted if name not in found.shapes]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"{path}: must hold VGG16's 26 base tensors, found no {', '.join(missing[:3])}{more}")
    tensors = {}
    for name, shape in wanted.items():
        if found.shapes[name] != shape:
            raise UserError(f"{path}: {name} must have the shape {shape}, found {found.shapes[name]}")
        tensor = found.read(name)
        if not tensor.dtype.is_floating_point or tensor.layout != torch.strided or tensor.is_meta:
            found_what = f"{tensor.dtype}, {tensor.layout}, on {tensor.device}"
            raise UserError(f"{path}: {name} must hold dense floating-point numbers, found {found_what}")
        tensors[name] = tensor.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        if not tensors[name].isfinite().all():
            raise UserError(f"{path}: {name} must hold finite numbers, found NaN or infinity")
    return tensors


def _is_oxford(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the first convolution is the packaged one's, but for the rounding to half precision."""
    from safetensors import safe_open

    name = "features.0.weight"
    with (
        resources.as_file(resources.files("vgg16_xray.learn") / PACKAGED) as packaged,
        safe_open(packaged, framework="pt") as file,
    ):
        oxford = file.get_tensor(name).float()
    return torch.allclose(tensors[name], oxford, rtol=1e-2, atol=1e-4)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
