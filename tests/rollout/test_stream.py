"""The asynchronous loop with parts of paper: whatever takes how long, the same is trained on."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import logging
import random
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlkit.algorithms import dapo, grpo
from rlkit.checkpoint import CheckpointStore
from rlkit.config import load
from rlkit.data.packing import Batch
from rlkit.env import EnvStep
from rlkit.errors import CheckpointError, LearnerError
from rlkit.learner.learner import UpdateReport
from rlkit.policy.base import Completion, SampleRequest
from rlkit.policy.fake import FakeEngine
from rlkit.randomness import stream
from rlkit.recipe import Recipe
from rlkit.recorder import Recorder, read_metrics
from rlkit.records import RewardTerm, ScoredTree, Task, Tree
from rlkit.render import Renderer
from rlkit.rollout.ledger import Ledger, TaskStream
from rlkit.rollout.loop import Rollouts
from rlkit.store import read_trees
from rlkit.sync.base import SyncReport
from rlkit.train import Parts, streaming, train
from tests.rollout.chats import chat_tokenizer
from tests.rollout.scenes import Scene, opening

ROOT = Path(__file__).parents[2]
CHAT = chat_tokenizer("chatml")
STEPS = 6


def words(request: SampleRequest) -> str:
    """A text of 1 to 60 letters; every eighth is long."""
    rng = stream("length", request.task_id, request.sample_index, request.turn)
    size = int(rng.integers(1, 13)) * (5 if rng.integers(8) == 0 else 1)
    return "".join("abcd"[int(i)] for i in rng.integers(0, 4, size))


class Restless(FakeEngine):
    """Answers after random times of this run's own, and notes when weights came while it was busy."""

    def __init__(self, chaos: random.Random, delay_s: float) -> None:
        super().__init__(script=words, tokenizer=CHAT)
        self.chaos, self.delay_s, self.busy, self.pushed_while_busy = chaos, delay_s, 0, 0

    async def sample(self, request: SampleRequest) -> Completion:
        self.busy += 1
        try:
            await asyncio.sleep(self.chaos.random() * self.delay_s)
            return await super().sample(request)
        finally:
            self.busy -= 1

    def load_weights(self, weights: Mapping[str, Any], version: int) -> str:
        self.pushed_while_busy += self.busy > 0
        return super().load_weights(weights, version)


class HashLearner:
    """Its weights are a digest of everything it was trained on, in order."""

    def __init__(self, chaos: random.Random, delay_s: float, dies_at: int = -1) -> None:
        self.chaos, self.delay_s, self.dies_at, self.version, self.digest = chaos, delay_s, dies_at, 0, b""

    def update(self, minibatches: list[Batch]) -> UpdateReport:
        if self.version == self.dies_at:
            raise KeyboardInterrupt
        time.sleep(self.chaos.random() * self.delay_s)
        new = hashlib.blake2b(self.digest)
        for batch in minibatches:
            for row in batch.rows:
                for array in (row.token_ids, row.behavior_logprobs, row.c_pos, row.c_neg):
                    new.update(np.ascontiguousarray(array).tobytes())
        self.digest, self.version = new.digest(), self.version + 1
        return UpdateReport(metrics={"loss": (0.0, 1.0)})

    def save(self, folder: Path) -> None:
        (folder / "weights").write_bytes(self.digest)

    def load(self, folder: Path, counters: dict[str, int]) -> None:
        self.version, self.digest = counters["version"], (folder / "weights").read_bytes()

    def counters(self) -> dict[str, int]:
        return {"version": self.version}

    def weights(self) -> dict[str, Any]:
        return {"digest": np.frombuffer(self.digest, np.uint8)}


class Send:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine

    def push(self, learner: HashLearner) -> SyncReport:
        found = self.engine.load_weights(learner.weights(), learner.version)
        return SyncReport(version=learner.version, num_bytes=16, sent_bytes=16, link_bytes_per_s=1e9, fingerprint=found)


class LetterScorer:
    """The share of letters `a` in the completion, so rewards differ."""

    async def score(self, tree: Tree) -> ScoredTree:
        values = np.array([path.completion.count("a") / len(path.completion) for path in tree.trajectories()])
        term = RewardTerm(name="a", weight=1.0, values=values, status=("ok",) * len(values))
        return ScoredTree(tree=tree, terms=(term,))

    def close(self) -> None:
        pass


