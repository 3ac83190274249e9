"""Search-P1's reward: the worked numbers T1 to T10 of search_p1 §6 in three variants, switches and edge cases."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkit.errors import RecipeError, RewardError
from rlkit.judging.path import PATH_JUDGE
from rlkit.metrics import finalise, metric, rollout_metrics
from rlkit.plugins import PluginSection, config_of
from rlkit.records import ScoredTree, Task
from rlkit.reward import Score, contract_of
from rlkit.rewards.evidence_agreement import agreement, evidence_agreement
from rlkit.rewards.path_centric import Tracks, path_centric, path_reward
from rlkit.rewards.search_format import search_format
from rlkit.rewards.search_p1 import SearchP1, search_p1, total_reward
from rlkit.rewards.soft_outcome import soft_outcome
from rlkit.rollout.judge import GROUP, Call, RewardSpec, judge, load
from rlkit.rollout.scoring import terms_of
from rlkit.search.path import Grade, Search, SearchPath
from rlkit.search.references import Reference
from rlkit.search.scores import Case, PathScores, rule_scores
from rlkit.settings import build
from rlkit.transcript import transcript, written
from tests.rewards.paths import path
from tests.rewards.search_paths import NOTHING, P1, O, alone, asked, searched

STEPS = ("Albert Einstein birthplace", "Albert Einstein Nobel Prize year")


def case(grade: Grade, answer: str | None, num_actions: int, num_reference: int) -> Case:
    found = tuple(Search(query=f"q{n}", turn=n, found=True) for n in range(num_actions))
    reference = Reference(steps=tuple(f"s{n}" for n in range(num_reference))) if num_reference else None
    return Case(
        task=Task(id="t", question="?", answers=("Ulm",)),
        path=SearchPath(plan=(), searches=found, answer=answer, grade=grade),
        reference=reference,
    )


def total(row: Row, **settings: Any) -> Score:
    scored, scores = row
    return total_reward(scored, scores, SearchP1(**settings), num_turns=5)


Row = tuple[Case, PathScores]


def row(rp: float, e: int, plan: int, a: int, c: int, m: int, outcome: str | tuple[float, float], grade: Grade) -> Row:
    right = outcome == "correct"
    accuracy, reasoning = (1.0, 1.0) if isinstance(outcome, str) else outcome
    scores = PathScores(
        planner_score=rp,
        model_plan_steps=plan,
        effective_steps_self=e,
        effective_steps_ref=c,
        outcome_accuracy_score=accuracy,
        outcome_reasoning_score=reasoning,
    )
    return case(grade, "Ulm" if right else "Bern" if outcome != "none" else None, a, m), scores


T = {
    # rp, e, P, A, c, m, outcome, format; S_self, S_ref, R_path, R_out, total; alg3: R_path, literal, once
    "T1": (row(1.0, 2, 2, 2, 2, 2, "correct", "full"), (1, 1, 1, 1, 1.000000, 1, 0.910000, 1.000000)),
    "T2": (row(1.0, 2, 2, 4, 2, 2, "correct", "full"), (0.5, 0.5, 0.5, 1, 0.850000, 1, 0.910000, 1.000000)),
    "T3": (
        row(1.2, 2, 3, 3, 2, 2, (0.5, 0.8), "full"),
        (0.533333, 0.666667, 0.666667, 0.56, 0.636000, 1, 0.646000, 0.736000),
    ),
    "T4": (row(1.2, 1, 1, 1, 1, 3, "correct", "full"), (1.2, 0.333333, 1.2, 1, 1.060000, 1.2, 0.970000, 1.060000)),
    "T5": (row(0.2, 0, 0, 2, 1, 2, (0, 0.5), "full"), (0, 0.25, 0.25, 0.10, 0.235000, 0.5, 0.220000, 0.310000)),
    "T6": (row(0.6, 1, 2, 2, 1, 2, (0, 0), "partial"), (0.15, 0.25, 0.25, 0, 0.125000, 0.5, 0.155000, 0.200000)),
    "T7": (row(1.0, 1, 1, 1, 1, 1, "none", "invalid"), (1, 1, 0, 0, 0, 0, 0, 0)),
    "T8": (row(1.0, 0, 1, 0, 0, 1, "correct", "invalid"), (0, 0, 0, 0, 0, 0, 0, 0)),
    "T9": (
        row(1.0, 2, 2, 3, 2, 2, "correct", "full"),
        (0.666667, 0.666667, 0.666667, 1, 0.900000, 1, 0.910000, 1.000000),
    ),
    "T10": (
        row(0.6, 2, 3, 4, 3, 4, (0.5, 1.0), "full"),
        (0.2, 0.5625, 0.5625, 0.60, 0.628750, 0.75, 0.595000, 0.685000),
    ),
}


@pytest.mark.parametrize("name", T)
def test_the_worked_numbers_of_the_paper_notes(name: str) -> None:
    given, (s_self, s_ref, r_path, r_out, eq_once, alg3_path, alg3_literal, alg3_once) = T[name]
    main = total(given)
    assert main.value == pytest.approx(eq_once, abs=1e-6)
    assert main.measured["s_self"] == pytest.approx(s_self, abs=1e-6)
    assert main.measured["s_ref"] == pytest.approx(s_ref, abs=1e-6)
    assert main.measured["path"] == pytest.approx(r_path, abs=1e-6)
    assert main.measured["outcome"] == pytest.approx(r_out, abs=1e-6)
    other = total(given, path_mode="alg3", format_scale="literal")
    assert other.value == pytest.approx(alg3_literal, abs=1e-6)
    assert other.measured["path"] == pytest.approx(alg3_path, abs=1e-6)
    assert total(given, path_mode="alg3").value == pytest.approx(alg3_once, abs=1e-6)


@pytest.mark.parametrize(
    ("switch", "value", "r_path"),
    [
        ({"reference_track": False}, 0.596, 0.533333),
        ({"self_track": False}, 0.636, 0.666667),
        ({"soft_outcome": False}, 0.3, 0.666667),
        ({"format_mode": "none"}, 0.536, 0.666667),
        ({"combine": "mean"}, 0.3 * 0.6 + 0.336 + 0.1, 0.6),  # (0.533333 + 0.666667) / 2
        ({"lambda_p": 0.0, "lambda_f": 0.0, "lambda_a": 1.0, "soft_outcome": False}, 0.0, 0.666667),  # exact match
        ({"self_track": False, "reference_track": False}, 0.436, 0.0),
    ],
)
def test_the_ablations_on_t3(switch: dict[str, Any], value: float, r_path: float) -> None:
    found = total(T["T3"][0], **switch)
    assert found.value == pytest.approx(value, abs=1e-6)
    assert found.measured["path"] == pytest.approx(r_path, abs=1e-6)


def test_the_least_that_is_not_zero_is_a_partial_format_and_nothing_else() -> None:
    nothing = row(0.2, 0, 0, 1, 0, 1, (0, 0), "partial")
    assert total(nothing).value == pytest.approx(0.05)
    assert total(nothing, path_mode="alg3", format_scale="literal").value == pytest.approx(0.005)


def test_an_excellent_plan_exceeds_one_unless_it_is_clipped() -> None:
    assert total(T["T4"][0], clip_path=True).value == pytest.approx(1.0)


def test_strict_format_pays_full_only_and_none_still_wants_an_answer() -> None:
    assert total(T["T6"][0], format_mode="strict").value == 0.0
    assert total(T["T1"][0], format_mode="strict").value == pytest.approx(1.0)
    assert total(T["T8"][0], format_mode="none").value == pytest.approx(0.6)  # only a missing answer is gated
    assert total(T["T7"][0], format_mode="none").value == 0.0


def test_what_a_judge_says_is_brought_into_its_range() -> None:
    said = {
        "planner_score": 0.9,
        "model_plan_steps": -3,
        "effective_steps_self": 9,
        "effective_steps_ref": 7,
        "outcome_accuracy_score": 0.75,
        "outcome_reasoning_score": 0.66,
    }
    wild = PATH_JUDGE.parse(said).clamped(case("full", "Bern", 1, 2))
    # 0.75 is as near to 0.5 as to 1: the lower one.
    assert (wild.planner_score, wild.outcome_accuracy_score, wild.outcome_reasoning_score) == (1.0, 0.5, 0.8)
    assert (wild.model_plan_steps, wild.effective_steps_self, wild.effective_steps_ref) == (0, 0, 2)
    # One broad query that covers both reference steps: (2/2)·min(1, 2/1) = 1, not 2.
    assert path_reward(wild, num_actions=1, num_reference=2, tracks=Tracks()).s_ref == 1.0


def test_a_judge_that_calls_a_wrong_answer_right_stays_in_the_soft_branch() -> None:
    given = row(1.0, 2, 2, 2, 2, 2, (1.0, 0.8), "full")
    assert total(given).measured["outcome"] == pytest.approx(0.96)  # 0.8·1 + 0.2·0.8


# ------------------------------------------------------------------ whole trajectories, by the rules


def run(*queries: str, settings: dict[str, Any] | None = None, steps: tuple[str, ...] = STEPS, **given: Any) -> Score:
    task = asked(*steps)
    return alone(search_p1, task, searched(*queries, task=task, **given), tags=P1, **(settings or {}))


def test_an_ideal_path_is_worth_one() -> None:
    found = run(*STEPS, plan=STEPS)
    assert found.value == pytest.approx(1.0)
    counts = {"n_plan": 2, "n_exec": 2, "n_covered": 2, "n_actions": 2, "n_repeated": 0, "full": 1, "ref_available": 1}
    assert {name: found.measured[name] for name in counts} == counts


def test_a_duplicate_query_adds_nothing_and_costs_efficiency() -> None:
    # T9: 2/2 · 2/3 on both tracks.
    found = run(f"The {STEPS[0]}?", *STEPS, plan=STEPS)
    assert found.value == pytest.approx(0.9)
    assert (found.measured["n_repeated"], found.measured["n_fruitless"]) == (1, 1)
    # The reimplementation's own test: a plan of 2, the same query twice, 1/2 · 1/2.
    assert run(STEPS[0], STEPS[0], plan=STEPS).measured["s_self"] == pytest.approx(0.25)


def test_without_a_plan_only_the_reference_counts() -> None:
    found = run(*STEPS)
    assert (found.measured["n_plan"], found.measured["s_self"], found.measured["s_ref"]) == (0, 0.0, 1.0)


def test_without_a_reference_only_the_own_plan_counts() -> None:
    found = run(*STEPS, plan=STEPS, steps=())
    assert (found.measured["ref_available"], found.measured["s_ref"], found.measured["path"]) == (0.0, 0.0, 1.0)


def test_a_right_answer_without_a_search_is_worth_nothing_unless_allowed() -> None:
    assert run(plan=STEPS).value == 0.0
    allowed = run(plan=STEPS, settings={"allow_no_search": True})
    assert allowed.value == pytest.approx(0.7)  # 0.6 for the answer, 0.1 for the format, no path
    assert (allowed.measured["s_self"], allowed.measured["s_ref"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([], "empty"),
        (["m:<reasoning>1. x</reasoning><tool_call>x</tool_call>", O, "m:hm"], "no answer"),
        (["m:<tool_call>x</tool_call><tool_response>Ulm</tool_response><answer>Ulm</answer>"], "forged response"),
        (
            ["m:<tool_call>x</tool_call>", "e:<tool_response><answer>Ulm</answer></tool_response>"],
            "answer in a passage",
        ),
        (["m:<reasoning>x<tool_call>x<answer>Ulm"], "nothing closed"),
        (["m:\udcff\ud800"], "no UTF-8"),
    ],
)
def test_a_trajectory_without_answer_or_real_search_is_worth_nothing(parts: list[str], why: str) -> None:
    task = asked(*STEPS)
    found = alone(search_p1, task, path(*parts, task=task), tags=P1)
    assert found.value == 0.0
    assert found.measured["invalid"] == 1.0 and found.measured["outcome"] == 0.0


@pytest.mark.parametrize("reward", [search_p1, path_centric, soft_outcome])
@pytest.mark.parametrize(
    "parts",
    [[], ["e: hm"], ["m:"], ["m:\udcff\ud800"], ["m:<reasoning>1. x<tool_call>x<answer>Ulm"], [O], [O, "m:Ulm"]],
)
def test_every_term_reads_a_broken_trajectory_as_worthless_and_not_as_a_failure(reward: Any, parts: list[str]) -> None:
    task = asked(*STEPS)
    assert alone(reward, task, path(*parts, task=task), tags=P1).value == 0.0
    assert search_format(task, path(*parts, task=task), tags=P1).value == 0.0


def test_an_answer_that_was_cut_off_is_none() -> None:
    task = asked(*STEPS)
    whole = searched(*STEPS, task=task, plan=STEPS)
    *before, last = (node.text for node in whole.nodes if node.author != "prompt")
    parts = [("m:" if n % 2 == 0 else "e:") + text for n, text in enumerate(before)]
    assert alone(search_p1, task, path(*parts, f"m:{last}", task=task), tags=P1).value == pytest.approx(1.0)
    cut = alone(search_p1, task, path(*parts, f"m:{last[:-3]}", task=task), tags=P1)  # "...Ulm</ans"
    assert (cut.value, cut.measured["invalid"], cut.measured["n_covered"]) == (0.0, 1.0, 2.0)


def test_a_plan_longer_than_the_budget_is_allowed_and_pays_for_what_is_carried_out() -> None:
    found = run(*STEPS, plan=(*STEPS, "a1", "b1", "c1"), steps=())
    # An average plan, two of five steps, both searches useful: 0.6·2/5·2/2.
    assert (found.measured["planner_score"], found.measured["s_self"]) == pytest.approx((0.6, 0.24))


def test_an_empty_list_of_reference_steps_is_no_reference() -> None:
    task = Task(id="t", question="?", answers=("Ulm",), data={"reference": {"ref_steps": []}})
    found = alone(search_p1, task, searched("red fox", task=task, plan=("red fox",)), tags=P1)
    assert (found.measured["ref_available"], found.measured["s_ref"], found.value) == pytest.approx((0.0, 0.0, 1.0))


def test_a_search_that_found_nothing_is_an_action_but_not_a_step() -> None:
    task = asked("x")
    parts = ["m:<reasoning>1. x</reasoning><tool_call>x</tool_call>", NOTHING, "m:<answer>Ulm</answer>"]
    found = alone(search_p1, task, path(*parts, task=task), tags=P1)
    assert (found.measured["n_actions"], found.measured["n_exec"], found.measured["n_covered"]) == (1, 0, 0)
    assert found.value == pytest.approx(0.7)


def test_a_sloppy_trajectory_loses_half_of_the_format() -> None:
    assert run(*STEPS, plan=STEPS, stray=" so ").value == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("plan", "score"),
    [
        ((), 0.2),
        (("a", "b"), 1.0),
        (("a", "b", "c", "d"), 1.0),
        (("a b", "c", "d", "e", "f"), 0.6),  # longer than the budget
        (("red fox", "The red fox!"), 0.6),  # says one thing twice
    ],
)
def test_the_rules_grade_a_plan_by_its_form_and_never_as_excellent(plan: tuple[str, ...], score: float) -> None:
    given = case("full", "Ulm", 1, 1)
    path_with = SearchPath(plan=plan, searches=given.path.searches, answer="Ulm", grade="full")
    assert rule_scores(Case(task=given.task, path=path_with, reference=None)).planner_score == score


@pytest.mark.parametrize(
    ("answer", "accuracy"),
    [("It is Ulm, in Germany", 1.0), ("Eddie Argos band", 0.5), ("Bern", 0.0), ("The", 0.0)],
)
def test_the_rules_grade_a_wrong_answer_by_its_words(answer: str, accuracy: float) -> None:
    # "Eddie Argos band" and "Eddie Argos singer" share 2 words of 3: F1 2/3.
    given = case("full", answer, 1, 0)
    task = Task(id="t", question="?", answers=("Ulm", "Eddie Argos singer", "The"))
    scores = rule_scores(Case(task=task, path=given.path, reference=None))
    assert scores.outcome_accuracy_score == accuracy


@pytest.mark.parametrize(("covered", "reasoning"), [(4, 1.0), (3, 0.8), (2, 0.5), (1, 0.5), (0, 0.0)])
def test_the_rules_grade_the_reasoning_by_the_reference(covered: int, reasoning: float) -> None:
    # Four steps, four searches: S_ref = (c/4)², that is 1, 0.5625, 0.25, 0.0625, 0.
    steps = ("red", "green", "blue", "black")
    found = tuple(Search(query=step, turn=n, found=n < covered) for n, step in enumerate(steps))
    read = SearchPath(plan=(), searches=found, answer="Bern", grade="full")
    scores = rule_scores(Case(task=Task(id="t", question="?"), path=read, reference=Reference(steps=steps)))
    assert scores.outcome_reasoning_score == reasoning


def test_any_accepted_answer_is_right_and_containment_is_not_exact() -> None:
    task = asked(*STEPS, answers=("Bern", "Ulm"))
    assert alone(search_p1, task, searched(*STEPS, task=task), tags=P1).measured["outcome"] == 1.0
    wordy = searched(*STEPS, task=task, answer="It was Ulm")
    assert alone(search_p1, task, wordy, tags=P1).measured["outcome"] == 1.0  # 0.8·1 + 0.2·1: S_ref is 1
    assert alone(search_p1, task, wordy, tags=P1, soft_outcome=False).measured["outcome"] == 0.0


def test_three_rewards_in_a_recipe_add_up_to_the_whole() -> None:
    for queries, rest in (
        ((STEPS[0], *STEPS), {"plan": STEPS, "answer": "It was Ulm"}),
        (STEPS[:1], {"stray": " so ", "answer": "Bern"}),
        (STEPS, {"answer": None}),
        ((), {}),
    ):
        task = asked(*STEPS)
        trajectory = searched(*queries, task=task, **rest)  # type: ignore[arg-type]
        apart = (
            0.3 * alone(path_centric, task, trajectory, tags=P1).value
            + 0.6 * alone(soft_outcome, task, trajectory, tags=P1).value
            + 0.1 * search_format(task, trajectory, tags=P1).value
        )
        assert apart == pytest.approx(alone(search_p1, task, trajectory, tags=P1).value)


def test_turns_get_what_they_added_and_add_up_to_the_path() -> None:
    found = run(STEPS[0], STEPS[0], STEPS[1], plan=STEPS, settings={"turn_credit": True})
    assert found.turns is not None
    # R_path after each search: 1/2·1/1, 1/2·1/2, 2/2·2/3; times 0.3.
    assert found.turns[:3] == pytest.approx((0.15, -0.075, 0.125))
    assert math.isnan(found.turns[3])
    assert sum(found.turns[:3]) == pytest.approx(0.3 * found.measured["path"])
    fruitless = run(STEPS[0], "weather in Paris", plan=STEPS, settings={"turn_credit": True})
    assert fruitless.turns is not None and fruitless.turns[1] == pytest.approx(-0.075)


PARTS = st.sampled_from([
    "m:<reasoning>1. red fox 2. fox den</reasoning><tool_call>red fox</tool_call>", "m:<tool_call>red fox</tool_call>",
    "m:<tool_call>fox den</tool_call>", "m:<tool_call>weather</tool_call>", "m:<tool_call>red",
    "m:<answer>Ulm</answer>", "m:<answer>Bern</answer>", O, NOTHING, "e: again ",
])  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(PARTS, max_size=9), end=st.integers(0, 9), mode=st.sampled_from(["eq", "alg3"]))
def test_what_is_said_of_a_turn_depends_on_nothing_that_comes_after_it(parts: list[str], end: int, mode: str) -> None:
    task = asked("red fox", "fox den")
    while end < len(parts) and parts[end].startswith("e:"):
        end += 1  # a turn ends with what the environment said
    for reward in (search_p1, path_centric):
        whole, beginning = (
            alone(reward, task, path(*some, task=task), tags=P1, turn_credit=True, path_mode=mode).turns
            for some in (parts, parts[:end])
        )
        assert whole is not None and beginning is not None
        assert whole[: len(beginning)] == pytest.approx(beginning, nan_ok=True)


def test_a_gate_takes_back_what_the_turns_before_it_earned() -> None:
    lost = run(*STEPS, plan=STEPS, answer=None, settings={"turn_credit": True})
    assert lost.turns is not None
    assert (lost.value, *lost.turns) == pytest.approx((0.0, 0.15, 0.15))  # what remains after them is -0.3


def test_a_late_plan_counts_from_its_turn_on() -> None:
    task = asked()
    late = path(
        "m:<tool_call>red fox</tool_call>", O,
        "m:<reasoning>1. red fox\n2. fox den</reasoning><tool_call>fox den</tool_call>", O,
        "m:<answer>Ulm</answer>", task=task,
    )  # fmt: skip
    found = alone(path_centric, task, late, tags=P1, turn_credit=True)
    assert found.value == 1.0 and found.turns is not None and found.turns[:2] == pytest.approx((0.0, 1.0))


def test_other_tag_names_are_other_words() -> None:
    task = asked(*STEPS)
    assert alone(search_p1, task, searched(*STEPS, task=task)).value == 0.0


def test_a_task_without_answers_is_an_error_and_not_a_zero() -> None:
    task = asked(*STEPS, answers=())
    for reward in (search_p1, soft_outcome):
        assert contract_of(reward).needs_answers
        with pytest.raises(RewardError, match="no accepted answers"):
            reward(task, [searched(*STEPS, task=task)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 1.5}, r"rewards\[0\].alpha: 1.5 is not in \[0, 1\]"),
        ({"lambda_p": -1}, r"rewards\[0\].lambda_p: -1.0 is below 0"),
        ({"path_mode": "eqq"}, r"rewards\[0\].path_mode: 'eqq' .* did you mean 'eq'"),
        ({"refrence_track": False}, r"rewards\[0\].refrence_track: unknown setting; did you mean 'reference_track'"),
        ({"tags": {"serch": "x"}}, r"rewards\[0\].tags.serch: unknown setting; did you mean 'search'"),
    ],
)
def test_wrong_settings_are_refused_when_a_recipe_is_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(config_of(search_p1), settings, "rewards[0]")


def test_settings_travel_by_name() -> None:
    made = build(config_of(search_p1), {"tags": {"think": "reasoning"}}, "rewards[0]")
    spec = "rlkit.rewards.search_p1:search_p1"
    section = PluginSection(family="rewards", kind="search_p1", spec=spec, folder=".", settings=made)
    assert section.keywords["tags"].think == "reasoning"
    assert contract_of(search_p1).bounds is not None


def test_bounds_follow_from_the_settings() -> None:
    bounds: Any = contract_of(search_p1).bounds
    assert bounds() == pytest.approx((0.0, 1.06))
    assert bounds(path_mode="alg3", format_scale="literal") == pytest.approx((0.0, 0.97))
    assert bounds(clip_path=True) == pytest.approx((0.0, 1.0))


# ------------------------------------------------------------------ what is logged


def group_of(task: Task, *paths: tuple[tuple[str, ...], str | None]) -> ScoredTree:
    """A group of (queries, answer), scored as in training."""
    spec = RewardSpec(name="search_p1", spec="rlkit.rewards.search_p1:search_p1", settings={"tags": P1})
    tree = transcript(task, *(written(searched(*queries, task=task, answer=answer)) for queries, answer in paths))
    outcomes = judge(load(spec)[0], tree, GROUP)
    return ScoredTree(tree=tree, terms=terms_of([spec], tree, [Call(reward=0, leaf=GROUP)], [outcomes]))


def test_the_correlation_of_path_and_exact_match_is_that_inside_groups_that_differ_in_both() -> None:
    task, half = asked(*STEPS), STEPS[:1]
    # R_path 0 (gated), 1/2, 1, 1/2 and exact match 0, 1, 1, 0: Σxy = 1/2, Σxx = 1/2, Σyy = 1, r = 1/√2.
    mixed = group_of(task, (STEPS, None), (half, "Ulm"), (STEPS, "Ulm"), (half, "Bern"))
    # R_path 1/2, 1 and exact match 1, 0: r = -1.
    against = group_of(task, (half, "Ulm"), (STEPS, "Bern"))
    all_right = group_of(task, (half, "Ulm"), (STEPS, "Ulm"), (STEPS, "Ulm"))
    all_alike = group_of(task, (half, "Ulm"), (half, "Bern"), (half, "Ulm"))
    pairs = rollout_metrics([mixed, against, all_right, all_alike], learner_version=0)
    assert pairs["reward/search_p1/path_em/mean"][1] == 6  # four trajectories and two, of twelve
    assert finalise(pairs)["reward/search_p1/path_em/mean"] == pytest.approx((4 / math.sqrt(2) - 2) / 6)
    assert "reward/search_p1/path_em/mean" not in finalise(rollout_metrics([all_right], learner_version=0))


def test_every_number_beside_the_reward_has_its_own_entry_in_the_dictionary_of_metrics() -> None:
    measured = run(*STEPS, plan=STEPS).measured
    units = {name: metric(f"reward/search_p1/{name}/mean").unit for name in measured}
    assert set(units.values()) == {"reward", "share", "steps", "searches", "Pearson's r"}
    assert {name: units[name] for name in ("path", "full", "n_plan", "n_actions", "path_em")} == {
        "path": "reward", "full": "share", "n_plan": "steps", "n_actions": "searches", "path_em": "Pearson's r",
    }  # fmt: skip


# ------------------------------------------------------------------ evidence agreement


def test_agreement_is_the_mean_jaccard_of_all_pairs() -> None:
    assert agreement([{"a", "b", "c"}, {"b", "c", "d"}, {"a", "c"}]) == pytest.approx(0.472222, abs=1e-6)
    assert agreement([set(), set()]) == 1.0
    assert agreement([{"a"}, set()]) == 0.0


def test_evidence_is_the_passages_that_a_group_saw() -> None:
    def saw(text: str) -> Any:
        return path("m:<tool_call>x</tool_call>", f"e:<tool_response>{text}</tool_response>", "m:<answer>y</answer>")

    group = [saw("Doc 1 a\nDoc 2 b"), saw("Doc 1 a\nDoc 2 c")]
    assert evidence_agreement(group[0].task, group, tags=P1) == pytest.approx([1 / 3, 1 / 3])
