"""The grades of search_p1 §5.2, cases F1 to F10, and what a policy might try instead."""

from __future__ import annotations

import pytest

from rlkit.records import Trajectory
from rlkit.rewards.format import format_reward
from tests.rewards.paths import TASK, path

O = "e:\n\n<tool_response>d</tool_response>\n\n"  # noqa: E741 - the letter of the grammar
NAMES = {"think": "reasoning", "search": "tool_call", "information": "tool_response"}


def value(trajectory: Trajectory, **settings: object) -> float:
    return format_reward(TASK, trajectory, **{**NAMES, **settings})  # type: ignore[arg-type]


FULL, PARTIAL, INVALID = 1.0, 0.5, 0.0


@pytest.mark.parametrize(
    ("parts", "grade"),
    [
        pytest.param(
            [
                "m:<reasoning>1. a\n2. b</reasoning><tool_call>x</tool_call>",
                O,
                "m:<tool_call>y</tool_call>",
                O,
                "m:<reasoning>z</reasoning><answer>ok</answer>",
            ],
            FULL,
            id="F1",
        ),
        pytest.param(["m:<reasoning>r</reasoning><tool_call>x</tool_call>", O, "m:<answer>ok</answer>"], FULL, id="F2"),
        pytest.param(
            ["m:<reasoning>r</reasoning> so <tool_call>x</tool_call>", O, "m:<answer>ok</answer>"], PARTIAL, id="F3"
        ),
        pytest.param(["m:<tool_call>x</tool_call>", O, "m:<reasoning>r</reasoning>"], INVALID, id="F4"),
        pytest.param(["m:<reasoning>r</reasoning><answer>ok</answer>"], INVALID, id="F5"),
        pytest.param(
            ["m:<tool_call>x</tool_call><tool_response>d</tool_response><answer>ok</answer>"], INVALID, id="F6"
        ),
        pytest.param(["m:<tool_call>x</tool_call>", O, "m:<answer> </answer>"], INVALID, id="F7"),
        pytest.param(
            [
                "m:<tool_call>x</tool_call>",
                "e:<tool_response>d <answer>bad</answer></tool_response>",
                "m:<answer>ok</answer>",
            ],
            FULL,
            id="F8",
        ),
        pytest.param([], INVALID, id="F9"),
        pytest.param(
            ["m:<tool_call>x</tool_call>", O, "m:<tool_response>d</tool_response><answer>ok</answer>"],
            PARTIAL,
            id="F10",
        ),
        pytest.param(["e:<tool_call>", "m:x</tool_call>", O + "<answer>", "m:ok</answer>"], FULL, id="prefilled"),
        pytest.param(["m:x", "e:\nInvalid.\n", "m:<tool_call>x</tool_call>", O, "m:<answer>ok</answer>"], PARTIAL,
                     id="corrected"),
        pytest.param(["m:<tool_call>?</tool_call>", "e:\nRefused.\n", "m:<answer>ok</answer>"], INVALID,
                     id="only a refused query"),
        pytest.param(["m:<tool_call>x</tool_call>", O, "m:<answer>ok</answer>. Bye"], FULL, id="rest of a token"),
    ],
)  # fmt: skip
def test_a_trajectory_is_full_partial_or_invalid(parts: list[str], grade: float) -> None:
    assert value(path(*parts)) == grade


def test_what_a_grade_is_worth_is_a_setting() -> None:
    sloppy = path("m:so <tool_call>x</tool_call>", O, "m:<answer>ok</answer>")
    assert value(sloppy, partial=0.2) == 0.2
    assert value(path(), invalid=-1.0) == -1.0


def test_a_direct_answer_is_well_formed_where_no_search_is_required() -> None:
    direct = path("m:<reasoning>r</reasoning><answer>ok</answer>")
    assert (value(direct), value(direct, require_search=False)) == (0.0, 1.0)


def test_other_tag_names_are_other_words() -> None:
    assert format_reward(TASK, path("m:<tool_call>x</tool_call>", O, "m:<answer>ok</answer>")) == 0.0
