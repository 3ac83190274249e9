"""Agentic search: the policy thinks, searches while its budget lasts, and answers, in one assistant turn.

Protocol of Search-R1 (arXiv:2503.09516; papers: search_p1 §4.2 and §10) with the tag names as a setting, so
that Search-P1 runs on the same code:

    prompt                             Question: Who is the mayor of Velmora?
    policy       <think>..</think><search>mayor of Velmora</search>
    environment  ⏎⏎<information>Doc 1(Title: Velmora) ...</information>⏎⏎
    policy       <answer>Tarek Lundvig</answer>

Each turn is one completion, ended by its first closing search or answer tag. After `max_searches` turns the
environment itself opens `<answer>` and the last completion fills it. Departures: a turn without an action
uses up the budget like a search (the printed loop of Search-P1 would spin for ever) and `max_invalid_turns`
of them end the
trajectory; observations are cut in characters, because an environment has no tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Literal

from rlkit.env import EnvStep
from rlkit.envs.prompts import PROMPTS, check_template, fill
from rlkit.records import Message, Task
from rlkit.retriever import Passage, Retrieval, Retriever
from rlkit.tags import NOTHING_FOUND, SEARCH_FAILED, Action, Role, Tags, parse, query_fault
from rlkit.text import normalize

__all__ = ["AgenticSearch", "Example", "SearchEpisode", "observation", "passages_text"]

SIGNALS = (
    "num_turns",  # completions
    "num_searches",  # queries that reached the retriever
    "num_invalid_turns",  # no action, or a refused query
    "num_refused_queries",
    "num_duplicate_queries",  # equal after normalisation to an earlier one of the trajectory
    "num_failed_searches",  # the retriever's status was not ok
    "num_forged_observations",  # turns in which the policy typed the observation tag
    "forced_answer",  # 1 if the environment opened the answer
)


@dataclass(frozen=True, kw_only=True)
class Example:
    """A worked example, shown before the task as a user and an assistant message.

    A whole trajectory pasted into one prompt teaches a model to forge observations; in separate roles it does
    not (search_p1 §11).
    """

    question: str
    """Asked with the same prompt as the task."""
    response: str
    """The whole assistant turn, observations included."""


class AgenticSearch:
    """The environment kind `agentic_search`."""

    needs_retriever = True
    can_fork = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Defaults are those of Search-R1 and Search-P1: four searches, three passages."""

        prompt: str = "search_r1"
        """A name of `rlkit.envs.prompts.PROMPTS`, or a text with {question}; {search} etc. are tag names."""
        system: str = ""
        """System message; empty: that of the chat template, if it has one."""
        examples: list[Example] = field(default_factory=list)
        """Worked examples before the task."""
        tags: Tags = field(default_factory=Tags)
        """Names of the tags."""
        prefill: Literal["none", "think", "search", "plan"] = "none"
        """Tag that the environment opens at the very start of the assistant turn."""
        max_searches: int = 4
        """B: turns, searches and invalid ones together, before the answer is forced."""
        max_invalid_turns: int = 4
        """So many turns without a legal action end the trajectory, without an answer."""
        top_k: int = 3
        """Passages per search."""
        passage: str = "Doc {rank}(Title: {title}) {text}"
        """How one passage is printed; one per line."""
        gap: str = "\n\n"
        """White space before and after an observation. A blank line is Search-R1's; with worked examples use
        a single line break: many tokenizers merge two at the end of a text, so the policy would read a token
        here that its examples never show.
        """
        max_observation_chars: int = 2000
        """Passages of one observation are cut here; about 500 tokens of English."""
        max_query_words: int = 32
        """A longer query is refused."""
        max_turn_tokens: int | None = None
        """Cap on a completion, in tokens; null: the recipe's `rollout.max_completion_tokens`."""
        max_answer_tokens: int | None = None
        """Cap on the completion that fills a forced answer; null: as any other."""
        correction: str = (
            "\nMy last action was invalid. To search, I write one query between <{search}> and </{search}>. "
            "To answer, I write the answer between <{answer}> and </{answer}>. I try again.\n"
        )
        """Said after a turn without an action."""
        refusal: str = "\nThat query was refused: {fault}. I write another one.\n"
        """Said after a query that is not searched."""
        failure: str = SEARCH_FAILED
        """Stands for the passages when the retriever failed."""
        nothing_found: str = NOTHING_FOUND
        """Stands for the passages when there are none."""

        def __post_init__(self) -> None:
            for name, value in vars(self).items():
                if name.startswith(("max_", "top_")) and value is not None and value < 1:
                    raise ValueError(f"{name}: {value} is below 1")
            if self.prefill == "plan" and not self.tags.plan:
                raise ValueError("prefill: 'plan' needs a name for that tag; set tags.plan=plan")
            prompt = PROMPTS.get(self.prompt, self.prompt)
            check_template("prompt", prompt, required=("question",))
            check_template("passage", self.passage, required=("text",), optional=("rank", "title"))
            check_template("correction", self.correction)
            check_template("refusal", self.refusal, optional=("fault",))

    def __init__(self, config: Config, retriever: Retriever) -> None:
        self.config = config
        self.retriever = retriever

    def make(self) -> SearchEpisode:
        """A fresh environment for one trajectory."""
        return SearchEpisode(self.config, self.retriever)


