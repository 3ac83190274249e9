"""Unmodified models of many families sample from their own distribution, whatever their attention does."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import transformers as hf

from rlkit.errors import EngineError
from rlkit.policy.fake import ByteTokenizer
from rlkit.policy.hf import HfEngine
from tests.policy.exchange import exact_logprobs, ids, request, sample

SIZES = {
    "vocab_size": 350,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,  # peaked distributions, so that mistakes show
    "pad_token_id": 0,
}
GPT = {"num_key_value_heads": None}
FAMILIES = {
    "llama": hf.LlamaConfig(**SIZES),
    "mistral": hf.MistralConfig(**SIZES, sliding_window=None),
    "qwen2": hf.Qwen2Config(**SIZES),
    "qwen3": hf.Qwen3Config(**SIZES, head_dim=16),
    "phi3": hf.Phi3Config(**SIZES),
    "granite": hf.GraniteConfig(**SIZES, attention_multiplier=0.3, logits_scaling=2.0),
    "cohere": hf.CohereConfig(**SIZES, logit_scale=0.5),
    # soft caps on scores and logits, sliding windows that are longer than every path here
    "gemma2": hf.Gemma2Config(
        **SIZES, head_dim=12, attn_logit_softcapping=2.0, final_logit_softcapping=3.0, sliding_window=256
    ),
    "gpt_neox": hf.GPTNeoXConfig(**{k: v for k, v in SIZES.items() if k != "num_key_value_heads"}),
    "gpt2": hf.GPT2Config(vocab_size=350, n_embd=48, n_layer=2, n_head=4, n_positions=512, initializer_range=0.1),
}


def build(config: hf.PretrainedConfig) -> hf.PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return hf.AutoModelForCausalLM.from_config(copy.deepcopy(config)).eval()  # no dropout


def engine(model: hf.PreTrainedModel, tokenizer) -> HfEngine:
    config = HfEngine.Config(slots=3, prefill_chunk=32, deterministic=False, device="cpu")
    return HfEngine(config, model=model, tokenizer=tokenizer, seed=1, eos_ids=())


@pytest.mark.parametrize("family", FAMILIES)
def test_two_turns_of_two_tasks_match_a_plain_forward(family: str, tokenizer) -> None:
    model = build(FAMILIES[family])
    exact = copy.deepcopy(model).double()  # before the engine puts its attention in
    policy = engine(model, tokenizer)
    prompts = {"a": ids(70, seed=1), "b": ids(11, seed=2)}
    first = [request(p, task_id=task, sample_index=i) for task, p in prompts.items() for i in range(3)]
    answers = sample(policy, *first)
    second = [
        request(
            np.concatenate([asked.token_ids, found.token_ids, ids(8 + 30 * (i == 1), seed=i)]),
            task_id=asked.task_id,
            sample_index=asked.sample_index,
            turn=1,
            num_shared=asked.num_shared,
        )
        for i, (asked, found) in enumerate(zip(first, answers, strict=True))
    ]
    for asked, found in zip(first + second, answers + sample(policy, *second), strict=True):
        expected = exact_logprobs(exact, asked.token_ids, found)
        np.testing.assert_allclose(found.behavior_logprobs, expected, rtol=0, atol=1e-5)


def test_a_path_longer_than_the_sliding_window_is_refused() -> None:
    policy = engine(build(hf.MistralConfig(**SIZES, sliding_window=32)), ByteTokenizer())
    assert len(sample(policy, request(ids(20)))[0].token_ids) == 6
    with pytest.raises(EngineError, match=r"30 \+ 6 tokens exceed the model's window of 32"):
        sample(policy, request(ids(30)))


def test_attention_sinks_are_refused() -> None:
    config = hf.GptOssConfig(**SIZES, head_dim=12, num_local_experts=2, num_experts_per_tok=1)
    with pytest.raises(EngineError, match="GptOssAttention passes s_aux"):
        engine(build(config), ByteTokenizer())


def test_recurrent_layers_are_refused() -> None:
    config = hf.MambaConfig(vocab_size=350, hidden_size=48, num_hidden_layers=2, state_size=4)
    with pytest.raises(EngineError, match="HfEngine needs"):
        engine(build(config), ByteTokenizer())


def test_a_learner_cannot_use_the_model_of_an_engine() -> None:
    model = build(FAMILIES["llama"])
    engine(model, ByteTokenizer())
    with pytest.raises(EngineError, match="give the learner its own model"):
        model(torch.zeros(1, 3, dtype=torch.long))
