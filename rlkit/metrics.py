"""What is measured, in one dictionary, and how measurements of parts add up to the measurement of the whole.

A metric leaves a stage as a pair `(total, count)`. Pairs of micro-batches, ranks or workers merge by
addition, so the mean over everything is exact, never a mean of means. `METRICS` says what every logged name
means; `python -m rlkit.metrics > docs/metrics.md` prints it as a page.

    L leaves · G leaves of one group · t policy tokens · p credit paths
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rlkit.errors import RlkitError, nearest
from rlkit.randomness import stream
from rlkit.records import CreditedTree, RewardTerm, ScoredTree

__all__ = [
    "METRICS",
    "Metric",
    "Pairs",
    "UndocumentedMetric",
    "bootstrap_mean",
    "credit_metrics",
    "documentation",
    "drop_metrics",
    "finalise",
    "held_out_metrics",
    "merge",
    "metric",
    "rollout_metrics",
    "wilson",
]

Pair = tuple[float, float]
Pairs = dict[str, Pair]
Reduce = Literal["mean", "sum", "max", "std"]


class UndocumentedMetric(UserWarning):
    """A logged name is missing from `METRICS`; the project's tests turn this warning into an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What one logged number means."""

    unit: str
    """Unit of the final number."""
    formula: str
    """How it is computed from records."""
    over: str
    """Denominator: what the mean runs over; for a sum or maximum, what it covers."""
    healthy: str
    """Where it lies when training goes well, and what it says when it does not."""
    meaning: str
    """One plain sentence."""
    reduce: Reduce = "mean"
    """`mean` total/count · `sum` total · `max` largest · `std` total of squares; it reads `.../mean`."""


def _table(rows: str) -> dict[str, Metric]:
    """Rows `name | unit | reduce | formula | over | healthy | meaning`: what a reader wants to scan."""
    columns = ("unit", "reduce", "formula", "over", "healthy", "meaning")
    found = {}
    for row in filter(str.strip, rows.splitlines()):
        name, *cells = (cell.strip() for cell in row.split("|"))
        found[name] = Metric(**dict(zip(columns, cells, strict=True)))  # type: ignore[arg-type]
    return found


