"""One film, one answer: by the command line, Python, HTTP, the Open Inference Protocol and the browser."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from doors import predict
from pages import choose, probabilities
from PIL import Image
from serving import PATIENCE, Running, running

from dicoms import dicom
from vgg16_xray.bundle.classify import Classifier
from vgg16_xray.bundle.format import BundleDir
from vgg16_xray.films.decode import decode
from vgg16_xray.films.phantom import CLASSES, draw

FILMS = 50
SIZES = (224, 256, 299, 512, 700)


@pytest.fixture(scope="module")
def model(bundle: Path) -> Path:
    """The model in the package, which refuses and abstains; before there is one, that of the small run."""
    packaged = BundleDir.packaged()
    return packaged.path if packaged.config.exists() else bundle


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Running]:
    with running(model) as server:
        yield server


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Drawn films of five sizes, as PNG of 8 and 16 bits, JPEG and DICOM; and some that are no films."""
    folder = tmp_path_factory.mktemp("fifty")
    random = np.random.default_rng(5)
    paths = []
    for number in range(FILMS):
        pixels = draw(CLASSES[number % 4], seed=77, patient=number, size=SIZES[number % 5]).pixels
        if number % 10 == 7:
            pixels = random.integers(0, 256, (300, 260), dtype=np.uint8)
        elif number % 10 == 9:
            pixels = np.ascontiguousarray(pixels[::-1].T)
        elif number % 3 == 1:
            pixels = np.ascontiguousarray(pixels[:, : round(0.8 * pixels.shape[1])])
        kind = ("png", "jpg", "16.png", "dcm")[(number // 2) % 4]
        paths.append(folder / f"{number:02}.{kind}")
        if kind == "dcm":
            dicom(pixels.astype(np.uint16) * 16 + 7, paths[-1], WindowCenter=2048, WindowWidth=4096)
        else:
            Image.fromarray(pixels.astype(np.uint16) * 257 if kind == "16.png" else pixels).save(paths[-1])
    return paths


@pytest.fixture(scope="module")
def expected(model: Path, films: list[Path]) -> list[dict[str, Any]]:
    """By Python."""
    return [answer.as_dict() for answer in Classifier.load(model).predict(films)]


def compare(found: list[dict[str, Any]], expected: list[dict[str, Any]], *parts: str) -> None:
    assert len(found) == FILMS
    for one, other in zip(found, expected, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-3), other["path"]
        assert {part: one[part] for part in parts} == {part: other[part] for part in parts}, other["path"]


@pytest.mark.slow
def test_the_command_line(model: Path, films: list[Path], expected: list[dict[str, Any]]) -> None:
    command = [sys.executable, "-m", "vgg16_xray", "predict", *map(str, films), "--model", str(model)]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=True, timeout=PATIENCE)
    compare(json.loads(done.stdout)["predictions"], expected, "path", "prediction", "answer", "reason", "set")


@pytest.mark.slow
def test_http(server: Running, films: list[Path], expected: list[dict[str, Any]]) -> None:
    found = predict(server, *((film.name, film.read_bytes()) for film in films))
    compare(found["predictions"], expected, "prediction", "answer", "reason", "set")


@pytest.mark.slow
def test_the_open_inference_protocol(server: Running, films: list[Path], expected: list[dict[str, Any]]) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=PATIENCE)
    labels = list(expected[0]["probabilities"])
    rows = []
    for film in films:
        pixels = decode(film)[None]
        tensor = triton.InferInput("pixels", pixels.shape, "UINT8").set_data_from_numpy(pixels)
        found = client.infer("vgg16-xray", [tensor])
        row: dict[str, Any] = {name: found.as_numpy(name)[0].decode() for name in ("prediction", "answer", "reason")}
        row["probabilities"] = dict(zip(labels, map(float, found.as_numpy("probabilities")[0]), strict=True))
        rows.append(row)
    compare(rows, expected, "prediction", "answer", "reason")


@pytest.mark.slow
def test_the_browser(
    open_page: Callable[..., Any], server: Running, films: list[Path], expected: list[dict[str, Any]]
) -> None:
    page = open_page(server.address)
    rows = []
    for film in films:
        choose(page, film)
        p = probabilities(page)
        rows.append({"answer": page.get_attribute("body", "data-state"), "probabilities": p})
        rows[-1]["prediction"] = max(p, key=lambda label: p[label])
        rows[-1]["set"] = sorted(row.get_attribute("data-label") for row in page.query_selector_all(".class:has(.tag)"))
    told = [one | {"set": sorted(one["set"])} if one["set"] is not None else one | {"set": []} for one in expected]
    compare(rows, told, "prediction", "answer", "set")
