"""Credit at the search that earned it against one number a trajectory, in a search world small enough to enumerate.

    python -m benchmarks.node_credit            writes benchmarks/results/node_credit.md, in about four minutes

A question needs two or three searches, each of which can only be asked once the one before it was answered; then the
answer is right with probability 0.9, with one search missing 0.3, else 0.05. At each turn the policy asks what is next,
asks the last query again, asks something else, answers, or gives up; after two searches more than needed it has to
answer. Its logits are a table over (turn, searches covered), so E[R], its gradient and the probability of a right
answer are sums over all trajectories: nothing of what is reported about a policy is sampled. Trajectories are written
as text and scored by the shipped rewards, groups are credited by the shipped algorithms.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import ROOT, machine
from rlkit.algorithms import grpo, sibling_grpo, turn_grpo
from rlkit.algorithms.base import Algorithm, AlgorithmConfig
from rlkit.records import Author, CreditedTree, Leaf, Node, RewardTerm, SamplingState, ScoredTree, Task, Tree
from rlkit.rollout.judge import GROUP, Call, RewardSpec, judge, load
from rlkit.rollout.scoring import terms_of
from rlkit.transcript import Written, transcript

__all__ = ["ARMS", "Arm", "Curve", "Noise", "World", "draw", "estimate", "learn", "scatter", "softmax", "world"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
NEXT, AGAIN, STRAY, ANSWER, STOP = range(5)
NUM_ACTIONS = 5
QUERIES = ("mother of Ann", "husband of Eva", "birthplace of Tom")
REFERENCE = ("mother of Ann", "husband of [her]", "birthplace of [him]")
GROUP_SIZE, GROUPS, STEPS, SEEDS = 6, 8, 100, 10
RATES = (2.0, 4.0, 8.0, 16.0, 32.0)
LEVEL = 0.8
"""Probability of a right answer whose cost is reported; 0.9 is the most there is."""
PROMPT = Node(parent=-1, author="prompt", token_ids=np.zeros(1, np.int32))


@dataclass(frozen=True, kw_only=True)
class World:
    """Every trajectory there is, and what each reward says of it. P trajectories of at most S turns."""

    task: Task
    states: Ints
    """[P, S] row of the policy's table at each turn; -1 where no decision is left."""
    actions: Ints
    """[P, S]"""
    turns: Ints
    """[P] turns, a forced answer included."""
    chance: Floats
    """[P] probability of what is not the policy's: the answer's being right or wrong."""
    right: Floats
    """[P] exact match."""
    searches: Floats
    """[P]"""
    rewards: dict[str, Floats]
    """Reward -> [P]."""
    spoken: dict[str, Floats]
    """Reward -> [P, S] what it says of turns, NaN where it is silent."""

    @property
    def num_states(self) -> int:
        """Rows of the policy's table."""
        return int(self.states.max()) + 1

    def probability(self, policy: Floats) -> Floats:
        """[P] of each trajectory; `policy` [rows, actions] sums to 1 in each row."""
        taken = np.where(self.states >= 0, policy[self.states, self.actions], 1.0)
        found: Floats = self.chance * taken.prod(1)
        return found

    def scores(self, policy: Floats, coefficients: Floats) -> Floats:
        """[rows, actions] Σ c·∇ ln π over the decisions with coefficients c [P, S], with respect to the logits."""
        deciding = self.states >= 0
        out = np.zeros_like(policy)
        np.add.at(out, (self.states[deciding], self.actions[deciding]), coefficients[deciding])
        return out - policy * out.sum(1, keepdims=True)

    def gradient(self, policy: Floats, rewards: Floats) -> Floats:
        """∇ E[R] by the sum over all trajectories."""
        weight = self.probability(policy) * rewards
        return self.scores(policy, np.repeat(weight[:, None], self.states.shape[1], 1))


