"""One GRPO step by rlkit and by TRL's `GRPOTrainer`: the same model, prompts, completions, rewards and AdamW.

    python -m benchmarks.grpo_step                             writes benchmarks/results/grpo_step.{json,md}
    python -m benchmarks.grpo_step --shapes first --repeats 1 --name quick

Both sides are processes that wait for each other, so no step runs beside another. Each round rlkit samples and updates,
then TRL samples for itself and updates on what rlkit sampled. The first round also records gradients and weights, off
the clock; where there are more it is a warm-up that the medians leave out. `others` is what the rest of the machine
took meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarks.contest import LEARNING_RATE, Contestant, Job, Outcome
from benchmarks.machine import ROOT, machine, wait_until_quiet
from rlkit.models.pretrained import is_prepared, prepared_path

__all__ = ["SHAPES", "Shape", "differences", "markdown", "model_folder"]

PEER = ROOT / ".venv-trl"
REQUIREMENTS = ("trl==1.16.*", "torch", "transformers", "accelerate", "datasets")
"""Versions of all but TRL and datasets are those of rlkit: constraints.txt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Tokens of one step."""

    prompt: int
    """P"""
    completion: int
    """R"""
    group: int
    """G"""
    prompts: int = 2
    """Tasks per step."""
    rows: int = 4
    """Sequences of TRL's forward and backward, its `per_device_train_batch_size`: about 2000 tokens."""

    @property
    def unique_tokens(self) -> int:
        """Of the trees: each prompt once."""
        return self.prompts * (self.prompt + self.group * self.completion)

    @property
    def flat_tokens(self) -> int:
        """Of the rows that a trainer without trees computes."""
        return self.prompts * self.group * (self.prompt + self.completion)

    @property
    def bound(self) -> float:
        """G(P + R) / (P + G·R): how much less there is to compute."""
        return self.flat_tokens / self.unique_tokens

    def __str__(self) -> str:
        return f"{self.prompt}/{self.completion}/{self.group}"


SHAPES = {
    "first": Shape(prompt=410, completion=32, group=8),
    "long": Shape(prompt=1000, completion=100, group=8, rows=2),
    "semantic-ids": Shape(prompt=512, completion=4, group=16),
    "reasoning": Shape(prompt=60, completion=200, group=8, rows=8),
}


# ------------------------------------------------------------------------------------------------------- preparation


def model_folder(scratch: Path) -> tuple[Path, str]:
    """SmolLM2-135M-Instruct if it is prepared, else random weights of its shape; and what it is called."""
    folder = prepared_path("smollm2-135m")
    if is_prepared(folder):
        return folder, "SmolLM2-135M-Instruct"
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        eos_token_id=2,
        pad_token_id=2,
    )
    folder = scratch / "model"
    LlamaForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{i} ": i for i in range(config.vocab_size)}, unk_token="w0 "))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w2 ", pad_token="w2 ").save_pretrained(folder)
    return folder, "random weights in the shape of SmolLM2-135M"


def peer_python() -> Path:
    """Python of the environment with TRL, made on first use."""
    python = PEER / "bin" / "python"
    if not (PEER / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", PEER], check=True)
        (PEER / ".gitignore").write_text("*\n")
        command: list[str | Path] = [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            *REQUIREMENTS,
            "--constraint",
            "constraints.txt",
        ]
        subprocess.run(command, cwd=ROOT, check=True)
        (PEER / "ready").touch()
    return python


# ------------------------------------------------------------------------------------------------------- measurement


def measure(
    shape: Shape, peer: str, folder: Path, scratch: Path, *, repeats: int, threads: int, patience_s: float
) -> dict[str, Any]:
    """All rounds of one shape: outcomes of both sides and how far apart they are after the first update."""
    environment = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    trl = [
        *(peer_python(), "-m", "benchmarks.trl_peer", folder, "--scratch", scratch),
        *("--prompts", shape.prompts, "--group", shape.group, "--new-tokens", shape.completion),
        *("--rows", shape.rows, *(["--scored-only"] if peer == "scored-only" else [])),
    ]
    commands = {"rlkit": [sys.executable, "-m", "benchmarks.rlkit_side", folder], "trl": trl}
    random = np.random.default_rng(0)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in commands}
    apart: dict[str, float] = {}
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(Contestant(list(map(str, command)), scratch / f"{name}.log", environment))
            for name, command in commands.items()
        }
        for number in range(repeats):
            prompts = random.integers(3, 49152, (shape.prompts, shape.prompt)).tolist()
            job = Job(prompts=prompts, group=shape.group, new_tokens=shape.completion)
            for name, side in sides.items():
                if number == 0:
                    (scratch / name).mkdir(exist_ok=True)
                wait_until_quiet(patience_s)
                record = str(scratch / name) if number == 0 else None
                outcome = side.do(replace(job, record=record))
                if name == "rlkit":
                    job = replace(job, completions=outcome.completions, rewards=outcome.rewards)
                print(f"{shape} {name} {number}: {_brief(outcome)}", file=sys.stderr, flush=True)
                outcomes[name].append(replace(outcome, completions=[], rewards=[]))
            if number == 0:
                apart = differences(folder, scratch / "rlkit", scratch / "trl")
    return {
        "shape": asdict(shape),
        "peer": peer,
        "unique_tokens": shape.unique_tokens,
        "flat_tokens": shape.flat_tokens,
        "bound": shape.bound,
        "steps": {name: [asdict(o) | {"step": o.step} for o in of] for name, of in outcomes.items()},
        "apart": apart,
    }


