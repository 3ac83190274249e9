"""The asynchronous loop beside the synchronous one on lengths with a long tail, and what its determinism costs.

    python -m benchmarks.async_loop > benchmarks/results/async_loop.md

Engine and learner only wait (`benchmarks/waiting.py`), the loop is rlkit's own. `free` is the same loop without the
logical clock, within the same bound of staleness: groups go on without waiting for each other, a step takes whichever
groups ended first, and weights change under a sample at any time; two of its runs differ.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import rlkit.train as loop
from benchmarks.machine import machine
from benchmarks.waiting import Asking, Rewarding, WaitingEngine, WaitingLearner, WaitingSync, parts_of
from rlkit.policy.tiny import tiny_model
from rlkit.recorder import read_metrics
from rlkit.records import ScoredTree
from rlkit.render import Renderer
from rlkit.rollout.ledger import Draw, Ledger
from rlkit.rollout.loop import Rollouts
from rlkit.rollout.pace import Past
from rlkit.rollout.schedule import can_all_be_trained
from rlkit.rollout.stream import Gathered, Stream

GROUP, GROUPS, SLOTS = 8, 8, 64
TOKEN_S, MEDIAN, SIGMA, CAP = 0.001, 300.0, 1.0, 4096
UPDATE_S, SYNC_S = 0.8, 0.05


LOOPS: tuple[tuple[str, tuple[str, ...], bool], ...] = (
    ("synchronous", (), False),
    ("synchronous, over-sampling 0.5", ("rollout.over_sampling=0.5", "rollout.round_tokens=64"), False),
    ("staleness 1", ("rollout.max_staleness=1", "rollout.round_tokens=64"), False),
    ("staleness 2", ("rollout.max_staleness=2", "rollout.round_tokens=64"), False),
    ("staleness 2, free", ("rollout.max_staleness=2", "rollout.round_tokens=64"), True),
    ("staleness 4, rounds of 16", ("rollout.max_staleness=4", "rollout.round_tokens=16"), False),
    ("staleness 4", ("rollout.max_staleness=4", "rollout.round_tokens=64"), False),
    ("staleness 4, rounds of 256", ("rollout.max_staleness=4", "rollout.round_tokens=256"), False),
    ("staleness 4, free", ("rollout.max_staleness=4", "rollout.round_tokens=64"), True),
)
"""Name, settings, whether it runs without the logical clock."""


@dataclass(kw_only=True)
class Begun:
    """A group of the free loop."""

    draw: Draw
    last_step: int
    """Its weights are too old for the steps after it."""
    scored: ScoredTree | None = None


class FreeStream(Stream):
    """No logical clock: first come, first served, within the same bound of staleness."""

    def go_on(self, version: int) -> None:
        """Start once; it goes on until the run ends."""
        self.version, self._admitting = version, True
        if self.resting:
            self._groups: list[Begun] = []
            self._next = 0
            self.resting = False
            self.rollouts.background.start(self._fly())

    async def _fly(self) -> None:
        limits = self.schedule.limits
        tasks = set()
        while self._next < limits.steps * limits.groups_per_step:
            if self._admitting and len(self._groups) < limits.max_staleness * limits.groups_per_step:
                last_step = self.version + limits.max_staleness + 1
                self._groups.append(Begun(draw=self.tasks.at(self._next), last_step=last_step))
                tasks.add(asyncio.ensure_future(self._group(self._groups[-1])))
                self._next += 1
            else:
                await asyncio.sleep(0.001)

    async def _group(self, group: Begun) -> None:
        while (progress := await self.rollouts.advance(group.draw, self.settings, Past())).scored is None:
            pass
        group.scored = progress.scored

    def gather(self, ledger: Ledger, step: int) -> Gathered:
        """The groups that are there first, if the others can still be trained."""
        size = self.schedule.limits.groups_per_step
        while True:
            groups = list(self._groups)
            ended = [group for group in groups if group.scored is not None]
            chosen = sorted(ended, key=lambda group: group.last_step)[:size]
            left: Any = [group for group in groups if group not in chosen]
            if len(chosen) == size and can_all_be_trained(left, step, size):
                break
            time.sleep(0.001)
        self._admitting = False  # until the next weights are there
        for group in chosen:
            self._groups.remove(group)
            ledger._last = group.draw.number - 1  # a benchmark's book: draws of later numbers may come first
            ledger.drawn([group.draw], step)
        if step == self.schedule.limits.steps:
            self.resting = True
        return Gathered(
            draws=[group.draw for group in chosen],
            trees=[group.scored for group in chosen if group.scored is not None],
        )

    def state(self) -> dict[str, Any]:
        """Nothing: two runs differ anyhow."""
        return {}

    def save(self, folder: Path) -> None:
        """Nothing."""


def measure(model: Path, steps: int, *overrides: str, jitter: float = 0.0, free: bool = False) -> dict[str, float]:
    """One run; seconds per step and how busy the engine was."""
    from transformers import AutoTokenizer

    engine = WaitingEngine(
        slots=SLOTS, token_s=TOKEN_S, median_tokens=MEDIAN, sigma=SIGMA, max_tokens=CAP, jitter=jitter
    )
    renderer = Renderer(AutoTokenizer.from_pretrained(model, local_files_only=True))
    rollouts = Rollouts(envs=Asking(), engine=engine, renderer=renderer, scorer=Rewarding())  # type: ignore[arg-type]
    learner = WaitingLearner(update_s=UPDATE_S)
    folder = Path(tempfile.mkdtemp())
    settings = [
        f"train.steps={steps}",
        f"rollout.group_size={GROUP}",
        f"rollout.groups_per_step={GROUPS}",
        f"rollout.max_completion_tokens={CAP}",
        "rollout.max_concurrent_groups=64",
        "model.max_context=8192",
        "learner.row_tokens=8192",
        *overrides,
    ]
    parts = parts_of(rollouts, learner, WaitingSync(engines=[engine], sync_s=SYNC_S), settings, folder)
    usual = loop.streaming
    if free:

        def streaming(parts: Any) -> Any:
            found = usual(parts)
            assert found is not None
            made = FreeStream(
                rollouts=found.rollouts,
                tasks=found.tasks,
                schedule=found.schedule,
                settings=found.settings,
                drop=found.drop,
            )
            return made

        loop.streaming = streaming
    begun = time.perf_counter()
    try:
        loop.train(parts)
    finally:
        loop.streaming = usual
        rollouts.close()
    wall_s = time.perf_counter() - begun
    rows = [row.metrics for row in read_metrics(folder) if "staleness/mean" in row.metrics]
    return {
        "steps_s": wall_s / steps,
        "busy": engine.busy_s / SLOTS / wall_s,
        "staleness": float(np.mean([row["staleness/mean"] for row in rows])),
        "max_staleness": float(max(row["staleness/max"] for row in rows)),
        "tokens": float(engine.num_tokens),
        "bias": float(np.mean([row.get("rollout/length_bias", 1.0) for row in rows])),
    }


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=16)
    steps = parser.parse_args().steps
    model = tiny_model(Path(tempfile.mkdtemp()) / "tiny")
    print("# Asynchronous loop\n")
    print(
        f"`python -m benchmarks.async_loop --steps {steps}`; {GROUPS} groups of {GROUP} per step, lengths log-normal "
        f"(median {MEDIAN:.0f}, sigma {SIGMA}, at most {CAP} "
        f"tokens), {SLOTS} slots at {1 / TOKEN_S:.0f} tokens/s each, an update takes {UPDATE_S} s, weights {SYNC_S} s; "
        f"{steps} steps, the first fill and the last drain included. Engine and learner only wait; the loop is the "
        "real one. All runs sample the same lengths.\n"
    )
    print("| loop | jitter | s per step | speed-up | slots busy | staleness mean, max | length bias |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for jitter in (0.0, 0.3):
        base = 0.0
        for name, overrides, free in LOOPS:
            found = measure(model, steps, *overrides, jitter=jitter, free=free)
            base = base or found["steps_s"]
            print(
                f"| {name} | {jitter:.0%} | {found['steps_s']:.2f} | {base / found['steps_s']:.2f} | "
                f"{found['busy']:.0%} | {found['staleness']:.1f}, {found['max_staleness']:.0f} | {found['bias']:.2f} |",
                flush=True,
            )
    print("\n## Machine\n")
    for key, value in machine(1).items():
        print(f"- {key}: {value}")


if __name__ == "__main__":
    main()
