"""The numbers of a run, arranged: results with intervals, curves by subject, time, ledger, failures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlkit.errors import RlkitError
from rlkit.live import Phase
from rlkit.metrics import metric
from rlkit.recorder import read_metrics

__all__ = ["Curve", "RunCurves", "failures", "ledger", "read_curves", "results", "sections", "timing"]

MAX_POINTS = 600
"""Points drawn of one curve."""
PHASES = ("rollout", "reward", "learn", "sync", "eval", "checkpoint")
"""Phases of a step, in the order of the bars."""
CHARTS: Mapping[str, tuple[str, ...]] = {
    "Reward in training": ("reward/",),
    "Rollouts": ("rollout/", "tokens/", "signals/"),
    "Search and values": ("search/", "value/"),
    "Learning signal": ("groups/", "staleness/", "advantage/", "credit/", "sibling/"),
    "Optimisation": (
        *("loss", "grad_norm", "kl/", "entropy", "clip_frac"),
        *("ratio/", "importance", "update/", "lr"),
    ),
    "Machine": ("throughput/", "memory/", "sync/"),
    "Other": ("",),
}
"""Section -> beginnings of the names that it shows; the first section that fits takes a name."""
TOGETHER = {
    "reward/mean": ("Total reward", ("reward/mean", "reward/best")),
    "rollout/done": ("How trajectories end", ("rollout/done", "rollout/truncated", "rollout/failed")),
    "tokens/unique": ("Tokens per step", ("tokens/unique", "tokens/flat")),
    "value/squared_error": ("Error of values, and that of a constant", ("value/squared_error", "value/spread")),
    "staleness/mean": ("Staleness", ("staleness/mean", "staleness/max")),
}
"""Names drawn in one chart, under the first of them; a term's mean and best are also drawn together."""
SPELLED = {
    "kl": "KL",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "clip_frac": "clipped",
    "std": "spread",
}
"""Words of names that read better otherwise."""
ELSEWHERE = ("timing/", "ledger/", "dropped/")
"""Beginnings of names that have a section of their own."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric over steps."""

    steps: list[int] = field(default_factory=list)
    """Ascending."""
    values: list[float] = field(default_factory=list)
    """One for each step, NaN where it was not finite."""

    @property
    def finite(self) -> dict[int, float]:
        """Step -> value, without what is not a number."""
        points = zip(self.steps, self.values, strict=True)
        return {step: value for step, value in points if math.isfinite(value)}


Curves = Mapping[str, Curve]
RunCurves = Mapping[Phase, Curves]


def read_curves(run_dir: Path, notes: list[str]) -> RunCurves:
    """Everything that was logged, lines of one step merged; what is missing is added to `notes`."""
    merged: dict[Phase, dict[int, dict[str, float]]] = {"train": {}, "eval": {}}
    for line in read_metrics(run_dir):
        merged[line.phase].setdefault(line.step, {}).update(line.metrics)
    if not merged["train"]:
        notes.append("No training step was logged.")
    elif not merged["eval"]:
        notes.append("No held-out evaluation was logged: the results are those of training rollouts.")
    curves: dict[Phase, dict[str, Curve]] = {"train": {}, "eval": {}}
    for phase, steps in merged.items():
        for step in sorted(steps):
            for name, value in steps[step].items():
                curve = curves[phase].setdefault(name, Curve())
                curve.steps.append(step)
                curve.values.append(value)
    return curves


def _rewards(curves: Curves) -> list[str]:
    """Names of reward means, the terms first and the total last."""
    means = [name for name in curves if name.startswith("reward/") and name.endswith("/mean")]
    return sorted((name for name in means if curves[name].finite), key=lambda name: name == "reward/mean")


def results(curves: RunCurves) -> dict[str, Any]:
    """Start and end of every reward on held-out tasks, or of the training reward where there are none."""
    held_out = bool(curves["eval"])
    named = curves["eval" if held_out else "train"]
    rows = []
    for name in _rewards(named):
        points, stem = named[name].finite, name.removesuffix("/mean")
        row: dict[str, Any] = {"label": _label(name)}
        for side, step in (("start", min(points)), ("end", max(points))):
            beside = {key: _at(named, f"{stem}/{key}", [step])[0] for key in ("low", "high", "n")}
            row[side] = {"step": step, "value": points[step]} | beside
        rows.append(row)
    return {"held_out": held_out, "rows": rows}


def _at(curves: Curves, name: str, steps: Sequence[int]) -> list[float | None]:
    points = curves[name].finite if name in curves else {}
    return [points.get(step) for step in steps]


def sections(curves: RunCurves) -> list[dict[str, Any]]:
    """Charts by subject; every logged name of training is in one of them or has a section of its own."""
    train, held_out = curves["train"], curves["eval"]
    found: dict[str, list[dict[str, Any]]] = {"Held out": [], **{title: [] for title in CHARTS}}
    found["Held out"] += [_chart(held_out, (name,), _label(name)) for name in _rewards(held_out)]
    seen: set[str] = set()
    # Means first, so that no chart of its own takes a name that belongs into theirs.
    for name in sorted(train, key=lambda name: (name not in TOGETHER, not name.endswith("/mean"))):
        never_failed = name.endswith("/failed") and not any(train[name].values)  # the table says `never`
        if name in seen or name.startswith(ELSEWHERE) or never_failed:
            continue
        beside = (f"{name.removesuffix('mean')}best",) if name.startswith("reward/") else ()
        title, names = TOGETHER.get(name, (_label(name), (name, *beside)))
        seen.update(names)
        section = next(title for title, beginnings in CHARTS.items() if name.startswith(beginnings))
        found[section].append(_chart(train, tuple(other for other in names if other in train), title))
    return [{"title": title, "charts": charts} for title, charts in found.items() if charts]


