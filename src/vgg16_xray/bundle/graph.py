"""A whole trained network as one ONNX graph, in float32 or in int8: grey pixels in, calibrated probabilities out.

Written node by node, nothing is traced. In int8 a layer reads bytes and writes bytes (``QLinearConv`` of the standard);
the last one writes its sums.
What a ReLU yields is never negative, so a byte stands for scale x byte, and the byte's lower end is the ReLU. Weights
are symmetric about zero, with a scale for each output channel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from vgg16_xray.bundle.format import EMBEDDING, FEATURE_MAP, LOGITS, PROBABILITIES
from vgg16_xray.errors import UserError
from vgg16_xray.learn.onnx_graph import IR_VERSION, STRETCH, as_model, film_nodes, normalising_nodes

if TYPE_CHECKING:
    import onnx

    from vgg16_xray.learn.vgg16 import VGG16

#: ``Resize`` can antialias since this version (onnxruntime 1.14, February 2023).
OPSET = 18
#: Weights are -63..63. Without VNNI a product of an unsigned and a signed byte is summed in pairs into 16 bits, where
#: two products of eight bits each do not fit, and what does not fit is cut off.
LARGEST_WEIGHT = 63
#: Grey value of the channel that never changes, by which the first convolution in bytes learns where the film ends.
CONSTANT = 128
#: How often the first convolution in bytes reads grey and constant: its weights are sums of so many bytes, and a
#: processor multiplies four bytes of one place at a time in any case.
COPIES = 2
THREE_BY_THREE: Mapping[str, Any] = MappingProxyType({"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]})


def last_relu(model: VGG16) -> int:
    """Number, in ``features``, of the ReLU that yields the feature map: a pool alone follows it."""
    return len(model.features) - 2


@dataclass(frozen=True)
class Reach:
    """Which values of a ReLU's output bytes stand for: 0 to this."""

    largest: float

    @property
    def step(self) -> float:
        """What one step of a byte stands for."""
        return max(self.largest, 1e-6) / 255


@dataclass(frozen=True)
class Rounded:
    """A convolution whose weights are whole numbers."""

    #: (O, I, 3, 3) whole numbers, at most :data:`LARGEST_WEIGHT` from zero; :data:`COPIES` times that in the first one.
    weight: np.ndarray
    #: (O,) what 1 stands for.
    scale: np.ndarray
    #: (O,)
    bias: np.ndarray


@dataclass(frozen=True)
class Int8:
    """How a network is computed in bytes.

    The first convolution reads what :func:`on_grey_and_constant` says. The last one yields its sums, not bytes.
    Where a channel is divided by its level before it becomes bytes, the weights on both sides make up for it.
    """

    #: By the number of the ReLU in ``features``; of all but the last.
    reached: Mapping[int, Reach]
    #: By the number of the convolution in ``features``.
    rounded: Mapping[int, Rounded]


def network_graph(
    model: VGG16,
    *,
    preprocessing: str,
    size: int,
    temperature: float,
    int8: Int8 | None = None,
    show: tuple[int, ...] = (),
) -> onnx.ModelProto:
    """Write a trained network.

    Args:
        model: The network.
        preprocessing: A name of :data:`vgg16_xray.config.PREPROCESSING`.
        size: Side of the square that films are stretched to, pixels.
        temperature: The logits are divided by it before the softmax.
        int8: How it is computed in bytes; None: in float32.
        show: Numbers of ReLUs in ``features``, not the last, whose output the graph gives too, as ``relu<number>``.

    Returns:
        ``pixels`` (B, H, W) uint8 -> :data:`vgg16_xray.bundle.format.OUTPUTS`.
    """
    from vgg16_xray.learn.weights import side_seen

    side = side_seen(preprocessing, size)
    begin = film_nodes if int8 else normalising_nodes
    nodes, tensors = begin(preprocessing, stretch_to=size)
    graph = _Graph(nodes, tensors, {})
    last_map = _write_base_of_bytes(graph, model, int8, side) if int8 else _write_base(graph, model, side)
    classes = _write_head(graph, model, last_map)
    graph.node("Div", [LOGITS, graph.tensor("temperature", temperature)], "calibrated")
    graph.node("Softmax", ["calibrated"], PROBABILITIES, axis=1)
    shapes: dict[str, list[Any]] = {
        PROBABILITIES: ["films", classes],
        LOGITS: ["films", classes],
        EMBEDDING: ["films", 1024],
        FEATURE_MAP: ["films", 512, *[_side_of_map(model, side)] * 2],
    }
    for number in show:
        shapes[graph.node("Identity", [f"features.{number}"], f"relu{number}")] = ["films", None, None, None]
    return as_model(nodes, tensors, pixels=np.uint8, size=None, outputs=shapes, opset=OPSET)


