"""One error type per boundary; a message names the setting, the value, what is allowed and the nearest fix.

RlkitError
├── RecipeError       a recipe, override or plug-in name is wrong: raised before any worker starts
├── DataError         a data set, corpus or task is missing or malformed
├── EngineError       a policy engine could not sample or load weights
├── EnvError          an environment or tool failed   (becomes a leaf status, never ends a run)
├── RewardError       a reward failed or ran too long (becomes a reward status, never ends a run)
├── LearnerError      a loss or gradient is not finite, or a batch is impossible
├── SyncError         an engine does not run the weights that the learner sent
├── LedgerError       the accounting of tasks does not balance
└── CheckpointError   a checkpoint is torn, corrupt or from another run
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "DataError",
    "EngineError",
    "EnvError",
    "LearnerError",
    "LedgerError",
    "RecipeError",
    "RewardError",
    "RlkitError",
    "SyncError",
    "nearest",
]


class RlkitError(Exception):
    """Base of every error that rlkit raises on purpose."""


class RecipeError(RlkitError):
    """A recipe cannot run as written; `path` is the dotted path of the setting at fault."""

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}" if path else problem)

    def __reduce__(self) -> tuple[type[RecipeError], tuple[str, str]]:
        """Exceptions pickle by their message; this one has two arguments and comes back from workers."""
        return type(self), (self.path, self.problem)


class DataError(RlkitError):
    """A data set, corpus or task is missing or malformed."""


class EngineError(RlkitError):
    """A policy engine could not sample or load weights."""


class EnvError(RlkitError):
    """An environment or one of its tools failed; the rollout records it as `failed`."""


class RewardError(RlkitError):
    """A reward failed; the leaf records it as a status, never as 0."""


class LearnerError(RlkitError):
    """A loss or gradient is not finite, or a batch cannot be trained on."""


class SyncError(RlkitError):
    """An engine does not run the weights that the learner sent."""


class LedgerError(RlkitError):
    """Tasks drawn differ from trained + dropped + pending."""


class CheckpointError(RlkitError):
    """A checkpoint is torn, corrupt or belongs to another run."""


def nearest(word: str, allowed: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest allowed word, or `; one of a, b, c` when none is close."""
    options = sorted(allowed)
    close = difflib.get_close_matches(word, options, n=len(options) or 1, cutoff=0.6)
    if close:
        # Ratios tie often on short words; swapped letters ("gpro") are the likelier slip than a wrong one ("gspo").
        best = max(close, key=lambda option: (difflib.SequenceMatcher(None, word, option).ratio(), _same(word, option)))
        return f"; did you mean '{best}'?"
    return f"; one of {', '.join(options)}" if options else ""


def _same(word: str, option: str) -> bool:
    """True if one is the other with its letters in another order."""
    return sorted(word) == sorted(option)
