"""The learner: packed batches in, one optimizer update out; it also scores batches and hands out weights.

One object per rank. All ranks get the same batch and take their own rows; `Sharding` makes their sum one gradient.
Nothing here knows about trees, rewards or Ray.
"""

from __future__ import annotations

import math
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlkit.algorithms.base import Algorithm, AlgorithmConfig
from rlkit.data.packing import Batch, Row, empty_row
from rlkit.errors import CheckpointError, LearnerError
from rlkit.learner.dropout import dropping
from rlkit.learner.gradient import add_gradients, score_rows
from rlkit.learner.optim import learning_rate
from rlkit.learner.sharding import Sharding, all_sum
from rlkit.learner.tree_policy import TreePolicy
from rlkit.metrics import merge
from rlkit.models.lora import ADAPTER_FILE, BASE, has_adapters, read_adapters, save_adapters, without_adapters
from rlkit.models.value_head import VALUE_FILE, VALUE_PREFIX
from rlkit.recipe import Optim

__all__ = ["Learner", "UpdateReport", "rows_of_rank"]

Floats = NDArray[np.float64]
MAX_SKIPPED = 3
MOMENTS_FILE = "optimizer.safetensors"


@dataclass(frozen=True, kw_only=True)
class UpdateReport:
    """What one optimizer update did."""

    metrics: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """name -> (sum, count), over all ranks."""
    applied: bool = True
    """False: loss or gradient was not finite, the weights did not change."""
    reason: str = ""
    """Why it was not applied."""


def rows_of_rank(rows: Sequence[Row], rank: int, size: int) -> tuple[list[Row], list[Row]]:
    """This rank's rows, longest first to the least loaded rank, and rows of no credit that pad them to equal counts.

    Sharded engines need the same number of forward passes on every rank.
    """
    loads, shares = [0] * size, [[] for _ in range(size)]  # type: list[int], list[list[Row]]
    for row in sorted(rows, key=lambda r: -len(r.token_ids)):
        target = loads.index(min(loads))
        shares[target].append(row)
        loads[target] += len(row.token_ids)
    own, most = shares[rank], max(map(len, shares))
    if len(own) == most:
        return own, []
    return own, [empty_row(min(rows, key=lambda r: len(r.token_ids)))] * (most - len(own))


