"""Files of the page: compressed for who takes that, and not sent again to who has them."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from anyio.to_thread import run_sync
from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

#: What becomes smaller: WebAssembly to a quarter, weights in int8 to three quarters. Pictures do not.
COMPRESSED = frozenset({".wasm", ".onnx", ".js", ".css", ".html", ".json", ".svg"})
#: A browser that unpacks as it reads knows only how much comes over the line; the page shows how much of the file.
WHOLE_LENGTH = "X-Uncompressed-Length"


class Files(StaticFiles):
    """Files in a folder, or those that are named.

    Args:
        named: Name -> file; in place of a folder.
        headers: Sent with each.
        options: See ``StaticFiles``.
    """

    def __init__(
        self, *, named: Mapping[str, Path] | None = None, headers: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        super().__init__(check_dir=named is None, **options)
        self._named, self._headers = named, dict(headers or {})
        self.config_checked = named is not None

    def lookup_path(self, path: str) -> tuple[str, Any]:
        """Where a file lies, and what the system says of it."""
        if self._named is None:
            return super().lookup_path(path)
        file = self._named.get(path)
        return ("", None) if file is None else (str(file), file.stat())

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file; with 304 where the client has it."""
        response = await super().get_response(path, scope)
        if isinstance(response, FileResponse) and Path(response.path).suffix in COMPRESSED:
            response = await self._compressed(response, Headers(scope=scope))
            response.headers["Vary"] = "Accept-Encoding"
        response.headers.update(self._headers)
        return response

    async def _compressed(self, response: FileResponse, asked: Headers) -> Response:
        takes = [one.strip() for one in asked.get("accept-encoding", "").split(",")]
        if "gzip" not in takes or "range" in asked:
            return response
        whole, body = await run_sync(_zipped, str(response.path), response.headers["etag"])
        kept = {name: response.headers[name] for name in ("content-type", "last-modified")}
        # Another representation of the same file: for who asks whether it changed, both are one.
        told = {"Content-Encoding": "gzip", "ETag": f"W/{response.headers['etag']}", WHOLE_LENGTH: str(whole)}
        return Response(body, response.status_code, headers=kept | told)


@cache
def _zipped(file: str, version: str) -> tuple[int, bytes]:
    """A file's length, and its bytes compressed: half a second for the largest, so once a process and version."""
    content = Path(file).read_bytes()
    return len(content), gzip.compress(content, 6, mtime=0)
