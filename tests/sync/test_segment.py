"""Memory that learner and engines share: who sees what, and what an engine runs in place."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from rlkit.errors import SyncError
from rlkit.policy.weights import assign_weights
from rlkit.sync.arrays import BFLOAT16
from rlkit.sync.buckets import Buckets, Described, described
from rlkit.sync.fingerprint import fingerprint
from rlkit.sync.segment import Segment, placed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="anonymous shared memory is Linux's")
TWO = {"a": Described((3,), "float32", 12), "b": Described((2, 2), "bfloat16", 8)}


def test_tensors_lie_on_boundaries_of_64_bytes_and_the_slots_one_after_the_other() -> None:
    assert placed(TWO) == ({"a": 0, "b": 64}, 128)
    segment = Segment.create(128)
    assert segment.place.num_bytes == 64 + 2 * 128
    assert [segment.slot(index).offset for index in (0, 1)] == [64, 64 + 128]
    first, second = (segment.arrays(segment.slot(index), TWO) for index in (0, 1))
    first["a"][:], first["b"][:], second["a"][:] = 1, 2, 3
    assert first["a"].tolist() == [1, 1, 1] and first["b"].shape == (2, 2) and first["b"].dtype == BFLOAT16
    assert second["a"].tolist() == [3, 3, 3] and second["b"].tolist() == [[0, 0], [0, 0]]
    assert all(array.ctypes.data % 64 == 0 for array in (*first.values(), *second.values()))


def test_readers_see_what_the_learner_writes_and_keep_to_themselves_what_they_write() -> None:
    segment = Segment.create(placed(TWO)[1])
    slot = segment.slot(1)
    ours = segment.arrays(slot, TWO)
    theirs, others = (Segment.open(segment.place).arrays(slot, TWO) for _ in range(2))
    ours["a"][:] = 7
    assert theirs["a"].tolist() == [7, 7, 7]
    theirs["a"][0] = 5
    assert ours["a"].tolist() == others["a"].tolist() == [7, 7, 7]


def test_another_process_reads_the_numbers_and_a_process_that_is_not_the_learner_is_refused() -> None:
    segment = Segment.create(placed(TWO)[1])
    segment.arrays(segment.slot(0), TWO)["a"][:] = [1, 2, 3]
    code = (
        "from tests.sync.test_segment import TWO\n"
        "from rlkit.sync.segment import Place, Segment\n"
        f"segment = Segment.open({segment.place!r})\n"
        "print(segment.arrays(segment.slot(0), TWO)['a'].sum())"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "6.0\n"
    with pytest.raises(SyncError, match="is not the learner"):
        Segment.open(replace(segment.place, key=b"another machine!"))
    with pytest.raises(SyncError, match="not to be had on this machine"):
        Segment.open(replace(segment.place, descriptor=10**6))


class Tied(nn.Module):
    """Two names for one parameter, and one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=True)
        self.last.weight = self.first.weight


def test_an_engine_runs_shared_weights_where_they_lie_and_copies_others_into_memory_of_its_own() -> None:
    torch.manual_seed(0)
    versions = [Tied().state_dict() for _ in range(4)]
    tensors = described(versions[0])
    segment = Segment.create(placed(tensors)[1])
    reading, engine = Segment.open(segment.place), Tied()

    def share(version: int, index: int) -> str:
        slot = segment.slot(index)
        for name, array in segment.arrays(slot, tensors).items():
            np.copyto(array, versions[version][name].numpy())
        arrays = reading.arrays(slot, tensors)
        return assign_weights(engine, Buckets(tensors, [list(tensors)], lambda _: arrays, lasting=True))

    def runs_in_place(index: int) -> bool:
        arrays = reading.arrays(segment.slot(index), tensors).values()
        return {p.data_ptr() for p in engine.parameters()} <= {array.ctypes.data for array in arrays}

    def runs(version: int) -> bool:
        return all(torch.equal(found, versions[version][name]) for name, found in engine.state_dict().items())

    assert share(0, 0) == fingerprint(versions[0])
    assert runs(0) and runs_in_place(0) and engine.last.weight is engine.first.weight
    assert share(1, 1) == fingerprint(versions[1]) and runs(1) and runs_in_place(1)
    # What comes another way must not be written over slot 1, whose pages would then be this process's for good.
    assert assign_weights(engine, versions[2]) == fingerprint(versions[2])
    assert runs(2) and not runs_in_place(1) and engine.last.weight.data_ptr() == engine.first.weight.data_ptr()
    assert share(3, 1) == fingerprint(versions[3]) and runs(3) and runs_in_place(1)