class Learner:
    """Holds the policy being trained and, if the algorithm needs one, the frozen reference."""

    def __init__(
        self,
        sharding: Sharding,
        algorithm: Algorithm,
        config: AlgorithmConfig,
        optim: Optim,
        *,
        total_updates: int,
        reference: TreePolicy | None = None,
        version: int = 0,
    ) -> None:
        self.sharding, self.algorithm, self.config, self.optim = sharding, algorithm, config, optim
        self.reference = reference.requires_grad_(False) if reference is not None else None
        self.total_updates = total_updates
        self.version = version
        """Counts applied and skipped updates of the loop's steps; the policy version of the next rollout."""
        self.updates = 0
        self.skipped = 0

    @property
    def has_reference(self) -> bool:
        """A frozen copy, or the model itself without its adapters."""
        return self.reference is not None or (self.config.needs_reference and has_adapters(self.sharding.policy.model))

    def score(self, batch: Batch, sizes: Sequence[int], which: Literal["policy", "reference"]) -> list[Floats]:
        """Log-probs of every scored token, per tree [T] (`sizes` are the T); NaN elsewhere. Same on every rank."""
        if which == "reference" and not self.has_reference:
            raise LearnerError("algorithm.kl_coef: the reference model was not loaded because kl_coef is 0")
        if which == "reference" and self.reference is None:
            with without_adapters(self.sharding.policy.model):
                return self._score(self.sharding.module, batch, sizes)
        model = self.sharding.module if which == "policy" else self.reference
        assert model is not None
        return self._score(model, batch, sizes)

    def _score(self, model: nn.Module, batch: Batch, sizes: Sequence[int]) -> list[Floats]:
        rank, size = self.sharding.rank, self.sharding.size
        own, padding = rows_of_rank(batch.rows, rank, size)
        scores = score_rows(model, Batch(rows=(*own, *padding)), sizes)
        if size == 1:
            return scores
        # Every token is scored by at least one rank; the maximum of equal values is that value.
        out = []
        for values in scores:
            table = torch.from_numpy(np.nan_to_num(values, nan=-np.inf))
            dist.all_reduce(table, op=dist.ReduceOp.MAX)
            out.append(np.where(np.isneginf(table.numpy()), np.nan, table.numpy()))
        return out

    def update(self, minibatches: Sequence[Batch], *, with_entropy: bool = True) -> UpdateReport:
        """One optimizer update per minibatch, then the version rises by one.

        Weights in a batch are global over the whole step, so each of m minibatches is scaled by m. An update whose
        loss or gradient is not finite is skipped and reported; three in a row raise `LearnerError`.
        """
        parts, reasons = [], []
        for batch in minibatches:
            if not batch.rows:
                continue
            metrics = self._add_gradients(batch, scale=len(minibatches), with_entropy=with_entropy)
            rate = learning_rate(self.updates, self.optim, self.total_updates)
            loss, norm = metrics["loss"][0], math.nan
            if math.isfinite(loss):
                norm = self.sharding.step(rate, self.optim.max_grad_norm)
            else:
                self.sharding.discard()
            if math.isfinite(norm):
                self.skipped = 0
                parts.append({**metrics, "grad_norm": (norm, 1.0), "lr": (rate, 1.0)})
            else:
                reasons.append(f"gradient norm is {norm}" if math.isfinite(loss) else f"loss is {loss}")
                self.skipped += 1
                if self.skipped >= MAX_SKIPPED:
                    raise LearnerError(
                        f"optim.lr: {reasons[-1]} in {self.skipped} updates in a row; the weights are those after "
                        f"update {self.updates - self.skipped + 1}. Lower optim.lr ({self.optim.lr}) or raise "
                        f"algorithm.eps ({self.config.eps})"
                    )
            self.updates += 1
        self.version += 1
        totals = {"update/skipped": (float(len(reasons)), 1.0), "memory/peak_mib": (self._peak_mib(), 1.0)}
        return UpdateReport(metrics=merge([*parts, totals]), applied=not reasons, reason="; ".join(reasons))

    def _peak_mib(self) -> float:
        """Most memory that this process has held so far: allocated on a GPU, else resident."""
        device = next(self.sharding.policy.parameters()).device
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated(device) / 2**20
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    def _add_gradients(self, batch: Batch, *, scale: float, with_entropy: bool) -> dict[str, tuple[float, float]]:
        """Forward and backward of this rank's rows; metrics of all ranks' rows, in which padding does not count."""
        with dropping(self.sharding.policy.model, self.config.dropout, self.updates, self.sharding.rank):
            own, padding = (
                add_gradients(
                    self.sharding.module,
                    rows,
                    self.algorithm,
                    self.config,
                    scale=scale,
                    backward=self.sharding.backward,
                    with_entropy=with_entropy,
                )
                for rows in rows_of_rank(batch.rows, self.sharding.rank, self.sharding.size)
            )
        metrics = all_sum({name: own.get(name, (0.0, 0.0)) for name in own | padding}, self.sharding.size)
        return {**metrics, "loss": (metrics["loss"][0], 1.0)}

    def weights(self) -> dict[str, Tensor]:
        """Weights by name, as engines run them: in the dtype of the policy's products; see `Sharding.weights`.

        Of a model with adapters, these only, and the digest of the weights they belong to.
        """
        weights, policy = self.sharding.weights(), self.sharding.policy
        if (dtype := policy.compute_dtype) is not None:
            weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
        model: Any = policy.model
        return weights | ({BASE: getattr(model, BASE)} if has_adapters(model) else {})

    def save(self, folder: Path) -> None:
        """Weights in the transformers format, or adapters in peft's, and AdamW's moments, into an existing folder."""
        weights, moments = self.sharding.weights(), self.sharding.moments()
        if self.sharding.rank == 0:
            model: Any = self.sharding.policy.model
            whole = {name: weight.contiguous() for name, weight in weights.items()}
            head = {name: weight for name, weight in whole.items() if name.startswith(VALUE_PREFIX)}
            body = {name: weight for name, weight in whole.items() if name not in head}
            if has_adapters(model):
                save_adapters(body, model, folder)
            else:
                model.save_pretrained(folder, state_dict=body)
            if head:
                save_file(head, folder / VALUE_FILE)
            save_file({n: m.contiguous() for n, m in moments.items()}, folder / MOMENTS_FILE)

    def counters(self) -> dict[str, int]:
        """What a checkpoint keeps besides arrays."""
        return {"version": self.version, "updates": self.updates, "skipped": self.skipped}

    def load(self, folder: Path, counters: Mapping[str, int]) -> None:
        """Continue from a checkpoint's folder, whichever `learner.kind` and number of ranks wrote it.

        Raises `CheckpointError` if its weights do not fit the model.
        """
        weights: dict[str, Tensor] = {}
        wanted: Any = self.sharding.policy.model
        if has_adapters(wanted) and (folder / ADAPTER_FILE).is_file():
            weights |= read_adapters(folder, wanted, same_base=True)
        # Several above 50 GB; the value head, where there is one, lies beside them.
        for path in sorted((*folder.glob("model*.safetensors"), *folder.glob(VALUE_FILE))):
            weights |= load_file(path)
        missing = sorted({name for name, p in wanted.named_parameters() if p.requires_grad} - set(weights))
        if missing:
            raise CheckpointError(f"{folder}: no weights for {', '.join(missing[:3])}; it belongs to another model")
        if not (folder / MOMENTS_FILE).is_file():
            raise CheckpointError(
                f"{folder / MOMENTS_FILE}: missing; start anew from these weights, with train.init_from and another out"
            )
        self.sharding.load(weights, load_file(folder / MOMENTS_FILE))
        self.version, self.updates = counters["version"], counters["updates"]
        self.skipped = counters["skipped"]
