"""How each engine runs a frozen prefix: grey films (B, H, W) 0..255 in, feature maps (B, C, h, w) out."""

from __future__ import annotations

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache, partial
from threading import Barrier
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    #: (B, H, W) uint8 or float32 -> (B, C, h, w).
    Runner = Callable[[torch.Tensor], torch.Tensor]

#: Films that show int8 which values each layer reaches, four of a class, and the seed of the first.
CALIBRATION_FILMS, CALIBRATION_SEED = 16, 1000


def drawn_films(count: int, *, seed: int, size: int) -> np.ndarray:
    """Drawn radiographs of all classes in turn, (count, size, size) uint8."""
    from vgg16_xray.films.phantom import CLASSES, draw

    return np.stack([draw(CLASSES[i % len(CLASSES)], seed=seed + i, size=size).pixels for i in range(count)])


def with_torch(prefix: torch.nn.Sequential, preprocessing: str, dtype: torch.dtype) -> Runner:
    """Run by torch, channels last in memory."""
    import copy

    import torch

    from vgg16_xray.learn.weights import normalise

    # A copy of its own: the model's own layers stay float32.
    layers = copy.deepcopy(prefix).to(dtype, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    layers.requires_grad_(False)
    weights = next(layers.parameters(), None)
    if weights is not None and weights.device.type == "cpu" and hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        layers = torch.nn.Sequential(*_with_relu_inside(layers))

    def whole(pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():  # Each thread has its own mind about gradients.
            x = normalise(pixels if weights is None else pixels.to(weights.device), preprocessing).to(
                dtype, memory_format=torch.channels_last
            )
            out: torch.Tensor = layers(x)
            return out

    def run(pixels: torch.Tensor) -> torch.Tensor:
        if weights is None or weights.device.type != "cpu" or len(pixels) < torch.get_num_threads():
            return whole(pixels)
        return _a_film_a_thread(whole, pixels)

    return run


def _a_film_a_thread(run: Runner, pixels: torch.Tensor) -> torch.Tensor:
    """Send films one by one, each through one thread, as many at a time as torch has threads."""
    import torch

    threads, each = torch.get_num_threads(), pixels.split(1)
    return torch.cat(list(map(run, each) if threads == 1 else _threads(threads).map(run, each)))


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Threads that compute alone: a film each; else all share every layer of a batch and wait for each other.

    A film's maps also stay in the cache, and are memory that the C library keeps; those of a batch it asks of the
    system anew. Two threads with AMX: 73 films a second, and 40 in batches of 32, of the same bits.
    """
    import torch

    pool = ThreadPoolExecutor(count, thread_name_prefix="film")
    all_there = Barrier(count)

    def alone() -> None:
        torch.set_num_threads(1)
        all_there.wait()  # So that each thread has its own task, and the next line comes behind all of them.

    for started in [pool.submit(alone) for _ in range(count)]:
        started.result()
    torch.set_num_threads(count)  # It is also what threads begin with that others start.
    return pool


def _with_relu_inside(layers: torch.nn.Sequential) -> list[torch.nn.Module]:
    """Layers in which oneDNN applies a ReLU before it writes a convolution's output: same bits, two thirds of the time.

    It is what torch.compile makes of them, without the compiler that it needs.
    """
    import torch
    from torch import nn

    class Convolution(nn.Module):
        def __init__(self, layer: nn.Conv2d) -> None:
            super().__init__()
            self.weight, self.bias = layer.weight, layer.bias
            self.geometry = layer.padding, layer.stride, layer.dilation, layer.groups

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, *self.geometry, "relu", [], ""
            )
            return out

    found: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.ReLU) and found and isinstance(found[-1], nn.Conv2d):
            found[-1] = Convolution(found[-1])
        else:
            found.append(layer)
    return found


def with_onnxruntime(
    prefix: torch.nn.Sequential, preprocessing: str, *, int8: bool = False, seven_bits: bool = False
) -> Runner:
    """Run by ONNX Runtime, float32 or int8; `seven_bits` as in :func:`vgg16_xray.learn.onnx_graph.quantised`."""
    import onnxruntime
    import torch

    from vgg16_xray.learn.onnx_graph import PIXELS, prefix_graph

    graph = prefix_graph(prefix, preprocessing=preprocessing, size=None, pixels=np.float32).SerializeToString()
    if int8:
        graph = _in_int8(graph, seven_bits=seven_bits)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # Threads go over films.
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def whole(pixels: torch.Tensor) -> torch.Tensor:
        (out,) = session.run(None, {PIXELS: pixels.float().numpy()})
        return torch.from_numpy(out).contiguous(memory_format=torch.channels_last)

    return partial(_a_film_a_thread, whole)


@lru_cache(maxsize=1)
def _in_int8(graph: bytes, *, seven_bits: bool) -> bytes:
    """A float32 graph in int8. That takes seconds, and the race and the training of one process want the same one."""
    import onnx

    from vgg16_xray.films.decode import SIZE
    from vgg16_xray.learn.onnx_graph import quantised

    films = drawn_films(CALIBRATION_FILMS, seed=CALIBRATION_SEED, size=SIZE)
    return quantised(onnx.load_from_string(graph), films, seven_bits=seven_bits).SerializeToString()


def with_ncnn(prefix: torch.nn.Sequential, preprocessing: str) -> Runner:
    """Run by ncnn in float32, its 3 x 3 convolutions by Winograd's method."""
    import ncnn
    import torch

    from vgg16_xray.learn.heads import Pooled
    from vgg16_xray.learn.weights import normalise

    text, weights, last = _ncnn_model(prefix)
    net = ncnn.Net()
    net.opt.num_threads = 1  # Threads go over films.
    for coarser in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, coarser, False)
    if net.load_param_mem(text):
        raise RuntimeError("ncnn does not take the network's description")
    net.load_model_mem(weights)
    pool = next((layer for layer in prefix if isinstance(layer, Pooled)), None)

    def one(pixels: torch.Tensor) -> torch.Tensor:
        (film,) = normalise(pixels, preprocessing).contiguous().numpy()
        with net.create_extractor() as extractor:
            extractor.input("normalised", ncnn.Mat(film))
            failed, found = extractor.extract(last)
            if failed:
                raise RuntimeError(f"ncnn stopped with code {failed}")
            out = torch.from_numpy(np.array(found))[None].contiguous(memory_format=torch.channels_last)
        return out if pool is None else pool(out)

    return partial(_a_film_a_thread, one)


def _ncnn_model(prefix: torch.nn.Sequential) -> tuple[str, bytes, str]:
    """A prefix as ncnn reads it: its description (github.com/Tencent/ncnn/wiki, "param and model file"), and weights.

    Returns:
        The description, the weights, and the name of the last layer's output.
    """
    from torch import nn

    from vgg16_xray.learn.heads import Pooled

    lines, weights, x = ["Input input 0 1 normalised"], [], "normalised"
    for number, layer in prefix.named_children():
        y = f"out{number}"
        if isinstance(layer, nn.Conv2d):
            kernel, bias = layer.weight.detach().float().numpy(), layer.bias.detach().float().numpy()  # type: ignore[union-attr]
            # 0: channels, 1: side of the kernel, 4: padding, 5: there is a bias, 6: number of weights.
            lines.append(f"Convolution c{number} 1 1 {x} {y} 0={len(kernel)} 1=3 4=1 5=1 6={kernel.size}")
            # The leading 0 says that float32 follows.
            weights += [struct.pack("<I", 0), kernel.tobytes(), bias.tobytes()]
        elif isinstance(layer, nn.ReLU):
            lines.append(f"ReLU r{number} 1 1 {x} {y}")
        elif isinstance(layer, nn.MaxPool2d):
            lines.append(f"Pooling p{number} 1 1 {x} {y} 0=0 1=2 2=2")
        elif isinstance(layer, Pooled):
            continue  # torch does it.
        else:
            raise TypeError(f"{number}: no ncnn layer is known for {type(layer).__name__}")
        x = y
    # 7767517 says that text follows; then the number of layers and of what lies between them.
    return "\n".join(["7767517", f"{len(lines)} {len(lines)}", *lines, ""]), b"".join(weights), x
