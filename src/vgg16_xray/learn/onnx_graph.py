"""Configuration D as an ONNX graph, written node by node: grey pixels in, what any frozen prefix yields out.

Nothing is traced, so the graph holds what stands here and nothing else: the preprocessing, and for each layer one node
under the layer's name. The same graph is quantised to int8, its weights per channel, its activations by the ranges that
films drawn for it reach.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx
    import torch

#: Operators of this version are known to every onnxruntime since 1.10 (December 2021); the format that came with it.
OPSET, IR_VERSION = 15, 8
#: Name of the graph's input, (B, H, W) grey pixels 0..255, and of its output, (B, C, h, w) float32.
PIXELS, FEATURES = "pixels", "features"
#: How ``Resize`` does what Pillow does: its filter, which at the border forgets what lies outside.
STRETCH: Mapping[str, Any] = MappingProxyType({"mode": "linear", "antialias": 1, "exclude_outside": 1})


def prefix_graph(
    prefix: torch.nn.Sequential, *, preprocessing: str, size: int | None, pixels: type[np.generic] = np.uint8
) -> onnx.ModelProto:
    """Write a frozen prefix as a graph: ``pixels`` (B, size, size) -> ``features`` (B, C, h, w) float32.

    Args:
        prefix: What :func:`vgg16_xray.learn.vgg16.split_at` gives first: convolutions, ReLUs, pools, perhaps the head's
            pooling.
        preprocessing: What happens to pixel values first, a name of :data:`vgg16_xray.config.PREPROCESSING`.
        size: Side of a film, pixels; None leaves it open.
        pixels: Number format of the input: uint8, or float32 for films that augmentation has changed.

    Raises:
        TypeError: The prefix has a layer of another kind.
    """
    from onnx import helper

    nodes, tensors = normalising_nodes(preprocessing, pixels=pixels)
    last = nodes[-1].output[0]
    for node, weights in layer_nodes(prefix, last):
        nodes.append(node)
        tensors |= weights
        last = node.output[0]
    nodes.append(helper.make_node("Identity", [last], [FEATURES], name="features_out"))
    return as_model(nodes, tensors, pixels=pixels, size=size, outputs={FEATURES: ["films", None, None, None]})


def as_model(
    nodes: list[onnx.NodeProto],
    tensors: dict[str, np.ndarray],
    *,
    pixels: type[np.generic],
    size: int | None,
    outputs: dict[str, list[Any]],
    opset: int = OPSET,
) -> onnx.ModelProto:
    """Put nodes and their tensors together as a checked model.

    Args:
        nodes: In the order in which they run.
        tensors: Name -> weights.
        pixels: Number format of the input.
        size: Side of a film, pixels; None leaves it open.
        outputs: Name -> shape, None where it is not said; float32 each.
        opset: Version of the operators.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(pixels))
    graph = helper.make_graph(
        nodes,
        "vgg16_xray",
        [helper.make_tensor_value_info(PIXELS, kind, ["films", size or "height", size or "width"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], producer_name="vgg16_xray", ir_version=IR_VERSION
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def film_nodes(
    preprocessing: str, *, stretch_to: int | None = None, pixels: type[np.generic] = np.uint8
) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """``pixels`` (B, H, W) -> (B, 1, h, w) of the same number format, all whole grey levels where it is shrunk.

    Args:
        preprocessing: A name of :data:`vgg16_xray.config.PREPROCESSING`; what of it makes a film smaller is done here.
        stretch_to: Stretch uint8 films to a square of this side, as :func:`vgg16_xray.films.decode.to_square` does it
            but for a grey level in few pixels. Needs operators of version 18.
        pixels: Number format of the films.

    Returns:
        The nodes, and their tensors by name.
    """
    from onnx import TensorProto, helper

    from vgg16_xray.learn.weights import PREPROCESSING

    tensors = {"channel_axis": np.array([1], dtype=np.int64)}
    nodes = [helper.make_node("Unsqueeze", [PIXELS, "channel_axis"], ["channel"], name="add_channel")]
    if stretch_to:
        tensors["square"] = np.array([stretch_to, stretch_to], dtype=np.int64)
        given = [nodes[-1].output[0], "", "", "square"]
        nodes.append(helper.make_node("Resize", given, ["stretched"], name="stretch", **STRETCH, axes=[2, 3]))
    if (shrink := PREPROCESSING[preprocessing].shrink) > 1:
        side, kind = [shrink, shrink], helper.np_dtype_to_tensor_dtype(np.dtype(pixels))
        nodes += [
            helper.make_node("Cast", [nodes[-1].output[0]], ["levels"], name="levels", to=TensorProto.FLOAT),
            helper.make_node("AveragePool", ["levels"], ["means"], name="means", kernel_shape=side, strides=side),
            helper.make_node("Round", ["means"], ["whole"], name="whole"),
            helper.make_node("Cast", ["whole"], ["shrunk"], name="shrunk", to=kind),
        ]
    return nodes, tensors


def normalising_nodes(
    preprocessing: str, *, stretch_to: int | None = None, pixels: type[np.generic] = np.uint8
) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """``pixels`` (B, H, W) -> (B, 3, h, w) float32, as :func:`vgg16_xray.learn.weights.normalise` does it.

    Args:
        preprocessing: A name of :data:`vgg16_xray.config.PREPROCESSING`.
        stretch_to: As :func:`film_nodes` takes it.
        pixels: Number format of the films.

    Returns:
        The nodes, and their tensors by name.
    """
    from onnx import TensorProto, helper

    from vgg16_xray.learn.weights import PREPROCESSING

    how = PREPROCESSING[preprocessing]
    nodes, tensors = film_nodes(preprocessing, stretch_to=stretch_to, pixels=pixels)
    tensors |= {
        "mean": np.array(how.mean, dtype=np.float32).reshape(1, 3, 1, 1),
        "divisor": np.array(how.divisor, dtype=np.float32).reshape(1, 3, 1, 1),
    }
    nodes += [
        helper.make_node("Cast", [nodes[-1].output[0]], ["grey"], name="to_float", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["grey", "mean"], ["centred"], name="subtract_mean"),
        helper.make_node("Div", ["centred", "divisor"], ["normalised"], name="divide"),
    ]
    return nodes, tensors


def layer_nodes(layers: torch.nn.Sequential, x: str) -> Iterator[tuple[onnx.NodeProto, dict[str, np.ndarray]]]:
    """A node a layer, and its weights under the names that they have in the network.

    Args:
        layers: Convolutions, ReLUs, maximum pools, and the head's pooling.
        x: Name of what goes into the first.
    """
    from onnx import helper
    from torch import nn

    from vgg16_xray.learn.heads import Pooled

    for number, layer in layers.named_children():
        name, y = f"features.{number}", f"features.{number}.out"
        if isinstance(layer, nn.Conv2d):
            weights = {f"{name}.{part}": tensor.detach().float().numpy() for part, tensor in layer.named_parameters()}
            pads = [*layer.padding, *layer.padding]
            shape = layer.kernel_size
            yield helper.make_node("Conv", [x, *weights], [y], name=name, kernel_shape=shape, pads=pads), weights
        elif isinstance(layer, nn.ReLU):
            yield helper.make_node("Relu", [x], [y], name=name), {}
        elif isinstance(layer, nn.MaxPool2d):
            kernel, strides = [layer.kernel_size] * 2, [layer.stride] * 2
            how: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "ceil_mode": int(layer.ceil_mode)}
            yield helper.make_node("MaxPool", [x], [y], name=name, **how), {}
        elif isinstance(layer, Pooled):
            yield helper.make_node("GlobalAveragePool", [x], [f"{name}.average"], name=f"{name}.average"), {}
            yield helper.make_node("GlobalMaxPool", [x], [f"{name}.maximum"], name=f"{name}.maximum"), {}
            yield helper.make_node("Concat", [f"{name}.average", f"{name}.maximum"], [y], name=name, axis=1), {}
        else:
            raise TypeError(f"{name}: no ONNX node is known for {type(layer).__name__}")
        x = y


def quantised(model: onnx.ModelProto, films: np.ndarray, *, seven_bits: bool) -> onnx.ModelProto:
    """The same graph in int8: weights per channel, activations by the largest and smallest value that films reach.

    Args:
        model: What :func:`prefix_graph` wrote.
        films: (N, H, W) grey pixels that span what the network will see.
        seven_bits: Keep weights within -64..63 (onnxruntime's ``reduce_range``). Without VNNI a product of unsigned and
            signed bytes is summed in pairs into 16 bits, and two products of eight bits each do not fit.
    """
    import logging

    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    pixels = dtype_of_pixels(model)

    class Films(CalibrationDataReader):
        def __init__(self) -> None:
            self._left = iter(films)

        def get_next(self) -> dict[str, np.ndarray] | None:
            film = next(self._left, None)
            return None if film is None else {PIXELS: film[None].astype(pixels)}

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # It advises a pass over the graph that has nothing to find in this one.
    try:
        with TemporaryDirectory() as folder:
            into = Path(folder) / "int8.onnx"
            quantize_static(
                model,
                into,
                Films(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=seven_bits,
                op_types_to_quantize=["Conv", "Relu", "MaxPool"],
                # 0.6 % of the work, and on pixels themselves a byte is coarsest: error 0.066 in place of 0.074.
                nodes_to_exclude=["features.0"],
            )
            return onnx.load(into)
    finally:
        logging.disable(before)


def dtype_of_pixels(model: onnx.ModelProto) -> np.dtype:
    """Number format of a graph's pixels."""
    from onnx import helper

    return np.dtype(helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type))