METRICS: Mapping[str, Metric] = _table("""
reward/mean | reward | mean | Σ_ℓ Σ_k w_k·r_k(ℓ) | valid leaves | rises | Weighted sum of the reward terms; failed rollouts and failed rewards are left out, not counted as 0.
reward/best | reward | mean | max over valid ℓ of the group's total | groups with a valid leaf | above reward/mean | The best of G attempts: how much a better policy could still gain on these tasks.
reward/low | reward | mean | lower end of the 95 % interval of reward/mean | tasks | - | Evaluation only; the interval treats the task, not the attempt, as the unit.
reward/high | reward | mean | upper end of the 95 % interval of reward/mean | tasks | - | Evaluation only.
reward/n | tasks | sum | tasks with a valid leaf | - | as many as were asked | Evaluation only: how many tasks stand behind reward/mean.
reward/<judged>/judge_failed/mean | share | mean | trajectories without a verdict | trajectories that got a value, by verdict or fallback | 0; without a fallback look at reward/<term>/failed | How often a fallback stood in for the judge.
reward/<judged>/judge_cached/mean | share | mean | verdicts that were remembered | trajectories that got a value | near 0 in training; near 1 means that answers repeat | Verdicts that cost nothing.
reward/<judged>/judge_requests/mean | requests | mean | HTTP requests sent | trajectories that got a value | at most 1 | Above 1 the endpoint refuses, is slow or answers brokenly.
reward/<judged>/judge_broken/mean | answers | mean | answers whose JSON could not be read | trajectories that got a value | below 0.01 | Raise max_tokens or choose another judge.
reward/<judged>/judge_tokens/mean | tokens | mean | prompt and completion tokens, as the server counts | trajectories that got a value | steady | What a verdict costs in tokens.
reward/<judged>/judge_cost/mean | currency | mean | (prompt tokens · prompt_price + completion tokens · completion_price) / 1e6 | trajectories that got a value | steady | What a verdict costs at the endpoint's prices.
reward/<judged>/judge_s/mean | s | mean | wall clock from first request to verdict, pauses included | trajectories that got a value | far below the judge's deadline_s | How long a verdict takes.
reward/search_p1/path/mean | reward | mean | R_path, the better of both tracks | trajectories that got a value, 0 where gated | rises, together with exact match | What the path earned, before its weight.
reward/search_p1/outcome/mean | reward | mean | 1 if exact, else α·r_acc + (1 − α)·r_reason | trajectories that got a value, 0 where gated | rises | What the answer earned, before its weight.
reward/search_p1/format/mean | reward | mean | 1 full, 0.5 partial | trajectories that got a value, 0 where gated | near 1 after some steps | What the form earned, before its weight.
reward/<searched>/path_em/mean | Pearson's r | mean | correlation of R_path and exact match among the trajectories of a group | trajectories of groups in which both differ | above 0; at 0 or below the path pays for something else than right answers | Whether the better paths are those that answer right.
reward/<searched>/full/mean | share | mean | trajectories graded full | trajectories that got a value | rises to near 1 | Keeps to the protocol.
reward/<searched>/partial/mean | share | mean | trajectories graded partial | trajectories that got a value | falls | An answer and a real search, but loosely written.
reward/<searched>/invalid/mean | share | mean | trajectories graded invalid | trajectories that got a value | falls to near 0 | No answer or no real search: earns nothing at all.
reward/<searched>/s_self/mean | reward | mean | r_planner·(n_exec/n_plan)·(n_exec/n_actions) | trajectories that got a value | rises; above 1 with an excellent plan | Self-consistency: a one-step plan and one search maximise it, see one_step_plan.
reward/<searched>/s_ref/mean | reward | mean | (n_covered/R_ref)·(n_covered/n_actions) | trajectories that got a value, 0 without a reference | rises | Reference alignment: resists that shortcut.
reward/<searched>/self_won/mean | share | mean | S_self above S_ref | trajectories that got a value | no trend by itself | Which track pays.
reward/<searched>/one_step_plan/mean | share | mean | n_plan is 1 | trajectories that got a value | steady; rising: the policy games its own plan | Plans of a single step.
reward/<searched>/planner_score/mean | reward | mean | r_planner, one of 0.2, 0.6, 1.0, 1.2 | trajectories that got a value | near 1; 0.2 means no plan | What the plan is worth; the rules never say 1.2.
reward/<searched>/n_plan/mean | steps | mean | numbered steps of the own plan | trajectories that got a value | what the questions need | Length of the plan.
reward/<searched>/n_exec/mean | steps | mean | own steps that were carried out | trajectories that got a value | near n_plan | Plan that became searches.
reward/<searched>/n_covered/mean | steps | mean | reference steps that were covered, in any order | trajectories that got a value | near ref_steps | Searches that an expert would have made.
reward/<searched>/n_actions/mean | searches | mean | closed calls with a query, repeated ones included | trajectories that got a value | near n_covered | Searches asked for.
reward/<searched>/n_repeated/mean | searches | mean | calls whose query was said before | trajectories that got a value | near 0 | Padding.
reward/<searched>/n_fruitless/mean | searches | mean | calls that covered no new step, own or of the reference | trajectories that got a value | near 0 | Searches that paid nothing.
reward/<searched>/ref_available/mean | share | mean | the task has a reference | trajectories that got a value | 1; S_ref is 0 elsewhere | Tasks that the reference track can score.
reward/<searched>/ref_steps/mean | steps | mean | R_ref | trajectories with a reference that got a value | - | Steps of the reference.
reward/<faithful>/hallucinated/mean | share | mean | 1 if the evidence alone does not support some statement of the answer and the answer does not decline | answers that are not blank | falls towards 0 | The hallucination rate; a statement is a sentence with two words of content, URLs left out.
reward/<faithful>/unsupported/mean | share | mean | statements that the evidence does not support / statements | answers that state something and do not decline | falls towards 0 | How much of an answer is unsupported.
reward/<faithful>/refused/mean | share | mean | the first two sentences say that there is no answer | answers that are not blank | about the share of unanswerable questions | Declining is safe everywhere; a rise without unanswerable_declined is a retreat.
reward/<cites>/any_invalid/mean | share | mean | 1 if the answer holds a URL that is neither in the evidence nor approved and alive | trajectories that got a value | falls towards 0 | The rate of URL hallucination, per answer.
reward/<cites>/num_invalid/mean | URLs | mean | different URLs that are neither in the evidence nor approved and alive | trajectories that got a value | falls towards 0 | Times 1000: invented URLs per 1000 answers; by num_urls: their share.
reward/<cites>/num_urls/mean | URLs | mean | different URLs of the answer | trajectories that got a value | as the task needs; a steady rise is link spam | How many links an answer has.
reward/<cites>/without_url/mean | share | mean | 1 if the answer has no URL | trajectories that got a value | as the task needs; near 1 the policy avoids the risk | Answers that cite nothing.
reward/<cites>/num_leaks/mean | links | mean | bare domains, other schemes and hosts beyond ASCII | trajectories that got a value | 0; a rise evades the rule | Links that a reader may follow and the reward does not see.
reward/<cites>/reference_only/mean | URLs | mean | invalid URLs that the reference cites | trajectories that got a value | near 0; above it the evidence is incomplete | Links that are right and that retrieval did not bring.
reward/<right>/complete/mean | share | mean | statements of the reference that the answer supports / its statements, best reference | answerable questions | rises | How much of what is to be said was said.
reward/<right>/cited/mean | share | mean | URLs of the references that the answer cites / those URLs | questions whose reference cites | rises | Recall of links.
reward/<right>/unanswerable_declined/mean | share | mean | 1 if the answer declines | questions whose reference declines | near 1 | Unanswerable questions that were left unanswered.
reward/<right>/answerable_declined/mean | share | mean | 1 if the answer declines | questions whose reference answers | near 0 | The price of declining.
reward/<right>/evidence_followed/mean | share | mean | 1 if the answer says the turned word and not the usual one | counterfactual questions whose evidence was shown | near 1 | Faithfulness where evidence and memory disagree.
reward/<right>/memory_preferred/mean | share | mean | 1 if the answer says the usual word and not the turned one | counterfactual questions whose evidence was shown | near 0 | Answers from memory, against the evidence.
reward/<term>/mean | as the term | mean | Σ_ℓ r_k(ℓ) | leaves where the term is ok | rises if it is trained on | Unweighted value of one reward term.
reward/<term>/best | as the term | mean | max over ok ℓ of r_k(ℓ) | groups with an ok leaf | above its mean | Best of the group; for a 0/1 term this is pass@G.
reward/<term>/failed | share | mean | leaves whose status begins with `failed` | leaves where the term was asked (not skipped) | 0; look at the reasons above 0.01 | A reward that raised or ran out of time; its leaves are not trained on if the term has weight.
reward/<term>/low | as the term | mean | lower end of the 95 % interval of its mean | tasks | - | Evaluation only: Wilson for one 0/1 value per task, otherwise a bootstrap over tasks.
reward/<term>/high | as the term | mean | upper end of the 95 % interval of its mean | tasks | - | Evaluation only.
reward/<term>/n | tasks | sum | tasks with an ok leaf | - | as many as were asked | Evaluation only: how many tasks stand behind the mean.
rollout/done | share | mean | leaves with status done | leaves | near 1 | The trajectory ended by itself.
rollout/truncated | share | mean | leaves with status truncated | leaves | below 0.1; rising: answers outgrow the budget | The trajectory hit a token or turn budget.
rollout/failed | share | mean | leaves with status failed | leaves | near 0 | Environment, tool or engine failed; not trained on.
rollout/turns | turns | mean | completions on the path | leaves that did not fail | stable, or as the task needs | Completions per trajectory.
rollout/completion_tokens | tokens | mean | policy tokens on the path | leaves that did not fail | stable; a drift with flat reward is length hacking | Sampled tokens per trajectory.
tokens/unique | tokens | sum | Σ_trees T | all trees | - | Tokens the tree computes: each shared prefix once.
tokens/learned | tokens | sum | Σ_rows T | rows of the learner | below tokens/unique where groups are silent | Tokens of forward and backward; groups without any advantage are left out.
tokens/flat | tokens | sum | Σ_ℓ path length | all leaves | - | Tokens that flattened rows would compute.
tokens/sharing | ratio | mean | Σ flat / Σ unique | unique tokens | above 1; 1 means that nothing is shared | How many times fewer tokens the tree computes.
groups/effective | share | mean | groups whose valid rewards differ | groups | above 0.3; near 0 the step learns nothing | Only a group with unequal rewards gives a group-relative gradient.
groups/all_failed | share | mean | groups without a valid leaf | groups | 0 | Nothing of the group could be judged.
groups/reward_std | reward | mean | standard deviation of the valid rewards of a group | groups with a valid leaf | above 0 | Spread inside a group, the signal that group-relative advantages live on.
staleness/mean | versions | mean | learner version − policy_version | unique policy tokens | at most the recipe's max_staleness | How old the weights were that sampled what is trained on.
staleness/max | versions | max | learner version − policy_version | unique policy tokens | at most the recipe's max_staleness | The oldest token of the step.
rollout/rounds | rounds | sum | rounds of the logical clock | since the step before | steady | Asynchronous runs: a round is rollout.round_tokens tokens of every sample under way.
rollout/length_bias | ratio | mean | Σ tokens of trained trajectories / their number, divided by the same over trained and dropped ones | the step | near 1; below 1 the drops favour short answers | How much longer what is trained on is than what was sampled; groups cut short count with what they had.
rollout/dropped_tokens/<reason> | tokens | mean | policy tokens on the path | trajectories dropped for this reason in the step | near rollout/completion_tokens | Length of what was dropped; of a group that was cut short the tokens it had.
signals/<name> | as the signal | mean | the environment's count | leaves that report it and did not fail | as the task needs | A count by the environment, such as num_searches.
index/passages | passages | mean | passages that the refreshed graph is built over | steps before which it was | at most share of the corpus | How much of the corpus the run's own retrievals keep in the graph.
index/kept | share | mean | of these, the ones that it was built over before | passages of the refreshed graph | towards 1: what is retrieved settles | How much of the graph outlived the refresh.
advantage/mean | reward | mean | mean of A(p,t) along the path | credit paths with tokens | near 0 for group-relative algorithms | Advantage of a path.
advantage/std | reward | std | spread of the path advantages | credit paths with tokens | about 1 where the algorithm normalises | Zero means no gradient.
credit/nonzero | share | mean | tokens with C⁺ ≠ 0 or C⁻ ≠ 0 | unique policy tokens | about groups/effective | Policy tokens that carry any credit at all.
credit/conflict | share | mean | tokens with C⁺ ≠ 0 and C⁻ ≠ 0 | unique policy tokens | 0 without branching | Shared tokens that some trajectories praise and others blame.
sibling/parents | parents | mean | nodes whose children got sibling credit | trees | above 0; at 0 siblings teach nothing | Decisions at which siblings were told apart.
sibling/no_hit | share | mean | those without a leaf of reward above 0 below them | nodes whose children got sibling credit | 0; above it wrong siblings are blown up to ±1 (`sibling_reward`, `sibling_std_floor`) | Decisions whose credit separates wrong candidates from wrong candidates.
value/loss | squared error | mean | Σ_e w_e·(V(node) − target)² | Σ_e w_e: candidates and levels, then requests | falls | What the value head minimises.
value/bias | reward | mean | V − Σ_{k≥l} d^(k−l)·r_k | levels of candidates that the search gave a value and the reward judged | near 0; above it the search is optimistic | Calibration of the values that chose the candidates.
value/squared_error | reward² | mean | the square of that difference | the same levels | falls, below value/spread | Error of the same values against the returns that followed.
value/spread | reward² | mean | squared difference of a return from the mean return of its tree and level | the same levels | - | What a constant per tree and level would err; value/squared_error below it is a gain.
value/rank_correlation | Spearman's ρ | mean | rank correlation of V and mean return of the prefixes of one level | levels of trees with three prefixes and some spread | towards 1 | Whether values order prefixes as their returns do.
search/evaluated | tokens | mean | candidate tokens through the model | trees that were searched | equal where decoders are compared | Cost of choosing candidates, prompts excluded.
search/leaves | tokens | mean | whole answers evaluated for their values | trees that were searched | 0 for a beam | Part of search/evaluated that a search by likelihood does not need; without it the cost is the one that the paper counts.
search/charged | tokens | mean | tokens counted against the budget | trees that were searched | at most the budget | Cost as the search counts it.
search/unspent | share | mean | 1 − charged / budget | searches with a budget | near 0; above it the search stalled | Budget that was left.
search/forwards | forwards | mean | forwards that waited for each other | trees that were searched | small: it is latency | Sequential depth of a search.
search/candidates | leaves | mean | distinct candidates | trees that were searched | the group's size | How many different answers the search found.
search/beyond_beam | share | mean | candidates with a node that likelihood alone had not kept | candidates of `ved` | above 0 | What value-guided search added to the beam.
loss | objective | mean | the recipe's objective, global denominators included | one per step | no trend by itself: look at reward | Value that the optimizer minimises.
grad_norm | norm | mean | Euclidean norm before clipping | one per step | steady; spikes announce divergence | Size of the gradient.
lr | 1 | mean | the schedule | one per step | - | Learning rate of the step.
entropy | nats | mean | −Σ_v π(v) log π(v) | unique policy tokens | falls slowly; near 0 exploration is over | Entropy of the sampled distribution.
clip_frac | share | mean | ratio beyond the clip range, in the direction of its advantage | ratios | 0 to 0.2 | Share of ratios (tokens, or paths for sequence-level ratios) that give no gradient any more.
importance | ratio | mean | truncated proximal/behavior weight | unique policy tokens | near 1 | Correction for stale or mismatched sampling; 1 where proximal log-probabilities are not computed.
update/skipped | updates | sum | updates given up because loss or gradient was not finite | the step | 0 | Weights were left as they were.
kl/behavior | nats | mean | k3: r − 1 − log r with r = π/μ | unique policy tokens | below 0.01; growth: engine and learner disagree or data are stale | Non-negative estimate of KL(μ‖π), μ being what sampled.
kl/reference | nats | mean | the recipe's estimator; k3: q − 1 − log q with q = π_ref/π | unique policy tokens | slow growth | Distance from the frozen reference model.
canary/difference | nats | mean | absolute difference of the log-probs of engine and learner | tokens scored again | below 0.0001 in float32, 0.2 in bfloat16 | Whether engines run the learner's policy.
canary/breaches | steps | mean | 1 where canary/difference is above what the dtype explains | the step | 0; three steps in a row end the run | Steps in which they did not; the log names the culprit.
ratio/deviation | ratio | mean | absolute value of ratio − 1 | ratios | below 0.05 | How far the policy has moved from what the ratio is taken against.
throughput/tokens_per_s | tokens/s | mean | tokens/learned / timing/learn_s | seconds of learning | steady | Speed of the learner.
throughput/completion_tokens_per_s | tokens/s | mean | policy tokens sampled / timing/rollout_s | seconds of rollout | steady | Speed of the engines.
timing/rollout_s | s | sum | wall clock | the step | - | Sampling and environments.
timing/index_s | s | sum | wall clock | the step | 0 but after every retriever.refresh_every steps | Building the index anew.
timing/reward_s | s | sum | wall clock | the step | small beside rollout | Reward functions.
timing/canary_s | s | sum | wall clock | the step | small beside learn | Comparing engines with the learner.
timing/learn_s | s | sum | wall clock | the step | - | Forward, backward, optimizer.
timing/sync_s | s | sum | wall clock | the step | small beside rollout | Weights from learner to engines.
timing/eval_s | s | sum | wall clock | the evaluation | - | Held-out evaluation.
timing/checkpoint_s | s | sum | wall clock | the step | small | Writing a checkpoint.
timing/step_s | s | sum | wall clock | the step | steady | The whole step; phases that overlap may add up to more.
sync/bytes | bytes | sum | bytes of weights sent to one engine | the step | - | Size of one weight update; of its changes under cluster.sync_changes.
sync/link_bytes_per_s | bytes/s | mean | bytes of a probe / seconds until the slowest engine has a copy | measured once a run | steady | What the link allows.
sync/times_bound | ratio | mean | timing/sync_s × sync/link_bytes_per_s / bytes of the weights | the step | 1 to 5 | How often the weights could have crossed the link meanwhile.
memory/peak_mib | MiB | max | peak memory of the learner so far | the first rank | below the device's limit | Resident on a CPU, allocated on a GPU.
ledger/drawn | tasks | sum | tasks taken from the source so far | the run | trained + dropped + pending | Every task that was ever started.
ledger/trained | tasks | sum | tasks whose tree reached the learner | the run | grows every step | Tasks that made a gradient.
ledger/dropped | tasks | sum | tasks given up, with a reason | the run | small | Too stale, all failed or filtered.
ledger/pending | tasks | sum | tasks on their way | the run | bounded | Drawn, and neither trained nor dropped yet.
dropped/<reason> | tasks | sum | tasks dropped for this reason | the run | small | Where the dropped tasks went.
custom/<name> | any | mean | up to the plug-in | up to the plug-in | - | Free for plug-ins: a metric that this page does not know.
""")  # fmt: skip  # noqa: E501, RUF001

