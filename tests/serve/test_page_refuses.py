"""The page refuses and abstains where the command line does, with the same reason."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import choose, probabilities
from PIL import Image
from serving import Running, running

from vgg16_xray.bundle.classify import Classifier
from vgg16_xray.bundle.format import BundleDir
from vgg16_xray.files import read_json, write_json
from vgg16_xray.films.phantom import CLASSES, draw
from vgg16_xray.trust.refuse import fit

EXAMPLES = Path(__file__).parents[2] / "web" / "public" / "examples"


@pytest.fixture(scope="module")
def refusing(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that refuses what is no film, and abstains wherever it is not nearly sure."""
    path = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("refusing") / "bundle"))
    classifier = Classifier.load(path)

    def embed(films: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([classifier.predict_arrays([film], feature_map=False).embedding for film in films])

    films = [draw(CLASSES[i % 4], seed=31, patient=i).pixels for i in range(48)]
    outputs = [classifier.predict_arrays([film], feature_map=False) for film in films[32:]]
    refusal = fit(
        films=films[:32],
        embed=embed,
        validation=films[32:],
        embeddings=np.concatenate([one.embedding for one in outputs]),
        probabilities=np.concatenate([one.probabilities for one in outputs]),
        targets=np.arange(16) % 4,
        labels=classifier.labels,
        each=3,
    )
    refusal["evidence"]["thresholds"] = [0.98, 0.0, 0.98, 0.0]
    write_json(BundleDir(path).config, read_json(BundleDir(path).config) | {"refusal": refusal})
    return path


@pytest.fixture(scope="module")
def server(refusing: Path) -> Iterator[Running]:
    with running(refusing) as server:
        yield server


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Films, films as they should not be, and what is no film at all."""
    folder = tmp_path_factory.mktemp("pictures")
    film = draw("Normal", seed=31, patient=90, size=300).pixels
    drawn = {
        **{f"film{i}": draw(CLASSES[i % 4], seed=31, patient=60 + i, size=230 + 40 * i).pixels for i in range(8)},
        "turned": np.ascontiguousarray(np.rot90(film)),
        "negative": 255 - film,
        "noise": np.random.default_rng(0).integers(0, 256, (260, 310), dtype=np.uint8),
    }
    paths = [EXAMPLES / "no-film.jpg"]
    for name, pixels in drawn.items():
        paths.append(folder / f"{name}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


@pytest.mark.slow
def test_the_page_refuses_and_abstains_with_the_reason_of_the_command_line(
    open_page: Callable[..., Any], server: Running, refusing: Path, pictures: list[Path]
) -> None:
    page = open_page(server.address)
    seen = set()
    for path, expected in zip(pictures, Classifier.load(refusing).predict(pictures), strict=True):
        choose(page, path)
        seen.add(expected.answer)
        assert page.get_attribute("body", "data-state") == expected.answer, path
        assert probabilities(page) == pytest.approx(dict(expected.probabilities), abs=1e-3)
        told = page.inner_text("#answer").replace("Lung opacity", "Lung_Opacity").replace("COVID-19", "COVID")
        assert expected.reason[1:] in told.replace("Viral pneumonia", "Viral Pneumonia")
        # What the model would have said of a picture that it refuses is shown to who asks for it, and no map at all.
        refused = expected.answer == "refused"
        assert page.is_visible(".classes") != refused
        assert not (refused and page.is_visible("#heat"))
    assert seen >= {"refused", "abstained", "answered"}
