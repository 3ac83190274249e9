"""`rlkit explain`: what would run and what it would cost, worked out from the recipe before anything starts.

Estimates rest on the model's `config.json`, the headers of its safetensors files and one prompt; no weights
are read.

    P prompt tokens · R tokens of one completion · G group size
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlkit.config import Resolved
from rlkit.errors import RlkitError
from rlkit.layers import shown
from rlkit.models.pretrained import resolve_model
from rlkit.recipe import Recipe
from rlkit.records import Task
from rlkit.retriever import Passage, Retrieval

__all__ = ["ModelFacts", "explanation", "prompt_tokens", "sharing_bound"]

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
LONGEST_EVIDENCE = 200_000
"""Characters; more than an environment puts into a prompt."""
CHARS_PER_TOKEN = 4
"""Of English prose, for a model that is not on this disk yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Sizes of a model, read from its folder."""

    parameters: int
    """Tied weights count once."""
    layers: int
    hidden: int
    """Width of the residual stream."""
    kv_width: int
    """Key and value numbers per token and layer."""
    vocabulary: int
    tied: bool = True
    """Whether the output head is the embedding."""

    @classmethod
    def of(cls, folder: Path) -> ModelFacts:
        """Read `config.json` and the header of each safetensors file: 8 bytes of length, then JSON."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        parameters = 0
        for file in folder.glob("*.safetensors"):
            with file.open("rb") as stream:
                header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
            shapes = (entry["shape"] for name, entry in header.items() if name != "__metadata__")
            parameters += sum(map(math.prod, shapes))
        heads = config["num_attention_heads"]
        head_width = config.get("head_dim") or config["hidden_size"] // heads
        return cls(
            parameters=parameters,
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            kv_width=2 * config.get("num_key_value_heads", heads) * head_width,
            vocabulary=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", False)),
        )


