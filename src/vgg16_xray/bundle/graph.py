"""A whole trained network as one ONNX graph, in float32 or in int8: grey pixels in, calibrated probabilities out.

Written node by node, nothing is traced. In int8 a layer reads bytes and writes bytes (``QLinearConv`` of the standard).
What a ReLU yields is never negative, so a byte stands for scale x byte, and the byte's lower end is the ReLU. Weights
are symmetric about zero, with a scale for each output channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from vgg16_xray.bundle.format import EMBEDDING, FEATURE_MAP, LOGITS, PROBABILITIES
from vgg16_xray.errors import UserError
from vgg16_xray.learn.onnx_graph import IR_VERSION, STRETCH, as_model, normalising_nodes

if TYPE_CHECKING:
    import onnx

    from vgg16_xray.learn.vgg16 import VGG16

#: ``Resize`` can antialias since this version (onnxruntime 1.14, February 2023).
OPSET = 18
#: Weights are -63..63. Without VNNI a product of an unsigned and a signed byte is summed in pairs into 16 bits, where
#: two products of eight bits each do not fit, and what does not fit is cut off.
LARGEST_WEIGHT = 63
THREE_BY_THREE: Mapping[str, Any] = MappingProxyType({"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]})
#: Number, in ``features``, of the ReLU that yields the feature map.
LAST_RELU = 29


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

    #: (O, I, 3, 3) whole numbers, at most :data:`LARGEST_WEIGHT` from zero.
    weight: np.ndarray
    #: (O,) what 1 stands for.
    scale: np.ndarray
    #: (O,)
    bias: np.ndarray


@dataclass(frozen=True)
class Int8:
    """How a network is computed in bytes.

    The first convolution reads pixels, on which a byte is coarsest, and has whole numbers for weights. The last one
    yields more than bytes.
    """

    #: By the number of the ReLU in ``features``.
    reached: Mapping[int, Reach]
    #: All convolutions but the first, by their number in ``features``.
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
        show: Numbers of ReLUs in ``features`` whose output the graph gives too, as ``relu<number>``.

    Returns:
        ``pixels`` (B, H, W) uint8 -> :data:`vgg16_xray.bundle.format.OUTPUTS`.
    """
    nodes, tensors = normalising_nodes(preprocessing, stretch_to=size)
    graph = _Graph(nodes, tensors, {})
    if int8:
        _round_mean(graph)
    last_map = _write_base(graph, model, int8)
    classes = _write_head(graph, model, last_map)
    graph.node("Div", [LOGITS, graph.tensor("temperature", temperature)], "calibrated")
    graph.node("Softmax", ["calibrated"], PROBABILITIES, axis=1)
    side = size // 16
    shapes: dict[str, list[Any]] = {
        PROBABILITIES: ["films", classes],
        LOGITS: ["films", classes],
        EMBEDDING: ["films", 1024],
        FEATURE_MAP: ["films", 512, side, side],
    }
    for number in show:
        x = FEATURE_MAP if number == LAST_RELU else f"features.{number}"
        shapes[graph.node("Identity", [x], f"relu{number}")] = ["films", None, None, None]
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


def _write_base(graph: _Graph, model: VGG16, int8: Int8 | None) -> str:
    """Convolutions, ReLUs and pools; returns the name of the last map, float32."""
    from torch import nn

    x, given = graph.nodes[-1].output[0], None
    for name, layer in model.features.named_children():
        number, y = int(name), f"features.{name}"
        if isinstance(layer, nn.Conv2d):
            weight, bias = (part.detach().cpu().float().numpy() for part in (layer.weight, layer.bias))  # type: ignore[union-attr]
            yields = int8.reached[number + 1] if int8 else None
            if int8 and given and number + 1 == LAST_RELU:
                x = _write_last_convolution(graph, x, int8.rounded[number], given, int8.reached[LAST_RELU])
            elif int8 and given:
                step = int8.reached[number + 1].step
                x = _write_convolution_of_bytes(graph, x, y, int8.rounded[number], given, step)
            elif yields:
                x = _write_exact_convolution(graph, weight=weight, bias=bias, yields=yields)
            else:
                parts = [graph.tensor(f"{y}.weight", weight), graph.tensor(f"{y}.bias", bias)]
                x = graph.node("Conv", [x, *parts], y, **THREE_BY_THREE)
            given = yields
        elif isinstance(layer, nn.ReLU):
            if not given:
                x = graph.node("Relu", [x], FEATURE_MAP if number == LAST_RELU else y)
        else:
            scale = graph.scales.get(x)
            x = graph.node("MaxPool", [x], y, kernel_shape=[2, 2], strides=[2, 2])
            if scale:
                graph.scales[y] = scale
    return x


