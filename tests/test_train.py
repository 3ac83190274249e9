"""The loop with parts of paper: what is drawn, dropped, trained, skipped, saved, and how it gives up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlkit.algorithms import dapo, grpo
from rlkit.checkpoint import CheckpointStore
from rlkit.config import load
from rlkit.data.packing import Batch
from rlkit.errors import CheckpointError, DataError, LearnerError
from rlkit.learner.learner import UpdateReport
from rlkit.recorder import Recorder, read_metrics
from rlkit.records import Leaf, Node, RewardTerm, SamplingState, ScoredTree, Task, Tree
from rlkit.rollout.build import tasks_of
from rlkit.rollout.ledger import Draw, Ledger, TaskStream
from rlkit.rollout.loop import RolloutSettings
from rlkit.sync.base import SyncReport
from rlkit.train import Parts, gather, train

ROOT = Path(__file__).parent.parent
NAN = float("nan")


def tree_of(task: Task, rewards: Sequence[float]) -> ScoredTree:
    """A prompt with one two-token answer per reward; NaN is a failed reward."""
    nodes = [Node(parent=-1, author="prompt", token_ids=np.array([1, 2, 3], np.int32))]
    for _ in rewards:
        nodes.append(
            Node(
                parent=0,
                author="policy",
                token_ids=np.array([4, 5], np.int32),
                behavior_logprobs=np.zeros(2, np.float32),
                policy_version=0,
                sampling=SamplingState(),
            )
        )
    leaves = tuple(Leaf(node=i + 1, sample_index=i, status="done") for i in range(len(rewards)))
    status = tuple("ok" if np.isfinite(r) else "failed: planted" for r in rewards)
    term = RewardTerm(name="hit", weight=1.0, values=np.array(rewards, float), status=status)
    return ScoredTree(tree=Tree(task=task, nodes=tuple(nodes), leaves=leaves), terms=(term,))


class Collector:
    """Rewards by task id; everything else is [1, 0]."""

    def __init__(self, rewards: dict[str, list[float]] | None = None, default: Sequence[float] = (1.0, 0.0)) -> None:
        self.rewards, self.default = rewards or {}, default

    def collect(self, tasks: Sequence[Task | Draw], settings: RolloutSettings) -> list[ScoredTree]:
        plain = [task.task if isinstance(task, Draw) else task for task in tasks]
        return [tree_of(task, self.rewards.get(task.id, list(self.default))) for task in plain]


class PaperLearner:
    """Counts updates; `refused` are the versions whose update is not finite."""

    def __init__(self, refused: Sequence[int] = ()) -> None:
        self.version, self.refused = 0, refused
        self.batches: list[Sequence[Batch]] = []

    def update(self, minibatches: Sequence[Batch]) -> UpdateReport:
        self.batches.append(minibatches)
        applied = self.version not in self.refused
        self.version += 1
        return UpdateReport(metrics={"loss": (0.5, 1.0)}, applied=applied, reason="" if applied else "loss is nan")

    def save(self, folder: Path) -> None:
        (folder / "weights").write_text(str(self.version))

    def load(self, folder: Path, counters: dict[str, int]) -> None:
        self.version = counters["version"]

    def counters(self) -> dict[str, int]:
        return {"version": self.version}

    def score(self, *_: Any) -> list[Any]:
        raise AssertionError("nothing asked for scores")


class PaperSync:
    def push(self, learner: PaperLearner) -> SyncReport:
        return SyncReport(version=learner.version, num_bytes=8, sent_bytes=4, link_bytes_per_s=16.0, fingerprint="f")


def parts(tmp_path: Path, *overrides: str, **changes: Any) -> Parts:
    recipe = load(
        ROOT / "recipes/tiny.yaml", ["train.steps=3", "rollout.groups_per_step=4", "rollout.group_size=2", *overrides]
    ).recipe
    tasks = [Task(id=f"t{i}", question="?", answers=("!",)) for i in range(12)]
    base = Parts(
        recipe=recipe,
        algorithm=grpo.ALGORITHM,
        config=grpo.GrpoConfig(),
        rollouts=Collector(),
        learner=PaperLearner(),  # type: ignore[arg-type]
        sync=PaperSync(),
        stream=TaskStream(tasks, 0),
        held_out=[],
        ledger=Ledger(tmp_path / "ledger.jsonl"),
        recorder=Recorder(tmp_path, live=False),
        checkpoints=CheckpointStore(tmp_path),
    )
    return replace(base, **changes)


def logged(tmp_path: Path, name: str) -> list[float]:
    return [row.metrics[name] for row in read_metrics(tmp_path) if name in row.metrics]


def test_every_draw_ends_as_trained_and_every_step_is_logged(tmp_path: Path) -> None:
    run = parts(tmp_path)
    assert train(run) == 3
    assert (run.ledger.num_drawn, run.ledger.num_trained, run.ledger.pending) == (12, 12, ())
    assert logged(tmp_path, "reward/mean") == [0.5, 0.5, 0.5]
    assert logged(tmp_path, "ledger/trained") == [4, 8, 12]
    # The update of step n used data of version n-1, sampled as version 0 by these paper trees.
    assert logged(tmp_path, "staleness/mean") == [0, 1, 2]


def test_a_sync_is_compared_with_what_its_link_allows(tmp_path: Path) -> None:
    train(parts(tmp_path))
    assert logged(tmp_path, "sync/bytes") == [4, 4, 4]  # what left, of 8 bytes of weights
    assert logged(tmp_path, "sync/link_bytes_per_s") == [16, 16, 16]
    # 8 bytes at 16 bytes/s take half a second: a sync of t seconds is t / 0.5 of that
    seconds = logged(tmp_path, "timing/sync_s")
    assert logged(tmp_path, "sync/times_bound") == pytest.approx([t / 0.5 for t in seconds])


def test_a_group_whose_rewards_all_failed_is_dropped_for_that_reason_and_replaced(tmp_path: Path) -> None:
    first = TaskStream([Task(id=f"t{i}", question="?", answers=("!",)) for i in range(12)], 0).draw(1)[0].task.id
    run = parts(tmp_path, "train.steps=1", rollouts=Collector({first: [NAN, NAN]}))
    train(run)
    assert run.ledger.dropped == {"all_failed": 1}
    assert (run.ledger.num_drawn, run.ledger.num_trained) == (5, 4)
    assert logged(tmp_path, "dropped/all_failed") == [1]


def test_dynamic_sampling_draws_again_until_the_step_is_full(tmp_path: Path) -> None:
    equal = {f"t{i}": [1.0, 1.0] for i in range(6)}
    run = parts(tmp_path, algorithm=dapo.ALGORITHM, config=dapo.DapoConfig(), rollouts=Collector(equal))
    found = gather(run, 1)
    assert len(found.trees) == 4 and all(draw.task.id not in equal for draw in found.draws)
    assert run.ledger.dropped["equal_rewards"] == run.ledger.num_drawn - 4


def test_a_run_that_never_finds_a_group_gives_up_with_the_reasons(tmp_path: Path) -> None:
    run = parts(tmp_path, "train.steps=9", rollouts=Collector(default=[NAN, NAN]))
    with pytest.raises(LearnerError, match=r"no group of the last 3 steps.*'all_failed': 120"):
        train(run)
    assert run.ledger.num_drawn == 120  # three steps of ten rounds of four


def test_an_update_that_is_not_finite_drops_its_tasks_and_the_run_goes_on(tmp_path: Path) -> None:
    run = parts(tmp_path, learner=PaperLearner(refused=[1]))
    train(run)
    assert run.ledger.dropped == {"not_finite": 4}
    assert run.ledger.num_trained == 8


def test_minibatches_split_the_groups_of_a_step(tmp_path: Path) -> None:
    learner = PaperLearner()
    train(parts(tmp_path, "optim.minibatches=2", "train.steps=1", learner=learner))
    (minibatches,) = learner.batches
    assert [batch.num_scored for batch in minibatches] == [8, 8]  # two groups of two answers of two tokens each


def tokens_of(learner: Any) -> list[int]:
    """Tokens packed for each step."""
    return [sum(len(row.token_ids) for batch in step for row in batch.rows) for step in learner.batches]


def test_a_group_without_any_advantage_is_not_computed_but_counts_as_trained(tmp_path: Path) -> None:
    equal = Collector({f"t{i}": [1.0, 1.0] for i in range(6)})  # half of the twelve draws
    run = parts(tmp_path, rollouts=equal)
    train(run)
    whole = parts(tmp_path / "whole")
    train(whole)
    per_tree = tokens_of(whole.learner)[0] // 4
    silent = [round(4 * (1 - share)) for share in logged(tmp_path, "groups/effective")]
    assert sum(silent) == 6
    assert tokens_of(run.learner) == [per_tree * (4 - count or 4) for count in silent]
    assert logged(tmp_path, "tokens/learned") == tokens_of(run.learner)
    assert run.ledger.num_trained == 12


def test_a_step_without_any_advantage_still_steps_the_optimizer(tmp_path: Path) -> None:
    run = parts(tmp_path, rollouts=Collector(default=(1.0, 1.0)))
    train(run)
    whole = parts(tmp_path / "whole")
    train(whole)
    assert tokens_of(run.learner) == tokens_of(whole.learner)


def test_an_entropy_bonus_needs_the_groups_without_advantage(tmp_path: Path) -> None:
    equal = {f"t{i}": [1.0, 1.0] for i in range(6)}
    run = parts(tmp_path, rollouts=Collector(equal), config=grpo.GrpoConfig(entropy_coef=0.1))
    train(run)
    whole = parts(tmp_path / "whole")
    train(whole)
    assert tokens_of(run.learner) == tokens_of(whole.learner)


def test_a_failed_checkpoint_costs_the_checkpoint_and_only_at_the_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    learner = PaperLearner()
    monkeypatch.setattr(learner, "save", full)
    run = parts(tmp_path, "train.checkpoint_every=1", learner=learner)
    with pytest.raises(CheckpointError, match=r"step_000003: could not be written .*No space left"):
        train(run)
    assert run.ledger.num_trained == 12 and learner.version == 3


def test_a_resumed_run_continues_and_another_recipe_is_refused_with_what_differs(tmp_path: Path) -> None:
    train(parts(tmp_path, "train.steps=2", "train.checkpoint_every=1"))
    again = parts(tmp_path, "train.steps=4", "train.checkpoint_every=1")
    assert train(again) == 4
    assert again.ledger.num_trained == 16
    assert logged(tmp_path, "ledger/trained") == [4, 8, 12, 16]
    drawn = [json.loads(line)["draw"] for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert sorted(set(drawn)) == list(range(16))
    with pytest.raises(CheckpointError, match=r"made by another recipe, which differs in optim"):
        train(parts(tmp_path, "optim.lr=0.5"))


def test_a_task_without_answers_is_refused_before_the_run_where_a_reward_reads_them() -> None:
    class Source:
        def tasks(self, split: str) -> list[Task]:
            return [Task(id="a", question="?", answers=("x",)), Task(id="b", question="?")]

        def passages(self) -> list[Any]:
            return []

    recipe = load(ROOT / "recipes/tiny.yaml").recipe
    with pytest.raises(DataError, match=r"1 of 2 tasks of split 'train' have no answers \(first: b\).*rewards\[0\]"):
        tasks_of(recipe, Source(), "train")


def test_held_out_tasks_are_the_first_of_their_split_or_drawn_from_all_of_it() -> None:
    class Source:
        def tasks(self, split: str) -> list[Task]:
            return [Task(id=f"{split}-{place}", question="?", answers=("x",)) for place in range(50)]

        def passages(self) -> list[Any]:
            return []

    recipe = load(ROOT / "recipes/tiny.yaml").recipe

    def ids(draw: int | None) -> list[str]:
        return [task.id for task in tasks_of(recipe, Source(), "dev", 3, draw)]

    assert ids(None) == ["dev-0", "dev-1", "dev-2"]
    assert ids(0) == ids(0) != ids(1)
    assert len({task for draw in range(100) for task in ids(draw)}) == 50


def test_a_clock_that_jumps_back_changes_no_duration_no_order_and_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(10**9, 0, -3600))  # every look at the wall clock is an hour before the last one
    monkeypatch.setattr("time.time", lambda: float(next(now)))
    run = parts(tmp_path)
    assert train(run) == 3
    steps = [row for row in read_metrics(tmp_path) if "timing/step_s" in row.metrics]
    assert [row.step for row in steps] == [1, 2, 3]
    assert all(0 <= row.metrics["timing/step_s"] < 60 for row in steps)
    assert [row.time for row in steps] == sorted((row.time for row in steps), reverse=True)  # the clock did jump
    assert (run.ledger.num_drawn, run.ledger.num_trained, run.ledger.pending) == (12, 12, ())
