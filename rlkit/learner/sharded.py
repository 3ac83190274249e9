"""Weights, gradients and moments spread over ranks: FSDP2 and DeepSpeed's ZeRO, behind the `Sharding` protocol.

Both libraries average gradients over ranks, because they expect each rank's loss to be a mean of its own. Our losses
already carry global denominators, so both are told to sum.

ZeRO runs through accelerate, which prepares the engine and runs its backward passes, always as those of a gradient that
goes on: at the end of one accelerate would update, before it is known whether the loss is finite on all ranks and
whether another row follows. FSDP2 is torch's own, applied directly.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from rlkit.learner.optim import adamw, set_rate
from rlkit.learner.sharding import MOMENTS, Replicated, gathered
from rlkit.learner.tree_policy import TreePolicy
from rlkit.recipe import Optim

__all__ = ["FullySharded", "Zero", "fully_sharded"]

KEEP_WHOLE_BELOW = 100_000
"""Numbers in a weight below which ZeRO-3 leaves it whole on every rank: fetching it would cost more than it takes."""


def fully_sharded(policy: TreePolicy, device: torch.device, size: int) -> TreePolicy:
    """Shard a policy in place with FSDP2: a group of parameters per decoder layer, the rest in the root's."""
    mesh = init_device_mesh(device.type, (size,))
    model: Any = policy.model
    for layer in model.modules():
        if type(layer).__name__ in model._no_split_modules:
            fully_shard(layer, mesh=mesh)
    fully_shard(policy, mesh=mesh)
    for module in policy.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot multiply while it reduces
    return policy


class FullySharded(Replicated):
    """FSDP2. Each backward pass leaves every rank its part of the sum, so no rank ever holds a whole gradient."""

    def __init__(self, policy: TreePolicy, optim: Optim, *, rank: int, size: int, device: torch.device) -> None:
        super().__init__(fully_sharded(policy, device, size), optim, rank=rank, size=size)

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """A forward pass without a backward one leaves the root's weights gathered: back to this rank's part."""
        cast(FSDPModule, self.policy).reshard()
        return super()._named()

    def _sum_over_ranks(self, parameters: list[nn.Parameter]) -> None:
        """Done by the backward pass."""

    def weights(self) -> dict[str, Tensor]:
        """Gathered one by one, and kept in rank 0's main memory: a GPU need not hold them all."""
        out = {}
        for name, parameter in self._named():
            whole = gathered(parameter.detach())
            if self.rank == 0:
                out[name] = whole.cpu()
        return out


