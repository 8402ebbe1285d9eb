"""The Open Inference Protocol, version 2, with its binary tensor extension: requests and answers as bytes.

https://github.com/kserve/open-inference-protocol, and Triton's "Binary Tensor Data Extension". A tensor travels as JSON
numbers or as raw little-endian bytes behind the JSON header, whose length then stands in :data:`HEADER_LENGTH`.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vgg16_xray.serve.errors import Refusal

#: Length of the JSON header, bytes, where binary tensors follow it.
HEADER_LENGTH = "Inference-Header-Content-Length"
#: The graph's input.
PIXELS = "pixels"
#: Name -> datatype of the protocol. The first four are the graph's, see ``bundle``; the others say what they mean.
OUTPUTS = {
    "probabilities": "FP32",
    "logits": "FP32",
    "embedding": "FP32",
    "feature_map": "FP32",
    "prediction": "BYTES",
    "answer": "BYTES",
    "reason": "BYTES",
}
#: More films than this in one tensor are refused by the limit on films; a shape must stay a shape.
LARGEST_SHAPE = 2**31
#: Numbers as JSON keep the whole process from all else while they are read: 0.2 s for 20 MB. More come as raw bytes.
MOST_JSON_BYTES = 20_000_000


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request to infer."""

    id: str | None
    #: (B, H, W) uint8.
    pixels: np.ndarray
    #: Output -> whether it is wanted as raw bytes; all outputs where none is named.
    outputs: Mapping[str, bool]


def read(body: bytes, header_length: str | None) -> Asked:
    """Read a request.

    Args:
        body: JSON, perhaps with binary tensors behind it.
        header_length: Value of :data:`HEADER_LENGTH`, None where it was not sent.

    Raises:
        Refusal: 400, or 413, and what is wrong with it.
    """
    end = len(body)
    if header_length is not None:
        end = int(header_length) if header_length.isascii() and header_length.isdigit() else -1
        if not 0 < end <= len(body):
            raise Refusal(
                400, f"{HEADER_LENGTH}: must be from 1 to the body's {len(body)} bytes, found {header_length}"
            )
    if end > MOST_JSON_BYTES:
        raise Refusal(
            413, f"body: must have at most {MOST_JSON_BYTES:,} bytes of JSON, found {end:,}; send raw bytes for more"
        )
    try:
        asked = json.loads(body[:end])
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "body: must be JSON of the Open Inference Protocol, found something else") from error
    given = asked.get("inputs") if isinstance(asked, dict) else None
    if (
        not isinstance(given, list)
        or len(given) != 1
        or not isinstance(given[0], dict)
        or given[0].get("name") != PIXELS
    ):
        names = [one.get("name") for one in given if isinstance(one, dict)] if isinstance(given, list) else "none"
        raise Refusal(400, f"inputs: must be one tensor, '{PIXELS}', found {str(names)[:100]}")
    identity = asked.get("id")
    if identity is not None and (not isinstance(identity, str) or len(identity) > 256):
        raise Refusal(400, "id: must be text of at most 256 characters")
    return Asked(id=identity, pixels=_tensor(given[0], body[end:]), outputs=_wanted(asked))


def _tensor(given: Mapping[str, Any], behind: bytes) -> np.ndarray:
    shape: Any = given.get("shape")
    datatype = given.get("datatype")
    if datatype != "UINT8":
        raise Refusal(400, f"{PIXELS}: must be of datatype UINT8, found {str(datatype)[:40]}")
    whole = isinstance(shape, list) and all(type(n) is int and 0 < n < LARGEST_SHAPE for n in shape)
    if not whole or len(shape) != 3:
        raise Refusal(400, f"{PIXELS}: must have the shape [films, height, width], found {str(shape)[:100]}")
    size = math.prod(shape)
    told = _parameters(given, PIXELS).get("binary_data_size")
    if told is not None:
        if told != len(behind) or size != len(behind):
            raise Refusal(400, f"{PIXELS}: must be {size} bytes for shape {shape}, found {len(behind)}")
        return np.frombuffer(behind, np.uint8).reshape(shape)
    try:
        values = np.asarray(given.get("data"))
    except ValueError as error:
        raise Refusal(
            400, f"{PIXELS}: data must be numbers for shape {shape}, found lists of unequal length"
        ) from error
    if values.dtype.kind not in "iu" or values.size != size or values.min() < 0 or values.max() > 255:
        raise Refusal(400, f"{PIXELS}: data must be {size} whole numbers from 0 to 255 for shape {shape}")
    return values.astype(np.uint8).reshape(shape)


