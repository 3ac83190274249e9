"""A program, run by test_bit_equality.py: the same two-turn rollouts in many circumstances, bit by bit.

    python -m tests.policy.repeated_rollouts SHAPE ...     prints {shape: {circumstance: equal}} as JSON

SHAPE is one of `MODELS` or the folder of a model. With `usual` before them, nothing is done to make rollouts
equal. It is a process of its own because MKL reads its mode at the first product.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlkit.policy.base import Completion, SampleRequest, Sampling
from rlkit.policy.fake import ByteTokenizer
from rlkit.policy.hf import HfEngine
from rlkit.randomness import stream

VOCAB = 331


def llama(layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, head_dim: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=2048,
        initializer_range=0.2,  # wide, so that distributions are peaked and every bit of the logits counts
    )
    return LlamaForCausalLM(config)


MODELS = {
    "smol": lambda: llama(1, 576, 1536, 9, 3, 64),  # one layer's shape of SmolLM2-135M
    "odd": lambda: llama(2, 90, 77, 5, 5, 18),  # nothing is a multiple of a vector
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=48, n_layer=2, n_head=4, n_positions=2048, initializer_range=0.2)
    ),
}


class Ids(ByteTokenizer):
    """Reads ids beyond the bytes, too: these models are random."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return super().decode([token % 256 for token in token_ids])


USUAL = sys.argv[1:2] == ["usual"]


def engine(model: torch.nn.Module, **settings: int) -> HfEngine:
    config = HfEngine.Config(device="cpu", deterministic=not USUAL, **{"slots": 16, "prefill_chunk": 96, **settings})
    return HfEngine(config, model=model, tokenizer=Ids(), seed=7, eos_ids=())


def prompt(task: int) -> np.ndarray:
    length = (300, 41)[task]  # tokens; chunks of 96 cut the first
    return stream("prompt", task).integers(0, VOCAB, length).astype(np.int32)


Key = tuple[int, int, int]
KEYS = [(task, sample) for task in range(2) for sample in range(4)]


async def trajectory(task: int, sample: int, engines: Sequence[HfEngine], delay_s: float) -> dict[Key, Completion]:
    """Two turns; turn t runs on `engines[t]`. Lengths differ, so slots refill at different times."""
    await asyncio.sleep(delay_s)
    path, found = prompt(task), {}
    for turn, policy in enumerate(engines):
        request = SampleRequest(
            task_id=f"task {task}",
            sample_index=sample,
            turn=turn,
            token_ids=path,
            num_shared=len(prompt(task)),
            max_tokens=(70, 9, 20, 5)[(sample + turn) % 4],
            sampling=Sampling(temperature=1.0 if sample % 2 else 0.8, top_k=0 if sample < 2 else 40),
        )
        completion = await policy.sample(request)
        observation = stream("observation", task, sample).integers(0, VOCAB, 120 if sample == 3 else 5)
        path = np.concatenate([path, completion.token_ids, observation.astype(np.int32)])
        found[task, sample, turn] = completion
    return found


def rollouts(*workers: Sequence[HfEngine], shuffle: int | None = None) -> dict[Key, Completion]:
    """All trajectories, spread over `workers`; with `shuffle` they arrive one by one in another order."""

    async def run() -> dict[Key, Completion]:
        delays = np.zeros(len(KEYS)) if shuffle is None else stream(shuffle).permutation(len(KEYS)) * 0.004
        parts = [
            trajectory(task, sample, workers[index % len(workers)], delays[index])
            for index, (task, sample) in enumerate(KEYS)
        ]
        return {key: value for part in await asyncio.gather(*parts) for key, value in part.items()}

    return asyncio.run(run())


def bits(found: dict[Key, Completion]) -> dict[Key, bytes]:
    return {key: c.token_ids.tobytes() + c.behavior_logprobs.tobytes() for key, c in found.items()}


def compare(model: torch.nn.Module) -> dict[str, bool]:
    """Circumstance -> whether every rollout equals the reference."""

    def fresh(**settings: int) -> list[HfEngine]:
        return [engine(model, **settings)] * 2

    reference = bits(rollouts(fresh()))
    torch.set_num_threads(2)
    two_threads = bits(rollouts(fresh()))
    torch.set_num_threads(1)
    alone: dict[Key, bytes] = {}
    for task, sample in KEYS:
        alone |= bits(asyncio.run(trajectory(task, sample, fresh(), 0.0)))
    outcomes = {
        "again": bits(rollouts(fresh())),
        "2 threads": two_threads,
        "2 workers": bits(rollouts(fresh(), fresh())),
        "4 workers": bits(rollouts(fresh(), fresh(), fresh(), fresh())),
        "3 slots": bits(rollouts(fresh(slots=3))),
        "shuffled": bits(rollouts(fresh(slots=5), shuffle=1)),
        "alone": alone,
        "worker lost between turns": bits(rollouts([engine(model), engine(model)])),
        "other chunks": bits(rollouts(fresh(prefill_chunk=500))),
    }
    return {name: outcome == reference for name, outcome in outcomes.items()}


def main(shapes: Sequence[str]) -> None:
    torch.set_num_threads(1)
    report: dict[str, dict[str, bool]] = {}
    for shape in shapes:
        torch.manual_seed(0)
        model = MODELS[shape]() if shape in MODELS else AutoModelForCausalLM.from_pretrained(shape)
        report[shape] = compare(model)
    print(json.dumps(report))


if __name__ == "__main__":
    main(sys.argv[1 + USUAL :])