def _round_mean(graph: _Graph) -> None:
    """Let the pixels stay whole numbers: the division goes, and the mean loses its fraction.

    :func:`_write_exact_convolution` makes up for both.
    """
    graph.nodes.pop()
    graph.tensors["exact.mean"] = graph.tensors["mean"]
    graph.tensors["mean"] = np.rint(graph.tensors["mean"])


def _write_exact_convolution(graph: _Graph, *, weight: np.ndarray, bias: np.ndarray, yields: Reach) -> str:
    """The first convolution and its ReLU, on whole numbers that float32 adds up without rounding, to bytes.

    Then the order in which a machine adds does not matter. In float32 it does, by a millionth, and where that lies on
    the border of two bytes all layers behind carry it on: a probability was 0.01 off between a processor and a browser.
    """
    exact, mean = graph.tensors.pop("exact.mean"), graph.tensors["mean"]
    weight = weight / graph.tensors.pop("divisor")
    bias = bias + (weight * (mean - exact)).sum(axis=(1, 2, 3))
    # Partial sums, rounded weights included, stay below 2^24, from where on float32 skips whole numbers.
    furthest = np.maximum(mean, 255 - mean)
    scale = float(((np.abs(weight) * furthest).sum(axis=(1, 2, 3)) + np.abs(bias)).max()) / 2**23
    graph.scales["features.1"] = graph.tensor("features.1.scale", yields.step)
    graph.tensor("zero", 0, np.uint8)
    given = [
        graph.nodes[-1].output[0],
        graph.tensor("features.0.weight", np.rint(weight / scale)),
        graph.tensor("features.0.bias", np.rint(bias / scale)),
    ]
    x = graph.node("Conv", given, "features.0", **THREE_BY_THREE)
    return graph.node("QuantizeLinear", [x, graph.tensor("features.1.step", yields.step / scale), "zero"], "features.1")


def _write_convolution_of_bytes(  # noqa: PLR0917 (its two ends, its parameters)
    graph: _Graph, x: str, y: str, rounded: Rounded, given: Reach, step: float
) -> str:
    """A convolution whose weights are bytes, and the ReLU behind it; one step of a byte of its output is `step`."""
    graph.scales[y] = graph.tensor(f"{y}.scale", step)
    parts = [
        *(x, graph.scales[x], "zero"),
        graph.tensor(f"{x}.next.weight", rounded.weight, np.int8),
        *(graph.tensor(f"{x}.next.weight.scale", rounded.scale), graph.tensor("zero_weight", 0, np.int8)),
        *(graph.scales[y], "zero"),
        graph.tensor(f"{y}.bias", np.rint(rounded.bias / (rounded.scale * given.step)), np.int32),
    ]
    return graph.node("QLinearConv", parts, y, **THREE_BY_THREE)


def _write_last_convolution(graph: _Graph, x: str, rounded: Rounded, given: Reach, yields: Reach) -> str:
    """The last convolution twice: bytes of what lies below half of the reach, and bytes of what goes beyond.

    Their sum is the feature map. The head reads maxima of it, so a value beyond the reach must not be cut off, and
    those below deserve the finer steps.
    """
    values = []
    for name, step, begins in (("low", yields.step / 2, 0.0), ("high", yields.step, yields.step / 2 * 255)):
        shifted = replace(rounded, bias=rounded.bias - begins)
        part = _write_convolution_of_bytes(graph, x, f"feature_map.{name}", shifted, given, step)
        values.append(graph.node("DequantizeLinear", [part, graph.scales[part], "zero"], f"{part}.values"))
    return graph.node("Add", values, FEATURE_MAP)


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


def cam_weights(model: VGG16, size: int) -> np.ndarray | None:
    """Grad-CAM's weight of each channel of the feature map for each class's logit.

    Grad-CAM (Selvaraju et al. 2017, equation 1) weights a channel by the mean over its h x w positions of the logit's
    derivative. Between the map and a logit stand a maximum pool, which passes each derivative on to one position, and a
    head that is linear: the sum of the derivatives, and so their mean, is the same for every film.

    Returns:
        (K, 512) float64, or None for a head with hidden layers, whose derivatives differ by film.
    """
    from torch import nn

    from vgg16_xray.learn.heads import AverageAndMaximum, Standardise

    layers = list(model.classifier.children())
    dense = [layer.weight for layer in layers if isinstance(layer, nn.Linear)]
    if len(dense) > 1:
        return None
    weight, positions = dense[0].detach().cpu().double().numpy(), (size // 16) ** 2
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
