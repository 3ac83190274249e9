"""Sampling a group: `HfEngine` beside `transformers.generate`; same model, prompts, threads, number of tokens.

    python -m benchmarks.generate                      writes benchmarks/results/generate.{json,md}, half an hour
    python -m benchmarks.generate --shapes 400x16x32   prompt x group x completion, in tokens
    python -m benchmarks.generate --vllm PATH/python   also vLLM, from an environment of its own (`vllm_side.py`)

All sample at temperature 1 and never stop early, so all make G·R tokens; `generate` gets the prompt G times, as TRL
hands it over. Runs are interleaved (A B A B ...), because a machine is seldom idle twice in the same way, and the table
shows medians. Peak memory is what a run adds to the resident memory before it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.machine import machine, peak_bytes, reset_peak, wait_until_quiet
from benchmarks.vllm_side import VllmSide
from rlkit.models.pretrained import is_prepared, prepared_path

if TYPE_CHECKING:  # torch loads after the threads and MKL's mode are set
    from transformers import PreTrainedModel

RESULTS = Path(__file__).parent / "results"
SHAPES = tuple(f"{p}x{g}x{r}" for p in (60, 400, 1000) for g in (8, 16) for r in (32, 64))
VOCAB = 49152
Run = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Of one run, or the median of several."""

    wall_s: float
    cpu_s: float
    """Of this process, all threads: what a busy machine disturbs least."""
    peak_mib: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One shape and every contestant."""

    prompt: int
    """Tokens of the prompt."""
    group: int
    completion: int
    """Tokens of each of the `group` completions."""
    costs: dict[str, Cost] = field(default_factory=dict)

    def tokens_per_s(self, name: str) -> float:
        """Sampled tokens per second of wall clock."""
        return self.group * self.completion / self.costs[name].wall_s


def cost_of(run: Run) -> Cost:
    """Run it, once others leave the machine alone or after ten seconds."""
    wait_until_quiet(10)
    reset_peak()
    before = peak_bytes()
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return Cost(
        wall_s=time.perf_counter() - wall,
        cpu_s=time.process_time() - cpu,
        peak_mib=(peak_bytes() - before) / 2**20,
    )


def median(costs: list[Cost]) -> Cost:
    """The median of each number by itself."""
    return Cost(**{name: statistics.median(getattr(cost, name) for cost in costs) for name in Cost.__slots__})


class GenerateSide:
    """`transformers.generate` on a batch of G equal prompts, with its default attention and cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()

    def run(self, prompt: list[int], group: int, completion: int) -> Run:
        """A run to measure."""
        import torch

        def generate() -> None:
            batch = torch.tensor([prompt] * group)
            with torch.inference_mode():
                out = self.model.generate(
                    batch,
                    attention_mask=torch.ones_like(batch),
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                    max_new_tokens=completion,
                    min_new_tokens=completion,
                    eos_token_id=None,
                    pad_token_id=0,
                )
            assert out.shape == (group, len(prompt) + completion)

        return generate


class RlkitSide:
    """`HfEngine`, a new one for every run: one that ran before has its buffers already."""

    def __init__(self, model: PreTrainedModel, *, deterministic: bool) -> None:
        self.model, self.deterministic = model, deterministic

    def run(self, prompt: list[int], group: int, completion: int) -> Run:
        """A run to measure."""
        import numpy as np

        from rlkit.policy.base import SampleRequest
        from rlkit.policy.fake import ByteTokenizer
        from rlkit.policy.hf import HfEngine

        class Silent(ByteTokenizer):
            """No side is charged for text."""

            def decode(self, token_ids: object, *, skip_special_tokens: bool = False) -> str:
                return ""

        config = HfEngine.Config(device="cpu", deterministic=self.deterministic)
        engine = HfEngine(config, model=self.model, tokenizer=Silent(), seed=0, eos_ids=())
        requests = [
            SampleRequest(
                task_id="benchmark",
                sample_index=index,
                turn=0,
                token_ids=np.array(prompt, np.int32),
                num_shared=len(prompt),
                max_tokens=completion,
            )
            for index in range(group)
        ]

        async def sample() -> int:
            return sum(len(c.token_ids) for c in await asyncio.gather(*map(engine.sample, requests)))

        def run() -> None:
            assert asyncio.run(sample()) == group * completion

        return run


