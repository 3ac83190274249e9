"""Users' histories and the item that came next: Amazon reviews and MovieLens, as SID generation learns from them.

Layout of a data set's folder, one JSON object per line:

    items.jsonl.gz        item_id, sid, title
    sequences.jsonl.gz    user_id, items (oldest first): the last item is the test target, the one before it the
                          validation target, the rest is for training (SASRec, S3-Rec, TIGER, LETTER)
    train.jsonl.gz, valid.jsonl.gz, test.jsonl.gz    user_id, history, target: already cut by time (MiniOneRec)

Where the three files of the last line exist they are the split, and `sequences.jsonl.gz`, which then holds the test
targets, is not read. Ratings are not used: every interaction counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from rlkit.catalogue.items import Catalogue, check_model
from rlkit.catalogue.rows import read_rows
from rlkit.errors import DataError, nearest
from rlkit.records import Task
from rlkit.retriever import Passage

__all__ = ["Case", "Sequences"]

SPLITS = {"train": "train", "dev": "valid", "test": "test"}
"""Split -> file of a data set that is cut by time."""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a user had before, and what came next."""

    user: str
    history: tuple[int, ...]
    """Item ids, oldest first; may be empty."""
    targets: tuple[int, ...]
    """Item ids in order; one, except where a whole sequence is trained in one pass."""
    place: int
    """Position of the first target in the user's sequence; names the task."""


