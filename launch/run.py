"""Runs a recipe: builds its parts, in this process or on Ray, trains or evaluates, and ends with a report."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rlkit.config import Resolved
from rlkit.lock import locked
from rlkit.recipe import Recipe

if TYPE_CHECKING:  # torch and transformers are imported when a run starts, not when a recipe is read
    from rlkit.train import Parts

__all__ = ["evaluate_recipe", "run_parts", "run_recipe"]

GATE_TASKS = 2
"""Tasks of the recipe that its rewards are tried on."""


def run_recipe(resolved: Resolved) -> int:
    """Train as the recipe says, from the run folder's newest checkpoint if it has one; prints where the report lies."""
    from rlkit.launch.resumable import refuse_other_recipe
    from rlkit.report import write_report
    from rlkit.train import train

    out = Path(resolved.recipe.out)
    with locked(out):
        refuse_other_recipe(resolved, out)
        with run_parts(resolved) as parts:
            train(parts)
        print(f"report: {write_report(out)}")
    return 0


def evaluate_recipe(resolved: Resolved, checkpoint: Path | None) -> int:
    """Evaluate the recipe's model, or a checkpoint, on its held-out tasks; prints every number with its interval."""
    from rlkit.evaluate import evaluate

    with locked(Path(resolved.recipe.out) / "eval"), run_parts(resolved, checkpoint=checkpoint, log=False) as parts:
        if parts.index is not None:
            parts.index.enter("eval")
            if checkpoint is not None:
                parts.index.restore_index(index_of(checkpoint), resume=False)
        parts.sync.push(parts.learner)
        trees, metrics = evaluate(resolved.recipe, parts.rollouts, parts.held_out, version=parts.learner.version)
        parts.recorder.trees(0, trees, phase="eval")
        parts.recorder.log(0, metrics, phase="eval")
    for name, value in sorted(metrics.items()):
        if (name.startswith("reward/") and name.endswith("/mean")) or name == "reward/mean":
            prefix = name.removesuffix("/mean")
            low, high, n = (metrics.get(f"{prefix}/{end}") for end in ("low", "high", "n"))
            interval = f"  95 % [{low:.3f}, {high:.3f}]  n={n:.0f}" if None not in (low, high, n) else ""
            print(f"{prefix.removeprefix('reward/'):24} {value:.4f}{interval}")
    return 0


def weights_folder(start: str) -> Path:
    """The folder with weights that `train.init_from` or `--checkpoint` names: a checkpoint, or a run's newest one."""
    from rlkit.checkpoint import CheckpointStore
    from rlkit.errors import RecipeError
    from rlkit.models.lora import ADAPTER_FILE

    folder = Path(start).expanduser()
    if any((folder / name).is_file() for name in ("model.safetensors", ADAPTER_FILE)):
        return folder
    newest = CheckpointStore(folder).latest()
    if newest is None:
        raise RecipeError("train.init_from", f"'{start}' holds neither weights, nor adapters, nor checkpoints")
    return newest.folder


def index_of(start: Path) -> Any:
    """What the checkpoint that `--checkpoint` names searched; None where it did not say."""
    from rlkit.checkpoint import read_checkpoint

    folder = weights_folder(str(start))
    return read_checkpoint(folder).state.get("index") if (folder / "manifest.json").is_file() else None


