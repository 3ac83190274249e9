"""Weights in buckets, changes only, and the link that they cross."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from rlkit.errors import EngineError
from rlkit.policy.weights import assign_weights
from rlkit.sync.arrays import BFLOAT16
from rlkit.sync.broadcast import packed, unpacked
from rlkit.sync.buckets import Buckets, Described, described, planned
from rlkit.sync.delta import applied, changed
from rlkit.sync.fingerprint import fingerprint
from rlkit.sync.link import PROBE_BYTES, copy_speed, probe


def test_a_bucket_ends_with_the_tensor_that_fills_it() -> None:
    tensors = {name: Described((size,), "uint8", size) for name, size in {"a": 4, "b": 4, "c": 10, "d": 1}.items()}
    assert planned(tensors, 8) == [["a", "b"], ["c"], ["d"]]
    assert planned(tensors, 100) == [["a", "b", "c", "d"]]
    assert planned({}, 8) == []


class Sender:
    """A linear layer's weights, one tensor a bucket, and which of them were asked for."""

    def __init__(self, weights: Mapping[str, Any]) -> None:
        self.weights, self.fetched = weights, list[int]()
        self.plan = planned(described(weights), 1)

    def buckets(self) -> Buckets:
        def fetch(index: int) -> dict[str, Any]:
            self.fetched.append(index)
            return {name: self.weights[name] for name in self.plan[index]}

        return Buckets(described(self.weights), self.plan, fetch)


def test_weights_in_buckets_run_as_if_they_had_come_at_once_and_each_bucket_is_fetched_once() -> None:
    source, target = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    sender = Sender({name: p.detach().numpy() for name, p in source.named_parameters()})
    found = assign_weights(target, sender.buckets())
    assert found == fingerprint(source.state_dict()) == fingerprint(target.state_dict())
    assert sender.fetched == [0, 1]


def test_what_does_not_fit_is_refused_before_a_bucket_is_fetched() -> None:
    sender = Sender({"weight": np.zeros((2, 3), np.float32)})
    with pytest.raises(EngineError, match="missing bias"):
        assign_weights(torch.nn.Linear(3, 2), sender.buckets())
    wrong = Sender({"weight": np.zeros((2, 4), np.float32), "bias": np.zeros(2, np.float64)})
    with pytest.raises(EngineError, match=r"weight has shape \(2, 4\).*bias is float64"):
        assign_weights(torch.nn.Linear(3, 2), wrong.buckets())
    assert sender.fetched == wrong.fetched == []


@pytest.mark.parametrize("dtype", [np.float32, np.float64, BFLOAT16])
def test_changes_bring_the_old_weights_to_the_bits_of_the_new_ones(dtype: np.dtype) -> None:
    old = np.array([[1.0, 0.0, np.nan], [4.0, 5.0, 6.0]]).astype(dtype)
    new = old.copy()
    new[0, 1], new[1, 2] = -0.0, 9.0  # another bit pattern, though 0 == -0; NaN stays itself
    change = changed(new, old)
    if change is None:  # two positions of four bytes and two values are no smaller than six bfloat16
        assert dtype == BFLOAT16
        return
    assert list(change.positions) == [1, 5]
    assert change.nbytes == 2 * (4 + new.itemsize)
    applied(old, change)
    assert old.tobytes() == new.tobytes()


def test_a_tensor_that_changed_all_over_travels_whole_and_one_that_did_not_as_nothing() -> None:
    zeros = np.zeros(1000, BFLOAT16)
    assert changed(np.ones(1000, BFLOAT16), zeros) is None
    same = changed(zeros.copy(), zeros)
    assert same is not None and same.nbytes == 0


def test_a_blob_brings_whole_tensors_and_changes_back_to_the_bit() -> None:
    whole = np.array([[1.5, -0.0, 3.0]]).astype(BFLOAT16)
    change = changed(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 9.0, 4.0]))
    tensors = {"a": Described((1, 3), "bfloat16", 6), "b": Described((4,), "float64", 32)}
    found = unpacked(packed({"a": whole, "b": change}), tensors)
    assert found["a"].tobytes() == whole.tobytes() and found["a"].shape == (1, 3)
    assert list(found["b"].positions) == [2]
    base = np.array([1.0, 2.0, 9.0, 4.0])
    applied(base, found["b"])
    assert list(base) == [1.0, 2.0, 3.0, 4.0]


def test_the_speed_of_a_link_is_bytes_over_seconds_and_a_probe_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 12.0])
    monkeypatch.setattr("rlkit.sync.link.time.perf_counter", lambda: next(times))
    assert copy_speed(lambda: probe(10), 10) == 5.0
    assert probe(0).nbytes == 1
    assert probe(1 << 40).nbytes == PROBE_BYTES