class SearchEpisode:
    """One trajectory. It never reads `task.answers`: whether gold was found is for rewards to say."""

    def __init__(self, config: AgenticSearch.Config, retriever: Retriever) -> None:
        self.config = config
        self.retriever = retriever
        self._opened: Role | None = None if config.prefill == "none" else config.prefill
        self._forced = False
        self._seen: set[str] = set()
        self._signals = dict.fromkeys(SIGNALS, 0.0)

    async def start(self, task: Task) -> EnvStep:
        """The prompt: system message, worked examples, the question."""
        config = self.config
        messages = [Message(role="system", content=config.system)] if config.system else []
        for example in config.examples:
            messages += [self._ask(example.question), Message(role="assistant", content=example.response)]
        messages.append(self._ask(task.question))
        return self._next(config.tags.open(self._opened) if self._opened else "", tuple(messages))

    async def step(self, completion: str) -> EnvStep:
        """Search, correct, or end."""
        action = parse(completion or "", self.config.tags, self._opened)
        self._opened = None
        self._signals["num_turns"] += 1
        self._signals["num_forged_observations"] += action.forged
        if action.kind == "answer" and action.content:
            return self._end(answer=action.content)
        if action.kind == "answer" or self._forced:
            return self._end(reason="no_answer")
        said = await self._search(action) if action.kind == "search" else self._correct()
        if self._signals["num_invalid_turns"] >= self.config.max_invalid_turns:
            return self._end(reason="max_invalid_turns")
        if self._signals["num_turns"] >= self.config.max_searches:
            self._forced, self._opened = True, "answer"
            self._signals["forced_answer"] = 1.0
            said += self.config.tags.open("answer")
        return self._next(said)

    def fork(self) -> SearchEpisode:
        """A copy with its own counts; the retriever stays shared."""
        twin = copy(self)
        twin._seen, twin._signals = set(self._seen), dict(self._signals)
        return twin

    async def close(self) -> None:
        """Nothing is held."""

    def _ask(self, question: str) -> Message:
        question = question.strip()
        question = question if question.endswith("?") else f"{question}?"
        template = PROMPTS.get(self.config.prompt, self.config.prompt)
        return Message(role="user", content=fill(template, self.config.tags, question=question))

    def _correct(self) -> str:
        self._signals["num_invalid_turns"] += 1
        return fill(self.config.correction, self.config.tags)

    async def _search(self, action: Action) -> str:
        """What the environment says to a query; one that may not be searched makes an invalid turn."""
        config = self.config
        if fault := query_fault(action.content, config.tags, config.max_query_words):
            self._signals["num_refused_queries"] += 1
            self._signals["num_invalid_turns"] += 1
            return fill(config.refusal, config.tags, fault=fault)
        self._signals["num_searches"] += 1
        key = normalize(action.content)
        self._signals["num_duplicate_queries"] += key in self._seen
        self._seen.add(key)
        [retrieval] = await self.retriever.search([action.content], config.top_k)
        self._signals["num_failed_searches"] += retrieval.status != "ok"
        return observation(retrieval, config)

    def _next(self, text: str, messages: tuple[Message, ...] = ()) -> EnvStep:
        tags, config = self.config.tags, self.config
        stop: tuple[str, ...] = (tags.close("search"), tags.close("answer"))
        cap = config.max_turn_tokens
        if self._forced:
            stop, cap = (tags.close("answer"),), config.max_answer_tokens or config.max_turn_tokens
        return EnvStep(messages=messages, text=text, stop=stop, max_tokens=cap, signals=dict(self._signals))

    def _end(self, *, reason: str = "", answer: str | None = None) -> EnvStep:
        """Always `done`: a broken protocol is the policy's doing and must be trained on, unlike a cut."""
        return EnvStep(done=True, reason=reason, answer=answer, signals=dict(self._signals))


def observation(retrieval: Retrieval, config: AgenticSearch.Config) -> str:
    """The tagged passages of one search, cut to size, tags inside them defused."""
    tags = config.tags
    said = passages_text(retrieval.passages, config.passage, tags) or config.nothing_found
    if retrieval.status != "ok":
        said = config.failure
    said = tags.inert(said)[: config.max_observation_chars].strip()
    return f"{config.gap}{tags.open('information')}{said}{tags.close('information')}{config.gap}"


def passages_text(passages: Sequence[Passage], template: str, tags: Tags) -> str:
    """One passage per line, ranks from 1."""
    return "\n".join(
        fill(template, tags, rank=str(rank), title=passage.title, text=passage.text)
        for rank, passage in enumerate(passages, start=1)
    )
