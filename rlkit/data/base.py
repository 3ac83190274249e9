"""What a task source is: named splits of tasks, and the passages that belong to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rlkit.records import Task
from rlkit.retriever import Passage

__all__ = ["TaskSource"]


class TaskSource(Protocol):
    """What `task.kind` names: a class built as `Kind(config)`, with a frozen `Config` dataclass as attribute."""

    def tasks(self, split: str) -> Sequence[Task]:
        """All tasks of `train` or `dev`, always in the same order. Raises `DataError` naming what is missing."""
        ...

    def passages(self) -> Sequence[Passage]:
        """The corpus that comes with the tasks; empty when there is none."""
        ...