class Sequences:
    """The task source kind `sequences`."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of the task source `sequences`."""

        path: str
        """Folder of data sets, each a folder of the layout above."""
        dataset: str = "beauty"
        """Folder of the data set inside `path`."""
        items: str | None = None
        """Another items file, for instance with semantic IDs of our own; null: that of the data set."""
        sid_field: str = "sid"
        """Field of an item that holds its semantic ID."""
        max_history: int = 20
        """At most so many items before a target, the latest ones."""
        train: Literal["sequences", "targets", "last"] = "targets"
        """A training task is a whole sequence whose every item is a target (one causal pass), each item with what
        came before it, or each user's last training item only."""
        limit: int | None = None
        """At most so many users of each split, from the front; null: all."""

        def __post_init__(self) -> None:
            if self.max_history < 1:
                raise ValueError(f"max_history: {self.max_history} is below 1")
            if self.limit is not None and self.limit < 1:
                raise ValueError(f"limit: {self.limit} is below 1")

    def __init__(self, config: Config) -> None:
        self.config = config
        root = Path(config.path).expanduser()
        self.folder = root / config.dataset
        if not self.folder.is_dir():
            inside = [folder.name for folder in root.iterdir() if folder.is_dir()] if root.is_dir() else []
            where = f"no folder {root}" if not root.is_dir() else f"unknown {config.dataset!r} in {root}"
            raise DataError(f"task.{'dataset' if root.is_dir() else 'path'}: {where}{nearest(config.dataset, inside)}")

    @cached_property
    def catalogue(self) -> Catalogue:
        """The items with their semantic IDs. Raises `DataError` where some have none."""
        return self._read_catalogue(require_sids=True)

    @cached_property
    def items(self) -> Catalogue:
        """The items by number, whether they have semantic IDs or not."""
        return self._read_catalogue(require_sids=False)

    @property
    def by_time(self) -> bool:
        """True where the data set comes already cut by time."""
        return (self.folder / "train.jsonl.gz").is_file()

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of `train`, `dev` or `test`, user by user. Raises `DataError`."""
        kind = self.config.train if split == "train" else "targets"
        return [self._task(split, case) for case in self.cases(split, kind)]

    def passages(self) -> Sequence[Passage]:
        """None: recommendation retrieves nothing."""
        return ()

    def check_model(self, folder: Path, *, setting: str) -> None:
        """Raise `CheckpointError` if the model or checkpoint in `folder` was made for another catalogue."""
        check_model(folder, self.catalogue, setting=setting)

    def cases(self, split: str, train: Literal["sequences", "targets", "last"] = "targets") -> list[Case]:
        """Histories and targets of a split; `train` says what a case of the training split is."""
        if split not in SPLITS:
            raise DataError(f"task sequences: unknown split {split!r}{nearest(split, SPLITS)}")
        size = self.config.max_history
        if split != "train":
            held_out = self._rows(split) if self.by_time else self._left_out(-2 if split == "dev" else -1)
            return [Case(user=u, history=h[-size:], targets=(t,), place=n) for u, h, t, n in held_out]
        cases: list[Case] = []
        for user, items in self.train_sequences:
            if train == "sequences":
                cases += _windows(user, items, size)
                continue
            places = range(1, len(items)) if train == "targets" else range(max(1, len(items) - 1), len(items))
            cases += [
                Case(user=user, history=items[max(0, n - size) : n], targets=(items[n],), place=n) for n in places
            ]
        return cases

    @cached_property
    def train_sequences(self) -> list[tuple[str, tuple[int, ...]]]:
        """(user, items oldest first) of the training part only: no validation or test target is among them.

        A data set that is cut by time has rows; a user's rows are joined, the first one with its history.
        """
        if not self.by_time:
            return [(user, items[:-2]) for user, items in self._users() if len(items) > 2]
        joined: dict[str, list[int]] = {}
        for user, history, target, _ in self._rows("train"):
            joined.setdefault(user, list(history)).append(target)
        return [(user, tuple(items)) for user, items in joined.items()]

    @cached_property
    def popularity(self) -> Counter[int]:
        """Item id -> interactions in the training part; items without any are absent."""
        return Counter(item for _, items in self.train_sequences for item in items)

    def _read_catalogue(self, *, require_sids: bool) -> Catalogue:
        file = Path(self.config.items).expanduser() if self.config.items else self.folder / "items.jsonl.gz"
        return Catalogue.read(file, sid_field=self.config.sid_field, require_sids=require_sids)

    def _users(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        file = self.folder / "sequences.jsonl.gz"
        for number, row in enumerate(read_rows(file, ("user_id", "items")), start=1):
            if self.config.limit is not None and number > self.config.limit:
                return
            yield str(row["user_id"]), self._known(file, number, row["items"])

    def _left_out(self, place: int) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
        """(user, history, target, place) of the last item or the one before it; a user needs three items."""
        for user, items in self._users():
            if len(items) > 2:
                yield user, items[:place], items[place], len(items) + place

    def _rows(self, split: str) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
        file = self.folder / f"{SPLITS[split]}.jsonl.gz"
        users: set[str] = set()
        for number, row in enumerate(read_rows(file, ("user_id", "history", "target")), start=1):
            users.add(str(row["user_id"]))
            if self.config.limit is not None and len(users) > self.config.limit:
                return
            *history, target = self._known(file, number, [*row["history"], row["target"]])
            yield str(row["user_id"]), tuple(history), target, number

    def _known(self, file: Path, line: int, items: Sequence[int]) -> tuple[int, ...]:
        unknown = [item for item in items if item not in self.items.row_of]
        if unknown:
            raise DataError(f"{file}:{line}: item {unknown[0]} is none of the {len(self.items.item_ids)} items")
        return tuple(items)

    def _task(self, split: str, case: Case) -> Task:
        """The SIDs of the history are the question, those of the targets the answer."""
        rows = [self.catalogue.row_of[item] for item in case.history]
        return Task(
            id=f"{self.config.dataset}-{split}-{case.user}-{case.place}",
            question="".join(self.catalogue.sid_texts[row] for row in rows),
            answers=("".join(self.catalogue.sid_texts[self.catalogue.row_of[item]] for item in case.targets),),
            data={
                "history": list(case.history),
                "history_titles": [self.catalogue.titles[row] for row in rows],
                "targets": list(case.targets),
                "target_titles": [self.catalogue.titles[self.catalogue.row_of[item]] for item in case.targets],
                "levels": self.catalogue.levels,
            },
        )


def _windows(user: str, items: tuple[int, ...], size: int) -> Iterator[Case]:
    """Cut a sequence so that every item is a target exactly once, in windows of at most `size` items.

    A window after the first begins with half of `size` items that are history only, so no target but the first ones
    of the sequence has less than that before it.
    """
    half = size // 2
    start, stop = 0, size
    while start < len(items):
        history = items[max(0, start - half) : start]
        yield Case(user=user, history=history, targets=items[start:stop], place=start)
        start, stop = stop, stop + size - half
