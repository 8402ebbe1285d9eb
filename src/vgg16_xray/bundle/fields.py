"""What each value of a bundle's configuration must be. One that breaks its rule is one line that names the field."""

from __future__ import annotations

import base64
import math
import reprlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from vgg16_xray.errors import UserError
from vgg16_xray.films.nonfilms import VERDICTS
from vgg16_xray.trust.calibrate import SCORES
from vgg16_xray.trust.refuse import LOOKS

#: Length of the embedding that the graphs give.
EMBEDDED = 1024
#: A SHA-256 in hexadecimal.
HEXADECIMAL, DIGITS = frozenset("0123456789abcdef"), 64


def found(value: Any) -> str:
    """A value as an error shows it: its beginning, however long it is."""
    return reprlib.repr(value)[:80]


def require(holds: bool, name: str, rule: str, value: Any) -> None:
    """Refuse a value.

    Raises:
        UserError: The rule does not hold.
    """
    if not holds:
        raise UserError(f"{name}: must be {rule}, found {found(value)}")


def is_number(value: Any, low: float, high: float) -> bool:
    """Whether it is a number from `low` to `high`; of a whole number without end too."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_object(value: Any) -> bool:
    """Whether it is an object of JSON."""
    return isinstance(value, Mapping)


def one_of(value: Any, name: str, names: Collection[str]) -> None:
    """Refuse what is none of some names."""
    require(isinstance(value, str) and value in names, name, f"one of {', '.join(names)}", value)


def text(value: Any, name: str, *, most: int = 200) -> None:
    """Refuse what is no text, or a long one."""
    require(isinstance(value, str) and len(value) <= most, name, f"text of at most {most} characters", value)


def hashes(value: Mapping[str, Any], name: str, files: Collection[str]) -> None:
    """Refuse hashes of other files than a bundle's, and what is no hash."""
    for file, digest in value.items():
        require(file in files, name, f"hashes of a bundle's files ({', '.join(files)})", file)
        whole = isinstance(digest, str) and len(digest) == DIGITS and set(digest) <= HEXADECIMAL
        require(whole, f"{name}.{file}", f"{DIGITS} hexadecimal digits", digest)


def conformal(value: Any, classes: int) -> None:
    """Refuse what :func:`vgg16_xray.trust.calibrate.fit_conformal` does not give; None is no conformal set."""
    if value is None:
        return
    require(is_object(value), "conformal", "an object or null", value)
    one_of(value.get("score"), "conformal.score", SCORES)
    by_class, alpha = value.get("by_class"), value.get("alpha")
    require(isinstance(by_class, bool), "conformal.by_class", "true or false", by_class)
    require(is_number(alpha, 0, 1) and 0 < alpha < 1, "conformal.alpha", "above 0 and below 1", alpha)
    _numbers(value.get("thresholds"), "conformal.thresholds", classes, 0, 1)
    _numbers(value.get("films"), "conformal.films", classes, 0, math.inf)


def refusal(value: Any, labels: Sequence[str]) -> None:
    """Refuse what :func:`vgg16_xray.trust.refuse.fit` does not give; None refuses nothing."""
    if value is None:
        return
    require(is_object(value), "refusal", "an object or null", value)
    film: Any = value.get("film")
    evidence: Any = value.get("evidence")
    of = value.get("labels")
    require(is_object(film), "refusal.film", "an object", film)
    require(is_object(evidence), "refusal.evidence", "an object", evidence)
    directions = _embedding(film, "refusal.film")
    inputs = LOOKS + directions + 2
    _packed(film, "refusal.film.deviations", (directions,), above_0=True)
    _packed(film, "refusal.film.mean", (inputs,))
    _packed(film, "refusal.film.scale", (inputs,), above_0=True)
    _packed(film, "refusal.film.weights", (inputs, len(VERDICTS)))
    _packed(film, "refusal.film.bias", (len(VERDICTS),))
    threshold, rate = film.get("threshold"), value.get("rate")
    require(is_number(threshold, 0, 1), "refusal.film.threshold", "a number from 0 to 1", threshold)
    _numbers(evidence.get("thresholds"), "refusal.evidence.thresholds", len(labels), 0, 1)
    require(is_number(rate, 0, 1), "refusal.rate", "a number from 0 to 1", rate)
    require(isinstance(of, list) and of == list(labels), "refusal.labels", "the labels in their order", of)
    validation = value.get("validation")
    require(is_object(validation), "refusal.validation", "an object", validation)
    if (shift := value.get("shift")) is not None:
        require(is_object(shift), "refusal.shift", "an object or null", shift)
        _packed(shift, "refusal.shift.reference", (None, _embedding(shift, "refusal.shift")))


def _embedding(of: Mapping[str, Any], name: str) -> int:
    """Check what places an embedding; returns the number of directions."""
    _packed(of, f"{name}.centre", (EMBEDDED,))
    _packed(of, f"{name}.spread", (EMBEDDED,), above_0=True)
    return _packed(of, f"{name}.directions", (EMBEDDED, None))[1]


def _numbers(value: Any, name: str, count: int, low: float, high: float) -> None:
    """Refuse what is no list of so many numbers."""
    rule = f"{count} numbers from {low:g}" + ("" if high == math.inf else f" to {high:g}") + ", one a class"
    holds = isinstance(value, list) and len(value) == count and all(is_number(one, low, high) for one in value)
    require(holds, name, rule, value)


def _packed(
    of: Mapping[str, Any], name: str, shape: tuple[int | None, ...], *, above_0: bool = False
) -> tuple[int, ...]:
    """Refuse what is no array as :func:`vgg16_xray.trust.refuse.packed` writes it; returns its shape."""
    value: Any = of.get(name.rsplit(".", 1)[1])
    rule = f"an array of {' x '.join('any' if n is None else str(n) for n in shape)} in half precision"
    require(is_object(value), name, rule, value)
    given: Any = value.get("shape")
    whole = isinstance(given, list) and len(given) == len(shape) and all(type(n) is int and n > 0 for n in given)
    fits = whole and all(n in (None, m) for n, m in zip(shape, given, strict=True))
    require(fits, f"{name}.shape", f"that of {rule}", given)
    try:
        data = base64.b64decode(value.get("float16"), validate=True)
    except (TypeError, ValueError):
        data = b""
    size = 2 * math.prod(given)
    require(len(data) == size, f"{name}.float16", f"base64 of {size:,} bytes", value.get("float16"))
    values = np.frombuffer(data, dtype="<f2")
    require(bool(np.isfinite(values).all()), f"{name}.float16", "finite numbers", "NaN or infinity")
    require(not above_0 or bool((values > 0).all()), f"{name}.float16", "numbers above 0", float(values.min()))
    return tuple(given)
