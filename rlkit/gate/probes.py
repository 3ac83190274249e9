"""Groups of trajectories to try a reward on: what a model writes on good days, on bad days and to cheat.

The same protocol as the environments': tags with the names that reward or recipe use, observations between the
information tags, answers parsed by the environment.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlkit.records import Task, Tree
from rlkit.tags import Tags
from rlkit.transcript import Written, transcript

__all__ = ["PROBE_TASK", "groups", "huge", "wrong_answer"]

PROBE_TASK = Task(
    id="probe",
    question="Who founded the harbour town where the painter Mira Solberg was born?",
    answers=("Eddie Argos", "Argos, Eddie"),
    data={"supporting_titles": ["Mira Solberg", "Dunmere"], "ref_steps": ["birthplace of Mira Solberg", "founder"]},
)
"""A question of two hops, where nothing else is given."""
NUM_TURNS = 2000
"""Searches of the trajectory that a deadline is tried on."""
NUM_CHARACTERS = 20_000
"""Of an answer that a deadline is tried on: about five thousand tokens."""


def wrong_answer(task: Task) -> str:
    """Text that is no accepted answer and shares no word with one."""
    taken = " ".join(task.answers).lower()
    return next(word for word in ("Ludwig Prantl", "Osaka", "seventeen", "zzz qqq") if word.lower() not in taken)


def groups(tags: Tags, tasks: Sequence[Task] = ()) -> list[Tree]:
    """Three groups per task: a single attempt, honest ones, broken ones. Without tasks, `PROBE_TASK`."""
    found = []
    for task in tasks or (PROBE_TASK,):
        gold = task.answers[0] if task.answers else "Eddie Argos"
        honest = _honest(tags, task, gold)
        # The single one first: a reward that hangs costs one deadline.
        found += [transcript(task, honest[0]), transcript(task, *honest), transcript(task, *_broken(tags, gold))]
    return found


def _honest(tags: Tags, task: Task, gold: str) -> list[Written]:
    other = wrong_answer(task)
    first, second = _search(tags, "birthplace of Mira Solberg"), _search(tags, "founder of Dunmere")
    plan = f"{tags.open('think')}1. birthplace of Mira Solberg\n2. founder of Dunmere{tags.close('think')}"
    seen = _passages(tags, "Mira Solberg was a painter. She was born in Dunmere.")
    read = _passages(tags, "Dunmere is a harbour town on the northern coast. It was founded long ago.")
    done = f"{tags.open('think')}Both parts are known.{tags.close('think')}"

    def path(answer: str, *turns: tuple[str, str], lead: str = plan, signals: float) -> Written:
        parts = [part for call, text in turns for part in (("policy", lead + call), ("environment", text))]
        for index in range(2, len(parts), 2):
            parts[index] = ("policy", parts[index][1].removeprefix(lead))
        last = f"{done}{_answer(tags, answer)}"
        closing = ("policy", last if turns else lead + last)
        return Written(parts=(*parts, closing), answer=answer, signals={"num_searches": signals})  # type: ignore[arg-type]

    return [
        path(gold, (first, seen), (second, read), signals=2),
        path(other, (first, seen), (second, read), signals=2),
        path(other, (first, seen), lead="", signals=1),
        path(gold, lead="", signals=0),
        path(other, lead="", signals=0),
    ]


def _broken(tags: Tags, gold: str) -> list[Written]:
    call = _search(tags, "founder of Dunmere")
    odd = "\ud800\x00\u202e émigré 日本 \U0001f600"
    return [
        Written(parts=(("policy", ""),), answer=None, status="truncated"),
        Written(parts=(("policy", f"{tags.open('think')}It goes on and on"),), answer=None, status="truncated"),
        Written(parts=(("policy", tags.open("search") * 50 + tags.close("answer") * 50 + "(((" * 50),), answer=None),
        Written(parts=(("policy", call), ("environment", _passages(tags, odd)), ("policy", odd)), answer=odd),
        Written(parts=(("policy", call), ("environment", _passages(tags, "")), ("policy", call)), answer=None),
        Written(parts=(("policy", _answer(tags, " ")),), answer=" "),
        Written(parts=(("policy", f"{gold} {tags.open('answer')}{gold}"),), answer=None),
    ]


def huge(tags: Tags, task: Task) -> list[Tree]:
    """What a deadline is tried on: thousands of searches, a very long word, and text made to trip up patterns."""
    call, seen = _search(tags, "founder of Dunmere"), _passages(tags, "Dunmere is a harbour town.")
    other = wrong_answer(task)
    last = ("policy", _answer(tags, other))
    searches = [
        part
        for turn in range(NUM_TURNS)
        for part in (("policy", call.replace("founder", f"founder {turn}")), ("environment", seen))
    ]
    long = Written(parts=(*searches, last), answer=other, signals={"num_searches": float(NUM_TURNS)})  # type: ignore[arg-type]
    texts = [(piece * NUM_CHARACTERS)[:NUM_CHARACTERS] for piece in ("x", " ", "a.a", "<", tags.open("think"))]
    return [transcript(task, long)] + [
        transcript(task, Written(parts=(("policy", text + _answer(tags, text)),), answer=text)) for text in texts
    ]


def _search(tags: Tags, query: str) -> str:
    return f"{tags.open('search')}{query}{tags.close('search')}"


def _passages(tags: Tags, text: str) -> str:
    return f"\n\n{tags.open('information')}{text}{tags.close('information')}\n\n"


def _answer(tags: Tags, text: str) -> str:
    return f"{tags.open('answer')}{text}{tags.close('answer')}"
