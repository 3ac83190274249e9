"""The report's picture of a searched trie holds what the search knew and what siblings were credited."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlkit.algorithms.sibling_grpo import ALGORITHM, SiblingGrpoConfig
from rlkit.recorder import Recorder
from rlkit.records import Leaf, Node, NodeSearch, SamplingState, SearchReport, Task, Tree
from rlkit.report import write_report
from rlkit.store import read_trees, write_trees
from tests.forest import scored

CANDIDATES = ["a1 b1 c1", "a1 b1 c2", "a1 b2 c3", "a2 b3 c4", "a2 b3 c5", "a3 b4 c6"]
PRUNED = {"a3", "a3 b4", "a3 b4 c6", "a2 b3 c5"}


def searched_tree() -> Tree:
    """The six candidates of papers/v_star_paper.md section 8, found by VED; likelihood alone had kept four."""
    nodes = [Node(parent=-1, author="prompt", token_ids=np.arange(6, dtype=np.int32), text="history")]
    at, leaves = {"": 0}, []
    for index, candidate in enumerate(candidates := CANDIDATES):
        prefix = ""
        for level, code in enumerate(candidate.split()):
            parent, prefix = at[prefix], f"{prefix} {code}".strip()
            if prefix not in at:
                at[prefix] = len(nodes)
                below = sum(other.startswith(prefix) for other in candidates)
                nodes.append(
                    Node(
                        parent=parent,
                        author="policy",
                        token_ids=np.array([10 * level + int(code[1:])], np.int32),
                        text=f"<{code}>",
                        behavior_logprobs=np.array([-0.7], np.float32),
                        policy_version=3,
                        sampling=SamplingState(),
                        search=NodeSearch(value=0.1 * below, entropy=0.5, visits=below, in_beam=prefix not in PRUNED),
                    )
                )
        leaves.append(Leaf(node=at[prefix], sample_index=index, status="done", answer=candidate))
    report = SearchReport(sampler="ved", budget=33, num_charged=31, num_evaluated=31, num_forwards=9, num_leaves=6)
    task = Task(id="user 1", question="what next", answers=("a1 b1 c2",))
    return Tree(task=task, nodes=tuple(nodes), leaves=tuple(leaves), search=report)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    group = [scored(searched_tree(), ("sid_match", 1.0, [0.0, 1, 0, 0, 0, 0]))]
    credited = ALGORITHM.credit(group, SiblingGrpoConfig(), None)
    with Recorder(tmp_path, live=False, decode=lambda ids: [f"<{token}>" for token in ids]) as recorder:
        recorder.header(name="sid", seed=0, recipe="seed: 0")
        recorder.log(1, {"reward/mean": 1 / 6})
        recorder.trees(1, credited)
    return write_report(tmp_path)


def data(page: Path) -> dict:
    found = re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', page.read_text(), re.S)
    assert found
    return json.loads(found[1])["rollouts"]["groups"][0]["trees"][0]


def test_nodes_carry_visits_values_and_sibling_advantages(page: Path) -> None:
    tree = data(page)
    assert tree["search"] == {
        "sampler": "ved", "budget": 33, "num_charged": 31, "num_evaluated": 31, "num_forwards": 9, "num_leaves": 6
    }  # fmt: skip
    nodes = {node["text"]: node for node in tree["nodes"]}
    assert nodes["<a1>"]["search"] == {"value": 0.3, "entropy": 0.5, "visits": 3, "in_beam": True}
    assert nodes["<a3>"]["search"]["in_beam"] is False
    assert nodes["<a1>"]["sibling"] == pytest.approx(1.413314, abs=1e-5)
    assert nodes["<b2>"]["sibling"] == pytest.approx(-0.9996, abs=1e-5)
    assert nodes["<c4>"]["sibling"] is None  # two misses of equal reward
    assert nodes["history"]["search"] is None


def test_a_search_survives_the_way_to_disk(tmp_path: Path) -> None:
    tree = searched_tree()
    write_trees(tmp_path / "x.jsonl.gz", [scored(tree, ("r", 1.0, [0.0] * 6))])
    [back] = read_trees(tmp_path / "x.jsonl.gz")
    assert back.tree.search == tree.search
    assert [node.search for node in back.tree.nodes] == [node.search for node in tree.nodes]
    assert replace(back.tree.nodes[1], token_ids=tree.nodes[1].token_ids).search is not None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_draws_the_trie_with_its_pruned_branches(page: Path, tmp_path: Path) -> None:
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom", page.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert dom.count('class="knot') == 14  # the history and 13 prefixes
    assert dom.count("branch-line pruned") == 4
    assert len(re.findall(r'class="knot[^"]*hit', dom)) == 1
    assert "value-guided search" in dom
