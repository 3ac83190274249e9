"""The trials of a sweep on Ray Tune: one process each, ended early by the race or by ASHA, resumed where they were.

A trial is a run like any other, with a folder and checkpoints of its own, so a sweep that is started again goes on with
every trial from its newest checkpoint; Tune remembers which trials there are and what Optuna has learned.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from rlkit.errors import RecipeError, RlkitError
from rlkit.placement import bundles, resources
from rlkit.policy.invariance import VARIABLE, strict_mode
from rlkit.recipe import Cluster
from rlkit.sweeps.grid import Arm, Grid, Range, arms, race, ranges
from rlkit.sweeps.racing import Race
from rlkit.sweeps.record import Evaluation, append, read_trials

__all__ = ["Objective", "RaceScheduler", "run_sweep"]

Objective = Callable[[Arm, int, Path, Callable[[Evaluation], None]], None]
"""(arm, seed, the sweep's folder, report): runs one trial and reports each of its evaluations."""
TUNE_NAME = "tune"


class Progress(tune.Callback):
    """One line per evaluation, instead of Tune's own tables."""

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Print it."""
        print(f"{result['score']:8.4f}  {result['arm']}  seed {result['seed']}, step {result['step']}", flush=True)


class RaceScheduler(FIFOScheduler):
    """Ends the trials of an arm that `rlkit.sweeps.racing` finds beaten, each at its next evaluation."""

    def __init__(self, sweep: Path, empty: Callable[[], Race]) -> None:
        """`empty` makes a race; it is filled from the sweep's folder, also by a process that goes on."""
        super().__init__()
        self.sweep, self.empty = sweep, empty
        self._running: Race | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the race: the evaluations on disk are its state."""
        return {**self.__dict__, "_running": None}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Continue, or stop a beaten one."""
        if self._running is None:
            self._running = self.empty()
            for old in read_trials(self.sweep):
                self._running.report(old.arm, old.seed, old.step, old.scores)
        beaten = self._running.report(result["arm"], result["seed"], result["step"], json.loads(result["scores"]))
        decision: str = TrialScheduler.STOP if result["arm"] in beaten else TrialScheduler.CONTINUE
        return decision


def run_sweep(
    grid: Grid,
    folder: Path,
    objective: Objective,
    cluster: Cluster,
    *,
    steps: int,
    every: int,
    concurrent: int = 0,
    seed: int = 0,
) -> None:
    """Run or go on with a sweep. `steps` and `every`: training steps of a trial, and between its evaluations.

    `concurrent`: trials at a time; 0: as many as the cluster has room for. Raises `RlkitError` if a trial failed.
    """
    folder, home = folder.resolve(), Path.cwd()

    def trial(config: dict[str, Any]) -> None:
        os.chdir(home)  # Tune went to a folder of its own, and a recipe's paths are relative to where it was started
        chosen = config.get("trial", config)  # a point of the grid, or what Optuna proposed
        one = Arm(settings=chosen["arm"])

        def report(found: Evaluation) -> None:
            append(folder, found)
            row = {"arm": found.arm, "seed": found.seed, "step": found.step}
            tune.report(
                {**row, "score": found.mean, "samples": found.samples, "scores": json.dumps(dict(found.scores))}
            )  # Tune flattens mappings

        objective(one, chosen["seed"], folder, report)

    started = not ray.is_initialized()
    if started:
        path = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
        address = cluster.address or (
            "auto" if os.environ.get("RAY_ADDRESS") or os.environ.get("RAY_JOB_ID") else "local"
        )
        alone = {"include_dashboard": False} if address == "local" else {}
        env = {"PYTHONPATH": path, VARIABLE: os.environ.get(VARIABLE, strict_mode())}
        quiet = {"logging_level": logging.WARNING, "log_to_driver": False}  # a trial's words are in its own folder
        ray.init(address=address, runtime_env={"env_vars": env}, **quiet, **alone)
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # read here, by Tune: its newer reporter does not know verbose=0
    try:
        results = _tuner(grid, folder, trial, cluster, steps, every, concurrent, seed).fit()
    finally:
        if started:
            ray.shutdown()
    if results.errors:
        first = str(results.errors[0]).strip().splitlines()[-1]
        raise RlkitError(
            f"{len(results.errors)} of {len(results)} trials failed, the first with: {first}; "
            "the others are kept: start the sweep again to retry these"
        )


def _tuner(
    grid: Grid, folder: Path, trial: Any, cluster: Cluster, steps: int, every: int, concurrent: int, seed: int
) -> tune.Tuner:
    trainable = tune.with_resources(trial, _room(cluster))
    if tune.Tuner.can_restore(str(folder / TUNE_NAME)):
        return tune.Tuner.restore(str(folder / TUNE_NAME), trainable, resume_unfinished=True, restart_errored=True)
    how = tune.TuneConfig(
        # Tune's own ideas of best are not used: standings come from the evaluations (rlkit/sweeps/report.py).
        metric="score" if grid.search == "optuna" or grid.stop == "asha" else None,
        mode="max" if grid.search == "optuna" or grid.stop == "asha" else None,
        search_alg=_optuna(grid, seed) if grid.search == "optuna" else None,
        num_samples=grid.samples if grid.search == "optuna" else 1,
        scheduler=_scheduler(grid, folder, steps, every),
        max_concurrent_trials=concurrent or None,
    )
    space: dict[str, Any] = {}
    if grid.search == "grid":
        # Arm by arm, all seeds of one before the next: an arm is judged when its seeds are complete.
        found = [{"arm": dict(arm.settings), "seed": number} for arm in arms(grid) for number in grid.seeds]
        space = {"trial": tune.grid_search(found)}
    run = tune.RunConfig(name=TUNE_NAME, storage_path=str(folder), verbose=0, callbacks=[Progress()])
    return tune.Tuner(trainable, param_space=space, tune_config=how, run_config=run)


def _scheduler(grid: Grid, folder: Path, steps: int, every: int) -> TrialScheduler:
    if grid.stop == "asha":
        return ASHAScheduler(
            time_attr="step", max_t=max(steps, 1), grace_period=max(grid.grace * every, 1),
            reduction_factor=grid.reduction,
        )  # fmt: skip
    if grid.stop == "none":
        return FIFOScheduler()
    return RaceScheduler(folder, lambda: race(grid, steps=steps, every=every))


def _room(cluster: Cluster) -> Any:
    """What a trial takes: this process, and the bundles of its workers where it starts any."""
    if cluster.kind == "local":
        return tune.PlacementGroupFactory([{"CPU": float(cluster.threads_per_worker)}])
    return tune.PlacementGroupFactory([{"CPU": 1.0}, *(dict(resources(bundle)) for bundle in bundles(cluster))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What Optuna is asked for; a class, because Tune stores it with what was learned."""

    grid: Grid

    def __call__(self, trial: Any) -> dict[str, Any]:
        """Draw every setting from an `optuna.Trial`."""
        drawn = {
            key: trial.suggest_float(key, value.low, value.high, log=value.log)
            if isinstance(value, Range)
            else trial.suggest_categorical(key, value)
            for key, value in ranges(self.grid).items()
        }
        return {"arm": drawn, "seed": self.grid.seeds[0]}


def _optuna(grid: Grid, seed: int) -> Any:
    try:
        import optuna  # noqa: F401  # ray.tune only notices that it is missing when it is asked
        from ray.tune.search.optuna import OptunaSearch
    except ImportError as error:
        raise RecipeError("search", f"'optuna', but {error}; pip install -e '.[sweep]'") from error
    return OptunaSearch(space=Proposal(grid=grid), metric="score", mode="max", seed=seed)