def _parameters(of: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = of.get("parameters") or {}
    if not isinstance(found, dict):
        raise Refusal(400, f"{name}: parameters must be an object")
    return found


def _wanted(asked: Mapping[str, Any]) -> dict[str, bool]:
    binary = bool(_parameters(asked, "request").get("binary_data_output", False))
    named = asked.get("outputs")
    if not named:
        return dict.fromkeys(OUTPUTS, binary)
    wanted = {}
    for one in named if isinstance(named, list) else [None]:
        name = one.get("name") if isinstance(one, dict) else None
        if not isinstance(one, dict) or name not in OUTPUTS:
            raise Refusal(400, f"outputs: must be of {', '.join(OUTPUTS)}, found {str(name)[:60]}")
        parameters = _parameters(one, name)
        if "classification" in parameters:
            raise Refusal(400, f"{name}: the classification extension is not offered; ask for 'prediction'")
        wanted[name] = bool(parameters.get("binary_data", binary))
    return wanted


def write(
    model: str, version: str, asked: Asked, values: Mapping[str, np.ndarray | list[str]]
) -> tuple[bytes, str | None]:
    """Write an answer.

    Args:
        model: The model's name.
        version: Its version.
        asked: What was asked.
        values: Output -> float32 array, or texts.

    Returns:
        The body, and the value of :data:`HEADER_LENGTH` where binary tensors follow.
    """
    outputs: list[str] = []
    behind: list[bytes] = []
    for name, as_bytes in asked.outputs.items():
        value = values[name]
        shape = [len(value)] if isinstance(value, list) else list(value.shape)
        output: dict[str, Any] = {"name": name, "datatype": OUTPUTS[name], "shape": shape}
        if as_bytes:
            behind.append(_texts(value) if isinstance(value, list) else value.astype("<f4").tobytes())
            outputs.append(json.dumps(output | {"parameters": {"binary_data_size": len(behind[-1])}}))
        else:
            data = json.dumps(value) if isinstance(value, list) else _numbers(value)
            outputs.append(f'{json.dumps(output)[:-1]}, "data": {data}}}')
    answer = {"model_name": model, "model_version": version} | ({} if asked.id is None else {"id": asked.id})
    header = f'{json.dumps(answer)[:-1]}, "outputs": [{", ".join(outputs)}]}}'.encode()
    return b"".join([header, *behind]), str(len(header)) if behind else None


def _numbers(values: np.ndarray) -> str:
    """A flat list in JSON. A row at a time: a feature map of 64 films at once would hold up all else for seconds."""
    return f"[{', '.join(json.dumps(row.ravel().tolist())[1:-1] for row in values)}]"


def _texts(texts: list[str]) -> bytes:
    """Each text behind its length, 4 bytes."""
    encoded = [text.encode() for text in texts]
    return b"".join(struct.pack("<I", len(one)) + one for one in encoded)


def metadata(model: str, version: str, shapes: Mapping[str, list[int]]) -> dict[str, Any]:
    """What the model takes and gives; -1 stands for any size."""
    return {
        "name": model,
        "versions": [version],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": PIXELS, "datatype": "UINT8", "shape": [-1, -1, -1]}],
        "outputs": [
            {"name": name, "datatype": kind, "shape": shapes.get(name, [-1])} for name, kind in OUTPUTS.items()
        ],
    }
