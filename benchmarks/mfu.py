"""How much of the machine's matrix-product peak the learner reaches: forward and backward of a packed batch.

    python -m benchmarks.mfu                    writes benchmarks/results/mfu.{json,md}
    python -m benchmarks.mfu --threads 1 --repeats 3 --name quick

A shared machine changes its speed from one second to the next, so the peak is measured before and after every
repetition and the larger one counts; the result is the median of the ratios. Only the model's own work counts:

    6 · N_trunk · T  +  6 · N_head · S  +  12 · pairs · width · layers

N: weights in matrix products, T: input tokens, S: scored tokens, pairs: (query, key) that the tree lets see each other,
width: heads times their size. Twice the forward for the backward; what attention computes twice counts once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.grpo_step import SHAPES, Shape, model_folder
from benchmarks.machine import ROOT, machine, wait_until_quiet

__all__ = ["Repetition", "flops", "markdown", "peak"]

SIZES = (512, 1024, 1536, 2048)
"""Of the square products that the peak is the best of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """One forward and backward and the peaks around it, by two clocks."""

    seconds: float
    cpu_s: float
    """Processor seconds over all threads: what the pass took of the machine, however many others ran."""
    peak: float
    """FLOP per second, wall-clock: the better of before and after."""
    cpu_peak: float
    """FLOP per processor second."""


def peak() -> tuple[float, float]:
    """FLOP per second and per processor second of the fastest float32 product among `SIZES`."""
    import torch

    best = [0.0, 0.0]
    for size in SIZES:
        a, b = torch.randn(size, size), torch.randn(size, size)
        out = torch.empty(size, size)
        for _ in range(4):
            wall, cpu = _clocked(partial(torch.mm, a, b, out=out))
            best = [max(best[0], 2 * size**3 / wall), max(best[1], 2 * size**3 / cpu)]
    return best[0], best[1]


