"""Sampling a group: `HfEngine` beside `transformers.generate`; same model, prompts, threads, number of tokens.

    python -m benchmarks.generate                     writes benchmarks/results/generate.{json,md}, half an hour
    python -m benchmarks.generate --shapes 400x16x32  prompt x group x completion, in tokens

Both sample at temperature 1 and never stop early, so both make G·R tokens; `generate` gets the prompt G times, as
TRL hands it over. Runs are interleaved (A B A B ...), because a machine is seldom idle twice in the same way, and
the table shows medians. Peak memory is what a run adds to the weights.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from rlkit.models.pretrained import is_prepared, prepared_path

RESULTS = Path(__file__).parent / "results"
SHAPES = tuple(f"{p}x{g}x{r}" for p in (60, 400, 1000) for g in (8, 16) for r in (32, 64))
MIB = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One shape, both contestants; medians over the repeats."""

    prompt: int
    """Tokens of the prompt."""
    group: int
    completion: int
    """Tokens of each of the `group` completions."""
    generate_s: float
    rlkit_s: float
    generate_peak_mib: float
    rlkit_peak_mib: float

    @property
    def ratio(self) -> float:
        """How many times faster rlkit is."""
        return self.generate_s / self.rlkit_s


def peak_of(run: Callable[[], None]) -> tuple[float, float]:
    """Seconds that `run` takes, and MiB that it adds to the resident memory at its peak (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    start = time.perf_counter()
    run()
    return time.perf_counter() - start, (_status("VmHWM") - before) / MIB


def _status(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(shapes: list[str], repeats: int, model_dir: Path | None, deterministic: bool) -> list[Row]:
    """Interleaved runs of both over all shapes."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    from rlkit.policy.base import SampleRequest
    from rlkit.policy.fake import ByteTokenizer
    from rlkit.policy.hf import HfEngine

    logging.set_verbosity_error()
    logging.disable_progress_bar()

    def load() -> torch.nn.Module:
        if model_dir is not None:
            return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, local_files_only=True)
        torch.manual_seed(0)  # random weights cost the same
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=49152,
                hidden_size=576,
                intermediate_size=1536,
                num_hidden_layers=30,
                num_attention_heads=9,
                num_key_value_heads=3,
                max_position_embeddings=8192,
                tie_word_embeddings=True,
            )
        )

    class Silent(ByteTokenizer):
        """Neither side is charged for text."""

        def decode(self, token_ids: object, *, skip_special_tokens: bool = False) -> str:
            return ""

    plain, served = load().eval(), load()

    def fresh_engine() -> HfEngine:
        config = HfEngine.Config(device="cpu", deterministic=deterministic)
        return HfEngine(config, model=served, tokenizer=Silent(), seed=0, eos_ids=())  # type: ignore[arg-type]

    def generate(ids: np.ndarray, group: int, completion: int) -> None:
        batch = torch.tensor(ids, dtype=torch.long).repeat(group, 1)
        with torch.inference_mode():
            out = plain.generate(
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
        assert out.shape == (group, len(ids) + completion)

    def rlkit(engine: HfEngine, ids: np.ndarray, group: int, completion: int) -> None:
        async def sample() -> int:
            requests = [
                SampleRequest(
                    task_id="benchmark",
                    sample_index=index,
                    turn=0,
                    token_ids=ids,
                    num_shared=len(ids),
                    max_tokens=completion,
                )
                for index in range(group)
            ]
            return sum(len(c.token_ids) for c in await asyncio.gather(*map(engine.sample, requests)))

        assert asyncio.run(sample()) == group * completion

    rows = []
    for shape in shapes:
        prompt, group, completion = map(int, shape.split("x"))
        ids = np.random.default_rng(0).integers(0, 49152, prompt).astype(np.int32)
        generate(ids[:16], group, 2)  # warm up
        rlkit(fresh_engine(), ids[:16], group, 2)
        runs: dict[str, list[tuple[float, float]]] = {"generate": [], "rlkit": []}
        for _ in range(repeats):
            runs["generate"].append(peak_of(partial(generate, ids, group, completion)))
            # A new engine, because one that ran before has its buffers already.
            runs["rlkit"].append(peak_of(partial(rlkit, fresh_engine(), ids, group, completion)))
        medians = {name: [statistics.median(column) for column in zip(*of, strict=True)] for name, of in runs.items()}
        rows.append(
            Row(
                prompt=prompt,
                group=group,
                completion=completion,
                generate_s=medians["generate"][0],
                rlkit_s=medians["rlkit"][0],
                generate_peak_mib=medians["generate"][1],
                rlkit_peak_mib=medians["rlkit"][1],
            )
        )
        print(table(rows[-1:]).splitlines()[-1], file=sys.stderr)
    return rows


def table(rows: list[Row]) -> str:
    """The rows in markdown."""
    lines = [
        "| prompt P | group G | completion R | generate, tokens/s | rlkit, tokens/s | ratio "
        "| generate, MiB | rlkit, MiB |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        tokens = row.group * row.completion
        lines.append(
            f"| {row.prompt} | {row.group} | {row.completion} | {tokens / row.generate_s:.1f} "
            f"| {tokens / row.rlkit_s:.1f} | {row.ratio:.1f} | {row.generate_peak_mib:.0f} | {row.rlkit_peak_mib:.0f} |"
        )
    return "\n".join(lines)


def machine(threads: int) -> dict[str, str | int]:
    """What the numbers were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "cpu": cpu,
        "cores": os.cpu_count() or 1,
        "threads": threads,
        "MKL_CBWR": os.environ.get("MKL_CBWR", "unset"),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "commit": commit,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), metavar="PxGxR")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--usual-math", action="store_true", help="no MKL_CBWR, results depend on the batch")
    parser.add_argument("--name", default="generate", help="of the two files in benchmarks/results")
    options = parser.parse_args()

    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch loads
    if not options.usual_math:
        from rlkit.policy.invariance import VARIABLE, strict_mode

        os.environ.setdefault(VARIABLE, strict_mode())
    model_dir = prepared_path("smollm2-135m")
    rows = measure(
        options.shapes,
        options.repeats,
        model_dir if is_prepared(model_dir) else None,
        deterministic=not options.usual_math,
    )
    facts = machine(options.threads) | {
        "command": "python -m benchmarks.generate " + " ".join(sys.argv[1:]),
        "model": "SmolLM2-135M-Instruct" if is_prepared(model_dir) else "random weights, shape of SmolLM2-135M",
        "repeats": options.repeats,
    }
    RESULTS.mkdir(exist_ok=True)
    data = {"machine": facts, "rows": [asdict(row) | {"ratio": row.ratio} for row in rows]}
    (RESULTS / f"{options.name}.json").write_text(json.dumps(data, indent=2) + "\n")
    facts_text = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    text = (
        "# Sampling a group: HfEngine and transformers.generate\n\n"
        f"{table(rows)}\n\nMedians of interleaved runs. MiB: peak resident memory that a run adds to the weights.\n\n"
        f"{facts_text}\n"
    )
    (RESULTS / f"{options.name}.md").write_text(text)
    print(table(rows))


if __name__ == "__main__":
    main()
