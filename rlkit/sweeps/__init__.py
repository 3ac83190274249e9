"""Sweeps: which arms there are, when one is beaten, and one page about all of them.

    grid.py      arms, seeds and how to search, read from a YAML file beside a recipe
    racing.py    per-prompt differences, their intervals, and who is out
    record.py    evaluations on disk, which is all that a sweep that goes on needs to know
    report.py    one HTML page

The trials themselves run on Ray Tune (`rlkit/cluster/sweep.py`).
"""

from __future__ import annotations

__all__: list[str] = []
