"""Arms of agentic search side by side: runs that differ in reward or credit only, several seeds each.

    python -m benchmarks.search_arms runs/arms [--out PAGE.md] [--figure docs/figures/search_arms.svg]

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


CURVES = {
    "groups that teach": ("groups/effective", 0.0, 1.0),
    "R_path": ("reward/search_p1/path/mean", 0.4, 1.0),
    "turns": ("rollout/turns", 1.8, 3.4),
    "exact match": ("reward/exact_match/mean", 0.0, 0.5),
}
"""Panel -> metric of training, lower and upper end of its axis."""
COLOURS = ("#2f6fb7", "#c8553d", "#4c956c", "#8d6cab", "#b58900")
WIDTH, HEIGHT, LEFT, TOP = 250, 170, 40, 44


def figure(runs: Sequence[Run]) -> str:
    """An SVG: a panel for each curve, a thin line for each run and a thick one for the mean of an arm."""
    arms = list(dict.fromkeys(run.arm for run in runs))
    last = max(step for run in runs for step in run.steps)
    body = []
    for number, arm in enumerate(arms):
        x, colour = LEFT + 150 * number, COLOURS[number % len(COLOURS)]
        body.append(
            f'<rect x="{x}" y="10" width="14" height="4" fill="{colour}"/><text x="{x + 20}" y="16">{arm}</text>'
        )
    for panel, (title, (name, low, high)) in enumerate(CURVES.items()):
        left = LEFT + panel * (WIDTH + LEFT)

        def at(step: int, value: float, left: int = left, low: float = low, high: float = high) -> str:
            share = (min(max(value, low), high) - low) / (high - low)
            return f"{left + WIDTH * (step - 1) / max(last - 1, 1):.1f},{TOP + HEIGHT * (1 - share):.1f}"

        body.append(f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#bbb"/>')
        body.append(f'<text x="{left}" y="{TOP - 6}" font-weight="bold">{title}</text>')
        for value, y in ((high, TOP + 10), (low, TOP + HEIGHT)):
            body.append(f'<text x="{left - 5}" y="{y}" text-anchor="end">{value:g}</text>')
        body.append(f'<text x="{left + WIDTH}" y="{TOP + HEIGHT + 16}" text-anchor="end">step {last}</text>')
        for number, arm in enumerate(arms):
            several = [{s: m[name] for s, m in run.steps.items() if name in m} for run in runs if run.arm == arm]
            shared = sorted(set.intersection(*map(set, several)))
            mean = {step: fmean(one[step] for one in several) for step in shared}
            for points, width, opacity in [*((one, 1, 0.35) for one in several), (mean, 2.5, 1)]:
                line = " ".join(at(step, points[step]) for step in sorted(points))
                style = f'stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="{width}" opacity="{opacity}"'
                body.append(f'<polyline points="{line}" fill="none" {style}/>')
    size = f"0 0 {LEFT + len(CURVES) * (WIDTH + LEFT)} {TOP + HEIGHT + 26}"
    font = 'font-family="sans-serif" font-size="12" fill="#333"'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size}" {font}>', *body, "</svg>"]) + "\n"


def main() -> None:
    """Print the page, and write it where asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path, help="an SVG of the curves")
    given = parser.parse_args()
    runs = read_runs(given.folder)
    lines = ["# Arms of agentic search", "", f"`python -m benchmarks.search_arms {given.folder}`", ""]
    page = "\n".join([*lines, *tables(runs)]) + "\n"
    print(page)
    if given.out:
        given.out.write_text(page, encoding="utf-8")
    if given.figure:
        given.figure.write_text(figure(runs), encoding="utf-8")


if __name__ == "__main__":
    main()
