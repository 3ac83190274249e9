"""The logical clock: what is decided, and that nothing but the reports of whole rounds decides it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkit.randomness import stream
from rlkit.rollout.schedule import Limits, Schedule


def schedule(**limits: float) -> Schedule:
    return Schedule(limits=Limits(**({"groups_per_step": 2, "steps": 10, "max_staleness": 1} | limits)))  # type: ignore[arg-type]


def numbers(plan: Schedule) -> list[int]:
    return [number for number, _ in plan.startable()]


def test_one_version_of_staleness_keeps_one_step_of_groups_under_way() -> None:
    plan = schedule()
    plan.resume(0)
    assert plan.startable() == [(0, 0), (1, 0)]
    plan.report(0, ended=True)
    assert plan.startable() == [(1, 0)]
    plan.report(1, ended=False)
    assert plan.clock == 1
    # Draw 0 waits, so a third group would be one that no step needs yet.
    assert plan.startable() == [(1, 1)]
    plan.report(1, ended=True)
    assert plan.complete is not None
    assert plan.complete.groups == (0, 1)
    assert plan.complete.rounds == 2
    assert [(e.event, e.number, e.clock) for e in plan.complete.entries] == [
        ("drawn", 0, 0),
        ("drawn", 1, 0),
        ("arrived", 0, 1),
        ("arrived", 1, 2),
    ]
    assert plan.startable() == []  # everything rests until the engines have new weights
    plan.resume(0)
    assert numbers(plan) == [2, 3]


def test_the_order_of_reports_within_a_round_changes_nothing() -> None:
    found = []
    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        plan = schedule(max_staleness=2)
        plan.resume(0)
        for number in order:
            plan.report(number, ended=number in (1, 3))
        assert plan.complete is not None
        found.append(plan.complete)
    assert found[0] == found[1]
    assert found[0].groups == (1, 3)
    assert found[0].open == (0, 2)


def test_a_group_goes_one_round_ahead_only_where_the_missing_reports_cannot_complete_a_step() -> None:
    plan = schedule(groups_per_step=3, max_staleness=1)
    plan.resume(0)
    plan.report(0, ended=False)
    # Draws 1 and 2 are unknown: even if both end now, two groups are no step of three.
    assert plan.startable() == [(0, 1), (1, 0), (2, 0)]
    plan.report(0, ended=False)
    assert plan.startable() == [(1, 0), (2, 0)]  # two rounds ahead is too far
    plan.report(1, ended=True)
    plan.report(2, ended=True)
    assert plan.clock == 2  # only draw 0 is under way, and it has reported round 2
    assert plan.startable() == [(0, 2)]


def test_the_longest_rollout_delays_no_step_but_its_last() -> None:
    plan = schedule(max_staleness=2)
    plan.resume(0)
    assert numbers(plan) == [0, 1, 2, 3]  # draws of version 0: trained in step 3 at the latest
    waited = []
    for version in (0, 1):
        while plan.complete is None:
            for number in numbers(plan):
                plan.report(number, ended=number != 0)  # draw 0 never ends
        waited.append(plan.complete.groups)
        plan.resume(version)
    assert waited == [(1, 2), (3, 4)]
    for _ in range(5):  # step 3 waits for it, however many others are ready
        for number in numbers(plan):
            plan.report(number, ended=number != 0)
    assert plan.complete is None
    plan.report(0, ended=True)
    assert plan.complete is not None and 0 in plan.complete.groups


def test_with_over_sampling_the_longest_is_dropped_instead() -> None:
    plan = schedule(max_staleness=1, over_sampling=0.5)
    plan.resume(0)
    assert numbers(plan) == [0, 1, 2]  # one and a half times two
    steps = []
    for version in (0, 1):
        while plan.complete is None:
            for number in numbers(plan):
                plan.report(number, ended=number != 0)
        steps.append(plan.complete)
        plan.resume(version)
    # Version 0 may be trained in steps 1 and 2.
    assert steps[0].given_up == ()
    assert steps[1].given_up == (0,)
    assert [e.reason for e in steps[1].entries if e.event == "dropped"] == ["stale"]


def test_what_cannot_be_trained_on_is_replaced_and_after_ten_times_a_step_ends_without() -> None:
    plan = schedule(steps=1)
    plan.resume(0)
    while plan.complete is None:
        for number in numbers(plan):
            plan.report(number, ended=True, reason="equal_rewards")
    assert plan.complete.groups == ()
    assert sum(entry.event == "dropped" for entry in plan.complete.entries) == 20


def test_the_end_of_the_run_begins_no_group_in_vain() -> None:
    plan = schedule(max_staleness=3, steps=4)
    plan.resume(0)
    drawn = 0
    for version in range(4):
        while plan.complete is None:
            for number in numbers(plan):
                plan.report(number, ended=True)
        drawn += sum(entry.event == "drawn" for entry in plan.complete.entries)
        if version < 3:
            plan.resume(version)
    assert drawn == 8 and plan.complete.open == ()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(1, 4),
    staleness=st.integers(1, 4),
    over=st.sampled_from([0.0, 0.5]),
    drops=st.booleans(),
)
def test_any_order_of_reports_gives_the_same_steps_within_the_bound(
    seed: int, size: int, staleness: int, over: float, drops: bool
) -> None:
    def rounds(number: int) -> int:
        draw = stream("rounds", seed, number)
        return int(draw.integers(1, 4)) * (6 if draw.integers(5) == 0 else 1)

    def play(order: int) -> list[object]:
        chance = stream("order", seed, order)
        plan = schedule(groups_per_step=size, max_staleness=staleness, over_sampling=over, steps=6)
        begun: dict[int, int] = {}  # draw -> version that it began with
        found: list[object] = []
        running: dict[int, int] = {}
        for step in range(1, 7):
            version = max(step - 2, 0)
            plan.resume(version)
            while plan.complete is None:
                for number, done in plan.startable():
                    running.setdefault(number, done)
                    begun.setdefault(number, version)
                number = sorted(running)[int(chance.integers(len(running)))]
                done = running.pop(number) + 1
                ended = done >= rounds(number)
                dropped = "equal" if drops and ended and number % 3 == 0 else None
                plan.report(number, ended=ended, reason=dropped)
            assert not running, "a group went on while weights changed"
            assert all(step - 1 - begun[number] <= staleness for number in plan.complete.groups)
            if not over and not drops:
                assert len(plan.complete.groups) == size
                assert plan.complete.given_up == ()
            found.append(plan.complete)
        return found

    assert play(0) == play(1)


def test_a_schedule_goes_on_behind_its_state() -> None:
    plan = schedule(max_staleness=2)
    plan.resume(0)
    for number in numbers(plan):
        plan.report(number, ended=number < 2)
    state = plan.state()
    again = schedule(max_staleness=2)
    again.restore(state)
    for one in (plan, again):
        one.resume(1)
    assert again.startable() == plan.startable() == [(2, 1), (3, 1), (4, 0), (5, 0)]


def test_a_schedule_needs_a_step_before_it_can_be_saved() -> None:
    plan = schedule()
    plan.resume(0)
    with pytest.raises(AssertionError):
        plan.state()