def _brief(outcome: Outcome) -> str:
    return (
        f"step {outcome.step[0]:.1f} s = generation {outcome.generation[0]:.1f} + learner {outcome.learner[0]:.1f} + "
        f"sync {outcome.sync[0]:.1f}; of processor {outcome.step[1]:.1f} = {outcome.generation[1]:.1f} + "
        f"{outcome.learner[1]:.1f} + {outcome.sync[1]:.1f}; peak {outcome.peak_bytes / 2**30:.1f} GiB; "
        f"others {outcome.others:.0%}"
    )


def differences(start: Path, ours: Path, theirs: Path) -> dict[str, float]:
    """How far two recorded updates from the same weights are apart, as |a - b| / |b|.

    `gradient` and `weights` over all parameters, `..._worst` the largest over parameters; `update` is that of the
    change of the weights.
    """
    before = load_file(start / "model.safetensors")
    out: dict[str, float] = {}
    for kind in ("gradient", "weights"):
        a, b = (load_file(folder / f"{kind}.safetensors") for folder in (ours, theirs))
        if a.keys() != b.keys():
            raise ValueError(f"{kind}: only one side has {sorted(a.keys() ^ b.keys())[:3]}")
        out |= _apart(kind, a, b)
        if kind == "weights":
            out |= _apart("update", {n: a[n] - before[n] for n in a}, {n: b[n] - before[n] for n in b})
    return out