def _label(name: str) -> str:
    """`reward/em/mean` -> `em`, `groups/all_failed` -> `groups · all failed`."""
    if name == "reward/mean":
        return "total reward"
    words = name.removesuffix("/mean").split("/")
    if words[0] in ("reward", "rollout", "signals", "tokens", "memory") and words[1:]:
        words = words[1:]
    return " · ".join(SPELLED.get(word, word.replace("_", " ")) for word in words)


def _chart(curves: Curves, names: tuple[str, ...], title: str) -> dict[str, Any]:
    try:
        entry = metric(names[0])
        unit, about = entry.unit, {"means": entry.meaning, "over": entry.over, "healthy": entry.healthy}
    except RlkitError:  # an undocumented name is still drawn
        unit, about = "", {}
    series = []
    for name in names:
        steps, stem = curves[name].steps, name.removesuffix("/mean")
        columns: dict[str, Sequence[Any]] = {"steps": steps, "values": curves[name].values}
        if len(names) == 1:
            columns |= {key: _at(curves, f"{stem}/{key}", steps) for key in ("low", "high")}
        series.append({"label": name.rpartition("/")[2], **_thin(columns)})
    return {"title": title, "name": names[0], "unit": unit, "about": about, "series": series}


def _thin(columns: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """At most `MAX_POINTS` rows: of each stretch of steps the lowest and the highest, so no spike is lost."""
    values = columns["values"]
    if len(values) <= MAX_POINTS:
        return {name: list(column) for name, column in columns.items()}
    finite = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    keep = {0, len(values) - 1}
    for stretch in np.array_split(np.arange(len(values)), MAX_POINTS // 2 - 1):
        # Filled so that NaN is never the extreme; a stretch of NaN alone keeps its first row, as a gap.
        keep.add(int(stretch[np.where(np.isnan(finite[stretch]), np.inf, finite[stretch]).argmin()]))
        keep.add(int(stretch[np.where(np.isnan(finite[stretch]), -np.inf, finite[stretch]).argmax()]))
    return {name: [column[index] for index in sorted(keep)] for name, column in columns.items()}


def timing(curves: RunCurves) -> dict[str, Any]:
    """Seconds of each phase by step; what no phase claims of `timing/step_s` is `other`."""
    logged = {
        (phase, name): named.get(f"timing/{name}_s", Curve()).finite
        for phase, named in curves.items()
        for name in (*PHASES, "step")
    }
    steps = sorted({step for points in logged.values() for step in points})
    seconds = {name: [0.0] * len(steps) for name in (*PHASES, "other")}
    for index, step in enumerate(steps):
        for phase in curves:
            claimed = {name: logged[phase, name].get(step, 0.0) for name in PHASES}
            for name, value in claimed.items():
                seconds[name][index] += value
            seconds["other"][index] += max(logged[phase, "step"].get(step, 0.0) - sum(claimed.values()), 0.0)
    used = [{"name": name, "seconds": column} for name, column in seconds.items() if sum(column) > 0]
    return {"steps": steps, "phases": used}


def ledger(train: Curves) -> dict[str, Any] | None:
    """Where every task that was drawn ended up; None if the run kept no ledger."""
    last = {}
    for name in ("drawn", "trained", "dropped", "pending"):
        points = train.get(f"ledger/{name}", Curve()).finite
        if not points:
            return None
        last[name] = points[max(points)]
    dropped = {name: train[name].finite for name in train if name.startswith("dropped/")}
    return last | {
        "missing": last["drawn"] - last["trained"] - last["dropped"] - last["pending"],
        "reasons": [(name.removeprefix("dropped/"), p[max(p)]) for name, p in dropped.items() if p],
    }


def failures(curves: RunCurves, reasons: Mapping[str, Counter[str]]) -> list[dict[str, Any]]:
    """How often rollouts and rewards failed, at worst and why; and every number that was not finite."""
    rows: list[dict[str, Any]] = []
    for name, curve in curves["train"].items():
        points, what = curve.finite, None
        if name in ("rollout/failed", "rollout/truncated"):
            what = name.replace("/", " ")
        elif name.startswith("reward/") and name.endswith("/failed"):
            what = f"reward {name.removeprefix('reward/').removesuffix('/failed')} failed"
        if what and points:
            worst = max(points, key=points.__getitem__)
            why = [f"{text} ({count})" for text, count in reasons.get(what, Counter()).most_common(3)]
            share = sum(points.values()) / len(points)
            rows.append({"what": what, "share": share, "worst": (worst, points[worst]), "why": "; ".join(why)})
    rows.sort(key=lambda row: float(row["share"]), reverse=True)
    for phase, named in curves.items():
        for name, curve in named.items():
            lost = [step for step in curve.steps if step not in curve.finite]
            if lost:
                text = f"{len(lost)} of {len(curve.steps)} values, first at step {lost[0]}"
                rows.append({"what": f"{phase} {name} not finite", "share": None, "worst": None, "why": text})
    return rows
