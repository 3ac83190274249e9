"""Bad rewards, each bad in one way, and good ones that look suspicious. `test_zoo.py` says who is refused for what."""

from __future__ import annotations

import concurrent.futures
import math
import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from rlkit.errors import RewardError
from rlkit.records import Task, Trajectory
from rlkit.reward import Score, contract, per_group

seen = 0


def _right(task: Task, trajectory: Trajectory) -> float:
    return float(trajectory.answer in task.answers)


# Speaks of turns.


def praises_turns_of_a_right_answer(task: Task, trajectory: Trajectory) -> Score:
    """Every search before a right answer was a good one: known only in the end."""
    value = _right(task, trajectory)
    return Score(value=value, turns=(value / len(trajectory.turns),) * len(trajectory.turns))


def falls_silent_without_an_answer(task: Task, trajectory: Trajectory) -> Score:
    turns = tuple(0.1 if turn.observation else math.nan for turn in trajectory.turns)
    return Score(value=_right(task, trajectory), turns=None if trajectory.answer is None else turns)


def praises_turns_that_found_something(task: Task, trajectory: Trajectory) -> Score:
    """Good: a turn and what it brought, nothing later."""
    turns = tuple(0.1 if turn.observation else math.nan for turn in trajectory.turns)
    return Score(value=_right(task, trajectory), turns=turns)


# Paid for what the policy did not do.


def reads_retrieved_text(task: Task, trajectory: Trajectory) -> float:
    """Finds the accepted answer anywhere in the response, passages included."""
    return float(any(answer in trajectory.response for answer in task.answers))


def reads_tags_in_passages(task: Task, trajectory: Trajectory) -> float:
    """Takes the last answer tag of the whole response."""
    found = re.findall(r"<answer>(.*?)</answer>", trajectory.response, re.DOTALL)
    return float(any(answer in task.answers for answer in found))


def believes_typed_observations(task: Task, trajectory: Trajectory) -> float:
    """Reads passages wherever they stand, also where the model typed them."""
    passages = re.findall(r"<information>(.*?)</information>", trajectory.completion, re.DOTALL)
    return _right(task, trajectory) + 0.5 * any(task.answers[0] in passage for passage in passages)


def pays_for_length(task: Task, trajectory: Trajectory) -> float:
    return _right(task, trajectory) + min(len(trajectory.completion) / 10_000, 0.2)


def pays_for_long_answers(task: Task, trajectory: Trajectory) -> float:
    return math.log1p(len(trajectory.answer or ""))


def pays_for_every_search(task: Task, trajectory: Trajectory) -> float:
    return _right(task, trajectory) + 0.1 * trajectory.signals.get("num_searches", 0)


def pays_for_turns(task: Task, trajectory: Trajectory) -> Score:
    return Score(value=min(0.1 * len(trajectory.turns), 1.0))


def counts_the_answer(task: Task, trajectory: Trajectory) -> float:
    """The more often the answer names its own first word, the better."""
    words = (trajectory.answer or "").split()
    return float(words.count(words[0])) if words else 0.0


# Failures that hide.


def timeout_is_zero(task: Task, trajectory: Trajectory) -> float:
    try:
        socket.create_connection(("127.0.0.1", 9), timeout=0.1).close()
    except OSError:
        return 0.0
    return 1.0


def slow_solver_is_zero(task: Task, trajectory: Trajectory) -> float:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        try:
            return pool.submit(_right, task, trajectory).result(timeout=2)
        except TimeoutError:
            return 0.0


def slow_program_is_half(task: Task, trajectory: Trajectory) -> float:
    try:
        subprocess.run(["true"], timeout=5, check=True)
    except subprocess.TimeoutExpired:
        return 0.5
    return _right(task, trajectory)


