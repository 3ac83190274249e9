"""The loop, once: draw, roll out, credit, learn, sync, record. It takes its parts as arguments and knows no Ray.

    tasks ──> rollouts ──> scored trees ──> algorithm.credit ──> pack ──> learner ──> weights ──> engines
                 every draw: trained, dropped (reason) or pending; checked at the end of every step

Synchronous: rollouts of a step run the weights of the step before. Asynchronous (`rollout.max_staleness`): a `Stream`
fills the steps to come while the learner computes, and takes the place of `gather`; the rest is the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from rlkit.algorithms.base import Algorithm, AlgorithmConfig
from rlkit.algorithms.value_targets import calibration, with_values
from rlkit.canary import Canary
from rlkit.checkpoint import Checkpoint, CheckpointStore
from rlkit.data.packing import Batch, pack, uncredited, with_logprobs
from rlkit.errors import CheckpointError, LearnerError
from rlkit.evaluate import evaluate
from rlkit.learner.gradient import reference_kl
from rlkit.learner.learner import UpdateReport
from rlkit.metrics import credit_metrics, drop_metrics, finalise, merge, rollout_metrics
from rlkit.policy.base import Sampling
from rlkit.recipe import Recipe
from rlkit.recorder import Recorder
from rlkit.records import CreditedTree, ScoredTree, Task
from rlkit.retriever import Refreshable
from rlkit.rollout.branching import Branching
from rlkit.rollout.ledger import Draw, Ledger, TaskStream
from rlkit.rollout.loop import RolloutSettings
from rlkit.rollout.schedule import Limits, Schedule
from rlkit.rollout.stream import Advancing, Dropped, Gathered, Stream, lengths
from rlkit.sync.base import SyncReport

__all__ = ["Collector", "Parts", "Trainee", "WeightSync", "train"]

log = logging.getLogger(__name__)
Floats = NDArray[np.float64]
Pairs = dict[str, tuple[float, float]]
MAX_ROUNDS = 10
"""Times that a step draws again when groups are dropped (DAPO's limit); then it trains on what it has."""
MAX_EMPTY_STEPS = 3
"""Steps in a row without a single group to train on before the run gives up."""


class Collector(Protocol):
    """Rollouts of many tasks: in this process, or spread over workers."""

    def collect(self, tasks: Sequence[Task | Draw], settings: RolloutSettings) -> list[ScoredTree]:
        """One scored tree per task, in order."""
        ...


class Trainee(Protocol):
    """The learner, or a group of ranks that behaves like one."""

    @property
    def version(self) -> int:
        """Version of the weights."""
        ...

    def score(self, batch: Batch, sizes: Sequence[int], which: Literal["policy", "reference"]) -> list[Floats]:
        """Log-probs per tree [T]."""
        ...

    def update(self, minibatches: Sequence[Batch]) -> UpdateReport:
        """One optimizer update per minibatch."""
        ...

    def save(self, folder: Path) -> None:
        """Weights and optimizer state."""
        ...

    def load(self, folder: Path, counters: Mapping[str, int]) -> None:
        """Continue from them."""
        ...

    def counters(self) -> dict[str, int]:
        """What a checkpoint keeps besides arrays."""
        ...


class WeightSync(Protocol):
    """Brings the learner's weights to every engine."""

    def push(self, learner: Any) -> SyncReport:
        """Raises `SyncError` where an engine does not run the weights that were sent."""
        ...


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a run is made of."""

    recipe: Recipe
    algorithm: Algorithm
    config: AlgorithmConfig
    """The algorithm's own settings."""
    rollouts: Collector
    learner: Trainee
    sync: WeightSync
    stream: TaskStream
    held_out: Sequence[Task]
    """Tasks of the evaluation; may be empty."""
    ledger: Ledger
    recorder: Recorder
    checkpoints: CheckpointStore
    index: Refreshable | None = None
    """The retriever, where its index is recorded and may follow the run."""
    canary: Canary | None = None
    """Compares engines with the learner; None where no engine samples the policy, or none should."""

    @property
    def settings(self) -> RolloutSettings:
        """How training trees are sampled."""
        rollout = self.recipe.rollout
        return RolloutSettings(
            group_size=rollout.group_size,
            max_completion_tokens=rollout.max_completion_tokens,
            max_path_tokens=self.recipe.model.max_context,
            sampling=Sampling(temperature=rollout.temperature, top_k=rollout.top_k, top_p=rollout.top_p),
            max_concurrent_groups=rollout.max_concurrent_groups,
            branching=Branching(
                branches=rollout.branches,
                fork_turn=rollout.fork_turn,
                max_unique_tokens=rollout.max_unique_tokens,
            ),
            round_tokens=rollout.round_tokens,
        )


@dataclass(kw_only=True)
class Clock:
    """Wall-clock seconds of the phases of one step."""

    pairs: Pairs = field(default_factory=dict)

    @contextmanager
    def time(self, phase: str) -> Iterator[None]:
        """Add the time spent inside to `timing/<phase>_s`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            before = self.pairs.get(f"timing/{phase}_s", (0.0, 1.0))[0]
            self.pairs[f"timing/{phase}_s"] = (before + time.perf_counter() - start, 1.0)


def train(parts: Parts) -> int:
    """Run the recipe's steps, from the newest checkpoint if there is one. Returns the number of the last step."""
    recipe, steps = parts.recipe, parts.recipe.train.steps
    stream = streaming(parts)
    with closing(stream) if stream is not None else nullcontext():
        first = resume(parts, stream)
        parts.sync.push(parts.learner)
        if first == 0:
            _evaluate(parts, 0)
        empty = 0
        for step in range(first + 1, steps + 1):
            clock = Clock()
            with clock.time("step"):
                refreshed = follow(parts, step, clock)
                with clock.time("rollout"):
                    found = gather(parts, step, stream)
                empty = 0 if found.trees else empty + 1
                if empty >= MAX_EMPTY_STEPS:
                    raise LearnerError(
                        f"rollout.groups_per_step: no group of the last {empty} steps could be trained on "
                        f"({parts.ledger.dropped}); look at the reasons in the report before raising anything"
                    )
                if stream is not None and not _rests(recipe, step):
                    with clock.time("sync"):
                        sent = _send(parts, stream)
                with clock.time("canary"):
                    seen = parts.canary.watch(step, found.trees, parts.learner) if parts.canary is not None else {}
                with clock.time("learn"):
                    credited, report = learn(parts, found.trees)
                if report.applied:
                    parts.ledger.trained(found.draws, step)
                else:
                    log.warning("step %d: update skipped, %s", step, report.reason)
                    parts.ledger.dropped_for("not_finite", found.draws, step)
                if stream is None or stream.resting:
                    with clock.time("sync"):
                        sent = parts.sync.push(parts.learner)
                parts.ledger.check(step, found.under_way)
            parts.recorder.trees(step, credited)
            pairs = merge([_described(found, credited, parts), report.metrics, refreshed, seen, clock.pairs])
            parts.recorder.log(step, finalise(pairs) | _totals(parts.ledger, sent, pairs))
            if _due(recipe.train.eval_every, step, steps):
                _evaluate(parts, step)
            if _due(recipe.train.checkpoint_every, step, steps):
                _checkpoint(parts, step, stream, must=step == steps)
    return steps


def gather(parts: Parts, step: int, stream: Stream | None = None) -> Gathered:
    """Roll out new draws until the step has its groups; those that cannot be trained on are dropped for a reason."""
    if stream is not None:
        if stream.resting:
            stream.go_on(parts.learner.version)
        return stream.gather(parts.ledger, step)
    wanted = parts.recipe.rollout.groups_per_step
    draws: list[Draw] = []
    trees: list[ScoredTree] = []
    dropped: list[Dropped] = []
    for _ in range(MAX_ROUNDS):
        fresh = parts.stream.draw(wanted - len(trees))
        parts.ledger.drawn(fresh, step)
        for draw, scored in zip(fresh, parts.rollouts.collect(fresh, parts.settings), strict=True):
            if (reason := untrainable(parts, scored)) is not None:
                parts.ledger.dropped_for(reason, [draw], step)
                dropped.append(Dropped(reason=reason, lengths=lengths(scored)))
                continue
            draws.append(draw)
            trees.append(scored)
        if len(trees) == wanted:
            break
    return Gathered(draws=draws, trees=trees, dropped=dropped)


def follow(parts: Parts, step: int, clock: Clock) -> Pairs:
    """Every `retriever.refresh_every` steps the index is built anew from what training retrieved before this one.

    A rollout must not see two indexes, so this is for runs that sample and train by turns (`rlkit/combinations.py`).
    """
    if parts.index is None:
        return {}
    every = getattr(parts.recipe.retriever and parts.recipe.retriever.settings, "refresh_every", 0)
    pairs: Pairs = {}
    if every and step > 1 and (step - 1) % every == 0:
        with clock.time("index"):
            found = parts.index.refresh()
        pairs["index/passages"] = (float(found.num_passages), 1.0)
        pairs["index/kept"] = (float(found.num_kept), float(found.num_passages))
    parts.ledger.searched(parts.index.index_version(), step)
    return pairs


def untrainable(parts: Parts, scored: ScoredTree) -> str | None:
    """Why a group cannot be trained on, or None."""
    return "all_failed" if not scored.valid.any() else parts.algorithm.drop(scored, parts.config)


def streaming(parts: Parts) -> Stream | None:
    """What gathers steps ahead of the learner; None where sampling and training take turns."""
    rollout = parts.recipe.rollout
    if not rollout.streams:
        return None
    limits = Limits(
        groups_per_step=rollout.groups_per_step,
        steps=parts.recipe.train.steps,
        max_staleness=rollout.max_staleness,
        over_sampling=rollout.over_sampling,
        max_drawn=MAX_ROUNDS,
    )
    return Stream(
        rollouts=cast(Advancing, parts.rollouts),
        tasks=parts.stream,
        schedule=Schedule(limits=limits),
        settings=parts.settings,
        drop=lambda scored: untrainable(parts, scored),
    )


def _send(parts: Parts, stream: Stream) -> SyncReport:
    """Weights for the rollouts that go on while the learner computes the next ones."""
    sent = parts.sync.push(parts.learner)
    stream.go_on(parts.learner.version)
    return sent


def _due(every: int, step: int, steps: int) -> bool:
    return step == steps or bool(every and step % every == 0)


def _rests(recipe: Recipe, step: int) -> bool:
    """Whether rollouts wait for the update of this step: the newest weights are evaluated, or saved, or wanted."""
    every = recipe.train.eval_every, recipe.train.checkpoint_every
    return not recipe.rollout.max_staleness or any(_due(one, step, recipe.train.steps) for one in every)


def learn(parts: Parts, trees: Sequence[ScoredTree]) -> tuple[list[CreditedTree], UpdateReport]:
    """Credit the whole batch, pack it, and update once per minibatch.

    Groups whose trajectories all earned the same have no gradient, so they are not packed: weights are global, and what
    is left is the same sum. Where a whole minibatch is silent it is packed all the same, since AdamW moves on.
    """
    config, row_tokens = parts.config, parts.recipe.learner.row_tokens
    reference = proximal = kl = None
    if trees and (config.needs_reference or config.needs_proximal):
        plain, sizes = pack([uncredited(tree) for tree in trees], row_tokens), [t.tree.num_tokens for t in trees]
        if config.needs_proximal or config.kl_in == "reward":
            proximal = parts.learner.score(plain, sizes, "policy")
        if config.needs_reference:
            reference = parts.learner.score(plain, sizes, "reference")
        if reference is not None and proximal is not None and config.kl_in == "reward":
            kl = reference_kl(proximal, reference, config)
    credited = parts.algorithm.credit(trees, config, kl) if trees else []
    if credited and (value := parts.recipe.value).head != "none":
        credited = with_values(credited, value, policy_learns=parts.learner.version >= value.warmup_steps)
    batches = []
    for part in np.array_split(np.arange(len(credited)), parts.recipe.optim.minibatches):
        inside = [int(index) for index in part]
        if not config.needs_silent:
            inside = [index for index in inside if not credited[index].is_silent] or inside
        batch = pack([credited[index] for index in inside], row_tokens)
        if reference is not None:
            batch = with_logprobs(batch, reference=[reference[index] for index in inside])
        if proximal is not None and config.needs_proximal:
            batch = with_logprobs(batch, proximal=[proximal[index] for index in inside])
        batches.append(batch)
    report = parts.learner.update(batches)
    learned = sum(len(row.token_ids) for batch in batches for row in batch.rows)
    return credited, replace(report, metrics={**report.metrics, "tokens/learned": (float(learned), 1.0)})


def resume(parts: Parts, stream: Stream | None = None) -> int:
    """Continue from the newest checkpoint; 0 where there is none. Raises `CheckpointError` if it cannot be used."""
    found: Checkpoint | None = parts.checkpoints.latest()
    if found is None:
        parts.recorder.resume(-1)  # a run that was killed before its first checkpoint begins anew
        if parts.index is not None:
            parts.index.restore_index(None)
        return 0
    mine, theirs = fingerprint(parts.recipe), found.state["recipe"]
    if mine != theirs:
        changed = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
        raise CheckpointError(
            f"out: {found.folder} was made by another recipe, which differs in {', '.join(changed)}; "
            "choose another `out`, or remove the folder"
        )
    parts.learner.load(found.folder, found.state["learner"])
    parts.stream.restore(found.state["stream"])
    parts.ledger.restore(found.state["ledger"])
    if stream is not None:
        stream.restore(found.folder, found.state["schedule"])
    if parts.index is not None:
        parts.index.restore_index(found.state.get("index"))
    parts.recorder.resume(found.step)
    return found.step


def fingerprint(recipe: Recipe) -> dict[str, str]:
    """Sections that decide the training trajectory, as text; a run is resumed only if they are all the same."""
    names = ("seed", "task", "retriever", "env", "rewards", "algorithm", "model", "rollout", "optim", "value")
    return {name: repr(_portable(getattr(recipe, name))) for name in names}


def _portable(section: Any) -> Any:
    """A section without the folder it was read from: a moved checkout is the same recipe."""
    if hasattr(section, "portable_kind"):
        return section.portable_kind, section.settings
    if hasattr(section, "plugin"):
        return section.name, section.weight, section.deadline_s, _portable(section.plugin)
    return [_portable(item) for item in section] if isinstance(section, tuple) else section


def _evaluate(parts: Parts, step: int) -> None:
    if not parts.held_out:
        return
    start = time.perf_counter()
    if parts.index is not None:
        parts.index.enter("eval")
    trees, metrics = evaluate(parts.recipe, parts.rollouts, parts.held_out, version=parts.learner.version)
    if parts.index is not None:
        parts.index.enter("train")
    parts.recorder.trees(step, trees, phase="eval")
    parts.recorder.log(step, metrics | {"timing/eval_s": time.perf_counter() - start}, phase="eval")


def _checkpoint(parts: Parts, step: int, stream: Stream | None, *, must: bool) -> None:
    """Save; a full disk costs the checkpoint, and the run only at its end."""
    state = {
        "recipe": fingerprint(parts.recipe),
        "learner": parts.learner.counters(),
        "stream": parts.stream.state(),
        "ledger": parts.ledger.state(),
    }

    def write(folder: Path) -> None:
        parts.learner.save(folder)
        if stream is not None:
            stream.save(folder)

    if stream is not None:
        state["schedule"] = stream.state()
    if parts.index is not None:
        state["index"] = parts.index.index_state()
    start = time.perf_counter()
    try:
        parts.checkpoints.save(step, write, state)
    except CheckpointError as error:
        if must:
            raise
        log.warning("step %d: %s", step, error)
    parts.recorder.log(step, {"timing/checkpoint_s": time.perf_counter() - start})


def _described(found: Gathered, credited: Sequence[CreditedTree], parts: Parts) -> Pairs:
    trees = found.trees
    # Versions are compared before the update: this is how old the data were that it used.
    pairs = {**rollout_metrics(trees, learner_version=parts.learner.version - 1), **credit_metrics(credited)}
    pairs |= parts.algorithm.describe(credited)
    pairs |= drop_metrics(trees, [(dropped.reason, dropped.lengths) for dropped in found.dropped])
    if found.rounds:
        pairs["rollout/rounds"] = (float(found.rounds), 1.0)
    return pairs if parts.recipe.value.head == "none" else pairs | calibration(trees, parts.recipe.value)


def _totals(ledger: Ledger, sent: SyncReport, pairs: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Numbers that are not means: the ledger, the sync and speeds."""
    learn_s, rollout_s = pairs["timing/learn_s"][0], pairs["timing/rollout_s"][0]
    sampled, _ = pairs.get("rollout/completion_tokens", (0.0, 0.0))
    return {
        "ledger/drawn": float(ledger.num_drawn),
        "ledger/trained": float(ledger.num_trained),
        "ledger/dropped": float(sum(ledger.dropped.values())),
        "ledger/pending": float(len(ledger.pending)),
        **{f"dropped/{reason}": float(count) for reason, count in ledger.dropped.items()},
        "sync/bytes": float(sent.sent_bytes),
        "sync/link_bytes_per_s": sent.link_bytes_per_s,
        "sync/times_bound": pairs["timing/sync_s"][0] * sent.link_bytes_per_s / max(sent.num_bytes, 1),
        "throughput/tokens_per_s": pairs["tokens/learned"][0] / learn_s,
        "throughput/completion_tokens_per_s": sampled / rollout_s,
    }
