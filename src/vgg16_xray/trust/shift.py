"""Whether many films are like those that a model learned from: a test of a folder, or of a server's last hours.

It looks at the network's embeddings of the films, not at its answers, and asks whether they could have been drawn from
the same films as the validation films, by the kernel two-sample test (MMD; Gretton et al., *A Kernel Two-Sample Test*,
JMLR 13, 2012) with a permutation p-value: exact whatever the kernel, because under the null any film could have been
in either set. It never changes the answer for a single film.

A folder of one class alone is different from a reference of all classes, and is said to be so. What is stored is small
(numpy, JSON): embeddings along the directions in which validation films differ most.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Films of the reference that are kept, and directions of the embedding.
KEPT, DIRECTIONS = 400, 24
#: Level at which a set of films is flagged. In-domain sets are flagged a little oftener, for the reference is itself a
#: draw and the same for all of them: at most :data:`RATE`, as measured in docs/refusal.md.
ALPHA, RATE = 0.01, 0.05
#: Sets of fewer films are not tested; of more, so many are drawn: what ten films show fifty show surely, and many more
#: would show that any two sets of films differ a little.
LEAST, MOST = 8, 50
PERMUTATIONS = 999

Floats = NDArray[np.float64]


def fit(embeddings: NDArray[Any], *, seed: int = 1234) -> dict[str, Any]:
    """Keep what the test needs of films that the model was not fitted to.

    Args:
        embeddings: (N, E) of validation films, N at least 2 * :data:`LEAST`.
        seed: Of the draw, where there are more than :data:`KEPT`.

    Returns:
        What JSON holds: arrays in half precision (see :mod:`vgg16_xray.trust.refuse`).

    Raises:
        ValueError: There are too few films.
    """
    from vgg16_xray.trust.refuse import packed, unpacked

    embeddings = np.asarray(embeddings, dtype=np.float64)
    if len(embeddings) < 2 * LEAST:
        raise ValueError(f"embeddings: must be of at least {2 * LEAST} films, found {len(embeddings)}")
    centre, spread = embeddings.mean(axis=0), embeddings.std(axis=0)
    spread = np.maximum(spread, 1e-2 * spread.mean() + 1e-6)
    centred = (embeddings - centre) / spread
    values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
    order = np.argsort(values)[::-1][:DIRECTIONS]
    directions = vectors[:, order] / np.sqrt(np.maximum(values[order], 1e-6))
    rows = np.random.default_rng(seed).permutation(len(embeddings))[:KEPT]
    fitted = {"centre": packed(centre), "spread": packed(spread), "directions": packed(directions)}
    along = ((embeddings[rows] - unpacked(fitted["centre"])) / unpacked(fitted["spread"])) @ unpacked(
        fitted["directions"]
    )
    return fitted | {"reference": packed(along)}


def test(
    fitted: Mapping[str, Any],
    embeddings: NDArray[Any],
    *,
    alpha: float = ALPHA,
    permutations: int = PERMUTATIONS,
    seed: int = 1234,
) -> dict[str, Any]:
    """Ask whether films could have come from where the reference came from.

    Args:
        fitted: What :func:`fit` gave.
        embeddings: (n, E) of the films.
        alpha: Level at which they are flagged.
        permutations: How fine the p-value is: 1 / (permutations + 1) is the least.
        seed: Of the permutations, and of the draw where there are more than :data:`MOST` films.

    Returns:
        ``films``; ``p`` (None for fewer than :data:`LEAST` films); ``alpha``; ``shifted`` (bool, None); ``distance``
        (MMD, squared and unbiased: about 0 without a shift) and ``words``.
    """
    from vgg16_xray.trust.refuse import unpacked

    embeddings = np.asarray(embeddings, dtype=np.float64)
    found: dict[str, Any] = {"films": len(embeddings), "alpha": alpha, "p": None, "shifted": None, "distance": None}
    if len(embeddings) < LEAST:
        return found | {
            "words": f"too few films to tell whether they are like those it knows: {len(embeddings)}, {LEAST} needed"
        }
    random = np.random.default_rng(seed)
    if len(embeddings) > MOST:
        embeddings = embeddings[random.permutation(len(embeddings))[:MOST]]
    along = ((embeddings - unpacked(fitted["centre"])) / unpacked(fitted["spread"])) @ unpacked(fitted["directions"])
    reference = unpacked(fitted["reference"])
    both = np.concatenate([along, reference])
    squares = (both**2).sum(axis=1)
    apart = np.maximum(squares[:, None] + squares[None] - 2 * both @ both.T, 0)
    # The median heuristic, on the reference alone, so that the kernel does not depend on the films that are tested.
    inside = apart[len(along) :, len(along) :]
    kernel = np.exp(-apart / np.median(inside[np.triu_indices(len(inside), 1)]))
    np.fill_diagonal(kernel, 0)
    n, m = len(along), len(reference)
    marks = np.zeros((permutations + 1, n + m))
    marks[0, :n] = 1
    for row in marks[1:]:
        row[random.permutation(n + m)[:n]] = 1
    with_own = ((marks @ kernel) * marks).sum(axis=1)
    of_each = marks @ kernel.sum(axis=1)
    across = of_each - with_own
    with_other = kernel.sum() - 2 * of_each + with_own
    distances = with_own / (n * (n - 1)) + with_other / (m * (m - 1)) - 2 * across / (n * m)
    p = float(np.mean(distances >= distances[0] - 1e-12))
    shifted = p <= alpha
    words = (
        f"these {found['films']} films are not like those that the model knows (p = {p:.3g}): "
        "its figures do not hold for them"
        if shifted
        else f"no sign that these {found['films']} films differ from those that the model knows (p = {p:.2g})"
    )
    return found | {"p": p, "shifted": bool(shifted), "distance": float(distances[0]), "words": words}
