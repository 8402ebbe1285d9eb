"""Heat maps: Grad-CAM as captum computes it, drawn with a scale, and measures of whether a picture means something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from PIL import Image

from vgg16_xray import Classifier, cli
from vgg16_xray.bundle.explain import draw, grad_cam, overlay
from vgg16_xray.bundle.format import FEATURE_MAP, PIXELS, session_of
from vgg16_xray.bundle.graph import cam_weights, last_relu, network_graph
from vgg16_xray.bundle.sanity import area_under, insertion_and_deletion, randomised_alike, share_inside
from vgg16_xray.films.decode import decode
from vgg16_xray.films.phantom import draw as draw_film
from vgg16_xray.learn.vgg16 import VGG16, build
from vgg16_xray.learn.weights import load_base, normalise


def trained(head: str, *, fine_tuned: bool, blocks: int = 5) -> VGG16:
    """The packaged base under a head drawn from a seed; its last block moved, as fine-tuning moves it, where asked."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = build(classes=4, head=head, dropout=0.0, blocks=blocks).eval()
        load_base().put_into(model)
        if head == "gap":
            model.classifier[1].mean.uniform_(0, 5)  # type: ignore[index, union-attr]
            model.classifier[1].deviation.uniform_(0.5, 20)  # type: ignore[index, union-attr]
        if fine_tuned:
            with torch.no_grad():
                for parameter in model.features[24:].parameters():
                    parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    ("head", "fine_tuned", "preprocessing", "blocks"),
    [
        ("gap", False, "caffe", 5),
        ("gap", True, "caffe", 5),
        ("linear", False, "caffe", 5),
        ("linear", True, "caffe", 5),
        ("gap", True, "caffe-half", 5),
        ("gap", False, "caffe-half", 4),
    ],
)
def test_the_map_is_that_of_captum_for_every_class(
    head: str, fine_tuned: bool, preprocessing: str, blocks: int
) -> None:
    model = trained(head, fine_tuned=fine_tuned, blocks=blocks)
    film = draw_film("COVID", seed=1, size=224).pixels
    graph = network_graph(model, preprocessing=preprocessing, size=224, temperature=1.0)
    (found,) = session_of(graph.SerializeToString()).run([FEATURE_MAP], {PIXELS: film[None]})
    weights = cam_weights(model, preprocessing=preprocessing, size=224)
    assert weights is not None
    captum = LayerGradCam(model, model.features[last_relu(model)])
    x = normalise(torch.from_numpy(film[None]), preprocessing)
    for label in range(4):
        expected = captum.attribute(x, target=label, relu_attributions=True).detach().numpy()[0, 0]
        heat = grad_cam(weights[label], found[0])
        assert np.abs(heat - expected).max() <= 1e-4 * max(1.0, expected.max())
        assert heat.shape == ((7, 7) if (preprocessing, blocks) == ("caffe-half", 5) else (14, 14))
        assert heat.max() > 0


def test_a_head_with_hidden_layers_has_no_map() -> None:
    with torch.device("meta"):
        assert cam_weights(build(classes=2, head="vgg", dropout=0.0), preprocessing="caffe", size=224) is None


def test_pictures_have_a_scale_and_say_what_they_are(bundle: Path, drawn_films: Path, tmp_path: Path) -> None:
    film = sorted(drawn_films.glob("*/images/*.png"))[0]
    out = tmp_path / "why"
    assert cli._run(["predict", str(film), str(film), "--model", str(bundle), "--explain", str(out)]) == 0
    assert sorted(file.name for file in out.iterdir()) == [f"0001-{film.stem}.png", f"0002-{film.stem}.png"]
    with Image.open(out / f"0001-{film.stem}.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    colourful = (pixels.max(axis=2) - pixels.min(axis=2)) > 40
    bar = colourful.all(axis=0) | (colourful.mean(axis=0) > 0.6)
    assert bar.sum() >= 15, "the colour bar stands from top to bottom"
    (answer,) = Classifier.load(bundle).predict([film], explain=True)
    assert answer.heat is not None
    hottest = np.unravel_index(answer.heat.argmax(), answer.heat.shape)
    pixels = decode(film)
    warm = overlay(pixels, answer.heat)
    place = tuple(int((i + 0.5) * side / 14) for i, side in zip(hottest, pixels.shape, strict=True))
    assert warm[place].max() - warm[place].min() > 40


def test_a_film_without_heat_says_so_and_stays_as_it_is(bundle: Path, drawn_films: Path) -> None:
    film = decode(sorted(drawn_films.glob("*/images/*.png"))[0])
    assert (overlay(film, np.zeros((14, 14), np.float32)) == film[..., None]).all()
    (answer,) = Classifier.load(bundle).predict([film])
    assert answer.heat is None
    draw(film, answer)


def test_a_run_has_no_maps_and_says_so(
    small_run: object, drawn_films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = sorted(drawn_films.glob("*/images/*.png"))[0]
    capsys.readouterr()
    model = str(small_run.path)  # type: ignore[attr-defined]
    assert cli._run(["predict", str(film), "--model", model, "--explain", str(tmp_path / "why")]) == 2
    assert "--explain: must have a bundle whose head is linear, found a model" in capsys.readouterr().err
    assert not (tmp_path / "why").exists()


def test_share_of_heat_inside_a_lesion() -> None:
    heat = np.zeros((14, 14), np.float32)
    heat[2:5, 2:5] = 1
    mask = np.zeros((224, 224), bool)
    mask[16:96, 16:96] = True
    inside, area = share_inside(heat, mask)
    assert inside > 0.95
    assert area == pytest.approx((80 / 224) ** 2)
    assert share_inside(np.zeros((14, 14), np.float32), mask)[0] == 0


def test_deletion_ends_where_insertion_begins(bundle: Path, drawn_films: Path) -> None:
    classifier = Classifier.load(bundle)
    (answer,) = classifier.predict([sorted(drawn_films.glob("*/images/*.png"))[0]], explain=True)
    film = decode(Path(answer.path))
    assert answer.heat is not None
    assert answer.prediction is not None
    label = classifier.labels.index(answer.prediction)
    curve = insertion_and_deletion(classifier, film, answer.heat, label, steps=4)
    assert curve["deletion"][0] == pytest.approx(answer.confidence, abs=1e-3)
    assert curve["insertion"][-1] == pytest.approx(answer.confidence, abs=1e-3)
    assert curve["deletion"][-1] == pytest.approx(curve["insertion"][0], abs=1e-3)
    assert 0 <= area_under(curve, "deletion") <= 1


def test_a_map_changes_with_the_model_and_not_with_nothing() -> None:
    model = trained("gap", fine_tuned=True)
    films = [draw_film(label, seed=2, size=224).pixels for label in ("COVID", "Normal")]
    alike = randomised_alike(model, films, preprocessing="caffe")
    assert list(alike) == ["head", "head and block 5", "all layers"]
    assert all(abs(value) < 0.6 for value in alike.values())
