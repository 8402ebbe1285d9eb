"""A server's last films, held against those on which its model was calibrated: three numbers in ``/metrics``.

Only embeddings are kept, in memory, of as many films as the test looks at; no film, name or time of a patient.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

from vgg16_xray.bundle.classify import ABSTAINED, ANSWERED, Classifier, Prediction
from vgg16_xray.serve.metrics import Metrics
from vgg16_xray.trust.shift import LEAST, MOST

#: Films that are older are forgotten, seconds.
HOURS = 6 * 3600.0
#: Films that come between two tests, and seconds at least.
EVERY, SECONDS = 8, 30.0


class Recent:
    """The last films of one process.

    Args:
        classifier: The model; one that has nothing to compare with keeps no films.
        metrics: Where the result is shown.
        clock: Seconds that only ever grow.
    """

    def __init__(
        self, classifier: Classifier, metrics: Metrics, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._classifier, self._metrics, self._clock = classifier, metrics, clock
        self._knows = (classifier.config.refusal or {}).get("shift") is not None
        self._films: deque[tuple[float, Prediction]] = deque(maxlen=MOST)
        self._lock = threading.Lock()
        self._new, self._tested = 0, float("-inf")

    def add(self, film: Prediction) -> bool:
        """Keep a film's embedding; whether it is time for :meth:`test`."""
        if not self._knows or film.answer not in (ANSWERED, ABSTAINED):
            return False
        now = self._clock()
        # Nothing of a film but its embedding: neither its name nor its answer.
        bare = Prediction(path="", answer=film.answer, embedding=film.embedding)
        with self._lock:
            self._films.append((now, bare))
            self._new += 1
            due = self._new >= EVERY and len(self._films) >= LEAST and now - self._tested >= SECONDS
            if due:
                self._new, self._tested = 0, now
            return due

    def test(self) -> None:
        """Test the films of the last hours, and show what came of it."""
        oldest = self._clock() - HOURS
        with self._lock:
            while self._films and self._films[0][0] < oldest:
                self._films.popleft()
            films = [film for _, film in self._films]
        found = self._classifier.shift_of(films)
        if found is not None and found["p"] is not None:
            self._metrics.shift_films.set(found["films"])
            self._metrics.shift_p.set(found["p"])
            self._metrics.shifted.set(int(found["shifted"]))
        else:
            self._metrics.shift_films.set(0)
            self._metrics.shift_p.set(1)
            self._metrics.shifted.set(0)
