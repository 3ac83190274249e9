"""What every engine of token sequences keeps, whichever runs it: `hf` here, vLLM in its own environment."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlkit.errors import EngineError
from rlkit.policy.base import Sampling
from rlkit.policy.hf import HfEngine
from rlkit.policy.tiny import tiny_model
from rlkit.policy.vllm import VllmEngine
from rlkit.sync.fingerprint import fingerprint
from tests.policy.exchange import exact_logprobs, ids, request, sample

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / VllmEngine.Config().python
VLLM = pytest.mark.skipif(not PYTHON.is_file(), reason="no .venv-vllm; launch/setup-vllm makes it")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """An engine, its model, and how near its log-probs are to exact ones."""

    engine: Any
    folder: Path
    tolerance: float
    """Nats."""


@pytest.fixture(scope="module", params=["hf", pytest.param("vllm", marks=[VLLM, pytest.mark.slow])])
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tiny_model(tmp_path_factory.mktemp("model") / "tiny", hidden=128)  # heads of 32: vLLM has none smaller
    if request.param == "hf":
        config = HfEngine.Config(slots=8, deterministic=False, device="cpu")
        yield Bench(engine=HfEngine.from_pretrained(config, folder, seed=3, eos_ids=[2]), folder=folder, tolerance=1e-5)
        return
    engine = VllmEngine(VllmEngine.Config(slots=8), model_dir=folder, seed=3, eos_ids=[2], max_model_len=512)
    yield Bench(engine=engine, folder=folder, tolerance=1e-3)
    engine.close()


def exact(bench: Bench) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(bench.folder, dtype=torch.float64, local_files_only=True)


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Float32, under the names of the model's file: tied ones once."""
    return {name: p.detach().float() for name, p in model.named_parameters()}


def test_logprobs_are_those_of_the_distribution_that_was_sampled(bench: Bench) -> None:
    samplings = [Sampling(), Sampling(temperature=0.6), Sampling(top_k=5), Sampling(top_k=50, top_p=0.5)]
    asked = [
        request(ids(size, seed=size), task_id=f"{size}", sample_index=i, num_shared=size, sampling=one, max_tokens=12)
        for size in (90, 7)
        for i, one in enumerate(samplings)
    ]
    model = exact(bench)
    for one, found in zip(asked, sample(bench.engine, *asked), strict=True):
        assert 1 <= len(found.token_ids) <= 12
        truth = exact_logprobs(model, one.token_ids, found)
        np.testing.assert_allclose(found.behavior_logprobs, truth, rtol=0, atol=bench.tolerance)
        assert found.sampling.temperature == one.sampling.temperature
        assert (found.sampling.support_ids is not None) == bool(one.sampling.top_k)


def test_siblings_differ(bench: Bench) -> None:
    found = sample(bench.engine, *[request(ids(9), sample_index=i, max_tokens=8) for i in range(6)])
    assert len({tuple(one.token_ids) for one in found}) == 6


def test_more_prompts_than_one_batch_takes_are_sampled_all_the_same(bench: Bench) -> None:
    prompts = [ids(300, seed=i) for i in range(9)]
    found = sample(bench.engine, *[request(one, task_id=str(i), max_tokens=4) for i, one in enumerate(prompts)])
    assert [len(one.token_ids) for one in found] == [4] * 9 or any(one.finish == "eos" for one in found)


def test_a_stop_string_ends_with_the_token_that_completes_it_even_across_two_pieces(bench: Bench) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bench.folder, local_files_only=True)
    prompt = ids(9)
    [free] = sample(bench.engine, request(prompt, sampling=Sampling(temperature=0), max_tokens=6))
    texts = [tokenizer.decode(free.token_ids[: n + 1]) for n in range(len(free.token_ids))]
    stop = texts[3][len(texts[1]) :]  # what the third and the fourth token say
    first = next(n for n, text in enumerate(texts) if stop in text)
    greedy = {"sampling": Sampling(temperature=0), "stop": (stop,)}
    [whole] = sample(bench.engine, request(prompt, max_tokens=20, **greedy))
    assert whole.finish == "stop"
    assert list(whole.token_ids) == list(free.token_ids[: first + 1])
    begun = np.concatenate([prompt, free.token_ids[:first]])
    [rest] = sample(bench.engine, request(begun, num_shared=len(prompt), start=first, max_tokens=20, **greedy))
    assert (rest.finish, list(rest.token_ids)) == ("stop", [free.token_ids[first]])


