"""`rlkit sweep RECIPE grid.yaml`: one recipe with many settings, on the same prompts, seeds and evaluation set.

Every trial is a run like any other in `OUT/trials/ARM/seed_S`. The arms share the evaluation's tasks, and trials of one
seed draw the same training prompts in the same order, because draws are keyed by the seed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlkit.config import Resolved, load
from rlkit.errors import RecipeError, RlkitError
from rlkit.records import ScoredTree
from rlkit.sweeps.grid import Arm, Grid, arms, load_grid
from rlkit.sweeps.racing import Race
from rlkit.sweeps.record import Evaluation, read_trials, trial_folder
from rlkit.sweeps.report import standings, write_sweep_report

__all__ = ["prompt_scores", "sweep"]


def sweep(
    resolved: Resolved, overrides: Sequence[str], grid_file: Path, out: Path, *, concurrent: int = 0, dry: bool = False
) -> int:
    """Check every arm, run or go on, and print the standings and where the report lies."""
    grid = load_grid(grid_file)
    recipe = resolved.recipe
    found = arms(grid) if grid.search == "grid" else []
    for arm in found:  # before anything starts: a typo in the fortieth arm is found now
        load(resolved.path, [*overrides, *arm.overrides])
    if grid.reward is not None and grid.reward not in (names := [reward.name for reward in recipe.rewards]):
        raise RecipeError("reward", f"'{grid.reward}' is no reward of the recipe; one of {', '.join(names)}")
    every = recipe.train.eval_every or recipe.train.steps
    if grid.stop != "none" and recipe.train.steps < 2 * every:
        raise RecipeError("train.eval_every", f"{recipe.train.eval_every}: a sweep stops arms at evaluations between")
    count = len(found) if grid.search == "grid" else grid.samples
    per_trial = recipe.train.steps * recipe.rollout.groups_per_step * recipe.rollout.group_size
    whole = count * len(grid.seeds) * per_trial  # of the recipe's own group sizes; arms may vary them
    if dry:
        print("\n".join([*(arm.name for arm in found), f"{count} arms x {len(grid.seeds)} seeds, stop={grid.stop}"]))
        print(f"{recipe.train.steps} steps each: at most {whole:,} trajectories")
        return 0
    try:
        from rlkit.cluster.sweep import run_sweep
    except ImportError as error:
        raise RlkitError(f"sweeps need Ray Tune ({error}); pip install -c constraints.txt -e '.[sweep]'") from error
    from rlkit.lock import locked

    with locked(out):
        _same_grid(grid_file, out)
        objective = _objective(resolved.path.resolve(), tuple(overrides), grid)
        try:
            run_sweep(
                grid, out, objective, recipe.cluster, steps=recipe.train.steps, every=every, concurrent=concurrent,
                seed=recipe.seed,
            )  # fmt: skip
        finally:  # also of a sweep that was stopped, or of which trials failed
            _conclude(grid, out, count, every, recipe.train.steps, whole, f"{recipe.name}: {grid_file.stem}")
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


def _objective(recipe: Path, overrides: tuple[str, ...], grid: Grid) -> Any:
    """What a trial's process runs."""

    def objective(arm: Arm, seed: int, out: Path, report: Callable[[Evaluation], None]) -> None:
        from rlkit.launch.resumable import refuse_other_recipe
        from rlkit.launch.run import run_parts
        from rlkit.lock import locked
        from rlkit.train import train

        folder = trial_folder(out, arm.name, seed)
        fixed = [f"seed={seed}", f"out={folder}", "log.live=false", "log.tensorboard=false"]
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


def _same_grid(grid_file: Path, out: Path) -> None:
    """A folder belongs to one grid: trials of another would be compared with these."""
    kept, text = out / "grid.yaml", grid_file.read_text(encoding="utf-8")
    if kept.exists() and kept.read_text(encoding="utf-8") != text:
        raise RlkitError(f"--out: '{out}' holds a sweep of another grid ({kept}); choose another folder, or remove it")
    kept.write_text(text, encoding="utf-8")


def _conclude(grid: Grid, out: Path, count: int, every: int, steps: int, whole: int, title: str) -> None:
    found = read_trials(out)
    if not found:
        return
    dropped: dict[str, int] = {}
    if grid.stop == "race":
        race = Race(
            arms=count, looks=max(steps // every - grid.grace + 1, 1), seeds=len(grid.seeds), alpha=grid.alpha,
            first=grid.grace * every,
        )  # fmt: skip
        for one in found:
            race.report(one.arm, one.seed, one.step, one.scores)
        dropped = race.dropped
    ended = {one.arm: max(other.step for other in found if other.arm == one.arm) for one in found}
    if grid.stop == "asha":
        dropped = {arm: step for arm, step in ended.items() if step < steps}
    for row in standings(found, dropped, grid.alpha):
        gap = f"  {row.to_best.mean:+.3f} [{row.to_best.low:+.3f}, {row.to_best.high:+.3f}]" if row.to_best else ""
        note = f"  stopped at step {row.dropped}" if row.dropped is not None else ""
        print(f"{row.score:8.4f}  {row.arm}  step {row.step}, {row.samples:,} trajectories{gap}{note}")
    page = write_sweep_report(out, found, dropped, title=title, full_samples=whole, alpha=grid.alpha)
    print(f"report: {page}")
