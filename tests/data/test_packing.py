"""Packing keeps every (path, token) pair exactly once, whatever the row budget."""

from __future__ import annotations

import numpy as np
import pytest

from rlkit.algorithms import grpo, sibling_grpo
from rlkit.data.packing import empty_row, pack, scatter, uncredited, with_logprobs
from rlkit.errors import LearnerError
from tests.forest import random_forest


def pairs(batch) -> list[tuple[int, int, float, float]]:
    """(tree, token, A, w) of every pair in the batch, sorted."""
    found = []
    for row in batch.rows:
        for token, a, w in zip(row.path_token, row.path_advantage, row.path_weight, strict=True):
            found.append((int(row.origin_tree[token]), int(row.origin_token[token]), float(a), float(w)))
    return sorted(found)


@pytest.mark.parametrize("algorithm", [grpo.ALGORITHM, sibling_grpo.ALGORITHM])
@pytest.mark.parametrize("row_tokens", [35, 60, 4096])
def test_every_pair_of_path_and_token_is_in_exactly_one_row(algorithm, row_tokens: int) -> None:
    credited = algorithm.credit(random_forest(3), algorithm.config(), None)
    wanted = sorted(
        (index, int(t), float(a), float(w))
        for index, tree in enumerate(credited)
        for path in tree.paths
        for t, a, w in zip(path.tokens, path.advantages, path.weights, strict=True)
    )
    batch = pack(credited, row_tokens)
    assert pairs(batch) == wanted
    assert all(len(row.token_ids) <= row_tokens for row in batch.rows)
    for kind in ("c_pos", "c_neg", "weight"):
        packed = sum(getattr(row, kind).sum() for row in batch.rows)
        assert packed == pytest.approx(sum(getattr(tree, kind).sum() for tree in credited))


def test_scored_targets_are_the_sampled_tokens_and_score_positions_hold_their_parents() -> None:
    forest = random_forest(5, truncated=True, temperature=0.5)
    batch = pack([uncredited(s) for s in forest], 4096)
    (row,) = batch.rows
    for s in range(len(row.targets)):
        tree = forest[row.origin_tree[s]].tree
        token = row.origin_token[s]
        node = int(np.searchsorted(tree.offsets, token, side="right")) - 1
        inside = token - tree.offsets[node]
        record = tree.nodes[node]
        assert row.targets[s] == record.token_ids[inside]
        before = record.token_ids[inside - 1] if inside else tree.nodes[record.parent].token_ids[-1]
        assert row.token_ids[row.score_positions[s]] == before
        kept = row.support_ids[row.support_offsets[s] : row.support_offsets[s + 1]]
        assert row.targets[s] in kept
    assert set(row.temperature) == {0.5}


def test_the_last_token_of_a_leaf_takes_no_place() -> None:
    forest = random_forest(5)[:1]  # depth 1: a prompt and its children
    tree = forest[0].tree
    (row,) = pack([uncredited(forest[0])], 4096).rows
    assert len(row.token_ids) == tree.num_tokens - len(tree.leaves)


def test_scores_travel_back_to_their_trees_and_into_credited_rows() -> None:
    forest = random_forest(3)
    plain = pack([uncredited(s) for s in forest], 60)
    values = [1000.0 * row.origin_tree + row.origin_token for row in plain.rows]
    per_tree = scatter(plain, values, [s.tree.num_tokens for s in forest])
    for index, array in enumerate(per_tree):
        where = np.flatnonzero(np.isfinite(array))
        assert (array[where] == 1000 * index + where).all()
        assert set(where) == set(np.flatnonzero(forest[index].tree.policy_mask))
    batch = with_logprobs(pack(grpo.ALGORITHM.credit(forest, grpo.GrpoConfig(), None), 35), reference=per_tree)
    for row in batch.rows:
        assert (row.reference_logprobs == 1000.0 * row.origin_tree + row.origin_token).all()
        assert np.isnan(row.proximal_logprobs).all()


def test_a_path_longer_than_a_row_is_refused_with_the_setting_and_the_number() -> None:
    with pytest.raises(LearnerError, match=r"learner.row_tokens: 5 is less than one path of task tree1\d? ?.*raise it"):
        pack([uncredited(random_forest(1)[4])], 5)


def test_a_tree_without_credit_takes_no_row_and_a_filler_row_adds_nothing() -> None:
    forest = random_forest(3)
    empty = uncredited(forest[0])
    assert pack([type(empty)(scored=empty.scored, paths=())], 100).rows == ()
    (row,) = pack(grpo.ALGORITHM.credit(forest[:1], grpo.GrpoConfig(), None), 4096).rows
    filler = empty_row(row)
    assert not filler.c_pos.any() and not filler.weight.any() and not filler.path_weight.any()
