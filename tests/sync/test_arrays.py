"""What leaves the learner arrives as the same bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlkit.sync.arrays import BFLOAT16, to_array, to_tensor
from rlkit.sync.fingerprint import fingerprint


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_survives_the_way_there_and_back_and_keeps_its_fingerprint(dtype) -> None:
    sent = torch.tensor([[1.5, -0.0], [float("inf"), 3.1415926]], dtype=dtype)
    array = to_array(sent)
    array.setflags(write=False)  # as out of an object store
    found = to_tensor(array)
    assert found.dtype == dtype and torch.equal(found, sent)
    assert fingerprint({"w": array}) == fingerprint({"w": sent}) == fingerprint({"w": found})


def test_bfloat16_keeps_eight_bits_of_the_mantissa() -> None:
    assert to_array(torch.tensor([1.00390625], dtype=torch.bfloat16)).astype(np.float32)[0] == 1.0
    assert to_array(torch.tensor([1.0078125], dtype=torch.bfloat16)).astype(np.float32)[0] == 1.0078125


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16])
def test_a_borrowed_array_is_read_where_it_lies(dtype: np.dtype) -> None:
    array = np.arange(4).astype(dtype)
    array.flags.writeable = False
    borrowed = to_tensor(array, borrow=True)
    assert borrowed.data_ptr() == array.ctypes.data
    assert borrowed.tolist() == [0, 1, 2, 3]
    assert to_tensor(array).data_ptr() != array.ctypes.data
