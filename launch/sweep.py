"""`rlkit sweep RECIPE grid.yaml`: one recipe with many settings, on the same prompts, seeds and evaluation set.

Every trial is a run like any other in `OUT/trials/ARM/seed_S`. The arms share the evaluation's tasks, and trials of one
seed draw the same training prompts in the same order, because draws are keyed by the seed alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from rlkit.config import Resolved, load
from rlkit.errors import RecipeError, RlkitError, nearest
from rlkit.launch.resumable import SHOWN, differences
from rlkit.records import ScoredTree
from rlkit.sweeps.grid import Arm, Grid, load_grid, num_arms, probes, race
from rlkit.sweeps.record import Evaluation, read_trials, trial_folder
from rlkit.sweeps.report import standings, write_sweep_report

__all__ = ["prompt_scores", "sweep"]

FREE = ("cluster", "log", "name", "out", "seed")
"""Sections that may differ when a sweep goes on; a trial's seed is the grid's."""


def sweep(
    resolved: Resolved, overrides: Sequence[str], grid_file: Path, out: Path, *, concurrent: int = 0, dry: bool = False
) -> int:
    """Check every arm, run or go on, and print the standings and where the report lies."""
    grid = load_grid(grid_file)
    recipe = resolved.recipe
    for arm in probes(grid):  # before anything starts: a typo in the fortieth arm is found now
        rewards = [reward.name for reward in load(resolved.path, [*overrides, *arm.overrides]).recipe.rewards]
        if grid.reward is not None and grid.reward not in rewards:
            raise RecipeError("reward", f"'{grid.reward}' is no reward of {arm.name}{nearest(grid.reward, rewards)}")
    steps, every = recipe.train.steps, recipe.train.eval_every or recipe.train.steps
    if grid.stop != "none" and steps < 2 * every:
        raise RecipeError(
            "train.eval_every", f"{recipe.train.eval_every} of {steps} steps: arms are stopped at evaluations between"
        )
    count, per_step = num_arms(grid), recipe.rollout.groups_per_step * recipe.rollout.group_size
    whole = count * len(grid.seeds) * steps * per_step  # of the recipe's own group sizes; arms may vary them
    if dry:
        names = [arm.name for arm in probes(grid)] if grid.search == "grid" else []
        print("\n".join([*names, f"{count} arms x {len(grid.seeds)} seeds, search={grid.search}, stop={grid.stop}"]))
        print(f"{steps} steps each: at most {whole:,} trajectories")
        return 0
    try:
        from rlkit.cluster.sweep import run_sweep
    except ImportError as error:
        raise RlkitError(f"sweeps need Ray Tune ({error}); pip install -c constraints.txt -e '.[sweep]'") from error
    from rlkit.lock import locked

    with locked(out):
        _refuse_other_sweep(grid, resolved, out)
        objective = _objective(resolved.path.resolve(), tuple(overrides), grid, every)
        finished = False
        try:
            run_sweep(
                grid, out, objective, recipe.cluster, steps=steps, every=every, concurrent=concurrent, seed=recipe.seed
            )
            finished = True
        finally:  # also of a sweep that was stopped, or of which trials failed
            _conclude(grid, out, every, steps, whole, f"{recipe.name}: {grid_file.stem}", finished)
        if not read_trials(out):
            what = f"'{grid.reward}'" if grid.reward else "a reward"
            raise RlkitError(f"reward: no trial logged {what} for any held-out prompt; see the trials in {out}/trials")
    return 0


def prompt_scores(trees: Sequence[ScoredTree], reward: str | None) -> dict[str, float]:
    """Task -> mean over its valid trajectories of one term, or of the total; tasks without a valid one are left out."""
    scores = {}
    for scored in trees:
        if reward is None:
            values = scored.rewards[scored.valid]
        else:
            term = next(term for term in scored.terms if term.name == reward)
            values = term.values[np.isfinite(term.values)]
        if len(values):
            scores[scored.tree.task.id] = float(np.mean(values))
    return scores


class _Watched:
    """A recorder that also hands the trees of evaluations to the sweep."""

    def __init__(self, recorder: Any, watch: Callable[[int, Sequence[ScoredTree]], None]) -> None:
        self._recorder, self._watch = recorder, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._recorder, name)

    def trees(self, step: int, trees: Sequence[Any], phase: str = "train") -> None:
        """As the recorder's own, and reported where they are an evaluation's."""
        self._recorder.trees(step, trees, phase=phase)
        if phase == "eval":
            self._watch(step, trees)


def _objective(recipe: Path, overrides: tuple[str, ...], grid: Grid, every: int) -> Any:
    """What a trial's process runs; it saves at least as often as it evaluates, so that it can go on from there."""

    def objective(arm: Arm, seed: int, out: Path, report: Callable[[Evaluation], None]) -> None:
        from rlkit.launch.resumable import refuse_other_recipe
        from rlkit.launch.run import run_parts
        from rlkit.lock import locked
        from rlkit.train import train

        folder = trial_folder(out, arm.name, seed)
        fixed = [f"seed={seed}", f"out={folder}", "log.live=false", "log.tensorboard=false"]
        saves = load(recipe, [*overrides, *arm.overrides]).recipe.train.checkpoint_every
        fixed.append(f"train.checkpoint_every={min(saves or every, every)}")
        resolved = load(recipe, [*overrides, *arm.overrides, *fixed])
        rollout = resolved.recipe.rollout
        per_step = rollout.groups_per_step * rollout.group_size

        def watch(step: int, trees: Sequence[ScoredTree]) -> None:
            scores = prompt_scores(trees, grid.reward)
            if scores:
                report(Evaluation(arm=arm.name, seed=seed, step=step, samples=step * per_step, scores=scores))

        with locked(folder):
            refuse_other_recipe(resolved, folder)
            with run_parts(resolved) as parts:
                train(replace(parts, recorder=_Watched(parts.recorder, watch)))  # type: ignore[arg-type]

    return objective