@cache
def world(hops: int = 2, budget: int = 4) -> World:
    """The world of questions with so many searches to make and to spend."""
    found = list(_trajectories(hops, budget, (), ()))
    states, actions = (np.full((len(found), budget + 1), fill) for fill in (-1, 0))
    for row, (taken, covered, _, _) in enumerate(found):
        for turn, (action, at) in enumerate(zip(taken, covered, strict=True)):
            if turn < budget:
                states[row, turn], actions[row, turn] = turn * (hops + 1) + at, action
    reference = {"ref_steps": list(REFERENCE[-hops:])}
    task = Task(id="world", question="Where was he born?", answers=("Ulm",), data={"reference": reference})
    tree = transcript(task, *(_written(QUERIES[-hops:], taken, right) for taken, _, right, _ in found))
    specs = [
        RewardSpec(name="exact_match", spec="rlkit.rewards.text_match:exact_match"),
        RewardSpec(name="search_p1", spec="rlkit.rewards.search_p1:search_p1", settings={"turn_credit": True}),
    ]
    rewards, spoken = {}, {}
    for spec in specs:
        reward, per_group = load(spec)
        calls = [Call(reward=0, leaf=leaf) for leaf in ([GROUP] if per_group else range(len(found)))]
        outcomes = [judge(reward, tree, call.leaf) for call in calls]
        rewards[spec.name] = terms_of([spec], tree, calls, outcomes)[0].values
        spoken[spec.name] = np.full(states.shape, np.nan)
        for row, outcome in enumerate(one for several in outcomes for one in several):
            spoken[spec.name][row, : len(outcome.turns or ())] = outcome.turns or ()
    return World(
        task=task,
        states=states,
        actions=actions,
        turns=np.array([len(taken) for taken, _, _, _ in found]),
        chance=np.array([chance for _, _, _, chance in found]),
        right=rewards["exact_match"],
        searches=np.array([sum(action < ANSWER for action in taken) for taken, _, _, _ in found], float),
        rewards=rewards,
        spoken=spoken,
    )


Found = tuple[tuple[int, ...], tuple[int, ...], bool, float]
"""Actions, searches covered before each, whether the answer is right, probability of that."""


def _trajectories(hops: int, budget: int, taken: tuple[int, ...], before: tuple[int, ...]) -> Iterator[Found]:
    covered = min(taken.count(NEXT), hops)
    right = {0: 0.9, 1: 0.3}.get(hops - covered, 0.05)
    before = (*before, covered)
    yield (*taken, ANSWER), before, True, right
    yield (*taken, ANSWER), before, False, 1 - right
    if len(taken) < budget:
        yield (*taken, STOP), before, False, 1.0
        for action in (NEXT, AGAIN, STRAY):
            yield from _trajectories(hops, budget, (*taken, action), before)


def _written(queries: Sequence[str], taken: Sequence[int], right: bool) -> Written:
    """A trajectory as text; asking on where nothing is left repeats the last query, and so does asking again."""
    parts: list[tuple[Author, str]] = []
    answer = ("Ulm" if right else "Bern") if taken[-1] == ANSWER else None
    unasked, last = list(queries), ""
    for turn, action in enumerate(taken):
        lead = "" if turn else "<think>hm</think>"
        if action >= ANSWER:
            parts.append(("policy", lead + (f"<answer>{answer}</answer>" if answer else "I give up.")))
            continue
        if action == NEXT and unasked:
            last = unasked.pop(0)
        query = last if last and action != STRAY else f"weather in town {turn}"
        parts += [("policy", f"{lead}<search>{query}</search>"), ("environment", "<information>Doc 1</information>")]
    return Written(parts=tuple(parts), answer=answer)


