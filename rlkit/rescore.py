"""Other rewards, or other weights, on the rollouts of a run: what would have been praised and blamed. No model.

    stored trees ─> the other recipe's rewards ─> its algorithm's credit ─> beside what the run itself computed

A stored tree holds everything that rewards and advantages read: task with answers and data, nodes with author, text,
tokens and turns, leaves with status, answer and signals. What needs a model is left out and said: a KL in the reward.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlkit.errors import DataError
from rlkit.live import Phase
from rlkit.recipe import Recipe
from rlkit.recorder import rollout_files
from rlkit.records import CreditedTree, ScoredTree
from rlkit.rollout.build import reward_specs
from rlkit.rollout.scoring import Scorer
from rlkit.store import read_trees

__all__ = ["Comparison", "TermChange", "pearson", "ranks", "rescore", "spearman"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TermChange:
    """One reward term in the run and under the other recipe."""

    name: str
    before_weight: float | None
    """None: the run had no such term."""
    after_weight: float | None
    """None: the other recipe has none."""
    before: float
    """Mean over the leaves where it was ok; NaN where there is none."""
    after: float
    failed: int
    """Leaves whose rescoring failed; never counted as 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Rewards and advantages of the same leaves, before and after. A: advantage, the mean over a leaf's tokens."""

    num_trees: int
    num_leaves: int
    """Leaves that did not fail in the rollout."""
    num_compared: int
    """Leaves with an advantage on both sides; all counts below are of these."""
    pearson: float
    """Correlation of advantages; NaN where one side is constant."""
    spearman: float
    """The same of their ranks, ties sharing the mean rank."""
    same_sign: int
    """Both above 0, both below, or both 0."""
    flipped: int
    """From above 0 to below, or back: what was praised is blamed."""
    gained: int
    """0 before, not 0 after: groups that taught nothing and now would."""
    lost: int
    """Not 0 before, 0 after."""
    effective_before: float
    """Share of groups whose valid rewards differ."""
    effective_after: float
    reward_before: float
    """Mean total reward of valid leaves."""
    reward_after: float
    terms: tuple[TermChange, ...]
    flips: tuple[Mapping[str, Any], ...]
    """The compared leaves with the largest change: step, task, sample, rewards and advantages."""
    notes: tuple[str, ...] = ()
    """What this comparison does not contain."""

    def __str__(self) -> str:
        """A page for a terminal."""
        n = self.num_compared
        share = (lambda count: f"{count} ({count / n:.1%})") if n else (lambda count: str(count))
        lines = [
            f"{self.num_trees} groups, {self.num_leaves} trajectories, {n} with an advantage on both sides",
            f"advantages       Pearson {self.pearson:.4f}   Spearman {self.spearman:.4f}",
            f"signs            same {share(self.same_sign)}   flipped {share(self.flipped)}   "
            f"from 0 {share(self.gained)}   to 0 {share(self.lost)}",
            f"effective groups {self.effective_before:.3f} -> {self.effective_after:.3f}",
            f"reward           {self.reward_before:.4f} -> {self.reward_after:.4f}",
            "",
            f"{'term':<28} {'weight':>16} {'mean':>20} {'failed':>7}",
        ]
        for term in self.terms:
            weights = f"{_number(term.before_weight)} -> {_number(term.after_weight)}"
            lines.append(
                f"{term.name:<28} {weights:>16} {_number(term.before) + ' -> ' + _number(term.after):>20} "
                f"{term.failed:>7}"
            )
        if self.flips:
            lines += ["", "largest changes of an advantage"]
            lines += [
                f"  {f['phase']} step {f['step']}, task {f['task']}, sample {f['sample']}: "
                f"reward {f['reward_before']:.4g} -> {f['reward_after']:.4g}, "
                f"A {f['before']:+.4f} -> {f['after']:+.4f}"
                for f in self.flips
            ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_json(self) -> str:
        """All of it as JSON; NaN becomes null."""
        return json.dumps(_plain(self), indent=1)


def rescore(run: Path, recipe: Recipe, *, phase: Phase = "train", max_shown: int = 10) -> Comparison:
    """Score the run's stored trees with `recipe`'s rewards, credit them with its algorithm, and compare.

    Advantages before are those that the run stored; where it stored none (evaluations) its rewards are credited with
    `recipe`'s algorithm. Trees of one step are credited together, because denominators and some advantages are of the
    batch: a run that stores all trees of a step (`log.trees_per_step: null`) is compared exactly there too.
    Raises `DataError` for a run without stored rollouts.
    """
    files = rollout_files(run, phase)
    if not files:
        raise DataError(f"{run}: holds no {phase} rollouts; a run stores them in {run / 'rollouts'}")
    algorithm, config = recipe.algorithm.load(), recipe.algorithm.settings
    scorer, rows, scored = Scorer(reward_specs(recipe), allow=recipe.network.allow), [], []
    try:
        for step, file in files.items():
            stored = read_trees(file)
            fresh = [asyncio.run(scorer.score(tree.tree)) for tree in stored]
            credited = algorithm.credit(fresh, config, None)
            recredited = algorithm.credit([tree.scored for tree in stored], config, None)
            for old, plain, new in zip(stored, recredited, credited, strict=True):
                before = old.record if isinstance(old.record, CreditedTree) else plain
                rows += _rows(f"{phase}", step, before, new)
                scored.append((old.scored, new.scored))
    finally:
        scorer.close()
    notes = []
    if getattr(config, "kl_coef", 0) and getattr(config, "kl_in", "loss") == "reward":
        notes.append("algorithm.kl_in is 'reward': that KL needs models and is left out of the advantages after")
    return _compare(rows, scored, max_shown, tuple(notes))


def _rows(phase: str, step: int, before: CreditedTree, after: CreditedTree) -> list[dict[str, Any]]:
    """One row per leaf that did not fail in the rollout."""
    old, new = _advantages(before), _advantages(after)
    return [
        {
            "phase": phase,
            "step": step,
            "task": before.tree.task.id,
            "sample": leaf.sample_index,
            "reward_before": float(before.scored.rewards[index]),
            "reward_after": float(after.scored.rewards[index]),
            "before": old[index],
            "after": new[index],
        }
        for index, leaf in enumerate(before.tree.leaves)
        if leaf.status != "failed"
    ]


def _advantages(tree: CreditedTree) -> Floats:
    """[L] mean advantage over a leaf's policy tokens, paths that speak for single nodes included; NaN: not trained."""
    total, weight = np.zeros(tree.tree.num_tokens), np.zeros(tree.tree.num_tokens)
    own: dict[int, list[float]] = {}
    for path in tree.paths:
        if path.leaf >= 0:
            own.setdefault(path.leaf, []).extend(path.advantages)
        else:
            np.add.at(total, path.tokens, path.advantages)
            np.add.at(weight, path.tokens, 1.0)
    found = np.full(len(tree.tree.leaves), np.nan)
    for index in range(len(found)):
        tokens = tree.tree.policy_tokens(index)
        shared = (total[tokens] / np.maximum(weight[tokens], 1))[weight[tokens] > 0]
        values = np.concatenate([np.array(own.get(index, [])), shared])
        if len(values):
            found[index] = values.mean()
    return found


def _compare(
    rows: Sequence[Mapping[str, Any]],
    scored: Sequence[tuple[ScoredTree, ScoredTree]],
    max_shown: int,
    notes: tuple[str, ...],
) -> Comparison:
    both = [row for row in rows if np.isfinite(row["before"]) and np.isfinite(row["after"])]
    before = np.array([row["before"] for row in both], dtype=np.float64)
    after = np.array([row["after"] for row in both], dtype=np.float64)
    first, second = _signs(before), _signs(after)
    changed = sorted(both, key=lambda row: -abs(row["after"] - row["before"]))
    return Comparison(
        num_trees=len(scored),
        num_leaves=len(rows),
        num_compared=len(both),
        pearson=pearson(before, after),
        spearman=spearman(before, after),
        same_sign=int((first == second).sum()),
        flipped=int((first * second < 0).sum()),
        gained=int(((first == 0) & (second != 0)).sum()),
        lost=int(((first != 0) & (second == 0)).sum()),
        effective_before=_effective([old for old, _ in scored]),
        effective_after=_effective([new for _, new in scored]),
        reward_before=_mean(np.concatenate([old.rewards for old, _ in scored])),
        reward_after=_mean(np.concatenate([new.rewards for _, new in scored])),
        terms=_terms(scored),
        flips=tuple(row for row in changed[:max_shown] if abs(row["after"] - row["before"]) > 1e-9),
        notes=notes,
    )


def _signs(values: Floats) -> Floats:
    """-1, 0 or 1; what is below 1e-9 is rounding."""
    return np.where(np.abs(values) < 1e-9, 0.0, np.sign(values))


def pearson(x: Floats, y: Floats) -> float:
    """Linear correlation of two columns; NaN where one is constant or shorter than two."""
    if len(x) < 2 or np.ptp(x) < 1e-12 or np.ptp(y) < 1e-12:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1])