@dataclass(frozen=True)
class _Graph:
    """The graph so far. A node has the name of its output."""

    nodes: list[onnx.NodeProto]
    tensors: dict[str, np.ndarray]
    #: Name of a tensor of bytes -> name of its scale.
    scales: dict[str, str]

    def node(self, kind: str, given: list[str], out: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, given, [out], name=out, **attributes))
        return out

    def tensor(self, name: str, values: Any, dtype: Any = np.float32) -> str:
        self.tensors[name] = np.asarray(values).astype(dtype)
        return name


def _write_base(graph: _Graph, model: VGG16, side: int) -> str:
    """Convolutions, ReLUs and pools in float32 for films of a side; returns the name of what the last pool yields."""
    from torch import nn

    x = graph.nodes[-1].output[0]
    for name, layer in model.features.named_children():
        y = f"features.{name}"
        if isinstance(layer, nn.Conv2d):
            weight, bias = (part.detach().cpu().float().numpy() for part in (layer.weight, layer.bias))  # type: ignore[union-attr]
            parts = [graph.tensor(f"{y}.weight", weight), graph.tensor(f"{y}.bias", bias)]
            x = graph.node("Conv", [x, *parts], y, **THREE_BY_THREE)
        elif isinstance(layer, nn.ReLU):
            x = graph.node("Relu", [x], FEATURE_MAP if int(name) == last_relu(model) else y)
        else:
            x, side = _write_pool(graph, x, y, side), math.ceil(side / 2)
    return x


def _write_pool(graph: _Graph, x: str, y: str, side: int) -> str:
    """A maximum pool of 2 x 2; of an odd side the last row and column count too."""
    odd = {"ceil_mode": 1} if side % 2 else {}
    return graph.node("MaxPool", [x], y, kernel_shape=[2, 2], strides=[2, 2], **odd)


def _write_base_of_bytes(graph: _Graph, model: VGG16, int8: Int8, side: int) -> str:
    """The same in bytes; what the last pool yields is float32."""
    from torch import nn

    graph.tensor("zero", 0, np.uint8)
    graph.tensor("zero_weight", 0, np.int8)
    x = _write_grey_and_constant(graph)
    given = Reach(255.0)
    for name, layer in model.features.named_children():
        number = int(name)
        if isinstance(layer, nn.Conv2d):
            rounded = int8.rounded[number]
            if number + 1 == last_relu(model):
                x = _write_last_convolution(graph, x, f"features.{number + 1}", rounded, given, side)
                continue
            yields = int8.reached[number + 1]
            rounded = _in_copies(rounded) if number == 0 else rounded
            x = _write_convolution_of_bytes(graph, x, f"features.{number + 1}", rounded, given, yields)
            given = yields
        elif isinstance(layer, nn.MaxPool2d):
            pooled, side = _write_pool(graph, x, f"features.{name}", side), math.ceil(side / 2)
            if x in graph.scales:
                graph.scales[pooled] = graph.scales[x]
            x = pooled
    return x


def on_grey_and_constant(weight: np.ndarray, preprocessing: str) -> np.ndarray:
    """The first convolution's weights for bytes as they are, grey and :data:`CONSTANT`, in place of three colours.

    A grey film gives all three colours one value, from which each takes its mean. Within the film the means could be
    part of the bias. But outside is zero after they were taken, so at its border the network knows where a film ends:
    the constant, which ends there too, carries them.

    Args:
        weight: (O, 3, 3, 3)
        preprocessing: A name of :data:`vgg16_xray.config.PREPROCESSING`.

    Returns:
        (O, 2, 3, 3) float64
    """
    from vgg16_xray.learn.weights import PREPROCESSING

    how = PREPROCESSING[preprocessing]
    of_grey = np.asarray(weight, dtype=np.float64) / np.reshape(how.divisor, (3, 1, 1))
    means = (of_grey * np.reshape(how.mean, (3, 1, 1))).sum(axis=1)
    return np.stack([of_grey.sum(axis=1), -means / CONSTANT], axis=1)


def _write_grey_and_constant(graph: _Graph) -> str:
    """(B, 1, h, w) uint8 -> (B, 2 * COPIES, h, w) uint8."""
    grey = graph.nodes[-1].output[0]
    level = graph.tensor("constant_level", CONSTANT, np.uint8)
    graph.node("Clip", [grey, level, level], "constant")
    graph.scales["bytes"] = graph.tensor("bytes.scale", 1.0)
    return graph.node("Concat", [grey, "constant"] * COPIES, "bytes", axis=1)