# ------------------------------------------------------------------ estimators


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way to make a gradient of a group."""

    name: str
    reward: str
    algorithm: Algorithm
    config: AlgorithmConfig
    branches: int = 1
    """Samples that share their first turn."""


def _arms() -> tuple[Arm, ...]:
    made: list[tuple[str, str, Algorithm, int]] = [
        ("exact match, leaves", "exact_match", grpo.ALGORITHM, 1),
        ("Search-P1, leaves", "search_p1", grpo.ALGORITHM, 1),
        ("Search-P1, turns", "search_p1", turn_grpo.ALGORITHM, 1),
        ("Search-P1, forked leaves", "search_p1", grpo.ALGORITHM, 3),
        ("Search-P1, forked siblings", "search_p1", sibling_grpo.ALGORITHM, 3),
    ]
    return tuple(
        Arm(name=name, reward=reward, algorithm=algorithm, config=algorithm.config(), branches=branches)
        for name, reward, algorithm, branches in made
    )


ARMS = _arms()
"""The algorithms with their defaults; forked: two trunks of a group split after the first turn into three."""


def draw(there: World, policy: Floats, arm: Arm, rng: np.random.Generator) -> Ints:
    """[G] trajectories of a group; those of one trunk have its first action, unless that ended it."""
    probability = there.probability(policy)
    group = rng.choice(len(probability), size=GROUP_SIZE, p=probability)
    for trunk in range(0, GROUP_SIZE, arm.branches):
        if there.turns[group[trunk]] > 1:
            alike = np.where(there.actions[:, 0] == there.actions[group[trunk], 0], probability, 0.0)
            size = arm.branches - 1
            group[trunk + 1 : trunk + 1 + size] = rng.choice(len(alike), size=size, p=alike / alike.sum())
    return group


def estimate(there: World, policy: Floats, arm: Arm, groups: Sequence[Ints]) -> tuple[Floats, int]:
    """[rows, actions] the gradient that the arm makes of groups of trajectories, and the turns that it sampled."""
    trees, origins = zip(*(_tree(there, group, arm) for group in groups), strict=True)
    coefficients = np.zeros(there.states.shape)
    credited: CreditedTree
    for credited, origin in zip(arm.algorithm.credit(trees, arm.config, None), origins, strict=True):
        np.add.at(coefficients, tuple(origin.T), (credited.c_pos + credited.c_neg)[1:])
    return there.scores(policy, coefficients), sum(len(origin) for origin in origins)


def _tree(there: World, group: Ints, arm: Arm) -> tuple[ScoredTree, Ints]:
    """One node of one token per turn, and for each after the prompt its (trajectory, turn)."""
    nodes, leaves, origin = [PROMPT], [], []
    trunk = 0
    for index, path in enumerate(map(int, group)):
        first = index - index % arm.branches
        shares = index > first and there.turns[group[first]] > 1
        parent = trunk if shares else 0
        for turn in range(int(shares), there.turns[path]):
            nodes.append(_decision(parent, turn))
            origin.append((path, turn))
            parent = len(nodes) - 1
            trunk = parent if index == first and turn == 0 else trunk
        leaves.append(Leaf(node=parent, sample_index=index, status="done"))
    found = np.array(origin)
    term = RewardTerm(
        name=arm.reward,
        weight=1.0,
        values=there.rewards[arm.reward][group],
        status=("ok",) * len(group),
        node_values=np.array([np.nan, *there.spoken[arm.reward][tuple(found.T)]]),
    )
    return ScoredTree(tree=Tree(task=there.task, nodes=tuple(nodes), leaves=tuple(leaves)), terms=(term,)), found


@cache
def _decision(parent: int, turn: int) -> Node:
    return Node(
        parent=parent,
        author="policy",
        token_ids=np.zeros(1, np.int32),
        behavior_logprobs=np.zeros(1, np.float32),
        policy_version=0,
        sampling=SamplingState(),
        turn=turn,
    )


def softmax(logits: Floats) -> Floats:
    """Rows that sum to 1."""
    raised = np.exp(logits - logits.max(1, keepdims=True))
    found: Floats = raised / raised.sum(1, keepdims=True)
    return found


# ------------------------------------------------------------------ what is reported


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How an arm's gradient of one group scatters."""

    noise: float
    """E|g - ḡ|² / |ḡ|²: so many groups make the scatter as large as the gradient."""
    low: float
    """See `high`."""
    high: float
    """Ends of the 95 % interval of `noise`: jackknife over twenty batches of groups."""
    cosine: float
    """Of ḡ and the exact ∇E[R] of the arm's own reward."""
    silent: float
    """Share of groups without any gradient."""


