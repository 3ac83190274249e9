"""Retrieve once, then answer: the question itself is the query, and its passages stand in the prompt.

The plain retrieval-augmented baseline beside agentic search: one search, one completion, nothing to decide
but the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from rlkit.env import EnvStep
from rlkit.envs.prompts import check_template, fill
from rlkit.errors import EnvError
from rlkit.evidence.passages import estimated_tokens, within_budget
from rlkit.records import Message, Task
from rlkit.retriever import Passage, Retriever
from rlkit.tags import Tags, parse
from rlkit.text import replaced

__all__ = ["QaEpisode", "QaRetrieval"]


class QaRetrieval:
    """The environment kind `qa_retrieval`."""

    needs_retriever = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of the environment `qa_retrieval`."""

        prompt: str = "{passages}\n\nAnswer in a few words.\nQuestion: {question}"
        """User message; {answer} is the name of the answer tag."""
        system: str = ""
        """System message; empty: that of the chat template, if it has one."""
        tagged: bool = False
        """The answer stands inside the answer tag; false: the whole completion is the answer."""
        tags: Tags = field(default_factory=Tags)
        """Only the answer tag is used."""
        top_k: int = 3
        """Passages in the prompt."""
        passage: str = "Doc {rank}(Title: {title}) {text}"
        """How one passage is printed; one per line. It may name {rank}, {title}, {text} and {url}; a line of it that
        names {url} is left out where the passage has none."""
        max_passages_chars: int = 4000
        """All passages together are cut here, between passages; about 1000 tokens of English."""
        max_passages_tokens: int | None = None
        """Cut in tokens instead, which are estimated: there is no tokenizer here; null: in characters."""
        max_answer_tokens: int | None = None
        """Cap on the completion, in tokens; null: the recipe's `rollout.max_completion_tokens`."""

        def __post_init__(self) -> None:
            for name, value in vars(self).items():
                if name.startswith(("max_", "top_")) and value is not None and value < 1:
                    raise ValueError(f"{name}: {value} is below 1")
            check_template("prompt", self.prompt, required=("question", "passages"))
            check_template("passage", self.passage, required=("text",), optional=("rank", "title", "url"))

    def __init__(self, config: Config, retriever: Retriever) -> None:
        self.config = config
        self.retriever = retriever

    def make(self) -> QaEpisode:
        """A fresh environment for one trajectory."""
        return QaEpisode(self.config, self.retriever)


class QaEpisode:
    """One trajectory."""

    def __init__(self, config: QaRetrieval.Config, retriever: Retriever) -> None:
        self.config = config
        self.retriever = retriever
        self._signals = {"num_passages": 0.0}

    async def start(self, task: Task) -> EnvStep:
        """The prompt with the passages. Raises `EnvError` if the search failed: the siblings' prompt differs.

        `task.data["replace"]` maps words of the passages to those that stand there instead: counterfactual evidence.
        """
        config = self.config
        [retrieval] = await self.retriever.search([task.question], config.top_k)
        if retrieval.status != "ok":
            raise EnvError(f"retriever: {retrieval.status}")
        self._signals["num_passages"] = float(len(retrieval.passages))
        instead = task.data.get("replace") or {}
        shown = [
            replace(passage, title=replaced(passage.title, instead), text=replaced(passage.text, instead))
            for passage in retrieval.passages
        ]
        passages = "\n".join(self._printed(shown))
        question = config.tags.inert(task.question)  # neither it nor a passage can pose as the prompt's own tags
        prompt = fill(config.prompt, config.tags, question=question, passages=passages)
        messages = [Message(role="system", content=config.system)] if config.system else []
        messages.append(Message(role="user", content=prompt))
        stop = (config.tags.close("answer"),) if config.tagged else ()
        return EnvStep(messages=tuple(messages), stop=stop, max_tokens=config.max_answer_tokens, signals=self._signals)

    def _printed(self, passages: Sequence[Passage]) -> list[str]:
        """The passages that fit the budget, whole; ranks from 1."""
        config = self.config
        texts = [
            config.tags.inert(fill(self._form(passage), config.tags, rank=str(rank), **_slots(passage)))
            for rank, passage in enumerate(passages, start=1)
        ]
        if config.max_passages_tokens is not None:
            return within_budget(texts, config.max_passages_tokens, estimated_tokens)
        return within_budget(texts, config.max_passages_chars)

    def _form(self, passage: Passage) -> str:
        """How this passage is printed: nobody can cite what has no URL."""
        form = self.config.passage
        if passage.url or "{url}" not in form:
            return form
        return "".join(line for line in form.splitlines(keepends=True) if "{url}" not in line or "{text}" in line)

    async def step(self, completion: str) -> EnvStep:
        """The one completion is the answer."""
        answer = (completion or "").strip()
        if self.config.tagged:
            action = parse(answer, self.config.tags)
            answer = action.content if action.kind == "answer" else ""
        reason = "" if answer else "no_answer"
        return EnvStep(done=True, reason=reason, answer=answer or None, signals=self._signals)

    async def close(self) -> None:
        """Nothing is held."""


def _slots(passage: Passage) -> dict[str, str]:
    return {"title": passage.title, "text": passage.text, "url": passage.url}
