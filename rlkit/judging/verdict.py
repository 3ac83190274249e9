"""From the text of a completion to the numbers of a verdict: find the JSON, clamp, snap.

A judge is a language model: it wraps JSON in fences, adds a sentence, writes "0.5" for 0.5 and 7.5 on a scale of
whole numbers. All that is read; a key that is missing or no number is not guessed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["clamp", "find_object", "grade", "number", "snap"]


def find_object(text: str) -> Mapping[str, Any]:
    """The last JSON object of `text` that is not inside another one: reasoning comes first, the verdict at the end.

    Raises `ValueError` if there is none.
    """
    decoder, found, start = json.JSONDecoder(), None, text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            found = value
        start = text.find("{", end)
    if not isinstance(found, dict):
        raise ValueError(f"no JSON object in {text[:80]!r}")
    return found


def number(values: Mapping[str, Any], key: str) -> float:
    """A finite number under `key`, also one written as text. Raises `ValueError` naming the key."""
    value = values.get(key)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key}: {values.get(key)!r} is not a number")
    return float(value)


def clamp(value: float, low: float, high: float) -> float:
    """The nearest number of [low, high]; `low` where `high` is below it."""
    return max(low, min(value, high))


def snap(value: float, levels: Iterable[float]) -> float:
    """The nearest level; of two equally near ones the lower, so that doubt never pays."""
    return min(sorted(levels), key=lambda level: round(abs(level - value), 9))


def grade(values: Mapping[str, Any], key: str, allowed: Iterable[str]) -> str:
    """A letter or word out of `allowed`, in any case. Raises `ValueError` naming the key."""
    names = {name.lower(): name for name in allowed}
    value = values.get(key)
    if not isinstance(value, str) or value.strip().lower() not in names:
        raise ValueError(f"{key}: {value!r} is not one of {', '.join(names.values())}")
    return names[value.strip().lower()]
