"""Tags of an agentic trajectory: what a completion asks for, and the blocks that a trajectory is made of.

Search-R1 writes `<think> <search> <information> <answer>` (arXiv:2503.09516), Search-P1 the same four roles
as `<reasoning> <tool_call> <tool_response> <answer>` (arXiv:2602.22576): the names are settings, the roles
are fixed. A fifth role, the plan, exists only where it is given a name. Nothing here raises on what a model wrote:
an `Action` or a `Block` says that it is malformed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Literal

from rlkit.records import Author

__all__ = [
    "NOTHING_FOUND",
    "ROLES",
    "SEARCH_FAILED",
    "SEARCH_R1_TAGS",
    "Action",
    "Block",
    "Role",
    "Tags",
    "blocks",
    "parse",
    "query_fault",
]

Role = Literal["think", "search", "information", "answer", "plan"]
ROLES: tuple[Role, ...] = ("think", "search", "information", "answer", "plan")
NOTHING_FOUND = "No passage was found."
"""Stands for the passages when there are none: environment and rewards have to agree on it."""
SEARCH_FAILED = "The search failed. Try again."
"""Stands for the passages when the retriever failed."""


@dataclass(frozen=True, kw_only=True)
class Tags:
    """Name of the tag that plays each role."""

    think: str = "think"
    """Reasoning, by the policy."""
    search: str = "search"
    """One query, by the policy."""
    information: str = "information"
    """Retrieved passages, by the environment only."""
    answer: str = "answer"
    """The final answer, by the policy."""
    plan: str = ""
    """A plan before everything else, by the policy; empty: the protocol has no such tag."""

    def __post_init__(self) -> None:
        names = [getattr(self, item.name) for item in fields(self)]
        for item, name in zip(fields(self), names, strict=True):
            if item.name == "plan" and not name:
                continue
            if not re.fullmatch(r"[A-Za-z][\w-]*", name):
                raise ValueError(f"tags.{item.name}: {name!r} is not a tag name such as '{item.default or item.name}'")
        if len(set(names)) < len(names):
            raise ValueError(f"tags: {', '.join(names)} must differ from each other")

    def open(self, role: Role) -> str:
        """`<search>`."""
        return f"<{getattr(self, role)}>"

    def close(self, role: Role) -> str:
        """`</search>`."""
        return f"</{getattr(self, role)}>"

    @cached_property
    def roles(self) -> dict[str, Role]:
        """Tag name -> role."""
        return {getattr(self, role): role for role in ROLES if getattr(self, role)}

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Any opening or closing tag: group 1 is the slash, group 2 the name."""
        return re.compile(rf"<(/?)({'|'.join(map(re.escape, self.roles))})>")

    def inert(self, text: str) -> str:
        """`text` with every tag defused, so that a passage can neither answer nor close the observation."""
        return self.pattern.sub(r"(\1\2)", text)


SEARCH_R1_TAGS = Tags()
"""`<think> <search> <information> <answer>`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What one completion asks the environment to do."""

    kind: Literal["search", "answer", "invalid"]
    content: str = ""
    """Query or answer, stripped; empty for `invalid`."""
    fault: str = ""
    """Why it is invalid."""
    forged: bool = False
    """The model typed an observation tag before it acted."""


def parse(completion: str, tags: Tags, opened: Role | None = None) -> Action:
    """The action of a completion: its first closing search or answer tag decides, the rest does not exist.

    `opened` is a tag that the environment wrote directly before the completion. Of several opening tags the
    one nearest to the deciding closing tag counts, so `<search> no, <answer>x</answer>` answers x. Search-R1
    takes the farthest; the difference shows only on nested tags, which never count as well-formed.
    """
    starts: dict[Role, int] = {opened: 0} if opened else {}
    forged = False
    for match in tags.pattern.finditer(completion):
        role = tags.roles[match[2]]
        forged = forged or role == "information"
        if not match[1]:
            starts[role] = match.end()
        elif role == "search" or role == "answer":
            if role not in starts:
                return Action(kind="invalid", fault=f"{match[0]} without {tags.open(role)}", forged=forged)
            content = completion[starts[role] : match.start()].strip()
            return Action(kind=role, content=content, forged=forged)
    unclosed = [tags.open(role) for role in ("search", "answer") if role in starts]
    fault = f"{unclosed[0]} is not closed" if unclosed else "no action"
    return Action(kind="invalid", fault=fault, forged=forged)