def scatter(there: World, policy: Floats, arm: Arm, *, groups: int, seed: int) -> Noise:
    """Sampled, because what a deviation of a group divides by has no closed form."""
    rng = np.random.default_rng(seed)
    found = np.stack([estimate(there, policy, arm, [draw(there, policy, arm, rng)])[0].ravel() for _ in range(groups)])
    truth = there.gradient(policy, there.rewards[arm.reward]).ravel()

    def noise(some: Floats) -> float:
        mean, variance = some.mean(0), some.var(0, ddof=1).sum()
        return float(variance / max(mean @ mean - variance / len(some), 1e-12))  # |mean|² less its own scatter

    batches = np.array_split(np.arange(groups), 20)
    without = np.array([noise(np.delete(found, batch, 0)) for batch in batches])
    half = 1.96 * np.sqrt((len(batches) - 1) * without.var())  # the jackknife's deviation
    value, mean = noise(found), found.mean(0)
    return Noise(
        noise=value,
        low=value - half,
        high=value + half,
        cosine=float(mean @ truth / np.linalg.norm(mean) / np.linalg.norm(truth)),
        silent=float((np.abs(found).max(1) < 1e-12).mean()),
    )


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One run; every number is exact for the policy that it had."""

    turns: Floats
    """[steps + 1] turns sampled so far."""
    right: Floats
    """[steps + 1] probability of a right answer."""
    reward: Floats
    """[steps + 1] expected Search-P1 reward, whatever the arm was trained on."""
    searches: Floats
    """[steps + 1] expected searches."""
    policy: Floats
    """[rows, actions] in the end."""

    @property
    def cost(self) -> float:
        """Turns sampled until a right answer had the probability `LEVEL`; NaN if it never had."""
        reached = np.flatnonzero(self.right >= LEVEL)
        return float(self.turns[reached[0]]) if len(reached) else np.nan


def learn(there: World, arm: Arm, *, rate: float, seed: int, steps: int = STEPS) -> Curve:
    """Plain gradient ascent from the uniform policy."""
    rng, logits = np.random.default_rng(seed), np.zeros((there.num_states, NUM_ACTIONS))
    rows: list[list[float]] = []
    sampled, policy = 0, softmax(logits)
    for step in range(steps + 1):
        policy = softmax(logits)
        probability = there.probability(policy)
        rows.append([sampled, *(probability @ x for x in (there.right, there.rewards["search_p1"], there.searches))])
        if step < steps:
            groups = [draw(there, policy, arm, rng) for _ in range(GROUPS)]
            gradient, turns = estimate(there, policy, arm, groups)
            logits, sampled = logits + rate * gradient, sampled + turns
    columns = np.array(rows, float).T
    return Curve(turns=columns[0], right=columns[1], reward=columns[2], searches=columns[3], policy=policy)


def mean_and_half(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of the 95 % interval of independent values, normal approximation."""
    return float(np.mean(values)), float(1.96 * np.std(values, ddof=1) / np.sqrt(len(values)))