_PATTERNS = {
    re.compile(re.sub(r"<\w+>", "[^<>]+", re.escape(name).replace(r"\<", "<").replace(r"\>", ">"))): entry
    for name, entry in METRICS.items()
    if "<" in name
}


def metric(name: str) -> Metric:
    """The entry of a logged name: its own, or that of the pattern it fits, such as `reward/<term>/mean`."""
    if name in METRICS and "<" not in name:
        return METRICS[name]
    for pattern, entry in _PATTERNS.items():
        if pattern.fullmatch(name):
            return entry
    raise RlkitError(f"metric {name!r} is not in rlkit.metrics.METRICS{nearest(name, METRICS)}")


def _reduce(name: str) -> Reduce:
    try:
        return metric(name).reduce
    except RlkitError:  # an undocumented name is the recorder's warning, not a reason to lose the number
        return "mean"


def merge(parts: Iterable[Mapping[str, Pair]]) -> Pairs:
    """Pairs of all parts as if measured at once: totals and counts add up, of a maximum the largest stays."""
    out: Pairs = {}
    for part in parts:
        for name, (total, count) in part.items():
            if name not in out:
                out[name] = (float(total), float(count))
                continue
            old_total, old_count = out[name]
            joined = max(old_total, total) if _reduce(name) == "max" else old_total + total
            out[name] = (float(joined), float(old_count + count))
    return out


