"""What it means that films are the same: which show one content, which stand under two labels, and in two collections.

How the same film is found again: :mod:`vgg16_xray.trust.near_copies`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vgg16_xray.films.split import group_films
from vgg16_xray.trust.near_copies import DETAIL, RESIDUAL, Films, Pair, find_pairs

#: Pairs that were nearly taken for one film and are kept to be looked at.
MOST_REJECTED = 1000


def find_copies(
    films: Films, sha256: Sequence[str], *, first_of_second: int | None = None, kept: Path | None = None
) -> list[Pair]:
    """Every film that is an earlier one again, exactly or nearly.

    Args:
        films: Gives (B, S, S) uint8 for (B,) indices.
        sha256: (N,) hash of the decoded pixels: equal ones are copies without a look.
        first_of_second: Look for pairs between the films before this index and those from it on, and no others.
        kept: Folder for finished parts of a search over these very films: one that was killed goes on behind them.

    Returns:
        Pairs that are one film, the surest first, then the strongest of those that are not.
    """
    side_of = [first_of_second is not None and i >= first_of_second for i in range(len(sha256))]
    first: dict[tuple[str, bool], int] = {}
    for i, film in enumerate(sha256):
        first.setdefault((film, side_of[i]), i)
    exact = [(first[film, side_of[i]], i) for i, film in enumerate(sha256) if first_of_second is None]
    if first_of_second is not None:
        exact = [(first[film, False], i) for (film, second), i in first.items() if second and (film, False) in first]
    # Of films with equal pixels one is looked at. What is known of the second collection needs no look; what it is
    # known by does, for another film of the second may be a near-copy of it.
    looked_at = np.array(
        sorted(i for (film, second), i in first.items() if not (second and (film, False) in first)), dtype=np.int64
    )
    among = None if first_of_second is None else int((looked_at < first_of_second).sum())
    found = find_pairs(lambda rows: films(looked_at[rows]), len(looked_at), first_of_second=among, kept=kept)
    pairs = [_exact(i, j) for i, j in exact if i != j]
    pairs += [pair.between(int(looked_at[pair.first]), int(looked_at[pair.second])) for pair in found]
    same = [pair for pair in pairs if pair.same]
    return same + [pair for pair in pairs if not pair.same][:MOST_REJECTED]


def _exact(first: int, second: int) -> Pair:
    return Pair(first=first, second=second, detail=1.0, residual=0.0, mirrored=False, inverted=False, overlap=1.0)


def contents(sha256: Sequence[str], pairs: Sequence[Pair]) -> list[str]:
    """(N,) name of what each film shows, equal for copies: the smallest pixel hash among them."""
    alike = group_films(sha256, [None] * len(sha256), copies=[(p.first, p.second) for p in pairs if p.same])
    smallest: dict[str, str] = {}
    for name, film in zip(alike, sha256, strict=True):
        smallest[name] = min(film, smallest.get(name, film))
    return [smallest[name] for name in alike]


def under_two_labels(found: Mapping[str, Any]) -> tuple[int, int]:
    """How many films show what a film of another class shows, and in how many pairs, of what :func:`summarise` gave."""
    pairs = [pair for pair in found["pairs"] if pair["same"] and pair["first_label"] != pair["second_label"]]
    return sum(len(films) for films in found["conflicts"]), len(pairs)


def summarise(
    pairs: Sequence[Pair],
    *,
    content: Sequence[str],
    sha256: Sequence[str],
    names: Sequence[str],
    labels: Sequence[str],
    collections: Sequence[str],
    patients: Sequence[str],
) -> dict[str, Any]:
    """What was found, as JSON can hold it.

    Args:
        pairs: As from :func:`find_copies`.
        content: (N,) as from :func:`contents`.
        sha256: (N,) hash of the decoded pixels.
        names: (N,) what to call a film.
        labels: (N,) class.
        collections: (N,) collection.
        patients: (N,) patient, empty where unknown: said beside a pair, and not used to find it.

    Returns:
        ``films``; ``copies`` films that are an earlier one again, of these ``exact`` with equal pixels; ``groups`` of
        films that are one; ``conflicts``: for each film under two labels its names with labels; ``shared``: groups in
        several collections; ``collections``: films of each; ``copies_of_label``; ``pairs``, a row a pair; ``bounds``.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for i, of in enumerate(content):
        members[of].append(i)
    several = [films for films in members.values() if len(films) > 1]

    def row(pair: Pair) -> dict[str, Any]:
        i, j = pair.first, pair.second
        known = patients[i] and patients[j]
        return {
            "first": names[i],
            "second": names[j],
            "same": pair.same,
            "exact": sha256[i] == sha256[j],
            "detail": pair.detail,
            "residual": pair.residual,
            "mirrored": pair.mirrored,
            "inverted": pair.inverted,
            "overlap": pair.overlap,
            "first_label": labels[i],
            "second_label": labels[j],
            "patient": ("same" if patients[i] == patients[j] else "another") if known else "",
            "rows": [i, j],
        }

    return {
        "films": len(content),
        "copies": len(content) - len(members),
        "exact": len(sha256) - len(set(sha256)),
        "groups": len(several),
        "conflicts": [
            [{"film": names[i], "label": labels[i]} for i in films]
            for films in several
            if len({labels[i] for i in films}) > 1
        ],
        "shared": sum(len({collections[i] for i in films}) > 1 for films in several),
        "collections": dict(sorted(Counter(collections).items())),
        "copies_of_label": dict(sorted(Counter(labels[i] for films in several for i in films[1:]).items())),
        "bounds": {"detail": DETAIL, "residual": RESIDUAL},
        "pairs": [row(pair) for pair in pairs],
    }
