"""A reward that a random model can learn from, in a file of its own: the reward process imports nothing heavy."""

from __future__ import annotations

from rlkit.reward import Task, Trajectory

__all__ = ["even_bytes"]


def even_bytes(task: Task, trajectory: Trajectory) -> float:
    """Share of even bytes in what the policy wrote."""
    written = trajectory.completion.encode()
    return sum(byte % 2 == 0 for byte in written) / max(len(written), 1)