def finalise(pairs: Mapping[str, Pair]) -> dict[str, float]:
    """Pairs -> numbers. A name that counted nothing is left out: no measurement is not a measurement of 0."""
    means = {name: total / count for name, (total, count) in pairs.items() if count > 0}
    out = {}
    for name, mean in means.items():
        match _reduce(name):
            case "mean":
                out[name] = mean
            case "std":
                out[name] = math.sqrt(max(mean - means[name.removesuffix("std") + "mean"] ** 2, 0.0))
            case _:
                out[name] = pairs[name][0]
    return out


def _pair(values: Iterable[float]) -> Pair:
    items = [float(value) for value in values]
    return math.fsum(items), float(len(items))


def _ok(term: RewardTerm) -> list[float]:
    return [float(value) for value in term.values if math.isfinite(value)]


def _terms(trees: Sequence[ScoredTree]) -> dict[str, list[RewardTerm]]:
    terms: dict[str, list[RewardTerm]] = {}
    for scored in trees:
        for term in scored.terms:
            terms.setdefault(term.name, []).append(term)
    return terms


def _reward_pairs(trees: Sequence[ScoredTree]) -> Pairs:
    totals = [scored.rewards[scored.valid] for scored in trees]
    judged = [rewards for rewards in totals if len(rewards)]
    pairs: Pairs = {
        "reward/mean": _pair(value for rewards in judged for value in rewards),
        "reward/best": _pair(rewards.max() for rewards in judged),
        "groups/effective": _pair(len(rewards) > 0 and bool(np.ptp(rewards) > 0) for rewards in totals),
        "groups/all_failed": _pair(len(rewards) == 0 for rewards in totals),
        "groups/reward_std": _pair(rewards.std() for rewards in judged),
    }
    for name, terms in _terms(trees).items():
        asked = [status for term in terms for status in term.status if not status.startswith("skipped")]
        pairs[f"reward/{name}/mean"] = _pair(value for term in terms for value in _ok(term))
        pairs[f"reward/{name}/best"] = _pair(max(_ok(term)) for term in terms if _ok(term))
        pairs[f"reward/{name}/failed"] = _pair(status.startswith("failed") for status in asked)
    return pairs


