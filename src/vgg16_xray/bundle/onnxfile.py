"""What is in an ONNX file, read without trusting it: its messages field by field, weights passed over.

A bundle may come from anybody. onnxruntime would resolve whatever operator, file name or size stands in a graph, so the
file is looked through first, and what no network of this project needs is refused by its name. The numbers of the
fields are those of onnx.proto3 (github.com/onnx/onnx), the wire format is protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vgg16_xray.errors import UserError

#: Every operator that :mod:`vgg16_xray.bundle.graph` writes, or wrote (Conv and Sub are of float32, QuantizeLinear and
#: DequantizeLinear of int8 until 26 November 2026).
OPERATORS = frozenset(
    {"Add", "AveragePool", "Cast", "Clip", "Concat", "Conv", "DequantizeLinear", "Div", "Flatten", "Gemm"}
    | {"GlobalAveragePool", "GlobalMaxPool", "MatMulInteger", "MaxPool", "Mul", "Pad", "QLinearConv"}
    | {"QuantizeLinear", "Relu", "Resize", "Round", "Slice", "Softmax", "Sub", "Transpose", "Unsqueeze"}
)
#: Versions of the operators that are understood.
OPSETS = range(13, 24)
#: A network of this project has about 60 nodes and 90 tensors.
MOST_NODES, MOST_TENSORS, LARGEST_SIDE, LARGEST_ATTRIBUTE = 256, 512, 1024, 16
#: What could grow without stored numbers that say so: of Concat there are three, the largest joins the nine neighbours
#: of a place, and Pad adds one place at each end. All others read one computed value: no product of a map with itself.
MOST_CONCATS, MOST_JOINED, MOST_PADDED = 3, 9, 1
#: TensorProto.DataType -> bytes a value; other types are not used.
BYTES_OF_TYPE = {1: 4, 2: 1, 3: 1, 6: 4, 7: 8}
INT64, GRAPH_ATTRIBUTES = 7, (5, 10)


def inspect(path: Path, data: bytes) -> None:
    """Refuse a graph that holds what a network of this project does not.

    Args:
        path: What to call it.
        data: The whole file.

    Raises:
        UserError: It is no ONNX model, or has a foreign operator, weights in another file, a graph within a graph, an
            absurd shape or number, or other inputs and outputs; the line names it.
    """
    try:
        _inspect_model(path, memoryview(data))
    except (_Malformed, UnicodeDecodeError) as error:
        raise UserError(f"{path}: must be an ONNX model, found {error}") from error


def refuse_weights_elsewhere(path: Path, data: bytes) -> None:
    """Refuse a foreign graph that would have a file of its own choice read.

    Args:
        path: What to call it.
        data: The whole file.

    Raises:
        UserError: It is no ONNX model, or has weights in another file.
    """
    try:
        model = _message(memoryview(data))
        graphs, functions = list(model.messages(7)), list(model.messages(25))
        tensors = [*_tensors_of(graphs), *(t for f in functions for t in _tensors_of_nodes(f.messages(7)))]
        elsewhere = [tensor.text(8)[:80] for tensor in tensors if tensor.has(13) or tensor.integer(14)]
    except (_Malformed, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: must be an ONNX model, found {error}") from error
    if not graphs:
        raise UserError(f"{path}: must be an ONNX model, found no graph in it")
    if elsewhere:
        raise UserError(f"{path}: weights must lie in the file, found '{elsewhere[0]}' in another")


def _tensors_of(graphs: Iterable[_Message]) -> Iterator[_Message]:
    """Every tensor in graphs, and in the graphs within them."""
    for graph in graphs:
        yield from graph.messages(5)
        for sparse in graph.messages(15):
            yield from (*sparse.messages(1), *sparse.messages(2))
        yield from _tensors_of_nodes(graph.messages(1))


def _tensors_of_nodes(nodes: Iterable[_Message]) -> Iterator[_Message]:
    for node in nodes:
        for attribute in node.messages(5):
            yield from (*attribute.messages(5), *attribute.messages(10))
            for sparse in (*attribute.messages(22), *attribute.messages(23)):
                yield from (*sparse.messages(1), *sparse.messages(2))
            yield from _tensors_of((*attribute.messages(6), *attribute.messages(11)))


class _Malformed(Exception):
    """The bytes do not follow the wire format."""


@dataclass(frozen=True)
class _Message:
    """Fields of one message: (number, value); a value is a whole number or, for what has a length, its bytes."""

    fields: tuple[tuple[int, int | memoryview], ...]

    def messages(self, number: int) -> Iterator[_Message]:
        return (_message(value) for value in self.parts(number))

    def parts(self, number: int) -> list[memoryview]:
        return [value for field, value in self.fields if field == number and isinstance(value, memoryview)]

    def text(self, number: int) -> str:
        return "".join(str(part, "utf-8") for part in self.parts(number)[-1:])

    def integer(self, number: int) -> int:
        return next((value for field, value in reversed(self.fields) if field == number and isinstance(value, int)), 0)

    def integers(self, number: int) -> list[int]:
        """Of a repeated field, whether it is packed or not."""
        found = []
        for field, value in self.fields:
            if field == number and isinstance(value, int):
                found.append(value)
            elif field == number and isinstance(value, memoryview):
                at = 0
                while at < len(value):
                    one, at = _varint(value, at)
                    found.append(one)
        return found

    def has(self, *numbers: int) -> bool:
        return any(field in numbers for field, _ in self.fields)


def _message(data: memoryview) -> _Message:
    fields: list[tuple[int, int | memoryview]] = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            fields.append((number, value))
            continue
        if kind == 2:
            length, at = _varint(data, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise _Malformed(f"a field of unknown kind {kind}")
        if length < 0 or at + length > len(data):
            raise _Malformed("a field that ends behind the file")
        fields.append((number, data[at : at + length]))
        at += length
    return _Message(tuple(fields))


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A whole number, seven bits a byte, the lowest first; and where it ends."""
    value = 0
    for count in range(10):
        if at + count >= len(data):
            raise _Malformed("a file that ends within a number")
        byte = data[at + count]
        value |= (byte & 127) << (7 * count)
        if byte < 128:
            return (value - (1 << 64) if value >> 63 else value), at + count + 1
    raise _Malformed("a number of more than 64 bits")


