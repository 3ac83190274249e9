"""An engine for semantic IDs: it grows each user's tree of candidates under the catalogue's trie, many users at a time.

    grow() ──> waiting ──> up to `users` requests ──> prompts computed, once per user
                               ^                          │
               a search each ──┘ asks for nodes ──> one forward for the nodes of all ──> V, ln π over valid children

Which candidates there are is decided by a search (decoders.py, ved.py); how their numbers are computed by a cohort
(cohort.py). No illegal item can be produced: nodes are made from the trie's children only. The distribution that is
recorded, and scored by the learner, is the one over valid children; `scored: vocabulary` records the full softmax
instead, as MiniOneRec trains. Draws have addresses, so a tree does not depend on the users beside it.

    M nodes of one forward · K valid children of all of them · V vocabulary
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rlkit.catalogue.items import Catalogue
from rlkit.catalogue.trie import Trie
from rlkit.errors import EngineError
from rlkit.models.lora import add_adapters, travelling
from rlkit.models.value_head import VALUE_PREFIX, add_value_head
from rlkit.policy.attention import running
from rlkit.policy.base import Completion, EngineContext, GrowRequest, Growth, SampleRequest
from rlkit.policy.cohort import Cohort, Fed, Step
from rlkit.policy.decoders import beam, sample, without_replacement
from rlkit.policy.drafts import whole_vectors
from rlkit.policy.invariance import filled_up, require_invariant_math
from rlkit.policy.search_tree import Search, SearchTree
from rlkit.policy.takeover import device_of, take_over
from rlkit.policy.tokens import Tokenizer, decode
from rlkit.policy.ved import VedSettings, ved
from rlkit.policy.weights import assign_weights
from rlkit.randomness import Address, generator, uniform
from rlkit.recipe import LoraSettings
from rlkit.records import Node, NodeSearch, Sampler, SamplingState, SearchReport
from rlkit.settings import at_least
from rlkit.sync.fingerprint import digests

__all__ = ["Grown", "TrieEngine"]

Floats = NDArray[np.float64]


@dataclass(slots=True, kw_only=True)
class Counts:
    """What the engine did since it was made."""

    num_forwards: int = 0
    num_prefilled: int = 0
    """Prompt tokens that went through the model."""
    num_fed: int = 0
    """Tokens of candidates that went through the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grown:
    """A finished search, before it becomes records."""

    tree: SearchTree
    candidates: list[int]
    """Leaves of `tree`, in order."""
    sampler: Sampler
    budget: int
    """0: none."""
    num_forwards: int


@dataclass(slots=True, eq=False, kw_only=True)
class Job:
    """One request on its way."""

    request: GrowRequest
    tree: SearchTree
    search: Search
    sampler: Sampler
    budget: int
    capacity: int
    """Most nodes that the search evaluates."""
    wanted: list[int] = field(default_factory=list)
    """Nodes that it waits for."""
    columns: dict[int, int] = field(default_factory=dict)
    """Node -> its column in the cohort; the root has none."""
    num_forwards: int = 0
    candidates: list[int] | None = None