def ranks(values: Floats) -> Floats:
    """1-based ranks; equal values share the mean of theirs: [3, 1, 3] -> [2.5, 1, 2.5]."""
    order = np.argsort(values, kind="stable")
    found = np.empty(len(values))
    found[order] = np.arange(1, len(values) + 1)
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    sums = np.zeros(len(counts))
    np.add.at(sums, inverse, found)
    return (sums / counts)[inverse]


def spearman(x: Floats, y: Floats) -> float:
    """Pearson correlation of the ranks; advantages are rounded to nine digits first, so that ties are ties."""
    return pearson(ranks(np.round(x, 9)), ranks(np.round(y, 9)))


def _effective(scored: Sequence[ScoredTree]) -> float:
    spread = [float(np.ptp(tree.rewards[tree.valid])) if tree.valid.any() else 0.0 for tree in scored]
    return sum(value > 1e-8 for value in spread) / len(spread) if spread else float("nan")


def _mean(values: Floats) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def _terms(scored: Sequence[tuple[ScoredTree, ScoredTree]]) -> tuple[TermChange, ...]:
    names = dict.fromkeys(term.name for pair in scored for side in reversed(pair) for term in side.terms)
    rows = []
    for name in names:
        old = [term for before, _ in scored for term in before.terms if term.name == name]
        new = [term for _, after in scored for term in after.terms if term.name == name]
        rows.append(
            TermChange(
                name=name,
                before_weight=old[0].weight if old else None,
                after_weight=new[0].weight if new else None,
                before=_mean(np.concatenate([term.values for term in old])) if old else float("nan"),
                after=_mean(np.concatenate([term.values for term in new])) if new else float("nan"),
                failed=sum(status.startswith("failed") for term in new for status in term.status),
            )
        )
    return tuple(rows)


def _number(value: float | None) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:.4g}"


def _plain(value: Any) -> Any:
    if isinstance(value, Comparison | TermChange):
        return {name: _plain(getattr(value, name)) for name in value.__slots__}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