def test_an_end_token_is_included_and_a_cap_is_said(bench: Bench) -> None:
    found = sample(
        bench.engine,
        *[request(ids(5), sample_index=i, sampling=Sampling(temperature=2.0), max_tokens=60) for i in range(40)],
    )
    for one in found:
        ends = np.flatnonzero(one.token_ids == 2)
        if one.finish == "eos":
            assert list(ends) == [len(one.token_ids) - 1]
        else:
            assert one.finish == "length" and len(one.token_ids) == 60 and not len(ends)
    assert "eos" in {one.finish for one in found}


def test_new_weights_are_what_runs_and_no_key_of_older_ones_is_used(bench: Bench) -> None:
    asked = request(ids(60), num_shared=60, max_tokens=8)
    [before] = sample(bench.engine, asked)
    model = exact(bench)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter += 0.05 * noise.to(parameter.dtype)
            parameter.copy_(parameter.float())
    weights = weights_of(model)
    assert bench.engine.load_weights(weights, 7) == fingerprint(weights)
    assert bench.engine.version == 7
    [after] = sample(bench.engine, asked)
    assert (before.policy_version, after.policy_version) == (0, 7)
    truth = exact_logprobs(model, asked.token_ids, after)
    np.testing.assert_allclose(after.behavior_logprobs, truth, rtol=0, atol=bench.tolerance)
    stale = exact_logprobs(exact(bench), asked.token_ids, after)
    assert np.abs(stale - truth).max() > 100 * bench.tolerance  # so the weights of before would have been noticed
    bench.engine.load_weights(weights_of(exact(bench)), 0)


def test_a_missing_tensor_is_refused_and_the_engine_goes_on(bench: Bench) -> None:
    weights, version = weights_of(exact(bench)), bench.engine.version
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(EngineError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        bench.engine.load_weights(weights, 9)
    assert bench.engine.version == version
    assert sample(bench.engine, request(ids(5), max_tokens=2))[0].policy_version == version


def test_weights_wait_for_samples_in_flight_and_a_cancelled_sample_is_none(bench: Bench) -> None:
    weights = weights_of(exact(bench))

    async def both() -> None:
        running = asyncio.ensure_future(bench.engine.sample(request(ids(5), max_tokens=400)))
        await asyncio.sleep(0.05)
        with pytest.raises(EngineError, match="in flight"):
            bench.engine.load_weights(weights, 1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        # what was cancelled makes room: others are served, and then the weights can come
        assert len((await bench.engine.sample(request(ids(5), max_tokens=2))).token_ids)

    asyncio.run(both())
    bench.engine.load_weights(weights, 0)


@VLLM
@pytest.mark.slow
def test_vllm_refuses_what_it_cannot_record(bench: Bench) -> None:
    if isinstance(bench.engine, HfEngine):
        pytest.skip("hf records every kept set")
    with pytest.raises(EngineError, match=r"rollout\.top_p: 0\.9 without rollout\.top_k"):
        sample(bench.engine, request(ids(5), sampling=Sampling(top_p=0.9)))
    with pytest.raises(EngineError, match=r"rollout\.top_k: 65 is above engine\.max_top_k=64"):
        sample(bench.engine, request(ids(5), sampling=Sampling(top_k=65)))


def test_a_missing_environment_is_said_with_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"engine\.python: no file 'nowhere/python'; `launch/setup-vllm`"):
        VllmEngine(VllmEngine.Config(python="nowhere/python"), model_dir=tiny_model(tmp_path / "m"), seed=0)
