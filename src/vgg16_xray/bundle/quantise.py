"""What int8 must know of a network: how far each ReLU's output reaches on real films."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vgg16_xray.bundle.format import session_of
from vgg16_xray.bundle.graph import Int8, Reached, network_graph
from vgg16_xray.learn.onnx_graph import PIXELS
from vgg16_xray.progress import progress

if TYPE_CHECKING:
    from vgg16_xray.learn.vgg16 import VGG16


def measure(model: VGG16, films: np.ndarray, *, preprocessing: str, size: int) -> Int8:
    """Send films through the network and note what each ReLU yields.

    Args:
        model: The network.
        films: (N, size, size) uint8: training films, of all classes.
        preprocessing: A name of :data:`vgg16_xray.config.PREPROCESSING`.
        size: Side of a film, pixels.
    """
    relus = tuple(number for number, layer in enumerate(model.features) if type(layer).__name__ == "ReLU")
    graph = network_graph(model, preprocessing=preprocessing, size=size, temperature=1.0, show=relus)
    session = session_of(graph.SerializeToString())
    each = []
    with progress("ranges for int8", total=len(films)) as counter:
        for film in films:
            maps = session.run([f"relu{number}" for number in relus], {PIXELS: film[None]})
            each.append([(float(values.max()), values.mean(axis=(0, 2, 3))) for values in maps])
            counter.advance()
    return Int8(
        {
            number: Reached(max(largest for largest, _ in found), np.mean([mean for _, mean in found], axis=0))
            for number, found in zip(relus, zip(*each, strict=True), strict=True)
        }
    )