def query_fault(query: str, tags: Tags, max_words: int = 32) -> str:
    """Why `query` is refused, or ""; one rule for environment and rewards (search_p1 §11)."""
    if not re.search(r"\w", query):
        return "it is empty"
    if tags.pattern.search(query):
        return "it contains a tag"
    if re.search(r"https?:|www\.|\w://", query, re.IGNORECASE):
        return "it is a web address"
    if len(query.split()) > max_words:
        return f"it is longer than {max_words} words"
    if re.fullmatch(r"\W*search(\W*|\(.*\)|-\S*)", query, re.IGNORECASE | re.DOTALL):
        return "it names no subject"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A stretch of a trajectory: one tagged block, or what stands between two."""

    kind: Literal["think", "search", "information", "answer", "plan", "loose", "control"]
    """`loose` is policy text outside every tag or with broken tags, `control` an untagged observation."""
    author: Author
    """Who wrote the content."""
    text: str
    """Content without the tags, stripped."""
    part: int = field(default=-1, compare=False)
    """Index of the `(author, text)` that it was read from."""


def blocks(parts: Iterable[tuple[Author, str]], tags: Tags) -> list[Block]:
    """Split a trajectory, `(author, text)` per node, into blocks. Tags inside passages mean nothing.

    A prompt or environment text ending in an opening tag (a prefilled `<think>`, a forced `<answer>`) opens
    the block that the policy then fills. A policy block counts only if it is closed and holds no other tag;
    everything else is `loose`. As in `parse`, what a completion holds after its first closing search or
    answer tag does not exist.
    """
    found: list[Block] = []
    opened: Role | None = None
    for part, (author, text) in enumerate(parts):
        if author == "policy":
            found += _policy_blocks(text, tags, opened, part)
            opened = None
            continue
        text, opened = _split_prefill(text, tags)
        text = text.strip()
        if author == "environment" and text:
            wrapped = text.startswith(tags.open("information")) and text.endswith(tags.close("information"))
            inner = text[len(tags.open("information")) : -len(tags.close("information"))] if wrapped else text
            kind: Literal["information", "control"] = "information" if wrapped else "control"
            found.append(Block(kind=kind, author=author, text=inner.strip(), part=part))
    return found


def _split_prefill(text: str, tags: Tags) -> tuple[str, Role | None]:
    """`"...\\n<answer>"` -> the text before the last opening tag and its role, if the text ends with one."""
    for role in tags.roles.values():
        if text.rstrip().endswith(tags.open(role)):
            return text.rstrip().removesuffix(tags.open(role)), role
    return text, None


def _policy_blocks(text: str, tags: Tags, opened: Role | None, part: int) -> Iterator[Block]:
    """Blocks of one completion, read left to right up to its action."""
    start = 0
    for match in tags.pattern.finditer(text):
        role, inside = tags.roles[match[2]], text[start : match.start()].strip()
        if match[1] and role == opened:
            # A model that types an observation forges it, however well it closes the tag.
            kind: Literal["think", "search", "answer", "plan", "loose"] = "loose" if role == "information" else role
            yield Block(kind=kind, author="policy", text=inside, part=part)
            opened = None
        else:
            if inside or opened or match[1]:
                yield Block(kind="loose", author="policy", text=inside, part=part)
            opened = None if match[1] else role
        start = match.end()
        if match[1] and role in ("search", "answer"):
            return
    if text[start:].strip() or opened:
        yield Block(kind="loose", author="policy", text=text[start:].strip(), part=part)
