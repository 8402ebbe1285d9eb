"""A client of a server's doors."""

from __future__ import annotations

import json
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from serving import PATIENCE, Running

BOUNDARY = "limit-of-a-part"


def form(*files: tuple[str, bytes], field: str = "films") -> bytes:
    """A multipart form with files."""
    parts = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode()
        + data
        + b"\r\n"
        for name, data in files
    ]
    return b"".join([*parts, f"--{BOUNDARY}--\r\n".encode()])


def ask(address: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers in lower case, body."""
    given = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"} if body is not None else {}
    request = Request(
        address, data=body, headers=given | {name.replace("_", "-"): value for name, value in headers.items()}
    )
    try:
        with urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read()
    except HTTPError as error:
        return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read()


def predict(server: Running, *files: tuple[str, bytes], query: str = "") -> dict[str, Any]:
    status, _, body = ask(f"{server.address}/v1/predict{query}", form(*files))
    assert status == 200, body
    found: dict[str, Any] = json.loads(body)
    return found
