"""What int8 must know of a network: how far each ReLU's output reaches on real films."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vgg16_xray.bundle.graph import Int8, Reached, network_graph
from vgg16_xray.progress import progress

if TYPE_CHECKING:
    from vgg16_xray.learn.vgg16 import VGG16

#: Share of a film's values that a byte may cut off at the upper end: a few outliers would make every step coarser.
CUT_OFF = 1e-5


def measure(model: VGG16, films: np.ndarray, *, preprocessing: str, size: int, threads: int | None = None) -> Int8:
    """Send films through the network and note what each ReLU yields.

    Args:
        model: The network.
        films: (N, size, size) uint8: training films, of all classes.
        preprocessing: A name of :data:`vgg16_xray.config.PREPROCESSING`.
        size: Side of a film, pixels.
        threads: Threads of ONNX Runtime; its own choice by default.
    """
    from vgg16_xray.bundle.format import session_of
    from vgg16_xray.learn.onnx_graph import PIXELS

    relus = tuple(number for number, layer in enumerate(model.features) if type(layer).__name__ == "ReLU")
    graph = network_graph(model, preprocessing=preprocessing, size=size, temperature=1.0, show=relus)
    session = session_of(graph.SerializeToString(), threads=threads)
    names = [f"relu{number}" for number in relus]
    largest, mean, square = ([0.0] * len(relus) for _ in range(3))
    with progress("ranges for int8", total=len(films)) as counter:
        for film in films:
            for i, values in enumerate(session.run(names, {PIXELS: film[None]})):
                flat = values.reshape(values.shape[1], -1)
                kept = int(flat.size * CUT_OFF)
                top = np.partition(flat.ravel(), flat.size - 1 - kept)[flat.size - 1 - kept]
                largest[i] = max(largest[i], float(top))
                mean[i] = mean[i] + flat.mean(axis=1, dtype=np.float64)
                square[i] = square[i] + (flat.astype(np.float64) ** 2).mean(axis=1)
            counter.advance()
    return Int8(
        {
            number: Reached(max(largest[i], 1e-6), np.asarray(mean[i] / len(films)), np.asarray(square[i] / len(films)))
            for i, number in enumerate(relus)
        }
    )
