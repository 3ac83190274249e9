"""What holds for every reward on a trajectory's text, whatever a model wrote."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkit.plugins import TABLES, load_object
from tests.rewards.paths import TASK, path

KINDS = ("exact_match", "containment", "f1", "format")
PIECES = st.sampled_from(["<search>", "</search>", "<answer>", "</answer>", "</think>", "x", " ", "\ud800", "é"])
TEXT = st.lists(PIECES, max_size=6).map("".join)
PARTS = st.lists(st.tuples(st.sampled_from(["m:", "e:"]), TEXT).map("".join), max_size=4)


@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_keyword_only_and_have_defaults(kind: str) -> None:
    first, second, *rest = inspect.signature(load_object(TABLES["rewards"][kind])).parameters.values()
    assert (first.name, second.name) == ("task", "trajectory")
    assert all(each.kind is each.KEYWORD_ONLY and each.default is not each.empty for each in rest)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(parts=PARTS, answer=st.none() | TEXT)
def test_any_trajectory_has_a_value_from_0_to_1_that_repeats(kind: str, parts: list[str], answer: str | None) -> None:
    reward = load_object(TABLES["rewards"][kind])
    value = reward(TASK, path(*parts, answer=answer))
    assert 0.0 <= value <= 1.0
    assert reward(TASK, path(*parts, answer=answer)) == value