def _tree_pairs(trees: Sequence[ScoredTree], learner_version: int) -> Pairs:
    sampled = [node for scored in trees for node in scored.tree.nodes if node.author == "policy"]
    ages = [(learner_version - node.policy_version, len(node.token_ids)) for node in sampled]
    unique = float(sum(scored.tree.num_tokens for scored in trees))
    flat = float(sum(scored.tree.num_flat_tokens for scored in trees))
    num_sampled = float(sum(size for _, size in ages))
    return {
        "tokens/unique": (unique, 1.0),
        "tokens/flat": (flat, 1.0),
        "tokens/sharing": (flat, unique),
        "staleness/mean": (float(sum(age * size for age, size in ages)), num_sampled),
        "staleness/max": (float(max((age for age, size in ages if size), default=0)), num_sampled),
    }


def rollout_metrics(trees: Sequence[ScoredTree], *, learner_version: int) -> Pairs:
    """Pairs of one step's rollouts and rewards; `learner_version` is that of the weights to be updated."""
    leaves = [leaf for scored in trees for leaf in scored.tree.leaves]
    alive = [path for scored in trees for path in scored.tree.trajectories() if path.leaf.status != "failed"]
    pairs: Pairs = {
        f"rollout/{status}": _pair(leaf.status == status for leaf in leaves)
        for status in ("done", "truncated", "failed")
    }
    pairs["rollout/turns"] = _pair(len(path.turns) for path in alive)
    pairs["rollout/completion_tokens"] = _pair(path.num_policy_tokens for path in alive)
    for name in sorted({name for path in alive for name in path.signals}):
        pairs[f"signals/{name}"] = _pair(path.signals[name] for path in alive if name in path.signals)
    return pairs | _reward_pairs(trees) | _tree_pairs(trees, learner_version) | _search_pairs(trees)


