"""Two programs that do the same job in turn, each in a process (and a Python environment) of its own.

A job travels as one line of JSON to the program's input, its outcome as one line back. Standard library only: both
sides import it.

    driver                                  side (rlkit, TRL)
    Contestant.do(job)  ---- job ---->      for job in jobs(): ...
                        <--- outcome --     meter.start(); ...; report(outcome)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT, busy_s, reset_peak

__all__ = ["LEARNING_RATE", "Contestant", "Job", "Meter", "Outcome", "Seconds", "jobs", "report"]

LEARNING_RATE = 1e-5
"""Of both sides; large enough that float32 weights show the update."""

Seconds = tuple[float, float]
"""By the clock on the wall, and of processors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One GRPO step."""

    prompts: list[list[int]]
    """Token ids."""
    group: int
    """Completions per prompt."""
    new_tokens: int
    """Tokens of every completion."""
    completions: list[list[list[int]]] = field(default_factory=list)
    """[prompt][sample][token] to train on instead of one's own samples; empty: train on those."""
    rewards: list[list[float]] = field(default_factory=list)
    """[prompt][sample] of those completions."""
    record: str | None = None
    """Folder for `gradient.safetensors` (clipped) and `weights.safetensors` (updated); None: only measure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one step took: wall-clock seconds, and processor seconds over all threads."""

    generation: Seconds
    learner: Seconds
    """Rewards, advantages, forward, backward, clipping and AdamW."""
    sync: Seconds = (0.0, 0.0)
    """Weights to the engine, where it has its own copy."""
    peak_bytes: int
    """Largest resident memory during the step."""
    completions: list[list[list[int]]] = field(default_factory=list)
    rewards: list[list[float]] = field(default_factory=list)
    others: float = 0.0
    """Share of the machine's cores that other processes took meanwhile; filled in by the driver."""

    @property
    def step(self) -> Seconds:
        """All three."""
        wall, cpu = (sum(column) for column in zip(self.generation, self.learner, self.sync, strict=True))
        return wall, cpu


class Meter:
    """Clocks of this process."""

    def start(self) -> None:
        """Begin a step."""
        reset_peak()
        self._last = _now()

    def lap(self) -> Seconds:
        """Since the start or the last lap."""
        last, self._last = self._last, _now()
        return self._last[0] - last[0], self._last[1] - last[1]

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What happens inside does not count."""
        before = _now()
        yield
        after = _now()
        self._last = (self._last[0] + after[0] - before[0], self._last[1] + after[1] - before[1])


def _now() -> Seconds:
    return time.perf_counter(), time.process_time()


_OUT = sys.stdout


def jobs() -> Iterator[Job]:
    """Jobs from the driver until it closes the line; what libraries print goes to the log from now on."""
    sys.stdout = sys.stderr
    for line in sys.stdin:
        yield Job(**json.loads(line))


def report(outcome: Outcome) -> None:
    """Answer the last job."""
    print(json.dumps(asdict(outcome)), file=_OUT, flush=True)


class Contestant:
    """One side, running from the first job to the end of the `with` block."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        self._file = log.open("w")
        self._process: subprocess.Popen[str] = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._file,
            text=True,
        )

    def do(self, job: Job) -> Outcome:
        """Hand over a job and wait for its outcome. Raises `RuntimeError` with the log's end if the side died."""
        assert self._process.stdin is not None and self._process.stdout is not None
        busy, start = busy_s(), time.perf_counter()
        print(json.dumps(asdict(job)), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("\n".join([self.log.stem, *self.log.read_text().splitlines()[-20:]]))
        seconds = (time.perf_counter() - start) * (os.cpu_count() or 1)
        outcome = Outcome(**json.loads(line))
        others = max(0.0, busy_s() - busy - outcome.step[1]) / seconds
        return replace(outcome, others=others)

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *error: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._file.close()