def _inspect_model(path: Path, data: memoryview) -> None:
    model = _message(data)
    graphs = list(model.messages(7))
    if len(graphs) != 1:
        raise _Malformed("no graph" if not graphs else "several graphs")
    for opset in model.messages(8):
        if domain := opset.text(1):
            raise UserError(f"{path}: must use the standard's operators alone, found the domain '{domain[:80]}'")
        if opset.integer(2) not in OPSETS:
            raise UserError(
                f"{path}: operators must be of version {OPSETS[0]} to {OPSETS[-1]}, found {opset.integer(2)}"
            )
    if model.has(20, 25):
        raise UserError(f"{path}: must hold one graph alone, found functions or training information")
    graph = graphs[0]
    if graph.has(15):
        raise UserError(f"{path}: weights must be dense, found sparse ones")
    nodes, tensors = list(graph.messages(1)), list(graph.messages(5))
    _inspect_nodes(path, nodes)
    _inspect_tensors(path, tensors)
    _inspect_growth(path, nodes, tensors)
    _inspect_ends(path, graph)


def _inspect_nodes(path: Path, nodes: list[_Message]) -> None:
    if len(nodes) > MOST_NODES:
        raise UserError(f"{path}: must have at most {MOST_NODES} nodes, found {len(nodes)}")
    for node in nodes:
        name, kind, domain = node.text(3)[:80], node.text(4), node.text(7)
        if domain or kind not in OPERATORS:
            where = f" of the domain '{domain[:80]}'" if domain else ""
            raise UserError(f"{path}: node '{name}' must be a known operator, found '{kind[:80]}'{where}")
        for attribute in node.messages(5):
            if attribute.has(*GRAPH_ATTRIBUTES, 6, 11):
                raise UserError(f"{path}: node '{name}' must hold plain numbers, found a graph within it")
            numbers = [attribute.integer(3), *attribute.integers(8)]
            if (largest := max(numbers, key=abs)) > LARGEST_ATTRIBUTE or largest < -LARGEST_ATTRIBUTE:
                what = f"{path}: node '{name}', {attribute.text(1)[:80]}"
                raise UserError(f"{what} must be at most {LARGEST_ATTRIBUTE}, found {largest}")