@contextmanager
def run_parts(resolved: Resolved, *, checkpoint: Path | None = None, log: bool = True) -> Iterator[Parts]:
    """Everything the loop needs, closed again afterwards."""
    from rlkit.models.pretrained import OFFLINE, resolve_model

    for name, value in OFFLINE.items():
        os.environ.setdefault(name, value)  # before transformers is imported

    from rlkit.policy.invariance import VARIABLE, strict_mode

    # MKL reads this at its first product, so it is set before a model exists (rlkit/policy/invariance.py).
    os.environ.setdefault(VARIABLE, strict_mode())

    from rlkit.checkpoint import CheckpointStore
    from rlkit.recorder import Recorder
    from rlkit.rollout.build import build_source, tasks_of
    from rlkit.rollout.ledger import Ledger, TaskStream
    from rlkit.train import Parts

    recipe = resolved.recipe
    for warning in resolved.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    run_dir = Path(recipe.out) if log else Path(recipe.out) / "eval"
    model_dir = resolve_model(recipe.model.path)
    start = checkpoint or recipe.train.init_from
    init_dir = weights_folder(str(start)) if start else model_dir
    source = build_source(recipe)
    for setting, folder in (("model.path", model_dir), ("train.init_from", init_dir)):
        if hasattr(source, "check_model"):  # a model may be made for one set of items only
            source.check_model(folder, setting=setting)
    if hasattr(recipe.env.load(), "check_model"):  # and may not know the words of the prompts
        recipe.env.load().check_model(recipe.env.settings, model_dir)
    train_tasks = tasks_of(recipe, source, "train")
    if recipe.reward_gate:
        from rlkit.launch.reward_gate import require

        require(recipe, train_tasks[:GATE_TASKS])
    held_out = tasks_of(recipe, source, recipe.eval.split, recipe.eval.tasks, recipe.eval.draw)
    algorithm: Any = recipe.algorithm.load()
    recorder = Recorder(
        run_dir,
        tensorboard=log and recipe.log.tensorboard,
        wandb=recipe.log.wandb if log else "off",
        project=recipe.log.wandb_project,
        live=log and recipe.log.live,
        num_steps=recipe.train.steps,
        trees_per_step=recipe.log.trees_per_step,
        decode=_decoder(model_dir),
    )
    with recorder, _workers(recipe, model_dir, init_dir, source, train_tasks) as (rollouts, learner, sync):
        recorder.header(
            name=recipe.name, seed=recipe.seed, recipe=yaml.safe_dump(resolved.values, sort_keys=False, width=120)
        )
        ledger = Ledger(run_dir / "ledger.jsonl")
        yield Parts(
            recipe=recipe,
            algorithm=algorithm,
            config=recipe.algorithm.settings,
            rollouts=rollouts,
            learner=learner,
            sync=sync,
            stream=TaskStream(train_tasks, recipe.seed),
            held_out=held_out,
            ledger=ledger,
            recorder=recorder,
            checkpoints=CheckpointStore(run_dir, keep=recipe.train.keep_checkpoints),
            index=rollouts.index,
            canary=_canary(recipe, model_dir, rollouts, sync),
        )
        ledger.close()


def _canary(recipe: Recipe, model_dir: Path, rollouts: Any, sync: Any) -> Any:
    """What compares engines with the learner; None for engines that play an expert, whose tokens no policy sampled."""
    if not recipe.train.canary_tokens or getattr(recipe.engine.load(), "needs_tasks", False):
        return None

    from transformers import AutoTokenizer

    from rlkit.canary import TOLERANCE, Canary
    from rlkit.policy.base import Sampling
    from rlkit.render import Renderer
    from rlkit.rollout.probe import renderer_prints

    rollout = recipe.rollout
    return Canary(
        prints=renderer_prints(Renderer(AutoTokenizer.from_pretrained(model_dir, local_files_only=True))),
        look=rollouts.look,
        digests=sync.digests,
        tokens=recipe.train.canary_tokens,
        tolerance=TOLERANCE[recipe.model.dtype],
        sampling=Sampling(temperature=rollout.temperature, top_k=rollout.top_k, top_p=rollout.top_p),
    )


@contextmanager
def _workers(
    recipe: Recipe, model_dir: Path, init_dir: Path, source: Any, tasks: list[Any]
) -> Iterator[tuple[Any, Any, Any]]:
    """Rollouts, learner and sync, in this process or on Ray."""
    total_updates = recipe.train.steps * recipe.optim.minibatches
    if recipe.cluster.kind == "ray":
        from rlkit.cluster import ray_workers

        with ray_workers(recipe, model_dir, init_dir, total_updates) as found:
            yield found
        return

    import torch

    from rlkit.learner.build import build_learner
    from rlkit.rollout.build import build_retriever, build_rollouts
    from rlkit.sync.local import LocalSync

    torch.set_num_threads(recipe.cluster.threads_per_worker)
    learner = build_learner(
        recipe.model,
        recipe.learner,
        recipe.optim,
        recipe.algorithm.load(),
        recipe.algorithm.settings,
        model_dir=init_dir,
        total_updates=total_updates,
        value=recipe.value,
    )
    retriever = build_retriever(recipe, source)
    rollouts = build_rollouts(recipe, model_dir=model_dir, retriever=retriever, tasks=tasks)
    try:
        yield rollouts, learner, LocalSync(rollouts.engine)
    finally:
        rollouts.close()


def _decoder(model_dir: Path) -> Any:
    """Token ids -> one string per token, for reports."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True)
    return lambda ids: [tokenizer.decode([int(token)]) for token in ids]
