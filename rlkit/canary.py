"""The mismatch canary: a few sampled tokens per step, scored again by the learner.

Engine and learner must run one policy: the same weights, tokens, template, temperature and kept sets. Where they do
not, training goes on and gets slowly worse. So each step compares

    digests        of tokenizer and chat template, on every worker: exact, a difference ends the run
    log-probs      of a few tokens that the learner's version sampled, with what the learner makes of them

and where log-probs differ it asks which explanation removes the difference, and names that one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rlkit.data.packing import Batch, pack, uncredited
from rlkit.errors import SyncError
from rlkit.policy.base import SampleRequest, Sampling
from rlkit.randomness import stream
from rlkit.records import Leaf, Node, SamplingState, ScoredTree, Task, Tree
from rlkit.rollout.probe import Question, Shown

__all__ = ["TOLERANCE", "Canary", "Sighting", "difference", "sighted"]

log = logging.getLogger(__name__)
Floats = NDArray[np.float64]
TOLERANCE: Mapping[str, float] = {"float64": 1e-4, "float32": 1e-4, "bfloat16": 0.2}
"""Mean difference of log-probs, in nats, that kernels of this dtype explain (benchmarks/results/canary.md)."""
MAX_BREACHES = 3
"""Steps in a row after which the run ends."""
_FACTORS = np.exp(np.linspace(np.log(0.2), np.log(5.0), 33))


class Scorer(Protocol):
    """The learner, as far as it is needed."""

    @property
    def version(self) -> int:
        """Version of the weights."""
        ...

    def score(self, batch: Batch, sizes: Sequence[int], which: Literal["policy", "reference"]) -> list[Floats]:
        """Log-probs per tree [T]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """Tokens that an engine sampled, in the form that the learner scores."""

    path: NDArray[np.int32]
    """[P] tokens before them."""
    token_ids: NDArray[np.int32]
    """[n]"""
    logprobs: Floats
    """[n] nats, as the engine reports them."""
    sampling: SamplingState
    """How it says that it sampled."""


def sighted(trees: Sequence[ScoredTree], *, version: int | None, tokens: int, key: object) -> Sighting | None:
    """The last tokens of one node that this version (None: any) sampled, chosen by `key`; None if there is none."""
    found = [
        (scored.tree, index)
        for scored in trees
        for index, node in enumerate(scored.tree.nodes)
        if node.author == "policy" and version in (None, node.policy_version)
    ]
    if not found:
        return None
    tree, index = found[int(stream("canary", key).integers(len(found)))]
    node = tree.nodes[index]
    before = np.concatenate([tree.nodes[i].token_ids for i in tree.path(index)[:-1]])
    start = max(len(node.token_ids) - tokens, 0)
    assert node.behavior_logprobs is not None and node.sampling is not None  # a policy node has both
    return Sighting(
        path=np.concatenate([before, node.token_ids[:start]]),
        token_ids=node.token_ids[start:],
        logprobs=node.behavior_logprobs[start:].astype(np.float64),
        sampling=_since(node.sampling, start),
    )


