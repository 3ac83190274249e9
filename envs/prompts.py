"""Prompts of the search environments, in our words, and how their slots are filled.

Slots: {question}, and the tag names {think}, {search}, {information}, {answer}, {plan}.
"""

from __future__ import annotations

import string
from collections.abc import Sequence

from rlkit.errors import nearest
from rlkit.tags import ROLES, Tags

__all__ = ["PROMPTS", "check_template", "fill"]

SEARCH_R1 = """\
Answer the question below. Each time you learn something new, first reason about it between <{think}> and \
</{think}>. If you find that you lack knowledge, ask a search engine: write one query between <{search}> and \
</{search}>, and the best results are returned between <{information}> and </{information}>. You may search \
as often as you like. When you need nothing more, give the answer alone, without explanations, between \
<{answer}> and </{answer}>. For example, <{answer}> Beijing </{answer}>.
Question: {question}
"""
"""Search-R1: reason, search freely, answer (search_p1 §10)."""

SEARCH_P1 = """\
You are a careful research assistant who answers questions by searching in several rounds. Your duties:
1. In your first turn, between <{think}> and </{think}>, split the question into a numbered list of \
sub-questions, each of which may depend on the answers before it. Then work on one at a time.
2. Search once per turn: write one query between <{search}> and </{search}>. The results are returned \
between <{information}> and </{information}>; check whether they suffice.
3. Do not guess. If the results are incomplete, search again.
4. Only when you know everything that is needed, give the answer alone between <{answer}> and </{answer}>.
Question: {question}
"""
"""Search-P1: an explicit plan first (search_p1 §4.3)."""

SEARCH_P1_PLAN = """\
You are a careful research assistant who answers questions by searching in several rounds. Your duties:
1. First, between <{plan}> and </{plan}>, split the question into a numbered list of searches, each of which may \
depend on the results before it. Then reason between <{think}> and </{think}> and work on one at a time.
2. Search once per turn: write one query between <{search}> and </{search}>. The results are returned \
between <{information}> and </{information}>; check whether they suffice.
3. Do not guess. If the results are incomplete, search again.
4. Only when you know everything that is needed, give the answer alone between <{answer}> and </{answer}>.
Question: {question}
"""
"""Search-P1 with a tag for the plan, which is easier to write and to read (search_p1 §4.1, `plan_tag`)."""

SHORT = """\
Use <{search}>words</{search}> to search. Then give a short <{answer}>answer</{answer}>.
Question: {question}"""
"""For models of some hundred million parameters, which long instructions confuse."""

PROMPTS = {"search_r1": SEARCH_R1, "search_p1": SEARCH_P1, "search_p1_plan": SEARCH_P1_PLAN, "short": SHORT}
"""Prompts that a recipe can name."""


def fill(template: str, tags: Tags, **slots: str) -> str:
    """The template with tag names and `slots` in their places."""
    return template.format(**{role: getattr(tags, role) for role in ROLES}, **slots)


def check_template(setting: str, template: str, *, required: Sequence[str] = (), optional: Sequence[str] = ()) -> None:
    """Raise `ValueError` where `fill` would fail or a required slot is missing; tag names may stand anywhere."""
    try:
        slots = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise ValueError(f"{setting}: {template!r}: {error}; write {{{{ for a brace") from error
    known = (*required, *optional, *ROLES)
    for slot in sorted(slots - {*known}):
        raise ValueError(f"{setting}: {{{slot}}} is not a slot{nearest(slot, known)}")
    missing = ", ".join(f"{{{slot}}}" for slot in required if slot not in slots)
    if missing and " " not in template:  # the name of a prompt, misspelt
        raise ValueError(f"{setting}: unknown {template!r}{nearest(template, PROMPTS)}")
    if missing:
        raise ValueError(f"{setting}: {template!r} lacks {missing}")
