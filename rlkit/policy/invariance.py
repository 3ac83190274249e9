"""Matrix products whose rows do not depend on the rows beside them: what bit-equal rollouts rest on.

A product of many rows is split into tiles, and a library picks another kernel, with another order of
additions, for another number of rows. Then a token's log-probability depends on which other samples happened
to be in the batch. Intel MKL has a mode in which it does not; its variable is read at the first product of a
process and never again:

    MKL_CBWR=AVX512,STRICT    as fast as the default; rows, threads and batch composition change no bit
    MKL_CBWR=AVX2,STRICT      the same on Intel's processors without AVX-512, and the same bits on all of them (up to
                              1.6 x slower on one that has AVX-512)

On AMD's processors MKL ignores it. There it is invariant in float32 for a multiple of four rows: fewer go through other
routines, and so does the rest of a product with a vector. So engines give their products multiples of `ROWS` rows, the
last ones for nobody.

What holds is probed, not believed: `is_invariant` multiplies and compares bits.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F

from rlkit.errors import EngineError

__all__ = ["ROWS", "VARIABLE", "filled_up", "is_invariant", "require_invariant_math", "strict_mode"]

Row = TypeVar("Row")
VARIABLE = "MKL_CBWR"
ROWS = 4
"""A product has this many rows, or a multiple."""


def strict_mode() -> str:
    """The fastest value of `MKL_CBWR` with invariant rows on this processor."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    needed = ("avx512f", "avx512bw", "avx512dq", "avx512vl")
    return "AVX512,STRICT" if all(flag in flags for flag in needed) else "AVX2,STRICT"


def filled_up(rows: Sequence[Row]) -> list[Row]:
    """The rows, and the last of them again up to a multiple of `ROWS`; nothing for no rows."""
    found = list(rows)
    return found + found[-1:] * (-len(found) % ROWS)


def require_invariant_math(device: torch.device, dtype: torch.dtype) -> None:
    """Set `MKL_CBWR` if nobody has, and raise `EngineError` unless products on `device` are invariant.

    The variable only counts if no product was computed in this process yet, so programs set it first of all.
    """
    os.environ.setdefault(VARIABLE, strict_mode())
    if is_invariant(device, dtype):
        return
    problem = f"deterministic: products of {dtype} on {device} depend on the batch they are in"
    if device.type != "cpu":
        raise EngineError(f"{problem}; set deterministic: false")
    raise EngineError(
        f"{problem} ({VARIABLE}={os.environ[VARIABLE]}, read at the first product of a process); start it with "
        f"{VARIABLE}={strict_mode()}, or set deterministic: false"
    )


@torch.inference_mode()
def is_invariant(device: torch.device, dtype: torch.dtype) -> bool:
    """True if no row of a product changes with their number, multiples of `ROWS`; shown on shapes that fail in the
    usual mode on Intel's processors."""
    generator = torch.Generator().manual_seed(0)
    for inner, outer in ((576, 192), (160, 96), (64, 1)):
        rows = torch.randn(36, inner, generator=generator).to(device, dtype)
        weight = torch.randn(outer, inner, generator=generator).to(device, dtype)
        whole = F.linear(rows, weight)
        if any(not torch.equal(F.linear(rows[:m], weight), whole[:m]) for m in range(ROWS, 36, ROWS)):
            return False
    return True
