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

from vgg16_xray.bundle.classify import Classifier, Outputs, Prediction, Seen
from vgg16_xray.errors import UnreadableFilm
from vgg16_xray.films.decode import check_film, decode, pixels_in
from vgg16_xray.serve.batch import Batcher
from vgg16_xray.serve.metrics import Metrics
from vgg16_xray.serve.recent import Recent
from vgg16_xray.serve.settings import Settings

#: Films that are in the house's hands at most, in batches: while some are computed, others are made ready. Half of
#: them may be one request's.
BATCHES_IN_HAND = 4
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


class Turns:
    """One request's share of the house. All others' films stand in the same queues, which are first come, first served.

    A request of many films puts its next one into a queue when one of its own has left it. So who comes with one film
    waits behind a few of them, not behind all.
    """

    def __init__(self, *, threads: int, batch: int) -> None:
        #: Films that are decoded, or wait for a thread.
        self.decoding = asyncio.Semaphore(threads)
        #: Films that are anywhere between their file and their answer.
        self.in_hand = asyncio.Semaphore(max(1, BATCHES_IN_HAND * batch // 2))


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
        self._threads = os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="films")
        self._recent = Recent(classifier, metrics)
        self._room = asyncio.Semaphore(BATCHES_IN_HAND * settings.batch)

    def close(self) -> None:
        """Finish what was accepted."""
        self._batcher.close()
        self._pool.shutdown()

    def turns(self) -> Turns:
        """The share of a request that has come."""
        return Turns(threads=self._threads, batch=self._settings.batch)

    async def pixels_in(self, files: Sequence[bytes]) -> int:
        """Pixels that the files' headers promise, all together; what cannot be read counts nothing."""
        return await self._in_pool(lambda: sum(map(pixels_in, files)))

    async def answer_file(
        self, data: bytes, name: str, turns: Turns, *, explain: bool = False
    ) -> Answered | UnreadableFilm:
        """Decode and answer one file."""
        async with turns.in_hand, self._room:
            try:
                async with turns.decoding:
                    seen = await self._in_pool(self._decode, data, name)
            except UnreadableFilm as error:
                self._metrics.films.labels("error").inc()
                return error
            return await self._answer(name, seen, explain=explain, with_map=explain)

    async def answer_film(self, film: np.ndarray, name: str, turns: Turns, *, with_map: bool) -> Answered:
        """Answer one decoded film, (H, W) uint8.

        Raises:
            UnreadableFilm: It breaks a rule that films of files keep, too.
        """
        async with turns.in_hand, self._room:
            async with turns.decoding:
                seen = await self._in_pool(self._check, film, name)
            return await self._answer(name, seen, explain=False, with_map=with_map)

    async def _answer(self, name: str, seen: Seen, *, explain: bool, with_map: bool) -> Answered:
        future = self._batcher.submit(_Film(seen.square, with_map))
        raw = await asyncio.wrap_future(future)
        judged = self.classifier.judged(name, seen, raw, explain=explain)
        self._metrics.films.labels(judged.answer).inc()
        if self._recent.add(judged):
            # In the pool, and unwaited for: no film's answer comes later for it. A pool that is closing has none.
            with contextlib.suppress(RuntimeError):
                self._pool.submit(self._recent.test)
        return Answered(judged, raw)

    async def _in_pool(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    def _decode(self, data: bytes, name: str) -> Seen:
        # The film's own pixels, a thousand times its square, end here.
        return self.classifier.see(decode(data, name=name, max_pixels=self._settings.max_pixels))

    def _check(self, film: np.ndarray, name: str) -> Seen:
        check_film(film, name, max_pixels=self._settings.max_pixels)
        return self.classifier.see(film)

    def _run(self, films: Sequence[_Film]) -> list[Outputs]:
        started = time.perf_counter()
        with_map = any(film.with_map for film in films)
        found = self.classifier.predict_arrays([film.square for film in films], feature_map=with_map)
        self._metrics.network.observe(time.perf_counter() - started)
        self._metrics.batches.observe(len(films))
        self._metrics.waiting.set(len(self._batcher))
        return [Outputs(*(values[row] for values in found)) for row in range(len(films))]
