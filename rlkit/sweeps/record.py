"""Evaluations of a sweep on disk: one file per trial, one line per evaluation, written whole.

    sweep/trials/lr=1e-05,group_size=4/seed_0/evaluations.jsonl    {"step": 10, "samples": 320, "scores": {"task": 0.5}}

A trial that is started again goes on in the same folder; a step that was evaluated twice counts once, the newest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Evaluation", "append", "read_trials", "trial_folder"]

FILE = "evaluations.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One arm with one seed at one step."""

    arm: str
    seed: int
    step: int
    samples: int
    """Trajectories trained on so far."""
    scores: Mapping[str, float]
    """Prompt -> score."""

    @property
    def mean(self) -> float:
        """Over prompts."""
        return sum(self.scores.values()) / len(self.scores)


def trial_folder(sweep: Path, arm: str, seed: int) -> Path:
    """Where a trial runs and writes."""
    return sweep / "trials" / arm / f"seed_{seed}"


def append(sweep: Path, found: Evaluation) -> None:
    """Durable when it returns."""
    folder = trial_folder(sweep, found.arm, found.seed)
    folder.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"step": found.step, "samples": found.samples, "scores": dict(found.scores)})
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_trials(sweep: Path) -> list[Evaluation]:
    """Everything that was evaluated, by arm, seed and step; a torn line is left out."""
    found: dict[tuple[str, int, int], Evaluation] = {}
    for path in sorted((sweep / "trials").glob(f"*/seed_*/{FILE}")):
        arm, seed = path.parent.parent.name, int(path.parent.name.removeprefix("seed_"))
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
                one = Evaluation(arm=arm, seed=seed, step=row["step"], samples=row["samples"], scores=row["scores"])
            except (ValueError, KeyError, TypeError):
                continue
            found[arm, seed, one.step] = one
    return [found[key] for key in sorted(found)]