def _deepspeed(device: torch.device, rank: int) -> Any:
    """The library, told by environment variables what its launcher would have told it."""
    os.environ.setdefault("LOCAL_RANK", str(rank if device.index is None else device.index))
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    deepspeed.logger.setLevel("ERROR")  # its warnings: a skipped update, which the learner reports itself
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)  # it calls those
    if device.type == "cpu":  # a kernel for inference, which it would compile for a minute
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _accelerator(device: torch.device, config: Mapping[str, Any]) -> Any:
    """Of one engine, although accelerate and transformers keep its settings for the whole process."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs
    from transformers.integrations import unset_hf_deepspeed_config

    AcceleratorState._reset_state(reset_partial_state=True)  # it refuses the plugin of a second engine
    os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)
    group = InitProcessGroupKwargs(backend="gloo" if device.type == "cpu" else "nccl")  # it exists: this is its name
    plugin = DeepSpeedPlugin(hf_ds_config=dict(config), zero3_init_flag=False)
    accelerator = Accelerator(mixed_precision="no", deepspeed_plugin=plugin, kwargs_handlers=[group])
    unset_hf_deepspeed_config()  # transformers would spread whatever model it loads next as this one is
    return accelerator


class Zero:
    """DeepSpeed ZeRO: stage 1 spreads AdamW's state over ranks, 2 also gradients, 3 also weights.

    DeepSpeed keeps master weights and moments in float32, whatever the model's dtype.
    """

    def __init__(
        self, policy: TreePolicy, optim: Optim, *, rank: int, size: int, device: torch.device, stage: Literal[1, 2, 3]
    ) -> None:
        deepspeed = _deepspeed(device, rank)
        self.deepspeed, self.policy, self.rank, self.size, self.stage = deepspeed, policy, rank, size, stage
        self.accelerator = _accelerator(
            device,
            {
                "train_micro_batch_size_per_gpu": 1,  # asked for, and used for its own progress reports only
                "gradient_clipping": optim.max_grad_norm,
                "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": KEEP_WHOLE_BELOW},
            },
        )
        self.engine, _ = self.accelerator.prepare(policy, adamw(policy.named_parameters(), optim))
        self.module = self.engine
        if stage == 3:
            self._keep_head()
        for flat in self._flat:  # AdamW would make its state at its first update; `load` wants to write into it
            moments = {key: torch.zeros_like(flat) for key in MOMENTS}
            self._zero.optimizer.state[flat] = {"step": torch.zeros((), device=flat.device), **moments}
        if stage < 3:  # else done at the first group's first update, when the others had no state yet
            self._zero._lazy_init_hp_params_optimizer_state()

    def _keep_head(self) -> None:
        """Gather the output head once per pass, with the root, not once per chunk of scored tokens.

        Ranks have different numbers of chunks: gathering per call would pair one rank's head with another's layer.
        """
        head: Any = self.policy.model.get_output_embeddings()
        for parameter in head.parameters():
            self.deepspeed.zero.register_external_parameter(self.policy, parameter)
        head._forward_pre_hooks.clear()
        head._forward_hooks.clear()

    @property
    def _zero(self) -> Any:
        """Its optimizer, around ours."""
        return self.engine.optimizer

    @property
    def _flat(self) -> list[Tensor]:
        """This rank's part of the master weights, flat; keys of AdamW's state."""
        name = "fp32_partitioned_groups_flat" if self.stage == 3 else "single_partition_of_fp32_groups"
        return list(getattr(self._zero, name))

    @property
    def _steps(self) -> list[Tensor]:
        """AdamW's count of updates, once per part and all the same."""
        return [self._zero.optimizer.state[flat]["step"] for flat in self._flat]

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        model: Any = self.policy.model
        return ((name, p) for name, p in model.named_parameters() if p.requires_grad)

    def backward(self, loss: Tensor) -> None:
        """The engine's, which averages over ranks: undone by the factor. It only accumulates."""
        self.accelerator.sync_gradients = False
        self.accelerator.backward(loss * self.size)

    def step(self, lr: float, max_norm: float) -> float:
        """The engine reduces, clips and skips what is not finite by itself, once it is told that the gradient is whole.

        Stage 1 then has all of it to reduce, the others have done so row by row.
        """
        self._zero.clip_grad = max_norm
        set_rate(self._zero.param_groups, lr)
        self.engine.set_gradient_accumulation_boundary(True)
        if self.stage == 1:
            self.engine.allreduce_gradients()
        else:
            self._zero.finalize_gradient_accumulation_boundary()
        self.engine.step()
        norm = self.engine.get_global_grad_norm()
        if self._zero.overflow or norm is None:
            self.discard()
            return math.inf
        return float(norm)

    def discard(self) -> None:
        """What the engine does after an overflow; it has no public call for it."""
        self._zero.zero_grad(set_to_none=True)
        self._zero.averaged_gradients = {}
        if self.stage < 3:
            self._zero.all_grad_tensors = {}

    def weights(self) -> dict[str, Tensor]:
        """The parameters themselves below stage 3; there they are gathered one by one, for rank 0 only."""
        out = {}
        for name, parameter in self._named():
            with self.deepspeed.zero.GatheredParameters([parameter], enabled=self.stage == 3):
                if self.stage < 3:
                    out[name] = parameter.detach()
                elif self.rank == 0:
                    out[name] = parameter.detach().cpu().clone()
        return out

    def moments(self) -> dict[str, Tensor]:
        """Gathered one by one."""
        out = {"step": self._steps[0].clone()}
        if not out["step"]:
            return {}
        for name, parameter in self._named():
            for key in MOMENTS:
                whole = self.deepspeed.utils.safe_get_full_optimizer_state(parameter, key)
                if self.rank == 0:
                    out[f"{key}.{name}"] = whole.cpu()
        return out

    @torch.no_grad()
    def load(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        """Weights into the model and from there into the master copies; moments into this rank's part of them."""
        for name, parameter in self._named():
            with self.deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self.stage == 3):
                if self.stage < 3 or self.rank == 0:
                    parameter.copy_(weights[name])
            for key in MOMENTS:
                whole = moments[f"{key}.{name}"] if moments else torch.zeros_like(weights[name])
                self._set_moment(parameter, key, whole)
        self._zero.refresh_fp32_params()
        for step in self._steps:
            step.copy_(moments["step"] if moments else torch.zeros(()))

    def _set_moment(self, parameter: nn.Parameter, key: str, whole: Tensor) -> None:
        utils = self.deepspeed.utils
        if self.stage < 3:
            utils.safe_set_full_optimizer_state(parameter, whole, key)
            return
        # The full setter of stage 3 fails where the ranks' parts are padded.
        each = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        padded = nn.functional.pad(whole.reshape(-1), (0, each * self.size - whole.numel()))
        utils.safe_set_local_optimizer_state(parameter, padded[self.rank * each : (self.rank + 1) * each], key)
