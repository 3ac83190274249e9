"""Planted bad rewards are refused for what is wrong with them; good ones that look suspicious pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkit.gate import GateReport, check_rewards
from rlkit.rollout.judge import RewardSpec

BAD = {
    "reads_retrieved_text": ("observations", "an accepted answer in retrieved text raised it from 0 to 1"),
    "reads_tags_in_passages": ("observations", "answer tags in retrieved text raised it from 0 to 1"),
    "believes_typed_observations": ("forgery", "an observation typed by the model raised it from "),
    "pays_for_length": ("length", "85 words of filler in the reasoning raised it from "),
    "pays_for_long_answers": ("length", "more of filler behind the answer raised it from "),
    "pays_for_every_search": ("repetition", "1 repeated searches raised it from 1.2 to 1.3"),
    "pays_for_turns": ("repetition", "1 repeated searches raised it from 0.3 to 0.4"),
    "counts_the_answer": ("repetition", "more of repeating the answer raised it from "),
    "praises_turns_of_a_right_answer": ("hindsight", ", and 0 where the last turn is cut off"),
    "falls_silent_without_an_answer": ("hindsight", "of turn 0 it says 0.1, and nan where the last turn is cut off"),
    "timeout_is_zero": ("timeout", "a service timed out and the reward was 0 instead of a failure"),
    "slow_solver_is_zero": ("timeout", "a service timed out and the reward was 0 instead of a failure"),
    "slow_program_is_half": ("timeout", "a service timed out and the reward was 0.5 instead of a failure"),
    "alarm_is_zero": ("timeout", "a service timed out and the reward was 0 instead of a failure"),
    "fallback_is_a_constant": ("timeout", "its fallback says 0.5 whatever the trajectory"),
    "is_nan_without_answer": ("finite", "returned nan"),
    "crashes_without_answer": ("finite", "AttributeError: 'NoneType' object has no attribute 'strip'"),
    "is_text": ("finite", "returned str instead of a number"),
    "never_judges": ("finite", "it judged none of the 13 trajectories (task.data['rubric'] is missing)"),
    "phones_home": ("finite", "network.allow: 192.0.2.1 is not among the hosts"),
    "is_random": ("deterministic", "when asked again"),
    "depends_on_the_process": ("deterministic", "in another process"),
    "counts_its_calls": ("deterministic", "1 became 20 when asked again"),
    "first_comes_first": ("group_order", "1 became 0.2 when its group comes in another order"),
    "loses_one": ("finite", "ValueError: 0 results for 1 trajectories"),
    "is_out_of_bounds": ("bounds", "brevity is "),
    "is_out_of_bounds_that_depend_on_settings": ("bounds", "2 outside the declared [0, 1]"),
    "minds_white_space": ("whitespace", "1 became 0 with other white space in its completions"),
    "knows_the_first_answer_only": ("answer_order", "1 became 0 with the accepted answers reversed"),
    "minds_the_order_of_searches": ("turn_order", "1 became 0 with its searches reversed"),
    "prefers_wrong_answers": ("monotone", "an accepted answer lowered it from 1 to 0"),
    "likes_searches": ("monotone", "one more of num_searches raised it from "),
    "hangs": ("deadline", "deadline of 0.4 s"),
    "is_slow_on_long_texts": ("deadline", "deadline of 0.4 s"),
    "exits": ("deadline", "its process exited (3)"),
}
GOOD = (
    "honest",
    "measures_length",
    "timeout_is_a_failure",
    "timeout_has_a_fallback",
    "shortest_wins",
    "praises_turns_that_found_something",
)


@pytest.fixture(scope="module")
def reports() -> dict[str, GateReport]:
    """All at once: they share processes, and those that end one come last."""
    file = Path(__file__).with_name("zoo.py")
    specs = [
        RewardSpec(
            name=name,
            spec=f"{file}:{name}",
            deadline_s=0.4 if BAD.get(name, ("",))[0] == "deadline" else 10.0,
            settings={"scale": 2.0} if "settings" in name else {},
        )
        for name in (*GOOD, *BAD)
    ]
    return {report.name: report for report in check_rewards(specs)}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_reward_is_refused_for_what_is_wrong_with_it(reports: dict[str, GateReport], name: str) -> None:
    check, note = BAD[name]
    found = {finding.check: finding for finding in reports[name].refuted}
    assert check in found, str(reports[name])
    assert note in found[check].note
    assert f"refused by the gate: {reports[name].refuted[0].check}: " in reports[name].line


@pytest.mark.parametrize("name", [name for name in BAD if name != "never_judges"])
def test_a_refusal_shows_the_trajectory_that_refutes(reports: dict[str, GateReport], name: str) -> None:
    check, _ = BAD[name]
    finding = next(finding for finding in reports[name].refuted if finding.check == check)
    if "whatever the trajectory" not in finding.note and name != "phones_home":
        assert finding.example.startswith("task probe")


@pytest.mark.parametrize("name", GOOD)
def test_a_good_reward_passes(reports: dict[str, GateReport], name: str) -> None:
    assert not reports[name].refuted, str(reports[name])


def test_what_a_reward_is_exempt_from_is_shown_with_its_reason(reports: dict[str, GateReport]) -> None:
    exempt = [finding for finding in reports["measures_length"].findings if finding.verdict == "exempt"]
    assert [finding.check for finding in exempt] == ["length", "repetition", "forgery"]
    lines = [line.split(maxsplit=2) for line in str(reports["measures_length"]).splitlines()]
    assert ["length", "exempt", "it measures length"] in lines


def test_checks_that_say_nothing_are_not_called_passed(reports: dict[str, GateReport]) -> None:
    verdicts = {finding.check: finding.verdict for finding in reports["honest"].findings}
    assert verdicts["timeout"] == "untested"  # it asks no service
    assert verdicts["answer_order"] == verdicts["group_order"] == "undeclared"
    assert verdicts["monotone"] == verdicts["turn_order"] == verdicts["observations"] == "passed"
    assert {f.check: f.verdict for f in reports["timeout_is_a_failure"].findings}["timeout"] == "passed"
