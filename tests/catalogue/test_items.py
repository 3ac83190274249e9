"""A catalogue: what is read, what is refused, and whose model belongs to it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from rlkit.catalogue.items import CATALOGUE_FILE, Catalogue, check_model, split_sid
from rlkit.catalogue.vectors import read_vectors, sid_vectors, write_vectors
from rlkit.errors import CheckpointError, DataError
from tests.catalogue.shop import ITEMS, SIDS, text, write


def shop(tmp_path: Path, rows: list[dict[str, object]] = ITEMS) -> Catalogue:
    write(tmp_path / "items.jsonl.gz", rows)
    return Catalogue.read(tmp_path / "items.jsonl.gz")


def test_items_on_one_semantic_id_are_found_by_it(tmp_path: Path) -> None:
    found = shop(tmp_path)
    assert found.rows_of_sid[text(14)] == (4, 5)
    assert found.row_of[12] == 2
    assert found.levels == 3
    assert found.tokens == tuple(
        f"<{level}_{n}>" for level, last in (("a", 2), ("b", 3), ("c", 5)) for n in range(1, last + 1)
    )


def test_the_trie_has_the_vocabulary_of_the_model(tmp_path: Path) -> None:
    found = shop(tmp_path)
    trie = found.trie(lambda token: 100 + found.tokens.index(token))
    assert trie.item_path(np.array([3])).tolist() == [[101, 104, 108]]  # a_2, b_3, c_4
    assert (trie.num_items, trie.num_leaves, trie.num_shared) == (6, 5, 2)


def test_a_token_that_the_model_does_not_know_is_refused(tmp_path: Path) -> None:
    found = shop(tmp_path)
    with pytest.raises(DataError, match=r"10 tokens are not in the model's vocabulary, such as <a_1>"):
        found.trie(lambda token: 3)  # the id of <unk>
    with pytest.raises(DataError, match=r"1 of 10 tokens .*<c_5>"):
        found.trie(lambda token: None if token == "<c_5>" else hash(token))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"sid": None}, r"1 of 7 items have no semantic ID \(first: item 16\).*launch.sid tokenize"),
        ({"sid": ["<a_1>", "<b_1>"]}, "item 16 has 2 levels, the first one 3"),
        ({"sid": ["<a_1>", "b_1", "<c_1>"]}, "its tokens look like <a_183>"),
        ({"item_id": 10, "sid": SIDS[10]}, "1 item ids are not unique, e.g. 10"),
    ],
)
def test_an_item_that_cannot_be_generated_is_refused(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        shop(tmp_path, [*ITEMS, {"item_id": 16, "title": "x", **change}])


def test_files_that_are_missing_or_torn_are_named(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl.gz", ITEMS)
    with pytest.raises(DataError, match=r"no file .*item.jsonl.gz; did you mean '.*items.jsonl.gz'"):
        Catalogue.read(tmp_path / "item.jsonl.gz")
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b'{"item_id": 1}\n{"item'))
    with pytest.raises(DataError, match=r"torn.jsonl.gz:2: cannot be read"):
        Catalogue.read(tmp_path / "torn.jsonl.gz", require_sids=False)


def test_items_without_semantic_ids_are_enough_for_models_of_numbers(tmp_path: Path) -> None:
    write(tmp_path / "items.jsonl.gz", [{"item_id": 1, "title": "Toy Story"}, {"item_id": 7, "title": "Heat"}])
    found = Catalogue.read(tmp_path / "items.jsonl.gz", require_sids=False)
    assert found.sids == (("<i_1>",), ("<i_7>",))


def test_a_model_of_another_catalogue_is_refused_by_fingerprint(tmp_path: Path) -> None:
    found, other = shop(tmp_path), shop(tmp_path, ITEMS[:-1])
    assert found.fingerprint != other.fingerprint
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"catalogue": found.fingerprint}))
    check_model(tmp_path, found)
    with pytest.raises(CheckpointError, match=rf"model.path: .* made for catalogue {found.fingerprint}, but .*5 items"):
        check_model(tmp_path, other)
    config.write_text("{}")
    with pytest.raises(CheckpointError, match="made for no catalogue"):
        check_model(tmp_path, found)
    other.write(tmp_path / CATALOGUE_FILE)
    config.write_text(json.dumps({"catalogue": found.fingerprint}))
    with pytest.raises(CheckpointError, match="made for catalogue"):  # the folder's own file was exchanged
        Catalogue.of_model(tmp_path, lambda token: None)


def test_written_and_read_a_catalogue_is_the_same(tmp_path: Path) -> None:
    found = shop(tmp_path)
    found.write(tmp_path / "again.jsonl.gz")
    again = Catalogue.read(tmp_path / "again.jsonl.gz")
    assert (again.fingerprint, again.titles) == (found.fingerprint, found.titles)


@pytest.mark.parametrize(
    ("written", "tokens"),
    [("<a_1><b_22>", 2), (" <a_1> <b_22>\n", 2), ("", 0), ("<a_1> or <b_2>", 0), ("<a_1", 0), ("<A_1>", 0)],
)
def test_a_semantic_id_is_tokens_and_nothing_else(written: str, tokens: int) -> None:
    assert len(split_sid(written)) == tokens


def test_items_that_share_a_semantic_id_share_the_mean_of_their_vectors(tmp_path: Path) -> None:
    found = shop(tmp_path)
    file = tmp_path / "vectors.safetensors"
    write_vectors(file, found, np.arange(12.0).reshape(6, 2), made_by="counting")
    assert sid_vectors(file)[text(14)].tolist() == [9.0, 10.0]  # of (8, 9) and (10, 11)
    assert read_vectors(file)[1] == list(found.item_ids)
    with pytest.raises(DataError, match="5 for 6 items"):
        write_vectors(file, found, np.zeros((5, 2)), made_by="counting")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"launch\.sid embed"):
        read_vectors(tmp_path / "junk.safetensors")
