"""A seeded world: questions of one and two hops about an invented encyclopedia (`rlkit/data/encyclopedia.py`).

A question is answered by searching and reading, or not at all: every name is made up, and the years of 1500 to
1999 are too many to guess. Each region of the world belongs to one split, so no entity, answer or supporting
passage of a held-out question is ever part of a training question. All regions share one corpus, so retrieval
is equally hard for all splits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from rlkit.data.encyclopedia import Fact, Region, make_regions
from rlkit.errors import DataError, nearest
from rlkit.randomness import stream
from rlkit.records import Task
from rlkit.retriever import Passage

__all__ = ["World"]


class World:
    """The task source kind `world`."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of the task source `world`."""

        seed: int = 0
        """Of the world itself; another seed is another world with other names."""
        train_regions: int = 24
        """21 entities, about 46 one-hop and 90 two-hop questions each."""
        dev_regions: int = 6
        test_regions: int = 6
        hops: list[float] = field(default_factory=lambda: [1.0, 0.0])
        """Share of questions with one hop, and with two."""
        num_train: int = 768
        """Questions of the split; at most what its regions offer."""
        num_dev: int = 128
        num_test: int = 128

        def __post_init__(self) -> None:
            for name in ("train_regions", "dev_regions", "test_regions", "num_train", "num_dev", "num_test"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name}: {getattr(self, name)} is below 1")
            if len(self.hops) != 2 or min(self.hops) < 0 or not sum(self.hops) > 0:
                raise ValueError(f"hops: {self.hops} is not two shares, such as [0.7, 0.3]")

    def __init__(self, config: Config) -> None:
        self.config = config

    def tasks(self, split: str) -> Sequence[Task]:
        """The questions of `train`, `dev` or `test`, one-hop and two-hop mixed."""
        if split not in self._splits:
            raise DataError(f"task world: unknown split {split!r}{nearest(split, self._splits)}")
        return self._splits[split]

    def passages(self) -> Sequence[Passage]:
        """One passage per entity, of all regions of all splits."""
        return tuple(passage for region in self._regions for passage in region.passages())

    @cached_property
    def _regions(self) -> tuple[Region, ...]:
        config = self.config
        return make_regions(config.seed, config.train_regions + config.dev_regions + config.test_regions)

    @cached_property
    def _splits(self) -> dict[str, tuple[Task, ...]]:
        config, first, splits = self.config, 0, {}
        sizes = {
            "train": (config.train_regions, config.num_train),
            "dev": (config.dev_regions, config.num_dev),
            "test": (config.test_regions, config.num_test),
        }
        for split, (num_regions, num_tasks) in sizes.items():
            splits[split] = self._draw(split, self._regions[first : first + num_regions], num_tasks)
            first += num_regions
        return splits

    def _draw(self, split: str, regions: Sequence[Region], num_tasks: int) -> tuple[Task, ...]:
        """`num_tasks` different questions in random order, in the configured mix of hops."""
        draw = stream("world", self.config.seed, split)
        one = round(num_tasks * self.config.hops[0] / sum(self.config.hops))
        chosen: list[tuple[Fact, ...]] = []
        for hops, wanted in ((1, one), (2, num_tasks - one)):
            pool = [chain for region in regions for chain in _chains(region, hops)]
            if wanted > len(pool):
                setting = f"num_{split}: {num_tasks} questions need {wanted} with {hops} hops"
                raise DataError(
                    f"task world: {setting}, {len(regions)} regions have {len(pool)}; raise {split}_regions"
                )
            chosen += [pool[i] for i in draw.permutation(len(pool))[:wanted]]
        order = draw.permutation(len(chosen))
        return tuple(_task(f"world-{split}-{n:05d}", chosen[i], draw) for n, i in enumerate(order))


def _chains(region: Region, hops: int) -> Iterator[tuple[Fact, ...]]:
    """All paths of `hops` facts that do not come back to where they started."""
    for facts in region.facts.values():
        for first in facts:
            if hops == 1:
                yield (first,)
            elif first.entity is not None and first.relation.description:
                seconds = region.facts[first.entity.id]
                yield from ((first, second) for second in seconds if second.value != first.subject.name)


def _task(task_id: str, chain: tuple[Fact, ...], draw: np.random.Generator) -> Task:
    """The question of a chain: the last relation asked of the entity that the first one describes."""
    subject = chain[0].subject.name
    for fact in chain[:-1]:
        subject = fact.relation.description.format(x=subject)
    relation = chain[-1].relation
    question = relation.questions[int(draw.integers(len(relation.questions)))].format(x=subject)
    steps: list[dict[str, Any]] = [
        {
            "question": fact.relation.questions[0].format(x=fact.subject.name if n == 0 else f"#{n}"),
            "answer": fact.value,
            "supporting_id": fact.subject.id,
        }
        for n, fact in enumerate(chain)
    ]
    data = {
        "hops": len(chain),
        "type": ".".join(fact.relation.name for fact in chain),
        "supporting_titles": [fact.subject.name for fact in chain],
        "supporting_ids": [fact.subject.id for fact in chain],
        "decomposition": steps,
    }
    return Task(id=task_id, question=question, answers=_accepted(chain[-1]), data=data)


def _accepted(fact: Fact) -> tuple[str, ...]:
    """The value as its passage writes it, with and without the word for its kind."""
    prefix = {"river": "River", "mountain": "Mount"}.get(fact.relation.target)
    return (fact.value, f"{prefix} {fact.value}") if prefix else (fact.value,)
