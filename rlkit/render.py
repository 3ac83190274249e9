"""Messages and text to tokens, once: what a renderer returns is concatenated and never tokenised again.

Content comes from data sets, corpora and tools, so it is not trusted: a control token written in a passage
(`<|im_end|><|im_start|>system`) is tokenised as the letters it consists of. Only the chat template writes
control tokens. Where content holds none, the prompt is exactly what `apply_chat_template` gives.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rlkit.errors import EnvError, RecipeError
from rlkit.records import Message

__all__ = ["Renderer", "Tokenizer"]

Ints = NDArray[np.int32]

_GUARD = "\ue000"  # private use: brackets the number of a control token that content spells out
_QUESTION, _COMPLETION = (
    "rlkit-question",
    "rlkit-completion",
)  # stand-ins whose place in a rendered text is sought


class Tokenizer(Protocol):
    """The part of a `transformers` tokenizer that rendering needs."""

    @property
    def all_special_tokens(self) -> list[str]:
        """Control tokens as text."""
        ...

    @property
    def eos_token_id(self) -> int | None:
        """What ends a text."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool, split_special_tokens: bool) -> list[int]:
        """Ids of `text`; with `split_special_tokens` a control token in it is plain letters."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Text of the ids."""
        ...

    def apply_chat_template(
        self,
        conversation: list[dict[str, str]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        **options: Any,
    ) -> Any:
        """The conversation as text (`tokenize=False`)."""
        ...


class Renderer:
    """One tokenizer with one chat template.

    `options` are passed on to `apply_chat_template`: `enable_thinking`, or `chat_template` for a base model
    without one. Raises `RecipeError` if the template cannot be used, or content could write control tokens.
    """

    def __init__(self, tokenizer: Tokenizer, options: Mapping[str, Any] | None = None) -> None:
        self.tokenizer = tokenizer
        self._options = dict(options or {})
        controls = _control_tokens(tokenizer)  # longest first, so that no token hides a longer one
        self._control = re.compile("|".join(map(re.escape, controls)) or r"(?!)")
        self._literals = [_GUARD, *controls]  # the guard itself is guarded too, so the code is one to one
        self._spelled = re.compile("|".join(map(re.escape, self._literals)))
        self._codes = {text: f"{_GUARD}{number}{_GUARD}" for number, text in enumerate(self._literals)}
        self._code = re.compile(rf"{_GUARD}(\d+){_GUARD}")
        self._anchor: list[int] = []
        line, anchored = self._encode("\n"), self._encode("\na")
        if anchored[len(line) :] != self._encode("a"):
            self._anchor = line  # this tokenizer puts a space before a text; see `_continue`
        self._control_ids = {self._control_id(text) for text in controls}
        try:
            closing = self._after_completion([], open_next=False)
        except EnvError as error:
            raise RecipeError("model.path", str(error)) from error
        self._closes = self._control.search(closing)
        self.end_id = self._control_id(self._closes[0]) if self._closes else tokenizer.eos_token_id
        """The token with which the template ends an assistant turn; None: it and the tokenizer have none."""

    def prompt(self, messages: Sequence[Message]) -> tuple[Ints, str]:
        """The conversation up to where the assistant speaks: ids [P] and their text. Raises `EnvError`."""
        text = self._render(messages, open_next=True)
        return self._tokens(text, start=True), self._spell(text)

    def text_ids(self, text: str) -> Ints:
        """Ids [n] of text put raw into the assistant's turn; control tokens in it are plain letters."""
        return np.array(self._continue(text, trusted=False), np.int32)

    def turn_ids(self, messages: Sequence[Message], after_eos: bool) -> tuple[Ints, str]:
        """Close the assistant's turn, say `messages`, open its next turn: ids [n] and their text.

        `after_eos`: the completion sampled its end token already, so none is added. Raises `EnvError` for
        messages that the template refuses.
        """
        text = self._after_completion(messages, open_next=True)
        ids, end = self._tokens(text), self._control.search(text)
        if after_eos and self._closes and end:
            first = next(index for index, token in enumerate(ids) if int(token) in self._control_ids)
            ids, text = ids[first + 1 :], text[end.end() :]
        return ids, self._spell(text)

    def decode(self, ids: Sequence[int] | Ints) -> str:
        """Text of the ids, control tokens kept."""
        return self.tokenizer.decode([int(token) for token in ids], skip_special_tokens=False)

    def visible(self, text: str) -> str:
        """A completion's text as an environment reads it: without control tokens."""
        return self._control.sub("", text)

    def _after_completion(self, messages: Sequence[Message], *, open_next: bool) -> str:
        """What the template writes after an assistant's turn, guarded; read off a stand-in conversation."""
        history = (Message(role="user", content=_QUESTION), Message(role="assistant", content=_COMPLETION))
        _, found, rest = self._render((*history, *messages), open_next=open_next).partition(_COMPLETION)
        if not found:
            raise EnvError("the chat template leaves out what the assistant said")
        return rest

    def _render(self, messages: Sequence[Message], *, open_next: bool) -> str:
        """The conversation as text; control tokens in content are replaced by their codes."""
        guarded = [
            {"role": m.role, "content": self._spelled.sub(lambda found: self._codes[found[0]], m.content)}
            for m in messages
        ]
        try:
            rendered = self.tokenizer.apply_chat_template(
                guarded, tokenize=False, add_generation_prompt=open_next, **self._options
            )
        except Exception as error:  # a template is a program of the model's author and raises what it likes
            roles = ", ".join(m.role for m in messages)
            raise EnvError(f"the chat template refuses the roles {roles}: {error}") from error
        return str(rendered)

    def _spell(self, guarded: str) -> str:
        return self._code.sub(lambda found: self._literals[int(found[1])], guarded)

    def _tokens(self, guarded: str, *, start: bool = False) -> Ints:
        """Ids of a rendered text: codes become letters, everything else may be a control token."""
        ids: list[int] = []
        for index, piece in enumerate(self._code.split(guarded)):  # text, number, text, number, ..., text
            if index % 2:
                ids += self._continue(self._literals[int(piece)], trusted=False)
            else:
                ids += self._encode(piece, trusted=True) if start and not index else self._continue(piece, trusted=True)
        return np.array(ids, np.int32)

    def _continue(self, text: str, *, trusted: bool) -> list[int]:
        """Ids of text that follows other text.

        A SentencePiece tokenizer puts a space before whatever it is given; behind an anchor that is cut off
        again, it does not.
        """
        if text and self._anchor:
            ids = self._encode("\n" + text, trusted=trusted)
            if ids[: len(self._anchor)] == self._anchor:
                return ids[len(self._anchor) :]
        return self._encode(text, trusted=trusted)

    def _encode(self, text: str, *, trusted: bool = False) -> list[int]:
        if not text:
            return []
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not trusted)

    def _control_id(self, token: str) -> int:
        """Id of a control token, after making sure that content cannot write it."""
        ids = self._encode(token, trusted=True)
        if len(ids) != 1 or ids[0] in self._encode(f"a{token}a"):
            raise RecipeError("model.path", f"its tokenizer cannot tell the control token {token!r} from its letters")
        return ids[0]


def _control_tokens(tokenizer: Tokenizer) -> list[str]:
    """Every token that means more than its letters, longest first."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    found.discard(str(getattr(tokenizer, "unk_token", None)))  # unknown letters may well be written
    return sorted(found, key=lambda token: (-len(token), token))
