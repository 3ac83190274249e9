"""Reading a completion while it grows: its text, and the moment a stop string is complete."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

__all__ = ["StopWatch", "Tokenizer", "decode"]


class Tokenizer(Protocol):
    """What an engine asks of a tokenizer; those of `transformers` have it."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Text of the ids; bytes that make no whole character become U+FFFD."""
        ...


def decode(tokenizer: Tokenizer, token_ids: Sequence[int]) -> str:
    """Text of the ids, special tokens kept."""
    return tokenizer.decode(list(token_ids), skip_special_tokens=False)


class StopWatch:
    """Tells with which token a completion first contains one of the stop strings.

    It decodes a window of the last tokens only. A token is at least one byte, so a string of n bytes spans at
    most n tokens; the window has a few more, because its first character may be torn and some tokenizers drop
    a space there.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        longest = max((len(text.encode()) for text in stop), default=0)  # bytes
        self._window: deque[int] = deque(maxlen=longest + 8)

    def completes(self, token_id: int) -> bool:
        """True if the completion, longer by `token_id` now, has a stop string; call it once for each token."""
        if not self._stop:
            return False
        self._window.append(token_id)
        text = decode(self._tokenizer, self._window)
        return any(stop in text for stop in self._stop)
