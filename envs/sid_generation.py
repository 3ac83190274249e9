"""Recommendation as generation: a user's history in, the semantic ID of the next item out.

The task's question is the history as semantic IDs, oldest first (`rlkit.data.sequences`); in text mode its titles are
shown instead. The one completion is the answer. Under a trie every answer is an item; without one, an answer that is
no item's semantic ID is counted in `signals/invalid`, and has no answer. Tokens of level 1 begin with `<a_`, of level 2
with `<b_`, and so on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_letters
from typing import Any, Literal

from rlkit.catalogue.items import Catalogue, split_sid
from rlkit.env import EnvStep
from rlkit.errors import EnvError, RecipeError
from rlkit.records import Message, Task

__all__ = ["SidEpisode", "SidGeneration"]


class SidGeneration:
    """The environment kind `sid_generation`."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of the environment `sid_generation`."""

        history: Literal["sid", "text"] = "sid"
        """Show the history as semantic IDs or as titles."""
        prompt: str = "{history}"
        """User message; a model of semantic IDs alone takes the history bare."""
        separator: str = ""
        """Between the items of the history."""
        items: str | None = None
        """Items file: an answer that is none of their semantic IDs is invalid; null: any of the right form is valid."""

        def __post_init__(self) -> None:
            if self.prompt.count("{history}") != 1:
                raise ValueError(f"prompt: {self.prompt!r} does not hold {{history}} exactly once")

    def __init__(self, config: Config, retriever: Any = None) -> None:
        self.config = config
        self.valid: frozenset[str] | None = None
        if config.items is not None:
            self.valid = frozenset(Catalogue.read(Path(config.items).expanduser()).sid_texts)

    @staticmethod
    def check_model(config: Config, folder: Path) -> None:
        """Raise `RecipeError` where histories are titles and the tokenizer in `folder` has no token for any letter."""
        file = folder / "tokenizer.json"
        if config.history == "sid" or not file.is_file():
            return
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
        unknown = tokenizer.token_to_id("<unk>")
        if set(tokenizer.encode(ascii_letters, add_special_tokens=False).ids) <= {unknown}:
            raise RecipeError(
                "env.history",
                f"'text', but the model of {folder} knows semantic IDs alone and would read every title as unknown; "
                "use env.history=sid, or add semantic IDs to a language model: python -m rlkit.launch.sid model --base",
            )

    def make(self) -> SidEpisode:
        """A fresh environment for one trajectory."""
        return SidEpisode(self)


class SidEpisode:
    """One trajectory."""

    def __init__(self, kind: SidGeneration) -> None:
        self.kind = kind
        self.levels = 1
        self.num_items = 1
        """Items of a complete answer: one, or a whole sequence where every position is trained at once."""

    async def start(self, task: Task) -> EnvStep:
        """The prompt; an empty history leaves only what the templates write. Raises `EnvError` for a foreign task."""
        levels, config = task.data.get("levels"), self.kind.config
        if not isinstance(levels, int) or levels < 1:
            raise EnvError(f"task {task.id} is not of a source with semantic IDs: its data have no levels")
        self.levels, self.num_items = levels, max(1, len(task.data.get("targets", ())))
        history = config.separator.join(self._history(task, levels))
        return EnvStep(
            messages=(Message(role="user", content=config.prompt.replace("{history}", history)),),
            # Without a trie the token of the last level ends an answer. A sequence has many, so its length does.
            stop=(f"<{_letter(levels - 1)}_",) if self.num_items == 1 else (),
            max_tokens=levels * self.num_items,
        )

    async def step(self, completion: str) -> EnvStep:
        """The completion is the answer, if it is one."""
        tokens = split_sid(completion)
        valid = len(tokens) == self.levels * self.num_items and all(
            token.startswith(f"<{_letter(at % self.levels)}_") for at, token in enumerate(tokens)
        )
        if valid and self.kind.valid is not None:
            valid = all(item in self.kind.valid for item in _items(tokens, self.levels))
        return EnvStep(
            done=True,
            reason="" if valid else "invalid_sid",
            answer="".join(tokens) if valid else None,
            signals={"invalid": float(not valid)},
        )

    async def close(self) -> None:
        """Nothing is held."""

    def _history(self, task: Task, levels: int) -> Sequence[str]:
        if self.kind.config.history == "sid":
            tokens = split_sid(task.question)
            if len(tokens) % levels or (task.question and not tokens):
                raise EnvError(f"task {task.id}: its question is no history of semantic IDs of {levels} levels")
            return _items(tokens, levels)
        titles = [str(title) for title in task.data.get("history_titles", ())]
        if not all(titles):
            raise EnvError(f"task {task.id}: an item of its history has no title; use env.history=sid")
        return titles


def _items(tokens: Sequence[str], levels: int) -> list[str]:
    """Tokens to semantic IDs."""
    return ["".join(tokens[at : at + levels]) for at in range(0, len(tokens), levels)]


def _letter(level: int) -> str:
    """Of the tokens of a level, counted from 0."""
    return chr(ord("a") + level)