def scatter_table(there: World, groups: int) -> Iterator[str]:
    """Every arm on the same policies: three moments of one run of the paper's form."""
    yield "| policy | P(right) | arm | scatter | cosine | silent groups |"
    yield "| --- | ---: | --- | ---: | ---: | ---: |"
    for steps in (0, 20, 40):
        policy = learn(there, ARMS[1], rate=2.0, seed=0, steps=steps).policy
        right = there.probability(policy) @ there.right
        for arm in ARMS:
            found = scatter(there, policy, arm, groups=groups, seed=1)
            spread = f"{found.noise:.2f} [{found.low:.2f}, {found.high:.2f}]"
            shares = f"{found.cosine:.3f} | {found.silent:.0%}"
            yield f"| after {steps} steps | {right:.2f} | {arm.name} | {spread} | {shares} |"


def learning_table(there: World, seeds: int) -> Iterator[str]:
    """What a right answer costs, at every rate."""
    yield f"| arm | {' | '.join(f'rate {rate:g}' for rate in RATES)} | at its best: P(right), searches in the end |"
    yield "| --- |" + " ---: |" * (len(RATES) + 1)
    for arm in ARMS:
        curves = [[learn(there, arm, rate=rate, seed=seed) for seed in range(seeds)] for rate in RATES]
        costs = [[curve.cost / 1000 for curve in several] for several in curves]
        best = int(np.nanargmin([np.mean(several) for several in costs]))
        cells = [_plus_minus(several, bold=index == best) for index, several in enumerate(costs)]
        end = [
            f"{mean:.3f} ± {half:.3f}"
            for values in ([c.right[-1] for c in curves[best]], [c.searches[-1] for c in curves[best]])
            for mean, half in [mean_and_half(values)]
        ]
        yield f"| {arm.name} | {' | '.join(cells)} | {', '.join(end)} |"


def _plus_minus(values: Sequence[float], *, bold: bool) -> str:
    mean, half = mean_and_half(values)
    text = f"{mean:.2f} ± {half:.2f}" if np.isfinite(mean) else "-"
    return f"**{text}**" if bold else text


HEAD = f"""# Credit at the search that earned it

`python -m benchmarks.node_credit`: a search world that is small enough to enumerate; the policy is a table, so every
number about a policy is a sum over all trajectories. Rewards and algorithms are the shipped ones with their defaults,
groups of {GROUP_SIZE}.

| arm | reward | credit |
| --- | --- | --- |
| exact match, leaves | Search-R1's | GRPO: one number a trajectory |
| Search-P1, leaves | `search_p1` | GRPO: the paper's form |
| Search-P1, turns | `search_p1`, `turn_credit` | `turn_grpo`: what is still to come at each turn |
| Search-P1, forked leaves | `search_p1` | GRPO; two trunks fork after the first turn into three |
| Search-P1, forked siblings | `search_p1` | the same trees; `sibling_grpo` adds credit among siblings |

**Scatter** of one group's gradient g is E|g - ḡ|² / |ḡ|²: so many groups make it as large as the gradient; 95 %
intervals. **Cosine** is that of ḡ and the exact gradient of the arm's own expected reward: dividing by a group's
deviation, and by the number of turns, bends every arm. Without both, leaves and turns are unbiased to 1e-9, by
enumeration of all groups (`tests/benchmarks/test_node_credit.py`).

**Cost** is the number of sampled turns, in thousands, until a right answer has the probability {LEVEL}: gradient ascent
from the uniform policy, {GROUPS} groups a step, at most {STEPS} steps; mean and 95 % interval over the seeds, `-` where
one of them never came there. Rates of different arms are not comparable, their best ones (bold) are."""


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--groups", type=int, default=2000, help="groups per policy and arm for the scatter")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "node_credit.md")
    given = parser.parse_args()
    lines = [HEAD, "", f"{given.groups} groups per scatter, {given.seeds} seeds per cost."]
    for hops in (2, 3):
        there = world(hops, hops + 2)
        lines += ["", f"## {hops} searches needed, {hops + 2} allowed", "", *scatter_table(there, given.groups)]
        lines += ["", *learning_table(there, given.seeds)]
    lines += ["", "## Machine", "", *(f"- {name}: {value}" for name, value in machine(threads=1).items())]
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