def load(folder: Path | None) -> PreTrainedModel:
    """The model in float32; without a folder, random weights of the same shape, which cost the same."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if folder is not None:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def measure(shape: str, sides: dict[str, Callable[[list[int], int, int], Run]], repeats: int) -> Row:
    """Interleaved runs of all sides."""
    import numpy as np

    prompt, group, completion = map(int, shape.split("x"))
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    for repeat in range(-1, repeats):  # -1 warms up
        for name, side in sides.items():
            # A new prompt for every run, so that nobody finds it in a cache.
            ids = np.random.default_rng(repeat + 1).integers(0, VOCAB, prompt).tolist()
            if repeat < 0:
                side(ids[:16], group, 2)()
            else:
                costs[name].append(cost_of(side(ids, group, completion)))
    return Row(
        prompt=prompt, group=group, completion=completion, costs={name: median(of) for name, of in costs.items()}
    )


def table(rows: list[Row]) -> str:
    """The rows in markdown."""
    names = list(rows[0].costs)
    head = ["P", "G", "R", *(f"{name}, tokens/s" for name in names), "rlkit / generate", "in CPU s"]
    head += [f"{name}, MiB" for name in names if name != "vllm"]
    lines = [head, ["---:"] * len(head)]
    for row in rows:
        generate, rlkit = row.costs["generate"], row.costs["rlkit"]
        line = [str(row.prompt), str(row.group), str(row.completion)]
        line += [f"{row.tokens_per_s(name):.1f}" for name in names]
        line += [f"{generate.wall_s / rlkit.wall_s:.1f}", f"{generate.cpu_s / rlkit.cpu_s:.1f}"]
        line += [f"{row.costs[name].peak_mib:.0f}" for name in names if name != "vllm"]
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(name: str, rows: list[Row], facts: dict[str, object]) -> None:
    """`results/NAME.json` and `results/NAME.md`."""
    RESULTS.mkdir(exist_ok=True)
    data = {"facts": facts, "rows": [asdict(row) for row in rows]}
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=2) + "\n")
    listed = "\n".join(f"- {key}: {value}" for key, value in facts.items())
    text = (
        "# Sampling a group: HfEngine and transformers.generate\n\n"
        "P tokens of prompt, G completions of R tokens each; medians of interleaved runs (benchmarks/generate.py).\n"
        "MiB is the peak that a run adds to the weights. CPU seconds are what load from elsewhere disturbs least.\n\n"
        f"{table(rows)}\n\n{listed}\n"
    )
    (RESULTS / f"{name}.md").write_text(text)


def main() -> None:
    """Measure all shapes, rewriting the results after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), metavar="PxGxR")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--usual-math", action="store_true", help="no MKL_CBWR: results depend on the batch")
    parser.add_argument("--vllm", type=Path, metavar="PYTHON", help="interpreter of an environment with vLLM")
    parser.add_argument("--name", default="generate", help="of the two files in benchmarks/results")
    options = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch loads
    if not options.usual_math:
        from rlkit.policy.invariance import VARIABLE, strict_mode

        os.environ.setdefault(VARIABLE, strict_mode())
    prepared = prepared_path("smollm2-135m")
    folder = prepared if is_prepared(prepared) else None
    sides = {
        "generate": GenerateSide(load(folder)).run,
        "rlkit": RlkitSide(load(folder), deterministic=not options.usual_math).run,
    }
    if options.vllm is not None:
        if folder is None:
            parser.error("--vllm needs the prepared model; run: python -m rlkit.launch.model")
        sides["vllm"] = VllmSide(options.vllm, folder, options.threads).run
    facts: dict[str, object] = machine(options.threads) | {
        "MKL_CBWR": os.environ.get("MKL_CBWR", "unset"),
        "model": "random weights, shape of SmolLM2-135M" if folder is None else folder.name,
        "dtype": "float32",
        "repeats": options.repeats,
        "command": " ".join(["python -m benchmarks.generate", *sys.argv[1:]]),
    }
    rows: list[Row] = []
    for shape in options.shapes:
        rows.append(measure(shape, sides, options.repeats))
        print(table(rows).splitlines()[-1], flush=True)
        write(options.name, rows, facts)


if __name__ == "__main__":
    main()
