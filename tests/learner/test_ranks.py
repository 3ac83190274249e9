"""How rows are dealt to ranks, and how a learner is built; what ranks then compute is in test_sharded.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers.modeling_layers import GradientCheckpointingLayer

from rlkit.algorithms.grpo import ALGORITHM
from rlkit.data.packing import Batch, Row, pack, uncredited
from rlkit.errors import CheckpointError, LearnerError, RecipeError
from rlkit.learner import build
from rlkit.learner.build import build_learner
from rlkit.learner.learner import Learner, rows_of_rank
from rlkit.learner.sharding import Replicated
from rlkit.policy.hf import HfEngine
from rlkit.recipe import LearnerSettings, ModelSettings, Optim
from rlkit.sync.fingerprint import fingerprint
from rlkit.sync.local import LocalSync
from tests.forest import random_forest, tiny_model

# ---------------------------------------------------------------------------------------------- dealing rows


def rows(seed: int = 1) -> tuple[Row, ...]:
    forest = random_forest(seed)
    return pack(ALGORITHM.credit(forest, ALGORITHM.config(), None), 35).rows


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_every_row_goes_to_one_rank_and_all_ranks_run_as_many(size: int) -> None:
    shares = [rows_of_rank(rows(), rank, size) for rank in range(size)]
    assert sorted(len(row.token_ids) for own, _ in shares for row in own) == sorted(len(r.token_ids) for r in rows())
    assert len({len(own) + len(padding) for own, padding in shares}) == 1


def test_padding_carries_no_credit() -> None:
    padding = [row for rank in range(9) for row in rows_of_rank(rows(), rank, 9)[1]]
    assert padding
    assert not any(np.any(row.weight) or np.any(row.c_pos) or np.any(row.c_neg) for row in padding)


def test_ranks_get_nearly_equal_numbers_of_tokens() -> None:
    loads = [sum(len(row.token_ids) for row in rows_of_rank(rows(), rank, 2)[0]) for rank in range(2)]
    assert abs(loads[0] - loads[1]) <= max(len(row.token_ids) for row in rows())


# ---------------------------------------------------------------------------------------------- building


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, saved with dropout everywhere."""
    folder = tmp_path_factory.mktemp("model")
    model = tiny_model()
    for name in ("residual_dropout", "embedding_dropout", "attention_dropout"):
        setattr(model.config, name, 0.5)
    model.save_pretrained(folder)
    return folder


def built(folder: Path, kind: str = "single", kl_coef: float = 0.0, size: int = 1, **model: Any) -> Learner:
    return build_learner(
        ModelSettings(**{"dtype": "float64", **model}),
        LearnerSettings(kind=kind, logit_chunk=3),  # type: ignore[arg-type]
        Optim(lr=0.01),
        ALGORITHM,
        ALGORITHM.config(kl_coef=kl_coef),
        model_dir=folder,
        total_updates=10,
        size=size,
        device="cpu",
    )


def scores(learner: Learner, which: Any = "policy") -> np.ndarray:
    forest = random_forest(3)
    batch = pack([uncredited(s) for s in forest], 4096)
    return np.concatenate(learner.score(batch, [s.tree.num_tokens for s in forest], which))


@pytest.mark.parametrize("kind", ["single", "ddp", "fsdp2", "zero1", "zero3"])
def test_one_rank_shares_with_nobody_whatever_the_kind(folder: Path, kind: str) -> None:
    dtype = "float32" if kind.startswith("zero") else "float64"
    assert type(built(folder, kind, dtype=dtype).sharding) is Replicated