@lru_cache
def recipe_of(*overrides: str) -> Recipe:
    base = [
        f"train.steps={STEPS}",
        "train.eval_every=0",
        "train.checkpoint_every=0",
        "rollout.groups_per_step=3",
        "rollout.group_size=2",
        "rollout.max_completion_tokens=64",
        "rollout.max_concurrent_groups=4",
        "rollout.round_tokens=8",
        "rollout.max_staleness=2",
        "log.trees_per_step=null",
    ]
    return load(ROOT / "recipes/tiny.yaml", [*base, *overrides]).recipe


def run(folder: Path, *overrides: str, chaos: int = 0, delay_s: float = 0.0, **changes: Any) -> Parts:
    """Train with parts of paper; returns the parts afterwards."""
    timing = random.Random(chaos)
    engine = changes.pop("engine", None) or Restless(timing, delay_s)
    learner = changes.pop("learner", None) or HashLearner(timing, 2 * delay_s)
    said = changes.pop("said", "go on")
    scene = Scene(lambda n: {-1: opening(stop=("d",)), 0: EnvStep(text=said)})
    rollouts = Rollouts(envs=scene, engine=engine, renderer=Renderer(CHAT), scorer=LetterScorer())
    tasks = [Task(id=f"t{i}", question="who?", answers=("!",)) for i in range(12)]
    parts = Parts(
        recipe=recipe_of(*overrides),
        algorithm=changes.pop("algorithm", grpo.ALGORITHM),
        config=changes.pop("config", grpo.GrpoConfig()),
        rollouts=rollouts,
        learner=learner,  # type: ignore[arg-type]
        sync=Send(engine),
        stream=TaskStream(tasks, 0),
        held_out=[],
        ledger=Ledger(folder / "ledger.jsonl"),
        recorder=Recorder(folder, live=False),
        checkpoints=CheckpointStore(folder),
    )
    parts = replace(parts, **changes)
    try:
        train(parts)
    finally:
        rollouts.close()
        parts.ledger.close()
    assert engine.pushed_while_busy == 0, "weights changed under a sample"
    return parts


