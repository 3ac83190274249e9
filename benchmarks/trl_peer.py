"""TRL's side of `benchmarks.grpo_step`: its `GRPOTrainer`, with one hook. Runs in an environment of its own.

The trainer generates by itself, so that its whole step is measured, and is then handed the completions that the other
side sampled, so that both compute the same update.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import trl.trainer.utils
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.contest import LEARNING_RATE, Job, Meter, Outcome, Seconds, jobs, report
from benchmarks.machine import peak_bytes

MAX_STEPS = 100


class Peer(GRPOTrainer):
    """The trainer as it is, but for what it trains on."""

    job: Job
    meter: Meter
    generation: Seconds

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [self.job.prompts[int(prompt)] for prompt in prompts], None, {}

    def _generate_single_turn(self, prompt_ids: list[list[int]], *inputs: Any, **options: Any) -> tuple[Any, None]:
        self.meter.lap()
        own, _ = super()._generate_single_turn(prompt_ids, *inputs, **options)
        self.generation = self.meter.lap()
        assert all(len(ids) == self.job.new_tokens for ids in own)
        return [ids for group in self.job.completions for ids in group], None


class Pace(TrainerCallback):
    """Lets the trainer take a step when there is a job, and reports it."""

    trainer: Peer

    def __init__(self) -> None:
        self.jobs: Iterator[Job] = jobs()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Wait for a job; the driver hangs up when there are no more."""
        job = next(self.jobs, None)
        if job is None:
            sys.exit()
        self.trainer.job, self.trainer.meter = job, Meter()
        self.trainer.meter.start()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Gradients are clipped by now."""
        if folder := self.trainer.job.record:
            with self.trainer.meter.stopped():
                gradients = {name: p.grad for name, p in self.trainer.model.named_parameters()}
                save_file(gradients, Path(folder, "gradient.safetensors"))

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Report the step."""
        learner, peak = self.trainer.meter.lap(), peak_bytes()
        if folder := self.trainer.job.record:
            weights = {name: p.detach() for name, p in self.trainer.model.named_parameters()}
            save_file(weights, Path(folder, "weights.safetensors"))
        report(Outcome(generation=self.trainer.generation, learner=learner, peak_bytes=peak))


def main() -> None:
    """Started by `benchmarks.grpo_step`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--prompts", type=int, required=True)
    parser.add_argument("--group", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True, help="sequences of one forward and backward")
    parser.add_argument("--scored-only", action="store_true", help="output head on completions only, as on a GPU")
    parser.add_argument("--scratch", required=True, help="folder that the trainer may write to")
    options = parser.parse_args()

    if options.scored_only:
        trl.trainer.utils._use_triton = lambda device: True  # read there for this one decision

    sequences = options.prompts * options.group
    config = GRPOConfig(
        output_dir=options.scratch,
        per_device_train_batch_size=options.rows,
        gradient_accumulation_steps=sequences // options.rows,
        max_steps=MAX_STEPS,
        num_generations=options.group,
        max_completion_length=options.new_tokens,
        generation_kwargs={"min_new_tokens": options.new_tokens},
        shuffle_dataset=False,
        loss_type="grpo",
        beta=0.0,
        epsilon=0.2,
        num_iterations=1,
        scale_rewards="group",
        temperature=1.0,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        gradient_checkpointing=False,  # recomputing would only be slower
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    pace = Pace()
    trainer: Peer
    trainer = Peer(
        model=AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32, local_files_only=True),
        reward_funcs=lambda completions, **_: [r for group in trainer.job.rewards for r in group],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": str(i)} for i in range(options.prompts)] * MAX_STEPS),
        processing_class=AutoTokenizer.from_pretrained(options.folder, local_files_only=True),
        callbacks=[pace],
    )
    pace.trainer = trainer
    trainer.train()


if __name__ == "__main__":
    main()
