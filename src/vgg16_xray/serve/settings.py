"""What a server is told: frozen, checked, the meaning of a field beside the field."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from vgg16_xray.errors import UserError

#: Holds the bearer token; never an option of the command line, which every user of the machine can read.
TOKEN_VARIABLE = "VGG16_XRAY_TOKEN"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to serve a bundle.

    Raises:
        UserError: A value is outside its range.
    """

    #: The bundle; None for the one in the package.
    model: Path | None = None
    #: ``auto``, ``int8`` or ``float32``.
    precision: str = "auto"
    host: str = "127.0.0.1"
    port: int = 8000
    #: Processes, each with its own model, that share the port.
    workers: int = 1
    #: Films that go through the network together at most; as many as wait are taken, none is waited for. In int8 more
    #: are not faster, and each takes 60 MB.
    batch: int = 8
    #: Requests in the house at most; the next is turned away with 503 and told when to come back.
    queue: int = 256
    #: A request's body at most, MB (10^6 bytes).
    max_mb: float = 64.0
    #: A film's pixels at most; the largest digital detectors give 15 megapixels.
    max_pixels: int = 30_000_000
    #: Films in one request at most.
    max_films: int = 64
    #: Pixels of all films in one request at most: a file of 35 KB may hold 25 million.
    max_request_pixels: int = 300_000_000
    #: Time for a body to arrive, and again for its answer, seconds.
    seconds: float = 30.0
    #: Time for what was accepted to be finished after SIGTERM, seconds.
    grace: float = 60.0
    #: Origins whose pages may call this server (CORS); none by default.
    origins: tuple[str, ...] = ()
    #: Whether the page is served at ``/``.
    page: bool = True
    #: Clients must send this as ``Authorization: Bearer``; None lets all in.
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be served."""
        for name in ("workers", "batch", "queue", "max_pixels", "max_films", "max_request_pixels"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')}: must be at least 1, found {getattr(self, name)}")
        for name in ("max_mb", "seconds", "grace"):
            if not getattr(self, name) > 0:
                raise UserError(f"--{name.replace('_', '-')}: must be above 0, found {getattr(self, name)}")
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port: must be from 0 to 65535, found {self.port}")
        if self.token is not None and len(self.token) < 16:
            raise UserError(f"{TOKEN_VARIABLE}: must have at least 16 characters, found {len(self.token)}")

    @property
    def max_bytes(self) -> int:
        """A request's body at most, bytes."""
        return int(self.max_mb * 1e6)


def token_of_environment() -> str | None:
    """The bearer token that the environment asks for, None where there is none."""
    return os.environ.get(TOKEN_VARIABLE) or None
