"""Make the package's base from the float32 weights: half the bytes, and proof that its answers hardly change.

Usage: python scripts/make_weights.py --from ../shared/weights/vgg16_imagenet_conv_fp32.safetensors
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

import vgg16_xray.learn
from vgg16_xray.files import whole_file
from vgg16_xray.learn.vgg16 import SIZE, build
from vgg16_xray.learn.weights import PACKAGED, BaseWeights, base_shapes, load_base, normalise
from vgg16_xray.rundir import sha256_of

#: Largest relative L2 distance between the answers of the float16 and the float32 base, and between statistics.
TOLERANCE = 1e-3


def deterministic(tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """The safetensors format, with the header's keys in a fixed order: the library's own order of metadata varies."""
    raw = save(tensors, metadata)
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + raw[8 + length :]


def answer(base: BaseWeights) -> torch.Tensor:
    """The base's answer to the reference input, a grey ramp: (1, 512, 7, 7)."""
    model = build(classes=2, head="gap", dropout=0.0).eval()
    base.put_into(model)
    ramp = torch.linspace(0, 255, SIZE * SIZE).reshape(1, SIZE, SIZE)
    with torch.no_grad():
        out: torch.Tensor = model.features(normalise(ramp, "caffe"))
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, required=True, help="the float32 base, safetensors")
    parser.add_argument("--to", type=Path, default=Path(vgg16_xray.learn.__file__).with_name(PACKAGED))
    arguments = parser.parse_args()

    with safe_open(arguments.source, framework="pt") as file:
        full = {name: file.get_tensor(name) for name in base_shapes()}
    half = {name: tensor.to(torch.float16) for name, tensor in full.items()}
    metadata = {
        "source": "Simonyan & Zisserman 2014, original Oxford VGG16 ImageNet weights as distributed by Keras (notop)",
        "license": "CC BY 4.0",
        "changes": "convolutional base only, converted to OIHW and float16",
        "preprocessing": "caffe",
        "source_sha256": sha256_of(arguments.source),
    }
    with whole_file(arguments.to) as temporary:
        temporary.write_bytes(deterministic(half, metadata))
    print(f"{arguments.to}: {arguments.to.stat().st_size:,} bytes, sha256 {sha256_of(arguments.to)}")
    print(f"parameters: {sum(t.numel() for t in half.values()):,}; source sha256 {metadata['source_sha256']}")

    packaged = load_base(arguments.to)
    print(packaged.origin)
    wanted, found = answer(BaseWeights(full, "caffe", "", "")), answer(packaged)
    distance = float((found - wanted).norm() / wanted.norm())
    print(f"relative L2 of the base's answer, float16 against float32: {distance:.2e} (at most {TOLERANCE:.0e})")
    worst = distance
    reference = json.loads(arguments.source.with_name("reference_activation.json").read_text("utf-8"))
    for name, value in (("mean", found.mean()), ("std", found.std()), ("l2", found.norm())):
        off = abs(float(value) / reference[name] - 1)
        worst = max(worst, off)
        print(f"{name}: {float(value):.6f}, reference {reference[name]:.6f}, off by {off:.1e}")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
