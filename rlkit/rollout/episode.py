"""One sample on its way through its environment, and what it shares with the samples of its task.

A sample ends as `done` or `truncated` where its environment or a token budget says so, and as `failed` where
its environment or engine raised; its siblings go on. Tokens are made once, by the renderer or the engine, and
each request carries the concatenation of the nodes before it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlkit.env import Env, EnvFactory, EnvStep, ForkableEnv
from rlkit.errors import EngineError, EnvError
from rlkit.policy.base import Completion, Engine, Grower, GrowRequest, Growth, SampleRequest, Sampling
from rlkit.records import Leaf, LeafStatus, Node, Task
from rlkit.render import Renderer
from rlkit.rollout.assemble import NodeKey
from rlkit.rollout.pace import Pace, joined

__all__ = ["Episode", "Group"]

P = ParamSpec("P")
T = TypeVar("T")
Ints = NDArray[np.int32]
log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Group:
    """What the samples of one task share."""

    task: Task
    address: str
    engine: Engine
    renderer: Renderer
    sampling: Sampling
    max_completion_tokens: int
    max_path_tokens: int
    env_deadline_s: float
    nodes: dict[NodeKey, Node] = field(default_factory=dict)
    """Every run of tokens so far."""
    num_shared: int = 0
    """Leading tokens that all samples have in common."""
    growth: Growth | None = None
    """All first completions, where the engine chose them together."""
    pace: Pace | None = None
    """Where samples wait for each other and for new weights; None: nowhere."""

    def open(self, episodes: Sequence[Episode]) -> None:
        """Put the prompt, and what environments prefill, first on every path; fail what cannot begin."""
        prompts: dict[bytes, tuple[Ints, str]] = {}
        for episode in _alive(episodes):
            try:
                if not episode.step.messages:
                    raise EnvError("the environment opened the task without a message")
                ids, text = self.renderer.prompt(episode.step.messages)
            except EnvError as error:
                episode.end("failed", _reason(error))
            else:
                prompts[ids.tobytes()] = ids, text
        # Where no environment opened the task, its question stands in: a failure has a tree too.
        question = self.task.question or self.task.id
        ids, text = next(iter(prompts.values()), (self.renderer.text_ids(question), question))
        root = Node(parent=-1, author="prompt", token_ids=ids, text=text)
        for episode in episodes:
            episode.extend("prompt", root)
        if len(prompts) > 1:
            lengths = ", ".join(str(len(ids)) for ids, _ in prompts.values())
            for episode in _alive(episodes):
                episode.end("failed", f"samples were given different prompts, of {lengths} tokens")

        for episode in _alive(episodes):
            if episode.step.done:
                episode.end(episode.step.status, episode.step.reason, episode.step.answer)
                continue
            if prefill := episode.step.text:
                # Equal text is one run here, unlike later: nothing was drawn yet, it is the same beginning.
                ids = self.renderer.text_ids(prefill)
                episode.observe(("prefill", prefill), turn=-1, ids=ids, text=prefill)
            if (length := len(episode.token_ids)) >= self.max_path_tokens:
                limit = f"leaves no room for a completion in {self.max_path_tokens}"
                episode.end("failed", f"prompt_too_long: a prompt of {length} tokens {limit}")
        heads = {tuple(episode.keys): len(episode.token_ids) for episode in _alive(episodes)}
        self.num_shared = heads.popitem()[1] if len(heads) == 1 else len(root.token_ids)

    async def grow(self, episodes: Sequence[Episode], group_size: int) -> None:
        """Ask an engine that grows trees for all completions; there may be fewer than samples. Others are not asked."""
        alive = _alive(episodes)
        if not isinstance(self.engine, Grower) or not alive:
            return
        heads = {episode.token_ids.tobytes(): episode.token_ids for episode in alive}
        if len(heads) > 1:
            for episode in alive:
                episode.end("failed", f"engine: it grows one tree, the samples have {len(heads)} different beginnings")
            return
        [token_ids] = heads.values()
        room = self.max_path_tokens - len(token_ids)
        caps = [self.max_completion_tokens if e.step.max_tokens is None else e.step.max_tokens for e in alive]
        request = GrowRequest(
            task_id=self.address,
            token_ids=token_ids,
            num_candidates=group_size,
            max_tokens=min(room, *caps),
            sampling=self.sampling,
        )
        try:
            self.growth = await self.engine.grow(request)
        except EngineError as error:
            for episode in alive:
                episode.end("failed", f"engine: {_reason(error)}")


@dataclass(kw_only=True)
class Episode:
    """One sample on its way."""

    group: Group
    sample_index: int
    env: Env | None = None
    step: EnvStep = field(default_factory=EnvStep)
    """What the environment said last."""
    keys: list[NodeKey] = field(default_factory=list)
    """Its path so far."""
    token_ids: Ints = field(default_factory=lambda: np.zeros(0, np.int32))
    """[P] the tokens of that path."""
    turn: int = 0
    """The next turn."""
    leaf: Leaf | None = None
    """How it ended, once it has."""

    async def start(self, envs: EnvFactory) -> None:
        """Open the task in a fresh environment."""
        try:
            self.env = await self._guard(_make, envs)
            self.step = await self._ask(self.env.start, self.group.task)
        except EnvError as error:
            self.end("failed", _reason(error))

    async def run(self, before: int | None = None) -> None:
        """Completions and observations, until something ends them, or until turn `before` is next."""
        growth = self.group.growth
        if growth is not None and self.sample_index >= len(growth.candidates):
            return  # there were not so many candidates: this sample leaves no trace
        pace = self.group.pace
        try:
            with pace.playing(self.sample_index) if pace else nullcontext():
                while self.leaf is None and self.turn != before:
                    await self._turn(self.turn)
                    self.turn += 1
        except EnvError as error:
            self.end("failed", _reason(error))
        except EngineError as error:
            self.end("failed", f"engine: {_reason(error)}")

    async def follow(self, trunk: Episode) -> None:
        """Continue where `trunk` is, with draws of its own; the path so far is shared. Needs `Env.fork`."""
        await self.close()
        self.keys, self.token_ids = [*trunk.keys], trunk.token_ids
        self.step, self.turn = trunk.step, trunk.turn
        try:
            self.env = await self._guard(_fork, trunk.env)
        except EnvError as error:
            self.env = None
            self.end("failed", _reason(error))

    async def close(self) -> None:
        """Free the environment; a failure here costs nothing any more."""
        if self.env is not None:
            try:
                await self._guard(self.env.close)
            except EnvError as error:
                log.warning("task %s, sample %d: close: %s", self.group.address, self.sample_index, error)

    def extend(self, key: NodeKey, node: Node) -> None:
        """Append a run to the path."""
        self.group.nodes.setdefault(key, node)
        self.keys.append(key)
        self.token_ids = np.concatenate([self.token_ids, node.token_ids])

    def observe(self, key: NodeKey, *, turn: int, ids: Ints, text: str) -> None:
        """Append what the environment said after `turn`; -1: before the first completion."""
        self.extend(key, Node(parent=-1, author="environment", token_ids=ids, text=text, turn=turn))

    def end(self, status: LeafStatus, reason: str, answer: str | None = None) -> None:
        """Decide how this sample ended."""
        self.leaf = Leaf(
            node=-1,
            sample_index=self.sample_index,
            status=status,
            reason=reason,
            answer=answer,
            signals=dict(self.step.signals),
        )

    async def _turn(self, turn: int) -> None:
        group = self.group
        if turn == 0 and group.growth is not None:
            await self._grown(group.growth)
            return
        cap = group.max_completion_tokens if self.step.max_tokens is None else self.step.max_tokens
        room = group.max_path_tokens - len(self.token_ids)
        text, finish = await self._complete(turn, min(cap, room))
        assert self.env is not None  # an episode without one failed at its start
        self.step = await self._ask(self.env.step, group.renderer.visible(text))

        cut = finish == "length"
        if self.step.done and self.step.status == "done" and cut:
            budget = f"max_path_tokens: {group.max_path_tokens}" if room < cap else f"max_completion_tokens: {cap}"
            self.end("truncated", budget, self.step.answer)  # the environment sees text, not why it stops
        elif self.step.done:
            self.end(self.step.status, self.step.reason, self.step.answer)
        else:
            self._observe(turn, after_eos=finish == "eos")

    async def _complete(self, turn: int, limit: int) -> tuple[str, str]:
        """Sample the turn, at most `limit` tokens; its text and how it ended.

        A group that keeps pace samples it in pieces, and each version of the weights gets a node of its own.
        """
        group, pace = self.group, self.group.pace
        pieces: list[tuple[NodeKey, Completion]] = []
        start = 0
        while True:
            size = limit - start
            if pace is not None:
                size = min(size, await pace.allowance(self.sample_index, whole=not _continues(group.engine)))
            request = SampleRequest(
                task_id=group.address,
                sample_index=self.sample_index,
                turn=turn,
                token_ids=self.token_ids,
                num_shared=group.num_shared,
                max_tokens=size,
                stop=self.step.stop,
                sampling=group.sampling,
                start=start,
            )
            if pace is None:
                completion = await group.engine.sample(request)
            else:
                completion = await pace.sample(group.engine, request)
            if pieces and pieces[-1][1].policy_version == completion.policy_version:
                key, before = pieces.pop()
                pieces.append((key, joined(before, completion)))
                group.nodes[key] = _policy_node(pieces[-1][1], turn)
                self.token_ids = np.concatenate([self.token_ids, completion.token_ids])
            else:
                key = (self.sample_index, turn, "policy", start) if start else (self.sample_index, turn, "policy")
                pieces.append((key, completion))
                self.extend(key, _policy_node(completion, turn))
            start += len(completion.token_ids)
            if completion.finish != "length" or len(completion.token_ids) < size or start == limit:
                break
        if len(completion.token_ids) == start:
            return completion.text, completion.finish
        return self._spell(turn, pieces), completion.finish

    def _spell(self, turn: int, pieces: Sequence[tuple[NodeKey, Completion]]) -> str:
        """Text of a turn that was sampled in pieces; a character that a piece ends within belongs to the next."""
        decode, ids, said = self.group.renderer.decode, np.zeros(0, np.int32), ""
        for number, (key, piece) in enumerate(pieces, start=1):
            ids = np.concatenate([ids, piece.token_ids])
            text = decode(ids)
            text = text if number == len(pieces) else text.rstrip("\ufffd")
            self.group.nodes[key] = replace(_policy_node(piece, turn), text=text[len(said) :])
            said = text
        return said

    async def _grown(self, growth: Growth) -> None:
        """Take this sample's completion from what was grown; nodes that candidates share are one run."""
        text = ""
        for index in growth.path(self.sample_index):
            self.extend(("grown", index), growth.nodes[index])
            text += growth.nodes[index].text
        assert self.env is not None  # an episode without one failed at its start
        self.step = await self._ask(self.env.step, self.group.renderer.visible(text))
        if self.step.done:
            self.end(self.step.status, self.step.reason, self.step.answer)
        else:
            self._observe(0, after_eos=False)

    def _observe(self, turn: int, *, after_eos: bool) -> None:
        """Add the observation, unless no completion could follow it: it would be computed for nothing."""
        ids, text = np.zeros(0, np.int32), self.step.text
        if self.step.messages:
            ids, rendered = self.group.renderer.turn_ids(self.step.messages, after_eos)
            text = rendered + text
        ids = np.concatenate([ids, self.group.renderer.text_ids(self.step.text)])
        if len(self.token_ids) + len(ids) >= self.group.max_path_tokens:
            self.end("truncated", f"max_path_tokens: {self.group.max_path_tokens}")
        elif len(ids):
            self.observe((self.sample_index, turn, "environment"), turn=turn, ids=ids, text=text)

    async def _ask(self, call: Callable[P, Awaitable[EnvStep]], *args: P.args, **kwargs: P.kwargs) -> EnvStep:
        step = await self._guard(call, *args, **kwargs)
        if not isinstance(step, EnvStep):
            raise EnvError(f"{type(self.env).__name__} returned {type(step).__name__} instead of an EnvStep")
        return step

    async def _guard(self, call: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call into an environment; whatever goes wrong there is an `EnvError`."""
        try:
            async with asyncio.timeout(self.group.env_deadline_s) as deadline:
                return await call(*args, **kwargs)
        except EnvError:
            raise
        except Exception as error:  # an environment is other people's code, and its failures are data
            if deadline.expired():
                raise EnvError(f"environment: deadline of {self.group.env_deadline_s:g} s") from error
            raise EnvError(f"{type(error).__name__}: {error}") from error


def _alive(episodes: Sequence[Episode]) -> list[Episode]:
    """Those that have not ended."""
    return [episode for episode in episodes if episode.leaf is None]


def _continues(engine: Engine) -> bool:
    return bool(getattr(engine, "can_continue", False))


async def _make(envs: EnvFactory) -> Env:
    return envs.make()


async def _fork(env: Env | None) -> Env:
    if not isinstance(env, ForkableEnv):
        raise EnvError(f"{type(env).__name__} has no fork(), so its samples cannot share their first turns")
    return env.fork()


def _policy_node(completion: Completion, turn: int) -> Node:
    return Node(
        parent=-1,
        author="policy",
        token_ids=completion.token_ids,
        text=completion.text,
        behavior_logprobs=completion.behavior_logprobs,
        policy_version=completion.policy_version,
        sampling=completion.sampling,
        turn=turn,
    )


def _reason(error: Exception) -> str:
    """The error as one line of bounded length."""
    return " ".join(str(error).split())[:300]
