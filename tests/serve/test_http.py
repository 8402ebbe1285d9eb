"""The doors of a real server: answers, limits, refusals, what is counted and what is never logged."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import psutil
import pytest
import tritonclient.http as triton
from doors import BOUNDARY, ask, form, predict
from PIL import Image
from serving import PATIENCE, Running, running, until
from starlette.types import ASGIApp, Message
from tritonclient.utils import InferenceServerException

from vgg16_xray import RESEARCH_USE_ONLY
from vgg16_xray.bundle.classify import Classifier
from vgg16_xray.films.decode import decode
from vgg16_xray.films.phantom import CLASSES, draw
from vgg16_xray.serve.app import make_app
from vgg16_xray.serve.log import LOGGER, configure
from vgg16_xray.serve.page import PAGE
from vgg16_xray.serve.settings import Settings


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def bomb(side: int = 50_000) -> bytes:
    """A PNG of so many pixels a side in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10**6)))
        + chunk(b"IEND", b"")
    )


def opened(server: Running) -> int:
    """Requests that the server has let in and not answered yet."""
    lines = ask(f"{server.address}/metrics")[2].decode().splitlines()
    return sum(int(float(line.split()[1])) for line in lines if line.startswith("vgg16_xray_open_requests "))


def test_films_are_answered_in_their_order_and_a_broken_one_is_a_row(server: Running, film: Path) -> None:
    found = predict(server, ("a.png", film.read_bytes()), ("b.png", b"no film"), ("c.png", film.read_bytes()))
    assert found["research_use_only"] == RESEARCH_USE_ONLY
    rows = found["predictions"]
    assert [row["path"] for row in rows] == ["a.png", "b.png", "c.png"]
    assert rows[1]["answer"] == "error"
    assert rows[1]["reason"].startswith("must be PNG, JPEG")
    assert rows[0]["prediction"] in found["labels"]
    assert sum(rows[0]["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert rows[0]["probabilities"] == pytest.approx(rows[2]["probabilities"], abs=1e-5)


def test_explain_adds_the_heat_map(server: Running, film: Path) -> None:
    (row,) = predict(server, ("a.png", film.read_bytes()), query="?explain=true")["predictions"]
    heat = np.array(row["heat"])
    assert heat.shape == (14, 14)
    assert heat.min() >= 0


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"", 422, "found an empty file"),
        (b"just text", 422, "must be PNG, JPEG, TIFF, BMP, WebP or DICOM, found text"),
        (png(draw("Normal", size=256).pixels)[:9000], 422, "damaged image"),
        (png(np.zeros((64, 64), np.uint8)), 422, "must show something"),
        (png(np.eye(8, dtype=np.uint8)), 422, "at least 32 pixels"),
        (bomb(), 422, "must have at most 30,000,000 pixels"),
        (b"\0" * 128 + b"DICM" + b"\x02\x00\x10\x00UI", 422, "DICOM"),
        (png(np.tile(np.arange(64, dtype=np.uint8), (9000, 1))), 422, "must be at most 32 times as long as wide"),
        (b"\0" * 70_000_000, 413, "must have at most 64,000,000 bytes"),
    ],
    ids=["empty", "text", "truncated", "black", "tiny", "bomb", "dicom", "ribbon", "large"],
)
def test_a_bad_file_gets_one_reason(server: Running, content: bytes, status: int, said: str) -> None:
    found, _, body = ask(f"{server.address}/v1/predict", form(("film.png", content)))
    assert (found, "\n" in json.loads(body)["error"]) == (status, False)
    assert said in json.loads(body)["error"]


@pytest.mark.parametrize(
    ("body", "headers", "status", "said"),
    [
        (form(("a.png", b"x"), field="file"), {}, 400, "field 'films', found 'file'"),
        (form(), {}, 400, "found none"),
        (b"{}", {"Content_Type": "application/json"}, 415, "must be multipart/form-data"),
        (b"no form", {}, 400, "form:"),
        (b"x", {"Content_Type": "multipart/form-data"}, 400, "form:"),
        (form(*[("a.png", b"x")] * 65), {}, 413, "Too many files"),
        (f"--{BOUNDARY}a-limit-that-goes-on".encode(), {}, 400, "form:"),
        (form(*[("a.png", bomb(5000))] * 13), {}, 413, "at most 300,000,000 pixels in all, found 325,000,000"),
    ],
    ids=["field", "none", "json", "no form", "no boundary", "many", "broken boundary", "bombs"],
)
def test_a_bad_form_gets_one_reason(
    server: Running, body: bytes, headers: dict[str, str], status: int, said: str
) -> None:
    found, _, answer = ask(f"{server.address}/v1/predict", body, **headers)
    assert found == status
    assert said in json.loads(answer)["error"]
    assert all(line.startswith("{") for line in server.lines[1:])  # the first says what the program is for