def _apart(kind: str, a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> dict[str, float]:
    def norm(values: np.ndarray) -> float:
        return float(np.linalg.norm(values.astype(np.float64)))

    apart = [(norm(a[name] - b[name]), norm(b[name])) for name in b]
    whole = [float(np.linalg.norm(column)) for column in zip(*apart, strict=True)]
    return {kind: whole[0] / whole[1], f"{kind}_worst": max(x / y for x, y in apart if y)}


# ------------------------------------------------------------------------------------------------------------ report


def warm(shape: Mapping[str, Any], name: str) -> list[Any]:
    """Steps of one side but for the first, unless it is the only one."""
    steps: list[Any] = shape["steps"][name]
    return steps[1:] or steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One quantity of both sides over all rounds, and how many times smaller rlkit's is."""

    ours: float
    theirs: float
    ratio: float
    """Median of the ratios of each round."""

    @classmethod
    def of(cls, shape: Mapping[str, Any], *keys: str | int) -> Pair:
        """Medians of what the keys, one after the other, lead to in each step."""
        ours, theirs = ([reduce(getitem, keys, s) for s in warm(shape, name)] for name in ("rlkit", "trl"))
        ratios = [b / a for a, b in zip(ours, theirs, strict=True) if a]
        return cls(
            ours=statistics.median(ours),
            theirs=statistics.median(theirs),
            ratio=statistics.median(ratios) if ratios else 0.0,
        )


TITLES = {
    "as-it-is": "TRL as it is",
    "scored-only": "TRL with its output head on completions only, as it does on a GPU",
}


def markdown(result: Mapping[str, Any]) -> str:
    """The result as a page."""
    lines = [
        "# One GRPO step: rlkit and TRL",
        "",
        f"`{result['command']}`; {result['model']}, float32, learning rate {LEARNING_RATE}. Shapes are prompt / "
        "completion / group in tokens, two prompts per step. TRL without recomputed activations, about 2000 tokens per "
        "forward and backward, `generate` of transformers; otherwise its defaults.",
    ]
    for peer, title in TITLES.items():
        shapes = [s for s in result["shapes"] if s["peer"] == peer]
        if not shapes:
            continue
        lines += [f"\n## {title}"]
        for clock, name in enumerate(("Seconds on the wall", "Seconds of processor")):
            lines += [
                f"\n{name}, rlkit / TRL, and how many times fewer:\n",
                "| shape | bound | rounds | step | times | generation | times | learner | times | of the bound |",
                "| --- | ---: | ---: | --- | ---: | --- | ---: | --- | ---: | ---: |",
                *(_times_row(shape, clock) for shape in shapes),
            ]
        lines += [
            "\nApart after the first update, |rlkit - TRL| / |TRL|, of all parameters (of the worst one), and cost:\n",
            "| shape | gradient | weights | change of the weights | tokens | peak memory, GiB | others |",
            "| --- | --- | --- | --- | --- | --- | --- |",
            *(_facts_row(shape) for shape in shapes),
        ]
    notes = [
        "- tokens: unique (trees) / flat (rows); bound: G(P+R)/(P+GR); of the bound: the learner's ratio by it",
        "- medians over rounds; a ratio is the median of the rounds' ratios",
        "- rlkit's step includes sending the weights to its engine; TRL generates with the weights that it trains",
        "- seconds of processor are what a step took of the machine, however many other programs ran beside it",
        "- others: share of the cores that other programs took during a step, rlkit's / TRL's",
    ]
    facts = [f"- {name}: {value}" for name, value in result["machine"].items()]
    return "\n".join([*lines, "", *notes, "\n## Machine\n", *facts, ""])


def _name(shape: Mapping[str, Any]) -> str:
    return str(Shape(**shape["shape"]))


def _times_row(shape: Mapping[str, Any], clock: int) -> str:
    cells = []
    for part in ("step", "generation", "learner"):
        pair = Pair.of(shape, part, clock)
        cells += [f"{pair.ours:.1f} / {pair.theirs:.1f}", f"**{pair.ratio:.2f}**"]
    rounds, bound = len(warm(shape, "trl")), shape["bound"]
    return f"| {_name(shape)} | {bound:.2f} | {rounds} | {' | '.join(cells)} | {pair.ratio / bound:.0%} |"


def _facts_row(shape: Mapping[str, Any]) -> str:
    apart = shape["apart"]
    cells = [f"{apart[kind]:.1e} ({apart[f'{kind}_worst']:.1e})" for kind in ("gradient", "weights", "update")]
    memory = Pair.of(shape, "peak_bytes")
    others = Pair.of(shape, "others")
    return (
        f"| {_name(shape)} | {' | '.join(cells)} | {shape['unique_tokens']} / {shape['flat_tokens']} "
        f"| {memory.ours / 2**30:.1f} / {memory.theirs / 2**30:.1f} | {others.ours:.0%} / {others.theirs:.0%} |"
    )


def main(arguments: Sequence[str]) -> None:
    """Measure and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--patience", type=float, default=60, help="seconds to wait before a step for a quiet machine")
    parser.add_argument("--peers", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--add", action="store_true", help="keep what the files say of other shapes and peers")
    parser.add_argument("--name", default="grpo_step", help="of the two files in benchmarks/results")
    options = parser.parse_args(arguments)

    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder, model = model_folder(Path(scratch))
        facts = machine(options.threads) | {"trl": _peer_version()}
        result: dict[str, Any] = {
            "command": " ".join(["python -m benchmarks.grpo_step", *arguments]),
            "model": model,
            "machine": facts,
            "shapes": [],
        }
        if options.add:
            result["shapes"] = json.loads((results / f"{options.name}.json").read_text())["shapes"]
        for peer, name in itertools.product(options.peers, options.shapes):
            found = measure(
                SHAPES[name],
                peer,
                folder,
                Path(scratch),
                repeats=options.repeats,
                threads=options.threads,
                patience_s=options.patience,
            )
            others = [s for s in result["shapes"] if (s["peer"], s["shape"]) != (peer, found["shape"])]
            result["shapes"] = [*others, found | {"load_average": os.getloadavg()[0], "commit": facts["commit"]}]
            # After every shape: an interrupted run keeps what it has.
            (results / f"{options.name}.json").write_text(json.dumps(result, indent=1) + "\n")
            (results / f"{options.name}.md").write_text(markdown(result))
    print(markdown(result))


def _peer_version() -> str:
    command: list[str | Path] = [peer_python(), "-c", "from importlib.metadata import version; print(version('trl'))"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main(sys.argv[1:])
