"""int8 on a processor that sums products of bytes in pairs into 16 bits: nothing is cut off, the same map comes out."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from vgg16_xray.bundle.format import FEATURE_MAP, PIXELS, BundleDir
from vgg16_xray.bundle.graph import LARGEST_WEIGHT
from vgg16_xray.films.phantom import draw

#: An emulator of other processors (Debian: qemu-user). Haswell has AVX2 and neither AVX-512 nor VNNI.
EMULATOR = shutil.which("qemu-x86_64")
RUN = (
    "import sys, numpy as np, onnxruntime as ort\n"
    "graph, given, name, output, to = sys.argv[1:]\n"
    "options = ort.SessionOptions()\n"
    "options.intra_op_num_threads = 1\n"
    "session = ort.InferenceSession(graph, options, providers=['CPUExecutionProvider'])\n"
    "np.save(to, session.run([output], {name: np.load(given)})[0])\n"
)


def can_emulate() -> bool:
    """Whether the emulator knows AVX2, which it does since version 7.2 (December 2022)."""
    if EMULATOR is None or platform.machine() != "x86_64":
        return False
    said = subprocess.run([EMULATOR, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+)\.(\d+)", said)
    return found is not None and (int(found[1]), int(found[2])) >= (7, 2)


needs_emulator = pytest.mark.skipif(not can_emulate(), reason="needs qemu-x86_64 7.2 (Debian: qemu-user) on x86-64")


def here_and_emulated(graph: Path, given: np.ndarray, name: str, output: str) -> tuple[np.ndarray, np.ndarray]:
    """What a graph yields on this processor, and on an emulated one without VNNI."""
    np.save(graph.with_name("given.npy"), given)
    to = graph.with_name("out.npy")
    here = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"]).run([output], {name: given})[0]
    program = [sys.executable, "-c", RUN, str(graph), str(graph.with_name("given.npy")), name, output, str(to)]
    subprocess.run([str(EMULATOR), "-cpu", "Haswell", *program], check=True, capture_output=True, timeout=600)
    return np.asarray(here), np.load(to)


def test_two_products_of_a_byte_and_a_weight_fit_into_16_bits() -> None:
    assert np.iinfo(np.int16).max >= 2 * 255 * LARGEST_WEIGHT
    graph = onnx.load(BundleDir.packaged().int8).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    multiplied = [node for node in graph.node if node.op_type in ("QLinearConv", "MatMulInteger")]
    assert len(multiplied) == 13
    for node in multiplied:
        weights = numpy_helper.to_array(stored[node.input[3 if node.op_type == "QLinearConv" else 1]])
        assert weights.dtype == np.int8
        assert np.abs(weights.astype(int)).max() <= LARGEST_WEIGHT


@needs_emulator
@pytest.mark.parametrize(("weight", "same"), [(LARGEST_WEIGHT, True), (127, False)])
def test_the_emulated_processor_cuts_off_what_does_not_fit(weight: int, same: bool, tmp_path: Path) -> None:
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"])
    weights = numpy_helper.from_array(np.full((64, 64), weight, np.int8), "w")
    ends = [
        [helper.make_tensor_value_info(name, kind, [1, 64])]
        for name, kind in (("x", TensorProto.UINT8), ("y", TensorProto.INT32))
    ]
    graph = helper.make_graph([node], "product", *ends, [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "product.onnx")
    here, there = here_and_emulated(tmp_path / "product.onnx", np.full((1, 64), 255, np.uint8), "x", "y")
    assert (here == 255 * weight * 64).all()
    assert (there == here).all() == same


@pytest.mark.slow
@needs_emulator
def test_the_map_is_the_same_without_vnni(tmp_path: Path) -> None:
    graph = Path(shutil.copy(BundleDir.packaged().int8, tmp_path / "model.onnx"))
    film = draw("COVID", seed=8, patient=2, size=224).pixels
    here, there = here_and_emulated(graph, film[None], PIXELS, FEATURE_MAP)
    assert here.max() > 0
    assert (there == here).all()
