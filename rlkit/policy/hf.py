"""An engine inside this process: any causal `transformers` model, unmodified, decoding trees.

    sample() ──> waiting ──> slots ──────────────> completion
                   ^  refilled at once when one ends │
    event loop     │                                 v          keys of its tokens stay until release()
    ───────────────┼────────────────────────────────────
    worker thread  └── admit ─ pack ─ forward ─ draw ─ retire ──┐
                         ^──────────────────────────────────────┘   one step, while there is work

What makes it fast: a task's prompt is computed once for all its samples, a forward holds only live tokens in
a single row, and a later turn feeds only what is new. What makes it repeatable: each draw has an address
(`randomness.py`) and, with `deterministic`, no number depends on what else is in the batch (`invariance.py`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rlkit.errors import EngineError
from rlkit.models.lora import add_adapters, travelling
from rlkit.policy.attention import running
from rlkit.policy.base import Completion, EngineContext, SampleRequest
from rlkit.policy.drafts import Draft, Forward, pack, whole_vectors
from rlkit.policy.invariance import filled_up, require_invariant_math
from rlkit.policy.kv import Prefix, Slots, Suffix
from rlkit.policy.sampling import draw, sampling_state
from rlkit.policy.takeover import device_of, end_ids, take_over
from rlkit.policy.tokens import StopWatch, Tokenizer, decode
from rlkit.policy.weights import assign_weights
from rlkit.randomness import Address, uniform
from rlkit.recipe import LoraSettings
from rlkit.sync.fingerprint import digests

__all__ = ["Constraint", "Counts", "HfEngine"]

Constraint: TypeAlias = Callable[[SampleRequest, Sequence[int]], NDArray[np.integer] | None]
"""Allowed next ids, given the request and the tokens sampled for it so far; None allows all."""


@dataclass(slots=True, kw_only=True)
class Counts:
    """What the engine did since it was made."""

    num_forwards: int = 0
    num_fed: int = 0
    """Tokens that went through the model."""
    num_sampled: int = 0


class HfEngine:
    """Samples with a `transformers` model on CPU or one GPU; see `rlkit.policy.base.Engine`."""

    can_continue = True
    """A turn may be sampled in pieces (`SampleRequest.start`)."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Settings of the engine."""

        slots: int = 32
        """Samples that decode at the same time; further requests wait."""
        prefill_chunk: int = 512
        """Most tokens of prompts and observations per forward; a longer one is cut at multiples of this."""
        deterministic: bool = True
        """Refuse to run where a rollout could depend on the batch around it (`rlkit.policy.invariance`)."""
        device: str = "auto"
        """`cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one."""

        def __post_init__(self) -> None:
            for name in ("slots", "prefill_chunk"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name}: {getattr(self, name)} is below 1")

    def __init__(
        self,
        config: Config,
        *,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        seed: int,
        version: int = 0,
        eos_ids: Sequence[int] | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        """Take over `model`: its attention is replaced, so a learner needs another instance.

        `eos_ids` end a completion; None takes those of model and tokenizer. Raises `EngineError` for a model
        whose attention it cannot run, and if `deterministic` cannot be kept.
        """
        self._device = device_of(config.device)
        self._model = model.to(self._device).eval().requires_grad_(False)
        if config.deterministic:
            require_invariant_math(self._device, model.dtype)
        self._config = config
        self._tokenizer = tokenizer
        self._seed = seed
        self._version = version
        self._traits = take_over(model)
        self._like = next(model.parameters())
        self._eos_ids = end_ids(model, tokenizer) if eos_ids is None else frozenset(eos_ids)
        self._constraint = constraint

        self.counts = Counts()
        self._trees: dict[str, dict[bytes, Prefix]] = {}
        self._waiting: deque[Draft] = deque()
        self._active: dict[int, Draft] = {}
        self._slots = Slots()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rlkit-engine")
        self._driver: asyncio.Task[None] | None = None

    @classmethod
    def from_pretrained(
        cls,
        config: Config,
        path: str | Path,
        *,
        seed: int,
        dtype: str = "float32",
        lora: LoraSettings | None = None,
        **options: Any,
    ) -> HfEngine:
        """Load model and tokenizer from a folder on this disk; `options` are those of the constructor.

        `dtype` is that of weights and keys; draws are float64 always. With `lora` the weights stay and adapters come.
        """
        model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), local_files_only=True)
        if lora is not None:
            add_adapters(model, lora)
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        return cls(config, model=model, tokenizer=tokenizer, seed=seed, **options)

    @classmethod
    def build(cls, config: Config, context: EngineContext) -> HfEngine:
        """The engine of a rollout worker, as a recipe names it."""
        return cls.from_pretrained(config, context.model_dir, seed=context.seed, dtype=context.dtype, lora=context.lora)

    @property
    def version(self) -> int:
        """Version of the weights it runs."""
        return self._version

    async def sample(self, request: SampleRequest) -> Completion:
        """Sample one completion. Raises `EngineError` for a request that cannot be served."""
        draft = self._draft(request)
        self._waiting.append(draft)
        if self._driver is None or self._driver.done():
            self._driver = asyncio.get_running_loop().create_task(self._drive())
        return await draft.future

    def release(self, task_id: str) -> None:
        """Forget the cached keys and values of a tree; samples in flight end undisturbed."""
        self._trees.pop(task_id, None)

    def load_weights(self, weights: Mapping[str, Any], version: int) -> str:
        """Copy the weights into the model, drop every cache and return their fingerprint.

        Raises `EngineError` while samples are in flight (a completion has one version), and for weights that
        do not fit.
        """
        if num_busy := len(self._active) + len(self._waiting):
            raise EngineError(f"load_weights: {num_busy} samples of version {self._version} are in flight")
        found = assign_weights(self._model, weights)
        self._trees.clear()
        self._slots = Slots()
        self._version = version
        return found

    def digests(self) -> dict[str, str]:
        """Tensor -> digest of what runs, by the names that a sync uses."""
        return digests(travelling(self._model.state_dict()))

    # ------------------------------------------------------------------ requests, on the event loop

    def _draft(self, request: SampleRequest) -> Draft:
        ids, num_shared, traits = request.token_ids, request.num_shared, self._traits
        num_tokens, limit = len(ids), request.max_tokens
        where = f"task {request.task_id!r}, sample {request.sample_index}, turn {request.turn}"
        if not 0 <= num_shared <= num_tokens or not num_tokens:
            raise EngineError(f"{where}: {num_shared} of {num_tokens} tokens are shared")
        if limit < 1:
            raise EngineError(f"{where}: max_tokens {limit} is below 1")
        if ids.min() < 0 or ids.max() >= traits.vocab_size:
            raise EngineError(f"{where}: token ids outside of 0..{traits.vocab_size - 1}")
        if traits.context is not None:
            if num_tokens >= traits.context:
                raise EngineError(f"{where}: {num_tokens} tokens leave no room in a context of {traits.context}")
            limit = min(limit, traits.context - num_tokens)
        if traits.window is not None and num_tokens + limit > traits.window:
            raise EngineError(
                f"{where}: {num_tokens} + {limit} tokens exceed the model's window of {traits.window}; "
                "HfEngine has no sliding windows"
            )
        if not 0 <= request.start <= num_tokens - num_shared:
            raise EngineError(f"{where}: {request.start} of {num_tokens - num_shared} tokens continue the turn")
        siblings = self._trees.setdefault(request.task_id, {})
        key = ids[:num_shared].tobytes()
        watch = StopWatch(self._tokenizer, request.stop)
        for token in ids[num_tokens - request.start :]:
            watch.completes(int(token))
        return Draft(
            request=request,
            future=asyncio.get_running_loop().create_future(),
            address=Address(
                seed=self._seed,
                version=self._version,
                task_id=request.task_id,
                sample_index=request.sample_index,
                turn=request.turn,
            ),
            prefix=siblings.setdefault(key, Prefix(tokens=ids[:num_shared].tolist())),
            watch=watch,
            limit=limit,
            tokens=ids[num_shared:].tolist(),
        )

    async def _drive(self) -> None:
        """Step in the worker thread while there is work; environments run on the event loop meanwhile."""
        loop = asyncio.get_running_loop()
        try:
            while self._waiting or self._active:
                await asyncio.sleep(0)  # requests made in the same turn of the event loop join the same step
                for draft, outcome in await loop.run_in_executor(self._thread, self._step):
                    if draft.future.done():
                        continue
                    if isinstance(outcome, Completion):
                        draft.future.set_result(outcome)
                    else:
                        draft.future.set_exception(outcome)
        except BaseException as error:
            # Whatever it was, a cancelled event loop included: nobody may wait forever, and no slot stay taken.
            problem = f"the engine stopped: {type(error).__name__}: {error}"
            for draft in self._thread.submit(self._abandon).result():
                if not draft.future.done():
                    draft.future.set_exception(EngineError(problem))
            if not isinstance(error, Exception):
                raise

    def _abandon(self) -> list[Draft]:
        drafts = [*self._active.values(), *self._waiting]
        self._active.clear()
        self._waiting.clear()
        return drafts

    # ----------------------------------------------------------------------- steps, in the worker thread

    @torch.inference_mode()
    def _step(self) -> list[tuple[Draft, Completion | EngineError]]:
        """Advance every sample in flight by one forward; returns those that ended."""
        self._admit()
        drafts = list(self._active.values())
        forward = pack(drafts, self._slots, budget=self._config.prefill_chunk, like=self._like)
        extendable: list[tuple[Draft, NDArray[np.float32]]] = []
        if forward.pieces:
            logits = self._forward(forward)
            for piece in forward.pieces:
                piece.owner.num_computed += piece.num_tokens
                if piece.last is None:
                    continue
                if isinstance(piece.owner, Prefix):
                    piece.owner.logits = logits[piece.last].copy()  # a view would keep all rows alive
                else:
                    extendable.append((piece.owner, logits[piece.last]))
        # A path that ends with the shared prefix draws its first token from the prefix's own logits.
        extendable += [(d, d.prefix.logits) for d in drafts if not d.tokens and d.prefix.logits is not None]
        ended: list[tuple[Draft, Completion | EngineError]] = []
        for draft, row in extendable:
            if (outcome := self._extend(draft, row)) is not None:
                self._retire(draft)
                ended.append((draft, outcome))
        return ended

    def _admit(self) -> None:
        """Free the slots of cancelled requests, then fill free slots in order of arrival."""
        for draft in [draft for draft in self._active.values() if draft.future.done()]:
            self._retire(draft)
        free = (slot for slot in range(self._config.slots) if slot not in self._active)
        while self._waiting and len(self._active) < self._config.slots:
            draft = self._waiting[0]
            if not draft.future.done():
                draft.slot = next(free)
                self._active[draft.slot] = draft  # before it leaves the queue: load_weights looks at both
                self._reuse(draft)
            self._waiting.popleft()

    def _reuse(self, draft: Draft) -> None:
        """Take the longest stretch of keys that a sample of the tree left behind: its own, or one to fork."""
        # The last token is fed in any case: its logits are needed. Equal stretches are equal to the bit.
        wanted = draft.tokens[:-1]
        best: tuple[int, Suffix | None] = (0, None)
        for suffix in draft.prefix.suffixes.values():
            best = max(best, (suffix.shared_with(wanted), suffix), key=lambda found: found[0])
        draft.num_computed, source = best
        if source is not None and draft.num_computed:
            self._slots.reserve(draft.slot + 1, draft.num_computed)
            self._slots.restore(draft.slot, source, draft.num_computed)

    def _forward(self, forward: Forward) -> dict[int, NDArray[np.float32]]:
        """Token of the forward -> its logits [V], for the tokens that somebody draws from."""
        num_tokens = len(forward.token_ids)
        wanted = [piece.last for piece in forward.pieces if piece.last is not None]
        kept = wanted
        if self._config.deterministic:
            forward.fill(whole_vectors(num_tokens, self._traits.widths, torch.get_num_threads()))
            kept = filled_up(wanted)
        with running(forward.plan):
            logits = self._model(
                input_ids=torch.tensor([forward.token_ids], device=self._device),
                position_ids=torch.tensor([forward.positions], device=self._device),
                logits_to_keep=torch.tensor(kept, dtype=torch.long, device=self._device),
                use_cache=False,
            ).logits[0]
        self.counts.num_forwards += 1
        self.counts.num_fed += num_tokens
        return dict(zip(wanted, logits[: len(wanted)].float().cpu().numpy(), strict=True))

    def _extend(self, draft: Draft, logits: NDArray[np.float32]) -> Completion | EngineError | None:
        """Draw the next token; the completion if it was the last one."""
        request = draft.request
        position = request.start + len(draft.draws)
        try:
            allowed = None if self._constraint is None else self._constraint(request, draft.sampled)
            drawn = draw(logits, request.sampling, uniform(draft.address, position), allowed)
        except EngineError as error:
            return EngineError(f"task {request.task_id!r}, sample {request.sample_index}: {error}")
        draft.draws.append(drawn)
        draft.tokens.append(drawn.token_id)
        self.counts.num_sampled += 1
        stopped = draft.watch.completes(drawn.token_id)
        if drawn.token_id in self._eos_ids:
            return self._completion(draft, "eos")
        if stopped:
            return self._completion(draft, "stop")
        return self._completion(draft, "length") if len(draft.draws) == draft.limit else None

    def _completion(self, draft: Draft, finish: Literal["stop", "eos", "length"]) -> Completion:
        token_ids = draft.sampled
        return Completion(
            token_ids=np.array(token_ids, np.int32),
            behavior_logprobs=np.array([drawn.logprob for drawn in draft.draws], np.float32),
            sampling=sampling_state(draft.request.sampling, draft.draws, self._traits.vocab_size),
            policy_version=self._version,
            text=decode(self._tokenizer, token_ids),
            finish=finish,
        )

    def _retire(self, draft: Draft) -> None:
        """Put the sample's keys aside for its next turn and free its slot."""
        if any(draft.prefix is prefix for prefix in self._trees.get(draft.request.task_id, {}).values()):
            kept = self._slots.save(draft.slot, draft.tokens[: draft.num_computed])
            draft.prefix.suffixes[draft.request.sample_index] = kept
        del self._active[draft.slot]
        last = max(self._active, default=-1)
        if not self._waiting and last > draft.slot:  # nobody refills it: keep the rows that decode together
            moved = self._active.pop(last)
            self._slots.move(last, draft.slot, moved.num_computed)
            moved.slot = draft.slot
            self._active[moved.slot] = moved
