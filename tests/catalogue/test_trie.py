"""A trie of four items on three semantic IDs, worked by hand, and one of a million."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkit.catalogue.trie import ABSENT, Trie
from rlkit.errors import DataError

SIDS = np.array([[1, 3], [1, 4], [2, 3], [1, 4]])  # rows 1 and 3 share a semantic ID
TRIE = Trie.of(SIDS)


def test_the_arrays_are_those_of_the_docstring() -> None:
    assert TRIE.token.tolist() == [-1, 1, 2, 3, 4, 3]
    assert TRIE.parent.tolist() == [-1, 0, 0, 1, 1, 2]
    assert TRIE.depth.tolist() == [0, 1, 1, 2, 2, 2]
    assert TRIE.first_child.tolist() == [1, 3, 5, 6, 6, 6, 6]
    assert TRIE.first_item.tolist() == [0, 0, 3, 0, 1, 3]
    assert TRIE.end_item.tolist() == [4, 3, 4, 1, 3, 4]
    assert TRIE.item_order.tolist() == [0, 1, 3, 2]


def test_items_on_one_semantic_id_are_one_leaf_and_are_counted() -> None:
    assert (TRIE.num_items, TRIE.num_leaves, TRIE.num_shared, TRIE.levels) == (4, 3, 2, 2)
    assert TRIE.items_below(4).tolist() == [1, 3]
    assert TRIE.num_below(np.array([0, 1, 3, 4])).tolist() == [4, 3, 1, 2]


def test_children_of_many_nodes_come_ragged_or_padded() -> None:
    offsets, nodes = TRIE.children(np.array([1, 3, 0]))
    assert offsets.tolist() == [0, 2, 2, 4]  # node 3 is a leaf
    assert nodes.tolist() == [3, 4, 1, 2]
    assert TRIE.children_padded(np.array([2, 0])).tolist() == [[5, ABSENT], [1, 2]]


def test_a_path_outside_the_trie_is_absent_whatever_follows() -> None:
    assert TRIE.walk(np.array([[1, 4], [2, 4], [9, 3], [-1, 3], [2, 3]])).tolist() == [4, ABSENT, ABSENT, ABSENT, 5]
    assert TRIE.walk(np.zeros((2, 0), int)).tolist() == [0, 0]  # the empty prefix is the root
    assert TRIE.child(np.array([3]), np.array([3])).tolist() == [ABSENT]  # a leaf has no children


def test_paths_of_different_depths_are_refused() -> None:
    with pytest.raises(ValueError, match="of one depth"):
        TRIE.path(np.array([1, 3]))


@pytest.mark.parametrize("sids", [np.zeros((0, 3), int), np.zeros((3, 0), int), np.zeros(3, int), np.array([[-1]])])
def test_no_items_and_negative_tokens_are_refused(sids: np.ndarray) -> None:
    with pytest.raises(DataError, match="trie:"):
        Trie.of(sids)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=40))
def test_every_item_is_found_where_its_semantic_id_leads(rows: list[tuple[int, int, int]]) -> None:
    sids = np.array(rows)
    trie = Trie.of(sids)
    items = np.arange(len(rows))
    assert (trie.item_path(items) == sids).all()
    assert (trie.walk(sids) == trie.leaf_of_item).all()
    assert trie.num_leaves == len(set(rows))
    for row in {row[:2] for row in rows}:
        [node] = trie.walk(np.array([row]))
        assert sorted(trie.items_below(node)) == [i for i, other in enumerate(rows) if other[:2] == row]
        _, below = trie.children(np.array([node]))
        assert trie.token[below].tolist() == sorted({other[2] for other in rows if other[:2] == row})


def test_the_fingerprint_tells_order_and_items_apart() -> None:
    assert Trie.of(SIDS.copy()).fingerprint == TRIE.fingerprint
    assert Trie.of(SIDS[::-1]).fingerprint != TRIE.fingerprint
    assert Trie.of(SIDS[:3]).fingerprint != TRIE.fingerprint


def test_a_million_items_are_built_in_seconds() -> None:
    rng = np.random.default_rng(0)
    sids = rng.integers(0, 256, (1_000_000, 4)) + 256 * np.arange(4)
    start = time.process_time()
    trie = Trie.of(sids)
    asked = rng.integers(0, 1_000_000, 10_000)
    assert (trie.walk(sids[asked]) == trie.leaf_of_item[asked]).all()
    assert time.process_time() - start < 20  # seconds of processor; 1 to 2 on a quiet core
    assert trie.num_items == 1_000_000
