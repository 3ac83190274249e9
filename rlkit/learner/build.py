"""A learner from a recipe's sections: model, reference, process group, sharding.

The only place that knows all kinds of `learner.kind`. Every rank calls it, with the same arguments but for `rank`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from rlkit.algorithms.base import Algorithm, AlgorithmConfig
from rlkit.errors import LearnerError, RecipeError
from rlkit.learner.learner import Learner
from rlkit.learner.sharded import FullySharded, Zero, fully_sharded
from rlkit.learner.sharding import Replicated, Sharding
from rlkit.learner.tree_policy import RowInputs, TreePolicy
from rlkit.models.lora import ADAPTER_FILE, add_adapters, merge_adapters, read_adapters, settings_of
from rlkit.models.pretrained import resolve_model
from rlkit.models.value_head import add_value_head
from rlkit.recipe import LearnerSettings, ModelSettings, Optim, ValueSettings

__all__ = ["build_learner"]


class Bfloat16Policy(TreePolicy):
    """float32 weights, bfloat16 matrix products: AdamW's small steps would be lost in bfloat16 weights."""

    compute_dtype = torch.bfloat16

    def forward(self, row: RowInputs, with_entropy: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """As `TreePolicy`; log-probs are float32."""
        with torch.autocast(row.token_ids.device.type, torch.bfloat16):
            return super().forward(row, with_entropy)


def build_learner(
    model: ModelSettings,
    learner: LearnerSettings,
    optim: Optim,
    algorithm: Algorithm,
    config: AlgorithmConfig,
    *,
    model_dir: Path,
    total_updates: int,
    rank: int = 0,
    size: int = 1,
    rendezvous: str | None = None,
    value: ValueSettings | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Learner:
    """Load the policy (and the frozen reference, if `config` needs one) from `model_dir` and join the other ranks.

    Where `model_dir` holds adapters, they are put on the weights of `model.path`: to be trained on under `model.lora`,
    else merged. Under `model.lora` the reference is the frozen model, which is not loaded twice.

    `value` says which head the policy gets; that of `model_dir` is taken over, if there is one.

    `rendezvous` is where ranks meet, `tcp://host:port` or `file:///shared/path`; None: torch.distributed is set up
    already, or there is one rank. Raises `RecipeError` for settings that cannot work together.
    """
    place = _device(device, rank)
    _check(model, learner, size, place)
    if size > 1:
        _join(rank, size, rendezvous, place)
    policy = _load(model, learner, model_dir)
    if value is not None:
        add_value_head(policy.model, value.head, model_dir, dtype=_trained_dtype(model))
        policy.detach_values = value.detach
    if model.gradient_checkpointing:
        _recompute_activations(policy.model)
    reference = None
    if config.needs_reference and not model.lora.rank:
        reference = _load(model, learner, model_dir).requires_grad_(False)
        # Under ZeRO-1 and 2 every rank holds all weights anyway; where it does not, neither those of the reference.
        spread = size > 1 and learner.kind in ("fsdp2", "zero3")
        reference = fully_sharded(reference, place, size) if spread else reference.to(place)
    sharding = _sharding(policy, learner, optim, rank, size, place)
    return Learner(sharding, algorithm, config, optim, total_updates=total_updates, reference=reference)


def _device(device: str, rank: int) -> torch.device:
    """Of this rank; ranks of one machine take its GPUs in turn, unless each is shown only its own."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cuda":
        return torch.device(device)
    if not torch.cuda.is_available():
        raise LearnerError("device: 'cuda' was asked for, but torch finds no GPU; use 'auto' or 'cpu'")
    place = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(place)
    return place


def _check(model: ModelSettings, learner: LearnerSettings, size: int, device: torch.device) -> None:
    """Refuse what cannot work before anything is loaded."""
    if size > 1 and learner.kind == "single":
        raise RecipeError(
            "learner.kind",
            f"'single' is one process, but cluster.learner_ranks is {size}; choose ddp, fsdp2, zero1, zero2 or zero3",
        )
    if model.attention == "flex" and device.type == "cpu":
        raise RecipeError("model.attention", "'flex' has no backward pass on a CPU; use 'sdpa'")
    if learner.kind.startswith("zero"):
        if model.dtype == "float64":
            problem = f"'float64' is lost under learner.kind '{learner.kind}': DeepSpeed updates in float32; use fsdp2"
            raise RecipeError("model.dtype", problem)
        if importlib.util.find_spec("deepspeed") is None:
            problem = f"'{learner.kind}' needs DeepSpeed; install the extra [deepspeed], or use fsdp2"
            raise RecipeError("learner.kind", problem)


def _join(rank: int, size: int, rendezvous: str | None, device: torch.device) -> None:
    """Meet the other ranks, or check that they have met."""
    if dist.is_initialized():
        if (dist.get_rank(), dist.get_world_size()) != (rank, size):
            raise LearnerError(
                f"rank {rank} of {size} was asked for, but torch.distributed runs as rank {dist.get_rank()} "
                f"of {dist.get_world_size()}"
            )
        return
    if rendezvous is None:
        raise LearnerError(f"rendezvous: {size} ranks need a place to meet, tcp://host:port or file:///shared/path")
    # Metrics and scores are summed on the CPU, so a GPU's group speaks gloo too.
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, init_method=rendezvous, rank=rank, world_size=size)


def _load(model: ModelSettings, learner: LearnerSettings, model_dir: Path) -> TreePolicy:
    """The policy in main memory; without dropout, which would make its log-probs differ from the engine's."""
    adapters = (model_dir / ADAPTER_FILE).is_file()
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        resolve_model(model.path) if adapters else model_dir,
        # Frozen weights are kept as the engine has them: no small step is added to them.
        dtype=getattr(torch, model.dtype) if model.lora.rank else _trained_dtype(model),
        local_files_only=True,
        trust_remote_code=False,
    )
    if model.lora.rank or adapters:
        lora = model.lora if model.lora.rank else settings_of(model_dir)
        add_adapters(loaded, lora, dtype=_trained_dtype(model))
    if adapters:
        loaded.load_state_dict(read_adapters(model_dir, loaded), strict=False)
        if not model.lora.rank:
            merge_adapters(loaded)
    kind = Bfloat16Policy if model.dtype == "bfloat16" else TreePolicy
    return kind(loaded.eval(), attention=model.attention, chunk=learner.logit_chunk)


def _trained_dtype(model: ModelSettings) -> torch.dtype:
    return torch.float64 if model.dtype == "float64" else torch.float32


def _recompute_activations(model: Any) -> None:
    """Gradient checkpointing; transformers offers it in training mode only, so its layers are told so, they alone."""
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.training = True  # this flag alone: the modules inside stay in evaluation mode
            for name, value in vars(layer).items():
                if "dropout" in name and isinstance(value, float):  # what the layer drops by itself (OPT)
                    setattr(layer, name, 0.0)


def _sharding(
    policy: TreePolicy, learner: LearnerSettings, optim: Optim, rank: int, size: int, device: torch.device
) -> Sharding:
    """By `learner.kind`. One rank has nothing to share: every kind is then `single`."""
    if size == 1 or learner.kind in ("single", "ddp"):
        return Replicated(policy.to(device), optim, rank=rank, size=size)
    if learner.kind == "fsdp2":
        return FullySharded(policy, optim, rank=rank, size=size, device=device)
    stage = cast(Literal[1, 2, 3], int(learner.kind.removeprefix("zero")))
    return Zero(policy, optim, rank=rank, size=size, device=device, stage=stage)
