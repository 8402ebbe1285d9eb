"""Dynamic batching: what waits goes together, in order, and nothing accepted is lost."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from vgg16_xray.serve.batch import Batcher


class Network:
    """Doubles numbers, and is busy until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = threading.Event()
        self.began = threading.Event()

    def __call__(self, films: Sequence[int]) -> list[int]:
        self.batches.append(list(films))
        self.began.set()
        assert self.free.wait(60)
        return [2 * film for film in films]


def test_what_comes_while_the_network_is_busy_goes_together() -> None:
    network = Network()
    batcher = Batcher(network, largest=4)
    first = batcher.submit(0)
    network.began.wait(60)
    others = [batcher.submit(film) for film in range(1, 7)]
    network.free.set()
    assert [future.result(60) for future in (first, *others)] == [0, 2, 4, 6, 8, 10, 12]
    assert network.batches == [[0], [1, 2, 3, 4], [5, 6]]
    batcher.close()


def test_closing_answers_all_that_waits() -> None:
    network = Network()
    batcher = Batcher(network, largest=2)
    futures = [batcher.submit(film) for film in range(7)]
    network.free.set()
    batcher.close()
    assert [future.result(0) for future in futures] == [0, 2, 4, 6, 8, 10, 12]
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(1)


def test_a_cancelled_film_is_not_computed() -> None:
    network = Network()
    batcher = Batcher(network, largest=4)
    first = batcher.submit(0)
    network.began.wait(60)
    gone, stays = batcher.submit(1), batcher.submit(2)
    assert gone.cancel()
    network.free.set()
    assert (first.result(60), stays.result(60)) == (0, 4)
    assert network.batches == [[0], [2]]
    batcher.close()


def test_a_batch_that_fails_fails_its_films_and_no_other() -> None:
    def run(films: Sequence[int]) -> list[int]:
        if 1 in films:
            raise ValueError("one")
        return list(films)

    batcher = Batcher(run, largest=1)
    bad, good = batcher.submit(1), batcher.submit(2)
    with pytest.raises(ValueError, match="one"):
        bad.result(60)
    assert good.result(60) == 2
    batcher.close()