def _in_copies(rounded: Rounded) -> Rounded:
    """Weights of :data:`COPIES` bytes each as so many of one byte each that add up to them."""
    parts: list[np.ndarray] = []
    for left in range(COPIES, 0, -1):
        parts.append(np.rint((rounded.weight - sum(parts)) / left))
    return replace(rounded, weight=np.concatenate(parts, axis=1))


def _write_convolution_of_bytes(  # noqa: PLR0917 (its two ends, its parameters)
    graph: _Graph, x: str, y: str, rounded: Rounded, given: Reach, yields: Reach
) -> str:
    """A convolution that reads and yields bytes, and the ReLU behind it."""
    graph.scales[y] = graph.tensor(f"{y}.scale", yields.step)
    parts = [
        *(x, graph.scales[x], "zero"),
        graph.tensor(f"{y}.weight", rounded.weight, np.int8),
        *(graph.tensor(f"{y}.weight.scale", rounded.scale), "zero_weight"),
        *(graph.scales[y], "zero"),
        graph.tensor(f"{y}.bias", np.rint(rounded.bias / (rounded.scale * given.step)), np.int32),
    ]
    return graph.node("QLinearConv", parts, y, **THREE_BY_THREE)


def _write_last_convolution(  # noqa: PLR0917 (its two ends, its parameters)
    graph: _Graph, x: str, y: str, rounded: Rounded, given: Reach, side: int
) -> str:
    """The last convolution and its ReLU as a product of matrices, which yields its sums: the head reads maxima of them.

    Bytes would end somewhere or be too coarse. ``ConvInteger`` yields sums too, but takes a third of all time.
    """
    graph.node("Transpose", [x], f"{y}.places", perm=[0, 2, 3, 1])
    around = graph.tensor(f"{y}.around", [0, 1, 1, 0, 0, 1, 1, 0], np.int64)
    graph.node("Pad", [f"{y}.places", around, "zero"], f"{y}.padded")
    graph.tensor(f"{y}.axes", [1, 2], np.int64)
    neighbours = []
    for row, column in np.ndindex(3, 3):
        name = f"{y}.read.{row}.{column}"
        begin = graph.tensor(f"{name}.begin", [row, column], np.int64)
        end = graph.tensor(f"{name}.end", [row + side, column + side], np.int64)
        neighbours.append(graph.node("Slice", [f"{y}.padded", begin, end, f"{y}.axes"], name))
    graph.node("Concat", neighbours, f"{y}.read", axis=3)
    weight = rounded.weight.transpose(2, 3, 1, 0).reshape(-1, len(rounded.weight))
    parts = [f"{y}.read", graph.tensor(f"{y}.weight", weight, np.int8), "zero", "zero_weight"]
    graph.node("MatMulInteger", parts, f"{y}.products")
    scale = rounded.scale * given.step
    # Whole numbers until here, and one multiplication: the same on every machine.
    graph.node(
        "Add", [f"{y}.products", graph.tensor(f"{y}.bias", np.rint(rounded.bias / scale), np.int32)], f"{y}.sums"
    )
    graph.node("Cast", [f"{y}.sums"], f"{y}.float", to=1)
    graph.node("Mul", [f"{y}.float", graph.tensor(f"{y}.scale", scale)], f"{y}.values")
    graph.node("Relu", [f"{y}.values"], f"{y}.relu")
    return graph.node("Transpose", [f"{y}.relu"], FEATURE_MAP, perm=[0, 3, 1, 2])


def _write_head(graph: _Graph, model: VGG16, last_map: str) -> int:
    """Embedding and logits; returns the number of classes."""
    from torch import nn

    from vgg16_xray.learn.heads import AverageAndMaximum, Dropout, Standardise

    graph.node("GlobalAveragePool", [last_map], "averages")
    graph.node("GlobalMaxPool", [last_map], "maxima")
    graph.node("Concat", ["averages", "maxima"], "pooled", axis=1)
    graph.node("Flatten", ["pooled"], EMBEDDING, axis=1)
    layers = list(model.classifier.named_children())
    pools = isinstance(layers[0][1], AverageAndMaximum)
    x = EMBEDDING if pools else graph.node("Flatten", [last_map], "flat", axis=1)
    for number, layer in layers:
        y = LOGITS if number == layers[-1][0] else f"classifier.{number}"
        if isinstance(layer, nn.Linear):
            weight, bias = (part.detach().cpu().float().numpy() for part in layer.parameters())
            parts = [graph.tensor(f"{y}.weight", weight), graph.tensor(f"{y}.bias", bias)]
            x = graph.node("Gemm", [x, *parts], y, transB=1)
        elif isinstance(layer, Standardise):
            centred = graph.node("Sub", [x, graph.tensor(f"{y}.mean", layer.mean.cpu().numpy())], f"{y}.centred")
            x = graph.node("Div", [centred, graph.tensor(f"{y}.deviation", layer.deviation.cpu().numpy())], y)
        elif isinstance(layer, nn.ReLU):
            x = graph.node("Relu", [x], y)
        elif not isinstance(layer, (AverageAndMaximum, Dropout, nn.Flatten)):
            raise UserError(f"head: must be of known layers, found {type(layer).__name__}")
    return int(layers[-1][1].out_features)  # type: ignore[arg-type]


