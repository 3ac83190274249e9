"""Tensors as numpy arrays and back, bfloat16 included: what travels through the object store."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["to_array", "to_tensor"]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
"""numpy has no bfloat16 of its own, so both ways go through the same 16 bits as integers."""


def to_array(tensor: Tensor) -> NDArray[Any]:
    """The tensor's numbers on the host; shares memory with a contiguous CPU tensor."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(BFLOAT16)
    return tensor.numpy()


def to_tensor(array: NDArray[Any]) -> Tensor:
    """The array's numbers as a tensor. Copies a read-only array, as arrays out of an object store are."""
    writeable = array if array.flags.writeable else np.array(array)
    if writeable.dtype == BFLOAT16:
        return torch.from_numpy(writeable.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(writeable)