def test_many_large_films_hold_up_neither_health_nor_another_film(server: Running, film: Path) -> None:
    # 8 films of 4,000 x 4,000 pixels in 0.2 MB.
    large = form(*[("a.png", png(np.tile((np.arange(4000) % 256).astype(np.uint8), (4000, 1))))] * 8)
    predict(server, ("a.png", film.read_bytes()))
    with ThreadPoolExecutor(2) as pool:
        began = time.monotonic()
        many = pool.submit(ask, f"{server.address}/v1/predict", large)
        until(lambda: opened(server) == 1)
        one = pool.submit(predict, server, ("a.png", film.read_bytes()))
        one.add_done_callback(lambda _: first.append(many.done()))
        first: list[bool] = []
        worst = 0.0
        while not many.done():
            asked = time.monotonic()
            assert ask(f"{server.address}/v2/health/ready")[0] == 200
            worst = max(worst, time.monotonic() - asked)
        took = time.monotonic() - began
    assert many.result()[0] == 200
    assert first == [False]
    # Half a second, also where others use the machine and everything takes longer.
    assert worst < max(0.5, took / 10)


def test_a_body_without_a_length_is_bounded_too(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
        head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        head += "Transfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode())
        chunk = b"100000\r\n" + b"\0" * 0x100000 + b"\r\n"
        try:
            for _ in range(62):
                connection.sendall(chunk)
        except OSError:
            pass
        assert connection.recv(64).startswith(b"HTTP/1.1 413")


def test_every_answer_has_an_id_and_the_security_headers(server: Running) -> None:
    for path in ("/", "/v2/health/live", "/nothing"):
        _, headers, _ = ask(server.address + path)
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert len(headers["x-request-id"]) == 32
        assert "access-control-allow-origin" not in headers
    chosen = "0123456789abcdef0123456789abcdef"
    assert ask(f"{server.address}/v2", X_Request_ID=chosen)[1]["x-request-id"] == chosen
    assert ask(f"{server.address}/v2", X_Request_ID="Smith, John")[1]["x-request-id"] != "Smith, John"


def test_no_file_name_and_no_made_up_path_is_logged(server: Running, film: Path) -> None:
    predict(server, (film.name, film.read_bytes()))
    ask(f"{server.address}/v1/predict", form((film.name, b"text")))
    ask(f"{server.address}/{film.name}")
    assert "Smith" not in "".join(server.lines)
    assert {row["door"] for row in server.events("request")} >= {"/v1/predict", "none"}


def test_metrics_count_requests_films_and_batches(server: Running, film: Path) -> None:
    predict(server, ("a.png", film.read_bytes()), ("b.png", b"text"))
    _, headers, body = ask(f"{server.address}/metrics")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    for name in (
        'vgg16_xray_requests_total{door="/v1/predict",status="200"}',
        'vgg16_xray_films_total{answer="error"}',
        'vgg16_xray_films_total{answer="abstained"}',
        'vgg16_xray_films_total{answer="refused"}',
        'vgg16_xray_request_seconds_bucket{door="/v1/predict",le="0.1"}',
        "vgg16_xray_queue_films",
        "vgg16_xray_turned_away_total",
    ):
        assert name in body.decode()


def test_what_the_page_loads_is_compressed_and_not_sent_again(server: Running) -> None:
    (wasm,) = (PAGE / "assets").glob("*.wasm")
    for path, share in ((f"/assets/{wasm.name}", 0.3), ("/model/model.int8.onnx", 0.9), ("/", 0.6)):
        _, plain_headers, plain = ask(server.address + path)
        _, headers, body = ask(server.address + path, Accept_Encoding="gzip, br")
        assert gzip.decompress(body) == plain
        assert len(body) < share * len(plain)
        assert headers["content-encoding"] == "gzip"
        assert int(headers["x-uncompressed-length"]) == len(plain)
        assert headers["vary"] == plain_headers["vary"] == "Accept-Encoding"
        assert headers["content-type"] == plain_headers["content-type"]
        assert "content-encoding" not in plain_headers
        for known in (headers["etag"], plain_headers["etag"]):
            status, _, nothing = ask(server.address + path, Accept_Encoding="gzip", If_None_Match=known)
            assert (status, nothing) == (304, b"")
    assert ask(f"{server.address}/model/model.onnx")[0] == 404
    assert ask(f"{server.address}/model/..%2Fconfig.json")[0] == 404


def test_the_documentation_asks_no_other_host(server: Running) -> None:
    status, _, page = ask(f"{server.address}/docs")
    assert status == 200
    assert b"http" not in page.replace(b"http-equiv", b"")
    paths = json.loads(ask(f"{server.address}/openapi.json")[2])["paths"]
    assert {"/v1/predict", "/v2/models/{name}/infer", "/metrics"} <= set(paths)
    for path in ("/v1/predict", "/v2/models/{name}/infer"):
        assert set(paths[path]["post"]["responses"]) == {"200", "400", "401", "408", "413", "415", "422", "500", "503"}


# -- the Open Inference Protocol, by the client that others use


@pytest.mark.parametrize(
    ("shape", "status", "said"),
    [
        ((1, 1, 3_000_000), 422, "pixels, film 1: must have at least 32 pixels a side, found 3000000 x 1"),
        ((1, 3_000_000, 1), 422, "pixels, film 1: must have at least 32 pixels a side, found 1 x 3000000"),
        ((2, 1, 1), 422, "must have at least 32 pixels a side"),
        ((1, 40, 40), 422, "pixels, film 1: must show something, found every pixel equal to 0"),
        ((1, 32, 4000), 422, "pixels, film 1: must be at most 32 times as long as wide, found 4000 x 32"),
        ((64, 250, 250), 413, "must have at most 3,000,000 pixels in all, found 4,000,000"),
    ],
    ids=str,
)
def test_a_tensor_keeps_the_rules_of_files(few_pixels: Running, shape: tuple[int, ...], status: int, said: str) -> None:
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": list(shape)}
    tensor |= {"parameters": {"binary_data_size": int(np.prod(shape))}}
    header = json.dumps({"inputs": [tensor]}).encode()
    found, _, answer = ask(
        f"{few_pixels.address}/v2/models/vgg16-xray/infer",
        header + bytes(int(np.prod(shape))),
        Inference_Header_Content_Length=str(len(header)),
    )
    assert (found, set(json.loads(answer))) == (status, {"error", "request_id"})
    assert said in json.loads(answer)["error"]
    assert all(line.startswith("{") for line in few_pixels.lines[1:])


@pytest.fixture(scope="module")
def few_pixels(bundle: Path) -> Iterator[Running]:
    with running(bundle, "--max-request-pixels", "3000000") as server:
        yield server


def test_an_error_that_nobody_foresaw_is_told_as_every_other(
    bundle: Path, film: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Smith, John")

    classifier = Classifier.load(bundle)
    monkeypatch.setattr(classifier, "square", fail)
    for name in (None, "uvicorn", "uvicorn.access", LOGGER):
        logger = logging.getLogger(name)
        monkeypatch.setattr(logger, "handlers", logger.handlers)
        monkeypatch.setattr(logger, "propagate", logger.propagate)
    configure()
    try:
        status, told = answered(make_app(Settings(), classifier), form(*[("a.png", film.read_bytes())] * 2))
        logging.getLogger("some.library").warning("Smith, John")
    finally:
        logging.captureWarnings(capture=False)
    assert (status, set(told)) == (500, {"error", "request_id"})
    rows = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [row["event"] for row in rows] == ["failed", "request", "library"]
    assert rows[0]["request_id"] == told["request_id"]
    assert (rows[0]["error"], "Smith" in str(rows)) == ("RuntimeError", False)


def answered(app: ASGIApp, body: bytes) -> tuple[int, dict[str, str]]:
    """Status and JSON of ``/v1/predict`` in this process."""
    headers = [(b"content-type", f"multipart/form-data; boundary={BOUNDARY}".encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": headers, "query_string": b""}
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    # A thread of its own: in this one a browser of other tests may keep an event loop.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(lambda: asyncio.run(app(scope, receive, send))).result()  # type: ignore[arg-type]
    return sent[0]["status"], json.loads(sent[1]["body"])


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_gets_the_answers_of_the_other_door(server: Running, *, binary: bool) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=PATIENCE)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("vgg16-xray")
    assert client.get_model_metadata("vgg16-xray")["inputs"][0]["name"] == "pixels"
    films = [draw(label, seed=9, patient=i, size=200).pixels for i, label in enumerate(CLASSES)]
    pixels = triton.InferInput("pixels", [4, 200, 200], "UINT8").set_data_from_numpy(
        np.stack(films), binary_data=binary
    )
    wanted = [
        triton.InferRequestedOutput(name, binary_data=binary) for name in ("probabilities", "prediction", "answer")
    ]
    for asked, compression in ((wanted, None), (None, "gzip")):
        found = client.infer("vgg16-xray", [pixels], outputs=asked, request_compression_algorithm=compression)
        rows = predict(server, *((f"{i}.png", png(film)) for i, film in enumerate(films)))["predictions"]
        expected = [list(row["probabilities"].values()) for row in rows]
        assert found.as_numpy("probabilities") == pytest.approx(np.array(expected), abs=1e-4)
        texts = [one.decode() if isinstance(one, bytes) else one for one in found.as_numpy("prediction")]
        assert texts == [row["prediction"] for row in rows]
        assert found.as_numpy("answer").shape == (4,)
        if asked is None:
            assert found.as_numpy("feature_map").shape == (4, 512, 14, 14)


def test_tritonclient_is_told_what_is_wrong(server: Running) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}", network_timeout=PATIENCE)
    two = triton.InferInput("pixels", [40, 40], "UINT8").set_data_from_numpy(np.zeros((40, 40), np.uint8))
    with pytest.raises(InferenceServerException, match=r"shape \[films, height, width\]"):
        client.infer("vgg16-xray", [two])
    with pytest.raises(InferenceServerException, match="model: must be 'vgg16-xray'"):
        client.infer("other", [two])
    large = triton.InferInput("pixels", [65, 32, 32], "UINT8").set_data_from_numpy(np.zeros((65, 32, 32), np.uint8))
    with pytest.raises(InferenceServerException, match="at most 64 films"):
        client.infer("vgg16-xray", [large])


def test_compression_is_no_way_around_the_limit(server: Running) -> None:
    status, _, body = ask(
        f"{server.address}/v2/models/vgg16-xray/infer", zlib.compress(bytes(80_000_000)), Content_Encoding="deflate"
    )
    assert (status, b"when inflated" in body) == (413, True)


# -- servers that are started otherwise


def test_with_a_token_only_who_knows_it_is_answered(bundle: Path, film: Path) -> None:
    token = "correct horse battery staple"
    with running(bundle, token=token) as server:
        address, body = f"{server.address}/v1/predict", form(("a.png", film.read_bytes()))
        for wrong in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": token}):
            status, headers, _ = ask(address, body, **wrong)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert ask(f"{server.address}/metrics")[0] == 401
        for scheme in ("Bearer", "bearer"):
            assert ask(address, body, Authorization=f"{scheme} {token}")[0] == 200
        assert ask(f"{server.address}/v2/health/ready")[0] == 200
        assert ask(server.address)[0] == 200
        assert token not in "".join(server.lines)


def test_other_origins_are_let_in_only_where_they_are_named(bundle: Path) -> None:
    with running(bundle, "--cors", "https://viewer.example", "--no-page") as server:
        asked = {"Origin": "https://viewer.example"}
        assert ask(f"{server.address}/v2", **asked)[1]["access-control-allow-origin"] == "https://viewer.example"
        preflight = Request(f"{server.address}/v1/predict", method="OPTIONS", headers=asked)
        preflight.add_header("Access-Control-Request-Method", "POST")
        preflight.add_header("Access-Control-Request-Headers", "authorization")
        assert urlopen(preflight, timeout=PATIENCE).status == 200
        assert "access-control-allow-origin" not in ask(f"{server.address}/v2", Origin="https://other.example")[1]
        assert ask(server.address)[0] == 404


def test_a_full_house_says_when_to_come_back(bundle: Path, film: Path) -> None:
    with running(bundle, "--queue", "1", "--seconds", str(PATIENCE)) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
            until(lambda: opened(server) == 1)
            status, headers, body = ask(f"{server.address}/v1/predict", form(("a.png", film.read_bytes())))
            assert (status, int(headers["retry-after"]) >= 1) == (503, True)
            assert b"full" in body
        assert b"vgg16_xray_turned_away_total 1.0" in ask(f"{server.address}/metrics")[2]


def test_a_body_that_does_not_come_is_not_waited_for(bundle: Path) -> None:
    with (
        running(bundle, "--seconds", "1") as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as slow,
    ):
        slow.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        assert slow.recv(64).startswith(b"HTTP/1.1 408")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_finishes_what_was_accepted(bundle: Path, film: Path, workers: int) -> None:
    patient = ("--seconds", str(PATIENCE), "--grace", str(PATIENCE))
    with running(bundle, "--workers", str(workers), "--batch", "2", *patient) as server:
        until(lambda: len(server.events("serving")) == workers)
        body = form(*[("a.png", film.read_bytes())] * 8)
        clients = [HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE) for _ in range(6)]
        for client in clients:
            client.putrequest("POST", "/v1/predict")
            client.putheader("Content-Type", f"multipart/form-data; boundary={BOUNDARY}")
            client.putheader("Content-Length", str(len(body)))
            client.endheaders(body[:-1])
        until(lambda: opened(server) == 6)
        for client in clients[:3]:  # are computed when the signal comes; the others are still on their way
            client.send(body[-1:])
        server.process.send_signal(signal.SIGTERM)
        until(lambda: len(server.events("leaving")) == workers)
        idle = sum(not row["open"] for row in server.events("leaving"))
        until(lambda: len(alive(server)) == workers - idle)
        # Who comes now is told so, and not cut off.
        for found in (ask(f"{server.address}/v2/health/ready"), ask(f"{server.address}/v1/predict", body)):
            assert (found[0], found[1]["connection"]) == (503, "close")
        for client in clients[3:]:
            client.send(body[-1:])
        answers = [client.getresponse() for client in clients]
        assert [(answer.status, len(json.load(answer)["predictions"])) for answer in answers] == [(200, 8)] * 6
        assert server.process.wait(PATIENCE) == 0


def alive(server: Running) -> list[int]:
    """The processes that serve."""
    processes = [row["process"] for row in server.events("serving")]
    ended = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return [one for one in processes if psutil.pid_exists(one) and psutil.Process(one).status() not in ended]


@pytest.mark.slow
def test_a_process_that_is_killed_is_replaced(bundle: Path, film: Path) -> None:
    with running(bundle, "--workers", "2") as server:
        until(lambda: len(server.events("serving")) == 2)
        time.sleep(5)  # sooner, it would be taken for one that cannot start
        os.kill(server.events("serving")[0]["process"], signal.SIGKILL)
        until(lambda: len(server.events("serving")) == 3)
        assert [row["code"] for row in server.events("replaced")] == [-signal.SIGKILL]
        for _ in range(4):
            predict(server, ("a.png", film.read_bytes()))


def test_an_answer_that_takes_too_long_is_not_waited_for(bundle: Path) -> None:
    # Small files, which arrive in time on any machine, and more of them than any machine answers in that time.
    small = png(draw("Normal", seed=3, size=64).pixels)
    with running(bundle, "--seconds", "1", "--max-films", "1000") as server:
        status, headers, body = ask(f"{server.address}/v1/predict", form(*[("a.png", small)] * 1000))
        assert (status, headers["retry-after"]) == (503, "5")
        assert b"no answer within 1 s" in body


def test_several_processes_count_together(bundle: Path, film: Path) -> None:
    with running(bundle, "--workers", "2") as server:
        until(lambda: len(server.events("serving")) == 2)
        for _ in range(12):
            predict(server, ("a.png", film.read_bytes()))
        counted = ask(f"{server.address}/metrics")[2].decode()
        assert 'vgg16_xray_requests_total{door="/v1/predict",status="200"} 12.0' in counted


def test_a_taken_port_and_a_missing_bundle_are_one_line(server: Running, bundle: Path, tmp_path: Path) -> None:
    for arguments in (["--port", str(server.port), "--model", str(bundle)], ["--port", "0", "--model", str(tmp_path)]):
        command = [sys.executable, "-m", "vgg16_xray", "serve", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        assert done.stderr.strip().splitlines()[-1].startswith("vgg16-xray: ")


def test_serving_loads_no_torch() -> None:
    code = "import sys, vgg16_xray.serve.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_same_pixels_by_file_and_by_array_are_the_same_answer(server: Running, film: Path) -> None:
    pixels = decode(film)
    (row,) = predict(server, ("a.png", film.read_bytes()))["predictions"]
    data = {
        "inputs": [
            {"name": "pixels", "datatype": "UINT8", "shape": [1, *pixels.shape], "data": pixels.ravel().tolist()}
        ]
    }
    _, _, body = ask(f"{server.address}/v2/models/vgg16-xray/infer", json.dumps(data).encode())
    outputs = {one["name"]: one["data"] for one in json.loads(body)["outputs"]}
    assert outputs["probabilities"] == pytest.approx(list(row["probabilities"].values()), abs=1e-5)
    assert (outputs["answer"], outputs["reason"]) == ([row["answer"]], [row["reason"]])