def test_the_reference_is_loaded_only_when_needed_and_never_moves(folder: Path) -> None:
    assert built(folder).reference is None
    learner = built(folder, kl_coef=0.1)
    assert learner.reference is not None and not any(p.requires_grad for p in learner.reference.parameters())
    before, first = scores(learner), scores(learner, "reference")
    np.testing.assert_array_equal(before, first)
    learner.update([Batch(rows=rows())])
    assert not np.array_equal(scores(learner), before, equal_nan=True)
    np.testing.assert_array_equal(scores(learner, "reference"), first)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dropout_is_off_in_scores_and_gradients(folder: Path, checkpointing: bool) -> None:
    weights = []
    for _ in range(2):
        learner = built(folder, gradient_checkpointing=checkpointing)
        np.testing.assert_array_equal(scores(learner), scores(learner))
        learner.update([Batch(rows=rows())])
        weights.append(learner.weights())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_gradient_checkpointing_computes_layers_twice_and_changes_nothing(folder: Path) -> None:
    calls, weights = [], []
    for checkpointing in (False, True):
        learner = built(folder, gradient_checkpointing=checkpointing)
        calls.append(0)

        def count(*_: Any) -> None:
            calls[-1] += 1

        for module in layers(learner):
            module.self_attn.register_forward_hook(count)
        learner.update([Batch(rows=rows())])
        weights.append(learner.weights())
    assert calls == [2 * len(rows()), 4 * len(rows())]  # two layers
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-10, atol=0)


def layers(learner: Learner) -> Iterator[Any]:
    return (m for m in learner.sharding.policy.modules() if isinstance(m, GradientCheckpointingLayer))


def test_a_bfloat16_learner_sends_what_it_multiplies_with_and_saves_float32(folder: Path, tmp_path: Path) -> None:
    learner = built(folder, dtype="bfloat16")
    assert {tensor.dtype for tensor in learner.weights().values()} == {torch.bfloat16}
    learner.save(tmp_path)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}
    engine = HfEngine.from_pretrained(
        HfEngine.Config(device="cpu", deterministic=False), folder, seed=0, dtype="bfloat16"
    )
    assert LocalSync(engine).push(learner).fingerprint == fingerprint(learner.weights())


def test_bfloat16_multiplies_in_bfloat16_and_keeps_float32_weights(folder: Path) -> None:
    exact, rounded = built(folder, dtype="float32"), built(folder, dtype="bfloat16")
    assert {weight.dtype for weight in rounded.sharding.weights().values()} == {torch.float32}
    error = np.nanmax(np.abs(scores(exact) - scores(rounded)))
    assert 1e-4 < error < 0.5
    assert rounded.update([Batch(rows=rows())]).applied


def test_an_update_reports_the_memory_that_its_process_has_held_at_most(folder: Path) -> None:
    learner, held = built(folder, dtype="float32"), np.ones((64, 2**20))  # 512 MiB
    peak, count = learner.update([Batch(rows=rows())]).metrics["memory/peak_mib"]
    assert held.nbytes / 2**20 < peak < 2**20
    assert count == 1


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"size": 2}, RecipeError, r"learner\.kind: 'single' is one process, but cluster\.learner_ranks is 2"),
        ({"kind": "zero2", "size": 2}, RecipeError, r"model\.dtype: 'float64' is lost under learner\.kind 'zero2'"),
        ({"attention": "flex"}, RecipeError, r"model\.attention: 'flex' has no backward pass on a CPU"),
        ({"kind": "ddp", "size": 2}, LearnerError, r"rendezvous: 2 ranks need a place to meet"),
    ],
)
def test_what_cannot_work_together_is_refused_with_the_setting(
    folder: Path, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        built(folder, **settings)


def test_a_missing_deepspeed_names_the_extra_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"learner\.kind: 'zero3' needs DeepSpeed; install the extra \[deepspeed\]"):
        built(folder, "zero3", size=2, dtype="float32")


def test_a_checkpoint_of_another_model_or_without_moments_is_refused(folder: Path, tmp_path: Path) -> None:
    learner = built(folder)
    with pytest.raises(CheckpointError, match=r"no weights for .*; it belongs to another model"):
        learner.load(tmp_path, learner.counters())
    learner.save(tmp_path)
    (tmp_path / "optimizer.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: missing; start anew from these weights"):
        learner.load(tmp_path, learner.counters())


def test_a_checkpoint_before_the_first_update_has_no_moments_and_loads(folder: Path, tmp_path: Path) -> None:
    first, second = built(folder), built(folder)
    first.save(tmp_path)
    second.update([Batch(rows=rows())])
    second.load(tmp_path, first.counters())
    for learner in (first, second):
        learner.update([Batch(rows=rows())])
    assert all(torch.equal(first.weights()[name], weight) for name, weight in second.weights().items())
