"""Trees come back from disk bit for bit, whatever a run may have put in them."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlkit.errors import DataError
from rlkit.records import (
    CreditedTree,
    CreditPath,
    Leaf,
    Node,
    RewardTerm,
    SamplingState,
    ScoredTree,
    Task,
    Tree,
)
from rlkit.store import SCHEMA, read_trees, write_trees

texts = st.text(st.characters(), max_size=8)  # lone surrogates, control characters and all
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
ids = st.integers(0, 2**31 - 1)


def arrays(dtype: Any, size: int, **kwargs: Any) -> st.SearchStrategy[Any]:
    return hnp.arrays(dtype, size, **kwargs)


@st.composite
def samplings(draw: Any, size: int) -> SamplingState:
    temperature = draw(st.floats(1e-3, 10))
    if draw(st.booleans()):
        return SamplingState(temperature=temperature)
    counts = draw(arrays(np.int32, size, elements=st.integers(1, 3)))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return SamplingState(
        temperature=temperature,
        support_offsets=offsets,
        support_ids=draw(arrays(np.int32, int(offsets[-1]), elements=ids)),
    )


@st.composite
def nodes(draw: Any, parent: int) -> Node:
    size = draw(st.integers(1, 4))
    author = "prompt" if parent < 0 else draw(st.sampled_from(["policy", "environment"]))
    policy = author == "policy"
    return Node(
        parent=parent,
        author=author,
        token_ids=draw(arrays(np.int32, size, elements=ids)),
        text=draw(texts),
        # Every bit pattern: NaN payloads, infinities, negative zero.
        behavior_logprobs=draw(arrays(np.uint32, size)).view(np.float32) if policy else None,
        policy_version=draw(st.integers(0, 99)) if policy else -1,
        sampling=draw(samplings(size)) if policy else None,
        turn=draw(st.integers(0, 3)),
    )


@st.composite
def trees(draw: Any) -> Tree:
    found, path = [draw(nodes(-1))], [0]
    for index in range(1, draw(st.integers(1, 5))):
        path = path[: draw(st.integers(1, len(path)))]
        found.append(draw(nodes(path[-1])))
        path.append(index)
    leaves = tuple(
        Leaf(
            node=draw(st.integers(0, len(found) - 1)),
            sample_index=index,
            status=draw(st.sampled_from(["done", "truncated", "failed"])),
            reason=draw(texts),
            answer=draw(st.none() | texts),
            signals=draw(st.dictionaries(texts, st.floats(), max_size=2)),
        )
        for index in range(draw(st.integers(0, 3)))
    )
    task = Task(
        id=draw(texts),
        question=draw(texts),
        answers=tuple(draw(st.lists(texts, max_size=2))),
        data=draw(st.dictionaries(texts, json_values, max_size=2)),
    )
    return Tree(task=task, nodes=tuple(found), leaves=leaves)


@st.composite
def terms(draw: Any, tree: Tree) -> RewardTerm:
    values = draw(arrays(np.float64, len(tree.leaves), elements=st.floats(allow_infinity=False)))
    return RewardTerm(
        name=draw(texts),
        weight=draw(st.floats(-2, 2)),
        values=values,
        status=tuple(
            "ok" if math.isfinite(value) else draw(st.sampled_from(["failed: x", "skipped"])) for value in values
        ),
        node_values=draw(st.none() | arrays(np.float64, len(tree.nodes))),
    )


@st.composite
def records(draw: Any) -> ScoredTree | CreditedTree:
    tree = draw(trees())
    scored = ScoredTree(tree=tree, terms=tuple(draw(st.lists(terms(tree), max_size=2))))
    if draw(st.booleans()):
        return scored
    size = draw(st.integers(0, 3))
    path = CreditPath(
        leaf=draw(st.integers(-1, 3)),
        tokens=draw(arrays(np.int32, size, elements=ids)),
        advantages=draw(arrays(np.float64, size)),
        weights=draw(arrays(np.float64, size)),
    )
    return CreditedTree(scored=scored, paths=(path,) * draw(st.integers(0, 2)))


def exactly(value: Any) -> Any:
    """A form in which == means: the same bits, types and dtypes."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if dataclasses.is_dataclass(value):
        return type(value).__name__, [exactly(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, tuple | list):
        return [exactly(item) for item in value]
    if isinstance(value, dict):
        return {name: exactly(item) for name, item in value.items()}
    return type(value).__name__, repr(value)


def one_tree() -> ScoredTree:
    policy = Node(
        parent=0,
        author="policy",
        token_ids=np.array([5, 6], dtype=np.int32),
        text="hi",
        behavior_logprobs=np.array([-0.1, -0.2], dtype=np.float32),
        policy_version=3,
        sampling=SamplingState(),
    )
    prompt = Node(parent=-1, author="prompt", token_ids=np.array([1], dtype=np.int32), text="?")
    leaf = Leaf(node=1, sample_index=0, status="done")
    return ScoredTree(tree=Tree(task=Task(id="t", question="?"), nodes=(prompt, policy), leaves=(leaf,)), terms=())


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.lists(records(), max_size=2))
def test_records_come_back_bit_for_bit(tmp_path, written):
    path = tmp_path / "step_000001.jsonl.gz"
    write_trees(path, written)
    stored = read_trees(path)
    assert [exactly(tree.record) for tree in stored] == [exactly(tree) for tree in written]
    assert all(tree.token_texts is None for tree in stored)


