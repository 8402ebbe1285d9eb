"""Dynamic batching: films of many requests go through the network together."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")


class Batcher(Generic[Answer]):
    """A thread that takes all films that wait, up to a batch, whenever the network is free.

    Nothing is waited for: a lone film goes at once, and under load batches fill by themselves while the one before them
    is computed.

    Args:
        run: Films -> an answer each, in their order. Called by one thread at a time.
        largest: Films in a batch at most.
    """

    def __init__(self, run: Callable[[Sequence[Any]], Sequence[Answer]], *, largest: int) -> None:
        self._run, self._largest = run, largest
        self._waiting: deque[tuple[Any, Future[Answer]]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="batches", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Films that wait."""
        return len(self._waiting)

    def submit(self, film: Any) -> Future[Answer]:
        """Queue a film; its answer comes in the future. Cancelling the future takes a waiting film out."""
        future: Future[Answer] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._waiting.append((film, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Answer all that waits, then stop."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            try:
                answers = self._run([film for film, _ in batch])
            except BaseException as error:
                for _, future in batch:
                    future.set_exception(error)
            else:
                for (_, future), answer in zip(batch, answers, strict=True):
                    future.set_result(answer)

    def _next(self) -> list[tuple[Any, Future[Answer]]]:
        """The next batch; empty when all is done and no more will come."""
        with self._changed:
            batch: list[tuple[Any, Future[Answer]]] = []
            while not batch:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return []
                while self._waiting and len(batch) < self._largest:
                    film, future = self._waiting.popleft()
                    if future.set_running_or_notify_cancel():
                        batch.append((film, future))
            return batch
