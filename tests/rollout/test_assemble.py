"""Paths merge into one tree by what a run is, never by what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkit.records import Leaf, Node, SamplingState, Task
from rlkit.rollout.assemble import Path, assemble

TASK = Task(id="q1", question="who?")


def node(text: str, author: str = "policy") -> Node:
    ids = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    sampled = {"behavior_logprobs": np.zeros(len(ids), np.float32), "sampling": SamplingState()}
    return Node(parent=-1, author=author, token_ids=ids, text=text, **(sampled if author == "policy" else {}))


def path(sample_index: int, *keys: object) -> Path:
    return Path(keys=("prompt", *keys), leaf=Leaf(node=-1, sample_index=sample_index, status="done"))


def test_siblings_share_the_prompt_and_nothing_else_even_with_equal_tokens():
    nodes = {"prompt": node("p", "prompt"), (0, 0): node("same"), (1, 0): node("same")}
    tree = assemble(TASK, nodes, [path(0, (0, 0)), path(1, (1, 0))])
    assert [n.parent for n in tree.nodes] == [-1, 0, 0]
    assert [leaf.node for leaf in tree.leaves] == [1, 2]
    assert tree.num_tokens == 9  # 1 + 4 + 4


def test_a_forked_sample_shares_its_parents_nodes_up_to_the_fork():
    #            prompt p
    #            └ (0,0) a
    #              ├ (0,1) b      leaf 0
    #              │ └ (2,2) d    leaf 2, forked from sample 0 after turn 1
    #              └ (1,1) c      leaf 1, forked from sample 0 after turn 0
    nodes = {
        "prompt": node("p", "prompt"),
        (0, 0): node("a"),
        (0, 1): node("b"),
        (1, 1): node("c"),
        (2, 2): node("d"),
    }
    paths = [path(0, (0, 0), (0, 1)), path(1, (0, 0), (1, 1)), path(2, (0, 0), (0, 1), (2, 2))]
    tree = assemble(TASK, nodes, paths)
    assert [n.text for n in tree.nodes] == ["p", "a", "b", "d", "c"]
    assert [n.parent for n in tree.nodes] == [-1, 0, 1, 2, 1]
    assert [leaf.node for leaf in tree.leaves] == [2, 4, 3]
    assert [t.response for t in tree.trajectories()] == ["ab", "ac", "abd"]


def test_leaves_come_in_the_order_of_their_samples_whatever_finished_first():
    nodes = {"prompt": node("p", "prompt"), "a": node("a"), "b": node("b")}
    tree = assemble(TASK, nodes, [path(5, "b"), path(2, "a")])
    assert [(leaf.sample_index, tree.nodes[leaf.node].text) for leaf in tree.leaves] == [(2, "a"), (5, "b")]


def test_several_samples_may_end_at_one_node():
    tree = assemble(TASK, {"prompt": node("p", "prompt")}, [path(0), path(1)])
    assert [leaf.node for leaf in tree.leaves] == [0, 0]


@pytest.mark.parametrize(
    ("paths", "problem"),
    [
        ([path(0, "a", "b"), path(1, "b")], "run b follows both a and prompt"),
        ([Path(keys=(), leaf=path(0).leaf)], "the path of sample 0 is empty"),
        ([path(0), Path(keys=("a",), leaf=path(1).leaf)], "a tree has one root, the paths have"),
    ],
)
def test_paths_that_are_no_tree_are_refused(paths, problem):
    nodes = {"prompt": node("p", "prompt"), "a": node("a"), "b": node("b")}
    with pytest.raises(ValueError, match=problem):
        assemble(TASK, nodes, paths)


@given(forks=st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), max_size=8))
def test_every_leaf_of_any_forking_reads_back_its_own_path(forks):
    """Each new sample forks from an earlier one after some of its runs, and adds two runs of its own."""
    keys = [("prompt", (0, 0), (0, 1))]
    for index, (parent, keep) in enumerate(forks, start=1):
        head = keys[parent % len(keys)]
        keys.append((*head[: 1 + keep % len(head)], (index, 0), (index, 1)))
    nodes = {key: node(f"{key};") for one in keys for key in one} | {"prompt": node("p", "prompt")}
    leaves = [Leaf(node=-1, sample_index=i, status="done") for i in range(len(keys))]
    tree = assemble(TASK, nodes, [Path(keys=k, leaf=leaf) for k, leaf in zip(keys, leaves, strict=True)])
    assert len(tree.nodes) == len(nodes)
    for path_keys, trajectory in zip(keys, tree.trajectories(), strict=True):
        assert trajectory.response == "".join(f"{key};" for key in path_keys[1:])
