"""Every way to split a fleet between sampling and learning: which fit in memory, how long a step takes, the fastest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from rlkit.forecast.hardware import Fleet
from rlkit.forecast.roofline import (
    ModelSize,
    decode_step_s,
    gather_s,
    learner_bytes,
    prefill_s,
    reduce_s,
    score_s,
    send_s,
    train_s,
    worker_bytes,
)
from rlkit.forecast.simulation import decode, lengths, overlap

__all__ = ["Forecast", "Workload", "best", "forecast", "forecasts"]

RESERVE = 0.9
"""Share of a device's memory that programs may fill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One step of a recipe, in numbers."""

    model: ModelSize
    groups: int
    """Tasks of a step."""
    group_size: int
    prompt: float
    """Tokens that a group shares."""
    completion: float
    """Mean sampled tokens of a trajectory, all turns together."""
    spread: float = 0.6
    """Standard deviation of that / mean."""
    cap: float = math.inf
    """Most sampled tokens of a trajectory."""
    observed: float = 0.0
    """Mean tokens of a trajectory that the environment says."""
    waits_s: float = 0.0
    """Seconds that a trajectory spends in tools and rewards."""
    slots: int = 64
    """Trajectories that one worker extends at the same time."""
    max_context: int = 2048
    dtype_bytes: float = 2.0
    """Of the engine's weights and keys."""
    updates: int = 1
    """Optimizer updates of a step."""
    scoring_passes: int = 0
    """Forward passes of the learner besides the update: reference, proximal."""
    references: int = 0
    """Frozen models that the learner holds."""
    sharing: str = "fsdp2"
    """`learner.kind`."""
    adapters: float = 0.0
    """Parameters of `model.lora`, which alone are trained and sent; 0: the whole model is."""
    recompute: bool = False
    row_tokens: int = 4096
    logit_chunk: int = 512
    max_staleness: int = 0
    shares_prefix: bool = True
    """False: a flat trainer and engine, which compute the prompt once per sample; for back-tests of peers."""

    @property
    def samples(self) -> int:
        """Trajectories of a step."""
        return self.groups * self.group_size

    @property
    def tokens(self) -> float:
        """That the learner computes in a step: unique ones, or all."""
        prompts = self.groups if self.shares_prefix else self.samples
        return prompts * self.prompt + self.samples * (self.completion + self.observed)

    @property
    def context(self) -> float:
        """Mean number of keys that a token of the learner attends to: the prompt and half of what follows."""
        return self.prompt + (self.completion + self.observed) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """One split and what a step costs in it."""

    placement: Literal["colocated", "disaggregated"]
    ranks: int
    workers: int
    step_s: float
    rollout_s: float
    """Until the last trajectory of a batch is done, on fresh weights."""
    score_s: float
    train_s: float
    """With the gradients' all-reduce and the optimizer."""
    sync_s: float
    staleness: dict[int, float] = field(default_factory=lambda: {0: 1.0})
    """Versions -> share of groups."""
    learner_bytes: float
    worker_bytes: float
    usable: float
    """Bytes of a device that programs may fill."""

    @property
    def needed(self) -> float:
        """Bytes of the fuller device: rank and worker together where they share one."""
        both = self.learner_bytes, self.worker_bytes
        return sum(both) if self.placement == "colocated" else max(both)

    @property
    def fits(self) -> bool:
        """Whether that is there."""
        return self.needed <= self.usable


def forecasts(work: Workload, fleet: Fleet) -> Iterator[Forecast]:
    """Colocated on all devices, and every disaggregated split whose ranks the learner's kind allows."""
    single = work.sharing == "single"
    if not single or fleet.count == 1:
        yield forecast(work, fleet, ranks=fleet.count, workers=fleet.count, placement="colocated")
    for ranks in range(1, fleet.count):
        if ranks == 1 or not single:
            yield forecast(work, fleet, ranks=ranks, workers=fleet.count - ranks, placement="disaggregated")


def best(found: list[Forecast]) -> Forecast | None:
    """The fastest that fits; None where none does."""
    return min((one for one in found if one.fits), key=lambda one: one.step_s, default=None)


