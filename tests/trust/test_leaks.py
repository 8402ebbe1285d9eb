import numpy as np
import pytest

from vgg16_xray.films.decode import to_square
from vgg16_xray.films.phantom import CLASSES, draw
from vgg16_xray.trust.leaks import contents, find_copies, summarise
from vgg16_xray.trust.near_copies import Pair


def pair(first: int, second: int, *, detail: float = 0.99, residual: float = 0.01) -> Pair:
    return Pair(
        first=first, second=second, detail=detail, residual=residual, mirrored=False, inverted=False, overlap=1.0
    )


@pytest.fixture(scope="module")
def films() -> np.ndarray:
    drawn = [to_square(draw(CLASSES[n % 4], seed=5, patient=n).pixels) for n in range(3)]
    return np.stack([drawn[0], drawn[1], drawn[0], drawn[1][:, ::-1], drawn[2], drawn[0][:, ::-1]])


SHA256 = ["d", "c", "d", "b", "a", "e"]


def test_exact_and_near_copies_are_one_content_whatever_connects_them(films):
    pairs = find_copies(films.__getitem__, SHA256)
    assert {(p.first, p.second) for p in pairs if p.same} == {(0, 2), (1, 3), (0, 5)}
    assert contents(SHA256, pairs) == ["d", "b", "d", "b", "a", "d"]


def test_of_two_collections_only_what_they_share_is_found(films):
    pairs = find_copies(films.__getitem__, SHA256, first_of_second=2)
    # 0 has an exact copy in the second collection, and is compared with the rest of it all the same.
    assert {(p.first, p.second) for p in pairs if p.same} == {(0, 2), (0, 5), (1, 3)}


def test_nothing_is_compared_where_every_film_of_the_second_collection_is_known(films):
    def no_film_is_needed(rows):
        pytest.fail(f"asked for {rows}")

    assert [(p.first, p.second) for p in find_copies(no_film_is_needed, ["d", "c", "d"], first_of_second=2)] == [(0, 2)]


def test_a_pair_that_is_not_one_film_connects_nothing():
    pairs = [pair(0, 1, residual=0.05), pair(1, 2, detail=0.5), pair(2, 3)]
    assert contents(["h", "g", "f", "e"], pairs) == ["h", "g", "e", "e"]


def test_the_summary_names_films_under_two_labels_and_what_collections_share():
    content, sha256 = ["a", "a", "b", "b", "c"], ["a", "z", "b", "b", "c"]
    found = summarise(
        [pair(2, 3, detail=1, residual=0), pair(0, 1), pair(1, 4, residual=0.06)],
        content=content,
        sha256=sha256,
        names=["one", "two", "three", "four", "five"],
        labels=["COVID", "Normal", "COVID", "COVID", "Normal"],
        collections=["x", "x", "x", "y", "y"],
        patients=["", "p", "q", "r", "p"],
    )
    assert (found["films"], found["copies"], found["exact"], found["groups"], found["shared"]) == (5, 2, 1, 2, 1)
    assert found["conflicts"] == [[{"film": "one", "label": "COVID"}, {"film": "two", "label": "Normal"}]]
    assert found["copies_of_label"] == {"COVID": 1, "Normal": 1}
    assert [row["patient"] for row in found["pairs"]] == ["another", "", "same"]
    assert [row["same"] for row in found["pairs"]] == [True, True, False]
    assert [row["exact"] for row in found["pairs"]] == [True, False, False]
