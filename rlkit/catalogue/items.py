"""The items that may be recommended: their numbers, semantic IDs and titles, and whose model they belong to.

A semantic ID (SID) is one token per level, coarse to fine: `("<a_183>", "<b_70>", "<c_232>", "<d_6>")`, written as
`<a_183><b_70><c_232><d_6>`. Items may share one; they are counted, and none of them is dropped.

A model is made for one catalogue (`rlkit.models.recommender`): its folder holds `catalogue.jsonl.gz`, and its
`config.json` the fingerprint, which checkpoints inherit. Another catalogue is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from rlkit.catalogue.rows import read_rows, write_rows
from rlkit.catalogue.trie import Trie
from rlkit.errors import CheckpointError, DataError

__all__ = ["CATALOGUE_FILE", "SID_TOKEN", "Catalogue", "check_model", "split_sid"]

CATALOGUE_FILE = "catalogue.jsonl.gz"
"""Name of the catalogue inside a model's folder."""
SID_TOKEN = r"<[a-z]+_[0-9]+>"
"""One token of a semantic ID, as a regular expression."""
_TOKEN = re.compile(SID_TOKEN)


def split_sid(text: str) -> tuple[str, ...]:
    """The tokens of a text that consists of them and white space alone; empty where anything else stands in it."""
    return () if _TOKEN.sub("", text).strip() else tuple(_TOKEN.findall(text))


@dataclass(frozen=True, kw_only=True, eq=False)
class Catalogue:
    """Items in the order of their file; row i of one field belongs to row i of the others."""

    item_ids: tuple[int, ...]
    """[I] numbers as the data set counts them."""
    sids: tuple[tuple[str, ...], ...]
    """[I] semantic IDs, all of L tokens."""
    titles: tuple[str, ...]
    """[I] a line of text for people and text prompts; empty where the data set has none."""

    def __post_init__(self) -> None:
        if not self.item_ids:
            raise DataError("catalogue: holds no items")
        if twice := [item for item, count in Counter(self.item_ids).items() if count > 1]:
            raise DataError(f"catalogue: {len(twice)} item ids are not unique, e.g. {twice[0]}")
        if without := [item for item, sid in zip(self.item_ids, self.sids, strict=True) if not sid]:
            raise DataError(
                f"catalogue: {len(without)} of {len(self.item_ids)} items have no semantic ID (first: item "
                f"{without[0]}); make them with: python -m rlkit.launch.sid tokenize ITEMS OUT"
            )
        for item, sid in zip(self.item_ids, self.sids, strict=True):
            if len(sid) != self.levels:
                raise DataError(f"catalogue: item {item} has {len(sid)} levels, the first one {self.levels}")
            if not all(map(_TOKEN.fullmatch, sid)):
                raise DataError(f"catalogue: item {item} has the semantic ID {sid}; its tokens look like <a_183>")

    @classmethod
    def read(cls, file: Path, *, sid_field: str = "sid", require_sids: bool = True) -> Catalogue:
        """Items of a `.jsonl.gz` with `item_id`, `sid_field` and maybe `title`. Raises `DataError`.

        Without `require_sids`, items that lack one get `<i_NUMBER>`, a semantic ID of one level of their own: enough
        for baselines that know items by number only.
        """
        rows = list(read_rows(file, ("item_id",)))
        sids = [tuple(row.get(sid_field) or ()) for row in rows]
        if not require_sids and not all(sids):
            sids = [(f"<i_{row['item_id']}>",) for row in rows]
        titles = (row.get("title") or row.get("textual_id_llm") or "" for row in rows)
        return cls(item_ids=tuple(row["item_id"] for row in rows), sids=tuple(sids), titles=tuple(titles))

    def write(self, file: Path) -> None:
        """Write what `read` reads."""
        columns = zip(self.item_ids, self.sids, self.titles, strict=True)
        write_rows(file, ({"item_id": i, "sid": sid, "title": title} for i, sid, title in columns))

    @property
    def levels(self) -> int:
        """L."""
        return len(self.sids[0])

    @cached_property
    def row_of(self) -> dict[int, int]:
        """Item id -> row."""
        return {item: row for row, item in enumerate(self.item_ids)}

    @cached_property
    def sid_texts(self) -> tuple[str, ...]:
        """[I] semantic IDs as text."""
        return tuple(map("".join, self.sids))

    @cached_property
    def rows_of_sid(self) -> dict[str, tuple[int, ...]]:
        """Semantic ID as text -> rows of the items that have it, ascending."""
        found: dict[str, list[int]] = {}
        for row, sid in enumerate(self.sid_texts):
            found.setdefault(sid, []).append(row)
        return {sid: tuple(rows) for sid, rows in found.items()}

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """Every distinct token, level by level, ascending by number."""
        levels = [{sid[level] for sid in self.sids} for level in range(self.levels)]
        ordered = (sorted(level, key=lambda token: (len(token), token)) for level in levels)
        return tuple(dict.fromkeys(token for level in ordered for token in level))

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits; equal for the same items with the same semantic IDs in the same order."""
        lines = (f"{item} {sid}\n" for item, sid in zip(self.item_ids, self.sid_texts, strict=True))
        return hashlib.blake2b("".join(lines).encode(), digest_size=16).hexdigest()

    def trie(self, token_id: Callable[[str], int | None]) -> Trie:
        """The catalogue over a model's vocabulary; its item rows are those here. Raises `DataError`.

        `token_id` is the tokenizer's `convert_tokens_to_ids`; it gives None or one id for every unknown token.
        """
        ids = {token: token_id(token) for token in self.tokens}
        unknown = [token for token, number in ids.items() if number is None]
        if unknown or len(set(ids.values())) < len(ids):
            shown = unknown[:3] or [*self.tokens[:3]]
            raise DataError(
                f"catalogue: {len(unknown) or 'some'} of {len(ids)} tokens are not in the model's vocabulary, such as "
                f"{', '.join(shown)}; make a model for this catalogue: python -m rlkit.launch.sid model"
            )
        return Trie.of(np.array([[ids[token] for token in sid] for sid in self.sids], np.int64))

    @classmethod
    def of_model(cls, folder: Path, token_id: Callable[[str], int | None]) -> tuple[Catalogue, Trie]:
        """The catalogue and trie of a model's folder. Raises `CheckpointError` if it was made for another one."""
        found = cls.read(folder / CATALOGUE_FILE)
        check_model(folder, found)
        return found, found.trie(token_id)


def check_model(folder: Path, catalogue: Catalogue, *, setting: str = "model.path") -> None:
    """Raise `CheckpointError` if the model or checkpoint in `folder` was made for another catalogue.

    One that names no catalogue is a language model without semantic IDs in it, and is refused as well.
    """
    try:
        made_for = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("catalogue")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{setting}: {folder} has no readable config.json: {error}") from error
    if made_for is None:
        raise CheckpointError(
            f"{setting}: {folder} was made for no catalogue; add semantic IDs with: python -m rlkit.launch.sid model"
        )
    if made_for != catalogue.fingerprint:
        raise CheckpointError(
            f"{setting}: {folder} was made for catalogue {made_for}, but the data's is {catalogue.fingerprint} "
            f"({len(catalogue.item_ids)} items); use the items it was made for, or make a model for these"
        )
