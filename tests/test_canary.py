"""The canary in whole runs with planted faults, and its arithmetic by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from benchmarks.canary import FAULTS, run
from rlkit.canary import Canary, sighted
from rlkit.data.packing import Batch
from rlkit.errors import SyncError
from rlkit.policy.base import Sampling
from rlkit.policy.tiny import tiny_model
from rlkit.records import Leaf, Node, SamplingState, ScoredTree, Task, Tree
from rlkit.rollout.probe import Question, Shown

STEPS = [(1, -2.5), (2, -3.0), (3, -2.5), (4, -2.5)]
PRINTS = {"tokenizer": "a", "chat template": "b"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_ends_the_run_and_is_named(name: str, model: Path, tmp_path: Path) -> None:
    seen = run(model, tmp_path / "run", FAULTS[name], 10)
    assert seen.ended
    assert FAULTS[name].blamed in seen.first


@pytest.mark.parametrize("override", ["rollout.top_p=0.8", "rollout.max_staleness=2", "model.dtype=bfloat16"])
def test_a_clean_run_raises_no_alarm_and_every_step_is_compared(override: str, model: Path, tmp_path: Path) -> None:
    seen = run(model, tmp_path / "run", None, 5, override)
    assert not seen.ended and not seen.breaches
    assert (
        len(seen.differences) >= 4
    )  # the first rollouts of an asynchronous run may have no tree of the newest weights
    assert max(seen.differences) < (0.05 if "bfloat16" in override else 1e-5)


class Scores:
    """A learner that gives every token the same log-prob."""

    version = 7

    def __init__(self, value: float) -> None:
        self.value = value

    def score(self, batch: Batch, sizes: Sequence[int], which: Literal["policy", "reference"]) -> list[Any]:
        return [np.full(size, self.value) for size in sizes]


def tree(version: int = 7) -> ScoredTree:
    """Two prompt tokens, three sampled ones with log-probs -1, -2, -3."""
    nodes = (
        Node(parent=-1, author="prompt", token_ids=np.array([1, 2], np.int32)),
        Node(
            parent=0,
            author="policy",
            token_ids=np.array([3, 4, 5], np.int32),
            behavior_logprobs=np.array([-1, -2, -3], np.float32),
            policy_version=version,
            sampling=SamplingState(),
        ),
    )
    leaf = Leaf(node=1, sample_index=0, status="done")
    return ScoredTree(tree=Tree(task=Task(id="t", question="?"), nodes=nodes, leaves=(leaf,)), terms=())


def canary(tolerance: float, tokens: int = 2, prints: Mapping[str, str] = PRINTS) -> Canary:
    def look(question: Question) -> list[Shown]:
        return [Shown(prints=prints)]

    return Canary(
        prints=PRINTS,
        look=look,
        digests=lambda learner: {},
        tokens=tokens,
        tolerance=tolerance,
        sampling=Sampling(),
    )


def test_the_difference_is_the_mean_over_the_last_sampled_tokens() -> None:
    # the last two: |-2.5 + 2| + |-2.5 + 3| = 1 over 2 tokens
    seen = canary(0.6).watch(1, [tree()], Scores(-2.5))
    assert seen == {"canary/difference": (1.0, 2.0), "canary/breaches": (0.0, 1.0)}


def test_the_third_breach_in_a_row_ends_the_run_and_a_clean_step_starts_the_count_anew() -> None:
    one = canary(0.4, tokens=1)
    # one token, the last: -2.5 is wrong by 0.5, -3 is right
    breaches = [one.watch(step, [tree()], Scores(value))["canary/breaches"][0] for step, value in STEPS]
    assert breaches == [1, 0, 1, 1]
    with pytest.raises(SyncError, match=r"step 5: .* differ by 0\.5 nats, more than 0\.4"):
        one.watch(5, [tree()], Scores(-2.5))


def test_a_score_that_is_no_number_is_a_breach() -> None:
    assert canary(0.4).watch(1, [tree()], Scores(float("nan")))["canary/breaches"] == (1.0, 1.0)


def test_another_template_ends_the_run_at_once() -> None:
    with pytest.raises(SyncError, match="the chat template of rollout worker 0 is not the learner's"):
        canary(0.4, prints=PRINTS | {"chat template": "c"}).watch(1, [tree()], Scores(-2.0))


def test_trees_of_older_weights_are_not_compared_with_newer_ones() -> None:
    assert sighted([tree(version=6)], version=7, tokens=2, key=1) is None
    assert canary(0.4).watch(1, [tree(version=6)], Scores(-9.0)) == {}