def _refuse_other_sweep(grid: Grid, resolved: Resolved, out: Path) -> None:
    """A folder belongs to one grid and one recipe: trials of others would be compared with these."""
    recipe = {section: values for section, values in resolved.values.items() if section not in FREE}
    mine = json.loads(json.dumps({"grid": asdict(grid), "recipe": recipe}))
    kept = out / "sweep.json"
    if not kept.exists():
        kept.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")
    changed = differences(json.loads(kept.read_text(encoding="utf-8")), mine)
    if changed:
        lines = [f"{path}: {old} there, {new} here" for path, old, new in changed[:SHOWN]]
        lines += [f"and {len(changed) - SHOWN} more"] * (len(changed) > SHOWN)
        raise RlkitError(
            f"--out: '{out}' holds another sweep ({'; '.join(lines)}); choose another folder, or remove it"
        )


def _conclude(grid: Grid, out: Path, every: int, steps: int, whole: int, title: str, finished: bool) -> None:
    """Standings on the terminal and on the page."""
    found = read_trials(out)
    if not found:
        return
    dropped: dict[str, int] = {}
    if grid.stop == "race":
        judge = race(grid, steps=steps, every=every)
        for one in found:
            judge.report(one.arm, one.seed, one.step, one.scores)
        dropped = judge.dropped
    elif grid.stop == "asha" and finished:  # of a sweep that was stopped nobody knows which arms would have gone on
        ended = {one.arm: one.step for one in found}  # by arm, seed and step: the last one wins
        dropped = {arm: step for arm, step in ended.items() if step < steps}
    rows = standings(found, dropped, alpha=grid.alpha, arms=num_arms(grid))
    for row in rows:
        gap = f"  {row.to_best}" if row.to_best else ""
        print(f"{row.score:8.4f}  {row.arm}  step {row.step}, {row.samples:,} trajectories{gap}  {row.note(steps)}")
    page = write_sweep_report(
        out, rows, title=title, steps=steps, full_samples=whole, alpha=grid.alpha, prompts=len(found[0].scores),
        seeds=len(grid.seeds),
    )  # fmt: skip
    print(f"report: {page}")
