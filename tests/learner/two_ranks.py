"""One scenario of updates, scores, failures and checkpoints; run by one process and by each of several ranks.

As a command it takes RANK SIZE FOLDER KIND... and writes what it found to FOLDER/<kind>.<rank>.pt.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlkit.algorithms.base import AlgorithmConfig, LossInputs, LossOutput
from rlkit.algorithms.grpo import ALGORITHM
from rlkit.data.packing import Batch, pack, uncredited, with_logprobs
from rlkit.learner import sharded
from rlkit.learner.build import build_learner
from rlkit.learner.learner import Learner
from rlkit.recipe import LearnerSettings, LoraSettings, ModelSettings, Optim
from tests.forest import random_forest, tiny_model

SINGLES = {
    **dict.fromkeys(("ddp", "fsdp2"), ("single", "float64")),
    **dict.fromkeys(("ddp+lora", "fsdp2+lora"), ("single+lora", "float64")),
    **dict.fromkeys(("zero1", "zero2", "zero3"), ("single", "float32")),
}
"""Kind -> the kind and number format of the one process that it must equal; `+lora` trains adapters only."""
LORA = LoraSettings(rank=2, alpha=6.0, targets=("q_proj", "v_proj", "c_fc"))
# AdamW forgets the scale of gradients; a large eps lets the weights show a sum that became a mean.
OPTIM = Optim(lr=0.05, eps=0.5, weight_decay=0.1, max_grad_norm=0.8, warmup_steps=2, schedule="cosine")
CONFIG = ALGORITHM.config(kl_coef=0.2, entropy_coef=0.01)
ROW_TOKENS = 35


def learner(kind: str, dtype: str, folder: Path, rank: int = 0, size: int = 1) -> Learner:
    """A learner of the tiny model in `folder/model`, with a head in chunks of three."""
    kind, _, adapters = kind.partition("+")
    return build_learner(
        ModelSettings(
            path=str(folder / "model"),
            dtype=dtype,  # type: ignore[arg-type]
            gradient_checkpointing=kind in ("fsdp2", "zero3"),
            lora=LORA if adapters else LoraSettings(),
        ),
        LearnerSettings(kind=kind, row_tokens=ROW_TOKENS, logit_chunk=3),  # type: ignore[arg-type]
        OPTIM,
        ALGORITHM,
        CONFIG,
        model_dir=folder / "model",
        total_updates=8,
        rank=rank,
        size=size,
        rendezvous=f"file://{folder / 'meeting'}" if size > 1 else None,
        device="cpu",
    )


def batches(found: Learner, seed: int, parts: int = 1) -> list[Batch]:
    """Credited rows with reference log-probs, of different lengths; their number is odd or even."""
    forest = random_forest(seed, truncated=True, temperature=0.8)
    sizes = [scored.tree.num_tokens for scored in forest]
    reference = found.score(pack([uncredited(s) for s in forest], ROW_TOKENS), sizes, "reference")
    credited = ALGORITHM.credit(forest, CONFIG, None)
    out = []
    for part in range(parts):
        inside = range(part, len(forest), parts)
        batch = pack([credited[i] for i in inside], ROW_TOKENS)
        out.append(with_logprobs(batch, reference=[reference[i] for i in inside]))
    return out


def spoiled(batch: Batch) -> Batch:
    """The same rows, the first one with credit that is not a number: one rank's loss is not one either."""
    first, *others = batch.rows
    return Batch(rows=(replace(first, c_pos=first.c_pos * np.nan), *others))


def steep(inputs: LossInputs, config: AlgorithmConfig) -> LossOutput:
    """A finite loss with an infinite gradient."""
    out = ALGORITHM.loss(inputs, config)
    total = inputs.logprobs.sum()
    return replace(out, loss=out.loss + (total - total.detach()).sqrt())


def scenario(kind: str, dtype: str, folder: Path, rank: int = 0, size: int = 1) -> dict[str, Any]:
    """Everything that must be equal however ranks share the model."""
    start = time.perf_counter()
    out: dict[str, Any] = {}
    this = learner(kind, dtype, folder, rank, size)

    def note(name: str, found: Learner) -> None:
        out[name] = {key: weight.clone() for key, weight in found.weights().items()}

    note("first", this)
    out["metrics of one update"] = this.update(batches(this, 1)).metrics
    note("one update", this)
    if kind.startswith("zero"):
        out["accelerate"] = watch_accelerate(this)
    minibatches = batches(this, 2, parts=2)
    out["rows"] = [len(batch.rows) for batch in minibatches]
    out["metrics of two minibatches"] = this.update(minibatches).metrics
    note("three updates", this)
    if kind.startswith("zero"):
        out["accelerate"]["counts"] = list(out["accelerate"]["counts"])
    report = this.update([spoiled(batches(this, 3)[0])])
    out["loss spoiled"] = (report.applied, report.reason)
    this.algorithm = replace(ALGORITHM, loss=steep)
    report = this.update(batches(this, 3))
    out["gradient spoiled"] = (report.applied, report.reason)
    this.algorithm = ALGORITHM
    note("two skipped", this)
    alone = Batch(rows=batches(this, 4)[0].rows[:1])  # the other rank has nothing of its own
    out["metrics of one row"] = this.update([alone]).metrics
    note("after the skipped", this)

    forest = random_forest(5)
    plain, sizes = pack([uncredited(s) for s in forest], ROW_TOKENS), [s.tree.num_tokens for s in forest]
    out["policy scores"] = this.score(plain, sizes, "policy")
    out["reference scores"] = this.score(plain, sizes, "reference")

    saved = folder / f"saved by {kind} {dtype}"
    if rank == 0:
        saved.mkdir(exist_ok=True)
    if size > 1:
        torch.distributed.barrier()
    this.save(saved)
    if size > 1:
        torch.distributed.barrier()
    this.update(batches(this, 6))
    note("uninterrupted", this)
    for writer in dict.fromkeys((kind, SINGLES[kind][0] if kind in SINGLES else kind)):
        again = learner(kind, dtype, folder, rank, size)
        again.load(folder / f"saved by {writer} {dtype}", {"version": 5, "updates": 6, "skipped": 0})
        note(f"loaded from {writer}", again)
        again.update(batches(again, 6))
        note(f"resumed from {writer}", again)
    out["seconds"] = time.perf_counter() - start
    return out


def watch_accelerate(found: Learner) -> dict[str, Any]:
    """Who made the engine of ZeRO, and, filled by later updates, its count of updates after each backward pass."""
    accelerator: Any = found.sharding.accelerator  # type: ignore[attr-defined]
    engine, wrapper = found.sharding.module, accelerator.deepspeed_engine_wrapped
    counts: list[int] = []
    backward = wrapper.backward

    def counted(loss: torch.Tensor, **settings: Any) -> None:
        backward(loss, **settings)
        counts.append(engine.global_steps)  # type: ignore[arg-type]

    wrapper.backward = counted
    return {
        "engine is its own": accelerator._models == [engine] and wrapper.engine is engine,
        "ranks": accelerator.num_processes,
        "type": accelerator.distributed_type.value,
        "stage": engine.zero_optimization_stage(),  # type: ignore[operator]
        "counts": counts,
    }


def write_model(folder: Path) -> None:
    """The tiny model where `learner` looks for it."""
    tiny_model(0).save_pretrained(folder / "model")


if __name__ == "__main__":
    rank, size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    sharded.KEEP_WHOLE_BELOW = 0
    for kind in sys.argv[4:]:
        torch.save(scenario(kind, SINGLES[kind][1], folder, rank, size), folder / f"{kind}.{rank}.pt")
