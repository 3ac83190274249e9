"""Tensors as numpy arrays and back, bfloat16 included: what travels through the object store."""

from __future__ import annotations

import warnings
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["dtype_of", "to_array", "to_tensor"]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
"""numpy has no bfloat16 of its own, so both ways go through the same 16 bits as integers."""


def dtype_of(name: str) -> np.dtype[Any]:
    """numpy's dtype of the name that torch and numpy share: `float32`, `bfloat16`."""
    return BFLOAT16 if name == "bfloat16" else np.dtype(name)


def to_array(tensor: Tensor) -> NDArray[Any]:
    """The tensor's numbers on the host; shares memory with a contiguous CPU tensor."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(BFLOAT16)
    return tensor.numpy()


def to_tensor(array: NDArray[Any], *, borrow: bool = False) -> Tensor:
    """The array's numbers as a tensor. Copies a read-only array, as arrays out of an object store are.

    With `borrow` it does not: whoever asks only reads the tensor, and no longer than the array lives.
    """
    if borrow and not array.flags.writeable:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return _tensor(array)
    return _tensor(array if array.flags.writeable else np.array(array))


def _tensor(array: NDArray[Any]) -> Tensor:
    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
