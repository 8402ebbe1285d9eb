"""The Open Inference Protocol as bytes: what is read, what is refused and why."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from vgg16_xray.serve import protocol
from vgg16_xray.serve.errors import Refusal


def request(**changes: Any) -> dict[str, Any]:
    tensor = {"name": "pixels", "shape": [1, 2, 3], "datatype": "UINT8", "data": [[[1, 2, 3], [4, 5, 6]]]}
    return {"id": "seven", "inputs": [tensor | changes]}


def test_a_tensor_is_read_from_nested_and_flat_numbers_and_from_bytes() -> None:
    expected = np.arange(1, 7, dtype=np.uint8).reshape(1, 2, 3)
    for data in ([[[1, 2, 3], [4, 5, 6]]], [1, 2, 3, 4, 5, 6]):
        assert (protocol.read(json.dumps(request(data=data)).encode(), None).pixels == expected).all()
    header = json.dumps(request(data=None, parameters={"binary_data_size": 6})).encode()
    assert (protocol.read(header + expected.tobytes(), str(len(header))).pixels == expected).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "image"}, "inputs: must be one tensor, 'pixels'"),
        ({"datatype": "FP32"}, "datatype UINT8, found FP32"),
        ({"shape": [2, 3]}, r"shape \[films, height, width\], found \[2, 3\]"),
        ({"shape": [1, -2, 3]}, "shape"),
        ({"shape": [1, 10**12, 10**12]}, "shape"),
        ({"shape": [1, 2, True]}, "shape"),
        ({"shape": "big"}, "shape"),
        ({"data": [1, 2]}, "6 whole numbers from 0 to 255"),
        ({"data": [1, 2, 3, 4, 5, 256]}, "from 0 to 255"),
        ({"data": [1, 2, 3, 4, 5, 0.5]}, "whole numbers"),
        ({"data": [[1], [2, 3]]}, "unequal length"),
        ({"data": "text"}, "whole numbers"),
        ({"data": None}, "whole numbers"),
        ({"parameters": {"binary_data_size": 6}}, "must be 6 bytes for shape"),
        ({"parameters": [1]}, "parameters must be an object"),
    ],
    ids=str,
)
def test_a_wrong_tensor_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Refusal, match=said) as refusal:
        protocol.read(json.dumps(request(**changes)).encode(), None)
    assert refusal.value.status == 400


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"inputs": 3}', b"[" * 100_000], ids=repr)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(Refusal) as refusal:
        protocol.read(body, None)
    assert refusal.value.status == 400


def test_more_json_than_is_read_without_holding_up_others_is_refused() -> None:
    with pytest.raises(Refusal, match="at most 20,000,000 bytes of JSON, found 20,000,001; send raw bytes") as refusal:
        protocol.read(b" " * 20_000_001, None)
    assert refusal.value.status == 413


@pytest.mark.parametrize("length", ["0", "-1", "x", "1e3", "99999", "5²"])
def test_a_header_length_beyond_the_body_is_refused(length: str) -> None:
    with pytest.raises(Refusal, match="Inference-Header-Content-Length"):
        protocol.read(b"{}", length)


def test_an_unknown_output_is_refused() -> None:
    with pytest.raises(Refusal, match="outputs: must be of probabilities"):
        protocol.read(json.dumps(request() | {"outputs": [{"name": "labels"}]}).encode(), None)


def test_an_answer_holds_what_was_asked_in_the_form_that_was_asked() -> None:
    outputs = [{"name": "probabilities", "parameters": {"binary_data": True}}, {"name": "answer"}]
    asked = protocol.read(json.dumps(request() | {"outputs": outputs}).encode(), None)
    p = np.array([[0.25, 0.75]], dtype=np.float32)
    body, length = protocol.write("m", "1", asked, {"probabilities": p, "answer": ["abstained"]})
    assert length is not None
    header = json.loads(body[: int(length)])
    assert header["id"] == "seven"
    assert header["outputs"][0] == {
        "name": "probabilities", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8},
    }  # fmt: skip
    assert header["outputs"][1]["data"] == ["abstained"]
    assert np.frombuffer(body[int(length) :], "<f4").tolist() == [0.25, 0.75]