def _inspect_tensors(path: Path, tensors: list[_Message]) -> None:
    if len(tensors) > MOST_TENSORS:
        raise UserError(f"{path}: must have at most {MOST_TENSORS} tensors, found {len(tensors)}")
    for tensor in tensors:
        name, shape, kind = tensor.text(8)[:80], tensor.integers(1), tensor.integer(2)
        if tensor.has(13) or tensor.integer(14):
            location = next((entry.text(2) for entry in tensor.messages(13) if entry.text(1) == "location"), "")
            raise UserError(f"{path}: tensor '{name}' must lie in the file, found it in another, '{location[:200]}'")
        if kind not in BYTES_OF_TYPE:
            raise UserError(f"{path}: tensor '{name}' must be of a known number format, found type {kind}")
        raw = tensor.parts(9)
        wanted = math.prod(shape) * BYTES_OF_TYPE[kind]
        if min(shape, default=1) < 1 or len(raw) != 1 or len(raw[0]) != wanted:
            found = len(raw[0]) if len(raw) == 1 else "none"
            raise UserError(f"{path}: tensor '{name}' of shape {shape} must have {wanted} bytes, found {found}")
        if kind == INT64 and (largest := int(np.abs(np.frombuffer(raw[0], np.int64)).max())) > LARGEST_SIDE:
            raise UserError(f"{path}: tensor '{name}' must be at most {LARGEST_SIDE}, found {largest}")


def _inspect_growth(path: Path, nodes: list[_Message], tensors: list[_Message]) -> None:
    stored = {tensor.text(8): tensor for tensor in tensors}
    made_by = {str(out, "utf-8"): node.text(4) for node in nodes for out in node.parts(2)}
    concats = 0
    for node in nodes:
        name, kind = node.text(3)[:80], node.text(4)
        given = [str(part, "utf-8") for part in node.parts(1)]
        computed = [x for x in given if x and x not in stored]
        if kind == "Concat":
            concats += 1
            if len(given) > MOST_JOINED:
                raise UserError(f"{path}: node '{name}' must join at most {MOST_JOINED} tensors, found {len(given)}")
            continue
        # int8 until 26 November 2026 added two halves of its last map.
        halves = kind == "Add" and all(made_by.get(x) == "DequantizeLinear" for x in computed)
        if len(computed) > 1 and not halves:
            raise UserError(f"{path}: node '{name}' must read one computed tensor, found {len(computed)}")
        if kind == "Pad" and (len(given) < 2 or _largest(stored.get(given[1])) > MOST_PADDED):
            raise UserError(
                f"{path}: node '{name}' must add at most {MOST_PADDED} place at an end, found another number"
            )
    if concats > MOST_CONCATS:
        raise UserError(f"{path}: must have at most {MOST_CONCATS} nodes Concat, found {concats}")


def _largest(tensor: _Message | None) -> int:
    """Of whole numbers of 64 bits; more than any bound where there are none."""
    if tensor is None or tensor.integer(2) != INT64:
        return LARGEST_SIDE + 1
    return int(np.frombuffer(tensor.parts(9)[0], np.int64).max())


def _inspect_ends(path: Path, graph: _Message) -> None:
    from vgg16_xray.bundle.format import OUTPUTS, PIXELS

    ends = [[value.text(1) for value in graph.messages(number)] for number in (11, 12)]
    if ends != [[PIXELS], list(OUTPUTS)]:
        raise UserError(
            f"{path}: must take {PIXELS} and give {', '.join(OUTPUTS)}, found {', '.join(ends[0])[:200]} and "
            f"{', '.join(ends[1])[:200]}"
        )
