"""Arms of agentic search side by side: runs that differ in reward or credit only, several seeds each.

    python -m benchmarks.search_arms runs/arms [--out benchmarks/results/search_arms.md]

Reads the metrics of every run in the folder, named ARM-SEED, and writes tables: what the last evaluation says, what the
terms did in training, and the curve of exact match over evaluations. A cell is the mean over seeds and half of its 95 %
interval by Student's t, which for three seeds is wide; with one seed there is none. Nothing is trained here.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

__all__ = ["Run", "cell", "read_runs", "tables"]

STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""97.5 % quantile of t by degrees of freedom; 1.96 beyond."""
HELD_OUT = {
    "exact match": "reward/exact_match/mean",
    "F1": "reward/f1/mean",
    "containment": "reward/containment/mean",
    "searches": "signals/num_searches",
    "R_path": "reward/search_p1/path/mean",
    "S_self": "reward/search_p1/s_self/mean",
    "S_ref": "reward/search_p1/s_ref/mean",
    "format": "reward/search_p1/format/mean",
}
"""Column -> metric of the last evaluation."""
TRAINED = {
    "groups that teach": "groups/effective",
    "R_path and exact match": "reward/search_p1/path_em/mean",
    "one-step plans": "reward/search_p1/one_step_plan/mean",
    "earn nothing": "reward/search_p1/invalid/mean",
}
"""Column -> metric, mean over the steps of training that have it."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The metrics of one run."""

    arm: str
    seed: str
    steps: Mapping[int, Mapping[str, float]]
    """Of training, by step."""
    evaluations: Mapping[int, Mapping[str, float]]
    """Of evaluations, by step; 0 is the warm start."""

    def mean(self, name: str) -> float | None:
        """Over the steps of training that have the metric; None where none has."""
        found = [step[name] for step in self.steps.values() if name in step]
        return fmean(found) if found else None

    @property
    def tokens(self) -> float:
        """Unique tokens that training computed."""
        return math.fsum(step.get("tokens/unique", 0.0) for step in self.steps.values())


def read_runs(folder: Path) -> list[Run]:
    """The runs of a folder, by arm and seed. Raises `SystemExit` where there are none."""
    runs = [_read(file) for file in sorted(folder.glob("*-*/metrics.jsonl"))]
    runs = [run for run in runs if run.evaluations]
    if not runs:
        raise SystemExit(f"{folder}: holds no run ARM-SEED with an evaluation")
    return runs


def _read(file: Path) -> Run:
    arm, _, seed = file.parent.name.rpartition("-")
    found: dict[str, dict[int, dict[str, float]]] = {"train": {}, "eval": {}}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["phase"] in found:  # a resumed step is written again: the last line counts
            found[row["phase"]].setdefault(row["step"], {}).update(row["metrics"])
    return Run(arm=arm, seed=seed, steps=found["train"], evaluations=found["eval"])


def cell(values: Sequence[float], digits: int = 3) -> str:
    """`mean ± half of the 95 % interval`; a single value stands alone, none is `-`."""
    if not values:
        return "-"
    mean = f"{fmean(values):.{digits}f}"
    if len(values) < 2:
        return mean
    half = STUDENT.get(len(values) - 1, 1.96) * stdev(values) / math.sqrt(len(values))
    return f"{mean} ± {half:.{digits}f}"


def tables(runs: Sequence[Run]) -> Iterator[str]:
    """The page, line by line; arms in order of their names."""
    arms = {arm: [run for run in runs if run.arm == arm] for arm in dict.fromkeys(run.arm for run in runs)}
    steps = sorted({step for run in runs for step in run.evaluations})
    yield from ("## The last evaluation", "", *_head(["arm", "seeds", *HELD_OUT]))
    for arm, several in arms.items():
        last = [run.evaluations[max(run.evaluations)] for run in several]
        cells = [cell([m[name] for m in last if name in m]) for name in HELD_OUT.values()]
        yield _row([arm, ", ".join(run.seed for run in several), *cells])
    yield from ("", "## Training", "", *_head(["arm", "steps", "unique tokens, thousands", *TRAINED]))
    for arm, several in arms.items():
        cells = [cell([mean for run in several if (mean := run.mean(name)) is not None]) for name in TRAINED.values()]
        length = ", ".join(sorted({str(max(run.steps, default=0)) for run in several}))
        yield _row([arm, length, cell([run.tokens / 1000 for run in several], 0), *cells])
    yield from ("", "## Exact match, evaluation by evaluation", "", *_head(["arm", *(f"step {s}" for s in steps)]))
    for arm, several in arms.items():
        at = [[run.evaluations[step] for run in several if step in run.evaluations] for step in steps]
        yield _row([arm, *(cell([m[HELD_OUT["exact match"]] for m in some]) for some in at)])


def _head(names: Sequence[str]) -> list[str]:
    return [_row(names), _row(["---", *["---:"] * (len(names) - 1)])]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the page, and write it where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    lines = ["# Arms of agentic search", "", f"`python -m benchmarks.search_arms {given.folder}`", ""]
    page = "\n".join([*lines, *tables(read_runs(given.folder))]) + "\n"
    print(page)
    if given.out:
        given.out.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