def book(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


def test_twenty_runs_with_other_delays_train_the_same_weights_in_the_same_order(tmp_path: Path) -> None:
    digests, books = set(), set()
    for chaos in range(20):
        parts = run(tmp_path / str(chaos), chaos=chaos, delay_s=0.001 * (chaos % 4))
        digests.add(parts.learner.digest)  # type: ignore[attr-defined]
        books.add((tmp_path / str(chaos) / "ledger.jsonl").read_text())
    assert len(digests) == 1
    assert len(books) == 1, "the ledger knows another order of arrival"


def trees_of(folder: Path) -> dict[int, list[ScoredTree]]:
    """Trees that each step trained on."""
    found = {}
    for path in sorted((folder / "rollouts").glob("**/*.jsonl.gz")):
        found[int("".join(filter(str.isdigit, path.name)))] = [stored.scored for stored in read_trees(path)]
    return found


def versions(scored: ScoredTree) -> list[int]:
    return [node.policy_version for node in scored.tree.nodes if node.author == "policy"]


def test_no_token_is_staler_than_allowed_and_turns_go_on_across_an_update(tmp_path: Path) -> None:
    for bound in (1, 2, 3):
        run(tmp_path / str(bound), f"rollout.max_staleness={bound}")
        trees = trees_of(tmp_path / str(bound))
        assert sorted(trees) == list(range(1, STEPS + 1))
        # Step n trains weights of version n - 1.
        ages = [step - 1 - version for step, found in trees.items() for tree in found for version in versions(tree)]
        assert max(ages) == bound
    turns = Counter(
        (id(path), node.turn)
        for found in trees.values()
        for tree in found
        for path in tree.tree.trajectories()
        for node in path.nodes
        if node.author == "policy"
    )
    assert max(turns.values()) >= 2, "no turn has nodes of two versions"
    for found in trees.values():
        for tree in found:
            for path in tree.tree.trajectories():
                assert path.response == CHAT.decode([int(i) for n in path.nodes[1:] for i in n.token_ids])


def test_rollouts_go_on_while_the_learner_computes(tmp_path: Path) -> None:
    served: list[int] = []

    class Slow(HashLearner):
        def update(self, minibatches: list[Batch]) -> UpdateReport:
            before = len(engine.requests)
            time.sleep(0.1)
            served.append(len(engine.requests) - before)
            return super().update(minibatches)

    engine = Restless(random.Random(0), 0.001)
    run(tmp_path, engine=engine, learner=Slow(random.Random(0), 0.0))
    assert all(count > 0 for count in served[:-2])  # towards the end nothing is left to sample
    assert served[-1] == 0  # the last weights are evaluated, so rollouts rest


def test_without_staleness_the_loop_takes_turns_as_it_always_did(tmp_path: Path) -> None:
    parts = run(tmp_path, "rollout.max_staleness=0")
    assert {version for tree in trees_of(tmp_path)[3] for version in versions(tree)} == {2}
    assert not any("clock" in event for event in book(tmp_path))
    assert parts.ledger.num_trained == 3 * STEPS


@pytest.mark.parametrize("bound", [0, 2])
def test_over_sampling_takes_the_first_groups_and_says_how_much_that_favours_short_ones(
    tmp_path: Path, bound: int
) -> None:
    parts = run(tmp_path, f"rollout.max_staleness={bound}", "rollout.over_sampling=1.0", "rollout.round_tokens=4")
    assert parts.ledger.num_trained == 3 * STEPS
    assert parts.ledger.dropped["stale"] > 0
    assert parts.ledger.pending == ()
    rows = [row.metrics for row in read_metrics(tmp_path) if "reward/mean" in row.metrics]
    biased = [row for row in rows if "rollout/dropped_tokens/stale" in row]
    assert biased and np.mean([row["rollout/length_bias"] for row in biased]) < 1
    assert len({event["task"] for event in book(tmp_path) if event["event"] == "trained"}) == 3 * STEPS


def test_groups_without_a_signal_are_replaced_and_a_step_gives_up_after_ten_times_its_size(tmp_path: Path) -> None:
    parts = run(tmp_path / "some", algorithm=dapo.ALGORITHM, config=dapo.DapoConfig())
    assert parts.ledger.num_trained == 3 * STEPS
    never = replace(grpo.ALGORITHM, drop=lambda scored, config: "boring")
    with pytest.raises(LearnerError, match=r"no group of the last 3 steps.*'boring': 9"):
        run(tmp_path / "none", algorithm=never)


def test_an_engine_that_stops_ends_the_run_with_its_error(tmp_path: Path) -> None:
    class Broken(Restless):
        async def sample(self, request: SampleRequest) -> Completion:
            if len(self.requests) >= 30:
                raise RuntimeError("out of memory")
            return await super().sample(request)

    with pytest.raises(RuntimeError, match="out of memory"):
        run(tmp_path, engine=Broken(random.Random(0), 0.001))


def test_a_run_that_was_stopped_goes_on_with_the_samples_that_were_under_way(tmp_path: Path) -> None:
    saving = ("train.checkpoint_every=2",)
    whole = run(tmp_path / "whole", *saving)
    chaos = random.Random(1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", *saving, learner=HashLearner(chaos, 0.0, dies_at=3), delay_s=0.002)
    state = CheckpointStore(tmp_path / "run").latest()
    assert state is not None and state.step == 2
    held = json.loads(gzip.decompress((state.folder / "groups_under_way.json.gz").read_bytes()))["under_way"]
    drawn = sum(len(rows) for rows in held.values())
    assert drawn > 0, "nothing was under way"

    engine = Restless(random.Random(2), 0.002)
    again = run(tmp_path / "run", *saving, engine=engine)
    assert again.learner.digest == whole.learner.digest  # type: ignore[attr-defined]
    assert book(tmp_path / "run") == book(tmp_path / "whole")
    places = {(request.task_id, request.sample_index, request.turn, request.start) for request in engine.requests}
    tasks = {number: again.stream.at(int(number)).address for number in held}
    asked = {(tasks[n], row["sample_index"], row["turn"], row["start"]) for n, rows in held.items() for row in rows}
    assert not places & asked, "a sample that survived was drawn again"


def test_an_environment_that_answers_otherwise_after_a_restart_costs_its_sample_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saving = ("train.checkpoint_every=2",)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, *saving, learner=HashLearner(random.Random(1), 0.0, dies_at=3))
    with caplog.at_level(logging.WARNING):
        parts = run(tmp_path, *saving, said="go away")
    assert "its environment answered otherwise than before the restart" in caplog.text
    assert parts.ledger.num_trained == 3 * STEPS


def test_what_is_saved_of_groups_under_way_must_be_readable(tmp_path: Path) -> None:
    parts = run(tmp_path, "train.checkpoint_every=2")
    stream = streaming(parts)
    assert stream is not None
    (tmp_path / "groups_under_way.json.gz").write_bytes(b"torn")
    state = {"steps": 2, "clock": 5, "next": 9, "groups": [], "ready": []}
    with pytest.raises(CheckpointError, match="groups under way cannot be read"):
        stream.restore(tmp_path, state)
    with pytest.raises(CheckpointError, match="of another kind"):
        stream.restore(tmp_path, {"steps": 2})
