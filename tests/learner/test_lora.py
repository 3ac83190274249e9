"""Adapters on a frozen model: their gradient is exact, and nothing but them is trained, saved or sent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlkit.algorithms.grpo import ALGORITHM
from rlkit.data.packing import Batch, pack, uncredited, with_logprobs
from rlkit.errors import CheckpointError, LearnerError, RecipeError
from rlkit.learner.build import build_learner
from rlkit.learner.gradient import add_gradients
from rlkit.learner.learner import Learner
from rlkit.models.lora import BASE, add_adapters, merge_adapters
from rlkit.policy.hf import HfEngine
from rlkit.recipe import LearnerSettings, LoraSettings, ModelSettings, Optim, ValueSettings
from rlkit.sync.fingerprint import digests
from rlkit.sync.local import LocalSync
from tests.forest import random_forest, tiny_model
from tests.learner.test_tree_gradient import flat_loss

CONFIG = ALGORITHM.config(kl_coef=0.2)
LORA = LoraSettings(rank=2, alpha=6.0, targets=("q_proj", "v_proj", "c_fc"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    return folder


def built(
    folder: Path, start: Path | None = None, *, lora: LoraSettings = LORA, config: Any = CONFIG, **settings: Any
) -> Learner:
    return build_learner(
        ModelSettings(**{"dtype": "float64", "path": str(folder), "lora": lora, **settings}),
        LearnerSettings(logit_chunk=3),
        Optim(lr=0.05),
        ALGORITHM,
        config,
        model_dir=start or folder,
        total_updates=10,
        device="cpu",
    )


def batch(learner: Learner, seed: int = 1) -> Batch:
    forest = random_forest(seed, truncated=True, temperature=0.8)
    sizes = [scored.tree.num_tokens for scored in forest]
    reference = learner.score(pack([uncredited(s) for s in forest], 35), sizes, "reference")
    return with_logprobs(pack(ALGORITHM.credit(forest, CONFIG, None), 35), reference=reference)


def scores(learner: Learner, which: Any = "policy") -> np.ndarray:
    forest = random_forest(3)
    packed = pack([uncredited(s) for s in forest], 4096)
    return np.concatenate(learner.score(packed, [s.tree.num_tokens for s in forest], which))


def moved(learner: Learner) -> Learner:
    learner.update([batch(learner)])
    return learner


def test_the_adapters_gradient_of_the_tree_is_that_of_the_flat_batch(folder: Path) -> None:
    learner = moved(built(folder))  # B is zero before the first update, and with it A's gradient
    model: Any = learner.sharding.policy.model
    forest = random_forest(1, truncated=True, temperature=0.8)
    add_gradients(learner.sharding.policy, batch(learner).rows, ALGORITHM, CONFIG)
    tree = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    learner.sharding.discard()
    model.set_attn_implementation("sdpa")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    flat_loss("grpo", model, reference, forest, CONFIG).backward()
    flat = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert tree.keys() == flat.keys() and len(tree) == 2 * 3 * 2  # A and B of three layers in each of two blocks
    for name, gradient in flat.items():
        assert float(gradient.norm()) > 0
        assert float((tree[name] - gradient).norm() / gradient.norm()) < 1e-10, name


def test_only_adapters_are_trained_saved_and_kept_by_the_optimizer(folder: Path, tmp_path: Path) -> None:
    learner = built(folder)
    before = {name: w.clone() for name, w in learner.sharding.policy.model.state_dict().items()}
    moved(learner).save(tmp_path)
    changed = {n for n, w in learner.sharding.policy.model.state_dict().items() if not torch.equal(w, before[n])}
    assert changed and all(".lora_B." in name for name in changed)  # A moves from the second update on
    files = {path.name for path in tmp_path.iterdir()}
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    saved = load_file(tmp_path / "adapter_model.safetensors")
    # Per block: q_proj 16 -> 16, v_proj 16 -> 8, c_fc 16 -> 24, of rank 2.
    assert sum(w.numel() for w in saved.values()) == 2 * 2 * ((16 + 16) + (16 + 8) + (16 + 24))
    moments = load_file(tmp_path / "optimizer.safetensors")
    assert sum(m.numel() for name, m in moments.items() if name != "step") == 2 * sum(w.numel() for w in saved.values())


def test_a_sync_sends_the_adapters_and_the_digest_of_their_base_and_nothing_else(folder: Path) -> None:
    learner = moved(built(folder, dtype="float32"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    add_adapters(model, LORA)
    config = HfEngine.Config(device="cpu", deterministic=False)
    target = HfEngine(config, model=model, tokenizer=None, seed=0)
    report = LocalSync(target).push(learner)
    # 384 numbers of adapters in float32 (see above), and 16 bytes of a digest; the model has thousands.
    assert report.sent_bytes == report.num_bytes == 384 * 4 + 16
    assert all(".lora_" in name for name in learner.weights() if name != BASE)
    assert target.digests() == digests(learner.weights())


def test_the_reference_is_the_frozen_model_without_a_second_copy(folder: Path) -> None:
    learner = built(folder)
    start = scores(learner)
    np.testing.assert_array_equal(scores(learner, "reference"), start)  # B = 0: nothing is added
    moved(learner)
    assert learner.reference is None
    assert not np.array_equal(scores(learner), start, equal_nan=True)
    np.testing.assert_array_equal(scores(learner, "reference"), start)
    np.testing.assert_array_equal(scores(learner, "reference"), scores(built(folder, lora=LoraSettings()), "reference"))
    assert moved(learner).updates == 2  # the adapters are still trained
    with pytest.raises(LearnerError, match="kl_coef is 0"):
        scores(built(folder, config=ALGORITHM.config()), "reference")


def test_a_merged_model_scores_as_the_adapters_beside_it(folder: Path) -> None:
    learner = moved(moved(built(folder)))
    expected = scores(learner)
    merge_adapters(learner.sharding.policy.model)
    np.testing.assert_allclose(scores(learner), expected, rtol=1e-12)
    names = set(learner.sharding.policy.model.state_dict())
    assert names == set(AutoModelForCausalLM.from_pretrained(folder).state_dict())


def test_peft_reads_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    learner = moved(built(folder))
    learner.save(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    ids = torch.arange(9)[None]
    found = PeftModel.from_pretrained(base, tmp_path, autocast_adapter_dtype=False)(ids).logits
    model: Any = learner.sharding.policy.model
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(found, model(ids).logits, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_resumed_learner_continues_bit_equal(folder: Path, tmp_path: Path, dtype: str) -> None:
    straight, resumed = (built(folder, dtype=dtype) for _ in range(2))
    moved(moved(straight)).save(tmp_path)
    resumed.load(tmp_path, straight.counters())
    for learner in (straight, resumed):
        learner.update([batch(learner, 2)])
    assert all(torch.equal(w, resumed.weights()[name]) for name, w in straight.weights().items())
    assert {w.dtype for n, w in straight.sharding.weights().items()} == {
        torch.float64 if dtype == "float64" else torch.float32
    }


def test_a_run_starts_from_adapters_or_merges_them(folder: Path, tmp_path: Path) -> None:
    first = moved(moved(built(folder)))
    first.save(tmp_path)
    np.testing.assert_array_equal(scores(built(folder, tmp_path)), scores(first))
    whole = built(folder, tmp_path, lora=LoraSettings())
    np.testing.assert_allclose(scores(whole), scores(first), rtol=1e-12)
    assert len(whole.weights()) == len(list(tiny_model().named_parameters()))
    with pytest.raises(CheckpointError, match=r"model\.lora: .* of rank 2 on c_fc, q_proj, v_proj; .* rank 3 on c_fc,"):
        built(folder, tmp_path, lora=replace(LORA, rank=3))


def test_adapters_of_another_base_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "saved").mkdir()
    tiny_model(seed=1).save_pretrained(tmp_path / "other")
    learner = moved(built(folder))
    learner.save(tmp_path / "saved")
    with pytest.raises(CheckpointError, match=r"trained on other frozen weights than those of model\.path"):
        built(tmp_path / "other").load(tmp_path / "saved", learner.counters())


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("q_prj",), r"model\.lora\.targets: 'q_prj' is no linear layer of the model; did you mean 'q_proj'\?"),
        (("lm_head",), r"model\.lora\.targets: 'lm_head' is no linear layer of the model; one of c_fc, c_proj, k_proj"),
    ],
)
def test_targets_that_the_model_has_not_are_refused_with_the_nearest(
    folder: Path, targets: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        built(folder, lora=LoraSettings(rank=2, targets=targets))


def test_adapters_go_before_a_value_head_which_is_trained_whole(folder: Path) -> None:
    learner = build_learner(
        ModelSettings(dtype="bfloat16", path=str(folder), lora=LoraSettings(rank=2)),
        LearnerSettings(),
        Optim(),
        ALGORITHM,
        ALGORITHM.config(),
        model_dir=folder,
        total_updates=1,
        value=ValueSettings(head="mlp", reward="r"),
        device="cpu",
    )
    own = learner.sharding.weights()
    assert "value_head.regressor.0.weight" in own and not any("value_head" in name and "lora" in name for name in own)
    assert {weight.dtype for weight in own.values()} == {torch.float32}
    assert {w.dtype for w in learner.weights().values()} == {torch.bfloat16, torch.uint8}
