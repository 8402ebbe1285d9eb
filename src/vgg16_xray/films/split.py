"""Training, validation and test films, so that nothing that shows the same thing stands on two sides.

The order in which groups are dealt depends on what the films show and on the seed alone: renaming, moving or sorting
the files changes nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from vgg16_xray.errors import Leak, UserError

TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
#: Shares of validation and test films: the seed's 80/10/10.
VALIDATION_SHARE = TEST_SHARE = 0.1
#: One fold to test, one to choose the epoch, one to train.
FEWEST_FOLDS = 3


def group_films(
    pixels: Sequence[str], *connections: Sequence[str | None], copies: Sequence[tuple[int, int]] = ()
) -> list[str]:
    """Put films that must stay together into one group, and what these connect.

    Args:
        pixels: (N,) hash of each film's decoded pixels: equal ones are one film.
        connections: (N,) each: patient, study, file origin, what near-copies show. Films with the same name are of one
            group; None or empty where unknown.
        copies: Pairs of indices that are one film.

    Returns:
        (N,) name of each film's group: the smallest pixel hash in it, shortened.
    """
    parent = list(range(len(pixels)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for names in (pixels, *connections):
        first: dict[str, int] = {}
        for i, (name, _) in enumerate(zip(names, pixels, strict=True)):
            if name:
                parent[root(i)] = root(first.setdefault(name, i))
    for i, j in copies:
        parent[root(i)] = root(j)
    smallest: dict[int, str] = {}
    for i, film in enumerate(pixels):
        smallest[root(i)] = min(film, smallest.get(root(i), film))
    return [smallest[root(i)][:16] for i in range(len(pixels))]


def split_films(
    *,
    labels: Sequence[str],
    groups: Sequence[str],
    pixels: Sequence[str],
    seed: int,
    validation: float = VALIDATION_SHARE,
    test: float = TEST_SHARE,
    kept: Mapping[str, str] | None = None,
) -> list[str]:
    """Deal groups to the three sides, each class in the same proportions.

    A group goes whole to one side, and only where it fits, so that the shares hold; where no group of a class fits, its
    smallest goes there all the same. A group in which the same film carries two labels goes to training: a film whose
    label is contradicted can measure nothing.

    Args:
        labels: (N,) class of each film.
        groups: (N,) group of each film, as from :func:`group_films`.
        pixels: (N,) name of what each film shows, equal for copies.
        seed: Another seed, another split.
        validation: Share of each class's films for validation, between 0 and 1.
        test: Share for testing.
        kept: ``{group: side}`` of groups that have their side already.

    Returns:
        (N,) ``train``, ``validation`` or ``test``.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    counts = Counter(labels)
    room = {
        (label, side): round(share * count)
        for label, count in counts.items()
        for side, share in ((TEST, test), (VALIDATION, validation), (TRAIN, 1))
    }
    contradicted = {groups[i] for i in conflicts(labels=labels, pixels=pixels)}
    order = sorted(members, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
    films_of = {group: Counter(labels[i] for i in members[group]) for group in order}
    side_of: dict[str, str] = dict.fromkeys(contradicted, TRAIN)

    def deal(group: str, side: str) -> None:
        for name, n in films_of[group].items():
            room[name, side] -= n
            if group in side_of:
                room[name, side_of[group]] += n
        side_of[group] = side

    kept = {group: side for group, side in (kept or {}).items() if group in members and group not in contradicted}
    for group, side in kept.items():
        deal(group, side)

    def spare(side: str, of_label: Sequence[str]) -> list[str]:
        """Groups that `side` may have from another, which keeps films of all their classes; from training first."""
        films = Counter((name, side_of[group]) for group in side_of for name in films_of[group].elements())
        return sorted(
            (
                group
                for group in of_label
                if side_of[group] != side
                and group not in contradicted
                and group not in kept
                and all(films[name, side_of[group]] > n for name, n in films_of[group].items())
            ),
            key=lambda group: (side_of[group] != TRAIN, len(members[group])),
        )

    # Rare classes first: a patient with films of two classes is dealt by the one that can spare fewer.
    for label in sorted(counts, key=lambda label: (counts[label], label)):
        of_label = [group for group in order if label in films_of[group]]
        for group in of_label:
            if group not in side_of:
                fits = (
                    side
                    for side in (TEST, VALIDATION)
                    if all(room[name, side] >= n for name, n in films_of[group].items())
                )
                deal(group, next(fits, TRAIN))
        for side, share in ((TEST, test), (VALIDATION, validation)):
            if (
                share
                and all(side_of[group] != side for group in of_label)
                and (groups_to_spare := spare(side, of_label))
            ):
                deal(groups_to_spare[0], side)
    return [side_of[group] for group in groups]


def fold_films(*, labels: Sequence[str], groups: Sequence[str], folds: int, seed: int) -> list[int]:
    """Deal groups to folds, so that each class is spread evenly and no group stands in two.

    Each group goes whole, the large ones first, to the fold that has the fewest films of its rarest class. A group in
    which the same pixels carry two labels is dealt as any other: every film is predicted once.

    Args:
        labels: (N,) class of each film.
        groups: (N,) group of each film, as from :func:`group_films`.
        folds: K, at least :data:`FEWEST_FOLDS`.
        seed: Another seed, other folds.

    Returns:
        (N,) fold of each film, from 1 to K.

    Raises:
        UserError: K is too small, or a class cannot stand in every fold.
    """
    if folds < FEWEST_FOLDS:
        raise UserError(
            f"--folds: must be {FEWEST_FOLDS} or more (one to test, one to choose the epoch, one to train), "
            f"found {folds}"
        )
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    order = sorted(members, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
    films_of = {group: Counter(labels[i] for i in members[group]) for group in order}
    counts = Counter(labels)
    rarest_first = sorted(counts, key=lambda label: (counts[label], label))
    for label in rarest_first:
        if (found := sum(label in films_of[group] for group in order)) < folds:
            raise UserError(
                f"class '{label}': must have {folds} groups (patients, or films and their copies) or more for "
                f"--folds {folds}, found {found}",
                hint="take fewer folds, bring more films of it, or leave the class out",
            )
    fold_of: dict[str, int] = {}
    held: Counter[tuple[str, int]] = Counter()
    films_in: Counter[int] = Counter()

    def deal(group: str, fold: int) -> None:
        for name, n in films_of[group].items():
            held[name, fold] += n
            if group in fold_of:
                held[name, fold_of[group]] -= n
        films_in[fold] += len(members[group])
        if group in fold_of:
            films_in[fold_of[group]] -= len(members[group])
        fold_of[group] = fold

    for label in rarest_first:
        of_label = [group for group in order if label in films_of[group]]
        for group in sorted(of_label, key=lambda group: -films_of[group][label]):
            if group not in fold_of:
                # The rarest first where the group shows several classes; then the smaller fold.
                names = sorted(films_of[group], key=lambda name: (name != label, counts[name], name))
                deal(
                    group,
                    min(
                        range(1, folds + 1),
                        key=lambda fold: (*(held[name, fold] for name in names), films_in[fold], fold),
                    ),
                )
    # Patients with films of several classes may have left a fold without one: bring its smallest group that another
    # fold can spare.
    for label in rarest_first:
        for fold in range(1, folds + 1):
            if held[label, fold]:
                continue
            spare = [
                group
                for group in order
                if label in films_of[group]
                and all(held[name, fold_of[group]] > n for name, n in films_of[group].items())
            ]
            if not spare:
                raise UserError(
                    f"class '{label}': must have films in each of {folds} folds, found none for one: its patients "
                    "have films of other classes too",
                    hint="take fewer folds, or bring more films of it",
                )
            deal(min(spare, key=lambda group: len(members[group])), fold)
    return [fold_of[group] for group in groups]


def sides_of_fold(fold_of: Sequence[int], *, number: int, folds: int) -> list[str]:
    """The split of one fold's model: it is tested on its fold, its epoch is chosen by the next, the rest trains it.

    Args:
        fold_of: (N,) fold of each film, from 1 to `folds`.
        number: Which fold's model, from 1.
        folds: K.

    Returns:
        (N,) ``train``, ``validation`` or ``test``.
    """
    side = {number: TEST, number % folds + 1: VALIDATION}
    return [side.get(fold, TRAIN) for fold in fold_of]


def check_every_class_on_every_side(
    *,
    labels: Sequence[str],
    splits: Sequence[str],
    groups: Sequence[str] = (),
    pixels: Sequence[str] = (),
    hint: str | None = None,
) -> None:
    """Refuse a split on which a class could not be learned, chosen or measured.

    Args:
        labels: (N,) class of each film.
        splits: (N,) side of each film.
        groups: (N,) group of each film, where the message shall tell how few its films are.
        pixels: (N,) name of what each film shows, where it shall tell which stand under another label.
        hint: What the user can do about it; None says to bring more films or leave the class out.

    Raises:
        UserError: A class has no film on some side.
    """
    present = set(zip(labels, splits, strict=True))
    for label in sorted(set(labels)):
        absent = [side for side in SPLITS if (label, side) not in present]
        if absent:
            raise UserError(
                f"class '{label}': must have films for training, validation and test, found none for {absent[0]}"
                f" among its {Counter(labels)[label]}{how_few(label, labels=labels, groups=groups, pixels=pixels)}",
                hint=hint or "bring more films (or patients) of it, or leave the class out",
            )


def how_few(label: str, *, labels: Sequence[str], groups: Sequence[str] = (), pixels: Sequence[str] = ()) -> str:
    """What makes the films of a class fewer than they seem: groups, and films that stand under another label too.

    Returns:
        A clause in brackets with a blank before it; empty where each film counts.
    """
    rows = [i for i, name in enumerate(labels) if name == label]
    told = []
    if groups and (many := len({groups[i] for i in rows})) < len(rows):
        told.append(f"{many} group{'' if many == 1 else 's'}: the films of a patient, or a film and its copies")
    if pixels:
        shown = {pixels[i] for i in rows}
        others = sorted({name for name, film in zip(labels, pixels, strict=True) if film in shown} - {label})
        if twice := len(set(conflicts(labels=labels, pixels=pixels)).intersection(rows)):
            told.append(f"{twice} show{'s' if twice == 1 else ''} what a film of {', '.join(others)} shows")
    return f" ({'; '.join(told)})" if told else ""


def conflicts(*, labels: Sequence[str], pixels: Sequence[str]) -> list[int]:
    """Films that also stand under another label.

    Args:
        labels: (N,) class of each film.
        pixels: (N,) name of what each film shows, equal for copies.

    Returns:
        Their indices, ascending.
    """
    labels_of: dict[str, set[str]] = defaultdict(set)
    for label, film in zip(labels, pixels, strict=True):
        labels_of[film].add(label)
    return [i for i, film in enumerate(pixels) if len(labels_of[film]) > 1]


def check_no_leak(*, groups: Sequence[str], splits: Sequence[str], names: Sequence[str]) -> None:
    """Refuse a split that has one group on two sides.

    Args:
        groups: (N,) group of each film.
        splits: (N,) side of each film.
        names: (N,) what to call each film in the message.

    Raises:
        Leak: Names the number of leaking groups and the first pair of films.
    """
    first: dict[str, int] = {}
    leaking: dict[str, tuple[int, int]] = {}
    for i, group in enumerate(groups):
        j = first.setdefault(group, i)
        if splits[j] != splits[i]:
            leaking.setdefault(group, (j, i))
    if leaking:
        j, i = next(iter(leaking.values()))
        raise Leak(
            f"split: the films of one patient, and copies of one film, must stand on one side, found {len(leaking)} "
            f"group(s) on two, first {names[j]} ({splits[j]}) and {names[i]} ({splits[i]})",
            hint="--resplit makes a new split without leaks",
        )
