"""Dropout on a model that has none: what is dropped, when, and that a resumed run drops the same again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rlkit.algorithms.grpo import ALGORITHM as GRPO
from rlkit.algorithms.sft import ALGORITHM as SFT
from rlkit.data.packing import Batch, pack
from rlkit.errors import LearnerError
from rlkit.learner.dropout import branches, dropping
from rlkit.learner.learner import Learner
from rlkit.learner.sharding import Replicated
from rlkit.learner.tree_policy import TreePolicy
from rlkit.recipe import Optim
from tests.forest import random_forest, tiny_model


def learner(dropout: float, *, checkpointed: bool = False) -> Learner:
    optim, model = Optim(lr=1e-2), tiny_model()
    policy = TreePolicy(model)
    if checkpointed:
        from rlkit.learner.build import _recompute_activations

        _recompute_activations(model)
    return Learner(Replicated(policy, optim), SFT, SFT.config(dropout=dropout), optim, total_updates=10)


def batch(seed: int = 1) -> Batch:
    return pack(SFT.credit(random_forest(seed), SFT.config(), None), 4096)


def after(taught: Learner, updates: int = 1) -> dict[str, torch.Tensor]:
    for seed in range(1, 1 + updates):
        taught.update([batch(seed)])
    return {name: weight.clone() for name, weight in taught.weights().items()}


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(left[name], right[name]) for name in left)


def test_a_dropped_unit_is_zero_and_the_others_are_scaled_up_so_that_means_stay() -> None:
    model = tiny_model()
    seen: list[torch.Tensor] = []
    embeddings = branches(model)[0]
    ids = torch.arange(20)[None]
    with dropping(model, 0.25, "here"):
        hook = embeddings.register_forward_hook(lambda _, inputs, output: seen.append(output))
        model(ids)
    hook.remove()
    whole, kept = embeddings(ids), seen[0] != 0
    torch.testing.assert_close(seen[0][kept], whole[kept] / 0.75)
    assert 0.15 < 1 - kept.double().mean() < 0.35  # of 320 units, four standard deviations around a quarter


def test_embeddings_attention_and_mlp_of_each_layer_drop_units_and_norms_do_not() -> None:
    model = tiny_model()
    names = {module: name for name, module in model.named_modules()}
    assert [names[part] for part in branches(model)] == [
        "model.embed_tokens",
        "model.layers.0.self_attn",
        "model.layers.0.mlp",
        "model.layers.1.self_attn",
        "model.layers.1.mlp",
    ]


def test_outside_the_block_the_model_is_whole_and_the_random_state_untouched() -> None:
    model, ids = tiny_model(), torch.arange(9)[None]
    before, state = model(ids).logits, torch.random.get_rng_state()
    with dropping(model, 0.5, "here"):
        assert not torch.equal(model(ids).logits, before)
    assert torch.equal(model(ids).logits, before)
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(ZeroDivisionError), dropping(model, 0.5, "here"):
        raise ZeroDivisionError
    assert torch.equal(model(ids).logits, before)


def test_the_address_alone_says_which_units_are_dropped() -> None:
    model, ids = tiny_model(), torch.arange(9)[None]

    def logits(*address: Any) -> torch.Tensor:
        with dropping(model, 0.5, *address):
            found: torch.Tensor = model(ids).logits
        return found

    assert torch.equal(logits(3, 0), logits(3, 0))
    assert not torch.equal(logits(3, 0), logits(4, 0))
    assert not torch.equal(logits(3, 0), logits(3, 1))


def test_training_drops_units_and_scoring_never_does() -> None:
    trees = random_forest(1)
    sizes = [scored.tree.num_tokens for scored in trees]
    plain, dropped = learner(0.0), learner(0.3)
    for left, right in zip(plain.score(batch(), sizes, "policy"), dropped.score(batch(), sizes, "policy"), strict=True):
        assert (left == right)[left == left].all()
    assert not equal(after(plain), after(dropped))


def test_a_run_that_goes_on_later_drops_what_it_would_have_dropped() -> None:
    straight = learner(0.3)
    through = after(straight, updates=2)
    stopped = learner(0.3)
    after(stopped)
    torch.manual_seed(1234)  # another process
    stopped.update([batch(2)])
    assert equal(through, dict(stopped.weights()))


def test_layers_that_are_computed_twice_drop_the_same_units_twice() -> None:
    once, twice = after(learner(0.3)), after(learner(0.3, checkpointed=True))
    for name, weight in once.items():
        torch.testing.assert_close(twice[name], weight, rtol=0, atol=1e-12)


def test_what_samples_and_compares_has_no_dropout_and_supervised_training_a_valid_one() -> None:
    assert GRPO.config().dropout == 0.0 == SFT.config().dropout
    with pytest.raises(TypeError, match="dropout"):
        GRPO.config(dropout=0.1)  # type: ignore[call-arg]
    for rate in (1.0, -0.1):
        with pytest.raises(ValueError, match=rf"dropout: {rate} is not in \[0, 1\)"):
            SFT.config(dropout=rate)  # type: ignore[call-arg]


def test_a_model_of_unknown_layers_is_refused_by_the_setting() -> None:
    with (
        pytest.raises(LearnerError, match=r"algorithm\.dropout: the layers of Linear are not known; use 0"),
        dropping(nn.Linear(2, 2), 0.1, 0),
    ):
        pass
