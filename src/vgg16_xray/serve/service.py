"""The model behind the doors: films in, answers out, batched over all requests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from vgg16_xray.bundle.classify import Classifier, Outputs, Prediction
from vgg16_xray.errors import UnreadableFilm
from vgg16_xray.films.decode import decode
from vgg16_xray.serve.batch import Batcher
from vgg16_xray.serve.metrics import Metrics
from vgg16_xray.serve.recent import Recent
from vgg16_xray.serve.settings import Settings

#: Decoded films in memory at most, in batches: while some are computed, others are made ready.
BATCHES_IN_MEMORY = 4
T = TypeVar("T")


@dataclass(frozen=True)
class Answered:
    """A film's answer, and its rows of the graph's outputs."""

    prediction: Prediction
    raw: Outputs


@dataclass(frozen=True)
class _Film:
    """What waits for the network."""

    #: (size, size) uint8.
    square: np.ndarray
    #: Whether the last map is wanted, which is 400 KB.
    with_map: bool


class Service:
    """A loaded model and its queue.

    Args:
        classifier: The model.
        settings: Batch and limits.
        metrics: What counts.
    """

    def __init__(self, classifier: Classifier, *, settings: Settings, metrics: Metrics) -> None:
        self.classifier = classifier
        self._settings, self._metrics = settings, metrics
        self._batcher: Batcher[Outputs] = Batcher(self._run, largest=settings.batch)
        self._pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="films")
        self._recent = Recent(classifier, metrics)
        self._room = asyncio.Semaphore(BATCHES_IN_MEMORY * settings.batch)

    def close(self) -> None:
        """Finish what was accepted."""
        self._batcher.close()
        self._pool.shutdown()

    async def answer_file(self, data: bytes, name: str, *, explain: bool = False) -> Answered | UnreadableFilm:
        """Decode and answer one file."""
        async with self._room:
            try:
                film, square = await self._in_pool(self._decode, data, name)
            except UnreadableFilm as error:
                self._metrics.films.labels("error").inc()
                return error
            return await self._answer(name, film, square, explain=explain, with_map=explain)

    async def answer_film(self, film: np.ndarray, name: str, *, with_map: bool) -> Answered:
        """Answer one decoded film, (H, W) uint8."""
        async with self._room:
            square = await self._in_pool(self.classifier.square, film)
            return await self._answer(name, film, square, explain=False, with_map=with_map)

    async def _answer(
        self, name: str, film: np.ndarray, square: np.ndarray, *, explain: bool, with_map: bool
    ) -> Answered:
        future = self._batcher.submit(_Film(square, with_map))
        raw = await asyncio.wrap_future(future)
        judged = self.classifier.judged(name, film, raw, explain=explain)
        self._metrics.films.labels(judged.answer).inc()
        if self._recent.add(judged):
            # In the pool, and unwaited for: no film's answer comes later for it. A pool that is closing has none.
            with contextlib.suppress(RuntimeError):
                self._pool.submit(self._recent.test)
        return Answered(judged, raw)

    async def _in_pool(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def _decode(self, data: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
        film = decode(data, name=name, max_pixels=self._settings.max_pixels)
        return film, self.classifier.square(film)

    def _run(self, films: Sequence[_Film]) -> list[Outputs]:
        started = time.perf_counter()
        with_map = any(film.with_map for film in films)
        found = self.classifier.predict_arrays([film.square for film in films], feature_map=with_map)
        self._metrics.network.observe(time.perf_counter() - started)
        self._metrics.batches.observe(len(films))
        self._metrics.waiting.set(len(self._batcher))
        return [Outputs(*(values[row] for values in found)) for row in range(len(films))]
