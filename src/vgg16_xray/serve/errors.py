"""Why a request is not answered: a status, and one line that says it."""

from __future__ import annotations

#: Said of an error that nobody foresaw.
FAILED = "the server failed; its log knows where"


class Refusal(Exception):
    """A request that is not answered.

    Args:
        status: HTTP status.
        reason: One line for the client.
        retry_after: Seconds after which it may succeed; sent as ``Retry-After``.
    """

    def __init__(self, status: int, reason: str, *, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after = status, " ".join(reason.split()), retry_after

    @property
    def headers(self) -> dict[str, str]:
        """What the status asks for."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
