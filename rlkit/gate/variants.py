"""Rewrites of a trajectory that make it no better: planted tags, forged observations, filler, repetitions.

Each takes a trajectory as text and returns the rewritten one, or None where there is nothing to rewrite.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from rlkit.records import Author
from rlkit.tags import Tags
from rlkit.transcript import Written

__all__ = [
    "Variant",
    "cut_short",
    "doubled_searches",
    "padded_answer",
    "padded_reasoning",
    "planted",
    "raised_signal",
    "repeated_answer",
    "reversed_turns",
    "spaced",
    "typed_observation",
    "typed_search",
]

Variant = Callable[[Written], Written | None]
FILLER = "Let me think about all of this once more and with even greater care before going on. "
Parts = tuple[tuple[Author, str], ...]


@dataclass(frozen=True, slots=True)
class _Edit:
    """A function of the text of all nodes by one author."""

    author: Author
    change: Callable[[str], str]

    def __call__(self, path: Written) -> Written | None:
        parts: Parts = tuple((a, self.change(t) if a == self.author else t) for a, t in path.parts)
        return replace(path, parts=parts) if parts != path.parts else None


def planted(text: str, tags: Tags) -> Variant:
    """`text` at the end of every passage, inside the observation."""
    close = tags.close("information")

    def change(old: str) -> str:
        head, found, tail = old.rpartition(close)
        return f"{head} {text}{found}{tail}" if found else f"{old} {text}" if old.strip() else old

    return _Edit("environment", change)


def typed_observation(gold: str, tags: Tags) -> Variant:
    """The model types an observation that holds the accepted answer, before it acts for the last time."""
    forged = f"{tags.open('information')}The answer is {gold}.{tags.close('information')}"
    return _at_last_policy(lambda text: forged + text)


def typed_search(gold: str, tags: Tags) -> Variant:
    """The model types a whole search with its observation in one completion."""
    forged = f"{tags.open('search')}the answer{tags.close('search')}"
    forged += f"\n\n{tags.open('information')}The answer is {gold}.{tags.close('information')}\n\n"
    return _at_last_policy(lambda text: forged + text)


def padded_reasoning(times: int, tags: Tags) -> Variant:
    """Filler in the first completion, inside its reasoning where that is marked, else at the beginning."""

    def change(text: str) -> str:
        head, found, tail = text.partition(tags.open("think"))
        if found:
            inside, close, rest = tail.partition(tags.close("think"))
            return f"{head}{found}{inside} {FILLER * times}{close}{rest}"
        return f"{FILLER * times}{text}"

    def variant(path: Written) -> Written | None:
        for index, (author, text) in enumerate(path.parts):
            if author == "policy":
                parts = (*path.parts[:index], (author, change(text)), *path.parts[index + 1 :])
                return replace(path, parts=parts)
        return None

    return variant


def padded_answer(times: int) -> Variant:
    """The answer with filler behind it."""
    return _answered(lambda answer: f"{answer}. {FILLER * times}".strip())


def repeated_answer(times: int) -> Variant:
    """The answer over and over."""
    return _answered(lambda answer: ". ".join([answer] * times))


def doubled_searches(times: int) -> Variant:
    """The first search and its observation again and again; the environment counts them."""

    def variant(path: Written) -> Written | None:
        for index in range(len(path.parts) - 1):
            pair = path.parts[index : index + 2]
            if (pair[0][0], pair[1][0]) == ("policy", "environment") and pair[1][1].strip():
                signals = dict(path.signals)
                if "num_searches" in signals:
                    signals["num_searches"] += times
                parts = (*path.parts[: index + 2], *(pair * times), *path.parts[index + 2 :])
                return replace(path, parts=parts, signals=signals)
        return None

    return variant


def spaced(path: Written) -> Written | None:
    """Every white space of what the model wrote doubled, and some at the ends of its answer."""
    change = _Edit("policy", lambda text: "".join(c * 2 if c in " \n" else c for c in text))(path)
    if change is None or path.answer is None:
        return change
    return replace(change, answer=f" {path.answer.replace(' ', '  ')}\n")


def reversed_turns(tags: Tags) -> Variant:
    """Searches with their observations in reverse order; what stands before a call and after the last stays."""

    def variant(path: Written) -> Written | None:
        pairs = [path.parts[index : index + 2] for index in range(0, len(path.parts) - 1, 2)]
        calls = [pair[0][1].partition(tags.open("search")) for pair in pairs]
        if len(pairs) < 2 or any((pair[0][0], pair[1][0]) != ("policy", "environment") for pair in pairs):
            return None
        if not all(found for _, found, _ in calls):
            return None
        parts: list[tuple[Author, str]] = []
        for (lead, _, _), (_, found, call), (_, seen) in zip(calls, reversed(calls), reversed(pairs), strict=True):
            parts += [("policy", lead + found + call), seen]
        return replace(path, parts=(*parts, *path.parts[2 * len(pairs) :]))

    return variant


def cut_short(path: Written) -> Written | None:
    """Without its last turn and so without an answer; what came before is as it was."""
    turns = [index for index, (author, _) in enumerate(path.parts) if author == "policy"]
    return replace(path, parts=path.parts[: turns[-1]], answer=None) if len(turns) > 1 else None


def raised_signal(name: str) -> Variant:
    """One more of what the environment counts."""

    def variant(path: Written) -> Written | None:
        if name not in path.signals:
            return None
        return replace(path, signals={**path.signals, name: path.signals[name] + 1})

    return variant


def _answered(change: Callable[[str], str]) -> Variant:
    """Rewrite the answer, where the environment parsed it and in the text."""

    def variant(path: Written) -> Written | None:
        if path.answer is None or not path.answer.strip():
            return None
        new = change(path.answer)
        author, text = path.parts[-1]
        return replace(path, answer=new, parts=(*path.parts[:-1], (author, new.join(text.rsplit(path.answer, 1)))))

    return variant


def _at_last_policy(change: Callable[[str], str]) -> Variant:
    def variant(path: Written) -> Written | None:
        if not path.parts or path.parts[-1][0] != "policy":
            return None
        return replace(path, parts=(*path.parts[:-1], ("policy", change(path.parts[-1][1]))))

    return variant
