"""The engine samples from the model's own distribution and computes every shared token once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlkit.errors import EngineError
from rlkit.policy.base import Sampling
from rlkit.policy.hf import HfEngine
from tests.policy.exchange import exact_logprobs, ids, request, sample


def same(a, b) -> bool:
    """Equal tokens, log-probabilities equal to float32 rounding."""
    return np.array_equal(a.token_ids, b.token_ids) and np.allclose(
        a.behavior_logprobs, b.behavior_logprobs, rtol=0, atol=1e-5
    )


def test_logprobs_are_those_of_a_plain_forward_in_float64(make_engine, exact_model) -> None:
    samplings = [
        Sampling(),
        Sampling(temperature=0.6),
        Sampling(top_k=5),
        Sampling(temperature=1.3, top_p=0.8),
        Sampling(top_k=50, top_p=0.5),
    ]
    prompts = [ids(90, seed=1), ids(7, seed=2)]
    requests = [
        request(prompt, task_id=f"task {task}", sample_index=index, sampling=sampling, max_tokens=12)
        for task, prompt in enumerate(prompts)
        for index, sampling in enumerate(samplings)
    ]
    for asked, found in zip(requests, sample(make_engine(slots=4), *requests), strict=True):
        exact = exact_logprobs(exact_model, asked.token_ids, found)
        np.testing.assert_allclose(found.behavior_logprobs, exact, rtol=0, atol=1e-5)
        assert found.sampling.temperature == asked.sampling.temperature


def test_half_precision_is_close_to_the_exact_distribution(model_dir, exact_model) -> None:
    config = HfEngine.Config(deterministic=False, device="cpu", prefill_chunk=16)
    engine = HfEngine.from_pretrained(config, model_dir, seed=3, dtype="bfloat16", eos_ids=())
    prompt = ids(30)
    for turn in range(2):  # a prompt, a decoded suffix and a chunk of a suffix
        found = sample(engine, request(prompt, turn=turn, num_shared=30, max_tokens=12))[0]
        exact = exact_logprobs(exact_model, prompt, found)
        np.testing.assert_allclose(found.behavior_logprobs, exact, rtol=0, atol=0.02)
        prompt = np.concatenate([prompt, found.token_ids, ids(20, seed=1)])


def test_greedy_decoding_is_what_generate_finds(make_engine, model_dir) -> None:
    prompt = ids(20)
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    expected = model.generate(
        torch.tensor(prompt[None], dtype=torch.long), do_sample=False, max_new_tokens=10, eos_token_id=None
    )
    found = sample(make_engine(), request(prompt, max_tokens=10, sampling=Sampling(temperature=0)))[0]
    assert found.token_ids.tolist() == expected[0, 20:].tolist()


def test_siblings_differ_and_addresses_repeat(make_engine) -> None:
    requests = [request(ids(10), sample_index=index, max_tokens=8) for index in range(6)]
    first, again = sample(make_engine(), *requests), sample(make_engine(), *reversed(requests))
    assert len({found.token_ids.tobytes() for found in first}) == 6
    assert all(same(a, b) for a, b in zip(first, reversed(again), strict=True))


def test_a_constraint_is_sampled_from_and_recorded(make_engine) -> None:
    def even_then_anything(asked, sampled):
        return np.arange(10, 20, 2) if len(sampled) < 2 else None

    engine = make_engine(constraint=even_then_anything)
    found = sample(engine, request(ids(9), max_tokens=3, sampling=Sampling(top_k=3)))[0]
    kept = np.split(found.sampling.support_ids, found.sampling.support_offsets[1:-1])
    assert set(kept[0]) <= {10, 12, 14, 16, 18} and set(kept[1]) <= {10, 12, 14, 16, 18}
    assert [len(ids_) for ids_ in kept] == [3, 3, 3]
    assert all(token in ids_ for token, ids_ in zip(found.token_ids, kept, strict=True))


def test_the_prompt_of_a_group_is_computed_once(make_engine) -> None:
    engine = make_engine(slots=3)  # fewer slots than samples: late ones find the prompt there
    sample(engine, *[request(ids(40), sample_index=index, max_tokens=5) for index in range(7)])
    # 40 tokens of the prompt; of 5 sampled tokens the last is never fed
    assert engine.counts.num_fed == 40 + 7 * (5 - 1)
    assert engine.counts.num_sampled == 7 * 5


def test_a_shared_prefix_gives_what_an_unshared_one_gives(make_engine) -> None:
    prompt = ids(70)
    shared = [request(prompt, sample_index=index) for index in range(3)]
    for num_shared in (0, 1, 69):
        alone = [replace(asked, num_shared=num_shared) for asked in shared]
        found = zip(sample(make_engine(), *shared), sample(make_engine(), *alone), strict=True)
        assert all(same(a, b) for a, b in found)


def test_the_next_turn_feeds_only_what_is_new_and_changes_nothing(make_engine, exact_model) -> None:
    prompt, engine = ids(50), make_engine()
    for index in range(2):
        path = prompt
        for turn in range(3):
            asked = request(path, sample_index=index, turn=turn, num_shared=50)
            before = engine.counts.num_fed
            found = sample(engine, asked)[0]
            scratch = sample(make_engine(prefill_chunk=16), asked)[0]
            assert same(found, scratch)
            np.testing.assert_allclose(
                found.behavior_logprobs, exact_logprobs(exact_model, path, found), rtol=0, atol=1e-5
            )
            # Turn 0 of sample 0 computes the prompt; a later turn the token that ended the last one, the 9 of
            # the observation, and 5 of the 6 it samples.
            new = (50 if index == 0 else 0) if turn == 0 else 1 + 9
            assert engine.counts.num_fed - before == new + 5
            path = np.concatenate([path, found.token_ids, ids(9, seed=turn)])


def test_a_fork_starts_from_the_longest_path_that_is_there(make_engine) -> None:
    prompt, engine = ids(30), make_engine()
    trunk = sample(engine, request(prompt, max_tokens=20))[0]
    path = np.concatenate([prompt, trunk.token_ids[:12]])  # twelve tokens of sample 0, then another way
    asked = request(path, sample_index=5, num_shared=30, max_tokens=4)
    before = engine.counts.num_fed
    fork = sample(engine, asked)[0]
    assert same(fork, sample(make_engine(), asked)[0])
    assert engine.counts.num_fed - before == 1 + 3  # the last token of the path, three of four samples


def test_a_path_that_was_rewritten_is_computed_anew(make_engine) -> None:
    prompt, engine = ids(30), make_engine()
    first = sample(engine, request(prompt, max_tokens=20))[0]
    other = np.concatenate([prompt, first.token_ids[:3], ids(8, seed=9)])
    asked = request(other, turn=1, num_shared=30)
    assert same(sample(engine, asked)[0], sample(make_engine(), asked)[0])


def test_a_released_tree_is_computed_again_and_unknown_ones_are_ignored(make_engine) -> None:
    engine = make_engine()
    for _ in range(2):
        sample(engine, request(ids(40), max_tokens=1))
        engine.release("t")
        engine.release("never seen")
    assert engine.counts.num_fed == 2 * 40


def test_one_task_id_with_two_prompts_is_two_trees(make_engine) -> None:
    engine = make_engine()
    asked = [request(ids(20, seed=seed)) for seed in (0, 1)]
    assert all(same(a, sample(make_engine(), b)[0]) for a, b in zip(sample(engine, *asked), asked, strict=True))


def test_slots_refill_until_all_requests_are_served(make_engine) -> None:
    engine = make_engine(slots=2)
    requests = [
        request(ids(10 + task), task_id=f"{task}", sample_index=index, max_tokens=2 + 5 * index)
        for task in range(3)
        for index in range(3)
    ]
    found = sample(engine, *requests)
    assert [len(completion.token_ids) for completion in found] == [2, 7, 12] * 3
    assert engine.counts.num_forwards < sum(asked.max_tokens for asked in requests)
    alone = [sample(make_engine(), asked)[0] for asked in requests]
    assert all(same(a, b) for a, b in zip(found, alone, strict=True))


def test_long_suffixes_grow_the_buffers_and_cross_every_block(make_engine, exact_model) -> None:
    prompt = ids(5)
    asked = [request(prompt, sample_index=index, max_tokens=300 - 100 * index) for index in range(2)]
    for found in sample(make_engine(), *asked):
        np.testing.assert_allclose(
            found.behavior_logprobs, exact_logprobs(exact_model, prompt, found), rtol=0, atol=1e-5
        )


def test_tokens_out_are_the_tokens_of_the_text(make_engine, tokenizer) -> None:
    found = sample(make_engine(), request(ids(12), max_tokens=30))[0]
    assert found.text == tokenizer.decode(found.token_ids.tolist(), skip_special_tokens=False)
    assert found.finish == "length" and len(found.token_ids) == len(found.behavior_logprobs) == 30
    assert found.token_ids.dtype == np.int32 and found.behavior_logprobs.dtype == np.float32


def test_a_stop_string_ends_with_the_token_that_completes_it(make_engine, tokenizer) -> None:
    requests = [request(ids(12), sample_index=index, max_tokens=60, stop=("e", "wrot")) for index in range(8)]
    stopped = [found for found in sample(make_engine(), *requests) if found.finish == "stop"]
    assert len(stopped) >= 4
    for found in stopped:
        before = tokenizer.decode(found.token_ids[:-1].tolist(), skip_special_tokens=False)
        assert "e" in found.text or "wrot" in found.text
        assert "e" not in before and "wrot" not in before


def test_an_end_token_is_included_and_ends_the_completion(make_engine) -> None:
    ends = range(0, 350, 7)
    found = sample(make_engine(eos_ids=ends), request(ids(12), max_tokens=200))[0]
    assert found.finish == "eos" and found.token_ids[-1] in ends
    assert not set(found.token_ids[:-1].tolist()) & set(ends)


def test_end_tokens_come_from_the_model_and_its_tokenizer(model_dir) -> None:
    config = HfEngine.Config(device="cpu", deterministic=False)
    assert HfEngine.from_pretrained(config, model_dir, seed=0)._eos_ids == {2}


def test_the_context_bounds_the_completion(make_engine) -> None:
    assert len(sample(make_engine(), request(ids(4093), max_tokens=50))[0].token_ids) == 3
    with pytest.raises(EngineError, match="4096 tokens leave no room in a context of 4096"):
        sample(make_engine(), request(ids(4096)))
