"""Published question sets with their passages: HotpotQA, 2WikiMultihopQA, MuSiQue, and four over one corpus.

Layout of the folder, one JSON object per line of each file:

    hotpotqa/  2wikimultihopqa/  musique/         train dev test_public corpus  .jsonl.gz
    nq/  popqa/  triviaqa/  bamboogle/            train dev test_public         .jsonl.gz
    wiki18/                                       corpus.jsonl.gz, shared by the four
    qa_only/                                      further training questions without labels
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from rlkit.errors import DataError, nearest
from rlkit.records import Task
from rlkit.retriever import Passage
from rlkit.search.references import PlannedReference, read_references, with_references

__all__ = ["DATASETS", "Multihop"]

DATASETS = {
    "hotpotqa": "hotpotqa",
    "2wikimultihopqa": "2wikimultihopqa",
    "musique": "musique",
    "nq": "wiki18",
    "popqa": "wiki18",
    "triviaqa": "wiki18",
    "bamboogle": "wiki18",
}
"""Data set -> folder of its corpus."""
SPLITS = {"train": "train", "dev": "dev", "test": "test_public", "test_public": "test_public"}
"""Split -> file; `test` is the published part of the test questions."""
WEAK = {"2wikimultihopqa": "2wikimultihopqa/train_weak"}
"""Data set -> training questions whose supporting passages a rule inferred."""
QA_ONLY = {
    "hotpotqa": ("qa_only/hotpotqa_dev",),
    "2wikimultihopqa": ("qa_only/2wikimultihopqa_dev",),
    "musique": ("qa_only/musique_train", "qa_only/musique_dev"),
    "nq": ("qa_only/nq_test",),
}
"""Data set -> training questions without passages; those of dev and test are taken out."""
KEPT = (
    "hops",
    "type",
    "level",
    "supporting_titles",
    "supporting_ids",
    "decomposition",
    "evidences",
    "answer_in_corpus",
)
"""Fields that go into `Task.data` as they are."""


class Multihop:
    """The task source kind `multihop`."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of the task source `multihop`."""

        path: str
        """Folder of the layout above."""
        datasets: list[str] = field(default_factory=lambda: ["hotpotqa"])
        """Which of `DATASETS`, in this order; their corpora are joined."""
        limit: int | None = None
        """At most so many questions of each data set and split, from the front; null: all."""
        weak: bool = False
        """Add to `train` the 2WikiMultihopQA questions whose supporting passages are inferred, not annotated.
        """
        qa_only: bool = False
        """Add to `train` questions without labels; the corpora need not hold their answers."""
        references: str | None = None
        """File of reference steps that `rlkit plan-references` wrote; null: none are added to the tasks."""

        def __post_init__(self) -> None:
            if not self.datasets:
                raise ValueError(f"datasets: is empty; name some of {', '.join(DATASETS)}")
            for name in self.datasets:
                if name not in DATASETS:
                    raise ValueError(f"datasets: unknown {name!r}{nearest(name, DATASETS)}")
            if len(set(self.datasets)) < len(self.datasets):
                raise ValueError(f"datasets: {self.datasets} names one twice")
            if self.limit is not None and self.limit < 1:
                raise ValueError(f"limit: {self.limit} is below 1")

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root = Path(config.path).expanduser()

    def tasks(self, split: str) -> Sequence[Task]:
        """The questions of `train`, `dev` or `test`, data set by data set in file order."""
        if split not in SPLITS:
            raise DataError(f"task multihop: unknown split {split!r}{nearest(split, SPLITS)}")
        return [task for name in self.config.datasets for task in self._tasks(name, split)]

    def passages(self) -> Sequence[Passage]:
        """All passages of the corpora of the chosen data sets."""
        return self._passages

    @cached_property
    def _passages(self) -> tuple[Passage, ...]:
        corpora = dict.fromkeys(DATASETS[name] for name in self.config.datasets)
        return tuple(
            Passage(id=row["id"], title=row["title"], text=row["text"])
            for corpus in corpora
            for row in self._rows(f"{corpus}/corpus", ("id", "title", "text"))
        )

    @cached_property
    def _references(self) -> list[PlannedReference]:
        return read_references(Path(self.config.references or "").expanduser())

    @cached_property
    def _titles(self) -> dict[str, str]:
        return {passage.id: passage.title for passage in self._passages}

    def _tasks(self, name: str, split: str) -> list[Task]:
        files = [f"{name}/{SPLITS[split]}"]
        if split == "train" and self.config.weak and name in WEAK:
            files.append(WEAK[name])
        if split == "train" and self.config.qa_only:
            files += QA_ONLY.get(name, ())
        rows = [row for file in files for row in self._rows(file, ("id", "question", "answers"))]
        tasks = [self._task(name, row) for row in rows[: self.config.limit]]
        return with_references(tasks, split, self._references) if self.config.references else tasks

    def _task(self, name: str, row: Mapping[str, Any]) -> Task:
        data: dict[str, Any] = {
            "dataset": name,
            **{key: row[key] for key in KEPT if row.get(key) is not None},
        }
        for key in ("type", "supporting_titles", "supporting_ids"):
            if key not in data and f"{key}_inferred" in row:
                data |= {key: row[f"{key}_inferred"], "inferred": True}
        if "context_ids" in row:
            data["context_titles"] = [self._titles.get(passage, "") for passage in row["context_ids"]]
        return Task(id=row["id"], question=row["question"], answers=tuple(row["answers"]), data=data)

    def _rows(self, stem: str, required: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The objects of one file; whatever is wrong with it becomes a `DataError` with file and line."""
        file = self.root / f"{stem}.jsonl.gz"
        if not file.is_file():
            raise DataError(f"task multihop: {self._missing(file)}")
        line = 0
        try:
            with gzip.open(file, "rt", encoding="utf-8") as lines:
                for line, text in enumerate(lines, start=1):
                    row = json.loads(text)
                    if lacking := [key for key in required if not row.get(key)]:
                        raise DataError(f"{file}:{line}: {', '.join(lacking)} missing or empty")
                    yield row
        except (OSError, EOFError, zlib.error, ValueError, AttributeError) as error:
            raise DataError(f"{file}:{max(line, 1)}: cannot be read: {error}") from error

    def _missing(self, file: Path) -> str:
        """What is not there, and the nearest thing that is."""
        if not self.root.is_dir():
            above = next((folder for folder in self.root.parents if folder.is_dir()), Path("."))
            inside = [str(folder) for folder in above.iterdir() if folder.is_dir()] if above else []
            return f"path: no folder {self.root}{nearest(str(self.root), inside)}"
        existing = [str(found) for found in self.root.glob("*/*.jsonl.gz")]
        beside = [found for found in existing if Path(found).parent == file.parent]
        return f"no file {file}{nearest(str(file), beside or existing)}"