def drop_metrics(trained: Sequence[ScoredTree], dropped: Sequence[tuple[str, Sequence[int]]]) -> Pairs:
    """Pairs on the length of what a step left out: `dropped` are reasons with the sampled tokens per trajectory."""
    pairs: Pairs = {}
    for reason in sorted({reason for reason, _ in dropped}):
        pairs[f"rollout/dropped_tokens/{reason}"] = _pair(
            size for why, sizes in dropped if why == reason for size in sizes
        )
    paths = [path for scored in trained for path in scored.tree.trajectories() if path.leaf.status != "failed"]
    kept = [float(path.num_policy_tokens) for path in paths]
    drawn = kept + [float(size) for _, sizes in dropped for size in sizes]
    if kept and sum(drawn):
        pairs["rollout/length_bias"] = ((math.fsum(kept) / len(kept)) / (math.fsum(drawn) / len(drawn)), 1.0)
    return pairs


def _search_pairs(trees: Sequence[ScoredTree]) -> Pairs:
    found = [(scored.tree, scored.tree.search) for scored in trees if scored.tree.search is not None]
    if not found:
        return {}
    guided = [tree for tree, search in found if search.sampler == "ved"]
    kept = [
        all((known := node.search) is None or known.in_beam for node in tree.trajectory(leaf).nodes)
        for tree in guided
        for leaf in range(len(tree.leaves))
    ]
    return {
        "search/evaluated": _pair(search.num_evaluated for _, search in found),
        "search/leaves": _pair(search.num_leaves for _, search in found),
        "search/charged": _pair(search.num_charged for _, search in found),
        "search/unspent": _pair(1 - search.num_charged / search.budget for _, search in found if search.budget),
        "search/forwards": _pair(search.num_forwards for _, search in found),
        "search/candidates": _pair(len({leaf.node for leaf in tree.leaves}) for tree, _ in found),
        "search/beyond_beam": _pair(not inside for inside in kept),
    }