def test_the_same_trees_make_the_same_bytes(tmp_path):
    write_trees(tmp_path / "a", [one_tree()])
    write_trees(tmp_path / "b", [one_tree()])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]  # no partial file is left


def test_a_decoder_adds_one_string_for_every_token(tmp_path):
    write_trees(tmp_path / "a", [one_tree()], lambda tokens: [f"<{token}>" for token in tokens])
    assert read_trees(tmp_path / "a")[0].token_texts == (("<1>",), ("<5>", "<6>"))
    with pytest.raises(ValueError, match="1 strings for 2 tokens"):
        write_trees(tmp_path / "a", [one_tree()], lambda tokens: ["x"])


def test_the_file_can_be_read_without_rlkit(tmp_path):
    write_trees(tmp_path / "a", [one_tree()])
    header, row = map(json.loads, gzip.decompress((tmp_path / "a").read_bytes()).splitlines())
    assert header == {"format": "rlkit.trees", "schema": 1}
    packed = row["nodes"][1]["behavior_logprobs"]
    assert packed["dtype"] == "<f4"
    assert np.frombuffer(base64.b64decode(packed["base64"]), "<f4").tolist() == pytest.approx([-0.1, -0.2])


def damaged(path: Path, kind: str) -> bytes:
    whole = path.read_bytes()
    lines = gzip.decompress(whole).splitlines()
    match kind:
        case "torn":
            return whole[: len(whole) // 2]
        case "empty":
            return gzip.compress(b"")
        case "foreign":
            return gzip.compress(b'{"hello": 1}\n')
        case "newer":
            return gzip.compress(json.dumps({"format": "rlkit.trees", "schema": SCHEMA + 1}).encode())
        case "object array":
            return gzip.compress(lines[0] + b"\n" + lines[1].replace(b"<f4", b"|O"))
        case _:
            return b"not gzip"


@pytest.mark.parametrize("kind", ["torn", "empty", "foreign", "newer", "object array", "plain"])
def test_a_damaged_foreign_or_newer_file_is_a_data_error(tmp_path, kind):
    path = tmp_path / "a"
    write_trees(path, [one_tree()])
    path.write_bytes(damaged(path, kind))
    with pytest.raises(DataError, match="schema 2" if kind == "newer" else "a: not a"):
        read_trees(path)


def test_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError):
        read_trees(tmp_path / "none")
