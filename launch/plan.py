"""`rlkit plan`: a recipe and a fleet in; step time by part, memory, staleness and the best split out.

Lengths come from a run of the recipe (`--from`), from the command line, or, where nothing is known, from the recipe's
caps: half of `rollout.max_completion_tokens` for one turn. The output says which.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rlkit.errors import RlkitError, nearest
from rlkit.forecast.advice import Forecast, Workload, best, forecasts
from rlkit.forecast.hardware import Device, Fleet
from rlkit.forecast.roofline import ModelSize, adapter_parameters
from rlkit.launch.explain import BYTES, ModelFacts, prompt_tokens
from rlkit.models.pretrained import resolve_model
from rlkit.recipe import Recipe
from rlkit.recorder import read_metrics

__all__ = ["MODELS", "Assumed", "plan", "workload"]

# Sizes from the models' public config.json: Qwen2.5-0.5B, 1.5B and 7B, Llama-3.1-8B, Qwen3-14B and 32B, Llama-3.1-70B.
MODELS = {
    "0.5b": ModelSize(parameters=0.494e9, layers=24, hidden=896, kv_width=256, vocabulary=151936),
    "1.5b": ModelSize(parameters=1.544e9, layers=28, hidden=1536, kv_width=512, vocabulary=151936),
    "7b": ModelSize(parameters=7.616e9, layers=28, hidden=3584, kv_width=1024, vocabulary=152064, tied=False),
    "8b": ModelSize(parameters=8.030e9, layers=32, hidden=4096, kv_width=2048, vocabulary=128256, tied=False),
    "14b": ModelSize(parameters=14.77e9, layers=40, hidden=5120, kv_width=2048, vocabulary=151936, tied=False),
    "32b": ModelSize(parameters=32.76e9, layers=64, hidden=5120, kv_width=2048, vocabulary=151936, tied=False),
    "70b": ModelSize(parameters=70.55e9, layers=80, hidden=8192, kv_width=2048, vocabulary=128256, tied=False),
}
ERROR = "published RL steps took 1.1 to 1.7 times as long as predicted (docs/planner_backtest.md)"
SHOWN = 5
"""Splits in the table, besides the best."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """What the command line says; None: look elsewhere."""

    model: str | None = None
    completion: float | None = None
    prompt: float | None = None
    spread: float = 0.6
    waits_s: float = 0.0


def plan(recipe: Recipe, fleet: Fleet, assumed: Assumed, run: Path | None = None) -> str:
    """Lines for a person. Raises `RlkitError` for sizes or lengths that nobody knows."""
    work, sources = workload(recipe, assumed, run)
    found = list(forecasts(work, fleet))
    chosen = best(found)
    device = fleet.device
    lines = [
        f"{'fleet':<10} {fleet}, {device.memory / 1e9:g} GB, {device.bandwidth / 1e12:.3g} TB/s, "
        f"{device.flops / 1e12:.4g} TFLOP/s each",
        *(f"{'assumed' if index == 0 else '':<10} {text}" for index, text in enumerate(sources)),
    ]
    ranked = sorted(found, key=lambda one: (not one.fits, one.step_s))
    shown = ranked[:SHOWN] + [one for one in ranked[SHOWN:] if one.placement == "colocated"]
    titles = ("split", "step s", "rollout", "score", "train", "sync", "GB rank", "GB worker", "")
    rows = [titles, *(_row(one, one is chosen) for one in shown)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(titles))]
    lines += [
        "",
        *("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows),
    ]
    if chosen is None:
        least = min(found, key=lambda one: one.needed)
        lines.append(
            f"\nnothing fits: the leanest split ({_split(least)}) needs {least.needed / 1e9:.0f} of "
            f"{least.usable / 1e9:.0f} usable GB; more devices with learner.kind=fsdp2, model.lora, "
            "model.gradient_checkpointing, or a smaller learner.row_tokens"
        )
        return "\n".join(lines)
    apart = best([one for one in found if one.placement == "disaggregated"])
    if work.max_staleness and apart is not None:
        ages = ", ".join(f"{age}: {share:.0%}" for age, share in apart.staleness.items())
        lines += ["", f"staleness  {ages} of groups, in versions, with {apart.ranks} ranks and {apart.workers} workers"]
    lines += ["", f"best       {_settings(chosen, device)}"]
    per_s = work.samples / chosen.step_s
    lines.append(
        f"           {per_s:.3g} trajectories/s, {work.samples * work.completion / chosen.step_s:,.0f} sampled tokens/s"
    )
    lines.append(f"error      {ERROR}")
    return "\n".join(lines)


def workload(recipe: Recipe, assumed: Assumed, run: Path | None = None) -> tuple[Workload, list[str]]:
    """The recipe in numbers, and a line about where each came from."""
    model, model_source = _model(recipe, assumed)
    measured = _measured(run) if run is not None else {}
    rollout, algorithm = recipe.rollout, recipe.algorithm.settings
    completion, completion_source = assumed.completion, "as given"
    if completion is None and "completion" in measured:
        completion, completion_source = measured["completion"], f"measured in {run}"
    if completion is None:
        completion, completion_source = (
            rollout.max_completion_tokens / 2,
            "half of rollout.max_completion_tokens, one turn",
        )
    prompt, prompt_source = assumed.prompt, "as given"
    if prompt is None:
        counted, prompt_source = prompt_tokens(recipe)
        if counted is None:
            raise RlkitError(f"--prompt: the recipe's first prompt cannot be made ({prompt_source}); give its tokens")
        prompt = float(counted)
    # What a measured tree holds beyond its prompt and completions is what the environment said.
    samples = rollout.group_size * rollout.groups_per_step
    unique = measured.get("unique", 0.0)
    observed = max(unique - rollout.groups_per_step * prompt - samples * completion, 0.0) / samples
    references = int(bool(algorithm.needs_reference))
    lora = recipe.model.lora.rank
    adapters = adapter_parameters(model, lora) if lora else 0.0
    trained = f", frozen; adapters of rank {lora} train {adapters / 1e6:.3g} million" * bool(lora)
    turns = max(measured.get("turns", 1.0), 1.0)
    work = Workload(
        model=model,
        groups=rollout.groups_per_step,
        group_size=rollout.group_size,
        prompt=prompt,
        completion=completion,
        spread=assumed.spread,
        cap=min(rollout.max_completion_tokens * max(turns, 1.0) * 2, recipe.model.max_context),
        observed=observed,
        waits_s=assumed.waits_s,
        slots=rollout.max_concurrent_groups * rollout.group_size,
        max_context=recipe.model.max_context,
        dtype_bytes=BYTES[recipe.model.dtype],
        updates=recipe.optim.minibatches,
        scoring_passes=references + int(bool(algorithm.needs_proximal)),
        references=references,
        sharing=recipe.learner.kind,
        adapters=adapters,
        recompute=recipe.model.gradient_checkpointing,
        row_tokens=recipe.learner.row_tokens,
        logit_chunk=recipe.learner.logit_chunk,
        max_staleness=rollout.max_staleness,
    )
    return work, [
        f"{model.parameters / 1e9:.3g} billion parameters ({model_source}){trained}",
        f"{prompt:.0f} prompt tokens ({prompt_source})",
        f"{completion:.0f} sampled tokens of a trajectory ({completion_source}), spread {assumed.spread:g}, "
        f"{observed:.0f} observed",
        f"{work.groups} x {work.group_size} trajectories a step, {work.tokens:,.0f} unique tokens",
    ]


def _model(recipe: Recipe, assumed: Assumed) -> tuple[ModelSize, str]:
    if assumed.model is not None:
        if assumed.model.lower() not in MODELS:
            raise RlkitError(f"--model: unknown size '{assumed.model}'{nearest(assumed.model, MODELS)}")
        return MODELS[assumed.model.lower()], f"--model {assumed.model}"
    try:
        facts = ModelFacts.of(resolve_model(recipe.model.path, setting="model.path"))
    except (OSError, ValueError, KeyError) as error:
        raise RlkitError(f"model.path: sizes of '{recipe.model.path}' cannot be read ({error}); use --model") from error
    return ModelSize(**asdict(facts)), recipe.model.path


def _measured(run: Path) -> dict[str, float]:
    """Medians over the training steps that a run logged."""
    names = {"completion": "rollout/completion_tokens", "unique": "tokens/unique", "turns": "rollout/turns"}
    steps = [step.metrics for step in read_metrics(run) if step.phase == "train"]
    found = {key: [m[name] for m in steps if name in m] for key, name in names.items()}
    if not found["completion"]:
        raise RlkitError(f"--from: {run} logged no training step with rollout/completion_tokens")
    return {key: median(values) for key, values in found.items() if values}


def _split(one: Forecast) -> str:
    """`disaggregated RANKS+WORKERS`, or `colocated DEVICES`."""
    return f"{one.placement} {one.ranks}" + f"+{one.workers}" * (one.placement == "disaggregated")


def _row(one: Forecast, chosen: bool) -> tuple[str, ...]:
    seconds = (one.step_s, one.rollout_s, one.score_s, one.train_s, one.sync_s)
    note = "<- best" if chosen else "" if one.fits else "does not fit"
    return (
        _split(one),
        *(f"{s:.3g}" for s in seconds),
        f"{one.learner_bytes / 1e9:.3g}",
        f"{one.worker_bytes / 1e9:.3g}",
        note,
    )


def _settings(one: Forecast, device: Device) -> str:
    share = 0 if not device.gpu else 0.5 if one.placement == "colocated" else 1
    return (
        f"cluster.kind=ray cluster.placement={one.placement} cluster.learner_ranks={one.ranks} "
        f"cluster.rollout_workers={one.workers} cluster.gpus_per_learner_rank={share:g} "
        f"cluster.gpus_per_rollout_worker={share:g}"
    )