def _clocked(work: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and processor seconds of `work`."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def flops(model: Any, rows: Sequence[Any]) -> dict[str, float]:
    """Terms of the formula for packed rows."""
    config = model.config.get_text_config()
    head = model.get_output_embeddings().weight
    tables = {id(head), id(model.get_input_embeddings().weight)}
    trunk = sum(p.numel() for p in model.parameters() if p.ndim == 2 and id(p) not in tables)
    pairs = sum(int((row.end - range(len(row.end))).sum()) for row in rows)  # key k is seen by k..end[k]-1
    width = config.num_attention_heads * getattr(config, "head_dim", config.hidden_size // config.num_attention_heads)
    return {
        "trunk": 6.0 * trunk * sum(len(row.token_ids) for row in rows),
        "head": 6.0 * head.numel() * sum(len(row.targets) for row in rows),
        "attention": 12.0 * pairs * width * config.num_hidden_layers,
    }


def measure(shape: Shape, folder: Path, *, repeats: int, patience_s: float, row_tokens: int) -> dict[str, Any]:
    """Repetitions of one shape."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from rlkit.algorithms import grpo
    from rlkit.data.packing import pack
    from rlkit.learner.gradient import add_gradients
    from rlkit.learner.tree_policy import TreePolicy

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    policy, config = TreePolicy(model), grpo.GrpoConfig()
    random = np.random.default_rng(0)
    trees = [random_tree(shape, random) for _ in range(shape.prompts)]
    rows = pack(grpo.ALGORITHM.credit(trees, config, None), row_tokens).rows

    def train() -> None:
        policy.zero_grad(set_to_none=True)
        add_gradients(policy, rows, grpo.ALGORITHM, config, with_entropy=True)

    train()  # warm-up
    repetitions = []
    for _ in range(repeats):
        wait_until_quiet(patience_s)
        before, (seconds, cpu_s), after = peak(), _clocked(train), peak()
        found = Repetition(
            seconds=seconds, cpu_s=cpu_s, peak=max(before[0], after[0]), cpu_peak=max(before[1], after[1])
        )
        repetitions.append(found)
        print(f"{shape}: {found}", file=sys.stderr, flush=True)
    terms = flops(model, rows)
    work = sum(terms.values())
    return {
        "shape": asdict(shape),
        "rows": [len(row.token_ids) for row in rows],
        "scored": sum(len(row.targets) for row in rows),
        "flops": terms,
        "repetitions": [asdict(r) for r in repetitions],
        "mfu": statistics.median(work / r.seconds / r.peak for r in repetitions),
        "mfu_of_processor_time": statistics.median(work / r.cpu_s / r.cpu_peak for r in repetitions),
        "seconds": statistics.median(r.seconds for r in repetitions),
        "flops_per_s": statistics.median(work / r.seconds for r in repetitions),
        "peak": statistics.median(r.peak for r in repetitions),
        "tokens_per_s": statistics.median(sum(len(row.token_ids) for row in rows) / r.seconds for r in repetitions),
    }


def random_tree(shape: Shape, random: Any) -> Any:
    """A scored tree of one prompt and its group, random tokens and rewards."""
    import numpy as np

    from rlkit.records import Leaf, Node, RewardTerm, SamplingState, ScoredTree, Task, Tree

    def ids(size: int) -> Any:
        return random.integers(3, 49152, size).astype(np.int32)

    likely = np.full(shape.completion, -10.8, np.float32)  # uniform over the vocabulary
    nodes = [Node(parent=-1, author="prompt", token_ids=ids(shape.prompt))]
    nodes += [
        Node(
            parent=0,
            author="policy",
            token_ids=ids(shape.completion),
            behavior_logprobs=likely,
            sampling=SamplingState(),
        )
        for _ in range(shape.group)
    ]
    leaves = tuple(Leaf(node=i + 1, sample_index=i, status="done") for i in range(shape.group))
    tree = Tree(task=Task(id="random", question=""), nodes=tuple(nodes), leaves=leaves)
    values = random.normal(size=shape.group)
    return ScoredTree(
        tree=tree, terms=(RewardTerm(name="random", weight=1.0, values=values, status=("ok",) * shape.group),)
    )


def markdown(result: dict[str, Any]) -> str:
    """The result as a page."""
    lines = [
        "# Model FLOP utilisation of the learner",
        "",
        f"`{result['command']}`; {result['model']}, float32, forward and backward with the entropy metric.",
        "",
        "| prompt / completion / group | unique tokens | scored | GFLOP (trunk + head + attention) | seconds | GFLOP/s "
        "| peak GFLOP/s | MFU | of processor time | unique tokens/s |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for s in result["shapes"]:
        terms = " + ".join(f"{value / 1e9:.0f}" for value in s["flops"].values())
        lines.append(
            f"| {Shape(**s['shape'])} | {sum(s['rows'])} | {s['scored']} | {terms} | {s['seconds']:.2f} "
            f"| {s['flops_per_s'] / 1e9:.0f} | {s['peak'] / 1e9:.0f} | **{s['mfu']:.0%}** "
            f"| {s['mfu_of_processor_time']:.0%} | {s['tokens_per_s']:.0f} |"
        )
    lines += [
        "",
        "FLOP: 6·N_trunk·T + 6·N_head·S + 12·pairs·width·layers. Medians over the repetitions, two prompts each; the",
        "peak is the best float32 matrix product of several sizes, measured before and after every repetition. `of",
        "processor time` divides both by the processor seconds that the process got, which others cannot take away.",
        *("", "## Machine", ""),
        *(f"- {name}: {value}" for name, value in result["machine"].items()),
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Measure and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait for a quiet machine")
    parser.add_argument("--row-tokens", type=int, default=4096, help="unique tokens of one forward and backward")
    parser.add_argument("--name", default="mfu", help="of the two files in benchmarks/results")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)  # before torch loads

    with tempfile.TemporaryDirectory() as scratch:
        folder, model = model_folder(Path(scratch))
        result = {
            "command": " ".join(["python -m benchmarks.mfu", *arguments]),
            "model": model,
            "machine": machine(options.threads),
            "shapes": [
                measure(
                    SHAPES[name],
                    folder,
                    repeats=options.repeats,
                    patience_s=options.patience,
                    row_tokens=options.row_tokens,
                )
                for name in options.shapes
            ],
        }
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    (results / f"{options.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (results / f"{options.name}.md").write_text(markdown(result))
    print(markdown(result))


if __name__ == "__main__":
    main(sys.argv[1:])