def credit_metrics(trees: Sequence[CreditedTree]) -> Pairs:
    """Pairs that describe what the algorithm made of the rewards."""
    paths = [float(path.advantages.mean()) for tree in trees for path in tree.paths if len(path.tokens)]
    masks = [tree.tree.policy_mask for tree in trees]
    praised = [tree.c_pos[mask] != 0 for tree, mask in zip(trees, masks, strict=True)]
    blamed = [tree.c_neg[mask] != 0 for tree, mask in zip(trees, masks, strict=True)]
    num_tokens = float(sum(mask.sum() for mask in masks))
    pairs = list(zip(praised, blamed, strict=True))
    return {
        "advantage/mean": _pair(paths),
        "advantage/std": _pair(value**2 for value in paths),
        "credit/nonzero": (float(sum((plus | minus).sum() for plus, minus in pairs)), num_tokens),
        "credit/conflict": (float(sum((plus & minus).sum() for plus, minus in pairs)), num_tokens),
    }


def wilson(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927, doi:10.1080/01621459.1927.10502953); (0, 1) for n = 0."""
    if not 0 <= successes <= n:
        raise ValueError(f"wilson: {successes} successes of {n}")
    if n == 0:
        return 0.0, 1.0
    share, spread = successes / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def bootstrap_mean(
    values: Sequence[float], *, seed: int = 0, level: float = 0.95, num_resamples: int = 2000
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979); same values and seed, same interval."""
    if not len(values):
        return math.nan, math.nan
    rng = stream("bootstrap_mean", seed)
    sample = np.asarray(values, dtype=np.float64)
    means = [rng.choice(sample, len(sample)).mean() for _ in range(num_resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _intervals(
    prefix: str, groups: Iterable[Sequence[float] | NDArray[np.float64]], seed: int
) -> Iterator[tuple[str, float]]:
    judged = [values for values in groups if len(values)]
    means = [float(np.mean(values)) for values in judged]
    # Attempts at one task resemble each other, so the task is the unit; a share of tasks has Wilson's.
    counted = all(len(values) == 1 for values in judged) and set(means) <= {0.0, 1.0}
    low, high = wilson(sum(means), len(means)) if counted else bootstrap_mean(means, seed=seed)
    yield from ((f"{prefix}/n", float(len(means))), (f"{prefix}/low", low), (f"{prefix}/high", high))


def held_out_metrics(trees: Sequence[ScoredTree], *, learner_version: int, seed: int = 0) -> dict[str, float]:
    """Final numbers of an evaluation: `rollout_metrics` with a 95 % interval and n for every reward."""
    out = finalise(rollout_metrics(trees, learner_version=learner_version))
    out |= _intervals("reward", [scored.rewards[scored.valid] for scored in trees], seed)
    for name, terms in _terms(trees).items():
        out |= _intervals(f"reward/{name}", [_ok(term) for term in terms], seed)
    return out


def documentation() -> str:
    """The page docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Generated by `python -m rlkit.metrics > docs/metrics.md`; edit `METRICS` in `rlkit/metrics.py`.",
        "Parts of a run report `(total, count)`; totals and counts add up before the one division, so the",
        "number is the same for any split into micro-batches, ranks and workers. What counted nothing is not",
        "logged.",
    ]
    title = None
    for name, entry in METRICS.items():
        if name.split("/")[0] != title and ("/" in name or title != "learner"):
            title = name.split("/")[0] if "/" in name else "learner"
            lines += [
                "",
                f"## {title}",
                "",
                "| name | unit | what | formula | over | healthy |",
                "|" + " --- |" * 6,
            ]
        formula = entry.formula if entry.reduce != "max" else f"max of {entry.formula}"
        lines.append(f"| `{name}` | {entry.unit} | {entry.meaning} | {formula} | {entry.over} | {entry.healthy} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(documentation(), end="")
