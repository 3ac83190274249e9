"""From a tree to a scored tree: every reward is asked about every leaf, and its answers become named terms.

plan of calls ─> a free reward process (or this one) ─> outcomes ─> RewardTerm per name
"""

from __future__ import annotations

import asyncio
import math
import queue
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from rlkit.records import RewardTerm, ScoredTree, Tree
from rlkit.rollout.judge import GROUP, Call, Outcome, RewardSpec, judge, load, plan, spoken
from rlkit.rollout.reward_process import RewardProcess

__all__ = ["RewardSpec", "Scorer", "terms_of"]


class Scorer:
    """The rewards of a recipe. Raises `RecipeError` at once if one of them cannot be imported.

    With `isolate`, rewards run in `num_processes` children, so that nothing they do can stop training, and reach the
    hosts of `allow` only.
    Without, they run in this process, where deadlines do not hold: for tests and for a debugger.
    """

    def __init__(
        self, rewards: Sequence[RewardSpec], *, isolate: bool = True, num_processes: int = 1, allow: Sequence[str] = ()
    ) -> None:
        if num_processes < 1:
            raise ValueError(f"num_processes: {num_processes} is below 1")
        self.rewards = tuple(rewards)
        self._free: queue.SimpleQueue[RewardProcess] = queue.SimpleQueue()
        self._processes = [RewardProcess(self.rewards, allow=allow) for _ in range(num_processes if isolate else 0)]
        self._threads = ThreadPoolExecutor(num_processes, thread_name_prefix="rewards")
        loaded = [] if isolate else [load(s, path=f"rewards[{i}].kind") for i, s in enumerate(self.rewards)]
        self._functions = [function for function, _ in loaded]
        self._per_group = tuple(per_group for _, per_group in loaded)
        try:
            list(self._threads.map(RewardProcess.start, self._processes))
        except Exception:
            self.close()
            raise
        for process in self._processes:
            self._per_group = process.per_group
            self._free.put(process)

    async def score(self, tree: Tree) -> ScoredTree:
        """The tree with its terms. Failed rollouts are not judged: `skipped: rollout failed`."""
        calls = plan(tree, self._per_group)
        if not self._processes:
            outcomes = [judge(self._functions[call.reward], tree, call.leaf) for call in calls]
        else:
            outcomes = await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, tree, calls)
        return ScoredTree(tree=tree, terms=terms_of(self.rewards, tree, calls, outcomes))

    def close(self) -> None:
        """End the processes."""
        self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.kill()

    def _ask(self, tree: Tree, calls: Sequence[Call]) -> list[list[Outcome]]:
        process = self._free.get()
        try:
            return process.run(tree, calls)
        finally:
            self._free.put(process)


def terms_of(
    rewards: Sequence[RewardSpec], tree: Tree, calls: Sequence[Call], outcomes: Sequence[Sequence[Outcome]]
) -> tuple[RewardTerm, ...]:
    """Order what was answered: by reward, then by key, then by leaf."""
    answered: list[dict[int, Outcome]] = [{} for _ in rewards]
    for call, found in zip(calls, outcomes, strict=True):
        leaves = spoken(tree) if call.leaf == GROUP else [call.leaf]
        answered[call.reward].update(zip(leaves, found, strict=True))
    return tuple(
        _term(spec, key, tree, by_leaf)
        for spec, by_leaf in zip(rewards, answered, strict=True)
        for key in _keys(by_leaf.values())
    ) + tuple(
        _measured(spec, key, tree, by_leaf)
        for spec, by_leaf in zip(rewards, answered, strict=True)
        for key in dict.fromkeys(key for outcome in by_leaf.values() for key in outcome.measured)
    )


def _keys(outcomes: Iterable[Outcome]) -> list[str]:
    """Keys that any leaf answered with; a reward without any result is one term without a key."""
    outcomes = tuple(outcomes)
    named = dict.fromkeys(key for outcome in outcomes for key in (*outcome.values, *outcome.errors) if key)
    return ["", *named] if not named or any("" in outcome.values for outcome in outcomes) else [*named]


def _term(spec: RewardSpec, key: str, tree: Tree, outcomes: Mapping[int, Outcome]) -> RewardTerm:
    values, status = np.full(len(tree.leaves), np.nan), ["skipped: rollout failed"] * len(tree.leaves)
    for leaf, outcome in outcomes.items():
        if key in outcome.values:
            values[leaf], status[leaf] = outcome.values[key], "ok"
        else:
            why = outcome.errors.get(key) or outcome.errors.get("") or f"returned no {key or 'unnamed value'}"
            status[leaf] = f"failed: {why}"
    return RewardTerm(
        name=f"{spec.name}/{key}" if key else spec.name,
        weight=spec.weight,
        values=values,
        status=tuple(status),
        node_values=None if key else _node_values(tree, outcomes),
    )


def _measured(spec: RewardSpec, key: str, tree: Tree, outcomes: Mapping[int, Outcome]) -> RewardTerm:
    """A number that a `Score` carries beside its value: weight 0, and silence is no failure."""
    values = np.full(len(tree.leaves), np.nan)
    for leaf, outcome in outcomes.items():
        values[leaf] = outcome.measured.get(key, np.nan)
    status = tuple("ok" if np.isfinite(value) else "skipped: not measured" for value in values)
    return RewardTerm(name=f"{spec.name}/{key}", weight=0.0, values=values, status=status)


def _node_values(tree: Tree, outcomes: Mapping[int, Outcome]) -> NDArray[np.float64] | None:
    """[N] what was said about turns, at the last policy node of each; the mean of leaves that share it."""
    said: dict[int, list[float]] = {}
    for leaf, outcome in outcomes.items():
        if outcome.turns is not None:
            path = tree.path(tree.leaves[leaf].node)
            last = {tree.nodes[node].turn: node for node in path if tree.nodes[node].author == "policy"}
            for node, value in zip(last.values(), outcome.turns, strict=True):
                said.setdefault(node, []).append(value)
    if not said:
        return None
    values = np.full(len(tree.nodes), np.nan)
    for node, turns in said.items():
        heard = [value for value in turns if not math.isnan(value)]
        values[node] = np.mean(heard) if heard else np.nan
    return values
