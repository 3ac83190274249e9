"""Engines against the learner: how far apart are their log-probs, and do they follow new weights?

    python -m benchmarks.engines [--model smollm2-135m] > benchmarks/results/engines.md

Every engine samples after the same prompts, takes weights that were moved, and samples again. The learner of a
recipe with the same dtype scores what was sampled. What is left is what kernels differ by, which ratios and the canary
have to bear. Engines run one after the other, learner and engine side by side.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import machine
from rlkit.algorithms import grpo
from rlkit.canary import TOLERANCE, Sighting, difference
from rlkit.learner.build import build_learner
from rlkit.models.pretrained import resolve_model
from rlkit.policy.base import Completion, Engine, SampleRequest, Sampling
from rlkit.policy.hf import HfEngine
from rlkit.policy.vllm import VllmEngine
from rlkit.recipe import LearnerSettings, ModelSettings, Optim
from rlkit.sync.local import LocalSync

PROMPTS, GROUP, PROMPT_TOKENS, TOKENS = 4, 8, 200, 64
SAMPLINGS = {
    "temperature 1": Sampling(),
    "temperature 0.6, top-k 20, top-p 0.95": Sampling(temperature=0.6, top_k=20, top_p=0.95),
}


@dataclass(frozen=True, kw_only=True)
class Found:
    """One engine, dtype and distribution."""

    differences: np.ndarray
    """[tokens] learner less engine, nats."""
    tokens_per_s: float


def requests(sampling: Sampling, version: int) -> Iterator[SampleRequest]:
    """Groups after prompts of random words."""
    rng = np.random.default_rng(0)
    for prompt in range(PROMPTS):
        ids = rng.integers(100, 10_000, PROMPT_TOKENS).astype(np.int32)
        for sample in range(GROUP):
            yield SampleRequest(
                task_id=f"{version}/{prompt}",
                sample_index=sample,
                turn=0,
                token_ids=ids,
                num_shared=len(ids),
                max_tokens=TOKENS,
                sampling=sampling,
            )


def sampled(engine: Engine, asked: Sequence[SampleRequest]) -> tuple[list[Completion], float]:
    """All at once; seconds."""

    async def run() -> list[Completion]:
        return list(await asyncio.gather(*map(engine.sample, asked)))

    start = time.perf_counter()
    return asyncio.run(run()), time.perf_counter() - start


def compare(engine: Engine, learner: Any, sampling: Sampling, version: int) -> Found:
    """Log-probs of learner and engine over every sampled token."""
    asked = list(requests(sampling, version))
    done, seconds = sampled(engine, asked)
    differences = [
        difference(
            learner,
            Sighting(
                path=one.token_ids,
                token_ids=completion.token_ids,
                logprobs=completion.behavior_logprobs.astype(np.float64),
                sampling=completion.sampling,
            ),
        )
        for one, completion in zip(asked, done, strict=True)
    ]
    num_tokens = sum(len(one.token_ids) for one in done)
    return Found(differences=np.concatenate(differences), tokens_per_s=num_tokens / seconds)


def move(learner: Any) -> None:
    """Change every weight by about a tenth of its size: a step that would show if it were lost."""
    with torch.no_grad():
        for number, parameter in enumerate(learner.sharding.policy.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter += 0.1 * parameter.std() * noise
    learner.version += 1


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    folder: Path = resolve_model(parser.parse_args().model)
    torch.set_num_threads(1)
    print("# Engines and learner: how far apart log-probs are\n")
    print("```bash\nlaunch/setup-vllm\npython -m benchmarks.engines > benchmarks/results/engines.md\n```\n")
    print(
        f"{PROMPTS} prompts of {PROMPT_TOKENS} tokens x {GROUP} samples of at most {TOKENS} tokens; nats per token; "
        'one thread.\n"Moved": after a weight sync that changed every weight by a tenth of its size, in place.\n'
    )
    print("| engine | dtype | weights | distribution | mean | 99 % | worst | canary allows | tokens/s |")
    print("| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for kind in ("hf", "vllm"):
        for dtype in ("float32", "bfloat16"):
            model = ModelSettings(path=str(folder), dtype=dtype, max_context=512)  # type: ignore[arg-type]
            learner = build_learner(
                model,
                LearnerSettings(row_tokens=512),
                Optim(),
                grpo.ALGORITHM,
                grpo.GrpoConfig(),
                model_dir=folder,
                total_updates=1,
            )
            engine: Any = (
                HfEngine.from_pretrained(HfEngine.Config(deterministic=False), folder, seed=0, dtype=dtype)
                if kind == "hf"
                else VllmEngine(VllmEngine.Config(), model_dir=folder, seed=0, dtype=dtype, max_model_len=512)
            )
            for weights in ("as loaded", "moved"):
                if weights == "moved":
                    move(learner)
                    LocalSync(engine).push(learner)  # raises where fingerprints differ
                for title, sampling in SAMPLINGS.items():
                    found = compare(engine, learner, sampling, learner.version)
                    size = np.abs(found.differences)
                    print(
                        f"| {kind} | {dtype} | {weights} | {title} | {size.mean():.2g} | {np.quantile(size, 0.99):.2g} "
                        f"| {size.max():.2g} | {TOLERANCE[dtype]:g} | {found.tokens_per_s:.0f} |",
                        flush=True,
                    )
            if kind == "vllm":
                engine.close()
    print("\n" + ", ".join(f"{name} {value}" for name, value in machine(1).items()))


if __name__ == "__main__":
    main()