class TrieEngine:
    """See the module and `rlkit.policy.base.Grower`."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Settings of the engine."""

        decoder: Sampler = "ved"
        """How candidates are chosen for training. At temperature 0 (evaluation) it is beam search always."""
        ved: VedSettings = field(default_factory=VedSettings)
        """Of `decoder: ved`."""
        beam_width: int = 1
        """Least width of a beam search; it is never below the number of candidates asked for."""
        scored: Literal["trie", "vocabulary"] = "trie"
        """Distribution whose log-probabilities are recorded and trained: over the valid children, or over all tokens
        (another policy than the one that sampled; for comparison with peers)."""
        users: int = 64
        """Requests that are searched at the same time."""
        prefill_chunk: int = 4096
        """Prompt tokens of one forward; a prompt is never cut."""
        deterministic: bool = True
        """Refuse to run where a tree could depend on the batch around it (`rlkit.policy.invariance`)."""
        device: str = "auto"
        """`cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one."""

        def __post_init__(self) -> None:
            at_least(self, 1, "beam_width", "users", "prefill_chunk")

    def __init__(
        self, config: Config, *, model: PreTrainedModel, tokenizer: Tokenizer, trie: Trie, seed: int, version: int = 0
    ) -> None:
        """Take over `model`, its `value_head` included if it has one. `trie` is over the tokenizer's ids.

        Raises `EngineError` for a model whose attention cannot be run, a trie with other tokens than the model's, and
        if `deterministic` cannot be kept.
        """
        self._device = device_of(config.device)
        self._model: Any = model.to(self._device).eval().requires_grad_(False)
        if config.deterministic:
            require_invariant_math(self._device, model.dtype)
        self._config, self._tokenizer, self._trie, self._seed = config, tokenizer, trie, seed
        self._version = version
        self._traits = take_over(model)
        if (highest := int(trie.token.max())) >= self._traits.vocab_size:
            raise EngineError(f"the catalogue's tokens go up to {highest}, the model knows {self._traits.vocab_size}")
        self._head: Any = getattr(model, "value_head", None)
        self._like = next(model.parameters())
        self._texts: dict[int, str] = {}
        self.counts = Counts()
        self._waiting: list[tuple[GrowRequest, asyncio.Future[Growth]]] = []
        self._busy = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rlkit-engine")
        self._driver: asyncio.Task[None] | None = None

    @classmethod
    def build(cls, config: Config, context: EngineContext) -> TrieEngine:
        """The engine of a rollout worker; the model's folder holds the catalogue that it was made for."""
        return cls.from_pretrained(
            config,
            context.model_dir,
            seed=context.seed,
            dtype=context.dtype,
            lora=context.lora,
            value_head=context.value.head,
        )

    @classmethod
    def from_pretrained(
        cls,
        config: Config,
        path: str | Path,
        *,
        seed: int,
        dtype: str = "float32",
        lora: LoraSettings | None = None,
        value_head: Literal["none", "mlp", "block"] = "none",
    ) -> TrieEngine:
        """Load model, tokenizer, catalogue and, if it is to have them, adapters and value head from a folder."""
        folder = Path(path)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        _, trie = Catalogue.of_model(folder, tokenizer.convert_tokens_to_ids)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True)
        if lora is not None:
            add_adapters(model, lora)
        add_value_head(model, value_head, folder)
        return cls(config, model=model, tokenizer=tokenizer, trie=trie, seed=seed)

    @property
    def version(self) -> int:
        """Version of the weights it runs."""
        return self._version

    @property
    def trie(self) -> Trie:
        """What it decodes under."""
        return self._trie

    async def sample(self, request: SampleRequest) -> Completion:
        """Refused: candidates of a task are chosen together."""
        raise EngineError(
            f"engine.kind: 'trie' grows the candidates of a task together; the environment of task "
            f"{request.task_id!r} asked for one more completion, use 'hf' for it"
        )

    async def grow(self, request: GrowRequest) -> Growth:
        """Grow one tree; concurrent calls share their forwards. Raises `EngineError`."""
        self._check(request)
        future: asyncio.Future[Growth] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._driver is None or self._driver.done():
            self._driver = asyncio.get_running_loop().create_task(self._drive())
        return await future

    def release(self, task_id: str) -> None:
        """Nothing is kept between requests."""

    def load_weights(self, weights: Mapping[str, Any], version: int) -> str:
        """Copy the weights into the model and return their fingerprint. Raises `EngineError` while it is searching.

        A head that the learner does not train (`value.head: none`) is not sent.
        """
        if self._busy or self._waiting:
            raise EngineError(f"load_weights: trees of version {self._version} are being grown")
        if self._head is not None and not any(name.startswith(VALUE_PREFIX) for name in weights):
            raise EngineError("weights do not fit the model: it has a value head, and none was sent")
        found = assign_weights(self._model, weights)
        self._version = version
        return found

    def digests(self) -> dict[str, str]:
        """Tensor -> digest of what runs, by the names that a sync uses."""
        return digests(travelling(self._model.state_dict()))

    # ------------------------------------------------------------------------------------------ requests

    def _check(self, request: GrowRequest) -> None:
        where, size, levels = f"task {request.task_id!r}", len(request.token_ids), self._trie.levels
        if not size or request.token_ids.min() < 0 or request.token_ids.max() >= self._traits.vocab_size:
            raise EngineError(f"{where}: a prompt of {size} tokens, which lie in 0..{self._traits.vocab_size - 1}")
        context = self._traits.context
        if self._traits.window is not None:
            context = min(context or self._traits.window, self._traits.window)
        if context is not None and size + levels > context:
            raise EngineError(
                f"{where}: a history of {size} tokens leaves no room for {levels} in a context of {context}"
            )
        if request.max_tokens < levels:
            raise EngineError(
                f"{where}: rollout.max_completion_tokens {request.max_tokens} is below the {levels} tokens of an item"
            )
        if request.num_candidates < 1:
            raise EngineError(f"{where}: {request.num_candidates} candidates")
        if request.sampling.top_k or request.sampling.top_p < 1:
            raise EngineError(f"{where}: the trie engine has no top_k and top_p; set rollout.top_k=0, rollout.top_p=1")

    async def _drive(self) -> None:
        """Search in the worker thread while requests wait; rewards run on the event loop meanwhile."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            await asyncio.sleep(0)  # requests made in the same turn of the event loop are searched together
            batch, self._waiting = self._waiting[: self._config.users], self._waiting[self._config.users :]
            batch = [(request, future) for request, future in batch if not future.done()]
            self._busy = True
            try:
                grown = await loop.run_in_executor(self._thread, self.search, [request for request, _ in batch])
                for (request, future), found in zip(batch, grown, strict=True):
                    if not future.done():
                        future.set_result(self._growth(request, found))
            except BaseException as error:  # whatever it was, nobody may wait forever
                problem = f"the engine stopped: {type(error).__name__}: {error}"
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error if isinstance(error, EngineError) else EngineError(problem))
                if not isinstance(error, Exception):
                    raise
            finally:
                self._busy = False

    # -------------------------------------------------------------------------------- searching, in any one thread

    @torch.inference_mode()
    def search(self, requests: Sequence[GrowRequest]) -> list[Grown]:
        """Search for all requests side by side; for evaluations, which need no records, and for `grow`."""
        for request in requests:
            self._check(request)
        tasks = [self._task(request) for request in requests]
        for start in range(0, len(tasks), self._config.users):
            self._search(tasks[start : start + self._config.users])
        return [
            Grown(
                tree=task.tree,
                candidates=task.candidates or [],
                sampler=task.sampler,
                budget=task.budget,
                num_forwards=task.num_forwards,
            )
            for task in tasks
        ]

    def _task(self, request: GrowRequest) -> Job:
        """Set a search up; nothing is computed yet."""
        config, tree, count, levels = self._config, SearchTree(self._trie), request.num_candidates, self._trie.levels
        sampler: Sampler = "beam" if request.sampling.temperature == 0 else config.decoder
        address = Address(seed=self._seed, version=self._version, task_id=request.task_id, sample_index=0, turn=0)
        budget, width = 0, max(count, config.beam_width)
        if sampler == "ved":
            budget, width = config.ved.tokens(count, levels), config.ved.beam
            self._check_budget(budget, request)
            search = ved(tree, config.ved, count, budget, Drawer(address))
        elif sampler == "beam":
            search = beam(tree, width)
        elif sampler == "iid":
            addresses = [
                Address(seed=self._seed, version=self._version, task_id=request.task_id, sample_index=i, turn=0)
                for i in range(count)
            ]
            search = sample(tree, count, lambda index, level: uniform(addresses[index], level))
        else:
            width = count + 1
            search = without_replacement(tree, count, generator(address))
        capacity = max(budget, levels * width) + 1
        return Job(request=request, tree=tree, search=search, sampler=sampler, budget=budget, capacity=capacity)

    def _check_budget(self, budget: int, request: GrowRequest) -> None:
        levels, settings = self._trie.levels, self._config.ved
        own = settings.leaf_values == "own"
        sizes = np.bincount(self._trie.depth)[1 : levels + own]
        least = 1 + int(np.minimum(sizes, settings.beam).sum())
        if budget < least:
            raise EngineError(
                f"engine.ved.budget: {budget} tokens for {request.num_candidates} candidates is below the {least} of "
                f"the initial beam of {settings.beam}; raise budget or budget_multiple, or lower engine.ved.beam"
            )

    def _search(self, tasks: Sequence[Job]) -> None:
        """Prompts first, then rounds: whatever all searches wait for goes through the model in one forward."""
        cohort = Cohort([task.request.token_ids for task in tasks], max(task.capacity for task in tasks), self._like)
        hidden = self._prefill(cohort, tasks)
        while True:
            fed = [(index, node) for index, task in enumerate(tasks) if task.candidates is None for node in task.wanted]
            if not fed:
                return
            nodes = []
            for index, node in fed:
                task, tree = tasks[index], tasks[index].tree
                column = len(task.columns)
                nodes.append(
                    Fed(
                        user=index,
                        token=tree.token(node),
                        position=len(task.request.token_ids) + tree.depth[node] - 1,
                        column=column,
                        sees=[task.columns[step] for step in tree.path(node)[:-1]],
                    )
                )
                task.columns[node] = column
            self.counts.num_fed += len(nodes)
            inner = [place for place, (index, node) in enumerate(fed) if not tasks[index].tree.is_leaf(node)]
            logits, states = self._forward(cohort.extend(nodes), inner)
            self._evaluate(tasks, fed, logits, states, hidden)
            for index in dict.fromkeys(index for index, _ in fed):
                self._resume(tasks[index])

    def _prefill(self, cohort: Cohort, tasks: Sequence[Job]) -> torch.Tensor | None:
        """Compute all prompts and resume every search with its root. Hidden states [U, 1 + C, D] for the value head."""
        for task in tasks:
            self._resume(task)  # up to its first question, which is the root
        order = np.argsort(cohort.lengths, kind="stable")  # prompts of a forward are padded to the longest of them
        hidden: torch.Tensor | None = None
        for users in _within(order.tolist(), cohort.lengths, self._config.prefill_chunk):
            step = cohort.prefill(users)
            last = np.cumsum(cohort.lengths[users]) - 1
            self.counts.num_prefilled += len(step.token_ids)
            logits, states = self._forward(step, last.tolist())
            if states is not None:
                if hidden is None:
                    hidden = states.new_zeros(len(tasks), 1 + cohort.capacity, states.shape[-1])
                hidden[users, 0] = states[last.tolist()]
            self._evaluate(tasks, [(user, 0) for user in users], logits, None, hidden)
        for task in tasks:
            self._resume(task)
        return hidden

    def _resume(self, task: Job) -> None:
        task.num_forwards += bool(task.wanted)
        try:
            task.wanted = next(task.search)
        except StopIteration as end:
            task.wanted, task.candidates = [], end.value

    def _forward(self, step: Step, wanted: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits [W, V] of the `wanted` tokens, and hidden states [M, D] of all if there is a value head."""
        size = len(step.token_ids)
        fill = whole_vectors(size, self._traits.widths, torch.get_num_threads()) if self._config.deterministic else size
        kept = filled_up(wanted or [0])  # an empty index would mean all
        with running(step):
            out = self._model(
                input_ids=_padded(step.token_ids, fill).to(self._device),
                position_ids=_padded(step.positions, fill).to(self._device),
                logits_to_keep=torch.tensor(kept, dtype=torch.long, device=self._device),
                output_hidden_states=self._head is not None,
                use_cache=False,
            )
        self.counts.num_forwards += 1
        states = None if self._head is None else out.hidden_states[-1][0, :size]
        return out.logits[0, : len(wanted)].float(), states

    def _evaluate(
        self,
        tasks: Sequence[Job],
        fed: Sequence[tuple[int, int]],
        logits: torch.Tensor,
        states: torch.Tensor | None,
        hidden: torch.Tensor | None,
    ) -> None:
        """Hand every node its value, and every inner node the distribution over its valid children."""
        values = self._values(tasks, fed, states, hidden)
        inner = [(index, node) for index, node in fed if not tasks[index].tree.is_leaf(node)]
        at = np.array([tasks[index].tree.trie_node[node] for index, node in inner], np.int64)
        offsets, logprobs, log_mass = self._children(
            logits, at, [tasks[i].request.sampling.temperature for i, _ in inner]
        )
        row = 0
        for (index, node), value in zip(fed, values, strict=True):
            tree = tasks[index].tree
            if tree.is_leaf(node):
                tree.evaluated(node, value=value)
            else:
                tree.evaluated(
                    node,
                    value=value,
                    logprobs=logprobs[offsets[row] : offsets[row + 1]],
                    log_mass=float(log_mass[row]),
                )
                row += 1

    def _values(
        self,
        tasks: Sequence[Job],
        fed: Sequence[tuple[int, int]],
        states: torch.Tensor | None,
        hidden: torch.Tensor | None,
    ) -> list[float]:
        """[M] V of each node; NaN without a value head. Keeps the states, which nodes below will look back at."""
        if self._head is None or hidden is None:
            return [math.nan] * len(fed)
        levels, device = self._trie.levels, self._device
        users = torch.tensor([index for index, _ in fed], device=device)
        chain = np.zeros((len(fed), levels + 1), np.int64)
        present = np.zeros(chain.shape, bool)
        for row, (index, node) in enumerate(fed):
            columns = [0, *(1 + tasks[index].columns[step] for step in tasks[index].tree.path(node))]
            chain[row, -len(columns) :] = columns
            present[row, -len(columns) :] = True
        places = torch.from_numpy(chain).to(device)
        if states is not None:
            hidden[users, places[:, -1]] = states
        rows = torch.tensor(filled_up(range(len(fed))), device=device)
        found = self._head(hidden[users[rows, None], places[rows]], torch.from_numpy(present).to(device)[rows])
        return [float(value) for value in found[: len(fed)].double().cpu()]

    def _children(
        self, logits: torch.Tensor, nodes: NDArray[np.int64], temperatures: Sequence[float]
    ) -> tuple[NDArray[np.int64], Floats, Floats]:
        """Offsets [M + 1], ln π [K] over the valid children of inner nodes, ln mass [M] of those in the vocabulary."""
        offsets, children = self._trie.children(nodes)
        if not len(nodes):
            return offsets, np.zeros(0), np.zeros(0)
        counts = np.diff(offsets)
        rows = np.repeat(np.arange(len(nodes)), counts)
        heat = np.array([temperature or 1.0 for temperature in temperatures])
        index = torch.from_numpy(rows).to(logits.device), torch.from_numpy(self._trie.token[children]).to(logits.device)
        scores = logits[index].double().cpu().numpy() / heat[rows]  # [K]
        peaks = np.maximum.reduceat(scores, offsets[:-1])
        if not np.isfinite(peaks).all():
            raise EngineError("the logits of the catalogue's tokens are not finite: the weights diverged")
        totals = peaks + np.log(np.add.reduceat(np.exp(scores - peaks[rows]), offsets[:-1]))
        log_mass = np.zeros(len(nodes))
        if self._config.scored == "vocabulary":
            scaled = logits.double() / torch.from_numpy(heat).to(logits.device)[:, None]
            log_mass = totals - torch.logsumexp(scaled, -1).cpu().numpy()
        return offsets, scores - totals[rows], log_mass

    # ------------------------------------------------------------------------------------------------ records

    def _growth(self, request: GrowRequest, grown: Grown) -> Growth:
        """The nodes on the way to the candidates, as records."""
        tree = grown.tree
        nodes: list[Node] = []
        places: dict[int, int] = {0: -1}
        supports: dict[int, SamplingState] = {}
        for leaf in grown.candidates:
            for node in tree.path(leaf):
                if node not in places:
                    places[node] = len(nodes)
                    nodes.append(self._node(tree, node, places[tree.parent[node]], request, supports))
        return Growth(
            nodes=tuple(nodes),
            candidates=tuple(places[leaf] for leaf in grown.candidates),
            search=SearchReport(
                sampler=grown.sampler,
                budget=grown.budget,
                num_charged=tree.num_charged,
                num_evaluated=tree.num_evaluated,
                num_forwards=grown.num_forwards,
                num_leaves=tree.num_evaluated_leaves,
            ),
        )

    def _node(
        self, tree: SearchTree, node: int, parent: int, request: GrowRequest, supports: dict[int, SamplingState]
    ) -> Node:
        above, token = tree.parent[node], tree.token(node)
        if above not in supports:
            supports[above] = self._sampling(tree.trie_node[above], request.sampling.temperature or 1.0)
        if token not in self._texts:
            self._texts[token] = decode(self._tokenizer, [token])
        logprob = tree.logprob[node] + tree.log_mass[above]
        return Node(
            parent=parent,
            author="policy",
            token_ids=np.array([token], np.int32),
            text=self._texts[token],
            behavior_logprobs=np.array([logprob], np.float32),
            policy_version=self._version,
            sampling=supports[above],
            search=NodeSearch(
                value=tree.value[node],
                entropy=tree.entropy[node],
                visits=tree.visits[node],
                in_beam=tree.in_beam[node],
            ),
        )

    def _sampling(self, trie_node: int, temperature: float) -> SamplingState:
        """The set that the learner normalises over; siblings share it."""
        if self._config.scored == "vocabulary":
            return SamplingState(temperature=temperature)
        first = self._trie.first_child
        tokens = self._trie.token[first[trie_node] : first[trie_node + 1]].astype(np.int32)
        offsets = np.array([0, len(tokens)], np.int32)
        return SamplingState(temperature=temperature, support_offsets=offsets, support_ids=tokens)


class Drawer:
    """Draws from log-probabilities at the points of an address, one after the other."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._count = 0

    def __call__(self, logprobs: Floats) -> int:
        """Index of the next draw; the log-probabilities need not add up to 1."""
        mass = np.cumsum(np.exp(logprobs - logprobs.max()))
        point = uniform(self._address, self._count) * mass[-1]
        self._count += 1
        return int(min(np.searchsorted(mass, point, side="right"), np.searchsorted(mass, mass[-1])))


def _within(users: Sequence[int], lengths: NDArray[np.integer], budget: int) -> list[list[int]]:
    """Users in order, cut where their prompts together exceed `budget` tokens."""
    parts: list[list[int]] = []
    used = budget + 1
    for user in users:
        if used + lengths[user] > budget:
            parts.append([])
            used = 0
        parts[-1].append(user)
        used += int(lengths[user])
    return parts


def _padded(numbers: NDArray[np.integer], size: int) -> torch.Tensor:
    """[1, size] with zeros at the end."""
    out = torch.zeros(1, size, dtype=torch.long)
    out[0, : len(numbers)] = torch.from_numpy(np.ascontiguousarray(numbers, np.int64))
    return out
