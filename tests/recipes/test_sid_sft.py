"""Supervised training on semantic IDs, through the usual loop's parts: the loss is the plain cross-entropy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkit.algorithms.sft import ALGORITHM, SftConfig
from rlkit.data.packing import pack
from rlkit.data.sequences import Sequences
from rlkit.envs.sid_generation import SidGeneration
from rlkit.errors import CheckpointError
from rlkit.learner.build import build_learner
from rlkit.models.recommender import add_semantic_ids, build_recommender
from rlkit.policy.answers import AnswerEngine
from rlkit.policy.tiny import tiny_model
from rlkit.recipe import LearnerSettings, ModelSettings, Optim
from rlkit.records import RewardTerm, ScoredTree, Task
from rlkit.render import Renderer
from rlkit.rollout.loop import Rollouts, RolloutSettings
from tests.catalogue.shop import ITEMS, write_shop


class Praise:
    """Every leaf is worth 1."""

    async def score(self, tree: Any) -> ScoredTree:
        num = len(tree.leaves)
        one = RewardTerm(name="one", weight=1.0, values=np.ones(num), status=("ok",) * num)
        return ScoredTree(tree=tree, terms=(one,))

    def close(self) -> None:
        """Nothing to end."""


@pytest.fixture
def shop(tmp_path: Path) -> tuple[Sequences, Path]:
    write_shop(tmp_path)
    source = Sequences(Sequences.Config(path=str(tmp_path), dataset="shop", train="sequences"))
    build_recommender(tmp_path / "model", source.catalogue, hidden=32, layers=2, heads=2, max_context=64)
    return source, tmp_path / "model"


def rolled_out(source: Sequences, model: Path, *, context: int = 64) -> list[ScoredTree]:
    renderer = Renderer(AutoTokenizer.from_pretrained(model, local_files_only=True))
    tasks = source.tasks("train")
    rollouts = Rollouts(
        envs=SidGeneration(SidGeneration.Config()),
        engine=AnswerEngine(renderer=renderer, tasks=tasks),
        renderer=renderer,
        scorer=Praise(),
    )
    settings = RolloutSettings(group_size=1, max_completion_tokens=64, max_path_tokens=context)
    trees = rollouts.collect(tasks, settings)
    rollouts.close()
    return trees


def test_every_position_of_a_sequence_is_trained_in_one_causal_pass(shop: tuple[Sequences, Path]) -> None:
    source, model = shop
    trees = rolled_out(source, model)
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    losses = []
    for scored in trees:
        ids = torch.tensor(np.concatenate([node.token_ids for node in scored.tree.nodes]), dtype=torch.long)
        logprobs = reference(ids[None]).logits[0, :-1].log_softmax(-1)
        losses += (-logprobs[torch.arange(len(ids) - 1), ids[1:]]).tolist()
    assert len(losses) == 3 * 3 + 3  # three items of user 1 and one of user 2, three levels each

    config, settings = SftConfig(), ModelSettings(path=str(model), dtype="float64", max_context=64)
    learner = build_learner(
        settings, LearnerSettings(row_tokens=64), Optim(lr=1e-9), ALGORITHM, config, model_dir=model, total_updates=1
    )
    report = learner.update([pack(ALGORITHM.credit(trees, config, None), 64)])
    assert report.metrics["loss"][0] == pytest.approx(np.mean(losses), rel=1e-9)


def test_a_few_updates_learn_the_shop(shop: tuple[Sequences, Path]) -> None:
    source, model = shop
    trees, config = rolled_out(source, model), SftConfig()
    optim = Optim(lr=1e-2)
    learner = build_learner(
        ModelSettings(path=str(model), max_context=64),
        LearnerSettings(row_tokens=64),
        optim,
        ALGORITHM,
        config,
        model_dir=model,
        total_updates=30,
    )
    batch = pack(ALGORITHM.credit(trees, config, None), 64)
    losses = [learner.update([batch]).metrics["loss"][0] for _ in range(30)]
    # The first item of a user cannot be told: two of them, of three and one items, so ln 2 once a user at best.
    assert losses[-1] < 0.25 < 2.0 < losses[0]


def test_a_language_model_with_new_words_learns_them_by_the_same_recipe(
    shop: tuple[Sequences, Path], tmp_path: Path
) -> None:
    source, _ = shop
    grown = tmp_path / "grown"
    add_semantic_ids(tiny_model(tmp_path / "base", layers=1, hidden=32), grown, source.catalogue)
    trees, config = rolled_out(source, grown), SftConfig()
    learner = build_learner(
        ModelSettings(path=str(grown), max_context=64),
        LearnerSettings(row_tokens=128),
        Optim(lr=1e-2),
        ALGORITHM,
        config,
        model_dir=grown,
        total_updates=20,
    )
    before = AutoModelForCausalLM.from_pretrained(grown).get_input_embeddings().weight.detach()
    batch = pack(ALGORITHM.credit(trees, config, None), 128)
    losses = [learner.update([batch]).metrics["loss"][0] for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]
    ids = AutoTokenizer.from_pretrained(grown).convert_tokens_to_ids(["<a_1>", "<b_2>", "<c_3>"])
    (tmp_path / "saved").mkdir()
    learner.save(tmp_path / "saved")
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").get_input_embeddings().weight.detach()
    assert ((after[ids] - before[ids]).norm(dim=1) > 0.1).all()


def test_a_sequence_longer_than_the_context_is_truncated_and_not_trained(shop: tuple[Sequences, Path]) -> None:
    trees = rolled_out(*shop, context=6)
    statuses = {scored.tree.task.id: scored.tree.leaves[0] for scored in trees}
    assert statuses["shop-train-1-0"].status == "truncated"
    assert "max_path_tokens: 6" in statuses["shop-train-1-0"].reason
    credited = ALGORITHM.credit(trees, SftConfig(), None)
    assert sum(len(path.tokens) for tree in credited for path in tree.paths) == 3  # user 2's only item


def test_a_prompt_that_fills_the_context_fails_alone(shop: tuple[Sequences, Path]) -> None:
    source, model = shop
    renderer = Renderer(AutoTokenizer.from_pretrained(model, local_files_only=True))
    tasks: list[Task] = list(source.tasks("test"))
    rollouts = Rollouts(
        envs=SidGeneration(SidGeneration.Config()),
        engine=AnswerEngine(renderer=renderer, tasks=tasks),
        renderer=renderer,
        scorer=Praise(),
    )
    settings = RolloutSettings(group_size=1, max_completion_tokens=3, max_path_tokens=12)
    long, short = rollouts.collect(tasks, settings)  # histories of four and two items
    rollouts.close()
    assert long.tree.leaves[0].status == "failed" and "prompt_too_long" in long.tree.leaves[0].reason
    assert short.tree.leaves[0].answer == tasks[1].answers[0]


def test_a_model_made_for_other_items_is_refused_before_anything_starts(
    shop: tuple[Sequences, Path], tmp_path: Path
) -> None:
    _, model = shop
    write_shop(tmp_path / "other", items=ITEMS[:5], sequences=[{"user_id": 1, "items": [10, 11, 12]}])
    other = Sequences(Sequences.Config(path=str(tmp_path / "other"), dataset="shop"))
    with pytest.raises(CheckpointError, match=r"train\.init_from: .* made for catalogue"):
        other.check_model(model, setting="train.init_from")