class _Fills:
    """Stands in while the first prompt is made, since an index would take too long: one passage longer than any room
    that an environment gives to evidence, in words of the task."""

    def __init__(self, task: Task) -> None:
        words = " ".join([task.question, *task.answers])
        self.text = f"{words} " * (LONGEST_EVIDENCE // (len(words) + 1) + 1)
        self.asked = False

    async def search(self, queries: Sequence[str], top_k: int) -> Sequence[Retrieval]:
        self.asked = True
        passage = Passage(id="", title="", text=self.text)
        return [Retrieval(passages=(passage,), scores=(1.0,))] * len(queries)


def explanation(resolved: Resolved) -> str:
    """Several lines for a person."""
    recipe = resolved.recipe
    model, problem = _model(recipe)
    rows = [
        ("recipe", f"{recipe.name} ({shown(resolved.path)}), seed {recipe.seed}"),
        ("program", _program(recipe)),
        ("processes", _processes(recipe)),
        ("model", _model_line(recipe, model) if model else problem),
        *(("memory", line) for line in (_memory(recipe, model) if model else ())),
        *(("tokens", line) for line in _tokens(recipe)),
        ("run", _run(recipe)),
        (
            "outputs",
            f"{recipe.out}/: recipe, metrics, report, the newest {recipe.train.keep_checkpoints} checkpoints",
        ),
    ]
    previous, lines = "", []
    for label, text in rows:
        lines.append(f"{label if label != previous else '':<10} {text}")
        previous = label
    return "\n".join(lines)


def _program(recipe: Recipe) -> str:
    rewards = " + ".join(f"{reward.weight:g}·{reward.name}" for reward in recipe.rewards)
    env = recipe.env.kind + (f" with {recipe.retriever.kind}" if recipe.retriever else "")
    sampling = f"task {recipe.task.kind} -> env {env} -> engine {recipe.engine.kind}"
    return f"{sampling} -> {rewards} -> {recipe.algorithm.kind}"


def _processes(recipe: Recipe) -> str:
    cluster = recipe.cluster
    if cluster.kind == "local":
        return f"1, {_count(cluster.threads_per_worker, 'thread')}: sampling and training take turns"
    here = f"Ray, here unless it runs as a job ({os.cpu_count()} cores)"
    place = f"Ray at {cluster.address}" if cluster.address else here
    sampling = _count(cluster.rollout_workers, "rollout worker")
    training = f"{_count(cluster.learner_ranks, 'learner rank')} ({recipe.learner.kind})"
    return f"driver + {sampling} + {training}, {_count(cluster.threads_per_worker, 'thread')} each; {place}"


def _model(recipe: Recipe) -> tuple[ModelFacts | None, str]:
    try:
        return ModelFacts.of(resolve_model(recipe.model.path, setting="model.path")), ""
    except (RlkitError, OSError, ValueError, KeyError) as error:  # explain goes on without the sizes
        return None, f"unknown sizes: {error}"


def _model_line(recipe: Recipe, model: ModelFacts) -> str:
    settings = recipe.model
    size = f"{settings.path}: {model.parameters:,} parameters"
    return f"{size}, {settings.dtype}, {settings.attention}, paths of at most {settings.max_context} tokens"


def _memory(recipe: Recipe, model: ModelFacts) -> Iterator[str]:
    """Activations by Korthikanti et al. 2022: 34·h bytes a token and layer at 16 bit."""
    size, ranks, kind = BYTES[recipe.model.dtype], recipe.cluster.learner_ranks, recipe.learner.kind
    weights = model.parameters * max(size, 4)  # bfloat16 is for products only: the learner keeps float32
    held = weights / (ranks if kind in ("fsdp2", "zero3") else 1)
    gradients = weights / (ranks if kind in ("fsdp2", "zero3", "zero2") else 1)
    adam = 2 * weights / (ranks if kind in ("fsdp2", "zero3", "zero2", "zero1") else 1)
    per_layer = 17 * model.hidden * size
    kept_layers = 1 if recipe.model.gradient_checkpointing else model.layers
    activations = recipe.learner.row_tokens * (kept_layers * per_layer + model.layers * model.hidden * size)
    logits = 2 * recipe.learner.logit_chunk * model.vocabulary * max(size, 4)
    reference = held * bool(getattr(recipe.algorithm.settings, "needs_reference", False))
    total = held + gradients + adam + activations + logits + reference
    yield (
        f"learner rank about {_gib(total)}: weights {_gib(held)}, gradients {_gib(gradients)}, "
        f"Adam {_gib(adam)}, activations of a row of {recipe.learner.row_tokens} tokens {_gib(activations)}, "
        f"logits {_gib(logits)}" + (f", reference {_gib(reference)}" if reference else "")
    )
    trajectories = recipe.rollout.max_concurrent_groups * recipe.rollout.group_size
    size = BYTES.get(getattr(recipe.engine.settings, "dtype", recipe.model.dtype), 4)
    weights = model.parameters * size
    cache = trajectories * recipe.model.max_context * model.layers * model.kv_width * size
    yield (
        f"rollout worker at most {_gib(weights + cache)}: weights {_gib(weights)}, "
        f"keys and values {_gib(cache)} if {trajectories} trajectories filled the context and shared nothing"
    )
    if recipe.cluster.kind == "ray" and recipe.cluster.sync_over == "memory":
        yield (
            f"first rank's machine {_gib(2 * weights)} more: two versions of the weights in memory that all workers "
            "there share; on a CPU they run in it and keep no weights of their own"
        )


def _tokens(recipe: Recipe) -> Iterator[str]:
    rollout = recipe.rollout
    prompt, source = prompt_tokens(recipe)
    if prompt is None:
        yield f"unknown prompt: {source}"
        return
    group, completion, groups = rollout.group_size, rollout.max_completion_tokens, rollout.groups_per_step
    flat, unique = groups * group * (prompt + completion), groups * (prompt + group * completion)
    bound = sharing_bound(prompt, completion, group)
    yield f"P = {prompt} ({source}), R <= {completion} a turn, G = {group}, {groups} groups a step"
    yield f"one turn each: {flat} flat, {unique} unique a step; G(P+R)/(P+GR) = {bound:.2f}x less work"
    yield "shorter completions raise that factor towards G; later turns and observations lower it"


def sharing_bound(prompt: int, completion: int, group: int) -> float:
    """G(P+R)/(P+GR): how many times fewer tokens a tree of a prompt and G completions has than flat rows."""
    return group * (prompt + completion) / (prompt + group * completion)


def prompt_tokens(recipe: Recipe) -> tuple[int | None, str]:
    """Length of the first training task's prompt and how it was counted; None and why it was not."""
    try:
        task = recipe.task.load()(recipe.task.settings).tasks("train")[0]
        fills = _Fills(task)
        env = recipe.env.load()(recipe.env.settings, fills).make()
        opening = asyncio.run(env.start(task))
    except Exception as error:  # a plug-in may fail in any way; the rest can be explained without its prompt
        return None, f"{type(error).__name__}: {error}"
    text = "\n".join(message.content for message in opening.messages) + opening.text
    which = "the first task's prompt, its evidence as long as it may be," if fills.asked else "the first task's prompt"
    try:
        from tokenizers import Tokenizer

        file = resolve_model(recipe.model.path, setting="model.path") / "tokenizer.json"
        count = len(Tokenizer.from_file(str(file)).encode(text).ids)
        return count, f"{which} without its chat template"
    except Exception:  # tokenizers raises just that for a missing or foreign file
        return len(text) // CHARS_PER_TOKEN, f"{which}: {len(text)} characters / {CHARS_PER_TOKEN}"


def _run(recipe: Recipe) -> str:
    train, measure = recipe.train, recipe.eval
    updates = train.steps * recipe.optim.minibatches
    length = f"{_count(train.steps, 'step')}, {_count(updates, 'update')}"
    often = f", every {_count(train.eval_every, 'step')}" if train.eval_every else ""
    return (
        f"{length} at lr {recipe.optim.lr:g} ({recipe.optim.schedule}); "
        f"evaluation of {measure.tasks} {measure.split} tasks x {measure.samples} before, after{often}"
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _gib(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**26 else f"{count / 2**20:.1f} MiB"
