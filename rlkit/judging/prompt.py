"""What a judge is asked: a template with slots, filled so that what fills a slot cannot pose as the template.

A judge is a template and a parser: a path judge (search_p1 §4.5), a pairwise judge with bands (adqa §3.3), and a
reward's own are the same machinery.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

__all__ = ["Judge", "Question"]

V = TypeVar("V")
SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, kw_only=True)
class Judge(Generic[V]):
    """A template and a parser of what comes back."""

    name: str
    """In the cache and in messages."""
    template: str
    """The prompt; `{slot}` is filled from the question, any other brace stands for itself."""
    parse: Callable[[Mapping[str, Any]], V]
    """The JSON object of the answer -> the verdict, clamped and snapped; raises `ValueError` for one it cannot read."""

    @property
    def slots(self) -> tuple[str, ...]:
        """Names that a question has to fill, in order of appearance."""
        return tuple(dict.fromkeys(SLOT.findall(self.template)))

    def prompt(self, question: Question) -> str:
        """The template with its slots filled in one pass: braces inside a value are never filled again.

        Each value stands between two marks that hold a hash of it, so no value can close its own block: to write the
        mark it would have to contain its own hash.
        """
        missing = [slot for slot in self.slots if slot not in question.slots]
        if missing:
            raise ValueError(f"judge {self.name}: the question fills no {', '.join(missing)}")
        return SLOT.sub(lambda match: _block(match[1], question.slots[match[1]]), self.template)


def _block(slot: str, value: str) -> str:
    clean = value.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate has no place in JSON
    mark = f"{slot} {hashlib.sha256(clean.encode()).hexdigest()[:12]}"
    return f"<<<{mark}\n{clean}\n{mark}>>>"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One thing to judge."""

    id: str
    """Of the task."""
    trajectory: str
    """What is judged, as text; its hash is half of the cache's key."""
    slots: Mapping[str, str] = field(default_factory=dict)
    """Value of each slot of the template, the trajectory's own among them."""

    @cached_property
    def trajectory_hash(self) -> str:
        """SHA-256 of the trajectory's text."""
        return hashlib.sha256(self.trajectory.encode("utf-8", "surrogatepass")).hexdigest()

    @cached_property
    def context_hash(self) -> str:
        """SHA-256 of everything else that the judge reads: reference, gold answers, materials."""
        return hashlib.sha256(json.dumps(sorted(self.slots.items())).encode()).hexdigest()