def forecast(
    work: Workload,
    fleet: Fleet,
    *,
    ranks: int,
    workers: int,
    placement: Literal["colocated", "disaggregated"],
    engine_devices: int = 1,
) -> Forecast:
    """One split. Colocated takes turns; disaggregated overlaps where `max_staleness` allows it.

    `engine_devices`: devices that one worker's model is spread over; `workers` counts workers, not devices.
    """
    device, model = fleet.device, work.model
    trained = work.adapters or model.parameters
    each = math.ceil(work.samples / workers)
    slots = min(work.slots, each)
    cached = slots * (work.completion + work.observed + work.prompt) + work.prompt
    if work.shares_prefix:
        cached = slots * (work.completion + work.observed) + math.ceil(slots / work.group_size) * work.prompt
    for_worker = worker_bytes(model, cached_tokens=cached, dtype_bytes=work.dtype_bytes) / engine_devices
    for_learner = learner_bytes(
        model,
        ranks=ranks,
        sharing=work.sharing,
        row_tokens=work.row_tokens,
        logit_chunk=work.logit_chunk,
        dtype_bytes=work.dtype_bytes,
        recompute=work.recompute,
        references=work.references,
        adapters=work.adapters,
    )
    rollout = _rollout_s(work, fleet, each, slots, engine_devices)
    scored = work.samples * work.completion
    score = work.scoring_passes * score_s(model, device, work.tokens, scored, work.context, devices=ranks)
    train = train_s(
        model,
        device,
        work.tokens,
        scored,
        work.context,
        devices=ranks,
        updates=work.updates,
        recompute=work.recompute,
        adapters=work.adapters,
    )
    link, share = fleet.link(ranks), device.efficiency.link
    train += work.updates * reduce_s(4 * trained, ranks, link, share)
    # Beside each other, weights cross the device's own memory; else the slowest link, once. Shares are gathered before.
    way = device.bandwidth if placement == "colocated" else fleet.link(ranks + workers * engine_devices)
    sync = send_s(work.dtype_bytes * trained, way, share)
    if work.sharing in ("fsdp2", "zero3"):
        sync += gather_s(work.dtype_bytes * trained, ranks, link, share)
    step, staleness = rollout + score + train + sync, {0: 1.0}
    if placement == "disaggregated" and work.max_staleness:
        groups_each = max(work.slots // work.group_size, 1)
        beside = min(groups_each * workers, (work.max_staleness + 1) * work.groups)
        found = overlap(
            _groups_s(work, fleet, min(work.slots, beside * work.group_size / workers), engine_devices),
            slots=beside,
            groups_per_step=work.groups,
            learn_s=score + train,
            sync_s=sync,
            max_staleness=work.max_staleness,
        )
        step, staleness = found.step_s, found.staleness
    return Forecast(
        placement=placement,
        ranks=ranks,
        workers=workers,
        step_s=step,
        rollout_s=rollout,
        score_s=score,
        train_s=train,
        sync_s=sync,
        staleness=staleness,
        learner_bytes=for_learner,
        worker_bytes=for_worker,
        usable=RESERVE * device.memory,
    )


def _drawn(work: Workload, count: int) -> list[float]:
    return [float(n) for n in lengths(count, mean=work.completion, spread=work.spread, cap=work.cap)]


def _admit_s(work: Workload, fleet: Fleet, engine_devices: int) -> float:
    """Prefill that one trajectory adds: its observations, and its share of the group's prompt."""
    prompt = work.prompt / (work.group_size if work.shares_prefix else 1)
    return prefill_s(work.model, fleet.device, prompt + work.observed, work.context, devices=engine_devices)


def _rollout_s(work: Workload, fleet: Fleet, each: int, slots: int, engine_devices: int) -> float:
    def step_s(batch: float, context: float) -> float:
        return decode_step_s(
            work.model, fleet.device, batch, context, dtype_bytes=work.dtype_bytes, devices=engine_devices
        )

    sizes = _drawn(work, each)
    found = decode(
        sizes,
        slots=slots,
        prompt=work.prompt + work.observed / 2,
        step_s=step_s,
        admit_s=_admit_s(work, fleet, engine_devices),
    )
    return found.seconds + work.waits_s * math.ceil(each / slots)


def _groups_s(work: Workload, fleet: Fleet, batch: float, engine_devices: int) -> list[float]:
    """Seconds of each of a step's groups while the engine is full: its longest trajectory at that batch's speed."""
    token_s = decode_step_s(
        work.model, fleet.device, batch, work.context, dtype_bytes=work.dtype_bytes, devices=engine_devices
    )
    # Samples that start in between stop the others for their prefill.
    token_s += batch * _admit_s(work, fleet, engine_devices) / work.completion
    sizes = _drawn(work, work.samples)
    size = work.group_size
    return [max(sizes[i : i + size]) * token_s + work.waits_s for i in range(0, len(sizes), size)]
