"""What a recipe may say: its sections, their settings, defaults, units and ranges.

`task`, `retriever`, `env`, `algorithm`, `engine` and each of `rewards` name a plug-in by `kind`; their other
settings belong to the plug-in (`rlkit/plugins.py`). All other sections are the dataclasses below. `rlkit show
RECIPE` prints every value and the file or command line that it came from.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from rlkit.plugins import PluginSection
from rlkit.settings import above, at_least

__all__ = [
    "SECTIONS",
    "Cluster",
    "Eval",
    "LearnerSettings",
    "Log",
    "LoraSettings",
    "ModelSettings",
    "Network",
    "Optim",
    "Recipe",
    "RewardCommon",
    "RewardSection",
    "Rollout",
    "Run",
    "Train",
    "ValueSettings",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings:
    """`model.lora`: train low-rank adapters on the frozen model (`rlkit/models/lora.py`)."""

    rank: int = 0
    """Width of the adapters; 0: none, the whole model is trained."""
    alpha: float | None = None
    """Their strength: what they add is scaled by alpha / rank; null: twice the rank."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that get one, e.g. `q_proj`; empty: all but the output head."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"lora.rank: {self.rank} is below 0")
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"lora.alpha: {self.alpha} is not above 0")

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 2.0 if self.alpha is None else self.alpha / max(self.rank, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """`model`: the policy's network and its numerics."""

    path: str = "smollm2-135m"
    """Short name of `rlkit/models/pretrained.py`, or a folder in the transformers format."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Of the engine, and of the learner's products; under bfloat16 the learner keeps its weights in float32. float64 is
    for checking gradients."""
    attention: Literal["sdpa", "flex"] = "sdpa"
    """Kernel of the tree mask: `sdpa` everywhere, `flex` (block-sparse) on a GPU."""
    max_context: int = 2048
    """Tokens of the longest path, prompt included; a trajectory that reaches it is truncated."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more compute."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """Adapters in place of the whole model."""

    def __post_init__(self) -> None:
        at_least(self, 2, "max_context")
        if not self.path:
            raise ValueError("path: '' is empty; name a model or a folder")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """`rollout`: how trajectories are sampled."""

    group_size: int = 8
    """G, trajectories per task."""
    groups_per_step: int = 8
    """Tasks per step; a step trains on `groups_per_step` * `group_size` trajectories."""
    temperature: float = 1.0
    """Divides the logits; the learner divides by it too. Above 0."""
    top_k: int = 0
    """Sample from the k likeliest tokens; 0: from all."""
    top_p: float = 1.0
    """Then from the smallest set with this mass, in (0, 1]; 1: from all."""
    max_completion_tokens: int = 256
    """Cap on one completion (one turn), in tokens."""
    max_concurrent_groups: int = 8
    """Trees that one rollout worker extends at the same time; bounds its KV cache."""
    branches: int = 1
    """Samples of a group that share their first turns; divides `group_size`. 1: every sample is on its own."""
    fork_turn: int = 1
    """Turns that they share; 1 forks after the first search."""
    max_unique_tokens: int | None = None
    """Budget of a group that branches, prompt included: no branch is begun beyond it; null: none."""
    max_staleness: int = 0
    """Versions that weights may be behind when what they sampled is trained on. 0 samples and trains by turns; from 1
    on rollouts go on while the learner computes, and across its updates (`rlkit/rollout/schedule.py`)."""
    over_sampling: float = 0.0
    """Share of groups sampled beyond those that are needed; a step takes the first, late ones are dropped as `stale`,
    which favours short answers (metric `rollout/length_bias`). 0: wait for all."""
    round_tokens: int = 128
    """Tokens that a sample draws between two points at which weights may change, where the two settings above are not
    0: smaller follows the weights faster, larger waits less."""

    def __post_init__(self) -> None:
        above(self, 0, "temperature", "top_p")
        at_least(self, 0, "top_k")
        at_least(self, 1, "group_size", "groups_per_step", "max_completion_tokens", "max_concurrent_groups")
        at_least(self, 1, "branches", "fork_turn", "max_unique_tokens", "round_tokens")
        at_least(self, 0, "max_staleness", "over_sampling")
        if self.group_size % self.branches:
            raise ValueError(f"branches: {self.branches} does not divide group_size={self.group_size}")
        if self.top_p > 1:
            raise ValueError(f"top_p: {self.top_p} is not in (0, 1]; 1 samples from all tokens")

    @property
    def streams(self) -> bool:
        """Whether groups are sampled a round at a time and may go on across steps, not by turns with training."""
        return self.max_staleness > 0 or self.over_sampling > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Optim:
    """`optim`: AdamW, its schedule, and how often it steps."""

    lr: float = 1e-6
    """Peak learning rate."""
    value_lr: float | None = None
    """Peak learning rate of the value head, which starts from nothing; null: `lr`."""
    weight_decay: float = 0.0
    """Decoupled, per step, times the learning rate."""
    beta1: float = 0.9
    """Decay of the mean of gradients, in [0, 1)."""
    beta2: float = 0.999
    """Decay of the mean of squared gradients, in [0, 1)."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    warmup_steps: int = 0
    """Optimizer updates over which the rate rises linearly from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: stay, or fall to 0, which the update after the last would have."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    minibatches: int = 1
    """Optimizer updates per step, each on its share of the groups; 1 is on-policy."""

    def __post_init__(self) -> None:
        above(self, 0, "lr", "eps", "max_grad_norm")
        if self.value_lr is not None:
            above(self, 0, "value_lr")
        at_least(self, 0, "weight_decay", "warmup_steps", "beta1", "beta2")
        at_least(self, 1, "minibatches")
        for name in ("beta1", "beta2"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not below 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """`learner`: how gradients are computed; no choice here changes them."""

    kind: Literal["single", "ddp", "fsdp2", "zero1", "zero2", "zero3"] = "single"
    """One process, or how several ranks share weights, gradients and optimizer state."""
    row_tokens: int = 4096
    """Unique tokens of one packed row, so of one forward and backward: the learner's memory knob."""
    logit_chunk: int = 512
    """Positions whose logits exist at the same time."""

    def __post_init__(self) -> None:
        at_least(self, 1, "row_tokens", "logit_chunk")


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueSettings:
    """`value`: a head that predicts what a prefix of a completion is still worth, trained beside the policy."""

    head: Literal["none", "mlp", "block"] = "none"
    """`mlp` reads the last hidden state at the prefix's last token; `block` one more attention layer over the
    prefixes before it as well; `none`: there is no head."""
    reward: str | None = None
    """Reward whose terms `level_1` .. `level_L` it learns; it may have weight 0."""
    target: Literal["td", "monte_carlo"] = "td"
    """r_l + discount·V(next), or the discounted sum of the rewards that followed."""
    discount: float = 0.99
    """Of later rewards, in [0, 1]."""
    coef: float = 1.0
    """Weight of its squared error beside the policy's loss."""
    detach: bool = False
    """True: its gradient stops at the head and does not reach the policy's network."""
    warmup_steps: int = 0
    """Steps at the start of the run in which only the value is learned, from the policy's candidates. Without `detach`
    its gradient moves the policy's network in them too, and no KL term holds it."""

    def __post_init__(self) -> None:
        at_least(self, 0, "discount", "coef", "warmup_steps")
        if self.discount > 1:
            raise ValueError(f"discount: {self.discount} is above 1")
        if self.head != "none" and self.reward is None:
            raise ValueError("reward: null with a head; name the reward that speaks of levels, e.g. sid_prefix")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """`cluster`: which processes exist."""

    kind: Literal["local", "ray"] = "local"
    """Everything in this process, or Ray actors."""
    address: str | None = None
    """Ray cluster to join; null: the one of this job, else a new one on this machine."""
    rollout_workers: int = 1
    """Processes that sample."""
    learner_ranks: int = 1
    """Processes that train; above 1 with a `learner.kind` other than `single`."""
    threads_per_worker: int = 1
    """CPU threads of each of them."""
    gpus_per_rollout_worker: float = 0.0
    """Share of a GPU for each rollout worker; 0: CPU."""
    gpus_per_learner_rank: float = 0.0
    """Share of a GPU for each learner rank; 0: CPU."""
    placement: Literal["free", "colocated", "disaggregated", "mixed"] = "free"
    """Which processes share a node and its GPU; `free` leaves it to Ray (`rlkit/placement.py`)."""
    learner_nodes: str | None = None
    """Node group of the learner ranks, as KubeRay or RAY_NODE_TYPE_NAME names it; null: any."""
    rollout_nodes: str | None = None
    """Node group of the rollout workers; null: any."""
    wait_s: float = 60.0
    """Seconds to wait for nodes of a cluster that is joined, before what it lacks is an error."""
    sync_over: Literal["memory", "store", "gloo", "nccl"] = "memory"
    """How weights reach rollout workers under `kind: ray`: in memory that they share with the first rank (workers on
    other machines: as `store`), through Ray's object store, or as a broadcast from the first rank."""
    sync_bucket_mb: float = 128.0
    """Megabytes of weights that travel together under `kind: ray`, while the next ones are made."""
    sync_changes: bool = False
    """Send only elements that changed, for a thin network (`sync_over` not `memory`); learner and workers keep a copy
    of the weights each."""
    sync_timeout_s: float = 600.0
    """Seconds a rollout worker may take to run new weights under `kind: ray`; one that hangs is replaced as if it had
    died."""
    ping_timeout_s: float = 600.0
    """Seconds without a rollout after which workers under `kind: ray` are asked whether they are there, and in which
    they have to answer; a process that stands still is replaced as if it had died. One that is only slow answers."""

    def __post_init__(self) -> None:
        at_least(self, 1, "rollout_workers", "learner_ranks", "threads_per_worker")
        at_least(self, 0, "gpus_per_rollout_worker", "gpus_per_learner_rank", "wait_s")
        at_least(self, 0.001, "sync_bucket_mb", "sync_timeout_s", "ping_timeout_s")
        if self.sync_changes and self.sync_over == "memory":
            raise ValueError(
                "sync_changes: true, but in shared memory nothing is sent; with sync_over store, gloo or nccl"
            )
        if self.sync_over == "nccl" and min(self.gpus_per_rollout_worker, self.gpus_per_learner_rank) < 1:
            raise ValueError(
                "sync_over: nccl needs a GPU of its own for every process; gpus_per_rollout_worker is "
                f"{self.gpus_per_rollout_worker:g}, gpus_per_learner_rank {self.gpus_per_learner_rank:g}; gloo does not"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Train:
    """`train`: how long, and what is kept."""

    steps: int = 100
    """Rounds of sampling and training; 0 only evaluates."""
    checkpoint_every: int = 50
    """Steps between checkpoints; the last step is always saved. 0: only the last."""
    eval_every: int = 50
    """Steps between evaluations; before the first and after the last step always. 0: only those."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept on disk."""
    init_from: str | None = None
    """Run folder or checkpoint whose weights to start from; null: `model.path`."""
    canary_tokens: int = 16
    """Sampled tokens that the learner scores again in every step, to see that engines run its policy; 0: none."""

    def __post_init__(self) -> None:
        at_least(self, 0, "steps", "checkpoint_every", "eval_every", "canary_tokens")
        at_least(self, 1, "keep_checkpoints")


@dataclass(frozen=True, slots=True, kw_only=True)
class Eval:
    """`eval`: the held-out measurement."""

    split: Literal["train", "dev", "test"] = "dev"
    """Split of the task source."""
    tasks: int = 64
    """So many tasks of the split."""
    draw: int | None = None
    """Seed that draws them from the split; null: its first ones, which may be special where the data have an order."""
    samples: int = 1
    """Trajectories per task; their rewards are averaged."""
    temperature: float = 0.0
    """0 is greedy."""
    max_completion_tokens: int | None = None
    """Cap on one completion; null: that of `rollout`."""

    def __post_init__(self) -> None:
        at_least(self, 0, "temperature")
        at_least(self, 1, "tasks", "samples", "max_completion_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """`log`: where numbers go besides `metrics.jsonl`."""

    tensorboard: bool = True
    """Event files under the run folder."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Weights & Biases."""
    wandb_project: str = "rlkit"
    """Its project."""
    live: bool = True
    """A live table in a terminal; plain lines elsewhere."""
    trees_per_step: int | None = 4
    """Trees of each step that are stored for report and rescoring; null: all, 0: none."""

    def __post_init__(self) -> None:
        at_least(self, 0, "trees_per_step")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """`network`: what rewards may reach."""

    allow: tuple[str, ...] = ()
    """Hosts, `name` or `name:port`, that the process of the rewards may connect to; it is refused all others."""


SECTIONS: dict[str, type] = {
    "model": ModelSettings,
    "rollout": Rollout,
    "optim": Optim,
    "learner": LearnerSettings,
    "value": ValueSettings,
    "cluster": Cluster,
    "train": Train,
    "eval": Eval,
    "log": Log,
    "network": Network,
}
"""Sections that are no plug-ins; all their settings have defaults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardCommon:
    """What the framework does with a reward's value; the same for every kind."""

    name: str
    """Of its metric; the function's name unless the recipe says otherwise. Unique."""
    weight: float = 1.0
    """Factor in the trajectory's reward; 0 measures without training on it."""
    deadline_s: float = 5.0
    """Seconds for one call; longer is recorded as failed, never as 0."""

    def __post_init__(self) -> None:
        above(self, 0, "deadline_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSection(RewardCommon):
    """One of `rewards`."""

    plugin: PluginSection
    """The function and its own settings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What stands outside any section."""

    name: str
    """Of the run; the recipe's file name unless it says otherwise."""
    seed: int = 0
    """Root of every random draw."""
    out: str
    """Run folder, relative to where the command runs; `runs/${name}` unless the recipe says otherwise."""
    reward_gate: bool = False
    """Refuse to start with a reward that breaks its contract (`rlkit check-reward`)."""

    def __post_init__(self) -> None:
        at_least(self, 0, "seed")
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise ValueError(f"name: {self.name!r} has other characters than letters, digits, '.', '-' and '_'")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(Run):
    """A whole recipe, merged and checked."""

    task: PluginSection
    """Where problems come from."""
    retriever: PluginSection | None = None
    """What answers search queries; None: nothing does."""
    env: PluginSection
    """What answers completions."""
    rewards: tuple[RewardSection, ...]
    """At least one."""
    algorithm: PluginSection
    """Advantages and loss."""
    model: ModelSettings = ModelSettings()
    """The policy's network."""
    engine: PluginSection
    """What samples."""
    rollout: Rollout = Rollout()
    """How trajectories are sampled."""
    optim: Optim = Optim()
    """How weights move."""
    learner: LearnerSettings = LearnerSettings()
    """How gradients are computed."""
    value: ValueSettings = ValueSettings()
    """What predicts the worth of prefixes."""
    cluster: Cluster = Cluster()
    """Which processes exist."""
    train: Train = Train()
    """How long, and what is kept."""
    eval: Eval = Eval()
    """The held-out measurement."""
    log: Log = Log()
    """Where numbers go."""
    network: Network = Network()
    """What rewards may reach."""
