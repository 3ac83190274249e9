"""Weights arrive whole or not at all, and the fingerprint tells."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlkit.errors import EngineError
from rlkit.policy.weights import assign_weights
from rlkit.sync.fingerprint import fingerprint
from tests.policy.exchange import exact_logprobs, ids, request, sample


@pytest.fixture
def model(model_dir):
    return AutoModelForCausalLM.from_pretrained(model_dir)


@pytest.fixture
def weights(model):
    """A copy of the model's weights, by name."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_new_weights_are_sampled_from_and_confirmed(make_engine, model_dir, exact_model) -> None:
    engine = make_engine()
    before = sample(engine, request(ids(20)))[0]
    weights = {name: w * 1.5 for name, w in AutoModelForCausalLM.from_pretrained(model_dir).state_dict().items()}
    assert engine.load_weights(weights, version=4) == fingerprint(weights)
    after = sample(engine, request(ids(20)))[0]
    assert (before.policy_version, after.policy_version, engine.version) == (0, 4, 4)
    scaled = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64)
    scaled.load_state_dict({name: w.double() for name, w in weights.items()})
    np.testing.assert_allclose(after.behavior_logprobs, exact_logprobs(scaled, ids(20), after), rtol=0, atol=1e-5)


def test_weights_wait_for_samples_in_flight(make_engine) -> None:
    engine = make_engine()

    async def run():
        task = asyncio.create_task(engine.sample(request(ids(10), max_tokens=200)))
        await asyncio.sleep(0.02)
        with pytest.raises(EngineError, match="1 samples of version 0 are in flight"):
            engine.load_weights({}, version=1)
        task.cancel()

    asyncio.run(run())


def test_arrays_tensors_and_any_order_have_one_fingerprint(weights) -> None:
    arrays = {name: tensor.numpy() for name, tensor in reversed(weights.items())}
    for array in arrays.values():
        array.flags.writeable = False  # as they come out of an object store
    assert fingerprint(arrays) == fingerprint(weights)


def test_one_changed_element_a_skipped_or_swapped_tensor_and_a_cast_change_the_fingerprint(weights) -> None:
    original = fingerprint(weights)
    changed = dict(weights) | {"model.norm.weight": weights["model.norm.weight"].clone()}
    changed["model.norm.weight"][7] += 1e-6
    first, second = (f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1))
    swapped = dict(weights) | {first: weights[second], second: weights[first]}
    skipped = {name: tensor for name, tensor in weights.items() if name != first}
    cast = dict(weights) | {first: weights[first].bfloat16()}
    transposed = dict(weights) | {first: weights[first].T.contiguous()}
    found = {fingerprint(each) for each in (weights, changed, swapped, skipped, cast, transposed)}
    assert len(found) == 6 and original in found


def test_hashing_keeps_pace_with_memory() -> None:
    weights = {str(i): np.ones((1024, 4096), np.float32) for i in range(4)}  # 64 MiB
    start = time.perf_counter()
    fingerprint(weights)
    assert time.perf_counter() - start < 2  # 0.06 s on an idle machine


def test_a_tied_head_may_come_under_either_name_or_both(model, weights) -> None:
    tied = ("model.embed_tokens.weight", "lm_head.weight")
    for absent in tied:
        assign_weights(model, {name: tensor * 2 for name, tensor in weights.items() if name != absent})
        assert torch.equal(model.lm_head.weight, weights[tied[0]] * 2)
    assign_weights(model, weights)
    assert torch.equal(model.lm_head.weight, weights[tied[0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("model.norm.weight"), "missing model.norm.weight"),
        (lambda w: w.update(extra=torch.ones(2)), "unknown extra"),
        (lambda w: w.update({"model.norm.weight": torch.ones(3)}), r"has shape \(3,\), the model \(64,\)"),
        (lambda w: w.update({"model.norm.weight": np.ones(64)}), "is float64, the model float32"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(model, weights, change, message) -> None:
    arriving = {name: tensor + 1 for name, tensor in weights.items()}
    change(arriving)
    with pytest.raises(EngineError, match=message):
        assign_weights(model, arriving)
    assert fingerprint(model.state_dict()) == fingerprint(weights)
