"""What is counted, for Prometheus. Names and labels say what happened, never to whom."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

#: Where the processes of one server leave their counts, so that each can tell those of all.
SHARED_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
#: Seconds; from a small film alone to a full queue.
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The counts of one process."""

    def __init__(self) -> None:
        disable_created_metrics()
        own = self._registry = CollectorRegistry()
        self.requests = Counter("vgg16_xray_requests", "Requests by door and status.", ["door", "status"], registry=own)
        self.seconds = Histogram(
            "vgg16_xray_request_seconds", "From the first byte to the answer.", ["door"], buckets=SECONDS, registry=own
        )
        self.films = Counter("vgg16_xray_films", "Films by answer.", ["answer"], registry=own)
        self.turned_away = Counter(
            "vgg16_xray_turned_away", "Requests refused because the house is full.", registry=own
        )
        self.waiting = Gauge(
            "vgg16_xray_queue_films", "Films that wait for the network.", registry=own, multiprocess_mode="livesum"
        )
        self.open = Gauge(
            "vgg16_xray_open_requests", "Requests in the house.", registry=own, multiprocess_mode="livesum"
        )
        self.batches = Histogram(
            "vgg16_xray_batch_films", "Films in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=own
        )
        self.network = Histogram("vgg16_xray_network_seconds", "A batch in the network.", buckets=SECONDS, registry=own)
        #: Of the last films, see :mod:`vgg16_xray.serve.recent`; of several processes that of the strangest films.
        self.shift_films = Gauge(
            "vgg16_xray_shift_films",
            "Recent films that the shift test looked at; 0: not tested.",
            registry=own,
            multiprocess_mode="livesum",
        )
        self.shift_p = Gauge(
            "vgg16_xray_shift_p",
            "How likely it is that recent films come from where the model was calibrated; 1 before any test.",
            registry=own,
            multiprocess_mode="livemin",
        )
        self.shifted = Gauge(
            "vgg16_xray_shifted",
            "1: recent films are not like those on which the model was calibrated.",
            registry=own,
            multiprocess_mode="livemax",
        )
        self.shift_p.set(1)
        for answer in ("answered", "abstained", "refused", "error"):
            self.films.labels(answer)

    def as_text(self) -> bytes:
        """All counts in Prometheus' text format; of all processes, where there are several."""
        if SHARED_VARIABLE not in os.environ:
            return generate_latest(self._registry)
        of_all = CollectorRegistry()
        MultiProcessCollector(of_all)
        return generate_latest(of_all)
