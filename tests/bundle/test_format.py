"""What a bundle must not be: all kinds of damage and malice are refused in a line that names it, before it is run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vgg16_xray import Classifier
from vgg16_xray.bundle.classify import check
from vgg16_xray.bundle.export import refuse_to
from vgg16_xray.bundle.format import BundleDir, read_bundle_config, read_own_films
from vgg16_xray.bundle.graph import square_graph
from vgg16_xray.bundle.onnxfile import inspect
from vgg16_xray.errors import UserError
from vgg16_xray.rundir import sha256_of
from vgg16_xray.serve.page import write_page


def foreign_operator(model: onnx.ModelProto) -> None:
    model.graph.node[3].domain = "evil.example"


def foreign_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.evil", 1))


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[3].op_type = "ConstantOfShape"


def graph_within(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node[3].attribute.append(helper.make_attribute("body", inner))


def function(model: onnx.ModelProto) -> None:
    model.functions.add().name = "f"


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    tensor.external_data.add(key="location", value="../../etc/passwd")


def absurd_shape(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [2**40, 2**40]


def negative_shape(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [-1, -1]


def absurd_stretching(model: onnx.ModelProto) -> None:
    (side,) = (tensor for tensor in model.graph.initializer if tensor.name == "square")
    side.CopyFrom(numpy_helper.from_array(np.array([10**6, 10**6]), "square"))


def absurd_padding(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if "Conv" in node.op_type)
    (pads,) = (attribute for attribute in node.attribute if attribute.name == "pads")
    pads.ints[:] = [10**6] * 4


def too_many_nodes(model: onnx.ModelProto) -> None:
    model.graph.node.extend([model.graph.node[3]] * 300)


def growing(model: onnx.ModelProto) -> None:
    model.graph.node.extend(
        helper.make_node("Concat", ["pooled"] * 2, [f"c{i}"], name=f"c{i}", axis=1) for i in range(3)
    )


def joining_many(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Concat", ["pooled"] * 10, ["c"], name="c", axis=1))


def outer_product(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Gemm", ["pooled", "pooled"], ["square"], name="square", transA=1))


def wide_padding(model: onnx.ModelProto) -> None:
    (around,) = (tensor for tensor in model.graph.initializer if tensor.name.endswith(".around"))
    around.CopyFrom(numpy_helper.from_array(np.array([0, 1, 1, 1024] * 2), around.name))


def computed_padding(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Pad", ["features.28", "pooled"], ["p"], name="p"))


def other_outputs(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "probability"


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (foreign_operator, "node '.*' must be a known operator, found '.*' of the domain 'evil.example'"),
        (foreign_domain, "must use the standard's operators alone, found the domain 'com.evil'"),
        (unknown_operator, "must be a known operator, found 'ConstantOfShape'"),
        (graph_within, "must hold plain numbers, found a graph within it"),
        (function, "must hold one graph alone, found functions"),
        (external, r"must lie in the file, found it in another, '../../etc/passwd'"),
        (absurd_shape, r"of shape \[1099511627776, 1099511627776\] must have \d+ bytes, found "),
        (negative_shape, r"of shape \[-1, -1\] must have"),
        (absurd_stretching, "tensor 'square' must be at most 1024, found 1000000"),
        (absurd_padding, "pads must be at most 16, found 1000000"),
        (too_many_nodes, "must have at most 256 nodes, found "),
        (growing, "must have at most 3 nodes Concat, found 6"),
        (joining_many, "node 'c' must join at most 9 tensors, found 10"),
        (outer_product, "node 'square' must read one computed tensor, found 2"),
        (wide_padding, r"node 'features\.22\.padded' must add at most 1 place at an end"),
        (computed_padding, "node 'p' must read one computed tensor, found 2"),
        (other_outputs, "must take pixels and give probabilities, logits, embedding, feature_map, found pixels and "),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_graph_that_is_not_ours_is_refused_by_name(
    copy_of_bundle: Path, change: Callable[[onnx.ModelProto], None], line: str
) -> None:
    bundle = BundleDir(copy_of_bundle)
    model = onnx.load(bundle.int8)
    change(model)
    bundle.int8.write_bytes(model.SerializeToString())
    rehash(bundle)
    with pytest.raises(UserError, match=line) as caught:
        Classifier.load(copy_of_bundle)
    assert "\n" not in str(caught.value)
    assert str(bundle.int8) in str(caught.value)


def rehash(bundle: BundleDir) -> None:
    config = json.loads(bundle.config.read_text("utf-8"))
    config["sha256"] = {file.name: sha256_of(file) for file in bundle.hashed()}
    bundle.config.write_text(json.dumps(config), "utf-8")


@pytest.mark.parametrize(
    "name", ["model.int8.onnx", "model.onnx", "golden.json", "README.md", "model.safetensors", "films.npy"]
)
def test_a_changed_byte_is_found(copy_of_bundle: Path, name: str) -> None:
    data = bytearray((copy_of_bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy_of_bundle / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name}: must have the SHA-256 .* found"):
        check(copy_of_bundle)


@pytest.mark.parametrize("kind", ["pickle", "zip", "another array", "a header that promises more"])
def test_what_is_kept_of_films_is_neither_unpickled_nor_believed(
    copy_of_bundle: Path, kind: str, tmp_path: Path
) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (tmp_path / "exploded").mkdir, ()

    bundle = BundleDir(copy_of_bundle)
    if kind == "pickle":
        np.save(bundle.films, np.array([Bomb()], dtype=object), allow_pickle=True)
    elif kind == "zip":
        with bundle.films.open("wb") as file:
            np.savez(file, films=np.zeros(3))
    elif kind == "another array":
        np.save(bundle.films, np.zeros((5, 3)))
    else:
        whole = bundle.films.read_bytes()
        bundle.films.write_bytes(whole[: len(whole) // 2])
    rehash(bundle)
    with pytest.raises(UserError, match=r"films.npy: must (be a whole .npy array|hold a row a film)") as caught:
        read_own_films(bundle, read_bundle_config(bundle))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


def test_a_model_that_answers_otherwise_is_found_when_it_is_opened(copy_of_bundle: Path) -> None:
    bundle = BundleDir(copy_of_bundle)
    model = onnx.load(bundle.int8)
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "logits.bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32([-5, 5, -5, 5]), "logits.bias"))
    bundle.int8.write_bytes(model.SerializeToString())
    rehash(bundle)
    with pytest.raises(UserError, match=r"'drawn .*' in int8 must give the probabilities that golden.json holds"):
        Classifier.load(copy_of_bundle)


@pytest.mark.parametrize("size", [0, 1, 100, 100_000])
def test_a_truncated_or_foreign_file_is_no_model(bundle: Path, size: int) -> None:
    whole = BundleDir(bundle).int8.read_bytes()
    generator = np.random.default_rng(size)
    for data in (whole[:size], generator.bytes(size), b"\x80" * size, b"\x0a" * size):
        with pytest.raises(UserError, match=r"m: must|m: operators"):
            inspect(Path("m"), data)


def test_graphs_that_this_version_writes_pass_and_the_packaged_one_is_what_is_written(bundle: Path) -> None:
    for file in BundleDir(bundle).graphs().values():
        inspect(file, file.read_bytes())
    packaged = Path(__file__).parents[2] / "src/vgg16_xray/bundle/square.onnx"
    assert onnx.load(packaged) == square_graph()


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({"format": 2}, "format: must be 1, found 2"),
        ({"labels": ["a"]}, "labels: must be 2 to 1000 different names"),
        ({"labels": "ab"}, "labels: must be a list, found 'ab'"),
        ({"labels": ["a", "a"]}, "labels: must be 2 to 1000 different names"),
        ({"size": 10**9}, "size: must be 32 to 1024 pixels, found 1000000000"),
        ({"temperature": 0.0}, "temperature: must be a number above 0, at most 1,000,000, found 0.0"),
        ({"temperature": "1"}, "temperature: must be a number above 0, at most 1,000,000, found '1'"),
        ({"head": {"kind": "gap", "cam_weights": [[1.0]]}}, "head.cam_weights: must be 4 x 512 numbers"),
        ({"head": {"kind": "gap", "cam_weights": [["1"] * 512] * 4}}, "head.cam_weights: must be 4 x 512 numbers"),
        ({"head": {"kind": "gap", "cam_weights": [[1e308] * 512] * 4}}, "head.cam_weights: must be 4 x 512 numbers"),
        ({"unheard_of": 1}, "must hold known values, found unheard_of"),
        ({"sha256": {}}, "sha256 must name model.int8.onnx, found no hash of it"),
        ({"sha256": {"../../x": "0"}}, "sha256: must be hashes of a bundle's files .*, found '../../x'"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_a_value_of_the_configuration_is_refused_by_name(
    copy_of_bundle: Path, value: dict[str, Any], line: str
) -> None:
    config = BundleDir(copy_of_bundle).config
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | value), "utf-8")
    with pytest.raises(UserError, match=f"config.json: .*{line}"):
        Classifier.load(copy_of_bundle)


CLASSES = "must be 4 numbers from 0 to 1, one a class"


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("labels", ["x" * 10**6, "y"], "labels: must be 2 to 1000 different names of at most 200 characters, found"),
        ("labels", [1, 2], "labels: must be 2 to 1000 different names"),
        ("format", "x" * 10**6, "format: must be 1, found 'xxx"),
        ("size", True, "size: must be 32 to 1024 pixels, found True"),
        ("temperature", 10**400, "temperature: must be a number above 0, at most 1,000,000, found 1000"),
        ("blocks", 3, "blocks: must be 4 or 5, found 3"),
        ("blocks", True, "blocks: must be 4 or 5, found"),
        ("preprocessing", "zzz", "preprocessing: must be one of unit, caffe, caffe-half, torch, found 'zzz'"),
        ("preprocessing", ["caffe"], "preprocessing: must be one of unit, caffe, caffe-half, torch, found"),
        ("train_from", 3, "train_from: must be one of"),
        ("recipe", None, "recipe: must be text of at most 200 characters, found None"),
        ("head", "x", "head: must be an object, found 'x'"),
        ("head.kind", "zzz", "head.kind: must be one of linear, gap, vgg, found 'zzz'"),
        ("head.cam_weights", [[10**400]], "head.cam_weights: must be 4 x 512 numbers"),
        ("figures", 3, "figures: must be an object, found 3"),
        ("recalibrated", 3, "recalibrated: must be an object or null, found 3"),
        ("conformal", "x", "conformal: must be an object or null, found 'x'"),
        ("conformal.alpha", 7, "conformal.alpha: must be above 0 and below 1, found 7"),
        ("conformal.score", "zzz", "conformal.score: must be one of lac, aps, found 'zzz'"),
        ("conformal.by_class", 1, "conformal.by_class: must be true or false, found 1"),
        ("conformal.thresholds", [5], f"conformal.thresholds: {CLASSES}, found \\[5\\]"),
        ("conformal.thresholds", [1e308] * 4, f"conformal.thresholds: {CLASSES}, found"),
        ("conformal.thresholds", ["a"] * 4, f"conformal.thresholds: {CLASSES}, found"),
        ("conformal.films", [-1] * 4, "conformal.films: must be 4 numbers from 0, one a class, found"),
        ("refusal", "x", "refusal: must be an object or null, found 'x'"),
        ("refusal.film", None, "refusal.film: must be an object, found None"),
        ("refusal.film.threshold", "x", "refusal.film.threshold: must be a number from 0 to 1, found 'x'"),
        ("refusal.film.threshold", 10**400, "refusal.film.threshold: must be a number from 0 to 1, found 1000"),
        ("refusal.film.centre.shape", "x", "refusal.film.centre.shape: must be that of an array of 1024 in half"),
        ("refusal.film.centre.shape", [10**30], "refusal.film.centre.shape: must be that of an array of 1024 in half"),
        ("refusal.film.centre.float16", 3, "refusal.film.centre.float16: must be base64 of 2,048 bytes, found 3"),
        ("refusal.film.centre.float16", "\xe9", "refusal.film.centre.float16: must be base64 of 2,048 bytes"),
        ("refusal.film.spread.float16", "AAAA" * 682 + "AAA=", "refusal.film.spread.float16: must be numbers above 0"),
        ("refusal.film.bias.float16", "AH4AfgB+AH4Afg==", "refusal.film.bias.float16: must be finite numbers"),
        ("refusal.evidence", [], "refusal.evidence: must be an object, found"),
        ("refusal.evidence.thresholds", [9] * 4, f"refusal.evidence.thresholds: {CLASSES}, found"),
        ("refusal.evidence.thresholds", "text", f"refusal.evidence.thresholds: {CLASSES}, found 'text'"),
        ("refusal.labels", ["z"] * 4, "refusal.labels: must be the labels in their order, found"),
        ("refusal.shift", "x", "refusal.shift: must be an object or null, found 'x'"),
        ("refusal.shift.centre.shape", [2], "refusal.shift.centre.shape: must be that of an array of 1024"),
        ("refusal.shift.reference.shape", [400, 3], "refusal.shift.reference.shape: must be that of an array of any x"),
        ("sha256", {"../../../../etc/passwd": "0" * 64}, "sha256: must be hashes of a bundle's files"),
        ("sha256", {"golden.json": "0"}, "sha256.golden.json: must be 64 hexadecimal digits, found '0'"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else "",
)
def test_every_field_has_a_rule_that_reading_keeps(tmp_path: Path, field: str, value: Any, line: str) -> None:
    config = json.loads(BundleDir.packaged().config.read_text("utf-8"))
    *way, last = field.split(".")
    owner = config
    for step in way:
        owner = owner[step]
    owner[last] = value
    BundleDir(tmp_path).config.write_text(json.dumps(config), "utf-8")
    with pytest.raises(UserError, match=f"config.json: {line}") as caught:
        read_bundle_config(BundleDir(tmp_path))
    assert (caught.value.exit_code, len(str(caught.value)) < len(str(tmp_path)) + 300) == (2, True)


@pytest.fixture
def copy_of_packaged(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BundleDir.packaged().path, tmp_path / "bundle"))


def test_reversed_labels_do_not_pass_for_the_model(copy_of_packaged: Path, tmp_path: Path) -> None:
    bundle = BundleDir(copy_of_packaged)
    config = json.loads(bundle.config.read_text("utf-8"))
    config |= {"labels": config["labels"][::-1], "refusal": None, "conformal": None}
    bundle.config.write_text(json.dumps(config), "utf-8")
    doors: list[Callable[[], object]] = [
        lambda: check(copy_of_packaged),
        lambda: Classifier.load(copy_of_packaged),
        lambda: write_page(tmp_path / "site", bundle),
    ]
    for door in doors:
        with pytest.raises(UserError, match=r"labels must be those in whose order golden.json answers, \['COVID', "):
            door()
    assert not (tmp_path / "site").exists()


def test_a_bundle_whose_golden_films_name_no_classes_is_read(copy_of_packaged: Path) -> None:
    bundle = BundleDir(copy_of_packaged)
    golden = json.loads(bundle.golden.read_text("utf-8"))
    assert golden.pop("labels") == list(read_bundle_config(bundle).labels)
    bundle.golden.write_text(json.dumps(golden), "utf-8")
    rehash(bundle)
    assert set(check(copy_of_packaged)) == {"int8"}


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("png", "AAAA", "golden.json: must be PNG, JPEG"),
        ("probabilities", {"int8": [10**400] * 4}, "golden.json: must hold films and their answers, found"),
        ("probabilities", 3, "golden.json: must hold films and their answers, found"),
    ],
    ids=["png", "huge", "number"],
)
def test_golden_films_that_cannot_be_asked_make_no_usable_bundle(
    copy_of_packaged: Path, field: str, value: Any, line: str
) -> None:
    bundle = BundleDir(copy_of_packaged)
    golden = json.loads(bundle.golden.read_text("utf-8"))
    golden["films"][0][field] = value
    bundle.golden.write_text(json.dumps(golden), "utf-8")
    rehash(bundle)
    with pytest.raises(UserError, match=line) as caught:
        check(copy_of_packaged)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": NaN}', "[" * 100_000, "\xff"])
def test_a_configuration_that_is_no_json_is_one_line(copy_of_bundle: Path, text: str) -> None:
    config = BundleDir(copy_of_bundle).config
    config.write_text(text, "latin-1")
    with pytest.raises(UserError, match=r"config.json: must be (JSON|an object)") as caught:
        Classifier.load(copy_of_bundle)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["golden.json", "model.int8.onnx", "config.json"])
def test_a_file_that_is_missing_is_named(copy_of_bundle: Path, name: str) -> None:
    (copy_of_bundle / name).unlink()
    with pytest.raises(UserError, match=f"{name}|in int8, found none"):
        Classifier.load(copy_of_bundle, precision="int8")


def test_a_place_that_cannot_be_written_is_refused_before_a_bundle_is_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="file: cannot be written"):
        refuse_to(tmp_path / "file" / "bundle")
    refuse_to(tmp_path / "new" / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
