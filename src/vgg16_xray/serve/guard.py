"""What happens to every request, whatever it asks: an id, the token, room, limits, headers, one line in the log."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
import re
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vgg16_xray.serve.errors import FAILED, Refusal
from vgg16_xray.serve.log import log
from vgg16_xray.serve.metrics import Metrics
from vgg16_xray.serve.settings import Settings

#: The page asks nothing of any other host and runs no code that is text; the network needs WebAssembly.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: With the last three a browser lets WebAssembly use several threads: nothing from elsewhere shares the page's memory.
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
}
#: An id that a client chose is taken over where it can be no name.
CHOSEN_ID = re.compile(rb"[0-9a-fA-F-]{16,64}")
#: A token is asked for at these, and at nothing else: the page is no secret, and probes know no token.
GUARDED = ("/v1/", "/v2/models", "/metrics")
#: Bodies in the house at most, as a multiple of the largest one.
BODIES = 8
#: A client that still sends when it is refused would find its connection reset before it reads why. So much of its
#: body, as a multiple of the largest one, and for so many seconds, is read and thrown away first.
LINGER_BODIES, LINGER_SECONDS = 4, 5.0


class Guard:
    """ASGI middleware around the application.

    Args:
        app: The application.
        settings: Limits and token.
        metrics: What counts.
    """

    def __init__(self, app: ASGIApp, *, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._headers = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
        #: Requests in the house that brought a body.
        self.open = 0
        self._bytes = 0
        self._seconds = 0.1  # of a request, lately
        #: Set when the server is told to stop: every answer then closes its connection.
        self.leaving = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        chosen = headers.get(b"x-request-id", b"")
        request_id = chosen.decode() if CHOSEN_ID.fullmatch(chosen) else uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=request_id, films=0)
        status = 0
        body = _Body(receive, most=self._settings.max_bytes)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status >= 400 and status != 408 and scope["method"] == "POST":
                    await body.discard()
                message["headers"] = [*message["headers"], *self._headers, (b"x-request-id", request_id.encode())]
                if any(
                    name == b"content-type" and value.startswith(b"text/html") for name, value in message["headers"]
                ):
                    message["headers"].append((b"cache-control", b"no-cache"))  # its parts are named by their content
                if self.leaving:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        reserved = 0
        try:
            self._check_token(scope, headers)
            if scope["method"] == "POST":
                reserved = self._admit(headers)
            await self._app(scope, body.receive, answer)
        except Refusal as refusal:
            await refused(answer, refusal, request_id)
        except Exception:
            log("failed", level=logging.ERROR, request_id=request_id, exc_info=True)
            if not status:
                await refused(answer, Refusal(500, FAILED), request_id)
        finally:
            if reserved:
                self.open, self._bytes = self.open - 1, self._bytes - reserved
                self._metrics.open.set(self.open)
            self._tell(scope, status, time.perf_counter() - started, request_id)

    def _check_token(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        expected = self._settings.token
        if expected is None or not scope["path"].startswith(GUARDED) or scope["method"] == "OPTIONS":
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        # The scheme's name knows no case (RFC 9110, 11.1).
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given, expected.encode()):
            raise Refusal(401, "Authorization: must be the Bearer token of this server")

    def _admit(self, headers: Mapping[bytes, bytes]) -> int:
        """Reserve room for a body; how many bytes."""
        largest = self._settings.max_bytes
        declared = headers.get(b"content-length", b"")
        size = int(declared) if declared.isdigit() else largest
        if size > largest:
            raise Refusal(413, f"body: must have at most {largest:,} bytes, found {size:,}")
        if self.leaving or self.open >= self._settings.queue or self._bytes + size > BODIES * largest:
            self._metrics.turned_away.inc()
            after = max(1, math.ceil(self.open * self._seconds / self._settings.queue))
            why = "the server is about to stop" if self.leaving else "the house is full"
            raise Refusal(503, f"{why}; come back later", retry_after=after)
        self.open, self._bytes = self.open + 1, self._bytes + size
        self._metrics.open.set(self.open)
        return max(size, 1)

    def _tell(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        # The route, not the path: a path is what a client wrote.
        door = getattr(scope.get("route"), "path", "none")
        self._metrics.requests.labels(door, str(status)).inc()
        self._metrics.seconds.labels(door).observe(seconds)
        if scope["method"] == "POST" and status < 400:
            self._seconds += 0.1 * (seconds - self._seconds)
        facts: dict[str, Any] = {"request_id": request_id, "method": scope["method"], "door": door, "status": status}
        log("request", **facts, films=scope["state"]["films"], ms=round(seconds * 1000, 1))


class _Body:
    """A request's body, bounded."""

    def __init__(self, receive: Receive, *, most: int) -> None:
        self._receive, self._most = receive, most
        self._read, self._more = 0, True

    async def receive(self) -> Message:
        """The next part of it."""
        message = await self._next()
        if self._read > self._most:
            raise Refusal(413, f"body: must have at most {self._most:,} bytes, found more")
        return message

    async def discard(self) -> None:
        """Throw the rest away, within bounds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while self._more and self._read <= LINGER_BODIES * self._most:
                    await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self._read += len(message.get("body", b""))
        self._more = message["type"] == "http.request" and message.get("more_body", False)
        return message


async def refused(send: Send, refusal: Refusal, request_id: str) -> None:
    """Send a refusal as every door does: ``{"error": ..., "request_id": ...}``."""
    body = json.dumps({"error": refusal.reason, "request_id": request_id}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