def alarm_is_zero(task: Task, trajectory: Trajectory) -> float:
    def late(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    try:
        signal.alarm(2)
        return _right(task, trajectory)
    except TimeoutError:
        return 0.0
    finally:
        signal.alarm(0)


@contract(fallback=True)
def fallback_is_a_constant(task: Task, trajectory: Trajectory) -> float:
    return timeout_is_zero(task, trajectory) + 0.5


# Values that are none, or not the same.


def is_nan_without_answer(task: Task, trajectory: Trajectory) -> float:
    return math.nan if trajectory.answer is None else _right(task, trajectory)


def crashes_without_answer(task: Task, trajectory: Trajectory) -> float:
    return float(trajectory.answer.strip() in task.answers)  # type: ignore[union-attr]


def is_text(task: Task, trajectory: Trajectory) -> Any:
    return "high"


def never_judges(task: Task, trajectory: Trajectory) -> float:
    raise RewardError("task.data['rubric'] is missing")


def is_random(task: Task, trajectory: Trajectory) -> float:
    return random.random()


def depends_on_the_process(task: Task, trajectory: Trajectory) -> float:
    return float(os.getpid() % 1000)


def counts_its_calls(task: Task, trajectory: Trajectory) -> float:
    global seen
    seen += 1
    return float(seen)


@contract(invariant=("group_order",))
@per_group
def first_comes_first(task: Task, trajectories: Sequence[Trajectory]) -> list[float]:
    return [1.0 / (1 + index) for index in range(len(trajectories))]


@per_group
def loses_one(task: Task, trajectories: Sequence[Trajectory]) -> list[float]:
    return [1.0] * (len(trajectories) - 1)


# Broken promises.


@contract(bounds=(0, 1))
def is_out_of_bounds(task: Task, trajectory: Trajectory) -> dict[str, float]:
    return {"right": _right(task, trajectory), "brevity": 2.0 - len(trajectory.completion) / 10_000}


@contract(bounds=lambda *, scale, **_: (0, scale / 2))
def is_out_of_bounds_that_depend_on_settings(task: Task, trajectory: Trajectory, *, scale: float = 2.0) -> float:
    return scale * _right(task, trajectory)


@contract(invariant=("whitespace",))
def minds_white_space(task: Task, trajectory: Trajectory) -> float:
    return _right(task, trajectory)


@contract(invariant=("answer_order",))
def knows_the_first_answer_only(task: Task, trajectory: Trajectory) -> float:
    return float(trajectory.answer == task.answers[0])


@contract(invariant=("turn_order",))
def minds_the_order_of_searches(task: Task, trajectory: Trajectory) -> float:
    return float("birthplace" in trajectory.turns[0].completion.partition("<search>")[2])


@contract(monotone={"answer": "up"})
def prefers_wrong_answers(task: Task, trajectory: Trajectory) -> float:
    return 1.0 - _right(task, trajectory)


@contract(monotone={"num_searches": "down"})
def likes_searches(task: Task, trajectory: Trajectory) -> float:
    return min(trajectory.signals.get("num_searches", 0.0), 3.0)


# What ends a process.


def hangs(task: Task, trajectory: Trajectory) -> float:
    time.sleep(60)
    return 1.0


def is_slow_on_long_texts(task: Task, trajectory: Trajectory) -> float:
    words = trajectory.completion.split()
    if len(words) > 1000:
        time.sleep(60)
    return 1.0


def exits(task: Task, trajectory: Trajectory) -> float:
    os._exit(3)


def phones_home(task: Task, trajectory: Trajectory) -> float:
    socket.create_connection(("192.0.2.1", 80), timeout=0.2).close()
    return 1.0


# Good ones.


@contract(bounds=(0, 1), invariant=("whitespace", "turn_order"), monotone={"answer": "up", "num_searches": "down"})
def honest(task: Task, trajectory: Trajectory) -> float:
    searches = trajectory.signals.get("num_searches", 0.0)
    accepted = {" ".join(answer.lower().split()) for answer in task.answers}
    return float(" ".join((trajectory.answer or "").lower().split()) in accepted) / (1 + searches)


LENGTH = "it measures length"


@contract(exempt={"length": LENGTH, "repetition": LENGTH, "forgery": LENGTH}, bounds=(0, math.inf))
def measures_length(task: Task, trajectory: Trajectory) -> float:
    return float(len(trajectory.completion))


def timeout_is_a_failure(task: Task, trajectory: Trajectory) -> float:
    if trajectory.answer is None:
        return 0.0
    try:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return pool.submit(_right, task, trajectory).result(timeout=5)
    except TimeoutError:
        raise RewardError("the solver timed out") from None


@contract(fallback=True)
def timeout_has_a_fallback(task: Task, trajectory: Trajectory) -> float:
    try:
        return timeout_is_a_failure(task, trajectory)
    except RewardError:
        return _right(task, trajectory)


@contract(invariant=("group_order",))
@per_group
def shortest_wins(task: Task, trajectories: Sequence[Trajectory]) -> list[float | RewardError]:
    shortest = min(len(t.completion) for t in trajectories)
    return [
        float(len(t.completion) == shortest) if t.answer is not None else RewardError("no answer to compare")
        for t in trajectories
    ]
