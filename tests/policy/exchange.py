"""Requests to an engine, and what its answers should be."""

from __future__ import annotations

import asyncio

import numpy as np
import torch

from rlkit.policy.base import Completion, SampleRequest
from rlkit.policy.hf import HfEngine


def sample(engine: HfEngine, *requests: SampleRequest) -> list[Completion]:
    """All requests at once."""

    async def run() -> list[Completion]:
        return list(await asyncio.gather(*map(engine.sample, requests)))

    return asyncio.run(run())


def ids(length: int, seed: int = 0) -> np.ndarray:
    """[length] some token ids."""
    return np.random.default_rng(seed).integers(3, 350, length).astype(np.int32)


def request(token_ids: np.ndarray, **changes: object) -> SampleRequest:
    """A request for 6 tokens after a prompt that all samples share."""
    fields = {"task_id": "t", "sample_index": 0, "turn": 0, "num_shared": len(token_ids), "max_tokens": 6}
    return SampleRequest(token_ids=token_ids, **(fields | changes))  # type: ignore[arg-type]


def exact_logprobs(model: torch.nn.Module, path: np.ndarray, completion: Completion) -> np.ndarray:
    """[R] log-probabilities recomputed by one plain forward over the whole path, normalised as recorded."""
    whole = torch.tensor(np.concatenate([path, completion.token_ids]), dtype=torch.long)
    with torch.inference_mode():
        logits = model(whole[None]).logits[0].double().numpy()
    state, found = completion.sampling, []
    for i, token in enumerate(completion.token_ids):
        row = logits[len(path) + i - 1] / state.temperature
        kept = np.arange(len(row))
        if state.support_offsets is not None:
            kept = state.support_ids[state.support_offsets[i] : state.support_offsets[i + 1]]
        found.append(row[token] - np.logaddexp.reduce(row[kept]))
    return np.array(found)