def _side_of_map(model: VGG16, side: int) -> int:
    """Side of the feature map of films of a side, which is that of what the last block reads."""
    from vgg16_xray.learn.vgg16 import feature_shape

    return feature_shape(f"block{model.blocks}", side, blocks=model.blocks)[1]


def cam_weights(model: VGG16, *, preprocessing: str, size: int) -> np.ndarray | None:
    """Grad-CAM's weight of each channel of the feature map for each class's logit.

    Grad-CAM (Selvaraju et al. 2017, equation 1) weights a channel by the mean over its h x w positions of the logit's
    derivative. Between the map and a logit stand a maximum pool, which passes each derivative on to one position, and a
    head that is linear: the sum of the derivatives, and so their mean, is the same for every film.

    Args:
        model: The network.
        preprocessing: A name of :data:`vgg16_xray.config.PREPROCESSING`.
        size: Side of the square that films are stretched to, pixels.

    Returns:
        (K, 512) float64, or None for a head with hidden layers, whose derivatives differ by film.
    """
    from torch import nn

    from vgg16_xray.learn.heads import AverageAndMaximum, Standardise
    from vgg16_xray.learn.weights import side_seen

    layers = list(model.classifier.children())
    dense = [layer.weight for layer in layers if isinstance(layer, nn.Linear)]
    if len(dense) > 1:
        return None
    weight = dense[0].detach().cpu().double().numpy()
    positions = _side_of_map(model, side_seen(preprocessing, size)) ** 2
    if isinstance(layers[0], AverageAndMaximum):
        (standardise,) = (layer for layer in layers if isinstance(layer, Standardise))
        weight = weight / standardise.deviation.cpu().double().numpy()
        # Averages and maxima: each a sum of derivatives of one, over all positions or at the largest.
        summed = weight[:, :512] + weight[:, 512:]
    else:
        summed = weight.reshape(len(weight), 512, -1).sum(axis=2)
    return np.asarray(summed / positions)


def rescaled(graph: bytes, *, scale: np.ndarray, shift: np.ndarray) -> bytes:
    """A graph of this project that makes other probabilities of the same logits: ``softmax(scale * logits + shift)``.

    Args:
        graph: What :func:`network_graph` or this function wrote; all its other nodes and tensors stay as they are.
        scale: (K,) above 0.
        shift: (K,)
    """
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load_model_from_string(graph)
    ending = {"temperature": 1 / np.asarray(scale), "prior": np.asarray(shift)}
    kept = [node for node in model.graph.node if node.output[0] not in ("scaled", "calibrated", PROBABILITIES)]
    tensors = [tensor for tensor in model.graph.initializer if tensor.name not in ending]
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    model.graph.initializer.extend(
        numpy_helper.from_array(values.astype(np.float32), name) for name, values in ending.items()
    )
    model.graph.node.extend(kept)
    model.graph.node.extend(
        [
            helper.make_node("Div", [LOGITS, "temperature"], ["scaled"], name="scaled"),
            helper.make_node("Add", ["scaled", "prior"], ["calibrated"], name="calibrated"),
            helper.make_node("Softmax", ["calibrated"], [PROBABILITIES], name=PROBABILITIES, axis=1),
        ]
    )
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def square_graph() -> onnx.ModelProto:
    """The graphs' stretching alone: ``film`` (H, W) uint8 and ``side`` (2,) int64 -> ``square`` (side, side) uint8.

    ``bundle/square.onnx`` in the package is this, so that films of different sizes can share a batch.
    """
    import onnx
    from onnx import TensorProto, helper

    node = helper.make_node("Resize", ["film", "", "", "side"], ["square"], name="stretch", **STRETCH, axes=[0, 1])
    graph = helper.make_graph(
        [node],
        "square",
        [
            helper.make_tensor_value_info("film", TensorProto.UINT8, ["height", "width"]),
            helper.make_tensor_value_info("side", TensorProto.INT64, [2]),
        ],
        [helper.make_tensor_value_info("square", TensorProto.UINT8, [None, None])],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="vgg16_xray", ir_version=IR_VERSION
    )
    onnx.checker.check_model(model, full_check=True)
    return model
