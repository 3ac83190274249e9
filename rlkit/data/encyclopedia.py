"""An invented, self-consistent little encyclopedia: regions of towns, rivers, people, companies, books, ships.

Every name is made up, so no pretrained model knows a fact and none can be guessed. Facts never cross the border
of a region, so regions can be dealt out to splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlkit.randomness import stream
from rlkit.retriever import Passage

__all__ = ["KINDS", "Entity", "Fact", "Kind", "Region", "Relation", "make_regions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """One kind of fact about one kind of thing."""

    name: str
    target: str
    """Kind of the value; `year` is no entity."""
    questions: tuple[str, ...]
    """Ways to ask for it; {x} is the subject, by name or by description."""
    description: str = ""
    """The value described through its subject, for two hops; empty where a second hop is impossible."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of thing: how many a region has, what is true of each, and how its passage reads."""

    per_region: int
    text: str
    relations: tuple[Relation, ...]


KINDS: dict[str, Kind] = {
    "town": Kind(
        per_region=3,
        text="{x} is a town on the river {river}. The mayor of {x} is {mayor}.",
        relations=(
            Relation(
                name="river",
                target="river",
                questions=("Which river flows through {x}?", "On which river does {x} lie?"),
                description="the river that flows through {x}",
            ),
            Relation(
                name="mayor",
                target="person",
                questions=("Who is the mayor of {x}?",),
                description="the mayor of {x}",
            ),
        ),
    ),
    "river": Kind(
        per_region=2,
        text="{x} is a river. It rises at Mount {mountain} and was first mapped in {mapped}.",
        relations=(
            Relation(name="mountain", target="mountain", questions=("At which mountain does {x} rise?",)),
            Relation(name="mapped", target="year", questions=("In which year was {x} first mapped?",)),
        ),
    ),
    "person": Kind(
        per_region=8,
        text="{x} was born in {birthplace}. Today {x} works for {employer}.",
        relations=(
            Relation(
                name="birthplace",
                target="town",
                questions=("In which town was {x} born?", "Where was {x} born?"),
                description="the town where {x} was born",
            ),
            Relation(
                name="employer",
                target="company",
                questions=("Which company does {x} work for?",),
                description="the company that {x} works for",
            ),
        ),
    ),
    "company": Kind(
        per_region=3,
        text="{x} is a company based in {home}. It was founded by {founder} in {founded}.",
        relations=(
            Relation(
                name="home",
                target="town",
                questions=("In which town is {x} based?",),
                description="the town where {x} is based",
            ),
            Relation(
                name="founder",
                target="person",
                questions=("Who founded {x}?", "Who is the founder of {x}?"),
                description="the founder of {x}",
            ),
            Relation(name="founded", target="year", questions=("In which year was {x} founded?",)),
        ),
    ),
    "book": Kind(
        per_region=3,
        text="{x} is a book by {author}. It was published in {published}.",
        relations=(
            Relation(
                name="author",
                target="person",
                questions=("Who wrote {x}?", "Who is the author of {x}?"),
                description="the author of {x}",
            ),
            Relation(name="published", target="year", questions=("In which year was {x} published?",)),
        ),
    ),
    "ship": Kind(
        per_region=2,
        text="{x} is a ship from {harbour}. Its captain is {captain}.",
        relations=(
            Relation(
                name="harbour",
                target="town",
                questions=("From which town does {x} come?",),
                description="the town that {x} comes from",
            ),
            Relation(
                name="captain",
                target="person",
                questions=("Who is the captain of {x}?",),
                description="the captain of {x}",
            ),
        ),
    ),
}

ONSETS = ["b", "br", "d", "dr", "f", "g", "gr", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v", "z"]
VOWELS = ["a", "e", "i", "o", "u"]
CODAS = ["l", "n", "r", "s", "m", "k", "nd", "rn", "x", "th"]
ENDINGS = {
    "town": ("ford", "holm", "stead", "wick"),
    "river": ("a", "ine", "or"),
    "mountain": ("horn", "spitz", "tor"),
    "first": ("a", "o", "en", "is"),
    "last": ("son", "berg", "ley", "man"),
    "company": ("tec", "corp", "works"),
    "book": ("ia", "ora", "eid"),
    "ship": ("wind", "star", "fin"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """One thing of the world."""

    id: str
    """Also the id of its passage."""
    kind: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """`subject` has `relation` to `value`; `entity` is the value where it has a passage of its own."""

    subject: Entity
    relation: Relation
    value: str
    entity: Entity | None = None


@dataclass(frozen=True, kw_only=True)
class Region:
    """A closed part of the world: its entities and all facts about them."""

    index: int
    entities: tuple[Entity, ...]
    facts: dict[str, tuple[Fact, ...]]
    """Entity id -> facts of which it is the subject, in the order of `Kind.relations`."""

    def passages(self) -> tuple[Passage, ...]:
        """One per entity: its text with its facts filled in."""
        return tuple(_passage(entity, self.facts[entity.id]) for entity in self.entities)


def make_regions(seed: int, count: int) -> tuple[Region, ...]:
    """The first `count` regions of the world `seed`; asking for more leaves these as they are."""
    names = _Names(seed)
    return tuple(_region(seed, index, names) for index in range(count))


class _Names:
    """Invented names; no word is used twice in a world."""

    def __init__(self, seed: int) -> None:
        self._draw = stream("world", seed, "names")
        self._used: set[str] = set()

    def word(self, kind: str) -> str:
        """`Gasstar`: one or two syllables and an ending that fits the kind."""
        while True:
            middle = self._pick(ONSETS) + self._pick(VOWELS) if self._draw.random() < 0.4 else ""
            start = self._pick(ONSETS) + self._pick(VOWELS)
            word = f"{start}{middle}{self._pick(CODAS)}{self._pick(ENDINGS[kind])}".capitalize()
            if word not in self._used:
                self._used.add(word)
                return word

    def name(self, kind: str) -> str:
        return f"{self.word('first')} {self.word('last')}" if kind == "person" else self.word(kind)

    def _pick(self, parts: Sequence[str]) -> str:
        return parts[int(self._draw.integers(len(parts)))]


def _region(seed: int, index: int, names: _Names) -> Region:
    draw = stream("world", seed, "region", index)
    members = {
        kind: [
            Entity(id=f"w{index:03d}-{kind}-{number}", kind=kind, name=names.name(kind))
            for number in range(spec.per_region)
        ]
        for kind, spec in KINDS.items()
    }

    def fact(subject: Entity, relation: Relation) -> Fact:
        if relation.target in members:
            others = members[relation.target]
            entity = others[int(draw.integers(len(others)))]
            return Fact(subject=subject, relation=relation, value=entity.name, entity=entity)
        year = relation.target == "year"
        value = str(draw.integers(1500, 2000)) if year else names.word(relation.target)
        return Fact(subject=subject, relation=relation, value=value)

    entities = tuple(entity for found in members.values() for entity in found)
    facts = {each.id: tuple(fact(each, relation) for relation in KINDS[each.kind].relations) for each in entities}
    return Region(index=index, entities=entities, facts=facts)


def _passage(entity: Entity, facts: Sequence[Fact]) -> Passage:
    values = {fact.relation.name: fact.value for fact in facts}
    text = KINDS[entity.kind].text.format(x=entity.name, **values)
    return Passage(id=entity.id, title=entity.name, text=text)
