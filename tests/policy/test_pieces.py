"""A turn that is sampled in pieces: the same tokens as in one go, and a node for each version of the weights."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlkit.env import EnvStep
from rlkit.policy.base import Sampling
from rlkit.policy.hf import HfEngine
from rlkit.policy.tiny import tiny_model
from rlkit.records import Tree
from rlkit.render import Renderer
from rlkit.rollout.loop import BEGINNING, rollout_tree
from rlkit.rollout.pace import Flight, Pace, Past, Segment
from tests.rollout.scenes import TASK, Scene, opening


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


def scene() -> Scene:
    return Scene(lambda n: {-1: opening(stop=("e",)), 0: EnvStep(text="<information>x</information>")})


def rolled(engine: HfEngine, sampling: Sampling, pace: Pace | None) -> Any:
    from transformers import AutoTokenizer

    return rollout_tree(
        TASK,
        envs=scene(),
        engine=engine,
        renderer=Renderer(AutoTokenizer.from_pretrained(engine.folder)),  # type: ignore[attr-defined]
        sampling=sampling,
        group_size=3,
        max_completion_tokens=40,
        max_path_tokens=300,
        pace=pace,
    )


def engine_of(model: Path) -> HfEngine:
    engine = HfEngine.from_pretrained(HfEngine.Config(device="cpu"), model, seed=3)
    engine.folder = model  # type: ignore[attr-defined]
    return engine


async def by_rounds(
    engine: HfEngine, sampling: Sampling, round_tokens: int, past: Past = BEGINNING, between: Any = None
) -> tuple[Tree, tuple[Segment, ...], int]:
    flight = Flight(lambda pace: rolled(engine, sampling, pace), Pace(round_tokens, past))
    rounds = 0
    while (tree := await flight.round()) is None:
        rounds += 1
        if between is not None:
            between(rounds)
    return tree, flight.pace.take(), rounds


def same(one: Tree, other: Tree) -> bool:
    return (
        len(one.nodes) == len(other.nodes)
        and one.leaves == other.leaves
        and all(
            a.text == b.text
            and a.policy_version == b.policy_version
            and np.array_equal(a.token_ids, b.token_ids)
            and (a.behavior_logprobs is None or np.array_equal(a.behavior_logprobs, b.behavior_logprobs))  # type: ignore[arg-type]
            and (
                a.sampling is None
                or a.sampling.support_ids is None
                or np.array_equal(a.sampling.support_ids, b.sampling.support_ids)  # type: ignore[union-attr, arg-type]
            )
            for a, b in zip(one.nodes, other.nodes, strict=True)
        )
    )


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_p=0.9)])
def test_pieces_of_one_version_are_the_turn_in_one_go_to_the_bit(model: Path, sampling: Sampling) -> None:
    async def both() -> None:
        engine = engine_of(model)
        whole = await rolled(engine, sampling, None)
        assert max(len(node.token_ids) for node in whole.nodes if node.author == "policy") > 7
        for size in (1, 7):
            tree, _, rounds = await by_rounds(engine, sampling, size)
            assert rounds > 1
            assert same(tree, whole)

    asyncio.run(both())


def test_a_sample_goes_on_under_new_weights_with_a_node_for_each_version_and_log_probs_of_its_own(model: Path) -> None:
    async def check() -> None:
        engine = engine_of(model)
        changed = {name: tensor * 1.5 for name, tensor in engine._model.state_dict().items()}

        def between(rounds: int) -> None:
            if rounds == 1:
                engine.load_weights({n: t for n, t in changed.items() if n in names}, 1)

        names = {name for name, _ in engine._model.named_parameters()}
        tree, _, _ = await by_rounds(engine, Sampling(), 5, between=between)
        parts = [(n.turn, n.policy_version, len(n.token_ids)) for n in tree.nodes if n.author == "policy"]
        assert any(version == 0 for _, version, _ in parts) and any(version == 1 for _, version, _ in parts)
        # The second node of a turn is scored by the new weights, over a path that the old ones began.
        path = next(p for p in tree.trajectories() if len({n.policy_version for n in p.nodes}) == 3)
        ids = np.concatenate([node.token_ids for node in path.nodes])
        logits = model_logits(engine, ids)
        at = 0
        for node in path.nodes:
            if node.policy_version == 1:
                rows = logits[at - 1 : at + len(node.token_ids) - 1].log_softmax(-1)
                want = rows.gather(-1, torch.tensor(node.token_ids, dtype=torch.long)[:, None])[:, 0]
                np.testing.assert_allclose(node.behavior_logprobs, want.numpy(), atol=1e-4)
            at += len(node.token_ids)

    asyncio.run(check())


def model_logits(engine: HfEngine, ids: Any) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    fresh = AutoModelForCausalLM.from_pretrained(engine.folder)  # type: ignore[attr-defined]
    fresh.load_state_dict({**fresh.state_dict(), **dict(engine._model.named_parameters())})
    with torch.no_grad():
        return fresh(torch.tensor([ids.tolist()])).logits[0]


def test_a_group_is_built_up_again_from_its_segments_without_asking_the_engine(model: Path) -> None:
    async def check() -> None:
        engine = engine_of(model)
        whole, segments, rounds = await by_rounds(engine, Sampling(), 5)
        plain = tuple(Segment.from_json(segment.to_json()) for segment in segments)
        before = engine.counts.num_sampled
        again, new, _ = await by_rounds(engine, Sampling(), 5, Past(rounds=rounds, segments=plain))
        assert engine.counts.num_sampled == before
        assert new == ()
        assert same(again, whole)

    asyncio.run(check())