class Canary:
    """Watches one run. Raises `SyncError`: at once for digests, after three steps in a row for log-probs."""

    def __init__(
        self,
        *,
        prints: Mapping[str, str],
        look: Callable[[Question], Sequence[Shown]],
        digests: Callable[[Any], Mapping[str, str]],
        tokens: int,
        tolerance: float,
        sampling: Sampling,
    ) -> None:
        """`prints` are the learner's; `look` asks every worker (`rlkit.rollout.probe.show`); `digests` gives the
        learner's tensors, as engines run them; `sampling` is the recipe's.

        `tokens`: at most so many a step. `tolerance`: mean difference in nats.
        """
        self.prints, self.look, self.tokens, self.tolerance = prints, look, tokens, tolerance
        self.digests, self.sampling = digests, sampling
        self._breaches = 0

    def watch(self, step: int, trees: Sequence[ScoredTree], learner: Scorer) -> dict[str, tuple[float, float]]:
        """Metrics of one step, before its update; none where nothing was sampled by the learner's version."""
        sighting = sighted(trees, version=learner.version, tokens=self.tokens, key=step)
        older = sighted(trees, version=None, tokens=self.tokens, key=step) if sighting is None else None
        shown = self.look(Question(request=None if older is None else self._request(older.path)))
        for worker, what in enumerate(shown):
            for subject, digest in what.prints.items():
                if self.prints[subject] != digest:
                    raise SyncError(
                        f"step {step}: the {subject} of rollout worker {worker} is not the learner's ({digest}, here "
                        f"{self.prints[subject]}); give all machines the same files in model.path"
                    )
        if older is not None:  # all trees are of older weights: engines say what they make of the newest
            sighting = next(iter(_probed(older.path, shown, learner.version)), None)
        if sighting is None:
            return {}
        found = np.abs(difference(learner, sighting))
        breach = not found.mean() <= self.tolerance  # NaN is a breach
        self._breaches = self._breaches + 1 if breach else 0
        if breach:
            message = (
                f"step {step}: log-probs of engine and learner differ by {found.mean():.3g} nats, more than "
                f"{self.tolerance:g}; culprit: {self.culprit(sighting, learner)}"
            )
            log.error("%s", message)
            if self._breaches >= MAX_BREACHES:
                raise SyncError(message)
        return {
            "canary/difference": (float(found.sum()), float(len(found))),
            "canary/breaches": (float(breach), 1.0),
        }

    def culprit(self, sighting: Sighting, learner: Scorer) -> str:
        """The explanation that removes the difference."""
        if (found := self._temperature(sighting, learner)) is not None:
            return f"temperature: the engine sampled at about {found:.2f}, not at {sighting.sampling.temperature:g}"
        everything = replace(sighting.sampling, support_offsets=None, support_ids=None)
        if sighting.sampling.support_ids is not None and self._agrees(replace(sighting, sampling=everything), learner):
            return "top-k or top-p: the engine drew from kept sets and reports log-probs over the whole vocabulary"
        shown = self.look(Question(request=self._request(sighting.path), weights=True))
        wanted = self.digests(learner)
        for worker, what in enumerate(shown):
            wrong = sorted(name for name, digest in what.weights.items() if wanted.get(name, digest) != digest)
            if wrong:
                return f"weights: {len(wrong)} tensors of rollout worker {worker} are others: {', '.join(wrong[:3])}"
        probes = _probed(sighting.path, shown, learner.version)
        if probes and all(self._agrees(probe, learner) for probe in probes):
            return "keys and values: the engine went on with those of other weights; computed anew it agrees"
        if sighting.sampling.support_ids is None and difference(learner, sighting).max() <= self.tolerance:
            return "top-k or top-p: the engine normalises over kept sets that its nodes do not hold"
        return "unknown: weights, template and temperature are equal; look at dtype and kernels of the engine"

    def _request(self, path: NDArray[np.int32]) -> SampleRequest:
        """Go on from there, with no keys and values from before."""
        return SampleRequest(
            task_id="canary",
            sample_index=0,
            turn=0,
            token_ids=path,
            num_shared=len(path),
            max_tokens=self.tokens,
            sampling=self.sampling,
        )

    def _agrees(self, sighting: Sighting, learner: Scorer) -> bool:
        return bool(np.abs(difference(learner, sighting)).mean() <= self.tolerance)

    def _temperature(self, sighting: Sighting, learner: Scorer) -> float | None:
        """The temperature that explains the log-probs, if one does."""

        def error(value: float) -> float:
            state = replace(sighting.sampling, temperature=value)
            return float(np.abs(difference(learner, replace(sighting, sampling=state))).mean())

        grid = [float(factor * sighting.sampling.temperature) for factor in _FACTORS]
        place = int(np.argmin([error(value) for value in grid]))
        low, high = grid[max(place - 1, 0)], grid[min(place + 1, len(grid) - 1)]
        for _ in range(24):
            left, right = low + (high - low) / 3, high - (high - low) / 3
            low, high = (low, right) if error(left) < error(right) else (left, high)
        return (low + high) / 2 if error((low + high) / 2) <= self.tolerance else None


def difference(learner: Scorer, sighting: Sighting) -> Floats:
    """[n] the learner's log-probs less the engine's."""
    nodes = (
        Node(parent=-1, author="prompt", token_ids=sighting.path),
        Node(
            parent=0,
            author="policy",
            token_ids=sighting.token_ids,
            behavior_logprobs=sighting.logprobs.astype(np.float32),
            policy_version=learner.version,
            sampling=sighting.sampling,
        ),
    )
    tree = Tree(task=Task(id="canary", question=""), nodes=nodes, leaves=(Leaf(node=1, sample_index=0, status="done"),))
    batch = pack([uncredited(ScoredTree(tree=tree, terms=()))], tree.num_tokens)
    scores = learner.score(batch, [tree.num_tokens], "policy")[0]
    return scores[len(sighting.path) :] - sighting.logprobs


def _probed(path: NDArray[np.int32], shown: Sequence[Shown], version: int) -> list[Sighting]:
    """What workers made of the path with this version."""
    return [
        Sighting(
            path=path,
            token_ids=what.probe.token_ids,
            logprobs=what.probe.behavior_logprobs.astype(np.float64),
            sampling=what.probe.sampling,
        )
        for what in shown
        if what.probe is not None and what.probe.policy_version == version
    ]


def _since(state: SamplingState, start: int) -> SamplingState:
    """The state of the tokens from `start` on."""
    if state.support_offsets is None or state.support_ids is None:
        return state
    offsets = state.support_offsets[start:]
    return replace(state, support_offsets=offsets - offsets[0], support_ids=state.support_ids[offsets[0] :])
